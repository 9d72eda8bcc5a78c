//! Gangs: starting members together, and stopping those that get ahead of one that is kept waiting.

use alloc::vec::Vec;

use crate::config::Mode;
use crate::ids::{CpuId, CpuSet, GangId, Kicks, Ticks, VcpuId};
use crate::scheduler::Scheduler;
use crate::state::{Gang, State, Vcpu, consumed};

impl Scheduler {
    /// A member has been put on a CPU: the others that can run are to run beside it, on CPUs that are idle or run no gang's
    /// slot, and until the same time.
    pub(crate) fn start_gang(&mut self, cpu_id: CpuId, id: VcpuId, now: Ticks, kicks: &mut Kicks) {
        let Some(gang_id) = self.vcpus.get(&id).map(|vcpu| vcpu.gang) else {
            return;
        };
        let slice = self.config.slice;
        let room = match self.pending {
            // A strict gang is to start then: nobody holds CPUs beyond that.
            Some((start, pending)) if pending != gang_id && start > now => start,
            _ => Ticks::MAX,
        };
        if !self
            .gangs
            .get(&gang_id)
            .is_some_and(|gang| gang.mode.is_gang())
        {
            return;
        }
        if self.pending.is_some_and(|(_, pending)| pending == gang_id) {
            self.pending = None;
        }
        let has_waiting = self
            .gangs
            .get(&gang_id)
            .is_some_and(|gang| gang.waiting != 0);
        let placed = if has_waiting {
            self.placement(gang_id, cpu_id, id, now).placed
        } else {
            Vec::new()
        };
        if let Some(gang) = self.gangs.get_mut(&gang_id)
            && now >= gang.slot_until
        {
            gang.slot_until = now.saturating_add(slice).min(room);
        }
        self.extend_slots(gang_id, now);
        let mut touched = Vec::new();
        for (member, cpu) in placed {
            // One that runs goes on where it is, or comes when it has been driven off.
            if self
                .vcpus
                .get(&member)
                .is_some_and(|vcpu| self.is_startable(vcpu))
            {
                touched.extend(self.send_to(cpu, member, now));
                kicks.add(cpu);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for other in touched.into_iter().filter(|other| *other != gang_id) {
            self.rebalance(other, now, kicks);
        }
    }

    /// Puts a member on another CPU, which takes note when it is kicked: one decision starts the whole gang, and none of its CPUs
    /// waits for the decisions of the others. The gangs of those that are driven off or put off.
    fn send_to(
        &mut self,
        cpu_id: CpuId,
        member: VcpuId,
        now: Ticks,
    ) -> impl Iterator<Item = GangId> + use<> {
        let previous = self.current(cpu_id);
        let reserved = self
            .cpus
            .get(cpu_id.0 as usize)
            .and_then(|cpu| cpu.reserved);
        let gang_of = |scheduler: &Scheduler, id: Option<VcpuId>| {
            id.and_then(|id| Some(scheduler.vcpus.get(&id)?.gang))
        };
        let others = [gang_of(self, previous), gang_of(self, reserved)];
        if let Some(previous) = previous {
            self.put_back(cpu_id, previous, now);
            if let [Some(gang), _] = others {
                self.requeue(gang);
            }
        }
        self.idle.remove(cpu_id);
        self.put_on(cpu_id, member, previous, now);
        self.begin_slot(cpu_id, member, now);
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.is_awaited = true;
            cpu.reserved = None;
            cpu.firm_until = 0;
            // It is about to ask.
            cpu.until = now;
        }
        others.into_iter().flatten()
    }

    /// Members that run already, and whose slot has ended, go on in the new slot if they may.
    fn extend_slots(&mut self, gang_id: GangId, now: Ticks) {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        let end = gang.slot_until;
        for member in &gang.members {
            self.work.step();
            let Some(Vcpu {
                state: State::Running(cpu_id),
                ..
            }) = self.vcpus.get(member)
            else {
                continue;
            };
            let has_ended = self
                .cpus
                .get(cpu_id.0 as usize)
                .is_some_and(|cpu| cpu.slot_until <= now);
            if has_ended
                && matches!(self.stay(gang_id, gang, *cpu_id, now), Vacancy::Now(_))
                && let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize)
            {
                cpu.slot_until = end;
                cpu.slice_end = end;
            }
        }
    }

    /// Whether a CPU may start that member now. A strict gang starts only if all members that can run find a CPU; if some do
    /// not, the gang's start is set for when they will.
    pub(crate) fn may_start_strict(
        &mut self,
        cpu_id: CpuId,
        gang_id: GangId,
        id: VcpuId,
        now: Ticks,
        kicks: &mut Kicks,
    ) -> bool {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return false;
        };
        if gang.mode != Mode::Strict || now < gang.slot_until {
            return true;
        }
        let cpus = gang.queued.map_or(CpuSet::EMPTY, |places| places.any);
        let placement = self.placement(gang_id, cpu_id, id, now);
        let Some(free) = placement.free_at else {
            return true;
        };
        // Only the first in line makes others wait; one whose time has gone by is forgotten, unless it has waited too long.
        let is_other_first = self.pending.is_some_and(|(start, pending)| {
            pending != gang_id
                && (self.is_overdue(pending, now) || start > now && !self.is_overdue(gang_id, now))
        });
        if !is_other_first {
            self.pending = Some((free, gang_id));
            // Idle CPUs are to look again then: the one that asks now may have something else to do by that time.
            for idle in self.idle.intersection(cpus).iter() {
                if let Some(cpu) = self.cpus.get_mut(idle.0 as usize)
                    && cpu.until > free
                {
                    cpu.until = free;
                    kicks.add(idle);
                }
            }
        }
        false
    }

    /// Whether a strict gang has waited for longer than its weight explains.
    pub(crate) fn is_overdue(&self, gang_id: GangId, now: Ticks) -> bool {
        self.gangs
            .get(&gang_id)
            .and_then(|gang| gang.queued)
            .is_some_and(|places| places.is_strict && places.patience.0 <= now)
    }

    /// The strict gang that has waited too long, whose start has come, and that a CPU could run: nobody else starts there.
    pub(crate) fn overdue_start(&self, cpu_id: CpuId, now: Ticks) -> Option<GangId> {
        let (_, gang_id) = self.pending.filter(|(start, _)| *start <= now)?;
        let places = self.gangs.get(&gang_id)?.queued?;
        (places.any.contains(cpu_id) && self.is_overdue(gang_id, now)).then_some(gang_id)
    }

    /// Who could run where if `first` runs on `cpu_id`.
    fn placement(&self, gang_id: GangId, cpu_id: CpuId, first: VcpuId, now: Ticks) -> Placement {
        let mut placement = Placement {
            placed: Vec::new(),
            free_at: None,
        };
        let Some(gang) = self.gangs.get(&gang_id) else {
            return placement;
        };
        let mut taken = CpuSet::single(cpu_id);
        let mut waiting: Vec<(VcpuId, &Vcpu)> = gang
            .members
            .iter()
            .inspect(|_| self.work.step())
            .filter(|member| **member != first)
            .filter_map(|member| Some((*member, self.vcpus.get(member)?)))
            .filter(|(_, vcpu)| {
                self.is_startable(vcpu) || gang.mode == Mode::Strict && self.slot_is_over(vcpu, now)
            })
            .collect();
        // Those that have waited too long first, then those with the least choice, which otherwise would always win.
        waiting.sort_by_key(|(_, vcpu)| {
            let is_patient = vcpu.state != State::Waiting || vcpu.patient_until > now;
            (is_patient, vcpu.hard.len(), vcpu.progress.ticks)
        });
        for (member, vcpu) in waiting {
            let mut best = None;
            let mut free_at: Option<Ticks> = None;
            for cpu in vcpu.hard.without(taken).iter() {
                self.work.step();
                let vacancy = if vcpu.state == State::Running(cpu) {
                    self.stay(gang_id, gang, cpu, now)
                } else {
                    self.vacancy(gang_id, gang, cpu, member, now)
                };
                match vacancy {
                    Vacancy::Never => {}
                    Vacancy::At(time) => {
                        free_at = Some(free_at.map_or(time, |old| old.min(time)));
                    }
                    Vacancy::Now(cost) => {
                        let rank = (
                            cost,
                            !vcpu.soft.contains(cpu),
                            vcpu.last_cpu != Some(cpu),
                            cpu,
                        );
                        if best.is_none_or(|old| rank < old) {
                            best = Some(rank);
                        }
                    }
                }
            }
            if let Some((.., cpu)) = best {
                taken.insert(cpu);
                placement.placed.push((member, cpu));
            } else if let Some(time) = free_at {
                placement.free_at =
                    Some(placement.free_at.map_or(time, |old: Ticks| old.max(time)));
            }
            // Else there are more members than CPUs: the rest comes in the next slot.
        }
        placement
    }

    /// Whether a vCPU runs beyond the end of its gang's slot.
    fn slot_is_over(&self, vcpu: &Vcpu, now: Ticks) -> bool {
        match vcpu.state {
            State::Running(cpu) => self
                .cpus
                .get(cpu.0 as usize)
                .is_some_and(|cpu| cpu.slot_until <= now),
            _ => false,
        }
    }

    /// Whether a member that runs where its slot has ended may go on: nobody has waited too long for the CPU or consumed less
    /// than the whole gang could make up for in a slot.
    fn stay(&self, gang_id: GangId, gang: &Gang, cpu_id: CpuId, now: Ticks) -> Vacancy {
        if !self.is_wanted(cpu_id) {
            return Vacancy::Now(0);
        }
        let slot = self.config.slice.saturating_mul(gang.members.len() as u64);
        let margin = consumed(slot, gang.share.weight);
        let is_outdone = self
            .next_gang(cpu_id, None)
            .is_some_and(|(credit, _)| gang.credit > credit + margin);
        if self.is_awaited(cpu_id, gang_id, now) || is_outdone && !self.is_overdue(gang_id, now) {
            return Vacancy::At(now + self.config.slice / 8 + 1);
        }
        Vacancy::Now(0)
    }

    /// Whether a CPU can be had for a member of a gang, and at what cost.
    fn vacancy(
        &self,
        gang_id: GangId,
        gang: &Gang,
        cpu_id: CpuId,
        member: VcpuId,
        now: Ticks,
    ) -> Vacancy {
        let Some(cpu) = self.cpus.get(cpu_id.0 as usize) else {
            return Vacancy::Never;
        };
        if self.away.contains(cpu_id) {
            return Vacancy::Never;
        }
        if let Some(reserved) = cpu.reserved
            && reserved != member
            && let Some(other) = self.vcpus.get(&reserved)
            && self.is_startable(other)
        {
            if other.gang == gang_id {
                return Vacancy::Never;
            }
            if let Some(time) = self.slot_end(other.gang, now) {
                return Vacancy::At(time);
            }
        }
        // One that has waited too long takes what it can get, but for what others were given until a set time.
        let is_overdue = self.is_overdue(gang_id, now);
        if !is_overdue && self.is_awaited(cpu_id, gang_id, now) {
            return Vacancy::At(cpu.slice_end.max(now + self.config.slice / 8 + 1));
        }
        let Some(current) = cpu.current.and_then(|id| self.vcpus.get(&id)) else {
            return Vacancy::Now(0);
        };
        if now < cpu.firm_until {
            return Vacancy::At(cpu.firm_until);
        }
        if current.gang == gang_id {
            // Gang-mates are not driven off while their slot lasts; afterwards they take turns.
            return if now < cpu.slot_until && !current.yielded {
                Vacancy::Never
            } else {
                Vacancy::Now(u128::MAX)
            };
        }
        let Some(other) = self.gangs.get(&current.gang) else {
            return Vacancy::Never;
        };
        if other.mode.is_gang() && now < cpu.slot_until {
            return Vacancy::At(cpu.slot_until);
        }
        let ran = now.saturating_sub(cpu.charged);
        let theirs = other.credit + consumed(ran, other.share.weight);
        let slot = self.config.slice.saturating_mul(gang.members.len() as u64);
        if !is_overdue && gang.credit > theirs + consumed(slot, gang.share.weight) {
            // What the gang consumes elsewhere gives it no right to this CPU, too.
            return Vacancy::At(cpu.slice_end.max(now + self.config.slice / 8 + 1));
        }
        // The one that has consumed most gives way.
        Vacancy::Now(u128::MAX - theirs)
    }

    /// When the slot of a gang ends, if it has one now.
    fn slot_end(&self, gang: GangId, now: Ticks) -> Option<Ticks> {
        let gang = self.gangs.get(&gang)?;
        (gang.mode.is_gang() && now < gang.slot_until).then_some(gang.slot_until)
    }
}

/// Where the other members of a gang could run.
struct Placement {
    placed: Vec<(VcpuId, CpuId)>,
    /// When all that found no CPU will; `None` if nobody is kept waiting by another gang's slot.
    free_at: Option<Ticks>,
}

enum Vacancy {
    /// With this cost.
    Now(u128),
    At(Ticks),
    Never,
}
