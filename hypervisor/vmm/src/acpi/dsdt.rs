//! The DSDT: the devices that cannot be found by asking them.
//!
//! There is no ISA bridge on the PCI bus, so that the legacy devices lie beside it. The PCI functions have no interrupt pins,
//! only MSI-X, and so there is no routing of pins (_PRT).

use alloc::format;
use alloc::vec::Vec;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::{Aml, AmlSink};
use guest_abi::PAGE_BYTES;
use guest_abi::boot::{GROUP_PAGE_GPA, INFO_PAGE_GPA, MAX_VCPUS};

use super::{AcpiConfig, bytes_of, low, sdt};
use guest_abi::boot::PCI_FIRST_PORT;

use crate::platform::{
    COM1_IRQ, COM1_PORT, DOORBELL_IRQ, GROUP_PAGE_BYTES, KEYBOARD_DATA_PORT, KEYBOARD_IRQ,
    KEYBOARD_PORT, PANIC_PORT, PCI_CONFIG_PORT, PCI_WINDOW, PM1A_EVENT_PORT, S5_SLEEP_TYPE,
};

/// Bytes of AML that are made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// 6.4.2.1 "IRQ Descriptor", two bytes: an ISA IRQ, edge-triggered, active high. The extended descriptor that `acpi_tables`
/// has names a GSI, which is not the same for IRQ 0.
struct IsaIrq(u8);

impl Aml for IsaIrq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1_u16.wrapping_shl(self.0.into()));
    }
}

/// Ports of a device from `first` on.
fn ports(first: u16, count: u8) -> IO {
    IO::new(first, first, 1, count)
}

/// `Name (NAME, value)`.
fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

/// A device with these identifications and resources, and what else it has.
fn device(path: &str, hid: &dyn Aml, uid: u8, resources: &[&dyn Aml], others: &[&dyn Aml]) -> Raw {
    let hid = name("_HID", hid);
    let uid = name("_UID", &uid);
    let has_resources = !resources.is_empty();
    let resources = name("_CRS", &ResourceTemplate::new(Vec::from(resources)));
    let mut children: Vec<&dyn Aml> = Vec::from([&hid as &dyn Aml, &uid]);
    if has_resources {
        children.push(&resources);
    }
    children.extend(others);
    Raw(bytes_of(&Device::new(Path::new(path), children)))
}

/// 5.2.11.1 "Differentiated System Description Table (DSDT)".
pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    /// Integers have 64 bits.
    const REVISION: u8 = 2;
    let mut devices = Vec::from([
        pci(),
        com1(),
        keyboard(),
        clock(),
        timer(),
        pic(),
        power_ports(),
        panic(),
    ]);
    devices.extend((0..config.vcpus.min(MAX_VCPUS)).map(|index| processor(index as u8)));
    devices.push(nagaya(config));
    let devices = devices.iter().map(|device| device as &dyn Aml).collect();
    let mut content = bytes_of(&Scope::new(Path::new("_SB_"), devices));
    // PM1a_CNT.SLP_TYP, PM1b's, two reserved. Other sleep states there are none.
    let soft_off = Package::new(Vec::from([&S5_SLEEP_TYPE as &dyn Aml, &0_u8, &0_u8, &0_u8]));
    content.extend(bytes_of(&name("_S5_", &soft_off)));
    sdt(*b"DSDT", REVISION, &content)
}

/// The PCI host bridge: bus 0, configuration by ports, windows for what the guest may move.
fn pci() -> Raw {
    // Below it no BAR answers.
    let ports = AddressSpace::<u16>::new_io(PCI_FIRST_PORT, u16::MAX, None);
    let window = AddressSpace::<u32>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low(PCI_WINDOW.start),
        low(PCI_WINDOW.end - 1),
        None,
    );
    let segment = name("_SEG", &0_u8);
    let bus = name("_BBN", &0_u8);
    device(
        "PCI0",
        &EISAName::new("PNP0A03"),
        0,
        &[
            &AddressSpace::<u16>::new_bus_number(0, 0),
            &IO::new(PCI_CONFIG_PORT, PCI_CONFIG_PORT, 1, 8),
            &ports,
            &window,
        ],
        &[&segment, &bus],
    )
}

/// The 16550.
fn com1() -> Raw {
    device(
        "COM1",
        &EISAName::new("PNP0501"),
        1,
        &[&ports(COM1_PORT, 8), &IsaIrq(COM1_IRQ)],
        &[],
    )
}

/// The keyboard and its controller.
fn keyboard() -> Raw {
    device(
        "KBD_",
        &EISAName::new("PNP0303"),
        0,
        &[
            &ports(KEYBOARD_DATA_PORT, 1),
            &ports(KEYBOARD_PORT, 1),
            &IsaIrq(KEYBOARD_IRQ),
        ],
        &[],
    )
}

/// Where a kernel tells of its panic, as QEMU has it (docs/specs/pvpanic).
fn panic() -> Raw {
    device(
        "PEVT",
        &"QEMU0001",
        0,
        &[&ports(PANIC_PORT, 1)],
        &[&name("_STA", &0x0F_u8)],
    )
}

/// The RTC.
fn clock() -> Raw {
    device(
        "RTC_",
        &EISAName::new("PNP0B00"),
        0,
        &[&ports(0x70, 2), &IsaIrq(8)],
        &[],
    )
}

/// The 8254.
fn timer() -> Raw {
    device(
        "TMR_",
        &EISAName::new("PNP0100"),
        0,
        &[&ports(0x40, 4), &IsaIrq(0)],
        &[],
    )
}

/// The two 8259s.
fn pic() -> Raw {
    device(
        "PIC_",
        &EISAName::new("PNP0000"),
        0,
        &[
            &ports(0x20, 2),
            &ports(0xA0, 2),
            &ports(0x4D0, 2),
            &IsaIrq(2),
        ],
        &[],
    )
}

/// The PM registers, so that nobody puts a PCI device there.
fn power_ports() -> Raw {
    device(
        "PMIO",
        &EISAName::new("PNP0C02"),
        0,
        &[&ports(PM1A_EVENT_PORT, 0x0C)],
        &[],
    )
}

/// A vCPU; its `_UID` is that of its local APIC in the MADT.
fn processor(index: u8) -> Raw {
    device(&format!("CP{index:02X}"), &"ACPI0007", index, &[], &[])
}

/// Nagaya's own: the vCPUs' info pages, the doorbells' interrupt and, in a group, its page. What they hold is in `guest_abi`.
fn nagaya(config: &AcpiConfig) -> Raw {
    const WRITABLE: bool = false;
    let vcpus = u64::from(config.vcpus.clamp(1, MAX_VCPUS));
    let info = Memory32Fixed::new(WRITABLE, low(INFO_PAGE_GPA), low(vcpus * PAGE_BYTES));
    let group = Memory32Fixed::new(WRITABLE, low(GROUP_PAGE_GPA), low(GROUP_PAGE_BYTES));
    let bell = IsaIrq(DOORBELL_IRQ);
    let mut resources: Vec<&dyn Aml> = Vec::from([&info as &dyn Aml, &bell]);
    if config.in_group {
        resources.push(&group);
    }
    device("NGYA", &"NGYA0001", 0, &resources, &[])
}
