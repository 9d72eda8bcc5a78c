//! The frames by which a VM's ports and MSRs exit or do not.
//!
//! Source: Intel SDM Vol. 3, "I/O-Bitmap Addresses", "MSR-Bitmap Address".

use nagaya_mem::{HostMemory, Hpa};

use crate::host::memory::{self, Whose};

/// Frames that vCPUs of a VM share: the I/O and MSR bitmaps.
#[derive(Debug)]
pub struct Bitmaps {
    /// Two pages: one bit for each port, 1 = exit.
    pub io: [Hpa; 2],
    /// One page: reads and writes of low and high MSRs.
    pub msr: Hpa,
    /// The same while the CPU virtualises the guest's APIC ([`super::virtual_apic`]).
    pub msr_with_virtual_apic: Hpa,
}

impl Bitmaps {
    /// Makes bitmaps by which every port exits and only the MSRs that the policy passes through do not.
    #[must_use]
    pub fn new() -> Option<Bitmaps> {
        let bitmaps = Bitmaps {
            io: [
                memory::allocate_hypervisor_frame()?,
                memory::allocate_hypervisor_frame()?,
            ],
            msr: memory::allocate_hypervisor_frame()?,
            msr_with_virtual_apic: memory::allocate_hypervisor_frame()?,
        };
        for page in bitmaps.io {
            // SAFETY: the frame was just allocated here, as those below.
            unsafe { memory::writer(Whose::Hypervisor) }.write(page, &[0xFF; 4096]);
        }
        let policy = nagaya_vmm::msr::bitmap();
        // SAFETY: as above.
        unsafe { memory::writer(Whose::Hypervisor) }.write(bitmaps.msr, &policy);
        let policy = nagaya_vmm::msr::bitmap_with_virtual_apic();
        // SAFETY: as above.
        unsafe { memory::writer(Whose::Hypervisor) }.write(bitmaps.msr_with_virtual_apic, &policy);
        Some(bitmaps)
    }
}

impl Drop for Bitmaps {
    fn drop(&mut self) {
        let [low, high] = self.io;
        for page in [low, high, self.msr, self.msr_with_virtual_apic] {
            memory::free_hypervisor_frame(page);
        }
    }
}
