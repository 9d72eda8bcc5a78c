//! What is to be done after an exit, and why a VM ended.

use core::fmt;

use nagaya_mem::Gva;
use serde::{Deserialize, Serialize};
use x86_defs::interrupt::EventInjection;

use crate::exit::Reason;

/// The decision on one VM exit. The caller carries it out before the next entry.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Enter again where the guest stopped.
    Resume,
    /// Step over the instruction that exited, then enter again.
    Next,
    /// Inject an event where the guest stopped.
    Inject(EventInjection),
    /// Step over the instruction, then do not enter until the block is over.
    Block(Block),
    /// Step over the instruction, then let somebody else run if anybody can: the member with index `to` rather than others.
    Yield {
        /// The member of the group that should run.
        to: Option<u64>,
    },
    /// Step over the instruction: the vCPU spins for something that another one should bring.
    Spinning,
    /// Look at the clock, then enter again where the guest stopped: a time slice may have ended.
    Tick,
    /// The VM is over.
    End(Cause),
}

/// What a vCPU waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Block {
    /// HLT: an interrupt it can take, a pending doorbell, or its deadline.
    Halt,
    /// The `wait` hypercall: a pending doorbell, or this TSC value.
    Wait {
        /// TSC value at which the wait times out.
        deadline: u64,
    },
    /// The `wait_child` hypercall: a child that has ended, or this TSC value.
    Child {
        /// That one; `None` for any.
        child: Option<u16>,
        /// TSC value at which the wait times out.
        deadline: u64,
        /// Where its status goes.
        buffer: Gva,
    },
}

/// Why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The `exit` hypercall, with its code.
    Exit(i64),
    /// The guest switched itself off (ACPI).
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The guest reset itself more often than its configuration lets it.
    ResetTooOften {
        /// How often it may.
        limit: u32,
    },
    /// The operator reset it.
    OperatorReset,
    /// A triple fault.
    TripleFault,
    /// An access to guest-physical memory that is not there or not allowed.
    MemoryViolation {
        /// Guest-physical address.
        gpa: u64,
        /// What was tried: `r`, `w`, `x` bits 0 to 2.
        access: u8,
    },
    /// An EPT entry the CPU takes for misconfigured: the hypervisor's own fault.
    Misconfiguration {
        /// Guest-physical address.
        gpa: u64,
    },
    /// An exit that the hypervisor does not know how to handle.
    UnknownExit(Reason),
    /// The CPU refused the guest's state on entry.
    EntryFailure(Reason),
    /// The entry instruction itself failed.
    InstructionFailure(Reason),
    /// HLT with nothing left that could wake it.
    HaltedForever,
    /// The hypervisor ended it: it could not go on.
    Killed,
    /// The operator ended it.
    Destroyed,
    /// A VM that it descends from ended it.
    KilledByParent,
}

impl Cause {
    /// The word for the event stream.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Cause::Exit(_) => "exit",
            Cause::PowerOff => "power-off",
            Cause::Reset | Cause::OperatorReset => "reset",
            Cause::ResetTooOften { .. } => "reset-limit",
            Cause::TripleFault => "triple-fault",
            Cause::MemoryViolation { .. } | Cause::Misconfiguration { .. } => "memory-violation",
            Cause::UnknownExit(_) => "unknown-exit",
            Cause::EntryFailure(_) | Cause::InstructionFailure(_) => "entry-failure",
            Cause::HaltedForever => "halted-forever",
            Cause::Killed => "killed",
            Cause::Destroyed => "destroyed",
            Cause::KilledByParent => "killed-by-parent",
        }
    }

    /// Whether the VM did what it was to do: it ended by itself with code 0 or switched itself off, or as the operator wished.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(
            self,
            Cause::Exit(0)
                | Cause::PowerOff
                | Cause::Reset
                | Cause::OperatorReset
                | Cause::Destroyed
                | Cause::KilledByParent
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Exit(code) => write!(f, "exited with code {code}"),
            Cause::PowerOff => f.write_str("switched itself off"),
            Cause::Reset => f.write_str("reset itself"),
            Cause::ResetTooOften { limit } => write!(
                f,
                "reset itself more than {limit} times: its `restarts` says how often it may"
            ),
            Cause::OperatorReset => f.write_str("was reset by the operator"),
            Cause::TripleFault => f.write_str(
                "triple fault: an exception could not be delivered (no usable IDT or stack?)",
            ),
            Cause::MemoryViolation { gpa, access } => {
                let letter = |bit: u8, letter: char| if access & bit != 0 { letter } else { '-' };
                write!(
                    f,
                    "memory violation at guest-physical {gpa:#x} ({}{}{}): outside its memory or read-only",
                    letter(1, 'r'),
                    letter(2, 'w'),
                    letter(4, 'x')
                )
            }
            Cause::Misconfiguration { gpa } => write!(
                f,
                "EPT misconfiguration at guest-physical {gpa:#x}: a hypervisor bug"
            ),
            Cause::UnknownExit(reason) => write!(f, "unhandled VM exit {reason}"),
            Cause::EntryFailure(reason) => write!(f, "VM entry refused: {reason}"),
            Cause::InstructionFailure(Reason { name, number }) => {
                write!(f, "VM entry instruction failed: {name} ({number})")
            }
            Cause::HaltedForever => {
                f.write_str("halted with interrupts off and nothing left that could wake it")
            }
            Cause::Killed => f.write_str("killed"),
            Cause::Destroyed => f.write_str("destroyed by the operator"),
            Cause::KilledByParent => f.write_str("ended by a VM that it descends from"),
        }
    }
}
