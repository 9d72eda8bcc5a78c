//! A vCPU that does not run: it waits, its slice has ended, its gang has been stopped. Its state stays loaded for as long as
//! its CPU has nothing else to run, so that going on costs little.

use core::ops::ControlFlow;
use core::sync::atomic::Ordering;

use nagaya_vmm::outcome::{Block, Cause};
use nagaya_vmm::process::Found;

use super::{Flow, Leave, Running};
use crate::arch::LoadedVcpu;
use crate::dispatch::{self, Next, resting};
use crate::host::cpu::{idle, time};
use crate::lifecycle::fork;

/// More than as many quick exits take as go by between two looks at the clock.
const CLOSE_TICKS: u64 = 1 << 16;

impl Running<'_, '_> {
    /// The slice may have ended, or a timer of another vCPU may be due.
    pub(super) fn tick(&mut self) -> Flow {
        let now = time::ticks();
        self.timers.fire(self.cpu, now);
        if now >= self.until {
            self.reschedule()?;
        }
        self.offer_interrupt();
        self.arm();
        ControlFlow::Continue(())
    }

    /// Lets the preemption timer run out when the scheduler or a timer is due next.
    pub(super) fn arm(&mut self) {
        self.vcpu.armed_for = self.vcpu.own_deadline();
        let own = self.vcpu.armed_for.unwrap_or(u64::MAX);
        let others = self.timers.next(self.until);
        // If others come first, but only just: a guest that exits all the time would be looked after for them up to 64 exits late.
        self.is_precise = own < others.saturating_add(CLOSE_TICKS);
        self.due = own.min(others);
        self.set_timer(time::ticks());
    }

    fn set_timer(&mut self, now: u64) {
        let ticks = self.due.saturating_sub(now);
        self.state.set_deadline(ticks);
    }

    /// The same for [`Runner::quick`](crate::arch::Runner::quick): false if the time has come.
    pub(super) fn keeps_time(&mut self) -> bool {
        let now = time::ticks();
        if now >= self.due {
            return false;
        }
        self.set_timer(now);
        true
    }

    /// Sets the preemption timer anew: it counts only while the guest runs.
    pub(super) fn keep_time(&mut self) -> Flow {
        if self.keeps_time() {
            ControlFlow::Continue(())
        } else {
            self.tick()
        }
    }

    /// Asks the scheduler, and stands by until it says that this vCPU goes on.
    pub(super) fn reschedule(&mut self) -> Flow {
        let next = dispatch::next(self.cpu, Some(self.vcpu.handle.id));
        self.wait_until_scheduled(next)
    }

    /// Gives way to a member of the group, or to anybody.
    pub(super) fn give_way(&mut self, to: Option<u64>) -> Flow {
        // One that is named may wait for another CPU: it goes first there.
        if !dispatch::is_wanted(self.cpu) && (to.is_none() || !dispatch::does_anybody_wait()) {
            return ControlFlow::Continue(());
        }
        let target = to.and_then(|member| {
            let membership = self.vcpu.vm.membership.as_ref()?;
            membership.group.vcpu_of(member)
        });
        dispatch::yield_to(self.cpu, target);
        self.reschedule()?;
        self.arm();
        ControlFlow::Continue(())
    }

    /// Waits as the guest asked to. RIP is past the instruction already.
    pub(super) fn block(&mut self) -> Flow {
        while let Some(block) = self.vcpu.waiting {
            if self.vcpu.vm.is_ending() {
                return ControlFlow::Break(Leave::Gone);
            }
            self.handle_init_signal()?;
            if self.is_over(block) {
                break;
            }
            let for_doorbells = self.vcpu.index == 0 || matches!(block, Block::Wait { .. });
            self.vcpu.handle.prepare_to_wait(for_doorbells);
            // Whoever brings a reason to go on stores it and then looks whether we lie; we the other way round.
            // An interrupt ends a HLT only; after a wait it is offered.
            if self.has_reason(block) || (block == Block::Halt && self.may_have_interrupt()) {
                self.vcpu.handle.try_wake();
                continue;
            }
            if block == Block::Halt && self.is_stranded() {
                self.vcpu.handle.try_wake();
                self.end(Cause::HaltedForever);
                return ControlFlow::Break(Leave::Gone);
            }
            match block {
                Block::Halt => self.halt_deadline(),
                Block::Wait { deadline } | Block::Child { deadline, .. } => Some(deadline),
            }
            .into_iter()
            .for_each(|deadline| self.timers.set(deadline, &self.vcpu.handle));
            if let Some(next) = dispatch::block(self.cpu, &self.vcpu.handle) {
                self.wait_until_scheduled(next)?;
            }
        }
        self.vcpu.waiting = None;
        // One that was displaced while it lay down has not blocked; left in place the mark would swallow the next kick.
        self.vcpu.handle.try_wake();
        self.offer_interrupt();
        self.arm();
        ControlFlow::Continue(())
    }

    /// Sleeps, with the vCPU loaded, until the scheduler says that it goes on.
    fn wait_until_scheduled(&mut self, mut next: Next) -> Flow {
        loop {
            match next {
                Next::Same {
                    until,
                    stolen,
                    watch,
                } => {
                    self.state.watch_spinning(watch);
                    self.vcpu.publish_stolen(stolen);
                    self.go_on(until);
                    return ControlFlow::Continue(());
                }
                Next::Other(id) => return ControlFlow::Break(Leave::For(id)),
                Next::Idle { until } => {
                    let due = self.timers.next_while_asleep(until, time::ticks());
                    resting::begin(self.cpu, self.vcpu.handle.id);
                    idle::sleep(self.cpu, Some(due), || {
                        !self.cpu.release.load(Ordering::SeqCst)
                    });
                }
            }
            let mark = resting::end(self.cpu);
            self.cpu.watch.lap();
            let leave = match self.process_pending_work() {
                ControlFlow::Break(leave) => Some(leave),
                ControlFlow::Continue(()) => {
                    let is_released = self.cpu.release.swap(false, Ordering::SeqCst);
                    is_released.then_some(Leave::Released)
                }
            };
            // A timer of its own may have come.
            let mark = mark.or_else(|| resting::end(self.cpu));
            let id = self.vcpu.handle.id;
            next = match (leave, mark) {
                (Some(leave), mark) => {
                    // It is woken elsewhere, then.
                    if let Some(mark) = mark {
                        dispatch::wake_by_scheduler(id, mark);
                    }
                    return ControlFlow::Break(leave);
                }
                (None, Some(mark)) => dispatch::wake_here(self.cpu, id, mark),
                (None, None) => dispatch::next(self.cpu, Some(id)),
            };
        }
    }

    /// When a HLT ends by itself.
    fn halt_deadline(&self) -> Option<u64> {
        let timer = self.vcpu.own_deadline();
        let timer = timer.filter(|_| self.interrupts_are_on());
        [timer, self.vcpu.deadline].into_iter().flatten().min()
    }

    /// The vCPU is to run until then.
    fn go_on(&mut self, until: u64) {
        self.until = until;
        // The kick that brought an interrupt may have been taken for one of ours.
        self.offer_interrupt();
        self.arm();
    }

    /// Whether a reason to go on is there, interrupts aside. Changes nothing.
    fn has_reason(&self, block: Block) -> bool {
        let pending = self.vcpu.vm.endpoint.mailbox.has_pending();
        let ending = self.vcpu.vm.is_ending() || self.vcpu.handle.start_up.is_to_reset();
        match block {
            // Who takes interrupts from an APIC and never looks at events must still be able to sleep: each ends one HLT.
            Block::Halt if self.vcpu.apic.is_software_enabled() => {
                let news = self.vcpu.vm.endpoint.mailbox.has_outstanding();
                ending || (self.vcpu.index == 0 && news)
            }
            Block::Halt => ending || (self.vcpu.index == 0 && pending),
            Block::Wait { .. } => ending || pending,
            Block::Child { child, .. } => {
                ending || !matches!(fork::find(&self.vcpu.vm.identity, child), Found::Alive)
            }
        }
    }

    /// Whether the wait is over; if so, the guest's registers say how.
    fn is_over(&mut self, block: Block) -> bool {
        let now = time::ticks();
        match block {
            Block::Halt => {
                let timer = self.vcpu.deadline.is_some_and(|deadline| deadline <= now);
                if timer {
                    self.vcpu.deadline = None;
                }
                let has_interrupt = self.collect_and_look();
                let has_reason = self.has_reason(block);
                if has_reason {
                    self.vcpu.vm.endpoint.mailbox.heed();
                }
                let is_over = timer || has_interrupt || has_reason;
                if is_over {
                    self.vcpu.take_halt_events();
                }
                is_over
            }
            Block::Wait { deadline } => {
                if self.vcpu.vm.endpoint.mailbox.has_pending() {
                    self.vcpu.registers.rax = self.vcpu.vm.endpoint.mailbox.take();
                    return true;
                }
                if deadline <= now {
                    self.vcpu.registers.rax = guest_abi::Errno::TimedOut.to_rax() as u64;
                    return true;
                }
                false
            }
            Block::Child {
                child,
                deadline,
                buffer,
            } => {
                let found = self.look_for_child(child, buffer);
                let answer = match found {
                    None if deadline <= now => Err(guest_abi::Errno::TimedOut),
                    None => return false,
                    Some(answer) => answer,
                };
                self.vcpu.registers.rax = match answer {
                    Ok(number) => number as u64,
                    Err(errno) => errno.to_rax() as u64,
                };
                true
            }
        }
    }

    /// A halted vCPU that nothing can wake: no deadline, no other vCPU of its VM but those that lie as it does, no peer that could
    /// ring. It has said that it lies ([`Handle::prepare_to_wait`](crate::objects::handle::Handle::prepare_to_wait)).
    fn is_stranded(&self) -> bool {
        let vm = &self.vcpu.vm;
        let has_deadline = self.halt_deadline().is_some();
        let is_deaf = !has_deadline && !self.interrupts_are_on();
        self.vcpu.handle.set_deaf(is_deaf);
        if has_deadline {
            return false;
        }
        // A PC's kernel that has not mapped the region waits for no doorbell, whoever is in its group.
        let has_peer = vm.membership.as_ref().is_some_and(|membership| {
            let (group, index) = (&membership.group, membership.index);
            group.has_live_peer(index) && (!vm.config.kind.is_pc() || group.has_mapped(index))
        });
        let nobody_acts = if is_deaf {
            vm.is_deaf()
        } else {
            !vm.devices.can_interrupt() && vm.is_single_threaded()
        };
        nobody_acts && !has_peer
    }
}
