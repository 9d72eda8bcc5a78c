//! Waking up: what a waker says, and what the CPU says that slept with the one that wakes.
//!
//! Mostly the CPU on which a vCPU blocked does nothing since and has it loaded still. Then the waker leaves a mark and kicks that
//! CPU, without a word to the scheduler, and the CPU itself says so when it has woken ([`Scheduler::wake_here`]).

use crate::config::Mode;
use crate::ids::{CpuId, Kicks, Ticks, VcpuId};
use crate::scheduler::{Decision, Scheduler};
use crate::state::State;

impl Scheduler {
    /// A vCPU can run: an interrupt, a timer. Nothing happens if it could already.
    pub fn wake(&mut self, id: VcpuId, now: Ticks) -> Kicks {
        self.wake_with(id, false, now)
    }

    /// As [`Scheduler::wake`], by a doorbell: it may go before others for a rate limit's time, if its gang has not consumed a
    /// slice more than they have. What it runs is charged as ever, so that nobody gains by being rung often.
    pub fn wake_boosted(&mut self, id: VcpuId, now: Ticks) -> Kicks {
        self.wake_with(id, true, now)
    }

    fn wake_with(&mut self, id: VcpuId, boosted: bool, now: Ticks) -> Kicks {
        let now = self.advance(now);
        let mut kicks = Kicks::NONE;
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return kicks;
        };
        match vcpu.state {
            State::Blocked => {}
            State::Paused { .. } => {
                vcpu.state = State::Paused { ready: true };
                return kicks;
            }
            State::Running(_) | State::Waiting | State::CoStopped => return kicks,
        }
        vcpu.yielded = false;
        let gang = vcpu.gang;
        self.set_boosted(id, boosted);
        self.clamp_wakeup_credit(id);
        self.set_state(id, State::Waiting, now);
        self.place_waker(id, now, &mut kicks);
        self.rebalance(gang, now, &mut kicks);
        kicks
    }

    /// The blocked vCPU that a CPU has loaded wakes there; the CPU itself says so, and is answered as by
    /// [`Scheduler::schedule`]. If nobody waits anywhere nothing has to be weighed, and it goes on.
    pub fn wake_here(&mut self, cpu_id: CpuId, id: VcpuId, boosted: bool, now: Ticks) -> Decision {
        let now = self.advance(now);
        if self.goes_on_here(cpu_id, id) {
            return Decision {
                run: Some(id),
                until: self.go_on_here(cpu_id, id, boosted, now),
                previous: None,
                kicks: Kicks::NONE,
            };
        }
        let woken = self.wake_with(id, boosted, now);
        let mut decision = self.schedule(cpu_id, now);
        decision.kicks = decision.kicks.and(woken);
        decision.kicks.0.remove(cpu_id);
        decision
    }

    /// Puts a blocked vCPU on a CPU as if that had asked and been told so.
    fn go_on_here(&mut self, cpu_id: CpuId, id: VcpuId, boosted: bool, now: Ticks) -> Ticks {
        self.clamp_wakeup_credit(id);
        self.set_boosted(id, boosted);
        self.away.remove(cpu_id);
        self.idle.remove(cpu_id);
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.reserved = None;
            cpu.promised = None;
            // Lent to whom does not come: it has no slice to go on with.
            cpu.lent = None;
        }
        if let Some(gang) = self.vcpus.get(&id).map(|vcpu| vcpu.gang) {
            self.arrive_next(cpu_id, (id, gang), now);
        }
        // It is loaded: nothing of a start's skew is to come.
        self.loaded_now(cpu_id, now);
        // Nobody else waits, so that nobody is to be called.
        let mut kicks = Kicks::NONE;
        self.start_gang(cpu_id, id, now, &mut kicks);
        debug_assert!(
            kicks.cpus().is_empty(),
            "a gang without waiting members starts some"
        );
        self.begin_slot(cpu_id, id, now);
        self.note_floor(cpu_id, id);
        let until = self.until(cpu_id, Some(id), now);
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.until = until;
        }
        until
    }

    /// Whether a blocked vCPU goes on on a CPU without anybody else's having a say.
    fn goes_on_here(&self, cpu_id: CpuId, id: VcpuId) -> bool {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return false;
        };
        let (Some(gang), Some(vm), Some(cpu)) = (
            self.gangs.get(&vcpu.gang),
            self.vms.get(&vcpu.vm),
            self.cpus.get(cpu_id.0 as usize),
        ) else {
            return false;
        };
        let is_simple = gang.mode != Mode::Strict && gang.share.cap == 0 && vm.share.cap == 0;
        vcpu.state == State::Blocked
            && is_simple
            && self.idle.contains(cpu_id)
            && cpu.current.is_none()
            && gang.waiting == 0
            && self.pending.is_none()
            && self.wanted_cpus().is_empty()
            && self.preemptible_cpus(vcpu).contains(cpu_id)
    }
}
