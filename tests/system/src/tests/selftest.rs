//! What the hypervisor does with its own faults: they are caught where they happen, dumped, stop all CPUs, and fail the run.
//! And a proof that a change of its own page tables is seen by all CPUs at once.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    type Check = fn(&[RunReport]) -> Verdict;
    let faults: [(&str, Check); 4] = [
        ("panic", |reports| {
            stopped(reports, &["HYPERVISOR PANIC", "self-test"])
        }),
        // The fault on the guard page has no stack to be delivered on.
        ("stack-overflow", |reports| {
            stopped(reports, &["#DF (vector 8)", "rip 0x", "cr3 "])
        }),
        // Error code: present, write.
        ("write-code", |reports| {
            stopped(reports, &["#PF (vector 14), error code 0x3"])
        }),
        // Error code: present, instruction fetch.
        ("run-data", |reports| {
            stopped(reports, &["#PF (vector 14), error code 0x11"])
        }),
    ];
    for (name, check) in faults {
        tests.push(SystemTest::new(
            &format!("selftest/{name}"),
            scenario(2, name),
            check,
        ));
    }
    for cpus in [1, 2, 4, 8] {
        tests.push(SystemTest::new(
            &format!("selftest/shootdown-{cpus}-cpus"),
            scenario(cpus, "shootdown"),
            |reports| {
                expect::said(
                    expect::first(reports)?,
                    "changes of a mapping were seen at once by",
                )?;
                expect::all_ended_well(reports)
            },
        ));
    }
    tests.push(SystemTest::new(
        "selftest/stall",
        scenario(2, "stall"),
        |reports| {
            let report = expect::first(reports)?;
            expect::said(report, "CPU 1 has not come back to its run loop for")?;
            expect::said(report, "called from 0x")?;
            expect::said(report, "CPU 1 is back in its run loop")?;
            // It goes on: the VM that waited for it ends well.
            expect::all_ended_well(reports)
        },
    ));
    tests.push(SystemTest::new(
        "selftest/entry-failure",
        scenario(2, "entry-failure"),
        |reports| {
            let report = expect::first(reports)?;
            expect::ended(report, "m0", "entry-failure", None)?;
            expect::said(report, "GUEST_CR3 = 0x4000000000000000")?;
            expect::ended(report, "m1", "exit", Some(0))?;
            expect::frames_came_back(report)
        },
    ));
}

fn scenario(cpus: u32, selftest: &str) -> String {
    let mut scenario = Scenario::new(cpus).machine(&format!("selftest = \"{selftest}\""));
    for cpu in 0..cpus.min(2) {
        scenario = scenario.vm(&format!("m{cpu}"), None, cpu, "hello", "");
    }
    scenario.text()
}

fn stopped(reports: &[RunReport], words: &[&str]) -> Verdict {
    let report = expect::first(reports)?;
    for word in words {
        expect::said(report, word)?;
    }
    if report.ok {
        return Err("the run is taken for good".to_owned());
    }
    if report.vm_ends().count() != 0 {
        return Err("a VM ran after the hypervisor had failed".to_owned());
    }
    Ok(())
}
