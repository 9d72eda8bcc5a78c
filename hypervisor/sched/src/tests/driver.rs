//! A machine that does what the scheduler says and nothing else: it asks only when kicked or when a decision runs out.

use std::vec::Vec;

use crate::state::State;
use crate::{
    Affinity, Config, CpuId, CpuSet, GroupId, Kicks, Mode, Scheduler, Share, VcpuId, VmId,
};

pub(super) const MS: u64 = 1000;

pub(super) struct Machine {
    pub(super) sched: Scheduler,
    pub(super) now: u64,
    cpus: u32,
    until: Vec<u64>,
    pub(super) pending: CpuSet,
    /// Decisions taken.
    pub(super) decisions: u64,
}

impl Machine {
    pub(super) fn new(cpus: u32) -> Machine {
        Machine::with(cpus, |_| ())
    }

    pub(super) fn with(cpus: u32, change: impl FnOnce(&mut Config)) -> Machine {
        let mut config = Config::new(CpuSet::first(cpus), MS);
        change(&mut config);
        Machine {
            sched: Scheduler::new(config),
            now: 0,
            cpus,
            until: std::vec![u64::MAX; cpus as usize],
            pending: CpuSet::EMPTY,
            decisions: 0,
        }
    }

    pub(super) fn kick(&mut self, kicks: Kicks) {
        self.pending = self.pending.union(kicks.cpus());
    }

    pub(super) fn ask(&mut self, cpu: CpuId) {
        self.pending.remove(cpu);
        let decision = self.sched.schedule(cpu, self.now);
        assert_eq!(self.sched.current(cpu), decision.run);
        assert!(decision.until > self.now, "a decision that is over at once");
        self.until[cpu.0 as usize] = decision.until;
        self.decisions += 1;
        self.kick(decision.kicks);
    }

    /// Until nobody is kicked.
    pub(super) fn calm(&mut self) {
        for _ in 0..1000 {
            let Some(cpu) = self.pending.iter().next() else {
                return;
            };
            self.ask(cpu);
        }
        panic!("the CPUs kick each other without end");
    }

    /// Lets time go by, obeying all decisions.
    pub(super) fn run_until(&mut self, end: u64) {
        loop {
            self.calm();
            let (time, cpu) = (0..self.cpus)
                .map(|cpu| (self.until[cpu as usize], cpu))
                .min()
                .expect("there are CPUs");
            if time > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(time);
            self.ask(CpuId(cpu));
        }
    }

    pub(super) fn run_for(&mut self, ticks: u64) {
        self.run_until(self.now + ticks);
    }

    pub(super) fn block(&mut self, cpu: u32) {
        let kicks = self.sched.block(CpuId(cpu), self.now);
        self.kick(kicks);
        self.ask(CpuId(cpu));
    }

    pub(super) fn wake(&mut self, vcpu: u32) {
        let kicks = self.sched.wake(VcpuId(vcpu), self.now);
        self.kick(kicks);
    }

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
        self.wake(id);
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
        for cpu in CpuSet::first(self.cpus).iter() {
            let Some(id) = self.sched.current(cpu) else {
                // Work is conserved, but for gangs that start together or not at all.
                for (id, vcpu) in &self.sched.vcpus {
                    let strict = self.sched.gangs[&vcpu.gang].mode == Mode::Strict;
                    assert!(
                        strict || !self.sched.is_startable(vcpu) || !vcpu.hard.contains(cpu),
                        "{cpu:?} is idle while {id:?} waits: {vcpu:?}"
                    );
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
            .values()
            .filter(|vcpu| matches!(vcpu.state, State::Running(_)))
            .count();
        assert_eq!(running, seen.len(), "a vCPU is told to run on no CPU");
    }
}
