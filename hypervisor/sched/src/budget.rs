//! Caps: what a share may consume in a period, and who has consumed it.
//!
//! Nothing is done for everybody when a period ends: each budget knows the period up to which it was paid, and those who were
//! held back are looked at again a few at a time.

use crate::config::Share;
use crate::ids::{CpuId, Kicks, Ticks};
use crate::scheduler::Scheduler;
use crate::state::GangId;

/// Gangs that one decision lets go after a period has ended.
const MOST_PAID: usize = 4;

/// Periods: how long they are, and which it is now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Periods {
    length: Ticks,
    index: u64,
}

impl Periods {
    /// What a share may consume in a period; `None` for no bound.
    fn allow(self, share: Share) -> Option<Ticks> {
        (share.cap != 0).then(|| {
            let ticks = u128::from(self.length) * u128::from(share.cap) / 100;
            Ticks::try_from(ticks).unwrap_or(Ticks::MAX).max(1)
        })
    }

    /// When this period ends.
    fn end(self) -> Ticks {
        self.index.saturating_add(1).saturating_mul(self.length)
    }
}

/// What has been consumed of a cap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Budget {
    /// Ticks consumed that no period up to `paid` has paid for.
    used: Ticks,
    paid: u64,
}

impl Budget {
    /// Ticks consumed that no period has paid for yet.
    fn used(self, share: Share, periods: Periods) -> Ticks {
        let gone = periods.index.saturating_sub(self.paid);
        if gone == 0 {
            return self.used;
        }
        let paid = periods.allow(share).unwrap_or(Ticks::MAX);
        self.used.saturating_sub(paid.saturating_mul(gone))
    }

    /// Takes note of what has been consumed up to now, under that share. Periods that have ended since pay for that, too: one
    /// that consumes all it may would else begin each period with nothing.
    pub(crate) fn spend(&mut self, ticks: Ticks, share: Share, periods: Periods) {
        self.used = self.used.saturating_add(ticks);
        self.used = self.used(share, periods);
        self.paid = periods.index;
    }

    /// What is left of this period; `None` for no bound.
    pub(crate) fn left(self, share: Share, periods: Periods) -> Option<Ticks> {
        let allowed = periods.allow(share)?;
        Some(allowed.saturating_sub(self.used(share, periods)))
    }

    pub(crate) fn is_spent(self, share: Share, periods: Periods) -> bool {
        self.left(share, periods) == Some(0)
    }
}

impl Scheduler {
    /// The periods as of now.
    pub(crate) fn periods(&self) -> Periods {
        let length = self.config.period.max(1);
        Periods {
            length,
            index: self.now / length,
        }
    }

    /// Somebody in a gang may have spent a budget: it is looked at again when the period has ended.
    pub(crate) fn hold_back(&mut self, gang_id: GangId) {
        let index = self.periods().index;
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
    pub(crate) fn pay(&mut self, now: Ticks, kicks: &mut Kicks) {
        let periods = self.periods();
        for _ in 0..MOST_PAID {
            let Some((index, gang_id)) = self.held_back.first().copied() else {
                return;
            };
            if index >= periods.index {
                return;
            }
            self.work.step();
            self.let_go(gang_id);
            if self.has_spent(gang_id, periods) {
                self.hold_back(gang_id);
            }
            self.settle(gang_id, now, kicks);
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
    pub(crate) fn pay_day(&self, now: Ticks) -> Ticks {
        let periods = self.periods();
        match self.held_back.first() {
            None => Ticks::MAX,
            Some((index, _)) if *index < periods.index => now + 1,
            Some(_) => periods.end().max(now + 1),
        }
    }

    /// If members wait that have spent a budget: sees to it that some CPU asks when the period ends. One that was idle or alone
    /// before may have been told never to.
    pub(crate) fn await_pay_day(&mut self, gang_id: GangId, now: Ticks, kicks: &mut Kicks) {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        if gang.held_back.is_none() || gang.waiting == 0 {
            return;
        }
        let pay_day = self.pay_day(now);
        let mut cpus = self.config.cpus.iter();
        let asks = |cpu: CpuId| {
            self.cpus
                .get(cpu.0 as usize)
                .is_some_and(|cpu| cpu.until <= pay_day)
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
        let periods = self.periods();
        let gang = self.gangs.get(&gang_id)?;
        let vm = self.vms.get(&vm_id)?;
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
