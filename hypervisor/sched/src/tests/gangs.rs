//! Gangs: together, in step, at home.

use std::vec::Vec;

use super::driver::MS;
use crate::sim::Machine;
use crate::{Affinity, CpuId, CpuSet, GroupId, Mode, Share, VcpuId, VmId};

/// Two groups of four on four CPUs.
fn two_groups(mode: Mode) -> Machine {
    let mut machine = Machine::new(4);
    for group in 0..2 {
        machine.group(group, mode, Share::default());
        for member in 0..4 {
            machine.hog(
                group * 4 + member,
                Some(group),
                Share::default(),
                Affinity::any(),
            );
        }
    }
    machine
}

fn running(machine: &Machine) -> Vec<u32> {
    CpuSet::first(4)
        .iter()
        .filter_map(|cpu| machine.sched.current(cpu))
        .map(|id| id.0)
        .collect()
}

#[test]
fn a_strict_gang_runs_whole_or_not_at_all() {
    let mut machine = two_groups(Mode::Strict);
    machine.run_for(50 * MS);
    for _ in 0..500 {
        machine.run_for(MS + 7);
        machine.calm();
        for group in 0..2 {
            let members = running(&machine)
                .into_iter()
                .filter(|id| id / 4 == group)
                .count();
            assert!(
                members == 0 || members == 4,
                "{members} of group {group} run"
            );
        }
    }
    for group in 0..2 {
        let account = machine
            .sched
            .group_account(GroupId(group), machine.now)
            .expect("is there");
        assert!(account.hazard * 100 <= account.sum.running, "{account:?}");
    }
    let (first, second) = (machine.group_ran(0), machine.group_ran(1));
    assert!(
        first.abs_diff(second) <= 4 * 2 * 10 * MS,
        "{first} {second}"
    );
}

#[test]
fn a_strict_gang_gets_its_turn_among_single_vms() {
    let mut machine = Machine::new(4);
    machine.group(0, Mode::Strict, Share::default());
    for id in 0..4 {
        machine.hog(id, Some(0), Share::default(), Affinity::any());
    }
    for id in 4..12 {
        machine.hog(id, None, Share::default(), Affinity::any());
    }
    machine.run_for(2000 * MS);
    // One of nine gangs.
    let share = machine.group_ran(0) as f64 / (4 * machine.now) as f64;
    assert!((0.10..0.13).contains(&share), "{share}");
}

#[test]
fn members_of_a_relaxed_gang_start_together() {
    let mut machine = two_groups(Mode::Relaxed);
    machine.run_for(1000 * MS);
    for group in 0..2 {
        let account = machine
            .sched
            .group_account(GroupId(group), machine.now)
            .expect("is there");
        assert!(
            account.hazard * 20 <= account.sum.running / 4,
            "{account:?}"
        );
    }
}

#[test]
fn without_gangs_members_run_apart() {
    // The same load as above: what the gang's modes are compared with.
    let mut machine = Machine::new(4);
    machine.group(0, Mode::Off, Share::default());
    for id in 0..4 {
        machine.hog(id, Some(0), Share::default(), Affinity::pinned(CpuId(id)));
    }
    for id in 4..8 {
        machine.hog(id, None, Share::default(), Affinity::pinned(CpuId(id - 4)));
        machine.run_for(3 * MS);
    }
    machine.run_for(1000 * MS);
    let account = machine
        .sched
        .group_account(GroupId(0), machine.now)
        .expect("is there");
    assert!(account.hazard * 5 >= account.sum.running / 4, "{account:?}");
}

#[test]
fn the_skew_of_a_relaxed_gang_is_bounded() {
    // Member 0 shares its CPU with three others; member 1 is alone.
    let mut machine = Machine::new(2);
    machine.group(
        0,
        Mode::Relaxed,
        Share {
            weight: 100,
            cap: 0,
        },
    );
    machine.hog(0, Some(0), Share::default(), Affinity::pinned(CpuId(0)));
    machine.hog(1, Some(0), Share::default(), Affinity::pinned(CpuId(1)));
    for id in 2..5 {
        machine.hog(
            id,
            None,
            Share {
                weight: 1000,
                cap: 0,
            },
            Affinity::pinned(CpuId(0)),
        );
    }
    let skew = machine.sched.config().skew;
    for _ in 0..500 {
        machine.run_for(7 * MS);
        let apart = machine.ran(0).abs_diff(machine.ran(1));
        assert!(apart <= skew + MS, "{apart} apart");
    }
    let account = machine
        .sched
        .account(VcpuId(1), machine.now)
        .expect("is there");
    assert!(account.co_stopped > 0, "{account:?}");
}

#[test]
fn an_idle_member_holds_nobody_up() {
    let mut machine = Machine::new(2);
    machine.group(0, Mode::Relaxed, Share::default());
    for id in 0..2 {
        machine.hog(id, Some(0), Share::default(), Affinity::pinned(CpuId(id)));
    }
    machine.calm();
    machine.block(CpuId(0));
    machine.run_for(1000 * MS);
    assert_eq!(machine.ran(1), machine.now);
}

#[test]
fn one_that_wakes_while_the_others_sleep_is_not_waited_for() {
    let mut machine = Machine::new(2);
    machine.group(0, Mode::Relaxed, Share::default());
    machine.hog(0, Some(0), Share::default(), Affinity::pinned(CpuId(0)));
    machine.run_for(1000 * MS);
    machine.block(CpuId(0));
    // It has to share its CPU with one that has the same weight as both together: a third is theirs.
    machine.hog(1, Some(0), Share::default(), Affinity::pinned(CpuId(1)));
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.run_for(50 * MS);
    let before = machine.ran(0);
    machine.wake(VcpuId(0));
    machine.run_for(1000 * MS);
    let ran = machine.ran(0) - before;
    assert!(ran >= 320 * MS, "it was stopped: {ran} of {}", 1000 * MS);
}

#[test]
fn one_that_wakes_beside_one_that_was_not_charged_is_not_waited_for() {
    let mut machine = Machine::new(2);
    machine.group(0, Mode::Relaxed, Share::default());
    // Alone on its CPU, so that nothing is decided there while the other sleeps.
    machine.hog(0, Some(0), Share::default(), Affinity::pinned(CpuId(0)));
    machine.run_for(1000 * MS);
    machine.hog(1, Some(0), Share::default(), Affinity::pinned(CpuId(1)));
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(1)));
    let before = machine.ran(0);
    machine.run_for(1000 * MS);
    let ran = machine.ran(0) - before;
    assert!(ran >= 320 * MS, "it was stopped: {ran} of {}", 1000 * MS);
}

#[test]
fn one_that_comes_late_has_no_claim_on_what_others_ran_undisturbed() {
    let mut machine = Machine::new(2);
    // Alone on their CPUs, where nothing is decided.
    machine.hog(0, None, Share::default(), Affinity::pinned(CpuId(0)));
    machine.hog(1, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.run_for(1000 * MS);
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(1)));
    let before = machine.ran(1);
    machine.run_for(200 * MS);
    let ran = machine.ran(1) - before;
    assert!(ran >= 90 * MS, "it ran {ran} of {}", 200 * MS);
}

#[test]
fn a_vms_account_keeps_what_a_vcpu_ran_that_left() {
    let mut machine = Machine::new(1);
    machine.hog(0, None, Share::default(), Affinity::any());
    machine.run_for(50 * MS);
    let before = machine.sched.vm_account(VmId(0), machine.now);
    let _ = machine.sched.remove_vcpu(VcpuId(0), machine.now);
    assert_eq!(machine.sched.vm_account(VmId(0), machine.now), before);
    assert!(before.is_some_and(|account| account.running > 0));
}

#[test]
fn balanced_members_stay_at_home() {
    let mut machine = Machine::new(4);
    machine.group(0, Mode::Balance, Share::default());
    for id in 0..4 {
        machine.hog(id, Some(0), Share::default(), Affinity::any());
    }
    for id in 4..12 {
        machine.hog(id, None, Share::default(), Affinity::any());
    }
    machine.run_for(2000 * MS);
    for id in 0..4 {
        let account = machine
            .sched
            .account(VcpuId(id), machine.now)
            .expect("is there");
        assert!(
            account.switches > 20 && account.migrations <= 2,
            "{account:?}"
        );
    }
}

#[test]
fn after_a_member_another_member_goes_first() {
    let mut machine = Machine::new(1);
    machine.group(0, Mode::Prefer, Share::default());
    for id in 0..3 {
        machine.hog(id, Some(0), Share::default(), Affinity::any());
    }
    for id in 3..6 {
        machine.hog(id, None, Share::default(), Affinity::any());
    }
    let mut followed = 0;
    let mut left = 0;
    let mut before = None;
    for _ in 0..3000 {
        machine.run_for(MS);
        let now = machine.sched.current(CpuId(0)).map(|id| id.0);
        if before != now {
            match (before, now) {
                (Some(0..3), Some(0..3)) => followed += 1,
                (Some(0..3), _) => left += 1,
                _ => {}
            }
        }
        before = now;
    }
    assert!(
        followed > left,
        "{followed} times a member followed, {left} times another VM"
    );
}

#[test]
fn one_that_spins_gives_way_to_the_member_that_waits() {
    let mut machine = Machine::new(1);
    machine.group(0, Mode::Off, Share::default());
    machine.hog(0, Some(0), Share::default(), Affinity::any());
    machine.hog(1, Some(0), Share::default(), Affinity::any());
    machine.hog(2, None, Share::default(), Affinity::any());
    machine.run_for(100 * MS);
    for _ in 0..20 {
        machine.run_for(MS);
        let Some(current) = machine.sched.current(CpuId(0)) else {
            panic!("the CPU is idle");
        };
        if current.0 < 2 {
            let kicks = machine.sched.spinning(CpuId(0), machine.now);
            machine.kick(kicks);
            machine.calm();
            assert_eq!(machine.sched.current(CpuId(0)), Some(VcpuId(1 - current.0)));
        }
    }
}

#[test]
fn modes_change_while_all_run() {
    let mut machine = two_groups(Mode::Off);
    for round in 0..200 {
        machine.run_for(3 * MS + 11);
        let mode = Mode::ALL[round % 5];
        let kicks = machine
            .sched
            .set_mode(GroupId(0), mode, machine.now)
            .expect("is there");
        machine.kick(kicks);
        machine.calm();
        machine.check();
    }
    let whole = machine.group_ran(0) + machine.group_ran(1);
    assert_eq!(whole, 4 * machine.now, "no CPU is ever idle");
}

/// A strict gang's start is set, and before it comes the gang is gone: nobody goes on asking for it.
#[test]
fn a_start_that_nobody_waits_for_is_forgotten() {
    let mut machine = two_groups(Mode::Strict);
    // Members come and go until a start is set for a gang.
    for round in 0..200 {
        machine.run_for(3 * MS + 11);
        machine.block(CpuId(round % 4));
        machine.wake(VcpuId((round * 5) % 8));
        machine.calm();
        if machine.sched.pending.is_some() {
            break;
        }
    }
    let (_, pending) = machine.sched.pending.expect("a start is set");
    for id in 0..8 {
        if machine.sched.vcpus[&VcpuId(id)].gang == pending {
            let kicks = machine.sched.pause(VcpuId(id), machine.now);
            machine.kick(kicks);
        }
    }
    machine.run_for(50 * MS);
    let decisions = machine.decisions;
    machine.run_for(100 * MS);
    let asked = machine.decisions - decisions;
    assert!(asked <= 4 * 2 * 11, "{asked} decisions in ten slices");
}

/// Strict gangs that are pinned so that others are always in the way: without a bound to their wait the one who has less choice
/// would win again and again.
#[test]
fn a_strict_gang_that_is_always_in_the_way_starts_at_last() {
    // Members of group 0 (strict), and others; CPUs as bits.
    let cases: [&[(Option<u32>, Mode, u64)]; 2] = [
        &[
            (Some(0), Mode::Strict, 0b1010),
            (Some(0), Mode::Strict, 0b1011),
            (Some(1), Mode::Off, 0b0100),
            (Some(0), Mode::Strict, 0b1000),
            (Some(2), Mode::Relaxed, 0b1111),
            (Some(0), Mode::Strict, 0b0010),
        ],
        // A gang on two CPUs, beside ones that start on either when the other is taken.
        &[
            (Some(0), Mode::Strict, 0b0001),
            (Some(0), Mode::Strict, 0b0010),
            (Some(1), Mode::Relaxed, 0b0101),
            (Some(1), Mode::Relaxed, 0b0101),
            (Some(2), Mode::Relaxed, 0b1010),
            (Some(2), Mode::Relaxed, 0b1010),
            (None, Mode::Off, 0b1111),
        ],
    ];
    for members in cases {
        let mut machine = Machine::new(4);
        for (id, (group, mode, mask)) in (0..).zip(members) {
            if let Some(group) = group {
                let _ = machine
                    .sched
                    .add_group(GroupId(*group), Share::default(), *mode);
            }
            let hard: CpuSet = (0..4)
                .filter(|cpu| mask >> cpu & 1 == 1)
                .map(CpuId)
                .collect();
            machine.hog(id, *group, Share::default(), Affinity { hard, soft: hard });
        }
        let mut before: Vec<u64> = members.iter().map(|_| 0).collect();
        for _ in 0..5 {
            // Twice its members by the groups, and eight, and a few for the others that have waited.
            machine.run_for(60 * 10 * MS);
            machine.check();
            for (id, before) in (0..).zip(&mut before) {
                let ran = machine.ran(id);
                assert!(ran > *before, "{id} did not run in 60 slices");
                *before = ran;
            }
        }
    }
}

/// The CPU that refuses a strict gang's start has something else to do by the time that was set; one that is idle has to know.
#[test]
fn an_idle_cpu_hears_of_a_start_that_another_has_set() {
    let set = |mask: u64| -> CpuSet {
        (0..4)
            .filter(|cpu| mask >> cpu & 1 == 1)
            .map(CpuId)
            .collect()
    };
    let mut machine = Machine::new(4);
    machine.group(0, Mode::Prefer, Share::default());
    machine.group(1, Mode::Off, Share::default());
    // vCPU, group, where it may run and where it likes to.
    let early = [
        (12, 0, 0b0110, 0b0010),
        (3, 1, 0b1010, 0),
        (4, 1, 0b1010, 0),
    ];
    let late = [(6, 0, 0b1111, 0b0111), (0, 0, 0b1000, 0), (1, 0, 0b1000, 0)];
    for (wait, vcpus) in [(MS, early), (29 * MS, late)] {
        for (id, group, hard, soft) in vcpus {
            let affinity = Affinity {
                hard: set(hard),
                soft: set(soft),
            };
            machine.hog(id, Some(group), Share::default(), affinity);
        }
        machine.run_for(wait);
    }
    let kicks = machine
        .sched
        .set_mode(GroupId(0), Mode::Strict, machine.now)
        .expect("is there");
    // It has consumed more than the others, so that it has to wait for them.
    let now = machine.now;
    let charged = machine.sched.charge_for(VmId(6), CpuId(2), 60 * MS, now);
    machine.kick(kicks.and(charged));
    machine.calm();
    let (start, _) = machine.sched.pending.expect("a start is set");
    assert_eq!(machine.sched.current(CpuId(2)), None);
    assert!(start > machine.now && machine.asks_at(CpuId(2)) <= start);
}

#[test]
fn a_groups_starts_are_counted_with_how_far_apart_its_members_began() {
    let mut machine = Machine::new(2);
    machine.group(0, Mode::Off, Share::default());
    for id in 0..2 {
        machine.hog(id, Some(0), Share::default(), Affinity::pinned(CpuId(id)));
    }
    // CPU 0 comes first, CPU 1 after 5 ticks.
    machine.ask(CpuId(0));
    machine.now += 5;
    machine.ask(CpuId(1));
    let starts = |machine: &Machine| {
        let account = machine.sched.group_account(GroupId(0), machine.now);
        let starts = account.expect("is there").starts;
        (starts.count(), starts.percentile(50), starts.most())
    };
    assert_eq!(starts(&machine), (1, 5, 5));
    // One that blocks and comes back while the other runs starts nothing.
    machine.run_for(MS);
    machine.block(CpuId(1));
    machine.ring(VcpuId(1));
    machine.run_for(MS);
    assert_eq!(starts(&machine), (1, 5, 5));
    // Both sleep, and one comes back.
    machine.block(CpuId(0));
    machine.block(CpuId(1));
    machine.run_for(MS);
    machine.ring(VcpuId(0));
    machine.run_for(MS);
    assert_eq!(starts(&machine), (2, 0, 5));
    // One that wakes on a CPU that another has taken is not of that start.
    machine.block(CpuId(0));
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.run_for(MS);
    let kicks = machine.sched.wake(VcpuId(0), machine.now);
    machine.kick(kicks);
    machine.pending = CpuSet::EMPTY;
    let _ = machine.sched.schedule(CpuId(0), machine.now);
    let kicks = machine.sched.wake(VcpuId(1), machine.now);
    machine.kick(kicks);
    machine.now += 7;
    machine.sched.loaded_now(CpuId(0), machine.now);
    assert_eq!(starts(&machine).0, 3);
}
