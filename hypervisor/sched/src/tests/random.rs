//! Random events on small machines.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use super::driver::MS;
use crate::sim::Machine;
use crate::state::State;
use crate::{Affinity, CpuId, CpuSet, GroupId, Mode, Share, VcpuId, VmId};

#[derive(Clone, Debug)]
pub(super) enum Event {
    Add {
        vm: u32,
        group: u32,
        mask: u64,
        vcpus: u32,
    },
    Remove {
        vcpu: u32,
    },
    Wake {
        vcpu: u32,
        boosted: bool,
    },
    Block {
        cpu: u32,
    },
    Yield {
        cpu: u32,
    },
    YieldTo {
        cpu: u32,
        vcpu: u32,
    },
    Spin {
        cpu: u32,
    },
    Pause {
        vcpu: u32,
    },
    Resume {
        vcpu: u32,
    },
    Mode {
        group: u32,
        mode: usize,
    },
    Shares {
        group: u32,
        vm: u32,
        weight: u16,
        cap: u32,
    },
    Affinity {
        vcpu: u32,
        mask: u64,
    },
    Ask {
        cpu: u32,
    },
    Run {
        ticks: u64,
    },
    /// Work for a VM on a CPU, in whoever's time.
    Charge {
        vm: u32,
        cpu: u32,
        ticks: u64,
    },
    /// The clock of a CPU that lags behind.
    Late {
        ticks: u64,
    },
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let (vcpu, cpu, vm, group) = (0..24_u32, 0..4_u32, 0..8_u32, 0..4_u32);
    prop_oneof![
        4 => (vm.clone(), group.clone(), 1..16_u64, 1..4_u32)
            .prop_map(|(vm, group, mask, vcpus)| Event::Add { vm, group, mask, vcpus }),
        1 => vcpu.clone().prop_map(|vcpu| Event::Remove { vcpu }),
        6 => (vcpu.clone(), any::<bool>()).prop_map(|(vcpu, boosted)| Event::Wake { vcpu, boosted }),
        4 => cpu.clone().prop_map(|cpu| Event::Block { cpu }),
        2 => cpu.clone().prop_map(|cpu| Event::Yield { cpu }),
        2 => (cpu.clone(), vcpu.clone()).prop_map(|(cpu, vcpu)| Event::YieldTo { cpu, vcpu }),
        2 => cpu.clone().prop_map(|cpu| Event::Spin { cpu }),
        1 => vcpu.clone().prop_map(|vcpu| Event::Pause { vcpu }),
        2 => vcpu.clone().prop_map(|vcpu| Event::Resume { vcpu }),
        1 => (group.clone(), 0..5_usize).prop_map(|(group, mode)| Event::Mode { group, mode }),
        1 => (group, vm, any::<u16>(), prop_oneof![Just(0), 1..400_u32])
            .prop_map(|(group, vm, weight, cap)| Event::Shares { group, vm, weight, cap }),
        1 => (vcpu, 1..16_u64).prop_map(|(vcpu, mask)| Event::Affinity { vcpu, mask }),
        2 => cpu.clone().prop_map(|cpu| Event::Ask { cpu }),
        2 => (0..8_u32, cpu, 0..40 * MS).prop_map(|(vm, cpu, ticks)| Event::Charge { vm, cpu, ticks }),
        8 => (0..40 * MS).prop_map(|ticks| Event::Run { ticks }),
        1 => (0..5 * MS).prop_map(|ticks| Event::Late { ticks }),
    ]
}

fn set(mask: u64) -> CpuSet {
    (0..4)
        .filter(|cpu| mask >> cpu & 1 == 1)
        .map(CpuId)
        .collect()
}

pub(super) fn apply(machine: &mut Machine, added: &mut BTreeMap<u32, u64>, event: Event) {
    let now = machine.now;
    let affinity = |mask| Affinity {
        hard: set(mask),
        soft: set(mask >> 1),
    };
    let kicks = match event {
        Event::Add {
            vm,
            group,
            mask,
            vcpus,
        } => {
            // Group 3 is none.
            let group = (group < 3).then_some(GroupId(group));
            let _ = machine.sched.add_vm(VmId(vm), group, Share::default());
            for vcpu in vm * 3..vm * 3 + vcpus {
                if machine
                    .sched
                    .add_vcpu(VcpuId(vcpu), VmId(vm), affinity(mask), now)
                    .is_ok()
                {
                    added.insert(vcpu, now);
                    machine.wake(VcpuId(vcpu));
                }
            }
            return;
        }
        Event::Remove { vcpu } => {
            let Ok(kicks) = machine.sched.remove_vcpu(VcpuId(vcpu), now) else {
                return;
            };
            added.remove(&vcpu);
            let _ = machine.sched.remove_vm(VmId(vcpu / 3));
            kicks
        }
        Event::Wake {
            vcpu,
            boosted: true,
        } => {
            machine.ring(VcpuId(vcpu));
            return;
        }
        Event::Wake { vcpu, .. } => {
            machine.wake(VcpuId(vcpu));
            return;
        }
        Event::Block { cpu } => {
            machine.block(CpuId(cpu));
            return;
        }
        Event::Yield { cpu } => machine.sched.yield_now(CpuId(cpu), now),
        Event::YieldTo { cpu, vcpu } => machine.sched.yield_to(CpuId(cpu), VcpuId(vcpu), now),
        Event::Spin { cpu } => machine.sched.spinning(CpuId(cpu), now),
        Event::Pause { vcpu } => machine.sched.pause(VcpuId(vcpu), now),
        Event::Resume { vcpu } => machine.sched.resume(VcpuId(vcpu), now),
        Event::Mode { group, mode } => {
            let Ok(kicks) = machine.sched.set_mode(GroupId(group), Mode::ALL[mode], now) else {
                return;
            };
            kicks
        }
        Event::Shares {
            group,
            vm,
            weight,
            cap,
        } => {
            let share = Share { weight, cap };
            if let Ok(kicks) = machine.sched.set_group_share(GroupId(group), share, now) {
                machine.kick(kicks);
            }
            let Ok(kicks) = machine.sched.set_vm_share(VmId(vm), share, now) else {
                return;
            };
            kicks
        }
        Event::Affinity { vcpu, mask } => {
            let Ok(kicks) = machine
                .sched
                .set_affinity(VcpuId(vcpu), affinity(mask), now)
            else {
                return;
            };
            kicks
        }
        Event::Ask { cpu } => {
            machine.ask(CpuId(cpu));
            return;
        }
        Event::Run { ticks } => return machine.run_for(ticks),
        Event::Charge { vm, cpu, ticks } => {
            machine.sched.charge_for(VmId(vm), CpuId(cpu), ticks, now)
        }
        Event::Late { ticks } => {
            let decision = machine.sched.schedule(CpuId(0), now.saturating_sub(ticks));
            machine.pending.insert(CpuId(0));
            decision.kicks
        }
    };
    machine.kick(kicks);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_machine_is_used_rightly(
        modes in prop::collection::vec(0..5_usize, 3),
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut machine = Machine::new(4);
        for (id, mode) in modes.into_iter().enumerate() {
            machine.group(id as u32, Mode::ALL[mode], Share::default());
        }
        let mut added = BTreeMap::new();
        for event in events {
            apply(&mut machine, &mut added, event);
            machine.calm();
            machine.check();
            for (vcpu, since) in &added {
                let account = machine.sched.account(VcpuId(*vcpu), machine.now).expect("is there");
                prop_assert_eq!(account.total(), machine.now - since, "of vCPU {}", vcpu);
            }
        }
        // Everything can be taken out again.
        for vcpu in added.keys() {
            let kicks = machine.sched.remove_vcpu(VcpuId(*vcpu), machine.now).expect("is there");
            machine.kick(kicks);
        }
        machine.calm();
        for vm in 0..8 {
            let _ = machine.sched.remove_vm(VmId(vm));
        }
        for group in 0..3 {
            prop_assert!(machine.sched.remove_group(GroupId(group)).is_ok());
        }
    }

    /// With equal weights, whoever wants to run does so within a few rounds of everybody's slices, members of strict gangs too,
    /// however they are pinned.
    #[test]
    fn nobody_starves(
        modes in prop::collection::vec(0..5_usize, 3),
        vms in prop::collection::vec((0..4_u32, 1..16_u64), 1..10),
    ) {
        let mut machine = Machine::new(4);
        for (id, mode) in modes.into_iter().enumerate() {
            machine.group(id as u32, Mode::ALL[mode], Share::default());
        }
        for (id, (group, mask)) in vms.iter().enumerate() {
            let affinity = Affinity { hard: set(*mask), soft: set(*mask) };
            machine.hog(id as u32, (*group < 3).then_some(*group), Share::default(), affinity);
        }
        let slice = machine.sched.config().slice;
        let rounds = 12 * (vms.len() as u64 + 4);
        let mut last: Vec<u64> = (0..vms.len() as u32).map(|id| machine.ran(id)).collect();
        for _ in 0..3 {
            machine.run_for(rounds * slice);
            machine.calm();
            machine.check();
            for (id, before) in last.iter_mut().enumerate() {
                let vcpu = &machine.sched.vcpus[&VcpuId(id as u32)];
                let ran = machine.ran(id as u32);
                prop_assert!(
                    ran > *before || vcpu.state == State::CoStopped,
                    "vCPU {} did not run in {} slices: {:?}", id, rounds, vcpu
                );
                *before = ran;
            }
        }
    }
}

/// What the above has found.
fn replay(modes: [Mode; 3], events: impl IntoIterator<Item = Event>) {
    let mut machine = Machine::new(4);
    for (id, mode) in (0..).zip(modes) {
        machine.group(id, mode, Share::default());
    }
    let mut added = BTreeMap::new();
    for event in events {
        apply(&mut machine, &mut added, event);
        machine.calm();
        machine.check();
    }
}

fn add(vm: u32, group: u32, mask: u64) -> Event {
    Event::Add {
        vm,
        group,
        mask,
        vcpus: 2,
    }
}

/// A CPU that has never been used hears of it.
#[test]
fn a_strict_member_may_be_moved_to_new_cpus() {
    let events = [
        add(0, 1, 1),
        Event::Run { ticks: 10_000 },
        Event::Add {
            vm: 4,
            group: 0,
            mask: 9,
            vcpus: 3,
        },
        Event::Run { ticks: 30_000 },
        Event::Affinity { vcpu: 12, mask: 6 },
    ];
    replay([Mode::Strict, Mode::Off, Mode::Off], events);
}

/// While another strict gang's start is set.
#[test]
fn a_strict_member_may_be_moved_while_another_gang_comes_first() {
    let events = [
        add(1, 0, 5),
        Event::Affinity { vcpu: 5, mask: 1 },
        add(2, 1, 6),
        add(0, 2, 1),
        Event::Run { ticks: 20_000 },
        Event::Affinity { vcpu: 0, mask: 10 },
    ];
    replay([Mode::Relaxed, Mode::Strict, Mode::Strict], events);
}

/// While all CPUs sleep without end.
#[test]
fn a_budget_may_turn_out_to_be_spent_while_its_owner_sleeps() {
    let shares = Event::Shares {
        group: 0,
        vm: 2,
        weight: 1,
        cap: 31,
    };
    let events = [
        add(2, 0, 3),
        Event::Run { ticks: 63_875 },
        Event::Block { cpu: 0 },
        Event::Block { cpu: 1 },
        shares,
        Event::Wake {
            vcpu: 6,
            boosted: false,
        },
        Event::Run { ticks: 200_000 },
        // Nobody asked: no time has gone by for the scheduler, which notes now that it has.
        Event::Wake {
            vcpu: 0,
            boosted: false,
        },
    ];
    replay([Mode::Off; 3], events);
}
