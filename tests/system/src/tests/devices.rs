//! The PCI bus, device memory, and the devices that are no cards.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{Operator, SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let bus = Scenario::new(1)
        .vm("m", None, 0, "devices", "case=bus")
        .text()
        + "rng = true\nvirtio_console = true\n[[vm.nic]]\nsegment = \"a\"\n[[vm.nic]]\nsegment = \"b\"\nmtu = 9000\n";
    tests.push(SystemTest::new("devices/bus", bus, |reports| {
        let cases = [
            "host-bridge",
            "slots",
            "bar-in-window",
            "bar-size",
            "select-by-or",
            "changes",
            "strings-to",
            "string-from",
            "outs",
            "ins",
            "ins-nothing-else",
            "movsxd",
            "ports-decoded",
            "ports-size",
            "ports-moved",
            "ports-left",
            "ports-not-decoded",
            "ports-again",
            "moved",
            "left",
            "not-decoded",
            "floats",
            "apic-page",
        ];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
    add_disks(tests);
}

/// A file of which much is known, as a disk.
const IMAGE: &str = include_str!("../../../../LICENSE");

fn add_disks(tests: &mut Vec<SystemTest>) {
    let scenario = |machine: &str, more: &str| {
        let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../../LICENSE");
        let word = IMAGE.split_whitespace().next().unwrap_or_default();
        let command = format!(
            "case=disk image-bytes={} image-starts={word} {more}",
            IMAGE.len()
        );
        Scenario::new(2)
            .machine(machine)
            .vm("m", None, 0, "devices", &command)
            .with("[[vm.disk]]\nram = \"2M\"")
            .with(&format!(
                "[[vm.disk]]\nimage = \"{image}\"\nread_only = true"
            ))
            .text()
    };
    tests.push(SystemTest::new(
        "devices/disk",
        scenario("", ""),
        |reports| {
            let cases = [
                "as-it-was-left",
                "what-was-written",
                "flush",
                "beyond-the-end",
                "across-the-end",
                "image-contents",
                "image-write",
                "image-padding",
            ];
            expect::passed(expect::first(reports)?, "m", &cases)?;
            has_seen(expect::first(reports)?, 0)?;
            expect::all_ended_well(reports)
        },
    ));
    let mut kept = SystemTest::new(
        "devices/disk-kept",
        scenario("control = true\nlinger = true", "waits"),
        |reports| {
            let report = expect::first(reports)?;
            for runs in 0..3 {
                has_seen(report, runs)?;
            }
            if report.guest_lines("m").any(|line| line.contains("FAIL")) {
                return Err("a check failed".to_owned());
            }
            expect::all_ended_well(reports)
        },
    );
    kept.script = Some(resets);
    tests.push(kept);
}

/// The guest said how often it had run before.
fn has_seen(report: &RunReport, runs: u32) -> Verdict {
    let words = format!("this disk has seen {runs} runs");
    if report.guest_lines("m").any(|line| line.contains(&words)) {
        Ok(())
    } else {
        Err(format!("the guest did not say {words:?}"))
    }
}

/// A reset keeps what is on a disk, as often as there is one.
fn resets(operator: &Operator) -> Verdict {
    operator.await_state("m", "blocked")?;
    for _ in 0..2 {
        operator.must(&["reset", "m"])?;
        operator.await_state("m", "blocked")?;
    }
    operator.must(&["shutdown"])
}
