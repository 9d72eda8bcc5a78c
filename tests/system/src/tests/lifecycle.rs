//! What belongs to a VM lives on over its resets: its account, its cap, its allowance, its name and its place in every list.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{Operator, SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    // CPU 0: one that resets itself beside an honest one of the same weight. CPU 1: the same with work in between and a cap.
    // CPU 2: by triple faults, with lines of output, until it may no more.
    let scenario = Scenario::new(3)
        .vm("beside-reset", None, 0, "attack", "ms=4000")
        .vm("resetter", None, 0, "attack", "attack=reset until=14000")
        .vm("beside-capped", None, 1, "attack", "ms=4000")
        .vm(
            "capped",
            None,
            1,
            "attack",
            "attack=reset work=2 until=14000",
        )
        .with("cap = 10")
        .vm("beside-talker", None, 2, "attack", "ms=4000")
        .vm(
            "talker",
            None,
            2,
            "attack",
            "attack=reset by=fault lines=40 until=900000",
        )
        .with("restarts = 6")
        .text();
    tests.push(SystemTest::new(
        "lifecycle/reset-loop",
        scenario,
        |reports| {
            let report = expect::first(reports)?;
            at_least(report, "beside-reset", 480)?;
            at_least(report, "beside-capped", 850)?;
            at_least(report, "beside-talker", 480)?;
            last_end(report, "resetter", "exit")?;
            last_end(report, "capped", "exit")?;
            last_end(report, "talker", "reset-limit")?;
            let lives = report.vm_ends().filter(|end| end.vm == "talker").count();
            if lives != 7 {
                return Err(format!("talker had {lives} lives with 6 restarts"));
            }
            // Six lives are counted by the names they had, not by their lives.
            if !report.reason.starts_with("1 VMs did not end well") {
                return Err(format!("the run ended by {:?}", report.reason));
            }
            expect::frames_came_back(report)
        },
    ));
    let operated = Scenario::new(2)
        .machine("control = true")
        .machine("linger = true")
        .vm(
            "resetter",
            None,
            1,
            "attack",
            "attack=reset until=100000000",
        )
        .text()
        .replace("32M", "64M");
    let mut test = SystemTest::new("lifecycle/operated", operated, |reports| {
        let report = expect::first(reports)?;
        last_end(report, "resetter", "destroyed")?;
        expect::all_ended_well(reports)
    });
    test.script = Some(operated_between_lives);
    tests.push(test);
}

/// The last life of a VM ended so.
fn last_end(report: &RunReport, vm: &str, cause: &str) -> Verdict {
    match report.vm_ends().filter(|end| end.vm == vm).last() {
        Some(end) if end.cause == cause => Ok(()),
        found => Err(format!("{vm} ended by {found:?}, not by {cause}")),
    }
}

/// The VM had that share of its CPU, in thousandths.
fn at_least(report: &RunReport, vm: &str, permille: u64) -> Verdict {
    let share: u64 = report
        .guest_lines(vm)
        .find_map(|line| line.strip_prefix("share ")?.split(' ').next()?.parse().ok())
        .ok_or_else(|| format!("{vm} did not say its share"))?;
    if share < permille {
        return Err(format!("{vm} had {share} of 1000, not {permille}"));
    }
    Ok(())
}

/// A VM that is reset all the time is in every list, keeps its name, and is paused, changed and destroyed in whatever state it is.
fn operated_between_lives(operator: &Operator) -> Verdict {
    for round in 0..12 {
        let row = operator.vm("resetter")?;
        if row["ticks"]["total"].as_u64() == Some(0) {
            return Err("it has no account".to_owned());
        }
        operator.refused(&["create", "hello", "--name", "resetter"], "resetter")?;
        if round % 4 == 3 {
            operator.must(&["pause", "resetter"])?;
            operator.await_state("resetter", "paused")?;
            operator.must(&["resume", "resetter"])?;
        }
    }
    let resets = operator.vm("resetter")?["resets"].as_u64();
    if resets.is_none_or(|resets| resets < 3) {
        return Err(format!("its resets are not counted: {resets:?}"));
    }
    operator.must(&["reset", "resetter"])?;
    operator.must(&["destroy", "resetter"])?;
    operator.await_state("resetter", "ended")?;
    let row = operator.vm("resetter")?;
    if row["ticks"]["running"]
        .as_u64()
        .is_none_or(|ticks| ticks == 0)
    {
        return Err(format!("one that has ended has no ticks: {row}"));
    }
    // The next of that name is destroyed as well, each time.
    for _ in 0..6 {
        operator.must(&[
            "create",
            "attack",
            "attack=reset",
            "until=100000000",
            "--name",
            "resetter",
            "-m",
            "64M",
        ])?;
        operator.must(&["destroy", "resetter"])?;
    }
    operator.must(&["shutdown"])
}
