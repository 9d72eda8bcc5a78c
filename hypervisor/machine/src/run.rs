//! The run loop: enters a guest, learns what ended its run, decides, carries the decision out, enters again.
//!
//! Hot exits (hypercalls that need nothing, CPUID, MSRs, interrupts) allocate nothing, take no lock and log nothing; a guest that
//! ends interrupts by its word has its RAM's view read-locked for it, as its devices do. Whatever comes from outside
//! (a doorbell, the end of the VM, a change of its EPT) sets the CPU's `kicked` mark; that and the vCPU's posted
//! interrupts are what is looked at before each entry.

mod block;
mod calls;
mod control_registers;
mod debugger;
mod exits;
mod fork;
pub mod interrupts;
mod mmio;
pub mod native_baseline;
mod quick;
mod report;
pub mod selftest;
pub mod service;
mod step;
mod string;
mod task;
pub mod timers;

use core::ops::ControlFlow;
use core::sync::atomic::Ordering;

use nagaya_sched::VcpuId;
use nagaya_vmm::cpu::{self, CpuState, Stepped};
use nagaya_vmm::exit::{Reason, VmExit, vmx as decode};
use nagaya_vmm::outcome::{Cause, Outcome};
use x86_64::registers::model_specific::Msr;
use x86_defs::interrupt::EventInjection;
use x86_defs::msr;

use crate::arch::{Entered, LoadedVcpu};
use crate::dispatch::{self, Next, Taken};
use crate::host::cpu::percpu::PerCpu;
use crate::host::cpu::protect::HostSegments;
use crate::host::cpu::{idle, time};
use crate::host::stop;
use crate::lifecycle;
use crate::objects::debugger::Debugged;
use crate::objects::vcpu::Vcpu;
use crate::run::timers::Timers;
use crate::vmx::operation::VmxCpu;
use crate::vmx::vmcs::LoadedVmcs;
use crate::vmx::{capabilities, invalidate, setup};

/// Why a vCPU leaves its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// Its VM ends.
    Gone,
    /// The CPU is to run this one.
    For(VcpuId),
    /// Another CPU is to run it.
    Released,
    /// INIT: it waits for a start-up message from now on.
    Reset,
}

type Flow = ControlFlow<Leave>;

/// What a CPU does for ever: asks what to run, loads it, runs it until it leaves, sleeps while there is nothing.
pub fn cpu_loop(cpu: &'static PerCpu, mut vmx: VmxCpu) -> ! {
    let mut timers = Timers::new(cpu);
    loop {
        cpu.watch.lap();
        cpu.kicked.store(false, Ordering::SeqCst);
        if stop::is_stopping() {
            stop::halt_stopped();
        }
        selftest::answer(cpu);
        if let Some(vcpu) = lifecycle::native::take(cpu) {
            dispatch::away(cpu, || cpu.watch.excuse(|| native_baseline::run(vcpu)));
            continue;
        }
        if !dispatch::is_ready() {
            idle::sleep(cpu, None, || true);
            continue;
        }
        timers.fire(cpu, time::ticks());
        match dispatch::next(cpu, None) {
            Next::Other(mut id) => {
                // As long as one vCPU leaves for another, there is no need to ask.
                while let Some(Leave::For(next)) = load_and_run(cpu, &mut vmx, &mut timers, id) {
                    id = next;
                }
            }
            Next::Same { .. } => panic!("CPU {} has nothing loaded to go on with", cpu.index),
            Next::Idle { until } => {
                let due = timers.next_while_asleep(until, time::ticks());
                idle::sleep(cpu, Some(due), || true);
            }
        }
    }
}

/// Runs one vCPU until it leaves. `None` if it is not to be run after all.
fn load_and_run(
    cpu: &'static PerCpu,
    vmx: &mut VmxCpu,
    timers: &mut Timers,
    id: VcpuId,
) -> Option<Leave> {
    let Taken {
        mut vcpu,
        until,
        stolen,
        watch,
    } = dispatch::load_vcpu(cpu, id)?;
    vcpu.handle.set_cpu(Some(cpu));
    vcpu.publish_stolen(stolen);
    let segments = vmx.segments;
    let Some(vmcs) = vcpu.vmcs.take() else {
        panic!("a vCPU without VMCS was handed to CPU {}", cpu.index)
    };
    let mut vmcs = vmcs.load(vmx);
    load(cpu, &segments, &mut vcpu, &mut vmcs);
    vmcs.watch_spinning(watch);
    let mut running = Running {
        cpu,
        vcpu: &mut vcpu,
        state: vmcs,
        timers,
        until,
        exits_left: EXITS_PER_LOOK,
        due: 0,
        is_precise: false,
        looks_for_interrupts: false,
        outcome: Outcome::Resume,
    };
    let leave = running.run();
    let vmcs = running.state;
    vcpu.extended.save();
    vcpu.vmcs = Some(vmcs.clear());
    vcpu.last_cpu = Some(cpu.index);
    vcpu.vm.space.unloaded(cpu);
    vcpu.handle.set_cpu(None);
    if leave == Leave::Reset {
        match dispatch::detach_for_init(vcpu) {
            Ok(reset) => lifecycle::park(reset),
            Err(gone) => lifecycle::leave(gone),
        }
    } else if let Some(gone) = dispatch::park_vcpu(vcpu) {
        lifecycle::leave(gone);
    }
    Some(leave)
}

/// Brings a vCPU's state into the CPU: VMCS, caches of translations, registers that no VMCS holds.
fn load(cpu: &'static PerCpu, segments: &HostSegments, vcpu: &mut Vcpu, vmcs: &mut LoadedVmcs<'_>) {
    if capabilities::get().has_ibpb
        && cpu.last_vm.swap(vcpu.vm.id.into(), Ordering::Relaxed) != vcpu.vm.id.into()
    {
        // Another VM's branch history must not steer this one (`docs/SIDE-CHANNELS.md`).
        // SAFETY: CPUID offers the MSR; the write has no other effect.
        unsafe { Msr::new(msr::IA32_PRED_CMD).write(msr::PRED_CMD_IBPB) };
    }
    match vcpu.start.take() {
        Some(start) => {
            vcpu.msrs.efer = start.efer;
            vcpu.registers = start.registers;
            setup::write_all(vmcs, cpu, segments, &vcpu.binding(), &start);
            vmcs.set_pat(vcpu.msrs.pat);
            let bitmaps = &vcpu.vm.bitmaps;
            vcpu.virtual_apic.restart(vmcs, bitmaps, &mut vcpu.apic);
            vcpu.debugged = Debugged::default();
        }
        None if vcpu.forked.is_some() => {
            if let Some(area) = vcpu.forked.take() {
                setup::write_like(vmcs, cpu, segments, &vcpu.binding(), &area);
                let bitmaps = &vcpu.vm.bitmaps;
                vcpu.virtual_apic.restart(vmcs, bitmaps, &mut vcpu.apic);
            }
        }
        None if vcpu.last_cpu != Some(cpu.index) => setup::write_host(vmcs, cpu, segments),
        None => {}
    }
    cpu.delivers_interrupts
        .store(vcpu.virtual_apic.is_on(), Ordering::SeqCst);
    vcpu.vm.space.loaded(cpu);
    if vcpu.last_cpu != Some(cpu.index) {
        // It may have changed its own page tables on another CPU, or its VPID may have been another vCPU's.
        invalidate::vpid(vcpu.binding().vpid);
    }
    debugger::prepare(vcpu, vmcs);
    vcpu.extended.load();
    // Whatever happened while it was on no CPU is looked at before the first entry.
    cpu.kicked.store(true, Ordering::SeqCst);
}

/// A vCPU on its CPU.
struct Running<'a, 'cpu> {
    cpu: &'static PerCpu,
    vcpu: &'a mut Vcpu,
    /// Its state: the only one of its kind on the CPU.
    state: LoadedVmcs<'cpu>,
    timers: &'a mut Timers,
    /// TSC value at which the scheduler is to be asked again.
    until: u64,
    /// Quick exits until the next look at the clock, which is due when none is left.
    exits_left: u32,
    /// TSC value for which the preemption timer was set.
    due: u64,
    /// It was set for the vCPU's own timer: it is set anew at each exit, since it counts only while the guest runs.
    is_precise: bool,
    /// Before the next entry interrupts are looked for.
    looks_for_interrupts: bool,
    /// What follows from an exit that has been carried out by [`Runner::quick`], but for this.
    outcome: Outcome,
}

/// Quick exits after which the clock is looked at; after others it always is. The preemption timer counts only while the guest runs:
/// without this a guest that exits all the time would stretch its slice by what its exits take, and one that polls a device would
/// keep the control port waiting for ever.
const EXITS_PER_LOOK: u32 = 64;

impl Running<'_, '_> {
    /// Runs until the vCPU leaves.
    fn run(&mut self) -> Leave {
        match self.run_on() {
            ControlFlow::Break(leave) => leave,
            ControlFlow::Continue(never) => match never {},
        }
    }

    fn run_on(&mut self) -> ControlFlow<Leave, core::convert::Infallible> {
        self.arm();
        self.cpu.watch.leave_root(time::ticks());
        loop {
            self.cpu.watch.lap();
            // Whoever kicks stores `kicked` and then looks at `in_guest`; we the other way round.
            self.cpu.in_guest.store(true, Ordering::SeqCst);
            let is_kicked = self.cpu.kicked.load(Ordering::SeqCst);
            // Who posts an interrupt stores the news and then looks at `in_guest` as well.
            let has_outstanding = self.vcpu.handle.posted.has_outstanding();
            if is_kicked | has_outstanding | self.looks_for_interrupts {
                self.cpu.in_guest.store(false, Ordering::SeqCst);
                self.cpu.watch.enter_root(time::ticks());
                if is_kicked {
                    self.handle_kick()?;
                } else {
                    self.offer_interrupt();
                    // Another vCPU may have set a timer of the board's.
                    if self.vcpu.own_deadline() != self.vcpu.armed_for {
                        self.arm();
                    }
                }
                self.cpu.watch.leave_root(time::ticks());
                continue;
            }
            let entered = match self.enter() {
                Ok(entered) => entered,
                Err(error) => {
                    self.end(Cause::InstructionFailure(error));
                    return ControlFlow::Break(Leave::Gone);
                }
            };
            let outcome = match entered {
                Entered::Done => core::mem::replace(&mut self.outcome, Outcome::Resume),
                Entered::Exit => {
                    self.cpu.watch.enter_root(time::ticks());
                    let exit = self.exit();
                    self.handle(exit)
                }
            };
            self.conclude(outcome)?;
            if self.is_precise {
                self.keep_time()?;
            }
            self.look_at_clock()?;
        }
    }

    /// Notes how long the guest has been out, and does what is due.
    #[inline]
    fn look_at_clock(&mut self) -> Flow {
        self.exits_left = EXITS_PER_LOOK;
        let now = time::ticks();
        self.cpu.watch.leave_root(now);
        if now >= self.due {
            self.tick()?;
            self.cpu.watch.leave_root(time::ticks());
        }
        ControlFlow::Continue(())
    }

    /// Enters the guest, until an exit that is not carried out at once. `in_guest` has been set, and no kick was seen after that.
    ///
    /// # Errors
    /// The entry instruction itself failed.
    #[inline]
    fn enter(&mut self) -> Result<Entered, Reason> {
        let entered = LoadedVmcs::enter(self);
        self.cpu.in_guest.store(false, Ordering::Release);
        entered
    }

    /// What ended the run, noted for dumps and counted.
    #[inline]
    fn exit(&mut self) -> VmExit {
        let snapshot = self.state.exit();
        let rip = self.state.rip();
        self.vcpu.exits.record(time::ticks(), rip, snapshot);
        let exit = decode::decode(&snapshot);
        self.vcpu.count(exit.kind());
        exit
    }

    /// Does what follows from an exit. Breaks when the vCPU has to leave.
    #[inline]
    fn conclude(&mut self, outcome: Outcome) -> Flow {
        match outcome {
            Outcome::Resume => {}
            Outcome::Next => {
                let _ = self.advance();
            }
            Outcome::Inject(event) => self.inject(event),
            Outcome::Block(block) => {
                if self.advance() == Stepped::Plainly {
                    self.vcpu.waiting = Some(block);
                    self.block()?;
                }
            }
            Outcome::Yield { to } => {
                let _ = self.advance();
                self.give_way(to)?;
            }
            Outcome::Spinning => {
                let _ = self.advance();
                if dispatch::is_wanted(self.cpu) {
                    dispatch::spinning(self.cpu);
                }
            }
            Outcome::Tick => self.tick()?,
            Outcome::End(cause) => {
                self.end(cause);
                return ControlFlow::Break(Leave::Gone);
            }
        }
        ControlFlow::Continue(())
    }

    /// Steps over the instruction that exited.
    #[inline]
    fn advance(&mut self) -> Stepped {
        let length = self.state.instruction_length();
        cpu::step(&mut self.state, length)
    }

    /// What the end of an instruction brings that has been carried out, RIP set already.
    #[inline]
    fn end_instruction(&mut self) {
        let _ = cpu::end_instruction(&mut self.state);
    }

    /// Has the next entry deliver an event.
    #[inline]
    fn inject(&mut self, event: EventInjection) {
        cpu::raise(&mut self.state, event);
    }

    /// Looks at everything a kick can mean. Breaks when the vCPU has to leave.
    #[cold]
    fn handle_kick(&mut self) -> Flow {
        self.process_pending_work()?;
        if self.cpu.resched.load(Ordering::SeqCst) {
            self.reschedule()?;
        }
        if self.vcpu.waiting.is_some() {
            self.block()?;
        }
        self.offer_interrupt();
        // The control port may have to be looked at sooner than the timer would end.
        self.arm();
        ControlFlow::Continue(())
    }

    /// What a kick can mean whether the vCPU runs or rests: the VM's end, INIT, a change of its EPT, a dump, timers and the control port.
    fn process_pending_work(&mut self) -> Flow {
        // First the mark, then the states: a kick that comes meanwhile sets it again.
        self.cpu.kicked.store(false, Ordering::SeqCst);
        if stop::is_stopping() {
            stop::halt_stopped();
        }
        if self.vcpu.vm.is_ending() {
            return ControlFlow::Break(Leave::Gone);
        }
        self.handle_init_signal()?;
        self.vcpu.vm.space.refresh(self.cpu);
        self.show();
        self.timers.fire(self.cpu, time::ticks());
        ControlFlow::Continue(())
    }

    /// Shows the registers to whoever asked for them.
    fn show(&self) {
        if self.vcpu.handle.is_asked_for_snapshot() {
            self.vcpu.handle.give_snapshot(self.snapshot());
        }
    }

    /// Ends the VM for that cause, with a report unless it ended by itself.
    fn end(&mut self, cause: Cause) {
        if !matches!(cause, Cause::Exit(_)) && !cause.is_success() {
            self.report(&cause);
        }
        lifecycle::end(&self.vcpu.vm, cause);
    }
}
