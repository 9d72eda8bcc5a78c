//! Waking up: the waker leaves a mark, and the CPU that slept says so to the scheduler.

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
fn a_waker_leaves_the_scheduler_alone_and_the_cpu_that_slept_takes_one_decision() {
    for mode in Mode::ALL {
        let mut machine = pair(mode);
        let decisions = machine.decisions();
        machine.ring(VcpuId(1));
        assert_eq!(machine.sched.current(CpuId(1)), None, "{mode:?}");
        machine.calm();
        machine.check();
        assert_eq!(machine.sched.current(CpuId(1)), Some(VcpuId(1)), "{mode:?}");
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

/// The CPU that wakes is not the sleeper's if somebody is before it.
#[test]
fn it_is_compared_if_somebody_waits_for_its_cpu() {
    let mut machine = pair(Mode::Off);
    // Two that have consumed nothing, of much more weight, are pinned to the CPU while the kick is on its way.
    machine.ring(VcpuId(1));
    let heavy = Share {
        weight: 60_000,
        cap: 0,
    };
    for id in 2..4 {
        machine.hog(id, None, heavy, Affinity::pinned(CpuId(1)));
    }
    machine.calm();
    machine.check();
    machine.run_for(100 * 10 * MS);
    assert!(machine.ran(1) < 30 * MS, "{}", machine.ran(1));
    assert!(machine.ran(2).abs_diff(machine.ran(3)) <= 20 * MS);
}

/// Found by a review: the CPU of one that is on its way there blocks what it still has loaded, not the one that is to come.
#[test]
fn what_is_on_its_way_to_a_cpu_is_not_blocked_by_what_leaves_it() {
    let mut machine = pair(Mode::Off);
    // A third one runs on CPU 1, and is paused; before the CPU asks, the one that slept there wakes.
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.run_for(MS);
    let now = machine.now;
    assert_eq!(machine.sched.current(CpuId(1)), Some(VcpuId(2)));
    let kicks = machine.sched.pause(VcpuId(2), now);
    machine.ring(VcpuId(1));
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
    machine.run_for(30 * MS);
    assert!(machine.ran(0) > 0 && machine.ran(1) > 0);
    // It is back when it asks.
    machine.ask(CpuId(1));
    assert!(machine.sched.current(CpuId(1)).is_some());
}

/// Between the mark and the CPU's own word to the scheduler anything may happen: the mark is no promise.
#[test]
fn what_has_changed_since_the_mark_holds() {
    // It may not run there any more.
    let mut machine = pair(Mode::Off);
    machine.ring(VcpuId(1));
    let elsewhere = Affinity::pinned(CpuId(0));
    let kicks = machine
        .sched
        .set_affinity(VcpuId(1), elsewhere, machine.now)
        .expect("is there");
    machine.kick(kicks);
    machine.calm();
    machine.check();
    assert_eq!(machine.sched.current(CpuId(1)), None);
    machine.run_for(40 * MS);
    assert!(machine.ran(1) > 2 * MS, "it runs where it may");

    // It is paused.
    let mut machine = pair(Mode::Off);
    machine.ring(VcpuId(1));
    let kicks = machine.sched.pause(VcpuId(1), machine.now);
    machine.kick(kicks);
    machine.calm();
    machine.check();
    assert_eq!(machine.sched.current(CpuId(1)), None);
    // The wake-up is not lost.
    let kicks = machine.sched.resume(VcpuId(1), machine.now);
    machine.kick(kicks);
    machine.calm();
    assert_eq!(machine.sched.current(CpuId(1)), Some(VcpuId(1)));

    // It has left.
    let mut machine = pair(Mode::Off);
    machine.ring(VcpuId(1));
    let kicks = machine.sched.remove_vcpu(VcpuId(1), machine.now);
    machine.kick(kicks.expect("is there"));
    machine.calm();
    machine.check();
    assert_eq!(machine.sched.current(CpuId(1)), None);

    // Somebody else has the CPU.
    let mut machine = pair(Mode::Off);
    machine.ring(VcpuId(1));
    machine.hog(2, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.calm();
    machine.check();
    let before = machine.ran(1) + machine.ran(2);
    machine.run_for(100 * MS);
    assert_eq!(machine.ran(1) + machine.ran(2) - before, 100 * MS);
    assert!(machine.ran(2) >= 30 * MS, "{}", machine.ran(2));
}
