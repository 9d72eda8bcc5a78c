//! Decoders of VMX capability MSRs.
//!
//! Source: SDM volume 3, "Basic VMX Information" (A.1), "Miscellaneous Data" (A.6), "VPID and EPT Capabilities" (A.10).

use bitflags::bitflags;

/// IA32_VMX_BASIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmxBasic(pub u64);

impl VmxBasic {
    /// What the first four bytes of a VMXON region and of a VMCS must hold.
    #[must_use]
    pub const fn revision(self) -> u32 {
        self.0 as u32 & 0x7FFF_FFFF
    }

    /// Bytes of a VMXON region or VMCS: at most 4096.
    #[must_use]
    pub const fn region_bytes(self) -> u32 {
        (self.0 >> 32) as u32 & 0x1FFF
    }

    /// Whether VMX structures must lie below 4 GiB.
    #[must_use]
    pub const fn is_limited_to_32_bit_addresses(self) -> bool {
        self.0 & 1 << 48 != 0
    }

    /// The memory type by which the CPU accesses VMX structures: 0 uncacheable, 6 write-back.
    #[must_use]
    pub const fn memory_type(self) -> u8 {
        (self.0 >> 50) as u8 & 0xF
    }

    /// Whether exits of INS and OUTS report operands in EXIT_INSTRUCTION_INFO.
    #[must_use]
    pub const fn reports_string_io(self) -> bool {
        self.0 & 1 << 54 != 0
    }

    /// Whether the IA32_VMX_TRUE_* MSRs are there.
    #[must_use]
    pub const fn has_true_controls(self) -> bool {
        self.0 & 1 << 55 != 0
    }
}

/// IA32_VMX_MISC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmxMisc(pub u64);

impl VmxMisc {
    /// The preemption timer counts down by one each time this bit of the TSC changes: one unit is `1 << shift` ticks.
    #[must_use]
    pub const fn preemption_timer_shift(self) -> u32 {
        self.0 as u32 & 0x1F
    }

    /// Whether exits store EFER.LMA into the IA-32e-mode entry control.
    #[must_use]
    pub const fn saves_lma(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    /// Whether activity state HLT is supported.
    #[must_use]
    pub const fn has_activity_hlt(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// Whether activity state wait-for-SIPI is supported.
    #[must_use]
    pub const fn has_activity_wait_for_sipi(self) -> bool {
        self.0 & 1 << 8 != 0
    }

    /// How many CR3-target values there are.
    #[must_use]
    pub const fn cr3_targets(self) -> u32 {
        (self.0 >> 16) as u32 & 0x1FF
    }

    /// Most entries that a list of MSRs should have.
    #[must_use]
    pub const fn msr_list_entries(self) -> u32 {
        512 * (((self.0 >> 25) as u32 & 7) + 1)
    }

    /// Whether VMWRITE may write fields of exit information.
    #[must_use]
    pub const fn can_write_exit_information(self) -> bool {
        self.0 & 1 << 29 != 0
    }
}

bitflags! {
    /// IA32_VMX_EPT_VPID_CAP.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptVpidCapabilities: u64 {
        /// Pages may be execute-only.
        const EXECUTE_ONLY = 1 << 0;
        /// 4-level tables.
        const WALK_4 = 1 << 6;
        /// 5-level tables.
        const WALK_5 = 1 << 7;
        /// Tables may be uncacheable.
        const UNCACHEABLE = 1 << 8;
        /// Tables may be write-back.
        const WRITE_BACK = 1 << 14;
        /// 2 MiB pages.
        const PAGES_2M = 1 << 16;
        /// 1 GiB pages.
        const PAGES_1G = 1 << 17;
        /// INVEPT is there.
        const INVEPT = 1 << 20;
        /// Accessed and dirty flags.
        const ACCESSED_DIRTY = 1 << 21;
        /// Violations report the guest's page permissions, too.
        const ADVANCED_VIOLATION_INFORMATION = 1 << 22;
        /// Supervisor shadow-stack control.
        const SUPERVISOR_SHADOW_STACK = 1 << 23;
        /// INVEPT of one context.
        const INVEPT_SINGLE_CONTEXT = 1 << 25;
        /// INVEPT of all contexts.
        const INVEPT_ALL_CONTEXTS = 1 << 26;
        /// INVVPID is there.
        const INVVPID = 1 << 32;
        /// INVVPID of one address.
        const INVVPID_INDIVIDUAL_ADDRESS = 1 << 40;
        /// INVVPID of one context.
        const INVVPID_SINGLE_CONTEXT = 1 << 41;
        /// INVVPID of all contexts.
        const INVVPID_ALL_CONTEXTS = 1 << 42;
        /// INVVPID of one context but its global pages.
        const INVVPID_SINGLE_CONTEXT_RETAINING_GLOBALS = 1 << 43;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bochs_reports_is_read_as_the_manual_lays_it_out() {
        // IA32_VMX_BASIC = 0x00DA_0400_0000_002B is what several Intel CPUs and Bochs report, save the revision.
        let basic = VmxBasic(0x00DA_0400_0000_002B);
        assert_eq!(basic.revision(), 0x2B);
        assert_eq!(basic.region_bytes(), 1024);
        assert_eq!(basic.memory_type(), 6);
        assert!(basic.has_true_controls());
        assert!(basic.reports_string_io());
        assert!(!basic.is_limited_to_32_bit_addresses());

        let misc = VmxMisc(0x0000_0000_7004_C1E7);
        assert_eq!(misc.preemption_timer_shift(), 7);
        assert!(misc.has_activity_hlt());
        assert_eq!(misc.cr3_targets(), 4);
        assert_eq!(misc.msr_list_entries(), 512);
    }
}
