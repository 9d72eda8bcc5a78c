//! The frames by which a VM's ports and MSRs exit or do not.
//!
//! Source: Intel SDM Vol. 3, "I/O-Bitmap Addresses", "MSR-Bitmap Address".

use guest_abi::PAGE_BYTES;
use nagaya_mem::{HostMemory, Hpa, Owner};

use crate::host::memory::{self, OwnedFrames, Whose};

/// Frames that vCPUs of a VM share: the I/O and MSR bitmaps.
#[derive(Debug)]
pub struct Bitmaps {
    /// Two pages: one bit for each port, 1 = exit.
    pub io: [Hpa; 2],
    /// One page: reads and writes of low and high MSRs.
    pub msr: Hpa,
    /// The same while the CPU virtualises the guest's APIC ([`super::virtual_apic`]).
    pub msr_with_virtual_apic: Hpa,
    /// All of them.
    _frames: OwnedFrames,
}

impl Bitmaps {
    /// Makes bitmaps by which every port exits and only the MSRs that the policy passes through do not.
    #[must_use]
    pub fn new() -> Option<Bitmaps> {
        // What was taken comes back if a further one is not to be had.
        let mut frames = OwnedFrames::new(Owner::Hypervisor);
        let mut page = || frames.take(1, PAGE_BYTES);
        let (io, msr, msr_with_virtual_apic) = ([page()?, page()?], page()?, page()?);
        let bitmaps = Bitmaps {
            io,
            msr,
            msr_with_virtual_apic,
            _frames: frames,
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
