//! Which memory an instruction accesses, of all instructions there are: for those that the CPU carries out by itself on a copy of
//! a device's registers (`crate::cpu::StepState`).
//!
//! Source: the tables of `iced-x86`; Intel SDM Vol. 2, "Bit Strings" (an index in a register reaches beyond the operand).

use alloc::vec::Vec;

use iced_x86::{
    Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register as Iced,
    UsedMemory,
};

use super::decode::{AddressPart, MAX_BYTES, general};
use super::{Register, sign_extended};
use crate::cpu::{CodeSize, Effect, SegmentRegister};

/// The largest operand that is carried to and from a device: a vector register.
const MAX_OPERAND_BYTES: usize = 64;

/// Whether an operand in memory is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Never.
    Never,
    /// In any case.
    Always,
    /// All of it, a part, or nothing: what has changed tells.
    Perhaps,
}

/// An operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// Linear address of its first byte.
    pub linear: u64,
    /// Bytes.
    pub bytes: usize,
    /// It is read.
    pub is_read: bool,
    /// Whether it is written.
    pub writes: Writes,
}

/// What there is to know of an instruction that runs by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its bytes.
    pub length: u8,
    /// What it does beside what most do.
    pub effect: Effect,
    /// Its operands in memory, those that are not named included (a stack's), but for those that are only hinted at
    /// (PREFETCH). `None` if they cannot be told, or are too large for
    /// a device.
    pub operands: Option<Vec<MemoryOperand>>,
}

/// Looks what an instruction will do. `value` knows the guest's registers. `None` if the bytes are none.
#[must_use]
pub fn look(
    bytes: &[u8],
    size: CodeSize,
    mut value: impl FnMut(AddressPart) -> u64,
) -> Option<Outline> {
    let bytes = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    let mut decoder = Decoder::try_new(size.bits(), bytes, DecoderOptions::NONE).ok()?;
    let found = decoder.decode();
    if found.is_invalid() {
        return None;
    }
    let effect = match found.mnemonic() {
        Mnemonic::Popf
        | Mnemonic::Popfd
        | Mnemonic::Popfq
        | Mnemonic::Iret
        | Mnemonic::Iretd
        | Mnemonic::Iretq
        | Mnemonic::Sysret
        | Mnemonic::Sysretq => Effect::LoadsFlags,
        Mnemonic::Int => Effect::Interrupts {
            vector: found.immediate8(),
        },
        _ => Effect::Usual,
    };
    let mut factory = InstructionInfoFactory::new();
    let operands = factory
        .info(&found)
        .used_memory()
        .iter()
        .map(|memory| operand(&found, memory, size, &mut value))
        .collect();
    Some(Outline {
        length: found.len() as u8,
        effect,
        operands,
    })
}

fn operand(
    found: &iced_x86::Instruction,
    memory: &UsedMemory,
    size: CodeSize,
    value: &mut impl FnMut(AddressPart) -> u64,
) -> Option<MemoryOperand> {
    let mut of_register = |register: Iced| match register {
        Iced::ES => Some(value(AddressPart::Base(SegmentRegister::Es))),
        Iced::CS => Some(value(AddressPart::Base(SegmentRegister::Cs))),
        Iced::SS => Some(value(AddressPart::Base(SegmentRegister::Ss))),
        Iced::DS => Some(value(AddressPart::Base(SegmentRegister::Ds))),
        Iced::FS => Some(value(AddressPart::Base(SegmentRegister::Fs))),
        Iced::GS => Some(value(AddressPart::Base(SegmentRegister::Gs))),
        _ => {
            let (Register { number, .. }, width) = general(register)?;
            Some(value(AddressPart::General(number)) & width.ones())
        }
    };
    let start = memory.virtual_address(0, |register, _, _| of_register(register))?;
    let bit_string = bit_offset(found, &mut of_register);
    let linear = size.linear(0, start.wrapping_add(bit_string));
    let (is_read, writes) = match memory.access() {
        OpAccess::None | OpAccess::NoMemAccess => (false, Writes::Never),
        // The tables call it a read, for its faults.
        _ if flushes(found) => (false, Writes::Never),
        OpAccess::Read | OpAccess::CondRead => (true, Writes::Never),
        // The bytes that are not written have to be known.
        OpAccess::Write if is_masked(found) => (true, Writes::Perhaps),
        OpAccess::Write => (false, Writes::Always),
        OpAccess::ReadWrite => (true, Writes::Always),
        // What it does not change it writes as it was.
        OpAccess::ReadCondWrite => (true, Writes::Always),
        OpAccess::CondWrite => (true, Writes::Perhaps),
    };
    let bytes = memory.memory_size().size();
    (1..=MAX_OPERAND_BYTES)
        .contains(&bytes)
        .then_some(MemoryOperand {
            linear,
            bytes,
            is_read,
            writes,
        })
}

/// Whether it flushes a cache line, and reads nothing.
fn flushes(found: &iced_x86::Instruction) -> bool {
    matches!(
        found.mnemonic(),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb
    )
}

/// Whether a mask says which bytes of the operand are written.
fn is_masked(found: &iced_x86::Instruction) -> bool {
    found.has_op_mask()
        || matches!(
            found.mnemonic(),
            Mnemonic::Maskmovq
                | Mnemonic::Maskmovdqu
                | Mnemonic::Vmaskmovdqu
                | Mnemonic::Vmaskmovps
                | Mnemonic::Vmaskmovpd
                | Mnemonic::Vpmaskmovd
                | Mnemonic::Vpmaskmovq
        )
}

/// How far BT and its like reach from their operand's address.
fn bit_offset(
    found: &iced_x86::Instruction,
    of_register: &mut impl FnMut(Iced) -> Option<u64>,
) -> u64 {
    let is_bit_string = matches!(
        found.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    if !is_bit_string || found.op1_kind() != OpKind::Register {
        return 0;
    }
    let register = found.op1_register();
    let Some(((_, width), index)) = general(register).zip(of_register(register)) else {
        return 0;
    };
    let bits = width.bytes() as i64 * 8;
    let operands = (sign_extended(index, width) as i64).div_euclid(bits);
    operands.wrapping_mul(width.bytes() as i64) as u64
}
