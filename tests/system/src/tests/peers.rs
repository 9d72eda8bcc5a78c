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
        "peers/write-group-page",
        pair("how=write-group-page"),
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
    let mut storm = SystemTest::new("peers/random-deaths", deaths(1, 16, 16), |reports| {
        let report = expect::first(reports)?;
        let cases = [
            "own-part-is-untouched",
            "nothing-stale",
            "nobody-waits-too-long",
            "nothing-wrong",
            "deaths-were-told",
        ];
        expect::passed(report, "left", &cases)?;
        expect::passed(report, "right", &cases)?;
        expect::all_ended_well(reports)?;
        expect::frames_came_back(report)
    });
    storm.full = Some(deaths(2, 16, 626));
    tests.push(storm);
}

/// Two survivors among victims that die `lives` - 1 times each, at points that follow from the seed: 240 deaths in the short run, 10,000
/// in the long one.
fn deaths(seed: u32, victims: u32, lives: u32) -> String {
    let arguments = format!("seed={seed} victims={victims} lives={lives}");
    let mut text = String::from("[machine]\ncpus = 3\nmemory = \"512M\"\ntimeout = \"60m\"\n");
    text += "\n[[group]]\nname = \"g\"\npages = 64\nmode = \"off\"\n";
    let mut vm = |name: &str, cpu: u32, cmdline: &str| {
        text += &format!(
            "\n[[vm]]\nname = \"{name}\"\nimage = \"deaths\"\nmemory = \"8M\"\ngroup = \"g\"\ncpu = {cpu}\n\
             cmdline = \"{cmdline}\"\n"
        );
    };
    vm("left", 0, &arguments);
    vm("right", 1, &arguments);
    for victim in 0..victims {
        let name = format!("victim-{victim}");
        vm(&name, victim % 3, &format!("{arguments} victim={victim}"));
    }
    text
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
