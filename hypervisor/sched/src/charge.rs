//! Consumption: what is charged to whom.

use crate::budget::Periods;
use crate::ids::{CpuId, GangId, Kicks, Ticks, VmId};
use crate::scheduler::Scheduler;
use crate::state::{Places, consumed};

impl Scheduler {
    /// Work of so many ticks has been done for a VM on a CPU, on which perhaps somebody else's vCPU is: `vm` has consumed them,
    /// and who is there has not. Its vCPUs' accounts stay as they are: those say who was where.
    ///
    /// What has been charged to the other by a decision taken meanwhile stays with it.
    pub fn charge_for(&mut self, vm: VmId, cpu_id: CpuId, ticks: Ticks, now: Ticks) -> Kicks {
        let now = self.advance(now);
        let mut kicks = Kicks::NONE;
        let Some(gang_id) = self.vms.get(&vm).map(|vm| vm.gang) else {
            return kicks;
        };
        let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) else {
            return kicks;
        };
        let current = cpu.current.and_then(|id| self.vcpus.get(&id));
        if current.is_some_and(|vcpu| vcpu.vm == vm) {
            // It pays by being there.
            return kicks;
        }
        cpu.charged = cpu.charged.saturating_add(ticks).min(now);
        if self.consume(vm, ticks) {
            self.rebalance(gang_id, now, &mut kicks);
        }
        self.follow_gang(gang_id);
        kicks
    }

    /// Charges what the vCPU on a CPU has run since it was charged last.
    pub(crate) fn charge(&mut self, cpu_id: CpuId, now: Ticks) {
        self.note_run(cpu_id, now);
        self.follow_credit(cpu_id);
    }

    /// Brings the place in the queues of the gang on a CPU up to date with what it has consumed.
    fn follow_credit(&mut self, cpu_id: CpuId) {
        let gang_id = self
            .current(cpu_id)
            .and_then(|id| Some(self.vcpus.get(&id)?.gang));
        if let Some(gang_id) = gang_id {
            self.follow_gang(gang_id);
        }
    }

    fn follow_gang(&mut self, gang_id: GangId) {
        if let Some(gang) = self.gangs.get(&gang_id)
            && let Some(before) = gang.queued
            && before.credit != gang.credit
        {
            let credit = gang.credit;
            self.move_to(gang_id, Some(before), Some(Places { credit, ..before }));
        }
    }

    /// Adds what the vCPU on a CPU has run to all accounts.
    fn note_run(&mut self, cpu_id: CpuId, now: Ticks) {
        let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) else {
            return;
        };
        let ticks = now.saturating_sub(cpu.charged);
        cpu.charged = now;
        let Some(vcpu) = cpu.current.and_then(|id| self.vcpus.get_mut(&id)) else {
            return;
        };
        let vm_id = vcpu.vm;
        let weight = self.vms.get(&vm_id).map_or(1, |vm| vm.share.weight);
        vcpu.credit += ticks;
        vcpu.progress.add(ticks, weight);
        self.consume(vm_id, ticks);
    }

    /// Adds ticks to what a VM and its gang have consumed. Whether one of them has spent its budget.
    fn consume(&mut self, vm_id: VmId, ticks: Ticks) -> bool {
        let (now, period) = (self.now, self.config.period);
        let Some(vm) = self.vms.get_mut(&vm_id) else {
            return false;
        };
        vm.credit += consumed(ticks, vm.share.weight);
        let mut is_spent = false;
        // Without a cap there is no budget, and no period to be looked up.
        if vm.share.cap != 0 {
            let periods = Periods::at(now, period);
            vm.budget.spend(ticks, vm.share, periods);
            is_spent = vm.budget.is_spent(vm.share, periods);
        }
        let gang_id = vm.gang;
        if let Some(gang) = self.gangs.get_mut(&gang_id) {
            gang.credit += consumed(ticks, gang.share.weight);
            if gang.share.cap != 0 {
                let periods = Periods::at(now, period);
                gang.budget.spend(ticks, gang.share, periods);
                is_spent |= gang.budget.is_spent(gang.share, periods);
            }
        }
        if is_spent {
            if let Some(gang) = self.gangs.get_mut(&gang_id) {
                gang.is_held = true;
            }
            self.hold_back(gang_id);
            self.requeue(gang_id);
        }
        is_spent
    }

    /// Charges what members of a gang have run on whatever CPUs. Whether that was anything.
    pub(crate) fn charge_gang(&mut self, gang_id: GangId, now: Ticks) -> bool {
        let Some(gang) = self.gangs.get(&gang_id).filter(|gang| gang.running != 0) else {
            return false;
        };
        let before = gang.credit;
        for at in 0..gang.members.len() {
            self.work.step();
            let cpu = self
                .gangs
                .get(&gang_id)
                .and_then(|gang| self.vcpus.get(gang.members.get(at)?))
                .and_then(|vcpu| vcpu.state.cpu());
            if let Some(cpu) = cpu {
                self.note_run(cpu, now);
            }
        }
        self.follow_gang(gang_id);
        let after = self.gangs.get(&gang_id).map(|gang| gang.credit);
        after.is_some_and(|after| after != before)
    }

    pub(crate) fn charge_all(&mut self, now: Ticks) {
        for cpu in self.config.cpus.iter() {
            self.note_run(cpu, now);
        }
        // A gang that runs on several CPUs is moved once.
        for cpu in self.config.cpus.iter() {
            self.follow_credit(cpu);
        }
    }
}
