//! Debug registers.
//!
//! Source: Intel SDM Vol. 3, "Debug Registers", "IA32_DEBUGCTL MSR".

/// DR6: B0 to B3.
const BREAKPOINTS: u64 = 0xF;
/// DR6: BD, BS and BT, which stay until software clears them.
const OTHERS: u64 = 0xE000;

/// IA32_DEBUGCTL.BTF: single steps end at branches only.
pub(crate) const BTF: u64 = 1 << 1;
/// IA32_DEBUGCTL.LBR.
pub(crate) const LBR: u64 = 1 << 0;
/// DR7.GD: accesses to debug registers raise #DB.
pub(crate) const GENERAL_DETECT: u64 = 1 << 13;
/// BS, in DR6 and in the pending debug exceptions: the trap behind an instruction that began with RFLAGS.TF set.
pub(crate) const SINGLE_STEP: u64 = 1 << 14;

/// What of IA32_DEBUGCTL a guest may set. Branch records and traces are not offered.
pub const DEBUGCTL_WRITABLE: u64 = BTF;

/// DR6 after a debug exception with these causes: B0 to B3 are those of this exception, the others are added.
#[must_use]
pub const fn dr6_with(dr6: u64, causes: u64) -> u64 {
    dr6 & !BREAKPOINTS | causes & (BREAKPOINTS | OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_are_those_of_the_last_exception_and_the_others_accumulate() {
        let stepped = dr6_with(0xFFFF_0FF0, SINGLE_STEP);
        assert_eq!(stepped, 0xFFFF_4FF0);
        let hit = dr6_with(stepped, 0b0101);
        assert_eq!(hit, 0xFFFF_4FF5);
        assert_eq!(dr6_with(hit, 0b0010), 0xFFFF_4FF2);
        // Nothing else of a qualification is of DR6.
        assert_eq!(dr6_with(0xFFFF_0FF0, 1 << 12 | 1 << 16), 0xFFFF_0FF0);
    }
}
