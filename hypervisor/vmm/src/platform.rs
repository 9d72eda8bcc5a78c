//! The PC that Linux and multiboot guests see, as their loader and their ACPI tables name it.
//!
//! Numbers of devices are theirs (`nagaya_devices::pc`).

use alloc::vec::Vec;
use core::ops::Range;

use guest_abi::PAGE_BYTES;
use guest_abi::boot::{GROUP_PAGE_GPA, INFO_PAGE_GPA, PCI_WINDOW_END_GPA, PCI_WINDOW_GPA};
use nagaya_devices::pc::{self, irq, port};
use nagaya_devices::pci::bus;
use nagaya_devices::{apic, ioapic};

use crate::layout::{ABOVE_DEVICES_GPA, Layout};

/// Where RAM from 0 ends for the guest. On a PC a display and its ROM follow, of which the map says nothing.
pub const LOW_RAM_END_GPA: u64 = 0xA_0000;
/// Where RAM goes on.
pub const HIGH_RAM_GPA: u64 = 0x10_0000;
/// Where the RSDP lies, and behind it all ACPI tables; the search of the ACPI specification begins here (5.2.5.1).
pub const ACPI_GPA: u64 = 0xE_0000;
/// One past the last byte that ACPI tables can take.
pub const ACPI_END_GPA: u64 = 0xE_2000;
/// Where the MultiProcessor tables lie: the search of that specification ends with the 64 KiB from here (4.1).
pub const MP_TABLES_GPA: u64 = 0xF_0000;
/// One past the last byte that they can take.
pub const TABLES_END_GPA: u64 = 0xF_0400;
/// The BIOS data area, of which little is filled in.
pub const BIOS_DATA: Range<u64> = 0x400..0x500;

/// The IOAPIC's page.
pub const IOAPIC_GPA: u32 = ioapic::DEFAULT_BASE as u32;
/// The IOAPIC's id.
pub const IOAPIC_ID: u8 = 0;
/// The local APICs' page.
pub const LOCAL_APIC_GPA: u32 = apic::DEFAULT_BASE as u32;
/// IOAPIC pin of ISA IRQ 0, the PIT.
pub const PIT_GSI: u32 = pc::TIMER_PIN as u32;

/// First port of COM1.
pub const COM1_PORT: u16 = port::SERIAL;
/// IRQ of COM1.
pub const COM1_IRQ: u8 = irq::SERIAL;
/// Data port of the keyboard controller.
pub const KEYBOARD_DATA_PORT: u16 = port::KEYBOARD_DATA;
/// Its port of commands and status.
pub const KEYBOARD_PORT: u16 = port::KEYBOARD;
/// IRQ of the keyboard.
pub const KEYBOARD_IRQ: u8 = irq::KEYBOARD;
/// Where a kernel tells of its panic.
pub const PANIC_PORT: u16 = port::PANIC;
/// Ports of PCI configuration.
pub const PCI_CONFIG_PORT: u16 = *bus::PORTS.start();
/// BARs of PCI devices.
pub const PCI_WINDOW: Range<u64> = PCI_WINDOW_GPA..PCI_WINDOW_END_GPA;
/// PM1a event block, 4 bytes.
pub const PM1A_EVENT_PORT: u16 = port::PM_EVENT;
/// PM1a control block, 2 bytes.
pub const PM1A_CONTROL_PORT: u16 = port::PM_CONTROL;
/// ACPI PM timer, 4 bytes, 32 bits wide.
pub const PM_TIMER_PORT: u16 = port::PM_TIMER;
/// System control interrupt.
pub const SCI_IRQ: u8 = irq::ACPI;
/// The interrupt by which Nagaya's own device tells of doorbells.
pub const DOORBELL_IRQ: u8 = irq::DOORBELL;
/// Reset register.
pub const RESET_PORT: u16 = port::RESET;
/// What is written there to reset.
pub const RESET_VALUE: u8 = pc::RESET_VALUE;
/// SLP_TYP of S5, soft off.
pub const S5_SLEEP_TYPE: u8 = pc::SOFT_OFF_TYPE;
/// Register of the RTC's CMOS RAM that holds the century.
pub const RTC_CENTURY: u8 = pc::CENTURY_INDEX;

/// Bytes of the group page.
pub const GROUP_PAGE_BYTES: u64 = PAGE_BYTES;

/// What memory at an address is. The numbers are those of E820, of PVH and of Multiboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM for the guest to use.
    Ram = 1,
    /// Neither RAM nor free for devices.
    Reserved = 2,
}

/// A piece of the guest-physical address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPiece {
    /// Its addresses.
    pub range: Range<u64>,
    /// What is there.
    pub kind: MemoryKind,
}

/// Most pieces of [`memory_map`].
pub const MEMORY_PIECES: usize = 7;

/// The memory map of a VM, by address.
#[must_use]
pub fn memory_map(layout: Layout) -> Vec<MemoryPiece> {
    let pages = INFO_PAGE_GPA + u64::from(guest_abi::boot::MAX_VCPUS) * PAGE_BYTES;
    let ioapic = u64::from(IOAPIC_GPA);
    let local_apic = u64::from(LOCAL_APIC_GPA);
    [
        (0..LOW_RAM_END_GPA, MemoryKind::Ram),
        // What the firmware has. What lies before it is neither RAM nor reserved: kernels have ideas of their own of a display
        // there.
        (ACPI_GPA..HIGH_RAM_GPA, MemoryKind::Reserved),
        (
            HIGH_RAM_GPA..layout.below().max(HIGH_RAM_GPA),
            MemoryKind::Ram,
        ),
        // The group page and the info pages with what lies between them.
        (GROUP_PAGE_GPA..pages, MemoryKind::Reserved),
        (ioapic..ioapic + PAGE_BYTES, MemoryKind::Reserved),
        (local_apic..local_apic + PAGE_BYTES, MemoryKind::Reserved),
        (
            ABOVE_DEVICES_GPA..ABOVE_DEVICES_GPA + layout.above(),
            MemoryKind::Ram,
        ),
    ]
    .into_iter()
    .filter(|(range, _)| !range.is_empty())
    .map(|(range, kind)| MemoryPiece { range, kind })
    .collect()
}

const _: () = assert!(GROUP_PAGE_GPA + GROUP_PAGE_BYTES <= INFO_PAGE_GPA);
const _: () = assert!(INFO_PAGE_GPA < IOAPIC_GPA as u64);
