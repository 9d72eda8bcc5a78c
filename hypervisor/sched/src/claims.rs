//! What one may bring along: claims and debts, from a sleep or from another rule.
//!
//! Consumed time is compared among those that compete. One that did not, because it slept, because a cap or the operator held it
//! back, or because other rules held, comes back with a claim of at most a slice, and with what it owes at most for a slice of each
//! member: shares are those of the rules that hold, not of those that held.

use crate::ids::{CpuSet, GangId, Ticks, VcpuId, VmId};
use crate::queue::Queue;
use crate::scheduler::Scheduler;
use crate::state::{Credit, Progress, Vcpu, consumed};

/// What one may owe at most beyond a slice for each member: the slice that it may have begun, and one that a boost let it begin.
const MOST_OWED_SLICES: u64 = 2;

impl Scheduler {
    /// One that slept does not bring more than a slice's claim back with it: neither the gang, nor the VM in it, nor the vCPU.
    pub(crate) fn clamp_wakeup_credit(&mut self, id: VcpuId) {
        self.charge_the_undisturbed();
        let slice = self.config.slice;
        let Some(vcpu) = self.vcpus.get(&id) else {
            return;
        };
        let (vm_id, gang_id, hard) = (vcpu.vm, vcpu.gang, vcpu.hard);
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        if gang.running == 0 && gang.queued.is_none() {
            self.clamp_gang(gang_id, hard);
        }
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        // Within the gang: against the members that are active.
        let (mut vm_least, mut vcpu_least): (Option<Credit>, Option<Ticks>) = (None, None);
        let mut progress_least: Option<Progress> = None;
        let others = || {
            let others = gang.members.iter().filter(|member| **member != id);
            others.filter_map(|member| self.vcpus.get(member))
        };
        for other in others() {
            if !other.state.is_ready() || self.is_held_alone(other) {
                continue;
            }
            // With what one that runs has not been charged for yet: alone on its CPU it may not be for long.
            let progress = self.progress(other, self.now);
            progress_least = Some(progress_least.map_or(progress, |old| old.least(progress)));
            if other.vm == vm_id {
                vcpu_least = Some(vcpu_least.map_or(other.credit, |old| old.min(other.credit)));
            } else if let Some(vm) = self.vms.get(&other.vm) {
                vm_least = Some(vm_least.map_or(vm.credit, |old: Credit| old.min(vm.credit)));
            }
        }
        // Others do not wait until it has caught up with what it slept through, or what was before it came: neither those that
        // are there nor, if all sleep, the one that is ahead.
        let caught_up = progress_least.unwrap_or_else(|| {
            let progress = others().map(|other| self.progress(other, self.now));
            progress.fold(Progress::NONE, Progress::most)
        });
        if let (Some(least), Some(vm)) = (vm_least, self.vms.get_mut(&vm_id)) {
            let owed = slice.saturating_mul(u64::from(vm.vcpus) + MOST_OWED_SLICES);
            let (claim, owed) = (
                consumed(slice, vm.share.weight),
                consumed(owed, vm.share.weight),
            );
            if vcpu_least.is_none() {
                vm.credit = clamp(vm.credit, least, claim, owed);
            }
        }
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            if let Some(least) = vcpu_least {
                vcpu.credit = vcpu.credit.max(least.saturating_sub(slice));
            }
            vcpu.progress = vcpu.progress.most(caught_up);
        }
    }

    /// Whether its own VM's cap holds a vCPU back, while others of its gang may run.
    fn is_held_alone(&self, vcpu: &Vcpu) -> bool {
        let vm = self.vms.get(&vcpu.vm);
        vm.is_some_and(|vm| vm.share.cap != 0 && vm.budget.is_spent(vm.share, self.periods()))
    }

    /// Those of a gang that a cap held back and holds back no more, because the period is over or the cap is another, come back as
    /// sleepers do.
    pub(crate) fn release_refilled(&mut self, gang_id: GangId) {
        let periods = self.periods();
        let Some(gang) = self.gangs.get_mut(&gang_id).filter(|gang| gang.is_held) else {
            return;
        };
        gang.is_held = gang.budget.is_spent(gang.share, periods);
        let is_let_go = gang.budget.release(gang.share, periods);
        if is_let_go && gang.running == 0 && gang.queued.is_none() {
            let cpus = self.cpus_of(gang_id);
            self.clamp_gang(gang_id, cpus);
        }
        let members = self
            .gangs
            .get(&gang_id)
            .map_or(0, |gang| gang.members.len());
        for at in 0..members {
            self.work.step();
            let Some((id, vm_id)) = self
                .gangs
                .get(&gang_id)
                .and_then(|gang| gang.members.get(at))
                .and_then(|id| Some((*id, self.vcpus.get(id)?.vm)))
            else {
                continue;
            };
            let Some(vm) = self.vms.get_mut(&vm_id) else {
                continue;
            };
            if vm.budget.is_spent(vm.share, periods) {
                if let Some(gang) = self.gangs.get_mut(&gang_id) {
                    gang.is_held = true;
                }
            } else if vm.budget.release(vm.share, periods) {
                self.rejoin(gang_id, vm_id, id);
            }
        }
    }

    /// A VM that a cap held back is let go: it, and what its vCPUs have got done, are level with the others of the gang.
    fn rejoin(&mut self, gang_id: GangId, vm_id: VmId, id: VcpuId) {
        let (slice, now) = (self.config.slice, self.now);
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        let is_idle = gang.running == 0 && gang.queued.is_none();
        let (mut vm_least, mut progress_least): (Option<Credit>, Option<Progress>) = (None, None);
        for other in gang.members.iter().filter_map(|id| self.vcpus.get(id)) {
            if other.vm == vm_id || !other.state.is_ready() || self.is_held_alone(other) {
                continue;
            }
            let progress = self.progress(other, now);
            progress_least = Some(progress_least.map_or(progress, |old| old.least(progress)));
            if let Some(vm) = self.vms.get(&other.vm) {
                vm_least = Some(vm_least.map_or(vm.credit, |old| old.min(vm.credit)));
            }
        }
        if let (Some(least), Some(vm)) = (vm_least, self.vms.get_mut(&vm_id)) {
            vm.credit = vm
                .credit
                .max(least.saturating_sub(consumed(slice, vm.share.weight)));
        }
        if let (Some(least), Some(gang)) = (progress_least, self.gangs.get(&gang_id)) {
            for member in &gang.members {
                if let Some(vcpu) = self.vcpus.get_mut(member)
                    && vcpu.vm == vm_id
                {
                    vcpu.progress = vcpu.progress.most(least);
                }
            }
        }
        if is_idle && let Some(vcpu) = self.vcpus.get(&id) {
            let cpus = vcpu.hard;
            self.clamp_gang(gang_id, cpus);
        }
    }

    /// A gang of which nothing ran or could comes back, and is to compete on these CPUs.
    fn clamp_gang(&mut self, gang_id: GangId, cpus: CpuSet) {
        let floor = self.floor_on(cpus);
        let slice = self.config.slice;
        if let Some(gang) = self.gangs.get_mut(&gang_id) {
            let owed = slice.saturating_mul(gang.members.len() as u64 + MOST_OWED_SLICES);
            let claim = consumed(slice, gang.share.weight);
            let owed = consumed(owed, gang.share.weight);
            gang.credit = clamp(gang.credit, floor, claim, owed);
        }
    }

    /// Charges those that have run for more than a slice since they were charged last, which nobody does while a CPU has nothing to
    /// decide: whoever wakes is measured by what they have consumed.
    fn charge_the_undisturbed(&mut self) {
        let (now, slice) = (self.now, self.config.slice);
        for id in self.config.cpus.iter() {
            let is_stale = self.cpus.get(id.0 as usize).is_some_and(|cpu| {
                cpu.current.is_some() && now.saturating_sub(cpu.charged) > slice
            });
            if is_stale {
                self.charge(id, now);
            }
        }
    }

    /// The least consumed time of those that run or wait.
    pub(crate) fn active_floor(&mut self) -> Credit {
        let running = self
            .config
            .cpus
            .iter()
            .filter_map(|cpu| self.cpus.get(cpu.0 as usize)?.current)
            .filter_map(|id| Some(self.gangs.get(&self.vcpus.get(&id)?.gang)?.credit))
            .min();
        let queues = [&self.queue, &self.spare, &self.strict];
        let least = [running]
            .into_iter()
            .chain(queues.map(Queue::least))
            .flatten()
            .min();
        // Never back: one that was alone at the bottom and left does not lower it for others.
        self.floor = least.map_or(self.floor, |least| least.max(self.floor));
        self.floor
    }

    /// The least consumed time of those that one which may run on these CPUs competes with: those that run or wait there. The
    /// least of the machine, if these CPUs do nothing.
    pub(crate) fn floor_on(&mut self, cpus: CpuSet) -> Credit {
        let everywhere = self.active_floor();
        cpus.intersection(self.config.cpus)
            .iter()
            .filter_map(|cpu_id| {
                let cpu = self.cpus.get(cpu_id.0 as usize)?;
                let gang = self.vcpus.get(&cpu.current?)?.gang;
                let here = self.gangs.get(&gang)?.credit;
                // One that nobody disturbs has gone on since the CPU chose it.
                Some(if self.is_wanted(cpu_id) {
                    cpu.floor
                } else {
                    here.max(cpu.floor)
                })
            })
            .min()
            .map_or(everywhere, |here| here.max(everywhere))
    }

    /// A CPU has chosen: those that it passed over have consumed no less.
    pub(crate) fn note_floor(&mut self, cpu_id: crate::CpuId, id: VcpuId) {
        let Some(running) = self
            .vcpus
            .get(&id)
            .and_then(|vcpu| self.gangs.get(&vcpu.gang))
            .map(|gang| gang.credit)
        else {
            return;
        };
        let least = self
            .next_gang(cpu_id, None)
            .map_or(running, |(waiting, _)| running.min(waiting));
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.floor = cpu.floor.max(least);
        }
    }

    /// A gang's weight has changed: what it has consumed beyond the least counts by the new one.
    pub(crate) fn reweigh_gang(&mut self, gang_id: GangId, before: u16) {
        let cpus = self.cpus_of(gang_id);
        let floor = self.floor_on(cpus);
        let slice = self.config.slice;
        let Some(gang) = self.gangs.get_mut(&gang_id) else {
            return;
        };
        let owed = slice.saturating_mul(gang.members.len() as u64 + MOST_OWED_SLICES);
        let weight = gang.share.weight;
        gang.credit = clamp(
            reweighed(gang.credit, floor, before, weight),
            floor,
            consumed(slice, weight),
            consumed(owed, weight),
        );
        if gang.active_weight != 0 {
            self.active_weight -= gang.active_weight;
            gang.active_weight = u64::from(weight.max(1));
            self.active_weight += gang.active_weight;
        }
        self.renew_patience(gang_id);
    }

    /// As of a gang, of a VM among those of its gang.
    pub(crate) fn reweigh_vm(&mut self, vm_id: VmId, before: u16) {
        let floor = self.vm_floor(vm_id);
        let slice = self.config.slice;
        let Some(vm) = self.vms.get_mut(&vm_id) else {
            return;
        };
        let owed = slice.saturating_mul(u64::from(vm.vcpus) + MOST_OWED_SLICES);
        let weight = vm.share.weight;
        if let Some(floor) = floor {
            vm.credit = clamp(
                reweighed(vm.credit, floor, before, weight),
                floor,
                consumed(slice, weight),
                consumed(owed, weight),
            );
        }
        let gang_id = vm.gang;
        self.renew_patience(gang_id);
    }

    /// The least that an active VM of a VM's gang has consumed.
    fn vm_floor(&self, vm_id: VmId) -> Option<Credit> {
        let gang = self.gangs.get(&self.vms.get(&vm_id)?.gang)?;
        gang.members
            .iter()
            .filter_map(|id| self.vcpus.get(id))
            .filter(|vcpu| vcpu.state.is_ready())
            .filter_map(|vcpu| Some(self.vms.get(&vcpu.vm)?.credit))
            .min()
    }

    /// A vCPU may run elsewhere from now on, where it, its VM and its gang meet others: none brings along what it consumed, or was
    /// denied, while they did not meet.
    pub(crate) fn join_others(&mut self, id: VcpuId) {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return;
        };
        let (vm_id, gang_id, hard) = (vcpu.vm, vcpu.gang, vcpu.hard);
        let slice = self.config.slice;
        self.level_gang(gang_id, hard);
        let least = self.vm_floor(vm_id);
        if let (Some(least), Some(vm)) = (least, self.vms.get_mut(&vm_id)) {
            let span = consumed(slice, vm.share.weight);
            vm.credit = clamp(vm.credit, least, span, span);
        }
        let least = self.gangs.get(&gang_id).and_then(|gang| {
            let others = gang.members.iter().filter(|member| **member != id);
            others
                .filter_map(|member| self.vcpus.get(member))
                .filter(|other| other.vm == vm_id && other.state.is_ready())
                .map(|other| other.credit)
                .min()
        });
        if let (Some(least), Some(vcpu)) = (least, self.vcpus.get_mut(&id)) {
            vcpu.credit = vcpu
                .credit
                .clamp(least.saturating_sub(slice), least.saturating_add(slice));
        }
    }

    /// The rules of a gang are others from now on: it begins anew beside those that it meets on these CPUs, a slice before them or
    /// after them at most.
    fn level_gang(&mut self, gang_id: GangId, cpus: CpuSet) {
        let slice = self.config.slice;
        let beside = self.least_beside(gang_id, cpus);
        if let (Some(least), Some(gang)) = (beside, self.gangs.get_mut(&gang_id)) {
            let span = consumed(slice, gang.share.weight);
            gang.credit = clamp(gang.credit, least, span, span);
        }
    }

    /// Another rule holds for a gang, or for a VM in it: what its members consumed under the old one neither they nor others have to
    /// make up for.
    pub(crate) fn begin_anew(&mut self, gang_id: GangId) {
        let cpus = self.cpus_of(gang_id);
        self.level_gang(gang_id, cpus);
        self.forget_progress(gang_id);
    }

    /// The least that a gang other than this one has consumed which runs or waits on one of these CPUs.
    fn least_beside(&self, gang_id: GangId, cpus: CpuSet) -> Option<Credit> {
        cpus.intersection(self.config.cpus)
            .iter()
            .flat_map(|cpu_id| {
                let running = self
                    .cpus
                    .get(cpu_id.0 as usize)
                    .and_then(|cpu| Some(self.vcpus.get(&cpu.current?)?.gang))
                    .filter(|gang| *gang != gang_id)
                    .and_then(|gang| Some(self.gangs.get(&gang)?.credit));
                let mut waiting = self.next_gang(cpu_id, None);
                if waiting.is_some_and(|(_, gang)| gang == gang_id) {
                    waiting = self.next_gang(cpu_id, waiting);
                }
                [running, waiting.map(|(credit, _)| credit)]
            })
            .flatten()
            .min()
    }

    /// The CPUs that members of a gang may run on.
    fn cpus_of(&self, gang_id: GangId) -> CpuSet {
        let members = self.gangs.get(&gang_id).map(|gang| &gang.members);
        members
            .into_iter()
            .flatten()
            .filter_map(|id| self.vcpus.get(id))
            .fold(CpuSet::EMPTY, |all, vcpu| all.union(vcpu.hard))
    }
}

/// Consumed time with at most a claim below the floor and at most a debt above it.
fn clamp(credit: Credit, floor: Credit, claim: Credit, owed: Credit) -> Credit {
    credit.clamp(floor.saturating_sub(claim), floor.saturating_add(owed))
}

/// What was consumed beyond the floor, or is left to it, at one weight, as it counts at another.
fn reweighed(credit: Credit, floor: Credit, before: u16, after: u16) -> Credit {
    let scale = |part: Credit| {
        part.saturating_mul(Credit::from(before.max(1))) / Credit::from(after.max(1))
    };
    if credit >= floor {
        floor.saturating_add(scale(credit - floor))
    } else {
        floor.saturating_sub(scale(floor - credit))
    }
}
