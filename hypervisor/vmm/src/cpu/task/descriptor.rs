//! Descriptors.
//!
//! Source: Intel SDM Vol. 3, "Segment Descriptors", "TSS Descriptor".

use super::{LinearMemory, PageFault, Privilege, TaskRegisters};
use crate::cpu::Segment;
use crate::cpu::segment::UNUSABLE;

const BYTES: u32 = 8;
/// Where the access rights begin.
const RIGHTS: u32 = 5;
/// Bit of a TSS's type.
const BUSY: u8 = 1 << 1;
/// Of a segment's.
const ACCESSED: u32 = 1;

/// A descriptor as it lies in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor(u64);

impl Descriptor {
    pub(super) const fn base(self) -> u32 {
        (self.0 >> 16 & 0xFF_FFFF) as u32 | (self.0 >> 56 << 24) as u32
    }

    /// In bytes, whatever its granularity.
    pub(super) const fn limit(self) -> u32 {
        let limit = (self.0 & 0xFFFF) as u32 | (self.0 >> 32 & 0xF_0000) as u32;
        if self.0 & 1 << 55 != 0 {
            limit << 12 | 0xFFF
        } else {
            limit
        }
    }

    /// As the VMCS holds them.
    pub(super) const fn rights(self) -> u32 {
        (self.0 >> 40) as u32 & 0xF0FF
    }

    pub(super) const fn is_present(self) -> bool {
        self.rights() & 1 << 7 != 0
    }

    /// The type of a system descriptor.
    pub(super) const fn system_type(self) -> Option<u32> {
        if self.rights() & 1 << 4 == 0 {
            Some(self.rights() & 0xF)
        } else {
            None
        }
    }

    pub(super) const fn dpl(self) -> u16 {
        (self.rights() >> 5 & 3) as u16
    }

    pub(super) const fn is_code(self) -> bool {
        self.rights() & 0x18 == 0x18
    }

    /// Writable data.
    pub(super) const fn is_writable(self) -> bool {
        self.rights() & 0x1A == 0x12
    }

    /// Data, or readable code.
    pub(super) const fn is_readable(self) -> bool {
        self.rights() & 0x10 != 0 && (!self.is_code() || self.rights() & 2 != 0)
    }

    pub(super) const fn is_conforming(self) -> bool {
        self.is_code() && self.rights() & 4 != 0
    }

    pub(super) const fn is_accessed(self) -> bool {
        self.rights() & ACCESSED != 0
    }

    /// What is loaded of it; code and data are marked as accessed.
    pub(super) const fn segment(self, selector: u16) -> Segment {
        let mark = if self.system_type().is_none() {
            ACCESSED
        } else {
            0
        };
        Segment {
            selector,
            base: self.base() as u64,
            limit: self.limit(),
            rights: self.rights() | mark,
        }
    }

    /// The task register with this TSS.
    pub(super) const fn busy_tss(self, selector: u16) -> Segment {
        let mut segment = self.segment(selector);
        segment.rights |= BUSY as u32;
        segment
    }
}

/// The table that a selector names, if there is one: base and limit.
fn table(registers: &TaskRegisters, selector: u16) -> Option<(u32, u32)> {
    if selector & 4 == 0 {
        return Some(registers.gdtr);
    }
    let ldtr = &registers.ldtr;
    (ldtr.rights & UNUSABLE == 0).then_some((ldtr.base as u32, ldtr.limit))
}

/// Where a selector's descriptor is; `None` if it is outside its table.
pub(super) fn address(registers: &TaskRegisters, selector: u16) -> Option<u32> {
    let (base, limit) = table(registers, selector)?;
    let offset = u32::from(selector & !7);
    (offset + BYTES - 1 <= limit).then(|| base.wrapping_add(offset))
}

/// Fetches a selector's descriptor; `None` if it is outside its table.
pub(super) fn fetch(
    registers: &TaskRegisters,
    memory: &impl LinearMemory,
    selector: u16,
) -> Result<Option<Descriptor>, PageFault> {
    let Some(address) = address(registers, selector) else {
        return Ok(None);
    };
    let mut bytes = [0; BYTES as usize];
    memory.read(registers.cr3, address, &mut bytes)?;
    Ok(Some(Descriptor(u64::from_le_bytes(bytes))))
}

/// Where the busy flag of a TSS in the GDT is; `None` for a task register that was never loaded, or lies outside by now.
pub(super) fn busy_byte(registers: &TaskRegisters, selector: u16) -> Option<u32> {
    let in_gdt = selector & !7;
    let found = address(registers, in_gdt).filter(|_| in_gdt != 0);
    found.map(|address| address.wrapping_add(RIGHTS))
}

fn change(
    registers: &TaskRegisters,
    memory: &impl LinearMemory,
    at: u32,
    action: impl FnOnce(u8) -> u8,
) -> Result<(), PageFault> {
    let mut byte = [0];
    memory.read(registers.cr3, at, &mut byte)?;
    let [before] = byte;
    memory.write(registers.cr3, at, &[action(before)], Privilege::Supervisor)
}

/// Sets or clears the busy flag of a TSS.
pub(super) fn set_busy(
    registers: &TaskRegisters,
    memory: &impl LinearMemory,
    selector: u16,
    is_busy: bool,
) -> Result<(), PageFault> {
    match busy_byte(registers, selector) {
        Some(at) => change(registers, memory, at, |byte| {
            if is_busy { byte | BUSY } else { byte & !BUSY }
        }),
        None => Ok(()),
    }
}

/// Marks a segment's descriptor as accessed.
pub(super) fn set_accessed(
    registers: &TaskRegisters,
    memory: &impl LinearMemory,
    selector: u16,
) -> Result<(), PageFault> {
    match address(registers, selector) {
        Some(at) => change(registers, memory, at.wrapping_add(RIGHTS), |byte| {
            byte | ACCESSED as u8
        }),
        None => Ok(()),
    }
}
