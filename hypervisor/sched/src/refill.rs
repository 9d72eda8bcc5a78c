//! Those whose caps hold them back until a period ends: they are looked at again a few at a time.

use crate::budget::Periods;
use crate::ids::{CpuId, GangId, Kicks, Ticks};
use crate::scheduler::Scheduler;

/// Gangs that one decision lets go after a period has ended.
const MOST_REFILLED: usize = 4;

impl Scheduler {
    /// The periods as of now.
    pub(crate) fn periods(&self) -> Periods {
        Periods::at(self.now, self.config.period)
    }

    /// Somebody in a gang may have spent a budget: it is looked at again when the period has ended.
    pub(crate) fn hold_back(&mut self, gang_id: GangId) {
        let index = self.periods().index();
        if let Some(gang) = self.gangs.get_mut(&gang_id)
            && gang.held_back.is_none()
        {
            gang.held_back = Some(index);
            self.held_back.insert((index, gang_id));
        }
    }

    /// Forgets that a gang was held back.
    pub(crate) fn let_go(&mut self, gang_id: GangId) {
        if let Some(gang) = self.gangs.get_mut(&gang_id)
            && let Some(index) = gang.held_back.take()
        {
            self.held_back.remove(&(index, gang_id));
        }
    }

    /// Looks again at some of those that were held back in a period that has ended.
    pub(crate) fn refill(&mut self, now: Ticks, kicks: &mut Kicks) {
        if self.held_back.is_empty() {
            return;
        }
        let periods = self.periods();
        for _ in 0..MOST_REFILLED {
            let Some((index, gang_id)) = self.held_back.first().copied() else {
                return;
            };
            if index >= periods.index() {
                return;
            }
            self.work.step();
            self.let_go(gang_id);
            if self.has_spent(gang_id, periods) {
                self.hold_back(gang_id);
            }
            self.rebalance(gang_id, now, kicks);
        }
    }

    /// Whether a gang or one of its VMs has spent its budget.
    fn has_spent(&self, gang_id: GangId, periods: Periods) -> bool {
        self.gangs.get(&gang_id).is_some_and(|gang| {
            gang.budget.is_spent(gang.share, periods)
                || gang
                    .members
                    .iter()
                    .inspect(|_| self.work.step())
                    .filter_map(|id| self.vms.get(&self.vcpus.get(id)?.vm))
                    .any(|vm| vm.budget.is_spent(vm.share, periods))
        })
    }

    /// Until when nobody who is held back need be looked at: this period's end, or at once if a decision left some over.
    pub(crate) fn next_refill(&self, now: Ticks) -> Ticks {
        let Some((index, _)) = self.held_back.first() else {
            return Ticks::MAX;
        };
        let periods = self.periods();
        if *index < periods.index() {
            now + 1
        } else {
            periods.end().max(now + 1)
        }
    }

    /// If members wait that have spent a budget: sees to it that some CPU asks when the period ends. One that was idle or alone
    /// before may have been told never to.
    pub(crate) fn await_refill(&mut self, gang_id: GangId, now: Ticks, kicks: &mut Kicks) {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        if gang.held_back.is_none() || gang.waiting == 0 {
            return;
        }
        let next_refill = self.next_refill(now);
        let mut cpus = self.config.cpus.iter();
        let asks = |cpu: CpuId| {
            self.cpus
                .get(cpu.0 as usize)
                .is_some_and(|cpu| cpu.until <= next_refill)
        };
        if cpus.any(asks) {
            return;
        }
        let cpu_id = self.idle.iter().chain(self.config.cpus.iter()).next();
        if let Some(cpu_id) = cpu_id
            && let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize)
        {
            // Kicked once: what it is told next ends in time.
            cpu.until = now;
            kicks.add(cpu_id);
        }
    }

    /// How long a gang's vCPU may run until a budget is spent, and the end of the period; `None` for no bound.
    pub(crate) fn budget_end(
        &self,
        gang_id: GangId,
        vm_id: crate::VmId,
        now: Ticks,
    ) -> Option<Ticks> {
        let gang = self.gangs.get(&gang_id)?;
        let vm = self.vms.get(&vm_id)?;
        if gang.share.cap == 0 && vm.share.cap == 0 {
            return None;
        }
        let periods = self.periods();
        // All that run draw on it, and those that wait will.
        let drawing = gang.running + gang.waiting;
        let of_gang = gang
            .budget
            .left(gang.share, periods)
            .map(|left| left / u64::from(drawing.max(1)));
        let of_vm = vm
            .budget
            .left(vm.share, periods)
            .map(|left| left / u64::from(vm.vcpus.max(1)));
        let left = match (of_gang, of_vm) {
            (Some(of_gang), Some(of_vm)) => of_gang.min(of_vm),
            (of_gang, of_vm) => of_gang.or(of_vm)?,
        };
        // If fewer drew on it in fact, what is left is shared out again, but not in ever smaller pieces.
        let least = (self.config.rate_limit / 8).max(1);
        Some(
            now.saturating_add(left.max(least))
                .min(periods.end().max(now + 1)),
        )
    }
}
