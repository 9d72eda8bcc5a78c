//! Hardware task switches: a guest's attempt exits, and all of it is to be carried out (SDM Vol. 3, "Treatment of Task Switches").
//!
//! The CPU has checked the privileges before the exit. Everything else is checked here once more: not every CPU does it first, and
//! another vCPU may have changed the tables meanwhile. Up to `commit` nothing is changed, and a fault is the old task's; behind it
//! faults are the new task's.
//!
//! Source: Intel SDM Vol. 3, "Task Management", table "Exception Conditions Checked During a Task Switch"; "Task State in 16-Bit
//! TSS"; Vol. 2, "CALL", "IRET", "JMP", "INT n".

mod descriptor;
mod load;
#[cfg(test)]
mod tests;
mod tss;

use x86_defs::cr::{Cr0, Rflags};
use x86_defs::interrupt::{EventInjection, EventKind, vector};

use super::event::raised_during;
use super::{Addressing, CodeSize, Segment, SegmentRegister};
use descriptor::Descriptor;
use tss::{Format, State};

/// What a task switch reads and changes. Task switches are of modes with 32-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRegisters {
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    pub general: [u32; 8],
    /// EIP.
    pub eip: u32,
    /// EFLAGS.
    pub eflags: u32,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// DR7.
    pub dr7: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// Base and limit of the GDT.
    pub gdtr: (u32, u32),
}

impl TaskRegisters {
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments
            .get(register as usize)
            .copied()
            .unwrap_or_default()
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        if let Some(slot) = self.segments.get_mut(register as usize) {
            *slot = segment;
        }
    }
}

/// What starts a switch (exit qualification, bits 31:30).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// CALL.
    Call,
    /// IRET with NT set.
    Iret,
    /// JMP.
    Jump,
    /// A task gate in the IDT.
    Gate,
}

impl Initiator {
    /// By the exit qualification (SDM, "Exit Qualification for Task Switches").
    #[must_use]
    pub const fn from_qualification(qualification: u64) -> Initiator {
        match qualification >> 30 & 3 {
            0 => Initiator::Call,
            1 => Initiator::Iret,
            2 => Initiator::Jump,
            _ => Initiator::Gate,
        }
    }

    /// The old task goes on later by IRET of the new one.
    const fn nests(self) -> bool {
        matches!(self, Initiator::Call | Initiator::Gate)
    }
}

/// An attempt to switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the new task's TSS.
    pub selector: u16,
    /// What starts it.
    pub initiator: Initiator,
    /// Where the old task goes on: behind the instruction, or at that which faulted or was interrupted.
    pub return_eip: u32,
    /// The event whose delivery goes through the task gate.
    pub event: Option<EventInjection>,
}

/// A page fault at a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The address.
    pub linear: u32,
    /// The error code.
    pub code: u32,
}

/// Who accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The CPU by itself, or software at CPL 0 to 2.
    Supervisor,
    /// Software at CPL 3.
    User,
}

/// The guest's memory by linear addresses, under the page tables that a CR3 names. Where nothing is, reads give ones and writes are
/// lost.
pub trait LinearMemory {
    /// Copies out, as a supervisor.
    ///
    /// # Errors
    /// [`PageFault`]; nothing is copied.
    fn read(&self, cr3: u64, linear: u32, buffer: &mut [u8]) -> Result<(), PageFault>;
    /// Copies in.
    ///
    /// # Errors
    /// [`PageFault`]; nothing is copied.
    fn write(
        &self,
        cr3: u64,
        linear: u32,
        bytes: &[u8],
        privilege: Privilege,
    ) -> Result<(), PageFault>;
    /// Whether a supervisor can write there. Changes nothing.
    ///
    /// # Errors
    /// [`PageFault`].
    fn probe_write(&self, cr3: u64, linear: u32, bytes: usize) -> Result<(), PageFault>;
}

/// How it goes on after the attempt.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With the new task's first instruction.
    Runs,
    /// With a debug trap before that: the TSS's T flag. DR6.BT is to be set.
    DebugTrap,
    /// With an exception, and CR2 if it is a page fault.
    Exception(EventInjection, Option<u32>),
    /// With a shutdown: a fault during the delivery of a double fault.
    Shutdown,
}

/// What came of an attempt.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switched {
    /// The new task's registers; `None` if the old one is still the current.
    pub registers: Option<TaskRegisters>,
    /// How it goes on.
    pub ending: Ending,
}

/// Why a step is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// An exception with an error code: a selector's, without its RPL.
    Selector(u8, u16),
    /// A page fault.
    Page(PageFault),
}

impl From<PageFault> for Fault {
    fn from(fault: PageFault) -> Fault {
        Fault::Page(fault)
    }
}

const TS: u8 = vector::INVALID_TSS;
const NP: u8 = vector::SEGMENT_NOT_PRESENT;
const SS: u8 = vector::STACK_FAULT;
const GP: u8 = vector::GENERAL_PROTECTION;

/// DR7: L0 to L3 and LE, which are a task's.
const LOCAL_BREAKPOINTS: u64 = 0x155;

/// Switches the task, or finds the fault that keeps it from being switched.
pub fn switch(
    registers: &TaskRegisters,
    memory: &impl LinearMemory,
    request: TaskSwitch,
) -> Switched {
    let checked = match check(registers, memory, request) {
        Ok(checked) => checked,
        Err(fault) => {
            return Switched {
                registers: None,
                ending: exception(request, fault),
            };
        }
    };
    let mut after = match commit(registers, memory, request, &checked) {
        Ok(after) => after,
        // What was probed can be taken away by another vCPU only.
        Err(fault) => {
            return Switched {
                registers: None,
                ending: exception(request, fault.into()),
            };
        }
    };
    let entered = load::segments(&mut after, memory)
        .and_then(|()| push_error_code(&mut after, memory, request, checked.format));
    let ending = match entered {
        Err(fault) => exception(request, fault),
        Ok(()) if checked.state.traps => Ending::DebugTrap,
        Ok(()) => Ending::Runs,
    };
    Switched {
        registers: Some(after),
        ending,
    }
}

/// What has been found in order.
struct Checked {
    descriptor: Descriptor,
    format: Format,
    state: State,
    old_format: Format,
}

fn check(
    registers: &TaskRegisters,
    memory: &impl LinearMemory,
    request: TaskSwitch,
) -> Result<Checked, Fault> {
    const LOCAL: u16 = 1 << 2;
    let selector = request.selector;
    let is_return = request.initiator == Initiator::Iret;
    let bad = Fault::Selector(if is_return { TS } else { GP }, selector);
    if selector & LOCAL != 0 || selector & !7 == 0 {
        return Err(bad);
    }
    let descriptor = descriptor::fetch(registers, memory, selector)?.ok_or(bad)?;
    let format = match (descriptor.system_type(), is_return) {
        (Some(1), false) | (Some(3), true) => Format::Bits16,
        (Some(9), false) | (Some(11), true) => Format::Bits32,
        _ => return Err(bad),
    };
    if !descriptor.is_present() {
        return Err(Fault::Selector(NP, selector));
    }
    if descriptor.limit() < format.least_limit() {
        return Err(Fault::Selector(TS, selector));
    }
    let old = &registers.tr;
    let old_format = if old.rights & 8 != 0 {
        Format::Bits32
    } else {
        Format::Bits16
    };
    if old.limit < old_format.least_limit() {
        return Err(Fault::Selector(TS, old.selector));
    }
    // Everything that is written later can be.
    let cr3 = registers.cr3;
    let (offset, bytes) = old_format.saved();
    let old_base = old.base as u32;
    memory.probe_write(cr3, old_base.wrapping_add(offset), bytes)?;
    let base = descriptor.base();
    let state = format.read(memory, cr3, base)?;
    if request.initiator.nests() {
        memory.probe_write(cr3, base, 2)?;
    }
    for selector in [selector, old.selector] {
        if let Some(byte) = descriptor::busy_byte(registers, selector) {
            memory.probe_write(cr3, byte, 1)?;
        }
    }
    Ok(Checked {
        descriptor,
        format,
        state,
        old_format,
    })
}

/// Leaves the old task and becomes the new one, whose segments are selectors yet.
fn commit(
    registers: &TaskRegisters,
    memory: &impl LinearMemory,
    request: TaskSwitch,
    checked: &Checked,
) -> Result<TaskRegisters, PageFault> {
    const NESTED: u32 = Rflags::NT.bits() as u32;
    let cr3 = registers.cr3;
    let nests = request.initiator.nests();
    if !nests {
        descriptor::set_busy(registers, memory, registers.tr.selector, false)?;
    }
    let mut left = *registers;
    left.eip = request.return_eip;
    if request.initiator == Initiator::Iret {
        left.eflags &= !NESTED;
    }
    let old_base = registers.tr.base as u32;
    checked.old_format.save(memory, cr3, old_base, &left)?;
    let State {
        general,
        eip,
        mut eflags,
        selectors,
        ldt,
        cr3: new_cr3,
        ..
    } = checked.state;
    if nests {
        let link = registers.tr.selector.to_le_bytes();
        let base = checked.descriptor.base();
        memory.write(cr3, base, &link, Privilege::Supervisor)?;
        eflags |= NESTED;
    }
    if request.initiator != Initiator::Iret {
        descriptor::set_busy(registers, memory, request.selector, true)?;
    }
    let mut after = TaskRegisters {
        general,
        eip,
        eflags,
        cr0: registers.cr0 | Cr0::TS.bits(),
        dr7: registers.dr7 & !LOCAL_BREAKPOINTS,
        tr: checked.descriptor.busy_tss(request.selector),
        ..*registers
    };
    if let Some(new_cr3) = new_cr3
        && registers.cr0 & Cr0::PG.bits() != 0
    {
        after.cr3 = new_cr3.into();
    }
    load::selectors(&mut after, selectors, ldt);
    Ok(after)
}

/// The error code of an exception whose gate leads to the task goes onto its stack.
fn push_error_code(
    registers: &mut TaskRegisters,
    memory: &impl LinearMemory,
    request: TaskSwitch,
    format: Format,
) -> Result<(), Fault> {
    const BIG: u32 = 1 << 14;
    let Some(code) = request.event.and_then(|event| event.error_code) else {
        return Ok(());
    };
    let stack = registers.segment(SegmentRegister::Ss);
    let bytes = code.to_le_bytes();
    let bytes = match format {
        Format::Bits32 => bytes.as_slice(),
        Format::Bits16 => bytes.get(..2).unwrap_or(&bytes),
    };
    let [_, _, _, _, esp, ..] = &mut registers.general;
    let mask = if stack.rights & BIG != 0 {
        u32::MAX
    } else {
        0xFFFF
    };
    let new = esp.wrapping_sub(bytes.len() as u32) & mask;
    let addressing = Addressing::new(CodeSize::Bits32, registers.cr0, registers.eflags.into());
    let linear = addressing.linear(
        SegmentRegister::Ss,
        &stack,
        new.into(),
        bytes.len() as u64,
        true,
    );
    let linear = linear.map_err(|_| Fault::Selector(SS, 0))?;
    let privilege = if stack.rights >> 5 & 3 == 3 {
        Privilege::User
    } else {
        Privilege::Supervisor
    };
    memory.write(registers.cr3, linear as u32, bytes, privilege)?;
    *esp = *esp & !mask | new;
    Ok(())
}

/// What the guest sees of a fault.
fn exception(request: TaskSwitch, fault: Fault) -> Ending {
    let (vector, code, address) = match fault {
        Fault::Selector(vector, selector) => {
            let is_external = request.event.is_some_and(is_external);
            let code = u32::from(selector & !3) | u32::from(is_external);
            (vector, code, None)
        }
        Fault::Page(PageFault { linear, code }) => (vector::PAGE_FAULT, code, Some(linear)),
    };
    let raised = EventInjection {
        vector,
        kind: EventKind::HardwareException,
        error_code: Some(code),
    };
    let raised = match request.event {
        None => Some(raised),
        Some(first) => raised_during(first, raised),
    };
    match raised {
        None => Ending::Shutdown,
        Some(event) => {
            let is_page_fault = event.vector == vector::PAGE_FAULT;
            Ending::Exception(event, address.filter(|_| is_page_fault))
        }
    }
}

/// Whether an error code says that the event came from outside the program (SDM Vol. 3, "Error Code").
const fn is_external(event: EventInjection) -> bool {
    !matches!(
        event.kind,
        EventKind::SoftwareInterrupt | EventKind::SoftwareException
    )
}
