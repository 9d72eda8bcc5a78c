//! Changes of the rules: shares, modes, where a vCPU may run.

use crate::config::{Affinity, Error, Mode, Share};
use crate::ids::{GangId, GroupId, Kicks, Ticks, VcpuId, VmId};
use crate::scheduler::Scheduler;
use crate::state::{State, Vcpu};

impl Scheduler {
    /// Changes a group's share.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn set_group_share(
        &mut self,
        id: GroupId,
        share: Share,
        now: Ticks,
    ) -> Result<Kicks, Error> {
        let now = self.advance(now);
        let id = GangId::Group(id);
        self.charge_all(now);
        let periods = self.periods();
        let gang = self.gangs.get_mut(&id).ok_or(Error::Unknown)?;
        let before = core::mem::replace(&mut gang.share, share);
        gang.budget.change(before, share, periods);
        gang.is_held = true;
        self.reweigh_gang(id, before.weight);
        self.begin_anew(id);
        self.hold_back(id);
        Ok(self.reconsider(id, now))
    }

    /// Changes a VM's share.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn set_vm_share(&mut self, id: VmId, share: Share, now: Ticks) -> Result<Kicks, Error> {
        let now = self.advance(now);
        self.charge_all(now);
        let periods = self.periods();
        let vm = self.vms.get_mut(&id).ok_or(Error::Unknown)?;
        let gang_id = vm.gang;
        if gang_id == GangId::Vm(id) {
            if let Some(gang) = self.gangs.get_mut(&gang_id) {
                let before = core::mem::replace(&mut gang.share, share);
                gang.budget.change(before, share, periods);
                gang.is_held = true;
                self.reweigh_gang(gang_id, before.weight);
            }
        } else {
            let before = core::mem::replace(&mut vm.share, share);
            vm.budget.change(before, share, periods);
            let vcpus = u64::from(vm.vcpus);
            if let Some(gang) = self.gangs.get_mut(&gang_id) {
                gang.is_held = true;
                gang.weights_within += vcpus * u64::from(share.weight.max(1));
                gang.weights_within -= vcpus * u64::from(before.weight.max(1));
            }
            self.reweigh_vm(id, before.weight);
        }
        self.begin_anew(gang_id);
        // Perhaps it has spent its budget; it is found out when the period ends.
        self.hold_back(gang_id);
        Ok(self.reconsider(gang_id, now))
    }

    /// Changes how a group is scheduled.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn set_mode(&mut self, id: GroupId, mode: Mode, now: Ticks) -> Result<Kicks, Error> {
        let now = self.advance(now);
        let id = GangId::Group(id);
        self.charge_all(now);
        let gang = self.gangs.get_mut(&id).ok_or(Error::Unknown)?;
        self.compared_with_all -= u32::from(gang.mode.compares_with_all());
        self.compared_with_all += u32::from(mode.compares_with_all());
        gang.mode = mode;
        gang.slot_until = 0;
        if self.pending.is_some_and(|(_, pending)| pending == id) {
            self.pending = None;
        }
        self.begin_anew(id);
        Ok(self.reconsider(id, now))
    }

    /// Sets whether spinning members of a group give way to one that should run.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn set_directed_yield(&mut self, id: GroupId, wanted: bool) -> Result<(), Error> {
        let gang = self
            .gangs
            .get_mut(&GangId::Group(id))
            .ok_or(Error::Unknown)?;
        gang.directed_yield = wanted;
        Ok(())
    }

    /// Changes where a vCPU may run.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::NoCpu`].
    pub fn set_affinity(
        &mut self,
        id: VcpuId,
        affinity: Affinity,
        now: Ticks,
    ) -> Result<Kicks, Error> {
        let now = self.advance(now);
        let hard = affinity.hard.intersection(self.config.cpus);
        let gang = self.vcpus.get(&id).ok_or(Error::Unknown)?.gang;
        let home = self.home(gang, hard).ok_or(Error::NoCpu)?;
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            vcpu.hard = hard;
            vcpu.soft = affinity.soft.intersection(hard);
            vcpu.home = home;
        }
        self.charge_all(now);
        self.join_others(id);
        self.forget_progress(gang);
        Ok(self.reconsider(gang, now))
    }

    /// All CPUs with a member of the gang ask again, and whoever waits for it is looked after.
    fn reconsider(&mut self, gang: GangId, now: Ticks) -> Kicks {
        let mut kicks = Kicks::NONE;
        if let Some(gang) = self.gangs.get(&gang) {
            for member in &gang.members {
                if let Some(Vcpu {
                    state: State::Running(cpu),
                    ..
                }) = self.vcpus.get(member)
                {
                    kicks.add(*cpu);
                }
            }
        }
        self.rebalance(gang, now, &mut kicks);
        kicks
    }
}
