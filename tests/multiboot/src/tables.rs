//! ACPI's tables as they lie in memory.
//!
//! Source: ACPI Specification 6.4, 5.2 "ACPI System Description Tables".

use crate::cpu::read;

const SEARCHED: core::ops::Range<u64> = 0xE_0000..0x10_0000;

/// A table is its address; 0 is none.
pub(crate) type Table = u64;

pub(crate) fn sum(start: u64, length: u64) -> u8 {
    (start..start + length).fold(0, |sum, at| sum.wrapping_add(read::<u8>(at)))
}

fn signature(table: Table) -> [u8; 4] {
    read::<u32>(table).to_le_bytes()
}

pub(crate) fn length(table: Table) -> u64 {
    u64::from(read::<u32>(table + 4))
}

pub(crate) fn rsdp() -> Option<u64> {
    SEARCHED
        .step_by(16)
        .find(|at| read::<u64>(*at).to_le_bytes() == *b"RSD PTR " && sum(*at, 20) == 0)
}

/// The tables that the XSDT names.
pub(crate) fn tables() -> impl Iterator<Item = Table> {
    let xsdt = rsdp().map_or(0, |rsdp| read::<u64>(rsdp + 24));
    let count = if xsdt == 0 {
        0
    } else {
        (length(xsdt) - 36) / 8
    };
    (0..count).map(move |index| read::<u64>(xsdt + 36 + index * 8))
}

pub(crate) fn table(name: &[u8; 4]) -> Option<Table> {
    tables().find(|table| signature(*table) == *name)
}
