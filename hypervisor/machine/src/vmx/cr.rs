//! CR0 and CR4 of guests: which bits are theirs, and what the CPU has while they see a value.
//!
//! Source: Intel SDM Vol. 3, "Guest/Host Masks and Read Shadows for CR0 and CR4", "Restrictions on VMX Operation".

use nagaya_vmm::control_registers::CR4_SHADOWED;
use x86_defs::controls::Secondary;
use x86_defs::cr::Cr0;

use crate::vmx::capabilities;

/// Bits of CR0 that the hypervisor owns: a guest that changes one exits.
pub const CR0_OWNED: u64 = Cr0::NE.bits() | Cr0::NW.bits() | Cr0::CD.bits();
/// CR0 as the CPU has it while the guest sees `value`: with what VMX operation demands (an unrestricted guest may be without
/// protection and paging), and with caches on.
#[must_use]
pub fn real_cr0(value: u64) -> u64 {
    let capabilities = capabilities::get();
    let mut demanded = capabilities.cr0_fixed0;
    if capabilities.has(Secondary::UNRESTRICTED_GUEST) {
        demanded &= !(Cr0::PE | Cr0::PG).bits();
    }
    let real = value & !(Cr0::CD | Cr0::NW).bits() | Cr0::NE.bits();
    (real | demanded) & capabilities.cr0_fixed1
}

/// CR4 as the CPU has it while the guest sees `value`.
#[must_use]
pub fn real_cr4(value: u64) -> u64 {
    let capabilities = capabilities::get();
    (value | CR4_SHADOWED | capabilities.cr4_fixed0) & capabilities.cr4_fixed1
}
