//! The ACPI tables that tell a guest what its PC has: RSDP, RSDT and XSDT, FADT, FACS, DSDT, MADT.
//!
//! They lie where a BIOS has them, from [`ACPI_GPA`] on, so that kernels find them which are not told. The hardware is the
//! full one of ACPI, not the reduced: fixed PM registers, an SCI, legacy interrupt controllers. There is no HPET, no
//! memory-mapped PCI configuration and no general-purpose event, and so no table or register of theirs.
//! Source: ACPI Specification 6.5, chapters 5 (tables), 19 (ASL), 20 (AML); 6.4 for resources.

mod dsdt;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::platform::{
    ACPI_END_GPA, ACPI_GPA, IOAPIC_GPA, IOAPIC_ID, LOCAL_APIC_GPA, PIT_GSI, PM_TIMER_PORT,
    PM1A_CONTROL_PORT, PM1A_EVENT_PORT, RESET_PORT, RESET_VALUE, RTC_CENTURY, SCI_IRQ,
};
use guest_abi::boot::MAX_VCPUS;

const OEM_ID: [u8; 6] = *b"NAGAYA";
const OEM_TABLE_ID: [u8; 8] = *b"NAGAYAPC";
const OEM_REVISION: u32 = 1;
/// Bytes of the header that all tables but RSDP and FACS start with.
const HEADER_BYTES: u32 = 36;
/// Offset of the address of the RSDT in the RSDP, and of the checksums of its first part and of all.
const RSDP_RSDT: usize = 16;
const RSDP_CHECKSUM: usize = 8;
const RSDP_EXTENDED_CHECKSUM: usize = 32;
/// Bytes of the RSDP's first part.
const RSDP_FIRST_BYTES: usize = 20;

/// What a VM's tables depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Number of vCPUs; the APIC id of each is its index.
    pub vcpus: u32,
    /// It has a group page.
    pub in_group: bool,
}

/// A table and where it is to lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTable {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The tables of a VM, the RSDP first, at [`ACPI_GPA`]. All of them end at or before [`ACPI_END_GPA`].
#[must_use]
pub fn tables(config: &AcpiConfig) -> Vec<PlacedTable> {
    let mut places = Places { next: ACPI_GPA };
    let mut placed = Vec::new();
    let mut add = |bytes: Vec<u8>, align| {
        let gpa = places.take(bytes.len(), align);
        placed.push(PlacedTable { gpa, bytes });
        gpa
    };
    // The RSDP is written last, when it is known where the tables lie that it points to, but it lies first.
    add(alloc::vec![0; Rsdp::len()], 16);
    let facs = add(bytes_of(&FACS::new()), 64);
    let dsdt = add(dsdt::dsdt(config), 16);
    let fadt = add(bytes_of(&fadt(facs, dsdt)), 16);
    let madt = add(madt(config), 16);
    let xsdt = add(xsdt(&[fadt, madt]), 16);
    let rsdt = add(rsdt(&[fadt, madt]), 16);
    if let Some(first) = placed.first_mut() {
        first.bytes = rsdp(rsdt, xsdt);
    }
    debug_assert!(places.next <= ACPI_END_GPA);
    placed
}

/// Gives out addresses.
struct Places {
    next: u64,
}

impl Places {
    fn take(&mut self, bytes: usize, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        self.next = at + bytes as u64;
        at
    }
}

fn bytes_of(table: &impl Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table of that content behind its header.
fn sdt(signature: [u8; 4], revision: u8, content: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(
        signature,
        HEADER_BYTES,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(content);
    Vec::from(table.as_slice())
}

/// An address that all of the guest's are: below 4 GiB.
fn low(gpa: u64) -> u32 {
    debug_assert!(gpa <= u32::MAX.into());
    gpa as u32
}

/// 5.2.5.3 "Root System Description Pointer (RSDP) Structure". `acpi_tables` knows no RSDT, but small kernels know no XSDT.
fn rsdp(rsdt: u64, xsdt: u64) -> Vec<u8> {
    let mut bytes = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    let mut put = |at: usize, value: &[u8]| {
        let slot = bytes
            .get_mut(at..)
            .and_then(|rest| rest.get_mut(..value.len()));
        debug_assert!(slot.is_some());
        if let Some(slot) = slot {
            slot.copy_from_slice(value);
        }
    };
    put(RSDP_RSDT, &low(rsdt).to_le_bytes());
    put(RSDP_CHECKSUM, &[0]);
    put(RSDP_EXTENDED_CHECKSUM, &[0]);
    let first = checksum(bytes.get(..RSDP_FIRST_BYTES).unwrap_or_default());
    if let Some(slot) = bytes.get_mut(RSDP_CHECKSUM) {
        *slot = first;
    }
    let all = checksum(&bytes);
    if let Some(slot) = bytes.get_mut(RSDP_EXTENDED_CHECKSUM) {
        *slot = all;
    }
    bytes
}

/// What makes the sum of all bytes 0.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// 5.2.8 "Extended System Description Table (XSDT)".
fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in tables {
        xsdt.add_entry(*table);
    }
    bytes_of(&xsdt)
}

/// 5.2.7 "Root System Description Table (RSDT)".
fn rsdt(tables: &[u64]) -> Vec<u8> {
    let content: Vec<u8> = tables
        .iter()
        .flat_map(|gpa| low(*gpa).to_le_bytes())
        .collect();
    sdt(*b"RSDT", 1, &content)
}

/// A register at an I/O port.
fn port(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// 5.2.9 "Fixed ACPI Description Table (FADT)".
fn fadt(facs: u64, dsdt: u64) -> FADT {
    /// Table 5.11, "IA-PC Boot Architecture Flags": devices on the LPC bus, such as the serial port.
    const LEGACY_DEVICES: u16 = 1 << 0;
    /// A keyboard controller at ports 0x60 and 0x64.
    const KEYBOARD: u16 = 1 << 1;
    /// There is no VGA: a few registers answer, and nothing is shown.
    const NO_VGA: u16 = 1 << 2;
    /// Nothing to control ASPM of: no PCI Express.
    const NO_ASPM: u16 = 1 << 4;
    /// Worst-case latencies in microseconds that say "there is no C2" and "no C3".
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;

    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(low(facs))
        .dsdt_64(dsdt)
        // WBINVD works; every CPU has C1 (HLT). There is no sleep button, which its bit, set, says; a power button and the RTC's
        // alarm there are in the fixed registers, where their bits are not set. The PM timer has 32 bits.
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    table.dsdt = low(dsdt).into();
    table.sci_int = u16::from(SCI_IRQ).into();
    // No SMI command port: the machine is in ACPI mode from the start.
    table.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    table.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    table.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    table.pm1_evt_len = 4;
    table.pm1_cnt_len = 2;
    table.pm_tmr_len = 4;
    table.x_pm1a_evt_blk = port(PM1A_EVENT_PORT, 32, AccessSize::WordAccess);
    table.x_pm1a_cnt_blk = port(PM1A_CONTROL_PORT, 16, AccessSize::WordAccess);
    table.x_pm_tmr_blk = port(PM_TIMER_PORT, 32, AccessSize::DwordAccess);
    table.p_lvl2_lat = NO_C2.into();
    table.p_lvl3_lat = NO_C3.into();
    table.century = RTC_CENTURY;
    table.iapc_boot_arch = (LEGACY_DEVICES | KEYBOARD | NO_VGA | NO_ASPM).into();
    table.reset_reg = port(RESET_PORT, 8, AccessSize::ByteAccess);
    table.reset_value = RESET_VALUE;
    table.finalize()
}

/// 5.2.12 "Multiple APIC Description Table (MADT)". (The MADT of `acpi_tables` has no overrides.)
fn madt(config: &AcpiConfig) -> Vec<u8> {
    /// There are 8259s, too.
    const PCAT_COMPAT: u32 = 1;
    const REVISION: u8 = 5;
    let mut content = Vec::new();
    content.extend(LOCAL_APIC_GPA.to_le_bytes());
    content.extend(PCAT_COMPAT.to_le_bytes());
    for index in 0..config.vcpus.min(MAX_VCPUS) {
        let index = index as u8;
        // Processor local APIC: its device's _UID, its id, enabled.
        content.extend([0, 8, index, index, 1, 0, 0, 0]);
    }
    // I/O APIC, its first pin GSI 0.
    content.extend([1, 12, IOAPIC_ID, 0]);
    content.extend(IOAPIC_GPA.to_le_bytes());
    content.extend(0_u32.to_le_bytes());
    // Interrupt source overrides: bus ISA, IRQ, GSI, flags. The PIT as ISA has it; the SCI level-triggered, active high.
    const AS_THE_BUS: u16 = 0;
    const LEVEL_HIGH: u16 = 0b1101;
    for (irq, gsi, flags) in [
        (0, PIT_GSI, AS_THE_BUS),
        (SCI_IRQ, u32::from(SCI_IRQ), LEVEL_HIGH),
    ] {
        content.extend([2, 10, 0, irq]);
        content.extend(gsi.to_le_bytes());
        content.extend(flags.to_le_bytes());
    }
    // Local APIC NMI: every processor, as the bus has it, LINT1.
    content.extend([4, 6, 0xFF, 0, 0, 1]);
    sdt(*b"APIC", REVISION, &content)
}
