//! CR0 and CR4 of guests: which bits are theirs, and what the CPU has while they see a value.
//!
//! Source: Intel SDM Vol. 3, "Guest/Host Masks and Read Shadows for CR0 and CR4", "Restrictions on VMX Operation".

use x86_defs::controls::Secondary;
use x86_defs::cr::{Cr0, Cr4};

use crate::vmx::capabilities;

/// Bits of CR0 that the hypervisor owns: a guest that changes one exits.
pub const CR0_OWNED: u64 = Cr0::NE.bits() | Cr0::NW.bits() | Cr0::CD.bits();
/// Bits of CR4 that guests may set; all others are the hypervisor's.
pub const CR4_ALLOWED: u64 = Cr4::VME.bits()
    | Cr4::PVI.bits()
    | Cr4::TSD.bits()
    | Cr4::DE.bits()
    | Cr4::PSE.bits()
    | Cr4::PAE.bits()
    | Cr4::PGE.bits()
    | Cr4::PCE.bits()
    | Cr4::OSFXSR.bits()
    | Cr4::OSXMMEXCPT.bits()
    | Cr4::UMIP.bits()
    | Cr4::FSGSBASE.bits()
    | Cr4::OSXSAVE.bits()
    | Cr4::SMEP.bits()
    | Cr4::SMAP.bits();

/// Bits of CR4 that a guest may set but the hypervisor owns: MCE stays on for real, since a machine check while it is off shuts
/// the CPU down, whoever runs on it.
pub const CR4_SHADOWED: u64 = Cr4::MCE.bits();

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
