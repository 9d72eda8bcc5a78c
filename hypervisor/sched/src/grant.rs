//! The short way of waking up: one that wakes where it ran last, on a CPU that is idle, while nobody waits anywhere, needs no
//! comparison with others. It is put on that CPU at once, in the waker's decision, and the CPU need not ask.

use crate::config::Mode;
use crate::ids::{CpuId, Kicks, Ticks, VcpuId};
use crate::scheduler::Scheduler;
use crate::state::State;

/// A CPU that runs a vCPU from now on, as if it had asked and been told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The CPU.
    pub cpu: CpuId,
    /// What it runs.
    pub vcpu: VcpuId,
    /// Until when that holds.
    pub until: Ticks,
}

impl Scheduler {
    /// As [`Scheduler::wake`], or [`Scheduler::wake_boosted`] if `boosted`, if nothing has to be weighed: the answer is what its
    /// CPU is to do. That CPU is to be told soon; should it ask meanwhile, or be kicked, the grant is void and it asks as ever.
    /// `None`: nothing has changed, wake it the long way.
    /// `is_asleep` says whether a CPU does nothing: one that is busy with something else may not take note for long.
    pub fn wake_in_place(
        &mut self,
        id: VcpuId,
        boosted: bool,
        now: Ticks,
        is_asleep: impl FnOnce(CpuId) -> bool,
    ) -> Option<Grant> {
        let now = self.advance(now);
        let cpu_id = self.place_at_rest(id).filter(|cpu| is_asleep(*cpu))?;
        self.clamp_wakeup_credit(id);
        self.set_boosted(id, boosted);
        let gang_id = self.vcpus.get(&id)?.gang;
        self.idle.remove(cpu_id);
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.reserved = None;
            cpu.promised = None;
            cpu.firm_until = 0;
        }
        self.put_on(cpu_id, id, None, now);
        // It was loaded there last, and mostly still is: what the kick takes is not counted as a start's skew.
        self.loaded_now(cpu_id, now);
        let is_gang = self
            .gangs
            .get(&gang_id)
            .is_some_and(|gang| gang.mode.is_gang());
        if is_gang {
            // Nobody else waits, so that nobody is to be called.
            let mut kicks = Kicks::NONE;
            self.start_gang(cpu_id, id, now, &mut kicks);
            debug_assert!(
                kicks.cpus().is_empty(),
                "a gang without waiting members starts some"
            );
        }
        self.begin_slot(cpu_id, id, now);
        let until = self.until(cpu_id, Some(id), now);
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.until = until;
        }
        Some(Grant {
            cpu: cpu_id,
            vcpu: id,
            until,
        })
    }

    /// Where a blocked vCPU would go on without anybody else having a say.
    fn place_at_rest(&self, id: VcpuId) -> Option<CpuId> {
        let vcpu = self.vcpus.get(&id)?;
        let gang = self.gangs.get(&vcpu.gang)?;
        let vm = self.vms.get(&vcpu.vm)?;
        let cpu_id = vcpu.last_cpu?;
        let cpu = self.cpus.get(cpu_id.0 as usize)?;
        let nobody_waits = gang.waiting == 0
            && self.pending.is_none()
            && [&self.queue, &self.spare, &self.strict]
                .into_iter()
                .all(|queue| queue.least().is_none());
        let is_simple = gang.mode != Mode::Strict && gang.share.cap == 0 && vm.share.cap == 0;
        let is_at_rest = vcpu.state == State::Blocked
            && self.idle.contains(cpu_id)
            && cpu.current.is_none()
            && self.preemptible_cpus(vcpu).contains(cpu_id);
        (is_at_rest && is_simple && nobody_waits).then_some(cpu_id)
    }
}
