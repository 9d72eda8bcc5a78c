//! INVEPT and INVVPID. Source: Intel SDM Vol. 3, "Caching Translation Information", "VMX Instruction Reference".

use core::arch::asm;

use x86_defs::ept::{INVEPT_SINGLE_CONTEXT, INVVPID_SINGLE_CONTEXT};
use x86_defs::msr::EptVpidCapabilities;

use crate::vmx::capabilities;

#[repr(C, align(16))]
struct Descriptor([u64; 2]);

/// Translations that were to be forgotten are not: no guest may go on with them.
#[cold]
fn failed(instruction: &str, operand: u64) -> ! {
    panic!("{instruction} of {operand:#x} failed");
}

/// Forgets on the executing CPU what was cached under that EPT pointer.
pub fn ept(eptp: u64) {
    let descriptor = Descriptor([eptp, 0]);
    // SAFETY: called in VMX operation on CPUs that have single-context INVEPT (a requirement); the descriptor is valid. The
    // instruction only removes cached translations.
    unsafe {
        asm!("invept {kind}, [{descriptor}]", "jbe {failed}", kind = in(reg) INVEPT_SINGLE_CONTEXT,
            descriptor = in(reg) &raw const descriptor, failed = label { failed("INVEPT", eptp) }, options(nostack));
    }
}

/// Forgets on the executing CPU what was cached under that VPID.
pub fn vpid(vpid: u16) {
    if capabilities::get()
        .ept_vpid
        .contains(EptVpidCapabilities::INVVPID_SINGLE_CONTEXT)
    {
        let descriptor = Descriptor([u64::from(vpid), 0]);
        // SAFETY: as above; the type was found in IA32_VMX_EPT_VPID_CAP.
        unsafe {
            asm!("invvpid {kind}, [{descriptor}]", "jbe {failed}", kind = in(reg) INVVPID_SINGLE_CONTEXT,
                descriptor = in(reg) &raw const descriptor, failed = label { failed("INVVPID", vpid.into()) },
                options(nostack));
        }
    }
}
