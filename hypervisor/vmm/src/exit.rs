//! What an exit means, without regard to the vendor of the CPU.
//!
//! `machine` reads a fixed set of values into [`ExitSnapshot`]; [`vmx::decode`] alone knows how VMX encodes them.

pub mod table;
pub mod vmx;

use core::fmt;

use guest_abi::ExitKind;

use crate::cpu::task::Initiator;

/// The values that describe one exit, as the vendor gives them: kept for dumps, and decoded into a [`VmExit`].
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

/// What the vendor calls a reason: of an exit, or of a failure to enter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// In words.
    pub name: &'static str,
    /// Its number.
    pub number: u16,
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An access by a port instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// Bytes moved at once: 1, 2 or 4.
    pub size: u8,
    /// IN or INS, as opposed to OUT and OUTS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
}

/// An access to guest-physical memory that nested paging does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// It reads.
    pub read: bool,
    /// It writes.
    pub write: bool,
    /// It fetches an instruction.
    pub execute: bool,
    /// It is to what a linear address is translated to, as opposed to the guest's page tables on the way there and to what the CPU
    /// accesses by itself.
    pub is_final: bool,
}

impl MemoryAccess {
    /// Read 1, write 2, execute 4.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.read as u8 | (self.write as u8) << 1 | (self.execute as u8) << 2
    }
}

/// What an instruction does to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRegisterAccess {
    /// MOV to it from a general register.
    Write {
        /// Number of the control register.
        register: u8,
        /// Number of the general register, in the order RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
        from: u8,
    },
    /// MOV from it to a general register.
    Read {
        /// Number of the control register.
        register: u8,
        /// Number of the general register.
        to: u8,
    },
    /// CLTS.
    Clts,
    /// LMSW.
    Lmsw {
        /// Its operand.
        source: u16,
    },
}

/// MOV to or from a debug register, of a guest that is debugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugRegisterAccess {
    /// Number of the debug register.
    pub register: u8,
    /// From it to the general register.
    pub is_read: bool,
    /// Number of the general register.
    pub general: u8,
}

/// An exception that was intercepted: it has not been delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, if there is one.
    pub error_code: Option<u32>,
    /// INT1, whose handler returns behind it.
    pub is_int1: bool,
    /// Of #DB: its causes in DR6's format, which DR6 has not got.
    pub debug_causes: u64,
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
    /// MONITOR, MWAIT, RDRAND, RDSEED, GETSEC, the VMX instructions and others: a guest has none of them.
    Absent,
    /// RDPMC.
    Rdpmc,
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
    Port(PortAccess),
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
        /// What was tried.
        access: MemoryAccess,
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
    ControlRegister(ControlRegisterAccess),
    /// An access to a debug register.
    DebugRegister(DebugRegisterAccess),
    /// An exception that is intercepted.
    Exception(Exception),
    /// A hardware task switch.
    TaskSwitch {
        /// Selector of the new task's TSS.
        selector: u16,
        /// What starts it.
        initiator: Initiator,
    },
    /// A triple fault.
    TripleFault,
    /// Another intercepted instruction.
    Instruction(Instruction),
    /// The CPU refused the guest's state.
    EntryFailure(Reason),
    /// Something the hypervisor does not know.
    Unknown(Reason),
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
            VmExit::Exception(_) => ExitKind::Exception,
            VmExit::Instruction(_) => ExitKind::Instruction,
            VmExit::DebugRegister(_)
            | VmExit::EndOfInterrupt { .. }
            | VmExit::TaskSwitch { .. }
            | VmExit::TripleFault
            | VmExit::EntryFailure(_)
            | VmExit::Unknown(_) => ExitKind::Other,
        }
    }
}
