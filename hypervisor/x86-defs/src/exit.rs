//! Exit reasons, exit qualifications, and the errors of VMX instructions.
//!
//! Source: SDM volume 3, appendix C ("VMX Basic Exit Reasons"), "Basic VM-Exit Information" (tables of exit qualifications)
//! and "VM Instruction Error Numbers".

mod qualification;

pub use qualification::{CrAccess, CrAccessKind, EptViolation, IoAccess};

/// A basic exit reason: bits 15:0 of EXIT_REASON. Open: a reason that this list lacks is kept as it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitReason(pub u16);

impl ExitReason {
    /// The basic reason in what EXIT_REASON holds.
    #[inline]
    #[must_use]
    pub const fn from_raw(raw: u32) -> ExitReason {
        ExitReason(raw as u16)
    }

    /// Whether this was no exit but an entry that failed (bit 31 of EXIT_REASON).
    #[inline]
    #[must_use]
    pub const fn is_entry_failure(raw: u32) -> bool {
        raw & 1 << 31 != 0
    }
}

/// Defines the reasons and their names.
macro_rules! reasons {
    ($( $name:ident = $number:literal, $text:literal; )*) => {
        impl ExitReason {
            $(
                #[doc = concat!("Reason ", stringify!($number), ": ", $text, ".")]
                pub const $name: ExitReason = ExitReason($number);
            )*

            /// All that the manual defines, in ascending order.
            pub const ALL: &'static [ExitReason] = &[$( ExitReason::$name ),*];

            /// The reason in words; `"unknown"` for one that this list lacks.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $( $number => $text, )*
                    _ => "unknown",
                }
            }
        }
    };
}

reasons! {
    EXCEPTION_OR_NMI = 0, "exception or NMI";
    EXTERNAL_INTERRUPT = 1, "external interrupt";
    TRIPLE_FAULT = 2, "triple fault";
    INIT_SIGNAL = 3, "INIT signal";
    STARTUP_IPI = 4, "start-up IPI";
    IO_SMI = 5, "SMI after an I/O instruction";
    OTHER_SMI = 6, "other SMI";
    INTERRUPT_WINDOW = 7, "interrupt window";
    NMI_WINDOW = 8, "NMI window";
    TASK_SWITCH = 9, "task switch";
    CPUID = 10, "CPUID";
    GETSEC = 11, "GETSEC";
    HLT = 12, "HLT";
    INVD = 13, "INVD";
    INVLPG = 14, "INVLPG";
    RDPMC = 15, "RDPMC";
    RDTSC = 16, "RDTSC";
    RSM = 17, "RSM";
    VMCALL = 18, "VMCALL";
    VMCLEAR = 19, "VMCLEAR";
    VMLAUNCH = 20, "VMLAUNCH";
    VMPTRLD = 21, "VMPTRLD";
    VMPTRST = 22, "VMPTRST";
    VMREAD = 23, "VMREAD";
    VMRESUME = 24, "VMRESUME";
    VMWRITE = 25, "VMWRITE";
    VMXOFF = 26, "VMXOFF";
    VMXON = 27, "VMXON";
    CONTROL_REGISTER = 28, "control-register access";
    MOV_DR = 29, "MOV DR";
    IO_INSTRUCTION = 30, "I/O instruction";
    RDMSR = 31, "RDMSR";
    WRMSR = 32, "WRMSR";
    ENTRY_INVALID_GUEST_STATE = 33, "VM-entry failure: invalid guest state";
    ENTRY_MSR_LOADING = 34, "VM-entry failure: MSR loading";
    MWAIT = 36, "MWAIT";
    MONITOR_TRAP_FLAG = 37, "monitor trap flag";
    MONITOR = 39, "MONITOR";
    PAUSE = 40, "PAUSE";
    ENTRY_MACHINE_CHECK = 41, "VM-entry failure: machine check";
    TPR_BELOW_THRESHOLD = 43, "TPR below threshold";
    APIC_ACCESS = 44, "APIC access";
    VIRTUALIZED_EOI = 45, "virtualized EOI";
    GDTR_IDTR_ACCESS = 46, "access to GDTR or IDTR";
    LDTR_TR_ACCESS = 47, "access to LDTR or TR";
    EPT_VIOLATION = 48, "EPT violation";
    EPT_MISCONFIGURATION = 49, "EPT misconfiguration";
    INVEPT = 50, "INVEPT";
    RDTSCP = 51, "RDTSCP";
    PREEMPTION_TIMER = 52, "preemption timer expired";
    INVVPID = 53, "INVVPID";
    WBINVD = 54, "WBINVD or WBNOINVD";
    XSETBV = 55, "XSETBV";
    APIC_WRITE = 56, "APIC write";
    RDRAND = 57, "RDRAND";
    INVPCID = 58, "INVPCID";
    VMFUNC = 59, "VMFUNC";
    ENCLS = 60, "ENCLS";
    RDSEED = 61, "RDSEED";
    PML_FULL = 62, "page-modification log full";
    XSAVES = 63, "XSAVES";
    XRSTORS = 64, "XRSTORS";
    PCONFIG = 65, "PCONFIG";
    SUB_PAGE = 66, "sub-page-permission event";
    UMWAIT = 67, "UMWAIT";
    TPAUSE = 68, "TPAUSE";
    LOADIWKEY = 69, "LOADIWKEY";
    ENCLV = 70, "ENCLV";
    ENQCMD_PASID = 72, "ENQCMD PASID translation failure";
    ENQCMDS_PASID = 73, "ENQCMDS PASID translation failure";
    BUS_LOCK = 74, "bus lock";
    INSTRUCTION_TIMEOUT = 75, "instruction timeout";
    SEAMCALL = 76, "SEAMCALL";
    TDCALL = 77, "TDCALL";
    RDMSRLIST = 78, "RDMSRLIST";
    WRMSRLIST = 79, "WRMSRLIST";
    URDMSR = 80, "URDMSR";
    UWRMSR = 81, "UWRMSR";
    RDMSR_IMMEDIATE = 84, "RDMSR with an immediate";
    WRMSR_IMMEDIATE = 85, "WRMSRNS with an immediate";
}

impl core::fmt::Debug for ExitReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({})", self.0, self.name())
    }
}

impl core::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}

/// Why a VMX instruction failed: VM_INSTRUCTION_ERROR. Open: unknown numbers are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InstructionError(pub u32);

impl InstructionError {
    /// The error in words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            1 => "VMCALL executed in VMX root operation",
            2 => "VMCLEAR with invalid physical address",
            3 => "VMCLEAR with VMXON pointer",
            4 => "VMLAUNCH with non-clear VMCS",
            5 => "VMRESUME with non-launched VMCS",
            6 => "VMRESUME after VMXOFF",
            7 => "VM entry with invalid control fields",
            8 => "VM entry with invalid host-state fields",
            9 => "VMPTRLD with invalid physical address",
            10 => "VMPTRLD with VMXON pointer",
            11 => "VMPTRLD with incorrect VMCS revision identifier",
            12 => "VMREAD or VMWRITE of an unsupported VMCS component",
            13 => "VMWRITE to a read-only VMCS component",
            15 => "VMXON executed in VMX root operation",
            16 => "VM entry with invalid executive-VMCS pointer",
            17 => "VM entry with non-launched executive VMCS",
            18 => "VM entry with executive-VMCS pointer that is not the VMXON pointer",
            19 => "VMCALL with non-clear VMCS",
            20 => "VMCALL with invalid VM-exit control fields",
            22 => "VMCALL with incorrect MSEG revision identifier",
            23 => "VMXOFF under dual-monitor treatment",
            24 => "VMCALL with invalid SMM-monitor features",
            25 => "VM entry with invalid VM-execution control fields in the executive VMCS",
            26 => "VM entry with events blocked by MOV SS",
            28 => "invalid operand to INVEPT or INVVPID",
            _ => "unknown",
        }
    }
}

impl core::fmt::Debug for InstructionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({})", self.0, self.name())
    }
}

impl core::fmt::Display for InstructionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn the_reason_is_read_without_its_flags() {
        let raw = 1 << 31 | 1 << 27 | 33;
        assert_eq!(
            ExitReason::from_raw(raw),
            ExitReason::ENTRY_INVALID_GUEST_STATE
        );
        assert!(ExitReason::is_entry_failure(raw));
        assert!(!ExitReason::is_entry_failure(1 << 27 | 10));
    }

    #[test]
    fn an_unknown_reason_keeps_its_number_in_the_report() {
        assert_eq!(ExitReason(999).to_string(), "999 (unknown)");
        assert_eq!(InstructionError(14).to_string(), "14 (unknown)");
    }
}
