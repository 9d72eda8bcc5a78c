//! A guest cannot counterfeit lines of others, and bad buffers are errors.

use nagaya_harness::ConsoleLine;

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = Scenario::new(1)
        .vm("m", None, 0, "machine", "case=console")
        .text();
    tests.push(SystemTest::new(
        "console/hostile-text",
        scenario,
        |reports| {
            let report = expect::first(reports)?;
            expect::passed(
                report,
                "m",
                &[
                    "console-too-long",
                    "console-unmapped",
                    "console-bad-channel",
                    "event",
                ],
            )?;
            expect::all_ended_well(reports)?;
            if report
                .hypervisor_lines()
                .any(|line| line.contains("not the hypervisor"))
            {
                return Err("a guest's line is taken for the hypervisor's".to_owned());
            }
            if report
                .console
                .iter()
                .any(|line| matches!(line, ConsoleLine::Raw(_)))
            {
                return Err("a line of the console is nobody's".to_owned());
            }
            if report.events_named("end").count() != 1 {
                return Err("a guest's event is taken for the hypervisor's".to_owned());
            }
            Ok(())
        },
    ));
    flood(tests);
}

/// One that floods its console keeps neither the line nor the CPU for long, and is told what is missing.
fn flood(tests: &mut Vec<SystemTest>) {
    const SAID: usize = 50 * 40;
    let scenario = Scenario::new(2)
        .vm("m", None, 0, "machine", "case=flood")
        .vm("beside", None, 1, "hello", "")
        .text();
    tests.push(SystemTest::new("console/flood", scenario, |reports| {
        let report = expect::first(reports)?;
        expect::passed(report, "m", &["flooded"])?;
        expect::all_ended_well(reports)?;
        let lines = report.guest_lines("m");
        let shown = lines.filter(|line| line.starts_with("flood ")).count();
        // A burst of 32 KiB, and for as long as the line takes for what passes half of that again.
        if !(200..SAID / 2).contains(&shown) {
            return Err(format!("{shown} of {SAID} lines were shown"));
        }
        let told = |line: &&str| line.contains("bytes of console output dropped");
        match report.hypervisor_lines().filter(told).count() {
            1..4 => {}
            count => return Err(format!("it was told {count} times what is missing")),
        }
        if report
            .hypervisor_lines()
            .any(|line| line.contains("run loop"))
        {
            return Err("the watchdog was provoked".to_owned());
        }
        let events = report.events_named("guest").count();
        if events >= 200 {
            return Err(format!("all of {events} events were sent"));
        }
        Ok(())
    }));
}
