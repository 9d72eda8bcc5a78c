//! The local APIC: a timer that keeps its time, priorities, interrupts from one vCPU to another.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    // The emulated CPU has APIC virtualisation; without it software does all of it.
    for (suffix, is_allowed) in [("", true), ("-in-software", false)] {
        let machine = |cpus| {
            let line = format!("apic_virtualization = {is_allowed}");
            Scenario::new(cpus).machine(&line)
        };
        let one = machine(1).vm("m", None, 0, "apic", "").text();
        let name = format!("apic/timer{suffix}");
        let check: fn(&[RunReport]) -> Verdict = if is_allowed { by_cpu } else { in_software };
        tests.push(SystemTest::new(&name, one, check));
        let two = machine(2)
            .vm("m", None, 0, "apic", "vcpus=2")
            .text()
            .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]");
        let name = format!("apic/ipi{suffix}");
        tests.push(SystemTest::new(&name, two, |reports| {
            let cases = ["timer-not-late", "periodic", "ipi", "second-finished"];
            expect::passed(expect::first(reports)?, "m", &cases)?;
            expect::all_ended_well(reports)
        }));
    }
}

/// Where the CPU ends interrupts by itself there is no word for it.
fn by_cpu(reports: &[RunReport]) -> Verdict {
    timer(reports)?;
    expect::passed(
        expect::first(reports)?,
        "m",
        &["no-word", "constants-without-exit", "constants"],
    )
}

fn in_software(reports: &[RunReport]) -> Verdict {
    timer(reports)?;
    let cases = [
        "word-bounds",
        "one-by-word",
        "no-exit-for-its-end",
        "first-is-told",
        "word-keeps-order",
        "all-ended-by-word",
        "off-again",
    ];
    expect::passed(expect::first(reports)?, "m", &cases)
}

fn timer(reports: &[RunReport]) -> Verdict {
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
}
