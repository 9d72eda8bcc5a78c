//! What this hypervisor does not carry out itself where no RAM is, the CPU does: one instruction, or the delivery of one event, with
//! pages of the hypervisor's shown where the VM has nothing (`objects::overlay`).
//!
//! Where nobody answers the page is full of ones and is thrown away afterwards: reads are ones, writes go nowhere, whatever the
//! instruction. Where a device answers, what the instruction will read is read from it before, and what it has written is
//! written to it afterwards, operand by operand. Other vCPUs of the VM see none of this. An instruction is bounded by RFLAGS.TF
//! (`nagaya_vmm::cpu::StepState`), an event by the preemption timer: at 0 it ends the run behind the delivery and before the handler.
//!
//! Source: Intel SDM Vol. 3, "Information for VM Exits That Occur During Event Delivery", "VMX-Preemption Timer", "Event Injection".

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use guest_abi::PAGE_BYTES;
use nagaya_devices::pci::Width;
use nagaya_mem::{Gpa, HostMemory, Hpa, Permissions};
use nagaya_vmm::cpu::{CpuState, Effect, Run, SegmentRegister, StepState};
use nagaya_vmm::exit::{Exception, MemoryAccess, Reason, VmExit};
use nagaya_vmm::mmio::{self, AddressPart, CodeSize, MemoryOperand, Outline, Retry, Writes};
use nagaya_vmm::outcome::{Cause, Outcome};
use x86_defs::interrupt::{EventInjection, EventKind, Interruptibility, vector};

use super::Running;
use super::debugger::intercepts;
use super::exits::INVALID_OPCODE;
use super::quick::LeftAlways;
use crate::arch::{Intercepts, LoadedVcpu};
use crate::host::memory::{self, Whose};
use crate::objects::overlay::{EptOverlay, Refusal};
use crate::vmx::vmcs::LoadedVmcs;
use crate::vmx::xstate;

/// Violations of one instruction: its operands and stack, the tables and descriptors that lead to them, twice.
const MOST_VIOLATIONS: usize = 256;
/// Bit of a #DB's causes: single step.
const SINGLE_STEP: u64 = 1 << 14;

/// Pages that are shown for a run. Their frames are given back with it, after the overlay (fields are dropped in their order).
struct Shown {
    overlay: EptOverlay,
    /// Ones, wherever nobody answers.
    nobody: Option<Frame>,
    devices: Vec<DevicePage>,
    violations: usize,
}

/// A frame of the hypervisor's, given back when dropped.
struct Frame(Hpa);

impl Frame {
    /// A frame full of ones.
    fn ones() -> Option<Frame> {
        const ONES: [u8; 512] = [0xFF; 512];
        let frame = Frame(memory::allocate_hypervisor_frame()?);
        for at in (0..PAGE_BYTES).step_by(ONES.len()) {
            frame.write(at, &ONES);
        }
        Some(frame)
    }

    /// Writes from that byte on; what would go beyond the frame's end does not.
    fn write(&self, offset: u64, bytes: &[u8]) {
        let room = PAGE_BYTES.saturating_sub(offset) as usize;
        let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        // SAFETY: the frame was given to this value alone, which gives it back when it is dropped; what is written ends with it.
        unsafe { memory::writer(Whose::Hypervisor) }.write(Hpa::new(self.0.get() + offset), bytes);
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        memory::free_hypervisor_frame(self.0);
    }
}

/// A page with registers of devices, as it is shown.
struct DevicePage {
    page: u64,
    frame: Frame,
    /// What is to be written to the device.
    writes: Vec<Part>,
}

/// A stretch of an operand inside a page.
#[derive(Clone, Copy)]
struct Part {
    /// From the page's start.
    offset: u64,
    bytes: usize,
    is_read: bool,
    writes: Writes,
    before: [u8; 64],
}

/// Why a run cannot go on.
enum Stop {
    /// The guest is to try again.
    Again,
    /// It is not to be: this is told and done instead.
    Refuse(&'static str),
}

/// How a run of one instruction ended.
enum End {
    Completed(u64),
    Fault(Exception),
    Exit(VmExit),
    Stopped(Stop),
    Failed(Reason),
}

impl Running<'_, '_> {
    /// An access where no RAM is, by whatever it was.
    #[cold]
    #[inline(never)]
    pub(super) fn step(&mut self, gpa: u64, access: MemoryAccess) -> Outcome {
        match self.state.interrupted_delivery() {
            Some(event) => {
                let length = self.state.instruction_length();
                self.deliver(event, length, gpa, access)
            }
            None => self.step_instruction(gpa, access),
        }
    }

    /// Lets the CPU carry out the guest's next instruction.
    fn step_instruction(&mut self, gpa: u64, access: MemoryAccess) -> Outcome {
        let size = self.state.code_size();
        let looked = self.look(size, access.execute);
        if let Some(Outline {
            effect: Effect::Interrupts { vector },
            length,
            ..
        }) = looked
        {
            let event = EventInjection {
                vector,
                kind: EventKind::SoftwareInterrupt,
                error_code: None,
            };
            return self.deliver(event, length.into(), gpa, access);
        }
        let mut shown = match self.first_shown(gpa, access, looked.as_ref()) {
            Ok(shown) => shown,
            Err(stop) => return self.stopped(&stop, gpa),
        };
        let mut before = StepState {
            rflags: self.state.rflags(),
            interruptibility: self.state.blocking(),
            pending_debug: self.state.pending_debug(),
            debugctl: self.state.debugctl(),
        };
        if self.state.has_iret_unblocked() {
            // IRET had lifted it already.
            before.interruptibility |= Interruptibility::BLOCKED_BY_NMI;
        }
        let (rip, cpl) = (self.state.rip(), self.state.cpl());
        let during = before.for_step();
        self.state.intercept_exceptions(Intercepts::All);
        self.state.set_rflags(during.rflags);
        self.state.set_debugctl(during.debugctl);
        let end = loop {
            self.state.set_blocking(during.interruptibility);
            self.state.set_pending_debug(during.pending_debug);
            let end = self.end_of_run(&shown);
            match end {
                End::Exit(VmExit::MemoryViolation { gpa, access }) if !self.is_refused(gpa) => {
                    if self.state.interrupted_delivery().is_some() {
                        break End::Stopped(Stop::Refuse("an event within a step"));
                    }
                    match self.show_page(&mut shown, gpa, access, looked.as_ref()) {
                        Ok(()) => {}
                        Err(stop) => break End::Stopped(stop),
                    }
                }
                end => break end,
            }
        };
        let eptp = self.vcpu.vm.space.ept.eptp();
        self.state.set_nested_root(eptp);
        let intercepts = intercepts(self.vcpu);
        self.state.intercept_exceptions(intercepts);
        self.state.set_debugctl(before.debugctl);
        let effect = looked
            .as_ref()
            .map_or(Effect::Usual, |looked| looked.effect);
        let length = looked.as_ref().map_or(0, |looked| looked.length);
        match end {
            End::Completed(causes) => {
                let now = self.state.rip();
                let run = Run {
                    rflags: self.state.rflags(),
                    interruptibility: self.state.blocking(),
                    causes,
                    has_branched: now != size.step(rip, length),
                };
                let dr7 = self.state.dr7();
                let after = before.completed(effect, cpl, dr7, run);
                self.state.set_rflags(after.rflags);
                self.state.set_blocking(after.interruptibility);
                self.state.set_pending_debug(after.pending_debug);
                self.vcpu.known.mismatches.clear();
                self.write_back(&shown);
                Outcome::Resume
            }
            End::Fault(exception) => {
                let flags = self.state.rflags();
                self.state.set_rflags(before.flags_after_fault(flags));
                self.state.set_pending_debug(0);
                self.fault(exception)
            }
            other => {
                self.state.set_rflags(before.rflags);
                self.state.set_blocking(before.interruptibility);
                let pending = before.pending_debug_before();
                self.state.set_pending_debug(pending);
                drop(shown);
                match other {
                    End::Exit(exit) => self.handle(exit),
                    End::Failed(error) => Outcome::End(Cause::InstructionFailure(error)),
                    End::Stopped(stop) => self.stopped(&stop, gpa),
                    End::Completed(_) | End::Fault(_) => Outcome::Resume,
                }
            }
        }
    }

    /// Runs with what is shown until an exit, and looks whether the instruction is done by then.
    fn end_of_run(&mut self, shown: &Shown) -> End {
        self.state.set_nested_root(shown.overlay.eptp());
        let exit = match self.run_unless_kicked() {
            Ok(Some(exit)) => exit,
            Ok(None) => return End::Stopped(Stop::Again),
            Err(error) => return End::Failed(error),
        };
        let VmExit::Exception(exception) = exit else {
            return End::Exit(exit);
        };
        let causes = exception.debug_causes;
        if exception.vector == vector::DEBUG && causes & SINGLE_STEP != 0 {
            End::Completed(causes)
        } else {
            End::Fault(exception)
        }
    }

    /// Delivers an event whose stack, handler's descriptor or what else is where no RAM is. `length` is the instruction's whose event it is.
    fn deliver(
        &mut self,
        event: EventInjection,
        length: u32,
        gpa: u64,
        access: MemoryAccess,
    ) -> Outcome {
        let mut shown = match self.first_shown(gpa, access, None) {
            Ok(shown) => shown,
            Err(stop) => return self.stopped(&stop, gpa),
        };
        let (mut event, mut length) = (event, length);
        let outcome = loop {
            if event.kind == EventKind::Nmi {
                // Its delivery blocked further ones.
                self.state
                    .set_blocking(self.state.blocking() - Interruptibility::BLOCKED_BY_NMI);
            }
            self.inject(event);
            self.state.set_event_length(length);
            self.state.end_run_at_once();
            self.state.set_nested_root(shown.overlay.eptp());
            match self.run_unless_kicked() {
                // The event stays where the next entry takes it from.
                Ok(None) | Ok(Some(VmExit::PreemptionTimer)) => break Outcome::Resume,
                Ok(Some(VmExit::MemoryViolation { gpa, access })) if !self.is_refused(gpa) => {
                    let Some(next) = self.state.interrupted_delivery() else {
                        // It has been delivered; this is its handler's.
                        break Outcome::Resume;
                    };
                    event = next;
                    length = self.state.instruction_length();
                    if let Err(stop) = self.show_page(&mut shown, gpa, access, None) {
                        self.inject(event);
                        self.state.set_event_length(length);
                        break match stop {
                            Stop::Again => Outcome::Resume,
                            // There is no way to deliver anything any more.
                            Stop::Refuse(_) => Outcome::End(Cause::TripleFault),
                        };
                    }
                }
                Ok(Some(exit)) => {
                    let eptp = self.vcpu.vm.space.ept.eptp();
                    self.state.set_nested_root(eptp);
                    drop(shown);
                    self.arm();
                    return self.handle(exit);
                }
                Err(error) => break Outcome::End(Cause::InstructionFailure(error)),
            }
        };
        let eptp = self.vcpu.vm.space.ept.eptp();
        self.state.set_nested_root(eptp);
        self.arm();
        outcome
    }

    /// One run, as the run loop's, but that a kick is left to that.
    fn run_unless_kicked(&mut self) -> Result<Option<VmExit>, Reason> {
        self.cpu.in_guest.store(true, Ordering::SeqCst);
        if self.cpu.kicked.load(Ordering::SeqCst) {
            self.cpu.in_guest.store(false, Ordering::SeqCst);
            return Ok(None);
        }
        let entered = LoadedVmcs::enter(&mut LeftAlways(self));
        self.cpu.in_guest.store(false, Ordering::Release);
        entered.map(|_| Some(self.exit()))
    }

    /// Injects an exception that ended a run, as the CPU would have raised it.
    fn fault(&mut self, exception: Exception) -> Outcome {
        if self.state.has_iret_unblocked() {
            let blocking = self.state.blocking() | Interruptibility::BLOCKED_BY_NMI;
            self.state.set_blocking(blocking);
        }
        if exception.vector == vector::PAGE_FAULT {
            xstate::set_cr2(self.state.fault_address());
        }
        self.exception(exception)
    }

    /// What is done when a run cannot go on.
    fn stopped(&mut self, stop: &Stop, gpa: u64) -> Outcome {
        match stop {
            Stop::Again => Outcome::Resume,
            Stop::Refuse(reason) => {
                let rip = self.state.rip();
                let bytes = self.fetch(self.state.code_size()).bytes;
                self.vcpu.vm.devices.complain(format_args!(
                    "#UD for an instruction that is not carried out at guest-physical {gpa:#x} ({reason}): rip {rip:#x}: {bytes:02x?}"
                ));
                INVALID_OPCODE
            }
        }
    }

    /// Looks at the guest's next instruction; `None` if it cannot be told.
    fn look(&mut self, size: CodeSize, is_cut_short: bool) -> Option<Outline> {
        let fetched = self.fetch(size);
        let mut bytes = fetched.bytes;
        if is_cut_short && let Some(rest) = bytes.get_mut(fetched.count..) {
            rest.fill(0xFF);
        }
        let count = if is_cut_short {
            bytes.len()
        } else {
            fetched.count
        };
        mmio::look(bytes.get(..count)?, size, |part| {
            self.address_part(part, size)
        })
    }

    /// A part of an address.
    pub(super) fn address_part(&mut self, part: AddressPart, size: CodeSize) -> u64 {
        match part {
            AddressPart::General(number) => self.general(number).unwrap_or(0),
            AddressPart::Base(segment) => self.base_of(segment, size),
        }
    }

    /// The base of a segment: in 64-bit code only two have one.
    fn base_of(&self, segment: SegmentRegister, size: CodeSize) -> u64 {
        match segment {
            SegmentRegister::Fs | SegmentRegister::Gs => self.state.segment_base(segment),
            _ if size == CodeSize::Bits64 => 0,
            _ => self.state.segment_base(segment),
        }
    }

    fn first_shown(
        &mut self,
        gpa: u64,
        access: MemoryAccess,
        looked: Option<&Outline>,
    ) -> Result<Shown, Stop> {
        let overlay = EptOverlay::new(&self.vcpu.vm).ok_or(NO_MEMORY)?;
        let mut shown = Shown {
            overlay,
            nobody: None,
            devices: Vec::new(),
            violations: 0,
        };
        self.show_page(&mut shown, gpa, access, looked)?;
        Ok(shown)
    }

    /// Shows the page that an access goes to.
    fn show_page(
        &mut self,
        shown: &mut Shown,
        gpa: u64,
        access: MemoryAccess,
        looked: Option<&Outline>,
    ) -> Result<(), Stop> {
        shown.violations += 1;
        if shown.violations > MOST_VIOLATIONS {
            return Err(Stop::Refuse("too many accesses"));
        }
        let page = gpa & !(PAGE_BYTES - 1);
        let is_data = access.is_final && !access.execute;
        if self.has_registers_in(page) {
            if let Some(looked) = looked.filter(|_| is_data) {
                return self.show_device(shown, page, looked);
            }
            // As if nobody answered, so that the guest faults as it would where nothing is.
            self.vcpu.vm.devices.complain(format_args!(
                "a device at guest-physical {gpa:#x} is no place for code, tables or stacks: it reads as ones to them"
            ));
        }
        let frame = match &shown.nobody {
            Some(frame) => frame.0,
            None => shown.nobody.insert(Frame::ones().ok_or(NO_MEMORY)?).0,
        };
        let mut permissions = Permissions::READ | Permissions::EXECUTE;
        permissions.set(Permissions::WRITE, access.write);
        present(shown.overlay.show(Gpa::new(page), frame, permissions))
    }

    /// Shows registers of a device: what the instruction reads of them is read now.
    fn show_device(&mut self, shown: &mut Shown, page: u64, looked: &Outline) -> Result<(), Stop> {
        let linear = self.state.violation_address() & !(PAGE_BYTES - 1);
        let operands = looked
            .operands
            .as_ref()
            .ok_or(Stop::Refuse("its operands are too large for a device"))?;
        let parts: Vec<Part> = operands
            .iter()
            .filter_map(|operand| part_in(operand, linear))
            .collect();
        // A hint reads nothing.
        if parts.is_empty() && !operands.is_empty() {
            // Another vCPU has changed the instruction, or it is of a kind whose operands are not known.
            return Err(match self.vcpu.known.mismatches.note() {
                Retry::Again => Stop::Again,
                Retry::GiveUp => Stop::Refuse("its operands are not known"),
            });
        }
        let position = shown.devices.iter().position(|device| device.page == page);
        let index = match position {
            Some(index) => index,
            None => {
                shown.devices.push(DevicePage {
                    page,
                    frame: Frame::ones().ok_or(NO_MEMORY)?,
                    writes: Vec::new(),
                });
                shown.devices.len() - 1
            }
        };
        let Some(device) = shown.devices.get_mut(index) else {
            return Err(NO_MEMORY);
        };
        let mut permissions = Permissions::READ;
        for mut part in parts {
            if part.is_read {
                let (values, _) = part.before.split_at_mut(part.bytes);
                self.read_registers(page + part.offset, values);
                device.frame.write(part.offset, values);
            }
            if part.writes != Writes::Never {
                permissions |= Permissions::WRITE;
                device.writes.push(part);
            }
        }
        present(
            shown
                .overlay
                .show(Gpa::new(page), device.frame.0, permissions),
        )
    }

    /// Writes to devices what the instruction has written.
    fn write_back(&mut self, shown: &Shown) {
        for device in &shown.devices {
            for part in &device.writes {
                let mut after = [0; 64];
                let (after, _) = after.split_at_mut(part.bytes);
                memory::phys().read(Hpa::new(device.frame.0.get() + part.offset), after);
                let gpa = device.page + part.offset;
                if part.writes == Writes::Always {
                    self.write_registers(gpa, after);
                    continue;
                }
                for ((at, new), old) in (gpa..).zip(after).zip(&part.before) {
                    if new != old {
                        self.device_write(at, Width::Byte, u64::from(*new));
                    }
                }
            }
        }
    }

    pub(super) fn read_registers(&mut self, gpa: u64, values: &mut [u8]) {
        let mut gpa = gpa;
        let mut rest = values;
        while let Some(width) = next_access(gpa, rest.len()) {
            let (now, later) = rest.split_at_mut(width.bytes());
            let value = self.device_read(gpa, width).to_le_bytes();
            now.iter_mut().zip(value).for_each(|(to, from)| *to = from);
            gpa += width.bytes() as u64;
            rest = later;
        }
    }

    pub(super) fn write_registers(&mut self, gpa: u64, values: &[u8]) {
        let mut gpa = gpa;
        let mut rest = values;
        while let Some(width) = next_access(gpa, rest.len()) {
            let (now, later) = rest.split_at(width.bytes());
            let mut value = [0; 8];
            value.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.device_write(gpa, width, u64::from_le_bytes(value));
            gpa += width.bytes() as u64;
            rest = later;
        }
    }
}

const NO_MEMORY: Stop = Stop::Refuse("there is no memory for it");

/// The next access for so many bytes: what has a width of its own goes as one, else the widest that is aligned.
fn next_access(gpa: u64, bytes: usize) -> Option<Width> {
    if let Some(width) = Width::of(bytes) {
        return Some(width);
    }
    [Width::Qword, Width::Dword, Width::Word, Width::Byte]
        .into_iter()
        .find(|width| width.bytes() <= bytes && gpa.is_multiple_of(width.bytes() as u64))
}

/// The stretch of an operand that lies in the page at a linear address.
fn part_in(operand: &MemoryOperand, page: u64) -> Option<Part> {
    let start = operand.linear.wrapping_sub(page) as i64;
    let end = start.checked_add(operand.bytes as i64)?;
    let (start, end) = (start.max(0), end.min(PAGE_BYTES as i64));
    (start < end).then_some(Part {
        offset: start as u64,
        bytes: (end - start) as usize,
        is_read: operand.is_read,
        writes: operand.writes,
        before: [0; 64],
    })
}

fn present(shown: Result<(), Refusal>) -> Result<(), Stop> {
    shown.map_err(|refusal| match refusal {
        Refusal::Stale => Stop::Again,
        Refusal::Impossible => NO_MEMORY,
    })
}
