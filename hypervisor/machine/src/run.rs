//! The run loop: enters a guest, learns what ended its run, decides, carries the decision out, enters again.
//!
//! Hot exits (hypercalls that need nothing, CPUID, MSRs, interrupts) allocate nothing, take no lock and log nothing. Whatever
//! comes from outside (a doorbell, the end of the VM, a change of its EPT) sets the CPU's `kicked` mark, the one thing that is
//! looked at before each entry.

mod calls;
mod exits;

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use nagaya_vmm::exit::{ExitSnapshot, VmExit, vmx as decode};
use nagaya_vmm::outcome::{Block, Cause, Outcome};
use x86_64::registers::model_specific::Msr;
use x86_defs::cr::Rflags;
use x86_defs::interrupt::{EventInjection, Interruptibility};
use x86_defs::{msr, vmcs as field};

use crate::cpu::percpu::PerCpu;
use crate::cpu::{idle, time};
use crate::vm::{Vcpu, Vm};
use crate::vmx::vmcs::LoadedVmcs;
use crate::vmx::{VmxCpu, capabilities, entry, invalidate, setup};
use crate::{bare, selftest, stop};

/// A vCPU that is handed to a CPU.
pub type Assignment = Box<Vcpu>;

/// What a CPU does for ever: takes a vCPU, runs it until it leaves, sleeps while there is none.
pub fn cpu_loop(cpu: &'static PerCpu) -> ! {
    let Some(mut vmx) = cpu.vmx.borrow_mut().take() else {
        panic!(
            "CPU {} runs its loop without being in VMX operation",
            cpu.index
        )
    };
    loop {
        cpu.kicked.store(false, Ordering::SeqCst);
        if stop::is_stopping() {
            stop::halt_for_ever();
        }
        selftest::attend(cpu);
        let next = cpu.inbox.lock().take();
        match next {
            Some(vcpu) if vcpu.vm.is_bare => bare::run(vcpu),
            Some(vcpu) => run(cpu, &mut vmx, vcpu),
            None => idle::sleep(cpu, None, || true),
        }
    }
}

fn run(cpu: &'static PerCpu, vmx: &mut VmxCpu, mut vcpu: Box<Vcpu>) {
    let capabilities = capabilities::get();
    if capabilities.has_ibpb {
        // Another VM's branch history must not steer this one (`docs/SIDE-CHANNELS.md`).
        // SAFETY: CPUID offers the MSR; the write has no other effect.
        unsafe { Msr::new(msr::IA32_PRED_CMD).write(msr::PRED_CMD_IBPB) };
    }
    let Some(vmcs) = vcpu.vmcs.take() else {
        panic!("a vCPU without VMCS was handed to CPU {}", cpu.index)
    };
    let segments = vmx.segments;
    let mut vmcs = vmcs.load(vmx);
    match vcpu.start.take() {
        Some(start) => {
            vcpu.msrs.efer = start.efer;
            setup::write_all(&mut vmcs, cpu, &segments, &vcpu.binding(), &start);
        }
        None => setup::write_host(&mut vmcs, cpu, &segments),
    }
    let binding = vcpu.binding();
    let (eptp, vpid) = (binding.eptp, binding.vpid);
    vcpu.ept_seen = vcpu.vm.ept_generation.load(Ordering::SeqCst);
    invalidate::ept(eptp);
    invalidate::vpid(vpid);
    vcpu.extended.load();
    let mut flags = 0;
    if capabilities.needs_md_clear {
        flags |= entry::CLEAR_BUFFERS;
    }
    let mut running = Running {
        cpu,
        vcpu: &mut vcpu,
        vmcs,
        flags,
    };
    running.run();
    let vmcs = running.vmcs;
    vcpu.extended.save();
    vcpu.vmcs = Some(vmcs.clear());
    Vm::leave(vcpu);
}

/// A vCPU on its CPU.
struct Running<'a, 'cpu> {
    cpu: &'static PerCpu,
    vcpu: &'a mut Vcpu,
    vmcs: LoadedVmcs<'cpu>,
    /// For [`entry::enter`].
    flags: u64,
}

impl Running<'_, '_> {
    /// Runs until the VM ends.
    fn run(&mut self) {
        loop {
            // Whoever kicks stores `kicked` and then looks at `in_guest`; we the other way round.
            self.cpu.in_guest.store(true, Ordering::SeqCst);
            if self.cpu.kicked.load(Ordering::SeqCst) {
                self.cpu.in_guest.store(false, Ordering::SeqCst);
                if self.attend().is_break() {
                    return;
                }
                continue;
            }
            // SAFETY: the VMCS of `self.vmcs` is current on this CPU; `setup` wrote all of it, with this CPU's host state and
            // `exit_address`; the registers are exclusively ours.
            let failed = unsafe { entry::enter(&raw mut self.vcpu.registers, self.flags) };
            self.cpu.in_guest.store(false, Ordering::Release);
            if failed != 0 {
                let error = self.vmcs.instruction_error();
                self.end(Cause::InstructionFailure(error));
                return;
            }
            self.flags |= entry::LAUNCHED;
            let snapshot = ExitSnapshot {
                reason: self.vmcs.read(field::EXIT_REASON),
                qualification: self.vmcs.read(field::EXIT_QUALIFICATION),
                interruption_info: self.vmcs.read(field::EXIT_INTERRUPTION_INFO),
                interruption_error: self.vmcs.read(field::EXIT_INTERRUPTION_ERROR_CODE),
                guest_physical: self.vmcs.read(field::GUEST_PHYSICAL_ADDRESS),
            };
            self.vcpu.last_exit = snapshot;
            let exit = decode::decode(&snapshot);
            self.vcpu.count(exit.kind());
            let outcome = match exit {
                VmExit::Hypercall => self.hypercall(),
                other => self.handle(other),
            };
            match outcome {
                Outcome::Resume => {}
                Outcome::Next => self.advance(),
                Outcome::Inject(event) => self.inject(event),
                Outcome::Block(block) => {
                    self.advance();
                    self.block(block);
                }
                Outcome::End(cause) => {
                    self.end(cause);
                    return;
                }
            }
        }
    }

    /// Steps over the instruction that exited.
    #[inline]
    fn advance(&mut self) {
        let rip = self.vmcs.read(field::GUEST_RIP);
        let length = self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
        self.vmcs
            .write(field::GUEST_RIP, rip.wrapping_add(u64::from(length)));
        // The instruction ended any blocking by STI or MOV SS (SDM, "Interruptibility State").
        let blocking =
            Interruptibility::from_bits_retain(self.vmcs.read(field::GUEST_INTERRUPTIBILITY));
        if !blocking.allows_interrupt() {
            let rest =
                blocking - (Interruptibility::BLOCKED_BY_STI | Interruptibility::BLOCKED_BY_MOV_SS);
            self.vmcs.write(field::GUEST_INTERRUPTIBILITY, rest.bits());
        }
    }

    fn inject(&mut self, event: EventInjection) {
        self.vmcs
            .write(field::ENTRY_INTERRUPTION_INFO, event.to_u32());
        if let Some(code) = event.error_code {
            self.vmcs.write(field::ENTRY_EXCEPTION_ERROR_CODE, code);
        }
    }

    /// Looks at everything a kick can mean. Breaks when the vCPU has to leave.
    #[cold]
    fn attend(&mut self) -> core::ops::ControlFlow<()> {
        // First the mark, then the states: a kick that comes meanwhile sets it again.
        self.cpu.kicked.store(false, Ordering::SeqCst);
        if stop::is_stopping() {
            stop::halt_for_ever();
        }
        if self.vcpu.vm.is_ending() {
            return core::ops::ControlFlow::Break(());
        }
        let generation = self.vcpu.vm.ept_generation.load(Ordering::SeqCst);
        if generation != self.vcpu.ept_seen {
            invalidate::ept(self.vcpu.vm.ept.eptp());
            self.vcpu.ept_seen = generation;
        }
        self.offer_interrupt();
        core::ops::ControlFlow::Continue(())
    }

    fn interrupts_are_on(&self) -> bool {
        self.vmcs.read(field::GUEST_RFLAGS) & Rflags::IF.bits() != 0
    }

    /// Whether an interrupt waits for this vCPU.
    fn has_interrupt(&self) -> bool {
        self.vcpu.index == 0 && self.vcpu.vm.endpoint.interrupt.load(Ordering::SeqCst)
    }

    /// Injects a waiting interrupt if the guest can take it now, else asks for an exit when it can.
    fn offer_interrupt(&mut self) {
        if !self.has_interrupt() {
            return;
        }
        let blocking =
            Interruptibility::from_bits_retain(self.vmcs.read(field::GUEST_INTERRUPTIBILITY));
        let event_is_set = self.vmcs.read(field::ENTRY_INTERRUPTION_INFO) & 1 << 31 != 0;
        let can_take = self.interrupts_are_on() && blocking.allows_interrupt() && !event_is_set;
        setup::set_interrupt_window(&mut self.vmcs, !can_take);
        if can_take {
            let endpoint = &self.vcpu.vm.endpoint;
            endpoint.interrupt.store(false, Ordering::SeqCst);
            let vector = endpoint.vector.load(Ordering::SeqCst);
            if vector != 0 {
                self.inject(EventInjection::external_interrupt(vector));
            }
        }
    }

    /// Waits as the guest asked to. RIP is past the instruction already.
    fn block(&mut self, block: Block) {
        loop {
            if self.vcpu.vm.is_ending() {
                // The next look at the marks ends the run: see to it that there is one.
                self.cpu.kicked.store(true, Ordering::SeqCst);
                return;
            }
            let pending = self.vcpu.vm.endpoint.mailbox.has_pending();
            let now = time::ticks();
            let deadline = match block {
                Block::Halt => {
                    let timer = self.vcpu.deadline.is_some_and(|deadline| deadline <= now);
                    if timer {
                        self.vcpu.deadline = None;
                    }
                    let interrupt = self.has_interrupt() && self.interrupts_are_on();
                    if timer || interrupt || (self.vcpu.index == 0 && pending) {
                        self.offer_interrupt();
                        return;
                    }
                    if self.is_stranded() {
                        self.vcpu.vm.end(Cause::HaltedForever);
                        continue;
                    }
                    self.vcpu.deadline
                }
                Block::Wait { deadline } => {
                    if pending {
                        self.vcpu.registers.rax = self.vcpu.vm.endpoint.mailbox.take();
                        self.offer_interrupt();
                        return;
                    }
                    if deadline <= now {
                        self.vcpu.registers.rax = guest_abi::Errno::TimedOut.to_rax() as u64;
                        return;
                    }
                    Some(deadline)
                }
            };
            self.cpu.kicked.store(false, Ordering::SeqCst);
            let vm = &self.vcpu.vm;
            idle::sleep(self.cpu, deadline, || {
                !vm.endpoint.mailbox.has_pending() && !vm.is_ending()
            });
        }
    }

    /// A halted vCPU that nothing can wake: no deadline, no other vCPU of its VM, no peer that could ring.
    fn is_stranded(&self) -> bool {
        let vm = &self.vcpu.vm;
        let has_peer = vm
            .membership
            .as_ref()
            .is_some_and(|membership| membership.group.has_live_peer(membership.index));
        self.vcpu.deadline.is_none() && vm.is_single_threaded() && !has_peer
    }

    /// Ends the VM for that cause, with a report unless it ended by itself.
    fn end(&mut self, cause: Cause) {
        if !matches!(cause, Cause::Exit(_)) {
            self.report(&cause);
        }
        self.vcpu.vm.end(cause);
    }

    /// One screen on what the vCPU was doing.
    fn report(&mut self, cause: &Cause) {
        let registers = self.vcpu.registers;
        let read = |encoding: u32| self.vmcs.try_read(encoding).unwrap_or(0);
        let last = self.vcpu.last_exit;
        log::error!(
            "VM {} vCPU {}: {cause}\n\
             last exit {} qualification {:#x} gpa {:#x}\n\
             rip {:#018x} rsp {:#018x} rflags {:#x}\n\
             cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}\n\
             rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n\
             rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}\n\
             r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}\n\
             r13 {:016x} r14 {:016x} r15 {:016x}",
            self.vcpu.vm.name,
            self.vcpu.index,
            x86_defs::exit::ExitReason::from_raw(last.reason),
            last.qualification,
            last.guest_physical,
            read(field::GUEST_RIP.encoding()),
            read(field::GUEST_RSP.encoding()),
            read(field::GUEST_RFLAGS.encoding()),
            read(field::GUEST_CR0.encoding()),
            read(field::GUEST_CR3.encoding()),
            read(field::GUEST_CR4.encoding()),
            read(field::GUEST_IA32_EFER.encoding()),
            registers.rax,
            registers.rbx,
            registers.rcx,
            registers.rdx,
            registers.rsi,
            registers.rdi,
            registers.rbp,
            registers.r8,
            registers.r9,
            registers.r10,
            registers.r11,
            registers.r12,
            registers.r13,
            registers.r14,
            registers.r15,
        );
        if matches!(cause, Cause::EntryFailure(_) | Cause::InstructionFailure(_)) {
            for (encoding, name) in field::ALL_GUEST_STATE {
                if let Some(value) = self.vmcs.try_read(*encoding) {
                    log::error!("  {name} = {value:#x}");
                }
            }
        }
    }
}
