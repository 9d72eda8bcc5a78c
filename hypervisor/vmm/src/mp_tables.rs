//! The tables by which kernels that know no ACPI find processors and interrupt lines.
//!
//! The floating pointer lies at [`MP_TABLES_GPA`], at the start of the last of the places where kernels look for it, and the
//! configuration table behind it. They say what the MADT says.
//! Source: Intel MultiProcessor Specification 1.4, chapter 4.

use alloc::vec::Vec;

use guest_abi::boot::MAX_VCPUS;

use crate::acpi::checksum;
use crate::platform::{
    IOAPIC_GPA, IOAPIC_ID, LOCAL_APIC_GPA, MP_TABLES_GPA, PIT_GSI, SCI_IRQ, TABLES_END_GPA,
};

/// Bytes of the floating pointer, and of the configuration table's header.
const POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;
/// Version 1.4.
const REVISION: u8 = 4;
const POINTER_CHECKSUM: usize = 10;
const TABLE_CHECKSUM: usize = 7;

/// Processor entry: enabled, the one that boots.
const ENABLED: u8 = 1 << 0;
const BOOTSTRAP: u8 = 1 << 1;
/// Its version of the local APIC, as the APIC's own register has it.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// Family 6, and a processor with FPU and APIC: what more there is, CPUID says.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 1 << 0 | 1 << 9;
const ISA_BUS: u8 = 0;
/// Interrupt entries: flags as the bus has it; level-triggered and active high. Kinds.
const AS_THE_BUS: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_APICS: u8 = 0xFF;

/// Both tables of a VM with so many vCPUs, to lie at [`MP_TABLES_GPA`].
#[must_use]
pub fn tables(vcpus: u32) -> Vec<u8> {
    let mut entries: Vec<u8> = Vec::new();
    let mut count = 0_u16;
    let mut add = |entry: &[u8]| {
        entries.extend(entry);
        count += 1;
    };
    for index in 0..vcpus.clamp(1, MAX_VCPUS) {
        let flags = if index == 0 {
            ENABLED | BOOTSTRAP
        } else {
            ENABLED
        };
        let mut entry = Vec::from([0, index as u8, LOCAL_APIC_VERSION, flags]);
        entry.extend(SIGNATURE.to_le_bytes());
        entry.extend(FEATURES.to_le_bytes());
        entry.extend([0; 8]);
        add(&entry);
    }
    let mut bus = Vec::from([1, ISA_BUS]);
    bus.extend(b"ISA   ");
    add(&bus);
    let mut ioapic = Vec::from([2, IOAPIC_ID, IOAPIC_VERSION, 1]);
    ioapic.extend(IOAPIC_GPA.to_le_bytes());
    add(&ioapic);
    let interrupt = |entry: u8, kind: u8, flags: u16, irq: u8, apic: u8, pin: u8| {
        let [low, high] = flags.to_le_bytes();
        [entry, kind, low, high, ISA_BUS, irq, apic, pin]
    };
    for irq in (0..16).filter(|irq| *irq != 2) {
        let pin = if irq == 0 { PIT_GSI as u8 } else { irq };
        let flags = if irq == SCI_IRQ {
            LEVEL_HIGH
        } else {
            AS_THE_BUS
        };
        add(&interrupt(3, INT, flags, irq, IOAPIC_ID, pin));
    }
    // The 8259A at LINT0 of the processor that boots, NMI at LINT1 of all.
    add(&interrupt(4, EXT_INT, AS_THE_BUS, 0, 0, 0));
    add(&interrupt(4, NMI, AS_THE_BUS, 0, ALL_APICS, 1));

    let mut table = Vec::from(*b"PCMP");
    table.extend(((HEADER_BYTES + entries.len()) as u16).to_le_bytes());
    table.extend([REVISION, 0]);
    table.extend(b"NAGAYA  NAGAYAPC    ");
    // No table of the maker's own.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC_GPA.to_le_bytes());
    // No extended table.
    table.extend([0; 4]);
    debug_assert_eq!(table.len(), HEADER_BYTES);
    table.extend(entries);
    set_checksum(&mut table, TABLE_CHECKSUM);

    let mut pointer = Vec::from(*b"_MP_");
    pointer.extend((MP_TABLES_GPA as u32 + POINTER_BYTES as u32).to_le_bytes());
    // One paragraph; a configuration table is there; virtual wire mode, no IMCR.
    pointer.extend([1, REVISION, 0, 0, 0, 0, 0, 0]);
    debug_assert_eq!(pointer.len(), POINTER_BYTES);
    set_checksum(&mut pointer, POINTER_CHECKSUM);
    pointer.extend(table);
    debug_assert!(MP_TABLES_GPA + pointer.len() as u64 <= TABLES_END_GPA);
    pointer
}

fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = checksum(bytes);
    if let Some(slot) = bytes.get_mut(at) {
        *slot = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The entries, each with its kind first, found as a kernel goes through them.
    fn entries(bytes: &[u8]) -> Vec<&[u8]> {
        let count = u16::from_le_bytes([bytes[50], bytes[51]]);
        let mut at = 60;
        let mut found = Vec::new();
        for _ in 0..count {
            let length = if bytes[at] == 0 { 20 } else { 8 };
            found.push(&bytes[at..at + length]);
            at += length;
        }
        assert_eq!(at, bytes.len(), "nothing follows the last");
        found
    }

    #[test]
    fn the_pointer_leads_to_the_table_and_both_sums_are_right() {
        for vcpus in [1, 2, MAX_VCPUS] {
            let bytes = tables(vcpus);
            assert_eq!(&bytes[..4], b"_MP_");
            assert_eq!((bytes[8], sum(&bytes[..16])), (1, 0));
            assert_eq!(u64::from(u32_at(&bytes, 4)), MP_TABLES_GPA + 16);
            let table = &bytes[16..];
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(
                usize::from(u16::from_le_bytes([table[4], table[5]])),
                table.len()
            );
            assert_eq!((sum(table), u32_at(table, 36)), (0, LOCAL_APIC_GPA));
            assert!(entries(&bytes).is_sorted_by_key(|entry| entry[0]));
        }
    }

    #[test]
    fn processors_lines_and_pins_are_those_of_the_madt() {
        let bytes = tables(3);
        let entries = entries(&bytes);
        let of = |kind: u8| entries.iter().filter(move |entry| entry[0] == kind);
        let processors: Vec<_> = of(0).map(|entry| (entry[1], entry[3])).collect();
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1)]);
        assert!(of(1).eq([b"\x01\0ISA   "]));
        let ioapic = of(2).next().expect("one");
        assert_eq!(
            (ioapic[1], ioapic[3], u32_at(ioapic, 4)),
            (IOAPIC_ID, 1, IOAPIC_GPA)
        );
        let lines: Vec<_> = of(3).map(|entry| (entry[5], entry[7], entry[2])).collect();
        let expected: Vec<_> = (0..16)
            .filter(|irq| *irq != 2)
            .map(|irq| match irq {
                0 => (0, 2, 0),
                9 => (9, 9, 0b1101),
                irq => (irq, irq, 0),
            })
            .collect();
        assert_eq!(lines, expected);
        assert!(of(4).eq([&[4, 3, 0, 0, 0, 0, 0, 0], &[4, 1, 0, 0, 0, 0, 0xFF, 1]]));
    }
}
