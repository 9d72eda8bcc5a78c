//! Describing a load.

use std::string::String;
use std::vec::Vec;

use super::behaviour::{BarrierId, Behaviour, LockId};
use super::machine::Delays;
use super::rng::Rng;
use crate::{Affinity, Config, GroupId, Mode, Share, Ticks, VcpuId, VmId};

#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) share: Share,
    pub(super) directed_yield: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Vm {
    pub(super) group: Option<GroupId>,
    pub(super) share: Share,
}

#[derive(Clone, Debug)]
pub(super) struct Vcpu {
    pub(super) vm: VmId,
    pub(super) group: Option<GroupId>,
    pub(super) behaviour: Behaviour,
    pub(super) affinity: Affinity,
    pub(super) starts: Ticks,
}

/// A machine and its load. Groups, VMs and vCPUs are numbered in the order in which they are added.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub(super) cpus: u32,
    pub(super) config: Option<Config>,
    pub(super) seed: u64,
    pub(super) delays: Delays,
    pub(super) switch_cost: Ticks,
    pub(super) spin_window: Ticks,
    pub(super) groups: Vec<Group>,
    pub(super) vms: Vec<Vm>,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) barriers: usize,
    pub(super) locks: usize,
    pub(super) record: bool,
}

impl Scenario {
    /// A machine without VMs. A tick is a microsecond; switches cost nothing; a pause-loop exit comes after 20 ticks.
    #[must_use]
    pub fn new(cpus: u32) -> Scenario {
        Scenario {
            cpus,
            config: None,
            seed: 1,
            delays: Delays::default(),
            switch_cost: 0,
            spin_window: 20,
            groups: Vec::new(),
            vms: Vec::new(),
            vcpus: Vec::new(),
            barriers: 0,
            locks: 0,
            record: false,
        }
    }

    /// Another configuration of the scheduler.
    #[must_use]
    pub fn config(mut self, config: Config) -> Scenario {
        self.config = Some(config);
        self
    }

    /// Where random numbers begin.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Scenario {
        self.seed = seed;
        self
    }

    /// A machine that is late.
    #[must_use]
    pub fn delays(mut self, delays: Delays) -> Scenario {
        self.delays = delays;
        self
    }

    /// Ticks that a CPU loses whenever its vCPU changes.
    #[must_use]
    pub fn switch_cost(mut self, ticks: Ticks) -> Scenario {
        self.switch_cost = ticks;
        self
    }

    /// Ticks of spinning until the CPU notices.
    #[must_use]
    pub fn spin_window(mut self, ticks: Ticks) -> Scenario {
        self.spin_window = ticks.max(1);
        self
    }

    /// Keeps trace and timeline, which take memory for each event.
    #[must_use]
    pub fn recorded(mut self) -> Scenario {
        self.record = true;
        self
    }

    /// Adds a group, with directed yield.
    pub fn group(&mut self, name: &str, mode: Mode, share: Share) -> GroupId {
        self.groups.push(Group {
            name: name.into(),
            mode,
            share,
            directed_yield: true,
        });
        GroupId(self.groups.len() as u32 - 1)
    }

    /// Adds a group whose spinning members do not give way.
    pub fn group_without_yield(&mut self, name: &str, mode: Mode, share: Share) -> GroupId {
        let id = self.group(name, mode, share);
        if let Some(group) = self.groups.last_mut() {
            group.directed_yield = false;
        }
        id
    }

    /// Adds a VM with a vCPU for each behaviour.
    pub fn vm(&mut self, group: Option<GroupId>, share: Share, behaviours: &[Behaviour]) -> VmId {
        let vm = VmId(self.vms.len() as u32);
        self.vms.push(Vm { group, share });
        for behaviour in behaviours {
            self.vcpus.push(Vcpu {
                vm,
                group,
                behaviour: *behaviour,
                affinity: Affinity::any(),
                starts: 0,
            });
        }
        vm
    }

    /// Adds `count` VMs with one vCPU each, all alike.
    pub fn vms(&mut self, count: u32, group: Option<GroupId>, behaviour: Behaviour) {
        for _ in 0..count {
            self.vm(group, Share::default(), &[behaviour]);
        }
    }

    /// Says where a vCPU may run.
    pub fn affinity(&mut self, vcpu: VcpuId, affinity: Affinity) {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu.0 as usize) {
            vcpu.affinity = affinity;
        }
    }

    /// Says when a vCPU first wants to run; at once otherwise.
    pub fn starts(&mut self, vcpu: VcpuId, time: Ticks) {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu.0 as usize) {
            vcpu.starts = time;
        }
    }

    /// Lets the vCPU that was added last first want to run at a time up to that, drawn.
    pub fn starts_late(&mut self, most: Ticks) {
        let seed = self.seed.wrapping_mul(1000) + self.vcpus.len() as u64;
        if let Some(vcpu) = self.vcpus.last_mut() {
            vcpu.starts = Rng::new(seed).up_to(most);
        }
    }

    /// The groups that were added.
    pub fn group_ids(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.groups.len() as u32).map(GroupId)
    }

    /// A barrier for all vCPUs whose behaviour names it.
    pub fn barrier(&mut self) -> BarrierId {
        self.barriers += 1;
        BarrierId(self.barriers - 1)
    }

    /// A lock.
    pub fn lock(&mut self) -> LockId {
        self.locks += 1;
        LockId(self.locks - 1)
    }
}
