//! The runtime's side of interrupts: timers, waiting, one vCPU calling another; by MSRs and by memory.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    // The emulated CPUs have APIC virtualisation, for x2APIC mode; where it is not used, ends are told by a word.
    for (name, cmdline, line) in [
        ("x2apic", "ends-are-free", ""),
        (
            "x2apic-in-software",
            "ends-are-free",
            "apic_virtualization = false",
        ),
        (
            "x2apic-on-haswell",
            "ends-are-free",
            "bochs.cpu_model = \"corei7_haswell_4770\"",
        ),
        ("xapic", "memory", ""),
        (
            "xapic-in-software",
            "memory ends-are-free",
            "apic_virtualization = false",
        ),
    ] {
        let scenario = Scenario::new(2)
            .machine(line)
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
    for (name, line) in [
        ("none-while-off", ""),
        ("none-while-off-in-software", "apic_virtualization = false"),
    ] {
        let scenario = Scenario::new(2)
            .machine(line)
            .vm("m", None, 0, "interrupts", "off")
            .text()
            .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]");
        let name = format!("interrupts/{name}");
        tests.push(SystemTest::new(&name, scenario, |reports| {
            expect::passed(expect::first(reports)?, "m", &["wrong", "arrived"])?;
            expect::all_ended_well(reports)
        }));
    }
    let scenario = Scenario::new(2)
        .machine("apic_virtualization = false")
        .group("g")
        .vm("m", Some("g"), 0, "interrupts", "past memory")
        .text()
        .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]");
    tests.push(SystemTest::new("interrupts/past", scenario, |reports| {
        let cases = ["second-vcpu", "vector", "ring", "comes-past"];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
    // Beside a VM on its CPU, which runs meanwhile.
    let scenario = Scenario::new(2)
        .vm("m", None, 0, "interrupts", "wait")
        .text()
        .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]")
        + "\n[[vm]]\nname = \"beside\"\nimage = \"worker\"\nmemory = \"8M\"\ncpu = 0\ncmdline = \"load=hog ms=100\"\n";
    tests.push(SystemTest::new("interrupts/wait", scenario, |reports| {
        let report = expect::first(reports)?;
        let cases = ["no-event", "waited", "interrupt-comes-after"];
        expect::passed(report, "m", &cases)?;
        expect::all_ended_well(reports)?;
        match report.vm_ends().next() {
            Some(end) if end.vm == "beside" => Ok(()),
            other => Err(format!(
                "the first to end was {other:?}, not the one beside"
            )),
        }
    }));
}
