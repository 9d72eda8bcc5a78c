//! What the server needs of the machine.
//!
//! What takes long, or needs another CPU, may be left pending: the server asks again at each poll, and goes on serving.

use alloc::boxed::Box;

use super::{
    ControlError, CreateVm, DebugAnswer, DebugOrder, Event, FrameCounts, GroupChange, GroupRow,
    Hello, ImageRow, Selector, VcpuDump, VmChange, VmRow,
};

/// The name of something that is being carried out. Never given twice by one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    /// It is done.
    Done,
    /// A VM with this number has been made.
    Created(u32),
    /// A vCPU's registers.
    Dump(Box<VcpuDump>),
}

/// How far a request came.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// To its end.
    Finished(Completion),
    /// It is under way: [`Backend::finished`] will tell, under the ticket given.
    Pending,
}

impl Step {
    /// Done, with nothing to tell.
    pub const DONE: Step = Step::Finished(Completion::Done);
}

/// What is done to a VM as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmAction {
    /// End it and take back all it has.
    Destroy,
    /// Stop it.
    Pause,
    /// Let it go on.
    Resume,
    /// Start it again from its image.
    Reset,
}

/// What came out of a console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsoleChunk {
    /// Bytes written to the buffer's start.
    pub bytes: usize,
    /// Bytes lost before these.
    pub lost: u64,
    /// Nothing will come any more: the VM has ended, and these are its last words.
    pub is_over: bool,
}

/// The machine, as the server sees it. Arguments have been checked for what can be checked without the machine: names,
/// ranges, lengths, and that the VM or group is there. No call may wait for a guest.
pub trait Backend {
    /// CPUs of the machine.
    fn cpus(&mut self) -> u32;
    /// The machine; `rejected` is overwritten by the server.
    fn hello(&mut self) -> Hello;
    /// The number of a VM that is there, ended ones that can still be told of included.
    fn find_vm(&mut self, vm: &Selector) -> Option<u32>;
    /// The number of a group that is there.
    fn find_group(&mut self, group: &Selector) -> Option<u32>;
    /// The VM with the least number that is at least `from`.
    fn next_vm(&mut self, from: u32) -> Option<VmRow>;
    /// The group with the least number that is at least `from`.
    fn next_group(&mut self, from: u32) -> Option<GroupRow>;
    /// The image with that index in the boot archive.
    fn image(&mut self, index: u32) -> Option<ImageRow>;
    /// Frames of memory.
    fn frames(&mut self) -> FrameCounts;
    /// Makes a VM, and its group if that is not there. Finishes with [`Completion::Created`].
    ///
    /// # Errors
    /// That the machine has no room, no such image, or that a VM which has not ended has the name.
    fn create(&mut self, ticket: Ticket, vm: &CreateVm) -> Result<Step, ControlError>;
    /// Does something to a VM.
    ///
    /// # Errors
    /// That the VM's state does not allow it.
    fn act(&mut self, ticket: Ticket, vm: u32, action: VmAction) -> Result<Step, ControlError>;
    /// Changes a group.
    ///
    /// # Errors
    /// That the machine cannot.
    fn set_group(&mut self, group: u32, change: &GroupChange) -> Result<(), ControlError>;
    /// Changes a VM.
    ///
    /// # Errors
    /// That it has no such vCPU, or that the machine cannot.
    fn set_vm(&mut self, vm: u32, change: &VmChange) -> Result<(), ControlError>;
    /// Registers and last exits. Finishes with [`Completion::Dump`].
    ///
    /// # Errors
    /// That it has no such vCPU.
    fn dump(&mut self, ticket: Ticket, vm: u32, vcpu: u32) -> Result<Step, ControlError>;
    /// Does what a debugger asks. One VM at a time is debugged.
    ///
    /// # Errors
    /// That the VM is not in the state for it, has no such vCPU, or has no RAM there.
    fn debug(&mut self, vm: u32, order: &DebugOrder) -> Result<DebugAnswer, ControlError>;
    /// The debugger has gone: as [`DebugOrder::Detach`] of the VM that was debugged, if one was.
    fn debug_end(&mut self);
    /// What became of something pending; `None` while it is. Asked once more after it answered never.
    fn finished(&mut self, ticket: Ticket) -> Option<Result<Completion, ControlError>>;
    /// Begins or ends to keep a VM's console output for [`Backend::console_output`]. Ending it for a VM that is gone is no
    /// error.
    ///
    /// # Errors
    /// That the VM has no console.
    fn console_attach(&mut self, vm: u32, attached: bool) -> Result<(), ControlError>;
    /// Types into a VM's console; gives the bytes taken.
    ///
    /// # Errors
    /// That the VM takes no input.
    fn console_input(&mut self, vm: u32, bytes: &[u8]) -> Result<usize, ControlError>;
    /// Fetches what an attached console has said.
    fn console_output(&mut self, vm: u32, buffer: &mut [u8]) -> ConsoleChunk;
    /// Whether events are to be kept for [`Backend::next_event`].
    fn want_events(&mut self, wanted: bool);
    /// Fetches the oldest event that is kept.
    fn next_event(&mut self) -> Option<Event>;
    /// Ends all VMs and the machine. Called once, when the answer has left the server's buffer.
    fn shutdown(&mut self);
}
