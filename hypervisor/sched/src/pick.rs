//! Choosing what a CPU runs next, and until when.

use crate::config::Mode;
use crate::ids::{CpuId, GangId, Kicks, Ticks, VcpuId};
use crate::scheduler::{Decision, Scheduler};
use crate::state::{Credit, Gang, State, Vcpu, consumed};

/// Strict gangs that are asked in one decision whether they could start: each costs its members and the CPUs.
const MOST_ASKED: u32 = 4;

/// What of a gang a CPU could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Here(VcpuId),
    /// Only if the CPU would be idle otherwise.
    Rather(VcpuId),
    Nothing,
}

fn gang_of(scheduler: &Scheduler, id: VcpuId) -> Option<&Gang> {
    scheduler.gangs.get(&scheduler.vcpus.get(&id)?.gang)
}

impl Scheduler {
    /// What `cpu` is to run now. To be called when a slice ends, after a block or yield, and when kicked.
    pub fn schedule(&mut self, cpu_id: CpuId, now: Ticks) -> Decision {
        let now = self.advance(now);
        if let Some(decision) = self.swap(cpu_id, false, now) {
            return decision;
        }
        let mut kicks = Kicks::NONE;
        self.take_note(cpu_id);
        self.away.remove(cpu_id);
        self.refill(now, &mut kicks);
        self.charge(cpu_id, now);
        let Some(cpu) = self.cpus.get(cpu_id.0 as usize).copied() else {
            return Decision {
                run: None,
                until: Ticks::MAX,
                previous: None,
                kicks,
            };
        };
        self.idle.remove(cpu_id);
        let previous = cpu.current;
        let gang = previous.and_then(|id| Some(self.vcpus.get(&id)?.gang));
        if let Some(gang) = gang {
            self.co_stop(gang, now, &mut kicks);
        }
        let next = match previous {
            Some(id) if self.keeps(cpu_id, id, now) => Some(id),
            Some(id) => {
                if let Some(mut decision) = self.swap(cpu_id, true, now) {
                    decision.kicks = decision.kicks.and(kicks);
                    decision.kicks.0.remove(cpu_id);
                    return decision;
                }
                // Members that run elsewhere have consumed time, too: without that a gang would look as if it had run on one
                // CPU only, to the first CPU that asks when its slot ends.
                if self.compared_with_all != 0 {
                    self.charge_all(now);
                } else if let Some(gang) = gang {
                    self.charge_gang(gang, now);
                }
                self.put_back(cpu_id, id, now);
                if let Some(gang) = gang {
                    // One that is no longer run may let another go.
                    self.co_stop(gang, now, &mut kicks);
                    self.requeue(gang);
                }
                self.choose(cpu_id, Some(id), now, &mut kicks)
            }
            None => self.choose(cpu_id, None, now, &mut kicks),
        };
        if let Some(slot) = self.cpus.get_mut(cpu_id.0 as usize) {
            slot.reserved = None;
            slot.promised = None;
        }
        if let Some(vcpu) = previous.and_then(|id| self.vcpus.get_mut(&id)) {
            // Others have gone first.
            vcpu.yielded = false;
        }
        if let Some(id) = next {
            self.put_on(cpu_id, id, previous, now);
            if previous != Some(id) || now >= cpu.slot_until {
                self.start_gang(cpu_id, id, now, &mut kicks);
                self.begin_slot(cpu_id, id, now);
            }
        }
        // Whoever is now kept waiting is looked after: another CPU may be idle, or run without end.
        let chosen = next.and_then(|id| Some(self.vcpus.get(&id)?.gang));
        let reserved = cpu
            .reserved
            .filter(|id| Some(*id) != next)
            .and_then(|id| Some(self.vcpus.get(&id)?.gang));
        // A CPU that was to take somebody and took another passes the word on. One that could take nobody does not: whoever
        // refused it would refuse the next.
        let passed_on = [reserved, cpu.promised]
            .into_iter()
            .flatten()
            .filter(|passed_on| chosen.is_some_and(|chosen| chosen != *passed_on));
        let chosen_too = chosen.filter(|chosen| gang != Some(*chosen));
        for touched in [gang, chosen_too].into_iter().flatten().chain(passed_on) {
            self.rebalance(touched, now, &mut kicks);
        }
        kicks.0.remove(cpu_id);
        if next.is_none() {
            // Only now: it has just looked, and need not be kicked for what it did not find.
            self.idle.insert(cpu_id);
        }
        if let Some(id) = next {
            self.note_floor(cpu_id, id);
        }
        let until = self.until(cpu_id, next, now);
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.until = until;
        }
        Decision {
            run: next,
            until,
            previous: previous.filter(|id| Some(*id) != next),
            kicks,
        }
    }

    /// Whether the vCPU on a CPU goes on without being compared with others.
    fn keeps(&self, cpu_id: CpuId, id: VcpuId, now: Ticks) -> bool {
        let (Some(cpu), Some(vcpu)) = (self.cpus.get(cpu_id.0 as usize), self.vcpus.get(&id))
        else {
            return false;
        };
        let Some(gang) = self.gangs.get(&vcpu.gang) else {
            return false;
        };
        if vcpu.yielded || !vcpu.hard.contains(cpu_id) || self.is_spent(vcpu) || self.is_ahead(vcpu)
        {
            return false;
        }
        if now < cpu.firm_until {
            return true;
        }
        if self.is_reserved(cpu_id, id) {
            return false;
        }
        if gang.mode.is_gang() && now < cpu.slot_until {
            return true;
        }
        if self
            .overdue_start(cpu_id, now)
            .is_some_and(|other| other != vcpu.gang)
        {
            return false;
        }
        now < cpu.slice_end && !self.is_outdone(cpu_id, vcpu, now.saturating_sub(cpu.started))
    }

    /// Whether somebody else has been chosen for this CPU, and can come.
    fn is_reserved(&self, cpu_id: CpuId, id: VcpuId) -> bool {
        self.reservation(cpu_id).is_some_and(|other| other != id)
    }

    /// Who was chosen for this CPU, if that still holds.
    pub(crate) fn reservation(&self, cpu_id: CpuId) -> Option<VcpuId> {
        let id = self.cpus.get(cpu_id.0 as usize)?.reserved?;
        let vcpu = self.vcpus.get(&id)?;
        (self.is_startable(vcpu) && vcpu.hard.contains(cpu_id)).then_some(id)
    }

    /// Whether one that waits should take the CPU before the slice has ended: it was boosted, or has consumed so much less
    /// that the rate limit's time does not make up for it.
    fn is_outdone(&self, cpu_id: CpuId, current: &Vcpu, ran: Ticks) -> bool {
        if ran < self.config.rate_limit {
            return false;
        }
        let Some(mine) = self.gangs.get(&current.gang) else {
            return true;
        };
        let mut last = None;
        // The first that could come decides: later ones have consumed more. Boosted ones are looked for among a few.
        for _ in 0..4 {
            let Some((credit, gang_id)) = self.next_gang(cpu_id, last) else {
                return false;
            };
            last = Some((credit, gang_id));
            if gang_id == current.gang {
                continue;
            }
            let Some(gang) = self.gangs.get(&gang_id) else {
                continue;
            };
            if let Found::Here(id) = self.find(gang_id, cpu_id, None) {
                let boosted = self.vcpus.get(&id).is_some_and(|vcpu| vcpu.boosted);
                let margin = consumed(self.config.rate_limit, gang.share.weight);
                if credit + margin <= mine.credit
                    || boosted && credit <= mine.credit + self.boost_limit(gang_id)
                {
                    return true;
                }
            }
        }
        false
    }

    /// How much more than others a boosted one's gang may have consumed.
    pub(crate) fn boost_limit(&self, gang: GangId) -> Credit {
        self.gangs
            .get(&gang)
            .map_or(0, |gang| consumed(self.config.slice, gang.share.weight))
    }

    /// The run that has begun on a CPU is in its gang's slot.
    pub(crate) fn begin_slot(&mut self, cpu_id: CpuId, id: VcpuId, now: Ticks) {
        let end = gang_of(self, id).map_or(0, |gang| gang.slot_until);
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.slot_until = end;
            cpu.slice_end = if end > now { end } else { cpu.slice_end };
        }
    }

    /// Takes a vCPU off its CPU. Its gang's place in the queues is the caller's to bring up to date.
    pub(crate) fn put_back(&mut self, cpu_id: CpuId, id: VcpuId, now: Ticks) {
        self.vacate(cpu_id, now);
        self.idle.remove(cpu_id);
        let ahead = self.vcpus.get(&id).is_some_and(|vcpu| self.is_ahead(vcpu));
        let state = if ahead {
            State::CoStopped
        } else {
            State::Waiting
        };
        self.set_state(id, state, now);
    }

    pub(crate) fn put_on(
        &mut self,
        cpu_id: CpuId,
        id: VcpuId,
        previous: Option<VcpuId>,
        now: Ticks,
    ) {
        let slice_end = now.saturating_add(self.config.slice);
        let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) else {
            return;
        };
        let is_lent = cpu.lent.take() == Some(id);
        let is_new_slice = previous != Some(id) && !is_lent || now >= cpu.slice_end;
        if cpu.current == Some(id) {
            // Kept: the slice goes on.
            return;
        }
        cpu.begin_run(id, now);
        if is_new_slice {
            cpu.started = now;
            cpu.slice_end = slice_end;
        }
        let changed = previous != Some(id);
        if changed {
            cpu.switches += 1;
        }
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            vcpu.yielded = false;
            if core::mem::take(&mut vcpu.boosted) {
                self.boosted -= 1;
                let end = now.saturating_add(self.config.rate_limit.max(1));
                cpu.slice_end = if is_lent { end.min(cpu.slice_end) } else { end };
            }
            if changed {
                vcpu.switches += 1;
            }
            if vcpu.last_cpu.is_some_and(|last| last != cpu_id) {
                vcpu.migrations += 1;
            }
            vcpu.last_cpu = Some(cpu_id);
        }
        let gang_id = self.vcpus.get(&id).map(|vcpu| vcpu.gang);
        if let Some(gang) = gang_id.and_then(|id| self.gangs.get_mut(&id)) {
            gang.note_hazard(now);
            gang.arriving += 1;
        }
        self.set_state(id, State::Running(cpu_id), now);
        if let Some(gang) = gang_id {
            self.requeue(gang);
        }
    }

    /// The next vCPU for a CPU that has none. `previous` ran there just now.
    fn choose(
        &mut self,
        cpu_id: CpuId,
        previous: Option<VcpuId>,
        now: Ticks,
        kicks: &mut Kicks,
    ) -> Option<VcpuId> {
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.firm_until = 0;
        }
        if !self.is_wanted(cpu_id) {
            return None;
        }
        // A strict gang that has started starts whole: it was asked first whether somebody has waited too long.
        let reserved = self.reservation(cpu_id);
        if let Some(id) = reserved
            && gang_of(self, id).is_some_and(|gang| gang.mode == Mode::Strict)
        {
            return Some(id);
        }
        if let Some(id) = self.due(cpu_id, now, kicks) {
            return Some(id);
        }
        if let Some(id) = self.impatient(cpu_id, now, kicks) {
            return Some(id);
        }
        if reserved.is_some() {
            return reserved;
        }
        if let Some(id) = self.preferred(cpu_id) {
            return Some(id);
        }
        let (mut last, mut asked, mut fallback) = (None, 0, None);
        loop {
            let passed = last;
            last = if asked < MOST_ASKED {
                self.next_gang(cpu_id, last)
            } else {
                self.queue.next(cpu_id, last)
            };
            let Some((_, gang_id)) = last else {
                break;
            };
            // Charged for what it runs elsewhere it may come later in the order.
            if self.compared_with_all == 0 && self.charge_gang(gang_id, now) {
                last = passed;
                continue;
            }
            match self.find(gang_id, cpu_id, previous) {
                Found::Nothing => {}
                Found::Rather(id) => fallback = fallback.or(Some((gang_id, id))),
                Found::Here(id) => {
                    if self.may_start_strict(cpu_id, gang_id, id, now, kicks) {
                        return Some(id);
                    }
                    asked += 1;
                }
            }
        }
        // Rather than nobody, one that may not drive anybody off here.
        while let Some((credit, gang_id)) = self.spare.next(cpu_id, last) {
            last = Some((credit, gang_id));
            if let Found::Here(id) | Found::Rather(id) = self.find(gang_id, cpu_id, previous) {
                return Some(id);
            }
        }
        let (gang_id, id) = fallback?;
        self.may_start_strict(cpu_id, gang_id, id, now, kicks)
            .then_some(id)
    }

    /// A member of the strict gang that has waited too long and whose start has come.
    fn due(&mut self, cpu_id: CpuId, now: Ticks, kicks: &mut Kicks) -> Option<VcpuId> {
        let gang_id = self.overdue_start(cpu_id, now)?;
        match self.find(gang_id, cpu_id, None) {
            Found::Here(id) | Found::Rather(id)
                if self.may_start_strict(cpu_id, gang_id, id, now, kicks) =>
            {
                Some(id)
            }
            _ => None,
        }
    }

    /// One that has waited for longer than its weight explains.
    fn impatient(&mut self, cpu_id: CpuId, now: Ticks, kicks: &mut Kicks) -> Option<VcpuId> {
        let (mut last, mut asked) = (None, 0);
        while asked < MOST_ASKED
            && let Some((time, gang_id)) = self.patience.next(cpu_id, last)
            && time <= now
        {
            last = Some((time, gang_id));
            asked += 1;
            let Some(id) = self.least_patient(gang_id, cpu_id) else {
                continue;
            };
            if !self.may_start_strict(cpu_id, gang_id, id, now, kicks) {
                continue;
            }
            let mut end = now.saturating_add(self.config.slice);
            if let Some((start, pending)) = self.pending
                && start > now
                && pending != gang_id
                && self.is_overdue(pending, now)
            {
                end = end.min(start);
            }
            if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
                cpu.firm_until = end;
            }
            return Some(id);
        }
        None
    }

    /// The member of a gang that has waited longest, as its weight counts, of those that a CPU could start.
    fn least_patient(&self, gang_id: GangId, cpu_id: CpuId) -> Option<VcpuId> {
        self.gangs
            .get(&gang_id)?
            .members
            .iter()
            .inspect(|_| self.work.step())
            .filter_map(|id| Some((*id, self.vcpus.get(id)?)))
            .filter(|(_, vcpu)| vcpu.hard.contains(cpu_id) && self.is_startable(vcpu))
            .min_by_key(|(_, vcpu)| vcpu.patient_until)
            .map(|(id, _)| id)
    }

    /// Whether somebody outside a gang has waited too long for a CPU, or a strict gang that has is to start there now.
    pub(crate) fn is_awaited(&self, cpu_id: CpuId, gang: GangId, now: Ticks) -> bool {
        let mut first = self.patience.next(cpu_id, None);
        if first.is_some_and(|(_, first)| first == gang) {
            first = self.patience.next(cpu_id, first);
        }
        first.is_some_and(|(time, _)| time <= now)
            || self
                .overdue_start(cpu_id, now)
                .is_some_and(|other| other != gang)
    }

    /// Prefer mode: another member of the group that ran here goes next, unless the group has consumed too much by that.
    fn preferred(&mut self, cpu_id: CpuId) -> Option<VcpuId> {
        let last = self.cpus.get(cpu_id.0 as usize)?.last?;
        let gang_id = self.vcpus.get(&last)?.gang;
        let gang = self.gangs.get(&gang_id)?;
        if gang.mode != Mode::Prefer {
            return None;
        }
        // As if each member had one slice, one after the other.
        let bound = consumed(
            self.config.slice.saturating_mul(gang.members.len() as u64),
            gang.share.weight,
        );
        let credit = gang.credit;
        if credit > self.active_floor() + bound {
            return None;
        }
        match self.find(gang_id, cpu_id, Some(last)) {
            Found::Here(id) if id != last => Some(id),
            _ => None,
        }
    }

    /// The member of a gang that a CPU should start: one that was not told to let others go first; a boosted one; of the VM and
    /// the vCPU that have consumed least; one that was here before.
    pub(crate) fn find(&self, gang_id: GangId, cpu_id: CpuId, previous: Option<VcpuId>) -> Found {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return Found::Nothing;
        };
        let best = gang
            .members
            .iter()
            .inspect(|_| self.work.step())
            .filter_map(|id| Some((*id, self.vcpus.get(id)?)))
            .filter(|(_, vcpu)| vcpu.hard.contains(cpu_id) && self.is_startable(vcpu))
            .map(|(id, vcpu)| (id, vcpu, self.preemptible_cpus(vcpu).contains(cpu_id)))
            .min_by_key(|(id, vcpu, may_preempt)| {
                (
                    !may_preempt || vcpu.yielded,
                    !may_preempt,
                    !vcpu.boosted,
                    gang.mode == Mode::Prefer && Some(*id) == previous,
                    self.vms.get(&vcpu.vm).map_or(0, |vm| vm.credit),
                    vcpu.credit,
                    vcpu.last_cpu != Some(cpu_id),
                )
            });
        match best {
            None => Found::Nothing,
            Some((id, vcpu, may_preempt)) if vcpu.yielded || !may_preempt => Found::Rather(id),
            Some((id, ..)) => Found::Here(id),
        }
    }

    pub(crate) fn is_startable(&self, vcpu: &Vcpu) -> bool {
        vcpu.state == State::Waiting && !self.is_spent(vcpu)
    }

    /// Whether its gang or VM has consumed what the cap allows in this period.
    pub(crate) fn is_spent(&self, vcpu: &Vcpu) -> bool {
        // Nearly always there is no cap, and this is asked for every member that a decision looks at.
        let gang = self.gangs.get(&vcpu.gang);
        let vm = self.vms.get(&vcpu.vm);
        gang.is_some_and(|gang| {
            gang.share.cap != 0 && gang.budget.is_spent(gang.share, self.periods())
        }) || vm.is_some_and(|vm| vm.share.cap != 0 && vm.budget.is_spent(vm.share, self.periods()))
    }

    /// Until when a decision holds.
    pub(crate) fn until(&self, cpu_id: CpuId, next: Option<VcpuId>, now: Ticks) -> Ticks {
        let mut until = self.next_refill(now);
        // One whose time has come has been looked at; if it is not here any more, nobody asks for it again.
        if let Some((start, _)) = self.pending
            && start > now
        {
            until = until.min(start);
        }
        let Some((id, vcpu)) = next.and_then(|id| Some((id, self.vcpus.get(&id)?))) else {
            if self.strict.has_any(cpu_id) {
                // Whatever becomes of the start that was set, those that wait for it are looked at again.
                until = until.min(now.saturating_add(self.config.slice.max(1)));
            }
            return until;
        };
        let (Some(cpu), Some(gang)) =
            (self.cpus.get(cpu_id.0 as usize), self.gangs.get(&vcpu.gang))
        else {
            return until;
        };
        if self.is_wanted(cpu_id) {
            let end = if gang.mode.is_gang() && cpu.slot_until > now {
                cpu.slot_until
            } else {
                cpu.slice_end
            };
            let limit = cpu.started.saturating_add(self.config.rate_limit);
            let end = if now < limit && self.has_boosted(cpu_id) {
                end.min(limit)
            } else {
                end
            };
            // Whoever waited too long keeps the CPU until then, whatever else ends before.
            let end = end.max(cpu.firm_until);
            until = until.min(end.max(now + 1));
        }
        if let Some(end) = self.budget_end(vcpu.gang, vcpu.vm, now) {
            until = until.min(end);
        }
        if let Some(ticks) = self.ticks_to_skew(id, vcpu, gang) {
            until = until.min(now.saturating_add(ticks.max(1)));
        }
        until
    }

    pub(crate) fn has_boosted(&self, cpu_id: CpuId) -> bool {
        self.boosted != 0
            && self.next_gang(cpu_id, None).is_some_and(|(_, gang)| {
                match self.find(gang, cpu_id, None) {
                    Found::Here(id) => self.vcpus.get(&id).is_some_and(|vcpu| vcpu.boosted),
                    _ => false,
                }
            })
    }
}
