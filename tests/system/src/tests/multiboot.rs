//! Multiboot kernels: one of the project's own in every form that a loader takes, and some that nobody here wrote.

use std::time::Duration;

use crate::scenario::Scenario;
use crate::{Operator, SystemTest, Verdict, expect};

/// Each of the three kinds of images the loader takes: ELF files of 32 and 64 bits by their program headers; by address fields a
/// flat file and an ELF file.
const FORMS: [&str; 4] = [
    "multiboot-elf32",
    "multiboot-elf64",
    "multiboot-flat",
    "multiboot-addresses",
];

/// What the kernel prints of the boot information.
const INFORMATION: &[&str] = &[
    "magic",
    "start-cr0",
    "start-flags",
    "start-segments",
    "flags",
    "loader-name",
    "command-line",
    "lower-memory",
    "upper-memory",
    "map-in-order",
    "map-ram",
    "map-holds-kernel",
    "map-leaves-display-out",
    "mp-tables",
    "module-count",
    "module-strings",
    "module-pages",
    "modules-behind-kernel",
    "module-one",
    "module-two",
];

/// A VM with this kernel, its debug ports on.
fn kernel(cpus: u32, image: &str, cases: &str) -> Scenario {
    Scenario::new(cpus)
        .vm(
            "m",
            None,
            0,
            image,
            &format!("case={cases} quoted=a,b mib=32 modules=2"),
        )
        .with("kind = \"multiboot\"\ndebug_exit = true\ndebug_console = true")
}

const MODULES: &str = "[[vm.module]]\nimage = \"tests/multiboot/modules/first.txt\"\ncmdline = \"first a=1\"\n\
                       [[vm.module]]\nimage = \"tests/multiboot/modules/second.txt\"\n";

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    for form in FORMS {
        let scenario = kernel(1, form, "information").with(MODULES).text();
        let name = form.trim_start_matches("multiboot-");
        tests.push(quick(
            &format!("multiboot/information-{name}"),
            scenario,
            |reports| {
                expect::passed(expect::first(reports)?, "m", INFORMATION)?;
                expect::all_ended_well(reports)
            },
        ));
    }
    platform(tests);
    ends(tests);
    others(tests);
}

/// A test that takes seconds.
fn quick(
    name: &str,
    scenario: String,
    expect: fn(&[nagaya_harness::RunReport]) -> Verdict,
) -> SystemTest {
    SystemTest {
        timeout: Duration::from_secs(120),
        ..SystemTest::new(name, scenario, expect)
    }
}

fn platform(tests: &mut Vec<SystemTest>) {
    let scenario = kernel(1, "multiboot-elf32", "modes,widths,tasks").text();
    tests.push(quick("multiboot/modes", scenario, |reports| {
        let cases = [
            "protected-mode",
            "protected-timer-ends-halt",
            "protected-apic-version",
            "protected-strings",
            "pae-paging",
            "pae-entry-replaced",
            "pae-malformed-entry",
            "large-pages",
            "small-pages",
            "write-protection",
            "real-mode",
            "real-software-interrupt",
            "real-timer-ends-halt",
            "real-segments",
            "back-in-protected-mode",
            "task-jump",
            "task-call",
            "task-call-link",
            "task-gate",
            "task-gate-error-code",
            "task-of-16-bits",
            "task-trap",
            "task-absent",
            "task-bad-segment",
            "task-busy",
            "task-interrupt",
            "task-registers",
            "compat-mov-cr0",
            "compat-mov-cr4",
            "compat-hypercall-number",
            "compat-hypercall-argument",
            "end-nop",
            "end-in",
            "end-cpuid",
            "end-rdmsr",
            "end-device",
            "end-of-segment",
            "end-of-segment-cpuid",
            "end-of-segment-in",
            "real-mode-fault-has-no-error-code",
        ];
        let report = expect::first(reports)?;
        expect::passed(report, "m", &cases)?;
        if !report.guest_lines("m").any(|line| line == "said by OUTS") {
            return Err("a string did not come out".to_owned());
        }
        expect::all_ended_well(reports)
    }));
    let scenario = kernel(1, "multiboot-elf32", "faults,devices,acpi,lines,features").text();
    tests.push(quick("multiboot/devices", scenario, |reports| {
        let cases = [
            "efer-says-long-mode",
            "unknown-msr",
            "cr0-paging-off",
            "cr4-vmx",
            "page-fault",
            "cpuid-features",
            "debugctl-btf",
            "debugctl-reads",
            "tsc-is-written",
            "tsc-adjust-follows",
            "tsc-adjust-is-written",
            "counter-that-is-not-there",
            "kvm-clock-is-not-announced",
            "kvm-clock",
            "kvm-clock-is-written",
            "leaf-above-the-last",
            "absent-ports-float",
            "more-memory-floats",
            "absent-memory-floats",
            "clock-date",
            "clock-runs",
            "progress-port",
            "keyboard-status",
            "keyboard-controller-test",
            "keyboard-reset-answers",
            "fast-a20",
            "cursor-on-screen",
            "retrace",
            "panic-port",
            "pci-scan",
            "pci-empty-slot",
            "acpi-sums",
            "acpi-processors",
            "acpi-power-switch",
            "transmitter-edges",
            "level-refused-by-a-disabled-apic",
            "level-taken-once-enabled",
            "level-refused-by-nobody",
            "level-taken-where-it-is-sent-then",
            "level-that-gave-up",
            "what-is-offered-executes-and-what-is-hidden-does-not",
            "msrs-are-those-that-cpuid-offers",
            "bits-of-cr4-are-those-that-cpuid-offers",
            "pcid-is-offered",
            "pcid-needs-to-be-enabled",
            "pcid-begins-at-0",
            "pcid-in-cr3",
            "invpcid-forgets",
            "invpcid-of-what-is-not",
            "pcid-ends",
        ];
        let report = expect::first(reports)?;
        // It says so twice, and that is told once.
        if report.events_named("vm-panicked").count() != 1 {
            return Err("the guest's panic was not told once".to_owned());
        }
        expect::passed(report, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
    let scenario = kernel(1, "multiboot-elf32", "instructions,features")
        .with("rng = true")
        .text();
    tests.push(quick("multiboot/instructions", scenario, |reports| {
        let cases = [
            "instructions-nowhere",
            "instructions-across-the-end",
            "instructions-on-a-device",
            "instruction-refused",
            "code-nowhere",
            "code-across-the-end",
            "page-table-nowhere",
            "software-interrupt-nowhere",
            "exception-nowhere",
            "return-nowhere",
            "iret-nowhere",
            "popf-nowhere",
            // Once more, with random numbers offered.
            "what-is-offered-executes-and-what-is-hidden-does-not",
        ];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
    let scenario = kernel(1, "multiboot-flat", "timers").text();
    tests.push(quick("multiboot/timers", scenario, |reports| {
        let cases = [
            "pit-through-pic",
            "clock-interrupt",
            "pit-through-ioapic",
            "pit-keeps-its-rate",
            "apic-timer-once",
            "apic-timer-periodic",
        ];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
    for (name, line) in [
        ("level", ""),
        ("level-in-software", "apic_virtualization = false"),
    ] {
        let scenario = kernel(1, "multiboot-elf64", "level").text();
        let scenario = scenario.replacen("cpus = 1\n", &format!("cpus = 1\n{line}\n"), 1);
        let name = format!("multiboot/{name}");
        tests.push(quick(&name, scenario, |reports| {
            let cases = [
                "level-comes-again",
                "level-has-ended",
                "level-goes-with-its-source",
            ];
            expect::passed(expect::first(reports)?, "m", &cases)?;
            expect::all_ended_well(reports)
        }));
    }
    let scenario = kernel(2, "multiboot-elf32", "second,signals,acpi,nmis vcpus=2")
        .with("vcpus = 2")
        .text()
        .replace("cpu = 0", "cpu = [0, 1]");
    tests.push(quick("multiboot/second-vcpu", scenario, |reports| {
        let cases = [
            "waits-for-start-up",
            "counts",
            "stops",
            "starts-at-page",
            "own-apic-id",
            "starts-once",
            "real-mode",
            "nmi-ends-halt",
            "start-up-right-after-init",
            "nmi-while-interrupts-off",
            "nmi-waits",
            "none-in-the-handler",
            "one-after-the-handler",
            "init-stops-it",
            "starts-again",
            "none-while-it-waited",
            "nmi-for-oneself",
            "two-nmis-are-two",
            "nmi-before-interrupt",
            "acpi-processors",
        ];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
}

/// The ways in which such a VM ends.
fn ends(tests: &mut Vec<SystemTest>) {
    let scenario = kernel(1, "multiboot-elf32", "reset").text();
    tests.push(quick("multiboot/reset", scenario, |reports| {
        let report = expect::first(reports)?;
        for case in ["PASS keyboard-reset", "PASS reset-register", "PASS init"] {
            if !report.guest_lines("m").any(|line| line == case) {
                return Err(format!("m did not print {case}"));
            }
        }
        let boots = report
            .guest_lines("m")
            .filter(|line| line.starts_with("boot "));
        let boots: Vec<_> = boots.collect();
        if boots != ["boot 0", "boot 1", "boot 2", "boot 3"] {
            return Err(format!("it counted {boots:?}"));
        }
        let ends: Vec<_> = report.vm_ends().map(|end| (end.cause, end.code)).collect();
        let wanted = [
            ("reset", None),
            ("reset", None),
            ("reset", None),
            ("exit", Some(0)),
        ];
        if ends
            .iter()
            .map(|(cause, code)| (&**cause, *code))
            .ne(wanted)
        {
            return Err(format!("it ended {ends:?}"));
        }
        expect::frames_came_back(report)
    }));
    // Whoever halts first has a peer that lives, and each has a second vCPU, which lies the same way.
    let scenario = Scenario::new(2)
        .group("g")
        .vm("m", Some("g"), 0, "multiboot-elf32", "case=second,halted")
        .with("kind = \"multiboot\"\ndebug_exit = true\nvcpus = 2")
        .vm("n", Some("g"), 0, "multiboot-elf32", "case=second,halted")
        .with("kind = \"multiboot\"\ndebug_exit = true\nvcpus = 2")
        .text()
        .replace("cpu = 0", "cpu = [0, 1]");
    tests.push(quick("multiboot/halted-for-ever", scenario, |reports| {
        let report = expect::first(reports)?;
        for vm in ["m", "n"] {
            expect::ended(report, vm, "halted-forever", None)?;
        }
        expect::frames_came_back(report)
    }));
    let scenario = kernel(1, "multiboot-elf32", "debug-ports").text();
    tests.push(quick("multiboot/debug-ports", scenario, |reports| {
        let report = expect::first(reports)?;
        expect::ended(report, "m", "exit", Some(0x1234_5678))?;
        let said = "said through port 0xE9";
        if !report.guest_lines("m").any(|line| line == said) {
            return Err(format!("m's debug console did not say {said:?}"));
        }
        expect::frames_came_back(report)
    }));
    let scenario = Scenario::new(1)
        .vm(
            "m",
            None,
            0,
            "multiboot-elf32",
            "case=no-debug-ports,power-off",
        )
        .with("kind = \"multiboot\"")
        .text();
    tests.push(quick("multiboot/no-debug-ports", scenario, |reports| {
        let report = expect::first(reports)?;
        for line in [
            "PASS no-debug-console",
            "PASS no-debug-exit",
            "switching off",
        ] {
            if !report.guest_lines("m").any(|said| said == line) {
                return Err(format!("m did not say {line:?}"));
            }
        }
        if report
            .guest_lines("m")
            .any(|line| line.contains("must not be seen"))
        {
            return Err("the debug console printed".to_owned());
        }
        expect::ended(report, "m", "power-off", None)?;
        expect::all_ended_well(reports)
    }));
}

/// Kernels that nobody here wrote, as Debian has them.
fn others(tests: &mut Vec<SystemTest>) {
    let scenario = Scenario::new(1)
        .machine("control = true")
        .vm("mach", None, 0, "debian/gnumach", "gnumach console=com0")
        .with("kind = \"multiboot\"")
        .text()
        .replace("\"32M\"", "\"64M\"");
    let mut mach = SystemTest::new("multiboot/gnu-mach", scenario, |reports| {
        let report = expect::first(reports)?;
        for said in [
            "GNU Mach 1.",
            "biosmem: 000000000000100000:000000000004000000, available",
            "No bootstrap code loaded with the kernel!",
        ] {
            if !report.guest_lines("mach").any(|line| line.contains(said)) {
                return Err(format!("GNU Mach did not say {said:?}"));
            }
        }
        expect::ended(report, "mach", "destroyed", None)?;
        expect::frames_came_back(report)
    });
    mach.script = Some(mach_debugger);
    tests.push(mach);

    // It comes as far as to its first domain, which the module is no kernel for.
    let scenario = Scenario::new(1)
        .vm(
            "xen",
            None,
            0,
            "debian/xen",
            "xen com1=115200,8n1 console=com1 no-real-mode noreboot",
        )
        .with("kind = \"multiboot\"\n[[vm.module]]\nimage = \"tests/multiboot/modules/second.txt\"")
        .text()
        .replace("\"32M\"", "\"320M\"");
    tests.push(SystemTest::new("multiboot/xen", scenario, |reports| {
        let report = expect::first(reports)?;
        for said in [
            "Xen version 4.",
            "Bootloader: Nagaya",
            "Multiboot-e820 RAM map:",
            "Initializing Credit2 scheduler",
            "Platform timer is 3.580MHz ACPI PM Timer",
            // After an NMI that it sends itself.
            "Brought up 1 CPUs",
            "Could not construct domain 0",
        ] {
            if !report.guest_lines("xen").any(|line| line.contains(said)) {
                return Err(format!("Xen did not say {said:?}"));
            }
        }
        expect::frames_came_back(report)
    }));
}

/// Without servers to start it panics, and its debugger asks what to do.
fn mach_debugger(operator: &Operator) -> Verdict {
    let steps = [
        ("db> ", "show all tasks\r"),
        // The kernel itself is a task, with that many threads.
        ("gnumach [", ""),
    ];
    operator.converse("mach", &steps)?;
    // The machine may end with its only VM before it has answered; how that ended is looked at.
    let _ = operator.text(&["destroy", "mach"]);
    Ok(())
}
