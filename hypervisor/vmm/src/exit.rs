//! What an exit means, without regard to the vendor of the CPU.
//!
//! `machine` reads a fixed set of values into [`ExitSnapshot`]; [`vmx::decode`] alone knows how VMX encodes them.

pub mod vmx;

use guest_abi::ExitKind;
use x86_defs::exit::{CrAccess, ExitReason, IoAccess};

/// The values that describe one exit, as the VMCS gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitSnapshot {
    /// EXIT_REASON.
    pub reason: u32,
    /// EXIT_QUALIFICATION.
    pub qualification: u64,
    /// EXIT_INTERRUPTION_INFO.
    pub interruption_info: u32,
    /// EXIT_INTERRUPTION_ERROR_CODE.
    pub interruption_error: u32,
    /// GUEST_PHYSICAL_ADDRESS.
    pub guest_physical: u64,
}

/// An instruction that the hypervisor intercepts and has no other variant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// INVD.
    Invd,
    /// WBINVD or WBNOINVD.
    Wbinvd,
    /// XSETBV.
    Xsetbv,
    /// MONITOR, MWAIT, RDRAND, RDSEED, RDPMC, GETSEC and the VMX instructions: a guest has none of them.
    Absent,
    /// PAUSE (pause-loop exiting).
    Pause,
}

/// What ended a guest's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// A hypercall instruction.
    Hypercall,
    /// CPUID.
    Cpuid,
    /// RDMSR; the number is in ECX.
    MsrRead,
    /// WRMSR.
    MsrWrite,
    /// A port access.
    Port(IoAccess),
    /// HLT.
    Halt,
    /// A physical interrupt is pending.
    ExternalInterrupt,
    /// A physical NMI came.
    Nmi,
    /// The time slice's bound.
    PreemptionTimer,
    /// Nested paging does not allow an access.
    MemoryViolation {
        /// Guest-physical address.
        gpa: u64,
        /// Read 1, write 2, execute 4.
        access: u8,
    },
    /// Nested paging holds an entry that the CPU rejects.
    Misconfiguration {
        /// Guest-physical address.
        gpa: u64,
    },
    /// The guest can take an interrupt now, or an NMI.
    InterruptWindow,
    /// The guest has served an interrupt whose end somebody waits for; the CPU's APIC virtualisation has noted it already.
    EndOfInterrupt {
        /// Vector.
        vector: u8,
    },
    /// An access to CR0 or CR4 that touches bits of the hypervisor's.
    ControlRegister(CrAccess),
    /// An exception that is intercepted.
    Exception {
        /// Vector.
        vector: u8,
        /// Error code, if there is one.
        error_code: Option<u32>,
    },
    /// A triple fault.
    TripleFault,
    /// Another intercepted instruction.
    Instruction(Instruction),
    /// The CPU refused the guest's state.
    EntryFailure(ExitReason),
    /// Something the hypervisor does not know.
    Unknown(ExitReason),
}

impl VmExit {
    /// Under which heading it is counted.
    #[inline]
    #[must_use]
    pub const fn kind(&self) -> ExitKind {
        match self {
            VmExit::Hypercall => ExitKind::Hypercall,
            VmExit::Cpuid => ExitKind::Cpuid,
            VmExit::MsrRead => ExitKind::MsrRead,
            VmExit::MsrWrite => ExitKind::MsrWrite,
            VmExit::Port(_) => ExitKind::Port,
            VmExit::Halt => ExitKind::Halt,
            VmExit::ExternalInterrupt => ExitKind::ExternalInterrupt,
            VmExit::Nmi => ExitKind::Nmi,
            VmExit::PreemptionTimer => ExitKind::PreemptionTimer,
            VmExit::MemoryViolation { .. } | VmExit::Misconfiguration { .. } => {
                ExitKind::MemoryViolation
            }
            VmExit::InterruptWindow => ExitKind::InterruptWindow,
            VmExit::ControlRegister(_) => ExitKind::ControlRegister,
            VmExit::Exception { .. } => ExitKind::Exception,
            VmExit::Instruction(_) => ExitKind::Instruction,
            VmExit::EndOfInterrupt { .. }
            | VmExit::TripleFault
            | VmExit::EntryFailure(_)
            | VmExit::Unknown(_) => ExitKind::Other,
        }
    }
}
