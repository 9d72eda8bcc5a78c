//! What a debugger has set in a VM, and why the VM has stopped for it (`nagayactl gdb`).
//!
//! Concurrency: the lock is a leaf. What the debugger changes it changes while no vCPU of the VM is on a CPU; each sees it when it is
//! loaded next.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use nagaya_vmm::control::{Stop, StopReason};
use nagaya_vmm::debugger::{GuestDebugRegisters, HardwareSlots, MAX_SOFTWARE_BREAKPOINTS, Watch};
use spin::Mutex;

/// A software breakpoint: INT3 in place of another byte.
#[derive(Clone, Copy, Debug)]
pub struct SoftwareBreakpoint {
    /// Guest-physical address.
    pub gpa: u64,
    /// What the guest has there.
    pub original: u8,
}

/// What a debugger has set.
#[derive(Debug, Default)]
pub struct State {
    /// Breakpoints and watchpoints in the debug registers.
    pub hardware: HardwareSlots,
    software: Vec<SoftwareBreakpoint>,
    /// The first is told; others are kept if they would not come again by themselves.
    stops: Vec<Stop>,
}

/// A VM's debugger.
#[derive(Debug, Default)]
pub struct Debugger {
    is_attached: AtomicBool,
    state: Mutex<State>,
}

/// What a debugger has done to a vCPU. It belongs to the vCPU.
#[derive(Debug, Default)]
pub struct Debugged {
    /// Its exits are those of a VM that is debugged.
    pub is_prepared: bool,
    /// Its own debug registers while the debugger's are in the CPU.
    pub own: Option<GuestDebugRegisters>,
    /// Whether it steps.
    pub step: SingleStep,
    /// It stopped at this instruction, and passes the breakpoint there.
    pub passes: Option<u64>,
}

/// A vCPU's step for a debugger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SingleStep {
    /// None.
    #[default]
    No,
    /// It is to begin when the vCPU is loaded.
    Wanted,
    /// RFLAGS.TF is set for it; it was set before as well, or not.
    Begun {
        /// Before.
        had_trap_flag: bool,
    },
    /// It stopped for another reason, and a frame on its stack may have TF: one trap is to be swallowed.
    CutShort,
}

impl State {
    /// The software breakpoint there.
    #[must_use]
    pub fn software_at(&mut self, gpa: u64) -> Option<&mut SoftwareBreakpoint> {
        self.software.iter_mut().find(|it| it.gpa == gpa)
    }

    /// Notes one; false if there are too many.
    #[must_use]
    pub fn add_software(&mut self, breakpoint: SoftwareBreakpoint) -> bool {
        if self.software.len() >= MAX_SOFTWARE_BREAKPOINTS {
            return false;
        }
        self.software.push(breakpoint);
        true
    }

    /// Forgets one.
    pub fn remove_software(&mut self, gpa: u64) -> Option<SoftwareBreakpoint> {
        let index = self.software.iter().position(|it| it.gpa == gpa)?;
        Some(self.software.swap_remove(index))
    }

    /// Forgets all.
    pub fn take_software(&mut self) -> Vec<SoftwareBreakpoint> {
        core::mem::take(&mut self.software)
    }

    /// Why the VM has stopped, or is about to.
    #[must_use]
    pub fn stop(&self) -> Option<Stop> {
        self.stops.first().copied()
    }

    /// A stop has been told, and the VM is to go on: true unless another vCPU had stopped as well, which is told next.
    #[must_use]
    pub fn go_on(&mut self) -> bool {
        if !self.stops.is_empty() {
            self.stops.remove(0);
        }
        self.stops.is_empty()
    }

    /// Notes a stop. Of those that come while others are on their way only data watchpoints are kept, one for each vCPU: an
    /// instruction that was not carried out meets its breakpoint again.
    pub fn note(&mut self, stop: Stop) {
        let is_trap = matches!(stop.reason, StopReason::Hardware(it) if it.watch != Watch::Execute);
        let is_new = self.stops.iter().all(|other| other.vcpu != stop.vcpu);
        if self.stops.is_empty() || (is_trap && is_new) {
            self.stops.push(stop);
        }
    }
}

impl Debugger {
    /// Whether a debugger looks at the VM.
    #[inline]
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::SeqCst)
    }

    /// Begins or ends that; nothing is set afterwards.
    pub fn set_attached(&self, is_attached: bool) {
        *self.state.lock() = State::default();
        self.is_attached.store(is_attached, Ordering::SeqCst);
    }

    /// Looks at what is set, and changes it.
    pub fn with<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        action(&mut self.state.lock())
    }
}
