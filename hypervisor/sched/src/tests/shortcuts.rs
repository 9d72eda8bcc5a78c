//! Decisions by a shortcut are those by the long way: one machine takes shortcuts and another does not, and after every event all that
//! their schedulers hold is compared.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::driver::MS;
use super::random::{Event, apply, event};
use crate::sim::Machine;
use crate::{Mode, Scheduler, Share};

/// All that a scheduler holds.
fn all(scheduler: &Scheduler) -> [String; 5] {
    let Scheduler {
        gangs,
        vms,
        vcpus,
        cpus,
        queue,
        spare,
        strict,
        patience,
        ..
    } = scheduler;
    [
        format!(
            "{:#?} {:#?}",
            gangs.iter().collect::<Vec<_>>(),
            vms.iter().collect::<Vec<_>>()
        ),
        format!("{:#?}", vcpus.iter().collect::<Vec<_>>()),
        format!("{:#?}", &cpus[..4]),
        format!(
            "{:#?} {:#?} {:#?} {:#?}",
            queue.contents(),
            spare.contents(),
            strict.contents(),
            patience.contents()
        ),
        format!(
            "{:?}",
            (
                (
                    scheduler.now,
                    scheduler.idle,
                    scheduler.away,
                    scheduler.boosted
                ),
                (scheduler.compared_with_all, scheduler.active_weight),
                (&scheduler.held_back, scheduler.pending, scheduler.floor),
            )
        ),
    ]
}

/// Applies events to a machine that takes shortcuts and to one that does not. How many were taken.
fn compare(modes: &[usize], events: &[Event]) -> u64 {
    let mut machines = [true, false].map(|takes_shortcuts| {
        let mut machine = Machine::new(4);
        machine.sched.shortcuts = takes_shortcuts.then_some(0);
        for (id, mode) in (0..).zip(modes) {
            machine.group(id, Mode::ALL[*mode], Share::default());
        }
        (machine, BTreeMap::new())
    });
    for event in events {
        for (machine, added) in &mut machines {
            apply(machine, added, event.clone());
            machine.calm();
            machine.check();
        }
        let [(short, _), (long, _)] = &machines;
        assert_eq!(short.decisions, long.decisions, "after {event:?}");
        for (short, long) in all(&short.sched).iter().zip(&all(&long.sched)) {
            assert_eq!(short, long, "after {event:?}");
        }
    }
    machines[0].0.sched.shortcuts.unwrap_or(0)
}

/// VMs of one vCPU without a group, on a few CPUs, and what befalls them most.
fn of_lone_vms() -> impl Strategy<Value = Event> {
    let (vm, cpu, mask) = (
        0..8_u32,
        0..2_u32,
        prop_oneof![3 => 1..4_u64, 1 => 1..16_u64],
    );
    prop_oneof![
        4 => (vm.clone(), mask).prop_map(|(vm, mask)| Event::Add { vm, group: 3, mask, vcpus: 1 }),
        4 => (vm, any::<bool>()).prop_map(|(vm, boosted)| Event::Wake { vcpu: vm * 3, boosted }),
        1 => cpu.clone().prop_map(|cpu| Event::Block { cpu }),
        6 => cpu.prop_map(|cpu| Event::Yield { cpu }),
        4 => (0..4 * MS).prop_map(|ticks| Event::Run { ticks }),
        2 => (0..40 * MS).prop_map(|ticks| Event::Run { ticks }),
        2 => event(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shortcuts_decide_what_the_long_way_does(
        modes in prop::collection::vec(0..5_usize, 3),
        events in prop::collection::vec(event(), 1..60),
    ) {
        compare(&modes, &events);
    }

    #[test]
    fn shortcuts_for_lone_vms_decide_what_the_long_way_does(
        modes in prop::collection::vec(0..5_usize, 3),
        events in prop::collection::vec(of_lone_vms(), 1..80),
    ) {
        compare(&modes, &events);
    }
}

#[test]
fn two_vms_that_give_way_to_each_other_take_the_shortcut_each_time() {
    let mut events = Vec::from([0, 1].map(|vm| Event::Add {
        vm,
        group: 3,
        mask: 1,
        vcpus: 1,
    }));
    for _ in 0..100 {
        events.extend([Event::Yield { cpu: 0 }, Event::Run { ticks: 10 }]);
    }
    events.push(Event::Run { ticks: 1000 * MS });
    assert!(
        compare(&[0, 0, 0], &events) >= 199,
        "each yield, and each slice of the second"
    );
}
