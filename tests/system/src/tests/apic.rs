//! The local APIC: a timer that keeps its time, priorities, interrupts from one vCPU to another.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let one = Scenario::new(1).vm("m", None, 0, "apic", "").text();
    tests.push(SystemTest::new("apic/timer", one, |reports| {
        let cases = [
            "apic-base",
            "x2apic-needs-its-mode",
            "timer-not-early",
            "timer-not-late",
            "timer-count",
            "passed-deadline",
            "periodic",
            "stopped",
            "higher-first",
            "cr8-is-tpr",
            "held-back",
            "let-in",
            "all-ended",
        ];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
    let two = Scenario::new(2)
        .vm("m", None, 0, "apic", "vcpus=2")
        .text()
        .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]");
    tests.push(SystemTest::new("apic/ipi", two, |reports| {
        let cases = ["timer-not-late", "periodic", "ipi", "second-finished"];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
}
