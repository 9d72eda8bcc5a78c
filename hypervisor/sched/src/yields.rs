//! Giving way: to anybody, to a member of the group, or because a vCPU spins.

use crate::ids::{CpuId, Kicks, Ticks, VcpuId};
use crate::scheduler::Scheduler;
use crate::state::State;

impl Scheduler {
    /// The vCPU on `cpu` lets others go first, once. The CPU is among the kicks.
    pub fn yield_now(&mut self, cpu: CpuId, now: Ticks) -> Kicks {
        self.advance(now);
        let mut kicks = Kicks::NONE;
        if self.is_leaving(cpu) {
            return kicks;
        }
        if let Some(vcpu) = self.current(cpu).and_then(|id| self.vcpus.get_mut(&id)) {
            vcpu.yielded = true;
            kicks.add(cpu);
        }
        kicks
    }

    /// Whether what a CPU runs is on its way out anyhow.
    fn is_leaving(&self, cpu: CpuId) -> bool {
        self.cpus
            .get(cpu.0 as usize)
            .is_some_and(|cpu| cpu.is_awaited)
    }

    /// The vCPU on `cpu` gives way to `target`: it goes there, if it may, for what is left of the slice, or goes first
    /// elsewhere. If it runs already or does not want to, this is [`Scheduler::yield_now`].
    pub fn yield_to(&mut self, cpu_id: CpuId, target: VcpuId, now: Ticks) -> Kicks {
        let mut kicks = self.yield_now(cpu_id, now);
        if self.is_leaving(cpu_id) {
            return kicks;
        }
        let Some(vcpu) = self.vcpus.get(&target) else {
            return kicks;
        };
        if !self.is_startable(vcpu) {
            return kicks;
        }
        if self.reservation(cpu_id).is_some() {
            // Somebody comes already, perhaps a member of a gang that has started.
            return kicks;
        }
        if vcpu.hard.contains(cpu_id) {
            if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
                cpu.reserved = Some(target);
                // With a slice of its own, members that give way to each other would keep the CPU from others for ever.
                cpu.lent = Some(target);
            }
        } else {
            self.set_boosted(target, true);
            let now = self.now;
            self.place_waker(target, now, &mut kicks);
        }
        kicks
    }

    /// Whether [`Scheduler::spinning`] could do anything for a vCPU on a CPU: its group wants it and has other members, and
    /// somebody waits that could have the CPU.
    #[must_use]
    pub fn heeds_spinning(&self, id: VcpuId, cpu: CpuId) -> bool {
        let wants = self
            .vcpus
            .get(&id)
            .and_then(|vcpu| self.gangs.get(&vcpu.gang))
            .is_some_and(|gang| gang.directed_yield && gang.members.len() > 1);
        wants && self.is_wanted(cpu)
    }

    /// The vCPU on `cpu` spins, as pause-loop exits tell. If a member of its group waits for a CPU, what is spun for is most
    /// likely to come from there: the vCPU gives way to the one that has got least far. Else nothing happens.
    pub fn spinning(&mut self, cpu_id: CpuId, now: Ticks) -> Kicks {
        let Some(current) = self.current(cpu_id) else {
            return Kicks::NONE;
        };
        if self.is_leaving(cpu_id) {
            return Kicks::NONE;
        }
        let target = self.vcpus.get(&current).and_then(|vcpu| {
            let gang = self.gangs.get(&vcpu.gang)?;
            if !gang.directed_yield {
                return None;
            }
            gang.members
                .iter()
                .inspect(|_| self.work.step())
                .filter_map(|id| Some((*id, self.vcpus.get(id)?)))
                .filter(|(_, other)| other.state == State::Waiting && self.is_startable(other))
                .min_by_key(|(_, other)| other.progress.ticks)
                .map(|(id, _)| id)
        });
        match target {
            Some(target) => self.yield_to(cpu_id, target, now),
            None => Kicks::NONE,
        }
    }
}
