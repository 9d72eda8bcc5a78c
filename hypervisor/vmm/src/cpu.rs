//! What a guest's CPU does around an instruction that the hypervisor carries out for it, in every mode: stepping over it, raising
//! an event, forming a linear address, switching a task.
//!
//! Each of these has one place here. `machine` lends the registers as [`CpuState`]; what is read and written through it is all
//! that changes. Source: Intel SDM Vol. 3, "VM Entries", "Debug, Branch Profile, TSC"; Vol. 1, "Instruction Pointer".

mod debug;
mod event;
mod mode;
mod segment;
mod single_step;
mod step;
pub mod task;
#[cfg(test)]
pub(crate) mod test_cpu;

pub use debug::{DEBUGCTL_WRITABLE, dr6_with};
pub use event::raise;
pub use mode::CodeSize;
pub use segment::{Addressing, Segment, SegmentFault, SegmentRegister};
pub use single_step::{Completed, Effect, Run, StepState};
pub use step::{Stepped, end_instruction, step, step_plainly};

use x86_defs::interrupt::{EventInjection, Interruptibility};

/// The registers of a vCPU that has exited. Widths and formats are those of the VMCS (SDM Vol. 3, "Guest Register State").
pub trait CpuState {
    /// RIP.
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, value: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// CR0 as the CPU has it: PE and PG are the guest's.
    fn cr0(&self) -> u64;
    /// IA32_EFER.
    fn efer(&self) -> u64;
    /// CS's access rights.
    fn code_rights(&self) -> u32;
    /// What blocks interrupts and NMIs.
    fn blocking(&self) -> Interruptibility;
    /// Sets what blocks them.
    fn set_blocking(&mut self, blocking: Interruptibility);
    /// Debug exceptions that the next entry delivers, in DR6's format.
    fn pending_debug(&self) -> u64;
    /// Sets them.
    fn set_pending_debug(&mut self, causes: u64);
    /// IA32_DEBUGCTL.
    fn debugctl(&self) -> u64;
    /// Sets it.
    fn set_debugctl(&mut self, value: u64);
    /// DR7.
    fn dr7(&self) -> u64;
    /// Sets DR7.
    fn set_dr7(&mut self, value: u64);
    /// The next entry delivers this event.
    fn set_event(&mut self, event: EventInjection);

    /// How large the code is that runs.
    fn code_size(&self) -> CodeSize {
        let is_ia32e = self.efer() & x86_defs::msr::EFER_LMA != 0;
        CodeSize::new(self.code_rights(), is_ia32e)
    }

    /// How data accesses form addresses.
    fn addressing(&self) -> Addressing {
        Addressing::new(self.code_size(), self.cr0(), self.rflags())
    }
}
