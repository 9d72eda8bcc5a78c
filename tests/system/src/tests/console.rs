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
}
