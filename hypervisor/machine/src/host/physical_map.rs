//! Where all physical memory is seen.

use nagaya_mem::Hpa;

/// Where the loader maps all physical memory.
pub const PHYSICAL_MAP: u64 = 0xFFFF_8000_0000_0000;

/// A pointer to what lies at a physical address. Making it is safe; its user answers for what it does with it.
#[must_use]
pub fn host_pointer<T>(address: Hpa) -> *mut T {
    core::ptr::with_exposed_provenance_mut((PHYSICAL_MAP + address.get()) as usize)
}

/// The virtual address at which a device's registers are seen.
#[must_use]
pub fn device_address(physical: u64) -> u64 {
    PHYSICAL_MAP + physical
}
