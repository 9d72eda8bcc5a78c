//! Short words for tests on the simulator's machine, and what must hold of it.

use std::vec::Vec;

use crate::sim::Machine;
use crate::state::State;
use crate::{Affinity, GroupId, Mode, Share, VcpuId, VmId};

pub(super) const MS: u64 = 1000;

impl Machine {
    pub(super) fn group(&mut self, id: u32, mode: Mode, share: Share) {
        self.sched.add_group(GroupId(id), share, mode).expect("new");
    }

    /// A VM with one vCPU of the same number, which wants to run.
    pub(super) fn hog(&mut self, id: u32, group: Option<u32>, share: Share, affinity: Affinity) {
        self.sched
            .add_vm(VmId(id), group.map(GroupId), share)
            .expect("new");
        self.sched
            .add_vcpu(VcpuId(id), VmId(id), affinity, self.now)
            .expect("new");
        self.wake(VcpuId(id));
    }

    pub(super) fn ran(&self, vcpu: u32) -> u64 {
        self.sched
            .account(VcpuId(vcpu), self.now)
            .expect("is there")
            .running
    }

    pub(super) fn group_ran(&self, group: u32) -> u64 {
        self.sched
            .group_account(GroupId(group), self.now)
            .expect("is there")
            .sum
            .running
    }

    /// What must hold whenever nobody is kicked.
    pub(super) fn check(&self) {
        assert!(self.pending.is_empty());
        let mut seen = Vec::new();
        for cpu in self.cpus().iter() {
            let Some(id) = self.sched.current(cpu) else {
                // Work is conserved, but for gangs that start together or not at all.
                for (id, vcpu) in self.sched.vcpus.iter() {
                    let id = VcpuId(id);
                    let strict = self.sched.gangs[&vcpu.gang].mode == Mode::Strict;
                    assert!(
                        strict || !self.sched.is_startable(vcpu) || !vcpu.hard.contains(cpu),
                        "{cpu:?} is idle while {id:?} waits: {vcpu:?}"
                    );
                    // Those are not forgotten.
                    assert!(
                        !self.sched.is_startable(vcpu)
                            || !vcpu.hard.contains(cpu)
                            || self.has_end(cpu),
                        "{cpu:?} is idle without end while {id:?} waits: {vcpu:?}"
                    );
                }
                // Of a start that is set an idle CPU hears in time.
                if let Some((start, gang)) = self.sched.pending
                    && start > self.now
                    && let Some(places) = self.sched.gangs.get(&gang).and_then(|gang| gang.queued)
                    && places.any.contains(cpu)
                {
                    assert!(self.asks_at(cpu) <= start, "{cpu:?} sleeps over {start}");
                }
                continue;
            };
            let vcpu = &self.sched.vcpus[&id];
            assert_eq!(vcpu.state, State::Running(cpu));
            assert!(vcpu.hard.contains(cpu), "{id:?} runs outside its affinity");
            assert!(!seen.contains(&id), "{id:?} runs twice");
            seen.push(id);
        }
        let running = self
            .sched
            .vcpus
            .iter()
            .filter(|(_, vcpu)| matches!(vcpu.state, State::Running(_)))
            .count();
        assert_eq!(running, seen.len(), "a vCPU is told to run on no CPU");
    }
}
