//! String instructions, at least one of whose ends is a device: how registers change with each element.
//!
//! Source: Intel SDM Vol. 2, "REP/REPE/REPZ/REPNE/REPNZ", "MOVS", "STOS", "LODS", "CMPS", "SCAS",
//! "INS", "OUTS".

use crate::exit::MemoryAccess;
use nagaya_devices::pci::Width;

use super::{Arithmetic, MAX_ELEMENTS, Register};
pub use crate::cpu::SegmentRegister as Segment;

/// What an element does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringKind {
    /// MOVS: from memory to memory.
    Move,
    /// STOS: from the accumulator to memory.
    Store,
    /// LODS: from memory to the accumulator.
    Load,
    /// INS: from a port to memory.
    In,
    /// OUTS: from memory to a port.
    Out,
    /// CMPS: memory and memory.
    Compare,
    /// SCAS: the accumulator and memory.
    Scan,
}

/// A string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringInstruction {
    /// Its bytes.
    pub length: u8,
    /// Of an element.
    pub width: Width,
    /// What an element does.
    pub kind: StringKind,
    /// As often as the count register says.
    pub repeats: bool,
    /// REPE and REPNE of CMPS and SCAS: the zero flag with which they go on.
    pub goes_on_with: Option<bool>,
    /// Of the address and count registers: never a byte.
    pub address: Width,
    /// Where what is read is.
    pub source: Segment,
}

/// RFLAGS.DF: elements go downwards.
const DIRECTION: u64 = 1 << 10;

impl StringInstruction {
    /// Elements that are left.
    #[must_use]
    pub const fn left(&self, count: u64) -> u64 {
        if self.repeats {
            count & self.address.ones()
        } else {
            1
        }
    }

    /// Elements that are done at a time, of those that are left.
    #[must_use]
    pub fn at_a_time(&self, count: u64) -> u64 {
        self.left(count).min(MAX_ELEMENTS)
    }

    /// Those of them that lie, from an address on, in one page of 4 KiB; none if the first does not.
    #[must_use]
    pub const fn in_page(&self, address: u64, flags: u64) -> u64 {
        let (inside, width) = (address % guest_abi::PAGE_BYTES, self.width.bytes() as u64);
        if inside + width > guest_abi::PAGE_BYTES {
            0
        } else if flags & DIRECTION != 0 {
            inside / width + 1
        } else {
            (guest_abi::PAGE_BYTES - inside) / width
        }
    }

    /// How far an element is from the first.
    #[must_use]
    pub const fn distance(&self, elements: u64, flags: u64) -> u64 {
        let bytes = elements.wrapping_mul(self.width.bytes() as u64);
        if flags & DIRECTION != 0 {
            bytes.wrapping_neg()
        } else {
            bytes
        }
    }

    /// The offset in its segment of an element, given the address register.
    #[must_use]
    pub const fn offset(&self, register: u64, elements: u64, flags: u64) -> u64 {
        register.wrapping_add(self.distance(elements, flags)) & self.address.ones()
    }

    /// The address register after so many elements.
    #[must_use]
    pub fn moved(&self, register: u64, elements: u64, flags: u64) -> u64 {
        self.set(register, self.offset(register, elements, flags))
    }

    /// The count register after so many elements.
    #[must_use]
    pub fn counted(&self, count: u64, elements: u64) -> u64 {
        if self.repeats {
            self.set(count, count.wrapping_sub(elements) & self.address.ones())
        } else {
            count
        }
    }

    /// The accumulator after it has been loaded.
    #[must_use]
    pub fn loaded(&self, accumulator: u64, value: u64) -> u64 {
        Register::ACCUMULATOR.insert(accumulator, value, self.width)
    }

    /// Whether it writes where RDI points.
    #[must_use]
    pub const fn writes_target(&self) -> bool {
        matches!(
            self.kind,
            StringKind::Move | StringKind::Store | StringKind::In
        )
    }

    /// RFLAGS after two elements have been compared.
    #[must_use]
    pub fn compared(&self, first: u64, second: u64, flags: u64) -> u64 {
        let ones = self.width.ones();
        let compare = Arithmetic::Subtract;
        compare
            .compute(first & ones, second & ones, self.width, flags)
            .1
    }

    /// Whether it ends by those flags, whatever is left.
    #[must_use]
    pub fn ends_with(&self, flags: u64) -> bool {
        let is_zero = flags & super::flag::ZERO != 0;
        self.goes_on_with.is_some_and(|wanted| wanted != is_zero)
    }

    /// Whether it changes RSI.
    #[must_use]
    pub const fn has_source(&self) -> bool {
        matches!(
            self.kind,
            StringKind::Move | StringKind::Load | StringKind::Out | StringKind::Compare
        )
    }

    /// Whether it changes RDI.
    #[must_use]
    pub const fn has_target(&self) -> bool {
        matches!(
            self.kind,
            StringKind::Move
                | StringKind::Store
                | StringKind::In
                | StringKind::Compare
                | StringKind::Scan
        )
    }

    /// Whether its access to a device's memory can have been the one that exited: as [`super::Instruction::explains`].
    #[must_use]
    pub const fn explains(&self, access: MemoryAccess) -> bool {
        match self.kind {
            StringKind::Move => access.write != access.read,
            StringKind::Store => access.write && !access.read,
            StringKind::Load | StringKind::Compare | StringKind::Scan => {
                access.read && !access.write
            }
            // They exit by their port.
            StringKind::In | StringKind::Out => false,
        }
    }

    fn set(&self, old: u64, value: u64) -> u64 {
        // Nothing changes, nothing is extended: so does the CPU if no element is done.
        if old & self.address.ones() == value {
            return old;
        }
        Register::ACCUMULATOR.insert(old, value, self.address)
    }
}
