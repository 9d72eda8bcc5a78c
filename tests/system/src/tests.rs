//! The promises, one file each.

mod apic;
mod boots;
mod console;
mod control;
mod determinism;
mod devices;
mod doorbells;
mod ends;
mod foreign;
mod gdb;
mod hostile;
mod interrupts;
mod isolation;
mod lifecycle;
mod linux;
mod machine;
mod mapping;
mod members;
mod multiboot;
mod net;
mod no_vt_x;
mod peers;
mod pingpong;
mod processes;
mod refused;
mod regroup;
mod scheduling;
mod selftest;
mod smp;

use crate::SystemTest;

/// Every system test, quick and basic ones first.
#[must_use]
pub fn all() -> Vec<SystemTest> {
    let mut tests = Vec::new();
    boots::add(&mut tests);
    machine::add(&mut tests);
    foreign::add(&mut tests);
    apic::add(&mut tests);
    interrupts::add(&mut tests);
    devices::add(&mut tests);
    mapping::add(&mut tests);
    members::add(&mut tests);
    peers::add(&mut tests);
    doorbells::add(&mut tests);
    smp::add(&mut tests);
    multiboot::add(&mut tests);
    net::add(&mut tests);
    console::add(&mut tests);
    control::add(&mut tests);
    gdb::add(&mut tests);
    lifecycle::add(&mut tests);
    hostile::add(&mut tests);
    ends::add(&mut tests);
    isolation::add(&mut tests);
    regroup::add(&mut tests);
    refused::add(&mut tests);
    selftest::add(&mut tests);
    pingpong::add(&mut tests);
    processes::add(&mut tests);
    scheduling::add(&mut tests);
    linux::add(&mut tests);
    determinism::add(&mut tests);
    no_vt_x::add(&mut tests);
    tests
}
