//! The runtime's side of interrupts: timers, waiting, one vCPU calling another; by MSRs and by memory.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    for (name, cmdline) in [("x2apic", ""), ("xapic", "memory")] {
        let scenario = Scenario::new(2)
            .vm("m", None, 0, "interrupts", cmdline)
            .text()
            .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]");
        let name = format!("interrupts/{name}");
        tests.push(SystemTest::new(&name, scenario, |reports| {
            let cases = [
                "mode", "one-shot", "periodic", "stopped", "deadline", "answers", "calls",
            ];
            expect::passed(expect::first(reports)?, "m", &cases)?;
            expect::all_ended_well(reports)
        }));
    }
}
