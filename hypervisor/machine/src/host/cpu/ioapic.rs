//! The I/O APIC, as far as one interrupt line needs it. Source: Intel 82093AA data sheet, "IOAPIC Registers".

use crate::host::physical_map;

/// Where PCs have the first one.
const BASE: u64 = 0xFEC0_0000;
/// First register of the redirection table.
const REDIRECTION: u32 = 0x10;

fn write(register: u32, value: u32) {
    let select =
        core::ptr::with_exposed_provenance_mut::<u32>(physical_map::device_address(BASE) as usize);
    let window = core::ptr::with_exposed_provenance_mut::<u32>(physical_map::device_address(
        BASE + 0x10,
    ) as usize);
    // SAFETY: the physical map covers the device; nobody else in the hypervisor touches it, and this is called on the boot CPU
    // only.
    unsafe {
        select.write_volatile(register);
        window.write_volatile(value);
    }
}

/// Delivery mode NMI.
const NMI: u32 = 0b100 << 8;

/// Sends an ISA interrupt line (edge-triggered, active high, line number = input number, as PCs wire all but the timer) to one
/// CPU as an NMI: that calls every guest out, also one that in Bochs was entered with interrupts off.
pub fn route_isa_as_nmi(line: u8, apic_id: u8) {
    let entry = REDIRECTION + 2 * u32::from(line);
    write(entry + 1, u32::from(apic_id) << 24);
    write(entry, NMI);
}
