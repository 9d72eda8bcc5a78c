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
    tests.push(out_of_memory());
    tests.push(SystemTest::new(
        "selftest/absent-cpu",
        scenario(2, "absent-cpu"),
        |reports| {
            let report = expect::first(reports)?;
            expect::said(
                report,
                "CPU with APIC ID 254 did not come within 1000 ms of its start-up IPI",
            )?;
            expect::said(report, "CPUs: 2 of 3 in VMX operation")?;
            expect::all_ended_well(reports)
        },
    ));
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

/// Every allocation that making groups and VMs of all kinds takes is refused in its turn, and then each that `map_shared` takes.
fn out_of_memory() -> SystemTest {
    let scenario = Scenario::new(2)
        .machine("selftest = \"out-of-memory\"")
        .group("g")
        .with("pages = 1025")
        .vm("m", Some("g"), 0, "mapping", "case=scarce")
        .nic("")
        .with("[[vm.disk]]\nram = \"1M\"")
        .vm("pc", None, 1, "multiboot-elf32", "case=lines")
        .with("kind = \"multiboot\"\nvcpus = 2\ndebug_exit = true")
        .text()
        .replace("\"32M\"", "\"16M\"")
        .replace("cpu = 1", "cpu = [1, 0]");
    SystemTest::new("selftest/out-of-memory", scenario, |reports| {
        let report = expect::first(reports)?;
        for name in ["g", "m", "pc"] {
            expect::said(
                report,
                &format!("self-test: {name} was refused memory at each of"),
            )?;
        }
        expect::passed(
            report,
            "m",
            &["scarce-fails", "scarce-changes-nothing", "scarce-maps"],
        )?;
        expect::all_ended_well(reports)
    })
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
