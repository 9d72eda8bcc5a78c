//! However a VM ends, the others go on to their own end, and the run says what happened.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let beside = |cmdline: &str, group: bool| {
        let scenario = if group {
            Scenario::new(2).group("g")
        } else {
            Scenario::new(2)
        };
        let group = group.then_some("g");
        scenario
            .vm("bad", group, 0, "machine", cmdline)
            .vm("good", group, 1, "machine", "case=deadline,heap")
            .text()
    };
    tests.push(SystemTest::new(
        "ends/triple-fault",
        beside("case=triple-fault", false),
        |reports| bad_ended(reports, "triple-fault", None),
    ));
    tests.push(SystemTest::new(
        "ends/wild-jump",
        beside("case=wild-jump", false),
        // Code where nothing is reads as ones, which is no instruction: the guest's own handler gives up.
        |reports| bad_ended(reports, "exit", Some(102)),
    ));
    tests.push(SystemTest::new(
        "ends/write-group-page",
        beside("case=write-group-page", true),
        |reports| bad_ended(reports, "memory-violation", None),
    ));
    tests.push(SystemTest::new(
        "ends/write-info-page",
        beside("case=write-info-page", false),
        |reports| bad_ended(reports, "memory-violation", None),
    ));
    tests.push(SystemTest::new(
        "ends/panic",
        beside("case=panic", false),
        |reports| bad_ended(reports, "exit", Some(101)),
    ));
    tests.push(SystemTest::new(
        "ends/exit-code",
        beside("case=exit-code code=7", false),
        |reports| bad_ended(reports, "exit", Some(7)),
    ));
    tests.push(SystemTest::new(
        "ends/halt-for-ever",
        beside("case=halt-for-ever", false),
        |reports| bad_ended(reports, "halted-forever", None),
    ));
    let spinner = beside("case=spin ms=200", false);
    tests.push(SystemTest::new(
        "ends/spin-with-interrupts-off",
        spinner,
        |reports| {
            expect::all_ended_well(reports)?;
            // The other one did not wait for the spinner.
            let order: Vec<_> = expect::first(reports)?
                .vm_ends()
                .map(|end| end.vm)
                .collect();
            if order == ["good", "bad"] {
                Ok(())
            } else {
                Err(format!("they ended in the order {order:?}"))
            }
        },
    ));
    let mut four = Scenario::new(4).group("g");
    for cpu in 0..4 {
        let ms = [40, 10, 30, 20][cpu as usize];
        four = four.vm(
            &format!("vm{cpu}"),
            Some("g"),
            cpu,
            "machine",
            &format!("case=spin ms={ms}"),
        );
    }
    tests.push(SystemTest::new(
        "ends/four-in-any-order",
        four.text(),
        expect::all_ended_well,
    ));
}

fn bad_ended(reports: &[RunReport], cause: &str, code: Option<i64>) -> Verdict {
    let report = expect::first(reports)?;
    expect::ended(report, "bad", cause, code)?;
    expect::passed(report, "good", &["heap"])?;
    expect::frames_came_back(report)?;
    if report.ok {
        Err("the run is taken for good".to_owned())
    } else {
        Ok(())
    }
}
