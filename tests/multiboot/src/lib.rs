//! A small Multiboot kernel that looks at what a stranger's kernel finds on Nagaya, and at nothing else: no hypercalls, none of
//! `nagaya-rt`. It starts in 32-bit protected mode, does most of its work in 64-bit mode, and makes excursions into the others.
//!
//! The command line says which cases run: `case=modes,timer`. Each prints `PASS case` or `FAIL case: why` on COM1; the VM ends by
//! the debug exit with the number of failures, or, where there is none, by ACPI's power-off.
//!
//! Concurrency: one vCPU runs Rust code, with interrupts off but where a case waits for one. A second runs a few instructions.
//! Source: Multiboot Specification 0.6.96; Intel SDM Vol. 3; with each device's case, its data sheet.
#![no_std]
// A kernel: ports, control registers, descriptor tables, and memory as it is.
#![allow(unsafe_code)]

mod acpi;
mod boot;
mod cpu;
mod devices;
mod faults;
mod features;
mod information;
mod instructions;
mod interrupts;
mod level;
mod lines;
mod modes;
mod nmi;
mod power;
mod report;
mod second;
mod serial;
mod tables;
mod tasks;
mod timers;
mod widths;

use report::Report;

/// What a binary of this kernel is but for its header.
#[macro_export]
macro_rules! kernel {
    () => {
        /// Where the start-up code goes in 64-bit mode.
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn kernel_main() -> ! {
            $crate::main()
        }

        #[cfg(not(target_os = "none"))]
        fn main() {}
    };
}

/// A case by its name.
type Case = (&'static str, fn(&mut Report));

/// What leaves the VM as it was.
const CASES: &[Case] = &[
    ("information", information::check),
    ("modes", modes::check),
    ("faults", faults::check),
    ("tasks", tasks::check),
    ("instructions", instructions::check),
    ("timers", timers::check),
    ("widths", widths::check),
    ("devices", devices::check),
    ("acpi", acpi::check),
    ("lines", lines::check),
    ("features", features::check),
];
/// What needs a scenario of its own, or ends the VM in its own way.
const ENDINGS: &[Case] = &[
    ("second", second::check),
    ("signals", second::check_signals),
    ("nmis", nmi::check),
    ("halted", devices::halted),
    ("virtio", devices::virtio),
    ("level", level::check),
    ("reset", devices::reset),
    ("debug-ports", devices::debug_ports),
    ("no-debug-ports", devices::no_debug_ports),
    ("power-off", acpi::power_off),
];

/// Runs the cases that the command line names, or all that leave the VM as it was.
pub fn main() -> ! {
    serial::start();
    interrupts::start();
    let mut report = Report::new();
    let wanted = information::argument("case");
    match wanted {
        None => CASES.iter().for_each(|(_, case)| case(&mut report)),
        Some(wanted) => {
            for (name, case) in CASES.iter().chain(ENDINGS) {
                if wanted.split(',').any(|one| one == *name) {
                    case(&mut report);
                }
            }
        }
    }
    if report.count() == 0 {
        report.fail("cases", "none was asked for");
    }
    report.end()
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    serial::line(format_args!("FAIL kernel: {info}"));
    power::end(101)
}
