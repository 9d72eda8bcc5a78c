//! Waking up the short way.

use super::driver::MS;
use crate::sim::Machine;
use crate::{Affinity, CpuId, Mode, Share, VcpuId};

/// Two members of a gang on a CPU each; the second one sleeps.
fn pair(mode: Mode) -> Machine {
    let mut machine = Machine::new(2);
    machine.group(0, mode, Share::default());
    for id in 0..2 {
        machine.hog(id, Some(0), Share::default(), Affinity::pinned(CpuId(id)));
    }
    machine.run_for(MS);
    machine.block(CpuId(1));
    machine.run_for(MS);
    machine
}

#[test]
fn one_that_wakes_where_nobody_waits_is_put_on_its_cpu_at_once() {
    for mode in Mode::ALL {
        let mut machine = pair(mode);
        let decisions = machine.decisions();
        machine.ring(VcpuId(1));
        let runs = machine.sched.current(CpuId(1)) == Some(VcpuId(1));
        assert_eq!(runs, mode != Mode::Strict, "{mode:?}");
        machine.calm();
        machine.check();
        assert_eq!(machine.decisions(), decisions + 1);
        machine.run_for(MS);
        // Both ran all the time but for what the second one slept.
        assert_eq!((machine.ran(0), machine.ran(1)), (3 * MS, 2 * MS));
        let account = machine
            .sched
            .account(VcpuId(1), machine.now)
            .expect("is there");
        assert_eq!((account.runnable, account.blocked), (0, MS));
    }
}

#[test]
fn it_is_compared_if_somebody_waits_for_its_cpu() {
    let mut machine = pair(Mode::Relaxed);
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(0)));
    machine.calm();
    let now = machine.now;
    assert_eq!(
        machine.sched.wake_in_place(VcpuId(1), true, now, |_| true),
        None
    );
}

/// Found by a review: the CPU of one that is granted to it blocks what it still has loaded, not the one that was granted.
#[test]
fn what_is_on_its_way_to_a_cpu_is_not_blocked_by_what_leaves_it() {
    let mut machine = pair(Mode::Off);
    // A third one runs on CPU 1, and is paused; before the CPU asks, the one that slept there wakes.
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.run_for(MS);
    let now = machine.now;
    assert_eq!(machine.sched.current(CpuId(1)), Some(VcpuId(2)));
    let kicks = machine.sched.pause(VcpuId(2), now);
    assert!(
        machine
            .sched
            .wake_in_place(VcpuId(1), true, now, |_| true)
            .is_some()
    );
    machine.kick(kicks);
    // The guest halted just then.
    machine.block(CpuId(1));
    machine.calm();
    machine.check();
    assert_eq!(machine.sched.current(CpuId(1)), Some(VcpuId(1)));
}

#[test]
fn nobody_is_put_on_a_cpu_that_is_away() {
    let mut machine = Machine::new(2);
    machine.group(0, Mode::Relaxed, Share::default());
    let kicks = machine.sched.set_away(CpuId(1), true, 0);
    machine.kick(kicks);
    for id in 0..2 {
        machine.hog(id, Some(0), Share::default(), Affinity::any());
    }
    machine.calm();
    assert_eq!(machine.sched.current(CpuId(1)), None);
    let grant = machine.sched.wake_in_place(VcpuId(0), true, 0, |_| false);
    assert_eq!(grant, None);
    machine.run_for(30 * MS);
    assert!(machine.ran(0) > 0 && machine.ran(1) > 0);
    // It is back when it asks.
    machine.ask(CpuId(1));
    assert!(machine.sched.current(CpuId(1)).is_some());
}

#[test]
fn it_is_not_put_on_a_cpu_that_it_may_not_use_any_more_or_that_is_in_use() {
    let mut machine = pair(Mode::Off);
    let now = machine.now;
    let elsewhere = Affinity::pinned(CpuId(0));
    let kicks = machine
        .sched
        .set_affinity(VcpuId(1), elsewhere, now)
        .expect("is there");
    machine.kick(kicks);
    machine.calm();
    assert_eq!(
        machine.sched.wake_in_place(VcpuId(1), false, now, |_| true),
        None
    );

    let mut machine = pair(Mode::Off);
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.calm();
    assert_eq!(
        machine.sched.wake_in_place(VcpuId(1), false, now, |_| true),
        None
    );
}

#[test]
fn one_that_is_paused_or_runs_is_not_woken() {
    let mut machine = pair(Mode::Off);
    let now = machine.now;
    assert_eq!(
        machine.sched.wake_in_place(VcpuId(0), false, now, |_| true),
        None
    );
    let kicks = machine.sched.pause(VcpuId(1), now);
    machine.kick(kicks);
    assert_eq!(
        machine.sched.wake_in_place(VcpuId(1), false, now, |_| true),
        None
    );
}

/// A kick that comes after the grant makes the CPU ask, and what it is told then counts.
#[test]
fn a_kick_voids_the_grant() {
    let mut machine = pair(Mode::Off);
    machine.ring(VcpuId(1));
    let kicks = machine.sched.pause(VcpuId(1), machine.now);
    machine.kick(kicks);
    machine.calm();
    assert_eq!(machine.sched.current(CpuId(1)), None);
    machine.check();
}
