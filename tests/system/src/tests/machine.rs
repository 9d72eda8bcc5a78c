//! What a guest finds in its machine is what `docs/ABI.md` says.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = |cases: &str| {
        Scenario::new(1)
            .vm("m", None, 0, "machine", &format!("case={cases}"))
            .text()
    };
    tests.push(SystemTest::new(
        "machine/instructions",
        scenario("cpuid,unknown-hypercall,unknown-msr,ports,heap,absent-instructions,control-registers,vectors"),
        |reports| {
            passed(reports, &["cpuid-signature", "cpuid-no-vmx", "unknown-hypercall", "unknown-msr-read", "unknown-msr-write"])?;
            passed(reports, &["port-8", "port-16", "port-32", "heap", "vmxe-is-hidden", "sse-survives-exits", "avx-survives-exits", "avx512-survives-xsave"])
        },
    ));
    tests.push(SystemTest::new(
        "machine/user-mode",
        scenario("user-mode"),
        |reports| {
            passed(
                reports,
                &["user-mode-hypercall", "user-mode-map", "user-mode-unknown"],
            )
        },
    ));
    tests.push(SystemTest::new(
        "machine/debug-exceptions",
        scenario("debug"),
        |reports| passed(reports, &["single-step", "int1", "int1-behind-stack-load"]),
    ));
    let mut shared = Scenario::new(1);
    for (vm, seed) in [("a", 5), ("b", 10), ("c", 12)] {
        let cmdline = format!("case=registers seed={seed}");
        shared = shared.vm(vm, None, 0, "machine", &cmdline);
    }
    tests.push(SystemTest::new(
        "machine/registers-on-a-shared-cpu",
        shared.text(),
        |reports| {
            for vm in ["a", "b", "c"] {
                expect::passed(
                    expect::first(reports)?,
                    vm,
                    &["task-priority", "registers-are-kept", "another-ran"],
                )?;
            }
            expect::all_ended_well(reports)
        },
    ));
    tests.push(SystemTest::new(
        "machine/deadline",
        scenario("deadline"),
        |reports| passed(reports, &["deadline-not-early", "deadline-not-late"]),
    ));
    let deterministic = Scenario::new(1).machine("deterministic = true").vm(
        "m",
        None,
        0,
        "machine",
        "case=deterministic",
    );
    tests.push(SystemTest::new(
        "machine/deterministic",
        deterministic.text(),
        |reports| {
            passed(
                reports,
                &["no-rdrand-bit", "no-rdseed-bit", "rdrand", "rdseed"],
            )
        },
    ));
}

fn passed(reports: &[RunReport], cases: &[&str]) -> Verdict {
    expect::passed(expect::first(reports)?, "m", cases)?;
    expect::all_ended_well(reports)
}
