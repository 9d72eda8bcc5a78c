//! The CPUs that ACPI's MADT names. Source: ACPI specification, "Multiple APIC Description Table (MADT)".

use alloc::vec::Vec;
use core::ptr::NonNull;

use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use nagaya_mem::Hpa;

use crate::host::memory;

/// Local APIC flag "enabled" in a MADT entry.
const ENABLED: u32 = 1;

#[derive(Clone)]
struct Mapper;

impl AcpiHandler for Mapper {
    unsafe fn map_physical_region<T>(
        &self,
        physical_address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let pointer = memory::host_pointer::<T>(Hpa::new(physical_address as u64));
        // SAFETY: all physical memory of the machine's map, ACPI tables included, is mapped for good; the caller (the crate)
        // names an address that holds a `T`. Address 0 never holds a table, and the map's offset is not 0.
        unsafe {
            PhysicalMapping::new(
                physical_address,
                NonNull::new_unchecked(pointer),
                size,
                size,
                self.clone(),
            )
        }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// APIC IDs of all enabled CPUs, in the table's order.
///
/// # Errors
/// What is wrong with the tables, as text.
pub fn enabled_apic_ids(rsdp: Hpa) -> Result<Vec<u32>, alloc::string::String> {
    // SAFETY: the loader found the RSDP at this address.
    let tables = unsafe { AcpiTables::from_rsdp(Mapper, rsdp.get() as usize) }
        .map_err(|error| alloc::format!("ACPI tables at {rsdp}: {error:?}"))?;
    let madt = tables
        .find_table::<Madt>()
        .map_err(|error| alloc::format!("ACPI has no usable MADT: {error:?}"))?;
    let ids = madt
        .get()
        .entries()
        .filter_map(|entry| match entry {
            MadtEntry::LocalApic(cpu) if cpu.flags & ENABLED != 0 => Some(u32::from(cpu.apic_id)),
            MadtEntry::LocalX2Apic(cpu) if cpu.flags & ENABLED != 0 => Some(cpu.x2apic_id),
            _ => None,
        })
        .collect();
    Ok(ids)
}
