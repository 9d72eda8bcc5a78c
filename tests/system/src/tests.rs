//! The promises, one file each.

mod boots;
mod console;
mod determinism;
mod ends;
mod isolation;
mod machine;
mod mapping;
mod no_vt_x;
mod pingpong;
mod refused;

use crate::SystemTest;

/// Every system test, quick and basic ones first.
#[must_use]
pub fn all() -> Vec<SystemTest> {
    let mut tests = Vec::new();
    boots::add(&mut tests);
    machine::add(&mut tests);
    mapping::add(&mut tests);
    console::add(&mut tests);
    ends::add(&mut tests);
    isolation::add(&mut tests);
    refused::add(&mut tests);
    pingpong::add(&mut tests);
    determinism::add(&mut tests);
    no_vt_x::add(&mut tests);
    tests
}
