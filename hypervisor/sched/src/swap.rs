//! The commonest decision by itself: a CPU's vCPU gives way, or its slice is over, and one of another gang goes next.
//!
//! Where both gangs have one member, no cap and nothing to start together, and nobody is to be called but by this CPU, most of what
//! [`Scheduler::schedule`] looks after cannot matter. What is decided is the same, to the tick and to every count: tests have one
//! scheduler go this way and another not, and compare all that they hold (`tests/shortcuts.rs`).

use crate::config::Mode;
use crate::ids::{CpuId, CpuSet, GangId, Kicks, Ticks, VcpuId, VmId};
use crate::scheduler::{Decision, Scheduler, change_state};
use crate::state::{Gang, Places, State, Vcpu, Vm, consumed};
use crate::table::Table;

/// A vCPU and its gang.
pub(crate) type Member = (VcpuId, GangId);

/// Whom a swap concerns.
#[derive(Clone, Copy)]
struct Swap {
    /// Who runs, if anybody does, and where it could run.
    from: Option<(Member, CpuSet)>,
    /// Who goes next.
    to: Member,
}

impl Scheduler {
    /// Decides for a CPU that has no vCPU, or one that `is_to_go` or has come to the end of its slice or given way. `None` if that takes
    /// more than a swap.
    pub(crate) fn swap(&mut self, cpu_id: CpuId, is_to_go: bool, now: Ticks) -> Option<Decision> {
        let swap = self.find_swap(cpu_id, is_to_go, now)?;
        #[cfg(test)]
        self.shortcuts.as_mut().map(|taken| *taken += 1)?;
        let mut kicks = Kicks::NONE;
        if let Some((from, hard)) = swap.from {
            if self.compared_with_all != 0 {
                // Others come later in the order by that, if at all.
                self.charge_all(now);
            }
            self.leave(cpu_id, from, hard, now, &mut kicks)?;
        }
        self.away.remove(cpu_id);
        self.idle.remove(cpu_id);
        self.arrive_next(cpu_id, swap.to, now)?;
        let (next, _) = self.queue.next(cpu_id, None).unzip();
        let is_hurried = self.boosted != 0 && self.has_boosted(cpu_id);
        let is_wanted = self.is_wanted(cpu_id);
        let credit = self.gangs.get(&swap.to.1)?.credit;
        let limit = now.saturating_add(self.config.rate_limit);
        let cpu = self.cpus.get_mut(cpu_id.0 as usize)?;
        cpu.floor = cpu.floor.max(next.map_or(credit, |next| next.min(credit)));
        cpu.until = match (is_wanted, is_hurried) {
            (true, false) => cpu.slice_end.max(now + 1),
            (true, true) if now < limit => cpu.slice_end.min(limit).max(now + 1),
            (true, true) => cpu.slice_end.max(now + 1),
            (false, _) => Ticks::MAX,
        };
        kicks.0.remove(cpu_id);
        Some(Decision {
            run: Some(swap.to.0),
            until: cpu.until,
            previous: swap.from.map(|((id, _), _)| id),
            kicks,
        })
    }

    /// Looks whether a swap is all there is to it. Changes nothing.
    fn find_swap(&self, cpu_id: CpuId, is_to_go: bool, now: Ticks) -> Option<Swap> {
        if !self.queue.has_any(cpu_id) {
            return None;
        }
        let cpu = self.cpus.get(cpu_id.0 as usize)?;
        let nobody_is_called = cpu.reserved.is_none()
            && cpu.lent.is_none()
            && cpu.promised.is_none()
            && !cpu.is_loading
            && self.pending.is_none()
            && self.held_back.is_empty()
            && self.strict.shown().is_empty();
        if !nobody_is_called {
            return None;
        }
        let first = self.queue.next(cpu_id, None)?;
        if self.patience.next(cpu_id, None)?.0 <= now {
            return None;
        }
        let to_gang = first.1;
        let to_id = *self.gangs.get(&to_gang)?.members.first()?;
        self.lone(self.vcpus.get(&to_id)?, to_gang)?;
        let to = (to_id, to_gang);
        let Some(from_id) = cpu.current else {
            let last = cpu.last.and_then(|id| self.vcpus.get(&id));
            let last = last.and_then(|vcpu| self.gangs.get(&vcpu.gang));
            let is_preferred = last.is_some_and(|gang| gang.mode == Mode::Prefer);
            return (!is_preferred).then_some(Swap { from: None, to });
        };
        let from = self.vcpus.get(&from_id)?;
        let gang = self.lone(from, from.gang)?;
        let goes = from.yielded || is_to_go || now >= cpu.slice_end && now >= cpu.firm_until;
        let ran = consumed(now.saturating_sub(cpu.charged), gang.share.weight);
        let is_first = from.yielded || first < (gang.credit + ran, from.gang);
        // An idle CPU would be called for it; and one that has not run at all has waited on.
        let is_all = now != from.since && self.idle.intersection(from.hard).is_empty();
        (goes && is_first && is_all).then_some(Swap {
            from: Some(((from_id, from.gang), from.hard)),
            to,
        })
    }

    /// The gang of a vCPU, if that is its only member, without a cap and not one that is started as a whole.
    fn lone(&self, vcpu: &Vcpu, gang_id: GangId) -> Option<&Gang> {
        let gang = self.gangs.get(&gang_id)?;
        let vm = self.vms.get(&vcpu.vm)?;
        let is_lone = gang.members.len() == 1
            && matches!(gang.mode, Mode::Off | Mode::Balance)
            && gang.share.cap == 0
            && vm.share.cap == 0
            && !gang.is_held
            && gang.co_stopped == 0;
        is_lone.then_some(gang)
    }

    /// Takes the one that runs off its CPU, charged, and shows it to those that could start it.
    fn leave(
        &mut self,
        cpu_id: CpuId,
        from: Member,
        hard: CpuSet,
        now: Ticks,
        kicks: &mut Kicks,
    ) -> Option<()> {
        let (id, gang_id) = from;
        let preemptible = self.preemptible_cpus(self.vcpus.get(&id)?);
        let slice = self.config.slice;
        let (vcpu, gang, vm) = resolve(&mut self.vcpus, &mut self.gangs, &mut self.vms, from)?;
        let cpu = self.cpus.get_mut(cpu_id.0 as usize)?;
        let ran = now.saturating_sub(cpu.charged);
        vcpu.credit += ran;
        vcpu.progress.add(ran, vm.share.weight);
        vm.credit += consumed(ran, vm.share.weight);
        gang.credit += consumed(ran, gang.share.weight);
        cpu.end_run(now);
        let state = State::Waiting;
        change_state(
            vcpu,
            gang,
            &mut self.active_weight,
            vm.share.weight,
            slice,
            state,
            now,
        );
        // The one that goes first goes this time.
        vcpu.yielded = false;
        let places = Places {
            any: hard,
            preemptible,
            is_strict: false,
            credit: gang.credit,
            patience: (vcpu.patient_until, hard),
        };
        self.move_to(gang_id, None, Some(places));
        let mut others = hard;
        others.remove(cpu_id);
        for other in others.iter() {
            if let Some(cpu) = self.cpus.get_mut(other.0 as usize)
                && cpu.current.is_some()
                && cpu.until == Ticks::MAX
            {
                // Kicked once: what it is told next has an end.
                cpu.until = now;
                kicks.add(other);
            }
        }
        Some(())
    }

    /// Puts one on a CPU that has nobody, for a slice of its own.
    pub(crate) fn arrive_next(&mut self, cpu_id: CpuId, to: Member, now: Ticks) -> Option<()> {
        let (id, gang_id) = to;
        let slice = self.config.slice;
        let rate_limit = self.config.rate_limit.max(1);
        let (vcpu, gang, vm) = resolve(&mut self.vcpus, &mut self.gangs, &mut self.vms, to)?;
        let cpu = self.cpus.get_mut(cpu_id.0 as usize)?;
        cpu.begin_run(id, now);
        cpu.is_awaited = false;
        cpu.firm_until = 0;
        cpu.started = now;
        cpu.slice_end = now.saturating_add(slice);
        cpu.switches += 1;
        vcpu.yielded = false;
        if core::mem::take(&mut vcpu.boosted) {
            self.boosted -= 1;
            cpu.slice_end = now.saturating_add(rate_limit);
        }
        cpu.slot_until = gang.slot_until;
        if cpu.slot_until > now {
            cpu.slice_end = cpu.slot_until;
        }
        vcpu.switches += 1;
        vcpu.migrations += u64::from(vcpu.last_cpu.is_some_and(|last| last != cpu_id));
        vcpu.last_cpu = Some(cpu_id);
        gang.note_hazard(now);
        gang.arriving += 1;
        let state = State::Running(cpu_id);
        change_state(
            vcpu,
            gang,
            &mut self.active_weight,
            vm.share.weight,
            slice,
            state,
            now,
        );
        if let Some(places) = gang.queued {
            self.move_to(gang_id, Some(places), None);
        }
        Some(())
    }
}

/// A vCPU, its gang and its VM.
type Resolved<'a> = (&'a mut Vcpu, &'a mut Gang, &'a mut Vm);

fn resolve<'a>(
    vcpus: &'a mut Table<VcpuId, Vcpu>,
    gangs: &'a mut Table<GangId, Gang>,
    vms: &'a mut Table<VmId, Vm>,
    (id, gang_id): Member,
) -> Option<Resolved<'a>> {
    let vcpu = vcpus.get_mut(&id)?;
    let vm = vms.get_mut(&vcpu.vm)?;
    Some((vcpu, gangs.get_mut(&gang_id)?, vm))
}
