//! Numbers of model-specific registers, and decoders of the VMX capability MSRs.
//!
//! Source: SDM volume 4; volume 3, appendix A ("VMX Capability Reporting Facility").

mod vmx;

pub use vmx::{EptVpidCapabilities, VmxBasic, VmxMisc};

/// Defines MSR numbers.
macro_rules! msrs {
    ($( $name:ident = $number:literal, $doc:literal; )*) => {
        $( #[doc = $doc] pub const $name: u32 = $number; )*

        /// The name of an MSR, if it is in this list.
        #[must_use]
        pub const fn name(msr: u32) -> Option<&'static str> {
            Some(match msr {
                $( $number => stringify!($name), )*
                _ => return None,
            })
        }
    };
}

msrs! {
    IA32_P5_MC_ADDR = 0x0, "Machine-check address of the Pentium.";
    IA32_P5_MC_TYPE = 0x1, "Machine-check type of the Pentium.";
    IA32_TSC = 0x10, "Time-stamp counter.";
    IA32_PLATFORM_ID = 0x17, "Platform identification.";
    IA32_APIC_BASE = 0x1B, "Base and enable bits of the local APIC.";
    IA32_FEATURE_CONTROL = 0x3A, "Which features the firmware allows, locked by bit 0.";
    IA32_TSC_ADJUST = 0x3B, "What software added to the TSC.";
    IA32_SPEC_CTRL = 0x48, "Controls of speculation.";
    IA32_PRED_CMD = 0x49, "Commands to the predictors; write-only.";
    IA32_BIOS_UPDT_TRIG = 0x79, "Loads a microcode update; write-only.";
    IA32_BIOS_SIGN_ID = 0x8B, "Revision of the microcode in the upper half.";
    IA32_SMM_MONITOR_CTL = 0x9B, "SMM monitor.";
    IA32_SMBASE = 0x9E, "SMBASE.";
    IA32_PMC0 = 0xC1, "First performance counter.";
    MSR_PLATFORM_INFO = 0xCE, "Ratios of the platform.";
    IA32_MPERF = 0xE7, "Counts at the TSC's rate while not halted.";
    IA32_APERF = 0xE8, "Counts at the actual rate while not halted.";
    IA32_MTRRCAP = 0xFE, "What the MTRRs can do.";
    IA32_ARCH_CAPABILITIES = 0x10A, "Which side channels the CPU is free of.";
    IA32_FLUSH_CMD = 0x10B, "Flushes the L1 data cache; write-only.";
    IA32_TSX_CTRL = 0x122, "Controls of transactional memory.";
    IA32_MISC_FEATURES_ENABLES = 0x140, "CPUID faulting and ring-3 MWAIT.";
    IA32_SYSENTER_CS = 0x174, "Code segment of SYSENTER.";
    IA32_SYSENTER_ESP = 0x175, "Stack pointer of SYSENTER.";
    IA32_SYSENTER_EIP = 0x176, "Instruction pointer of SYSENTER.";
    IA32_MCG_CAP = 0x179, "Machine-check capabilities.";
    IA32_MCG_STATUS = 0x17A, "Machine-check status.";
    IA32_MCG_CTL = 0x17B, "Machine-check control.";
    IA32_PERFEVTSEL0 = 0x186, "Event of the first performance counter.";
    IA32_PERF_STATUS = 0x198, "Current performance state.";
    IA32_PERF_CTL = 0x199, "Wanted performance state.";
    IA32_CLOCK_MODULATION = 0x19A, "Clock modulation.";
    IA32_THERM_INTERRUPT = 0x19B, "Thermal interrupts.";
    IA32_THERM_STATUS = 0x19C, "Thermal status.";
    IA32_MISC_ENABLE = 0x1A0, "Enables of many features.";
    IA32_ENERGY_PERF_BIAS = 0x1B0, "Preference between energy and performance.";
    IA32_DEBUGCTL = 0x1D9, "Trace, branch and debug controls.";
    IA32_SMRR_PHYSBASE = 0x1F2, "Base of the SMM range.";
    IA32_SMRR_PHYSMASK = 0x1F3, "Mask of the SMM range.";
    IA32_MTRR_PHYSBASE0 = 0x200, "Base and type of the first variable MTRR; mask and further pairs follow up to 0x213.";
    IA32_MTRR_PHYSMASK0 = 0x201, "Mask of the first variable MTRR.";
    IA32_MTRR_PHYSMASK9 = 0x213, "Mask of the last variable MTRR there can be.";
    IA32_MTRR_FIX64K_00000 = 0x250, "Types of the first 512 KiB.";
    IA32_MTRR_FIX16K_80000 = 0x258, "Types from 0x80000.";
    IA32_MTRR_FIX16K_A0000 = 0x259, "Types from 0xA0000.";
    IA32_MTRR_FIX4K_C0000 = 0x268, "Types from 0xC0000; the others follow up to 0x26F.";
    IA32_MTRR_FIX4K_F8000 = 0x26F, "Types from 0xF8000.";
    IA32_PAT = 0x277, "Page-attribute table.";
    IA32_MTRR_DEF_TYPE = 0x2FF, "Default memory type and enable bits.";
    IA32_FIXED_CTR0 = 0x309, "First fixed performance counter.";
    IA32_PERF_CAPABILITIES = 0x345, "What performance monitoring can do.";
    IA32_FIXED_CTR_CTRL = 0x38D, "Controls of the fixed counters.";
    IA32_PERF_GLOBAL_STATUS = 0x38E, "Overflow of counters.";
    IA32_PERF_GLOBAL_CTRL = 0x38F, "Enables of counters.";
    IA32_MC0_CTL = 0x400, "Control of the first machine-check bank.";
    IA32_VMX_BASIC = 0x480, "Basic VMX capabilities (`VmxBasic`).";
    IA32_VMX_PINBASED_CTLS = 0x481, "Allowed pin-based controls.";
    IA32_VMX_PROCBASED_CTLS = 0x482, "Allowed primary controls.";
    IA32_VMX_EXIT_CTLS = 0x483, "Allowed exit controls.";
    IA32_VMX_ENTRY_CTLS = 0x484, "Allowed entry controls.";
    IA32_VMX_MISC = 0x485, "Miscellaneous VMX capabilities (`VmxMisc`).";
    IA32_VMX_CR0_FIXED0 = 0x486, "Bits of CR0 that must be 1 in VMX operation.";
    IA32_VMX_CR0_FIXED1 = 0x487, "Bits of CR0 that may be 1 in VMX operation.";
    IA32_VMX_CR4_FIXED0 = 0x488, "Bits of CR4 that must be 1 in VMX operation.";
    IA32_VMX_CR4_FIXED1 = 0x489, "Bits of CR4 that may be 1 in VMX operation.";
    IA32_VMX_VMCS_ENUM = 0x48A, "Highest index of VMCS encodings.";
    IA32_VMX_PROCBASED_CTLS2 = 0x48B, "Allowed secondary controls.";
    IA32_VMX_EPT_VPID_CAP = 0x48C, "Capabilities of EPT and VPID (`EptVpidCapabilities`).";
    IA32_VMX_TRUE_PINBASED_CTLS = 0x48D, "Allowed pin-based controls, default-1 bits told truly.";
    IA32_VMX_TRUE_PROCBASED_CTLS = 0x48E, "Allowed primary controls, default-1 bits told truly.";
    IA32_VMX_TRUE_EXIT_CTLS = 0x48F, "Allowed exit controls, default-1 bits told truly.";
    IA32_VMX_TRUE_ENTRY_CTLS = 0x490, "Allowed entry controls, default-1 bits told truly.";
    IA32_VMX_VMFUNC = 0x491, "Allowed VM functions.";
    IA32_VMX_PROCBASED_CTLS3 = 0x492, "Allowed tertiary controls.";
    IA32_VMX_EXIT_CTLS2 = 0x493, "Allowed secondary exit controls.";
    IA32_DS_AREA = 0x600, "Debug-store area.";
    MSR_RAPL_POWER_UNIT = 0x606, "Units of energy counters.";
    IA32_TSC_DEADLINE = 0x6E0, "Deadline of the local APIC's timer.";
    IA32_PM_ENABLE = 0x770, "Enables hardware-controlled performance states.";
    IA32_X2APIC_APICID = 0x802, "x2APIC: identifier.";
    IA32_X2APIC_VERSION = 0x803, "x2APIC: version.";
    IA32_X2APIC_TPR = 0x808, "x2APIC: task priority.";
    IA32_X2APIC_EOI = 0x80B, "x2APIC: end of interrupt.";
    IA32_X2APIC_SIVR = 0x80F, "x2APIC: spurious-interrupt vector.";
    IA32_X2APIC_ICR = 0x830, "x2APIC: interrupt command.";
    IA32_XSS = 0xDA0, "State components that only XSAVES manages.";
    IA32_EFER = 0xC000_0080, "Extended features: SCE, LME, LMA, NXE.";
    IA32_STAR = 0xC000_0081, "Segments of SYSCALL and SYSRET.";
    IA32_LSTAR = 0xC000_0082, "Target of SYSCALL in 64-bit mode.";
    IA32_CSTAR = 0xC000_0083, "Target of SYSCALL in compatibility mode; unused on Intel.";
    IA32_FMASK = 0xC000_0084, "Bits of RFLAGS that SYSCALL clears.";
    IA32_FS_BASE = 0xC000_0100, "Base of FS.";
    IA32_GS_BASE = 0xC000_0101, "Base of GS.";
    IA32_KERNEL_GS_BASE = 0xC000_0102, "What SWAPGS swaps with the base of GS.";
    IA32_TSC_AUX = 0xC000_0103, "What RDTSCP and RDPID return beside the TSC.";
}

/// First MSR of the local APIC in x2APIC mode.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last MSR of the local APIC in x2APIC mode.
pub const X2APIC_LAST: u32 = 0x8FF;

/// IA32_FEATURE_CONTROL: nothing can be changed until reset.
pub const FEATURE_CONTROL_LOCKED: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL: VMXON works inside SMX operation.
pub const FEATURE_CONTROL_VMX_IN_SMX: u64 = 1 << 1;
/// IA32_FEATURE_CONTROL: VMXON works outside SMX operation.
pub const FEATURE_CONTROL_VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// IA32_EFER: SYSCALL works.
pub const EFER_SCE: u64 = 1 << 0;
/// IA32_EFER: long mode comes with paging.
pub const EFER_LME: u64 = 1 << 8;
/// IA32_EFER: long mode is active.
pub const EFER_LMA: u64 = 1 << 10;
/// IA32_EFER: execute-disable works.
pub const EFER_NXE: u64 = 1 << 11;

/// IA32_APIC_BASE: this is the bootstrap processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const APIC_BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: the local APIC is on.
pub const APIC_BASE_ENABLE: u64 = 1 << 11;
/// IA32_PAT after reset: WB, WT, UC-, UC, twice.
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_PRED_CMD: indirect-branch prediction barrier.
pub const PRED_CMD_IBPB: u64 = 1 << 0;
/// IA32_FLUSH_CMD: write back and invalidate the L1 data cache.
pub const FLUSH_CMD_L1D: u64 = 1 << 0;

/// IA32_ARCH_CAPABILITIES: not affected by Meltdown.
pub const ARCH_CAP_RDCL_NO: u64 = 1 << 0;
/// IA32_ARCH_CAPABILITIES: IBRS may stay on.
pub const ARCH_CAP_IBRS_ALL: u64 = 1 << 1;
/// IA32_ARCH_CAPABILITIES: no need to flush the L1 data cache on entry.
pub const ARCH_CAP_SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
/// IA32_ARCH_CAPABILITIES: not affected by microarchitectural data sampling.
pub const ARCH_CAP_MDS_NO: u64 = 1 << 5;
/// IA32_ARCH_CAPABILITIES: no machine check by a change of page size while code is fetched.
pub const ARCH_CAP_PSCHANGE_MC_NO: u64 = 1 << 6;

/// IA32_MTRRCAP: fixed-range MTRRs are there.
pub const MTRRCAP_FIXED: u64 = 1 << 8;
/// IA32_MTRRCAP: write-combining is there.
pub const MTRRCAP_WRITE_COMBINING: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE: fixed-range MTRRs count.
pub const MTRR_DEF_TYPE_FIXED_ENABLE: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE: MTRRs count.
pub const MTRR_DEF_TYPE_ENABLE: u64 = 1 << 11;
