//! What a member sees of a peer that ends, dies or hangs: an error, never an endless wait.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let pair = |cmdline: &str| {
        Scenario::new(2)
            .group("g")
            .vm("watcher", Some("g"), 0, "peers", cmdline)
            .vm("peer", Some("g"), 1, "peers", cmdline)
            .text()
    };
    tests.push(SystemTest::new(
        "peers/exit",
        pair("how=exit code=3"),
        |reports| dead(reports, "exit", Some(3)),
    ));
    tests.push(SystemTest::new(
        "peers/triple-fault",
        pair("how=triple-fault"),
        |reports| dead(reports, "triple-fault", None),
    ));
    tests.push(SystemTest::new(
        "peers/wild-jump",
        pair("how=wild-jump"),
        |reports| dead(reports, "memory-violation", None),
    ));
    tests.push(SystemTest::new(
        "peers/stuck-with-the-lock",
        pair("how=stuck ms=50"),
        |reports| {
            let cases = [
                "stuck-holder-times-out",
                "stuck-peer-misses-the-barrier",
                "lock-of-a-slow-holder",
            ];
            expect::passed(expect::first(reports)?, "watcher", &cases)?;
            expect::all_ended_well(reports)
        },
    ));
    tests.push(SystemTest::new("peers/reset", lives(), |reports| {
        let report = expect::first(reports)?;
        let waits = [
            "flag",
            "empty-ring",
            "full-ring",
            "barrier",
            "lock",
            "empty-queue",
            "full-queue",
        ];
        expect::passed(report, "near-watcher", &waits)?;
        expect::passed(report, "far-watcher", &waits)?;
        expect::all_ended_well(reports)?;
        expect::frames_came_back(report)
    }));
}

/// A pair on one CPU, and one on two.
fn lives() -> String {
    Scenario::new(3)
        .group("near")
        .vm("near-watcher", Some("near"), 0, "lives", "")
        .vm("near-peer", Some("near"), 0, "lives", "")
        .group("far")
        .vm("far-watcher", Some("far"), 1, "lives", "")
        .vm("far-peer", Some("far"), 2, "lives", "")
        .text()
}

fn dead(reports: &[RunReport], cause: &str, code: Option<i64>) -> Verdict {
    let report = expect::first(reports)?;
    expect::ended(report, "peer", cause, code)?;
    let cases = [
        "state-of-the-dead",
        "doorbell-to-the-dead",
        "last-words",
        "ring-of-the-dead",
        "lock-of-the-dead",
    ];
    expect::passed(report, "watcher", &cases)?;
    expect::passed(
        report,
        "watcher",
        &["barrier-with-the-dead", "lock-is-whole-again"],
    )?;
    expect::frames_came_back(report)
}
