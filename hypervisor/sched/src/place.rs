//! Where gangs stand in the queues, and which CPUs are to hear of those that wait.

use alloc::vec::Vec;

use crate::config::Mode;
use crate::ids::{CpuId, CpuSet, GangId, Kicks, Ticks, VcpuId};
use crate::scheduler::Scheduler;
use crate::state::{Credit, Places, Vcpu, consumed};

impl Scheduler {
    /// Brings a gang's place in the queues up to date.
    pub(crate) fn requeue(&mut self, gang_id: GangId) {
        self.release_refilled(gang_id);
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        if gang.waiting == 0 && gang.queued.is_none() {
            return;
        }
        let mut fresh: Option<Places> = None;
        for id in &gang.members {
            self.work.step();
            let Some(vcpu) = self.vcpus.get(id) else {
                continue;
            };
            if !self.is_startable(vcpu) {
                continue;
            }
            let preemptible = if vcpu.yielded {
                CpuSet::EMPTY
            } else {
                self.preemptible_cpus(vcpu)
            };
            let patience = (vcpu.patient_until, vcpu.hard);
            fresh = Some(match fresh {
                None => Places {
                    any: vcpu.hard,
                    preemptible,
                    is_strict: gang.mode == Mode::Strict,
                    credit: gang.credit,
                    patience,
                },
                Some(places) => Places {
                    any: places.any.union(vcpu.hard),
                    preemptible: places.preemptible.union(preemptible),
                    patience: places.patience.min(patience),
                    ..places
                },
            });
        }
        if fresh != gang.queued {
            self.move_to(gang_id, gang.queued, fresh);
        }
    }

    /// Takes a gang out of the queues and puts it in elsewhere.
    pub(crate) fn move_to(&mut self, gang: GangId, before: Option<Places>, after: Option<Places>) {
        if let Some(before) = before {
            if before.is_strict {
                self.strict.remove(before.any, before.credit, gang);
            } else {
                self.queue.remove(before.preemptible, before.credit, gang);
                if before.any != before.preemptible {
                    self.spare.remove(before.any, before.credit, gang);
                }
            }
        }
        if let Some(after) = after {
            if after.is_strict {
                self.strict.insert(after.any, after.credit, gang);
            } else {
                self.queue.insert(after.preemptible, after.credit, gang);
                if after.any != after.preemptible {
                    self.spare.insert(after.any, after.credit, gang);
                }
            }
        }
        let [old, new] = [before, after].map(|places| places.map(|places| places.patience));
        if old != new {
            if let Some((time, cpus)) = old {
                self.patience.remove(cpus, time, gang);
            }
            if let Some((time, cpus)) = new {
                self.patience.insert(cpus, time, gang);
            }
        }
        if let Some(gang) = self.gangs.get_mut(&gang) {
            gang.queued = after;
        }
    }

    /// The first gang after `last`, by consumed time, that has a member to start which may preempt others on a CPU, or is strict and
    /// may have one.
    pub(crate) fn next_gang(
        &self,
        cpu: CpuId,
        last: Option<(Credit, GangId)>,
    ) -> Option<(Credit, GangId)> {
        match (self.queue.next(cpu, last), self.strict.next(cpu, last)) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Whether anybody waits that a CPU could start.
    pub(crate) fn is_wanted(&self, cpu: CpuId) -> bool {
        self.wanted_cpus().contains(cpu)
    }

    /// The CPUs for which somebody waits that they could start. On the others a yield changes nothing.
    #[must_use]
    pub fn wanted_cpus(&self) -> CpuSet {
        self.queue
            .shown()
            .union(self.spare.shown())
            .union(self.strict.shown())
    }

    /// The CPUs that take a vCPU although they have others to run.
    pub(crate) fn preemptible_cpus(&self, vcpu: &Vcpu) -> CpuSet {
        let liked = if vcpu.soft.is_empty() {
            vcpu.hard
        } else {
            vcpu.soft
        };
        let gang = self.gangs.get(&vcpu.gang);
        if gang.is_some_and(|gang| gang.mode == Mode::Balance) {
            liked.intersection(CpuSet::single(vcpu.home))
        } else {
            liked
        }
    }

    /// After a change in a gang: its place in the queue, members that are stopped or let go, and CPUs that should know of
    /// those that wait: idle ones, and ones that were told to ask only when kicked. A strict gang that cannot start yet is kept
    /// in mind by all CPUs that it could use.
    pub(crate) fn rebalance(&mut self, gang_id: GangId, now: Ticks, kicks: &mut Kicks) {
        self.co_stop(gang_id, now, kicks);
        self.requeue(gang_id);
        self.await_refill(gang_id, now, kicks);
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        let Some(Places {
            any: cpus,
            is_strict,
            ..
        }) = gang.queued
        else {
            return;
        };
        let mut promises = Vec::new();
        for id in &gang.members {
            self.work.step();
            if self.idle.is_empty() {
                break;
            }
            let Some(vcpu) = self.vcpus.get(id) else {
                continue;
            };
            if !self.is_startable(vcpu) {
                continue;
            }
            let idle = self.idle.intersection(vcpu.hard);
            let liked = idle.intersection(vcpu.soft);
            let cpu = liked.iter().next().or_else(|| idle.iter().next());
            if let Some(cpu) = cpu {
                // Kicked once: it asks, and is idle again only if it finds nothing.
                self.idle.remove(cpu);
                kicks.add(cpu);
                promises.push(cpu);
            }
        }
        for cpu in promises {
            if let Some(cpu) = self.cpus.get_mut(cpu.0 as usize) {
                cpu.promised = Some(gang_id);
            }
        }
        for cpu_id in cpus.iter() {
            if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize)
                && (cpu.current.is_some() || is_strict)
                && cpu.until == Ticks::MAX
            {
                // Kicked once: what it is told next has an end.
                cpu.until = now;
                kicks.add(cpu_id);
            }
        }
    }

    /// Finds a CPU for one that woke: an idle one that it likes, else the one whose vCPU's gang has consumed most.
    pub(crate) fn place_waker(&mut self, id: VcpuId, now: Ticks, kicks: &mut Kicks) {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return;
        };
        if !self.is_startable(vcpu) {
            return;
        }
        let idle = self.idle.intersection(vcpu.hard);
        let liked = idle.intersection(vcpu.soft);
        let choice = vcpu
            .last_cpu
            .filter(|cpu| liked.contains(*cpu) || liked.is_empty() && idle.contains(*cpu))
            .or_else(|| liked.iter().next())
            .or_else(|| idle.iter().next());
        if let Some(cpu_id) = choice {
            self.idle.remove(cpu_id);
            if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
                cpu.reserved = Some(id);
            }
            kicks.add(cpu_id);
            return;
        }
        let Some(mine) = self.gangs.get(&vcpu.gang) else {
            return;
        };
        let limit = if vcpu.boosted {
            mine.credit.saturating_sub(self.boost_limit(vcpu.gang))
        } else {
            mine.credit
                .saturating_add(consumed(self.config.rate_limit, mine.share.weight))
        };
        // Elsewhere it would be taken only by a CPU that has nothing else.
        let victim = self
            .preemptible_cpus(vcpu)
            .iter()
            .filter_map(|cpu_id| {
                let cpu = self.cpus.get(cpu_id.0 as usize)?;
                let other = self.vcpus.get(&cpu.current?)?;
                let gang = self.gangs.get(&other.gang)?;
                // Gangs that run together are left alone.
                let in_slot = gang.mode.is_gang() && now < cpu.slot_until;
                let ran = now.saturating_sub(cpu.charged);
                let credit = gang.credit + consumed(ran, gang.share.weight);
                (!in_slot && other.gang != vcpu.gang && credit >= limit).then_some((credit, cpu_id))
            })
            .max();
        if let Some((_, cpu_id)) = victim {
            kicks.add(cpu_id);
        }
    }
}
