//! Instructions that access the memory of a device: decoded from their bytes, carried out over plain values.
//!
//! Only what drivers and compilers use most on registers of devices: MOV in its forms, MOVZX, MOVSX, MOVNTI, XCHG, the arithmetic that
//! takes one operand from memory, single bits; and strings (`string`). Everything else is refused here: the CPU carries it out by
//! itself on a copy of the registers (`operands`, `crate::cpu::StepState`).
//! An instruction here names one place in memory, whose address the exit tells, and at most one general register. What reads and
//! writes does so in two accesses: another vCPU's may come between.
//!
//! Source: Intel SDM Vol. 2, "Instruction Format", appendix "Opcode Map"; Vol. 1, "General-Purpose Registers in 64-Bit Mode" (a
//! 32-bit result clears the upper half), "EFLAGS Register".

mod decode;
#[cfg(test)]
mod model;
mod operands;
mod string;
#[cfg(test)]
mod tests;

use crate::exit::MemoryAccess;
use nagaya_devices::pci::Width;

pub use crate::cpu::CodeSize;
pub use decode::{
    AddressPart, Decode, Decoded, IcedDecoder, MAX_BYTES, OperandAddress, Unsupported,
};
pub use operands::{MemoryOperand, Outline, Writes, look};
pub use string::{Segment, StringInstruction, StringKind};

/// Elements of a string instruction that one exit carries out: the guest comes back for the others, and whoever waits gets a turn.
pub const MAX_ELEMENTS: u64 = 64;

/// A general register, or a byte of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Its number: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub number: u8,
    /// Its second byte: AH, CH, DH, BH.
    pub is_high_byte: bool,
}

/// What comes from elsewhere than memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register.
    Register(Register),
    /// A constant, sign-extended to 64 bits.
    Constant(u64),
}

/// Arithmetic that sets the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// ADD.
    Add,
    /// ADC.
    AddCarry,
    /// OR.
    Or,
    /// AND, TEST.
    And,
    /// SUB, CMP.
    Subtract,
    /// SBB.
    SubtractBorrow,
    /// XOR.
    ExclusiveOr,
}

/// What is done to one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// INC.
    Increment,
    /// DEC.
    Decrement,
    /// NOT.
    Invert,
    /// NEG.
    Negate,
}

/// What is done to a bit, after the carry flag has got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitAction {
    /// BT: nothing.
    Test,
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

/// What becomes of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It goes to memory.
    Memory,
    /// It goes to the register.
    Register,
    /// Only the flags count (TEST, CMP).
    Flags,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Stores.
    Store(Source),
    /// Loads into a register.
    Load {
        /// The register.
        target: Register,
        /// Bytes of it that are set.
        width: Width,
        /// What is wider than memory is filled with its sign, else with zeros.
        is_signed: bool,
    },
    /// Computes.
    Compute {
        /// What.
        arithmetic: Arithmetic,
        /// The operand that is not memory.
        other: Source,
        /// Memory is the second operand, not the first.
        is_reversed: bool,
        /// What becomes of it.
        keep: Keep,
    },
    /// Exchanges memory and a register (XCHG).
    Exchange(Register),
    /// Changes memory by itself.
    Change(Unary),
    /// Tests a bit, and perhaps changes it.
    Bit {
        /// What is done to it.
        action: BitAction,
        /// Its number. Of a register's the part beyond the operand is in the address.
        index: Source,
    },
}

/// An instruction that accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its bytes.
    pub length: u8,
    /// How much of memory it accesses.
    pub width: Width,
    /// What it does.
    pub operation: Operation,
}

/// What an instruction changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The new value of [`Instruction::register`], all 64 bits.
    pub register: Option<u64>,
    /// What is written to memory.
    pub memory: Option<u64>,
    /// RFLAGS.
    pub flags: Option<u64>,
}

impl Instruction {
    /// Number of the register that it reads or changes.
    #[must_use]
    pub const fn register(&self) -> Option<u8> {
        match self.operation {
            Operation::Store(Source::Register(register))
            | Operation::Load {
                target: register, ..
            }
            | Operation::Exchange(register)
            | Operation::Bit {
                index: Source::Register(register),
                ..
            }
            | Operation::Compute {
                other: Source::Register(register),
                ..
            } => Some(register.number),
            _ => None,
        }
    }

    /// Whether it reads memory.
    #[must_use]
    pub const fn reads_memory(&self) -> bool {
        !matches!(self.operation, Operation::Store(_))
    }

    /// Whether it writes memory.
    #[must_use]
    pub const fn writes_memory(&self) -> bool {
        match self.operation {
            Operation::Store(_) | Operation::Exchange(_) | Operation::Change(_) => true,
            Operation::Load { .. } => false,
            Operation::Compute { keep, .. } => matches!(keep, Keep::Memory),
            Operation::Bit { action, .. } => !matches!(action, BitAction::Test),
        }
    }

    /// Whether this instruction's access can have been the one that exited. The bytes were fetched after it: another vCPU may
    /// have changed them meanwhile, and then the instruction that exited was another. What reads and writes is told as a write,
    /// perhaps as a read as well.
    #[must_use]
    pub const fn explains(&self, access: MemoryAccess) -> bool {
        let (reads, writes) = (self.reads_memory(), self.writes_memory());
        writes == access.write && ((reads && writes) || reads == access.read)
    }

    /// Carries it out, given the register's value, what memory holds (if it reads it) and RFLAGS.
    #[must_use]
    pub fn execute(&self, register: u64, memory: u64, flags: u64) -> Change {
        let ones = self.width.ones();
        let value = |source: Source| match source {
            Source::Register(from) => from.extract(register) & ones,
            Source::Constant(value) => value & ones,
        };
        let nothing = Change {
            register: None,
            memory: None,
            flags: None,
        };
        match self.operation {
            Operation::Store(source) => Change {
                memory: Some(value(source)),
                ..nothing
            },
            Operation::Load {
                target,
                width,
                is_signed,
            } => {
                let filled = if is_signed {
                    sign_extended(memory & ones, self.width)
                } else {
                    memory & ones
                };
                Change {
                    register: Some(target.insert(register, filled, width)),
                    ..nothing
                }
            }
            Operation::Compute {
                arithmetic,
                other,
                is_reversed,
                keep,
            } => {
                let (memory, other_value) = (memory & ones, value(other));
                let (first, second) = if is_reversed {
                    (other_value, memory)
                } else {
                    (memory, other_value)
                };
                let (result, flags) = arithmetic.compute(first, second, self.width, flags);
                let target = match (keep, other) {
                    (Keep::Register, Source::Register(target)) => Some(target),
                    _ => None,
                };
                Change {
                    register: target.map(|target| target.insert(register, result, self.width)),
                    memory: (keep == Keep::Memory).then_some(result),
                    flags: Some(flags),
                }
            }
            Operation::Exchange(other) => Change {
                register: Some(other.insert(register, memory & ones, self.width)),
                memory: Some(value(Source::Register(other))),
                flags: None,
            },
            Operation::Change(unary) => {
                let (result, flags) = unary.compute(memory & ones, self.width, flags);
                Change {
                    memory: Some(result),
                    flags,
                    ..nothing
                }
            }
            Operation::Bit { action, index } => {
                let bit = 1 << (value(index) % (self.width.bytes() as u64 * 8));
                let (memory, is_set) = (memory & ones, memory & bit != 0);
                let carry = if is_set { flag::CARRY } else { 0 };
                Change {
                    memory: match action {
                        BitAction::Test => None,
                        BitAction::Set => Some(memory | bit),
                        BitAction::Reset => Some(memory & !bit),
                        BitAction::Complement => Some(memory ^ bit),
                    },
                    // The others are undefined, but for ZF, which stays.
                    flags: Some(flags & !flag::CARRY | carry),
                    ..nothing
                }
            }
        }
    }
}

/// What to do about an instruction that does not explain its exit.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The guest executes whatever is there now.
    Again,
    /// That has not helped so often that it is no race.
    GiveUp,
}

/// Exits in a row whose instruction did not explain them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mismatches(u8);

impl Mismatches {
    /// One more of them.
    pub fn note(&mut self) -> Retry {
        self.0 = self.0.saturating_add(1);
        if self.0 > MOST_MISMATCHES {
            Retry::GiveUp
        } else {
            Retry::Again
        }
    }

    /// An instruction has explained its exit.
    #[inline]
    pub fn clear(&mut self) {
        self.0 = 0;
    }
}

/// How often a guest may lose the race against itself in a row.
const MOST_MISMATCHES: u8 = 100;

impl Register {
    const ACCUMULATOR: Register = Register {
        number: 0,
        is_high_byte: false,
    };

    fn extract(self, value: u64) -> u64 {
        if self.is_high_byte { value >> 8 } else { value }
    }

    /// The whole register after `value` has been written to `width` of it.
    fn insert(self, old: u64, value: u64, width: Width) -> u64 {
        match width {
            Width::Byte if self.is_high_byte => old & !0xFF00 | (value & 0xFF) << 8,
            Width::Byte | Width::Word => old & !width.ones() | value & width.ones(),
            Width::Dword | Width::Qword => value & width.ones(),
        }
    }
}

const fn sign_bit(width: Width) -> u64 {
    1 << (width.bytes() * 8 - 1)
}

fn sign_extended(value: u64, width: Width) -> u64 {
    let sign = sign_bit(width);
    (value ^ sign).wrapping_sub(sign)
}

/// Bits of RFLAGS.
mod flag {
    pub(super) const CARRY: u64 = 1 << 0;
    pub(super) const PARITY: u64 = 1 << 2;
    pub(super) const AUXILIARY: u64 = 1 << 4;
    pub(super) const ZERO: u64 = 1 << 6;
    pub(super) const SIGN: u64 = 1 << 7;
    pub(super) const OVERFLOW: u64 = 1 << 11;
    pub(super) const ALL: u64 = CARRY | PARITY | AUXILIARY | ZERO | SIGN | OVERFLOW;
}

impl Arithmetic {
    /// Result and flags. Of AND, OR and XOR the auxiliary flag is undefined; here it is 0.
    fn compute(self, first: u64, second: u64, width: Width, flags: u64) -> (u64, u64) {
        let (ones, sign) = (width.ones(), sign_bit(width));
        let (result, carry, overflow) = match self {
            Arithmetic::Or => (first | second, false, false),
            Arithmetic::And => (first & second, false, false),
            Arithmetic::ExclusiveOr => (first ^ second, false, false),
            Arithmetic::Add | Arithmetic::AddCarry => {
                let carried = u64::from(self == Arithmetic::AddCarry && flags & flag::CARRY != 0);
                let result = first.wrapping_add(second).wrapping_add(carried) & ones;
                let overflow = !(first ^ second) & (first ^ result) & sign != 0;
                let carry = result < first || (carried == 1 && result == first);
                (result, carry, overflow)
            }
            Arithmetic::Subtract | Arithmetic::SubtractBorrow => {
                let borrowed =
                    u64::from(self == Arithmetic::SubtractBorrow && flags & flag::CARRY != 0);
                let result = first.wrapping_sub(second).wrapping_sub(borrowed) & ones;
                let overflow = (first ^ second) & (first ^ result) & sign != 0;
                let borrow = first < second || (borrowed == 1 && first == second);
                (result, borrow, overflow)
            }
        };
        let is_sum = !matches!(
            self,
            Arithmetic::Or | Arithmetic::And | Arithmetic::ExclusiveOr
        );
        let auxiliary = is_sum && (first ^ second ^ result) & 0x10 != 0;
        let parity = (result as u8).count_ones().is_multiple_of(2);
        let bit = |is_set: bool, bit: u64| if is_set { bit } else { 0 };
        let flags = flags & !flag::ALL
            | bit(carry, flag::CARRY)
            | bit(parity, flag::PARITY)
            | bit(auxiliary, flag::AUXILIARY)
            | bit(result == 0, flag::ZERO)
            | bit(result & sign != 0, flag::SIGN)
            | bit(overflow, flag::OVERFLOW);
        (result, flags)
    }
}

impl Unary {
    /// Result and flags, if these change.
    fn compute(self, memory: u64, width: Width, flags: u64) -> (u64, Option<u64>) {
        // INC and DEC leave the carry flag alone.
        let keeping_carry = |(result, new): (u64, u64)| {
            let carry = flags & flag::CARRY;
            (result, Some(new & !flag::CARRY | carry))
        };
        match self {
            Unary::Increment => keeping_carry(Arithmetic::Add.compute(memory, 1, width, flags)),
            Unary::Decrement => {
                keeping_carry(Arithmetic::Subtract.compute(memory, 1, width, flags))
            }
            Unary::Invert => (!memory & width.ones(), None),
            Unary::Negate => {
                let (result, flags) = Arithmetic::Subtract.compute(0, memory, width, flags);
                (result, Some(flags))
            }
        }
    }
}
