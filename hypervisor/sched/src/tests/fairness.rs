//! Shares, caps, and those who try to get more.

use super::driver::MS;
use crate::sim::Machine;
use crate::{Affinity, CpuId, Mode, Share, VcpuId, VmId};

fn weight(weight: u16) -> Share {
    Share { weight, cap: 0 }
}

/// How far a part is from what it should be, in percent of the whole.
fn error(part: u64, whole: u64, should: f64) -> f64 {
    (part as f64 / whole as f64 - should).abs() * 100.0
}

#[test]
fn vms_share_a_cpu_by_weight() {
    for ratio in [1, 2, 10] {
        let mut machine = Machine::new(1);
        machine.hog(0, None, weight(256), Affinity::any());
        machine.hog(1, None, weight(256 * ratio), Affinity::any());
        machine.run_for(100 * 10 * MS);
        let whole = machine.ran(0) + machine.ran(1);
        assert_eq!(whole, machine.now, "the CPU is never idle");
        let should = 1.0 / f64::from(1 + ratio);
        let off = error(machine.ran(0), whole, should);
        assert!(off <= 2.0, "1:{ratio}: {off} %");
    }
}

/// From the first slice on, over 100: shares of the machine, in points.
#[test]
fn groups_share_the_machine_by_weight_whatever_their_size() {
    for mode in Mode::ALL {
        for ratio in [1, 2, 10] {
            for (cpus, sizes) in [
                (2, [2, 4]),
                (2, [4, 2]),
                (1, [1, 8]),
                (4, [4, 4]),
                (4, [8, 4]),
            ] {
                let mut machine = Machine::new(cpus);
                machine.group(0, mode, weight(100));
                machine.group(1, mode, weight(100 * ratio));
                for id in 0..sizes[0] + sizes[1] {
                    let group = u32::from(id >= sizes[0]);
                    machine.hog(id, Some(group), Share::default(), Affinity::any());
                }
                machine.run_for(100 * 10 * MS);
                let whole = machine.group_ran(0) + machine.group_ran(1);
                let off = error(machine.group_ran(0), whole, 1.0 / f64::from(1 + ratio));
                // Prefer mode runs a slice of each member in a row, eight of a hundred here, before it compares groups.
                let most = if mode == Mode::Prefer && sizes[1] == 8 {
                    2.4
                } else {
                    2.0
                };
                assert!(off <= most, "{mode} {cpus} {sizes:?} 1:{ratio}: {off} %");
            }
        }
    }
}

#[test]
fn caps_are_kept_for_vms_and_for_groups() {
    for cap in (25..=95).step_by(10).chain([100]) {
        for grouped in [false, true] {
            let mut machine = Machine::new(2);
            let share = Share { weight: 256, cap };
            if grouped {
                machine.group(0, Mode::Off, share);
                machine.hog(0, Some(0), Share::default(), Affinity::any());
                machine.hog(1, Some(0), Share::default(), Affinity::any());
            } else {
                machine.hog(0, None, share, Affinity::any());
            }
            machine.run_for(100 * 10 * MS);
            let ran: u64 = if grouped {
                machine.group_ran(0)
            } else {
                machine.ran(0)
            };
            let off = error(ran, machine.now, f64::from(cap) / 100.0);
            assert!(off <= 2.0, "cap {cap} (group: {grouped}): {ran}, {off} %");
        }
    }
}

/// A member that a cap holds back is behind for good reason: nobody is stopped for it, nor asked about it all the time.
#[test]
fn a_capped_member_does_not_make_decisions_follow_each_other_at_once() {
    for mode in Mode::ALL {
        let mut machine = Machine::new(2);
        machine.group(0, mode, Share::default());
        machine.hog(0, Some(0), Share::default(), Affinity::any());
        let capped = Share {
            weight: 256,
            cap: 10,
        };
        machine.hog(1, Some(0), capped, Affinity::any());
        machine.run_for(100 * 10 * MS);
        assert!(
            machine.faults.is_empty(),
            "mode {mode}: {:?}",
            machine.faults
        );
        assert!(
            machine.decisions < 4_000,
            "mode {mode}: {} decisions in 100 slices",
            machine.decisions
        );
    }
}

#[test]
fn a_cap_leaves_the_rest_to_others() {
    let mut machine = Machine::new(1);
    machine.hog(
        0,
        None,
        Share {
            weight: 60_000,
            cap: 30,
        },
        Affinity::any(),
    );
    machine.hog(1, None, weight(1), Affinity::any());
    machine.run_for(1000 * MS);
    assert!(error(machine.ran(0), machine.now, 0.3) <= 1.0);
    assert_eq!(machine.ran(0) + machine.ran(1), machine.now);
}

/// One that gives its CPU back just before each slice ends, to dodge a sampled tick, gains nothing: time is charged by the
/// clock.
#[test]
fn a_thief_that_yields_before_the_tick_gains_nothing() {
    let mut machine = Machine::new(1);
    machine.hog(0, None, Share::default(), Affinity::any());
    machine.hog(1, None, Share::default(), Affinity::any());
    for _ in 0..2000 {
        machine.run_for(MS / 2);
        if machine.sched.current(CpuId(0)) == Some(VcpuId(1)) {
            let kicks = machine.sched.yield_now(CpuId(0), machine.now);
            machine.kick(kicks);
        }
    }
    let share = machine.ran(1) as f64 / machine.now as f64;
    assert!(share <= 0.505, "the thief has {share}");
}

/// One that sleeps shortly and is rung again and again is boosted each time, and pays each time.
#[test]
fn a_thief_that_is_rung_for_boosts_gains_nothing() {
    let mut machine = Machine::new(1);
    machine.hog(0, None, Share::default(), Affinity::any());
    machine.hog(1, None, Share::default(), Affinity::any());
    for _ in 0..4000 {
        machine.run_for(MS / 4);
        if machine.sched.current(CpuId(0)) == Some(VcpuId(1)) {
            machine.block(CpuId(0));
        }
        let kicks = machine.sched.wake_boosted(VcpuId(1), machine.now);
        machine.kick(kicks);
    }
    let share = machine.ran(1) as f64 / machine.now as f64;
    assert!(share <= 0.505, "the thief has {share}");
}

/// Members that spin and give way to each other stay within the slice that one of them was given.
#[test]
fn members_that_give_way_to_each_other_gain_nothing() {
    for mode in Mode::ALL {
        let mut machine = Machine::new(1);
        machine.group(0, mode, Share::default());
        for id in 0..3 {
            machine.hog(id, Some(0), Share::default(), Affinity::any());
        }
        machine.hog(3, None, Share::default(), Affinity::any());
        for _ in 0..4000 {
            machine.run_for(MS / 4);
            machine.spin(CpuId(0));
        }
        let share = machine.group_ran(0) as f64 / machine.now as f64;
        // Prefer mode lets each member run a slice before the group is compared with others.
        let most = if mode == Mode::Prefer { 0.52 } else { 0.505 };
        assert!(share <= most, "{mode}: the group has {share}");
    }
}

/// It is the others' turn once, not until nobody else wants to run.
#[test]
fn one_that_yields_goes_last_once() {
    let mut machine = Machine::new(1);
    for id in 0..3 {
        machine.hog(id, None, Share::default(), Affinity::any());
    }
    machine.run_for(100 * MS + MS / 2);
    let id = machine.sched.current(CpuId(0)).expect("somebody runs");
    let before = machine.ran(id.0);
    machine.give_way(CpuId(0));
    assert_ne!(machine.sched.current(CpuId(0)), Some(id));
    machine.run_for(30 * MS);
    assert!(machine.ran(id.0) > before, "{id:?} does not run again");
}

#[test]
fn a_sleeper_gets_its_cpu_soon_after_it_wakes() {
    let mut machine = Machine::new(1);
    machine.hog(0, None, Share::default(), Affinity::any());
    machine.hog(1, None, Share::default(), Affinity::any());
    machine.run_for(100 * MS);
    for _ in 0..50 {
        // Vcpu 1 works 1 ms in 20.
        if machine.sched.current(CpuId(0)) == Some(VcpuId(1)) {
            machine.block(CpuId(0));
        }
        machine.run_for(19 * MS);
        let kicks = machine.sched.wake_boosted(VcpuId(1), machine.now);
        machine.kick(kicks);
        let woken = machine.now;
        machine.run_for(2 * MS);
        let account = machine
            .sched
            .account(VcpuId(1), machine.now)
            .expect("is there");
        assert!(account.running > 0 && machine.now - woken <= 2 * MS);
    }
}

#[test]
fn alone_on_its_cpu_a_vcpu_is_never_interrupted() {
    let mut machine = Machine::new(2);
    machine.group(0, Mode::Relaxed, Share::default());
    for id in 0..2 {
        machine.hog(id, Some(0), Share::default(), Affinity::pinned(CpuId(id)));
    }
    // One slice to come to rest.
    machine.run_for(20 * MS);
    let decisions = machine.decisions;
    machine.run_for(10_000 * MS);
    assert_eq!(machine.decisions, decisions);
}

/// Work is done for VM 0 in VM 1's time, a fifth of a millisecond of each that VM 1 runs: together they get their shares still.
#[test]
fn work_in_anothers_time_is_charged_to_whom_it_is_for() {
    for ratio in [1, 2] {
        let mut machine = Machine::new(1);
        machine.hog(0, None, weight(256 * ratio), Affinity::any());
        machine.hog(1, None, weight(256), Affinity::any());
        let mut work = 0;
        for _ in 0..100 * 10 {
            machine.run_for(MS);
            if machine.sched.current(CpuId(0)) == Some(VcpuId(1)) {
                let now = machine.now;
                let kicks = machine.sched.charge_for(VmId(0), CpuId(0), MS / 5, now);
                machine.kick(kicks);
                work += MS / 5;
            }
        }
        let (first, second) = (machine.ran(0) + work, machine.ran(1) - work);
        let should = f64::from(ratio) / f64::from(1 + ratio);
        let off = error(first, first + second, should);
        assert!(off <= 2.0, "{ratio}:1: {off} %");
        assert!(work > 30 * MS);
    }
}

/// A VM with a cap cannot have more done by having it done in others' time.
#[test]
fn work_in_anothers_time_counts_for_the_cap() {
    let mut machine = Machine::new(2);
    machine.hog(
        0,
        None,
        Share {
            weight: 256,
            cap: 50,
        },
        Affinity::pinned(CpuId(0)),
    );
    machine.hog(1, None, Share::default(), Affinity::pinned(CpuId(1)));
    let mut work = 0;
    for _ in 0..100 * 10 {
        machine.run_for(MS);
        let now = machine.now;
        let kicks = machine.sched.charge_for(VmId(0), CpuId(1), MS / 4, now);
        machine.kick(kicks);
        work += MS / 4;
    }
    let off = error(machine.ran(0) + work, machine.now, 0.5);
    assert!(off <= 2.0, "{off} %");
}
