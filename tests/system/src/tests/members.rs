//! Groups of several members: one address, pointers that mean the same to all, nobody else's memory.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let members = |count: u32, cmdline: &str| {
        let mut scenario = Scenario::new(count).group("g");
        for cpu in 0..count {
            let cmdline = format!("{cmdline} members={count}");
            scenario = scenario.vm(&format!("m{cpu}"), Some("g"), cpu, "members", &cmdline);
        }
        scenario.text()
    };
    tests.push(SystemTest::new(
        "members/three-at-one-address",
        members(3, "case=same-address"),
        |reports| each(reports, &["group-address", "pointer-of-a-peer"]),
    ));
    tests.push(SystemTest::new(
        "members/late-address",
        members(2, "case=late-address"),
        |reports| {
            expect::passed(
                expect::first(reports)?,
                "m1",
                &["other-address-of-a-peer", "other-address-unchanged"],
            )?;
            expect::all_ended_well(reports)
        },
    ));
    tests.push(SystemTest::new(
        "members/list",
        members(2, "case=list"),
        |reports| each(reports, &["member-count", "my-name", "all-mapped"]),
    ));
    let mut scenario = Scenario::new(2).group("a").group("b");
    for (cpu, group) in ["a", "b"].into_iter().enumerate() {
        let cmdline = format!("case=isolation members=1 ms=20 mark={}", 17 + cpu);
        scenario = scenario.vm(
            &format!("m{cpu}"),
            Some(group),
            cpu as u32,
            "members",
            &cmdline,
        );
    }
    tests.push(SystemTest::new(
        "members/isolation",
        scenario.text(),
        |reports| each(reports, &["fresh-region-is-zeroed", "own-marks-only"]),
    ));
}

fn each(reports: &[RunReport], cases: &[&str]) -> Verdict {
    let report = expect::first(reports)?;
    for end in report.vm_ends() {
        expect::passed(report, &end.vm, cases)?;
    }
    expect::all_ended_well(reports)
}
