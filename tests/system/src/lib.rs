//! Promises that need the machine: one file each. A test names a scenario, a machine and what must be seen; `cargo xtask test`
//! boots it and asks. The tests themselves are plain values: nothing here starts anything.

#![forbid(unsafe_code)]

mod expect;
mod operator;
mod scenario;
mod tests;

use std::time::Duration;

use nagaya_harness::{Firmware, MachineKind, RunReport};

pub use operator::Operator;
pub use tests::all;

/// What a test says of the runs it asked for: `Err` tells what is missing.
pub type Verdict = Result<(), String>;

/// One promise.
#[derive(Clone, Debug)]
pub struct SystemTest {
    /// Short name, unique, `family/case`.
    pub name: String,
    /// The scenario's text, as in `tests/scenarios`.
    pub scenario: String,
    /// The scenario in its place when all the time there is may be taken; `None` for the same.
    pub full: Option<String>,
    /// It is run only if all the time there is may be taken.
    pub only_full: bool,
    /// The machine.
    pub kind: MachineKind,
    /// What it boots from.
    pub firmware: Firmware,
    /// RAM of the machine in MiB, if that is less than a scenario may ask for.
    pub memory_mib: Option<u32>,
    /// Wall-clock limit of one run, generous: two emulators share two busy cores.
    pub timeout: Duration,
    /// How often the scenario is run; `expect` sees all reports.
    pub runs: usize,
    /// What is done to the boot archive before it goes into the image; `None` for nothing.
    pub damage: Option<fn(&mut Vec<u8>)>,
    /// What an operator does through the control port while the machine runs; `None` for nothing. Its complaints fail the test.
    pub script: Option<fn(&Operator) -> Verdict>,
    /// What must be seen.
    pub expect: fn(&[RunReport]) -> Verdict,
}

impl SystemTest {
    /// A test in Bochs, from the BIOS image, run once.
    fn new(name: &str, scenario: String, expect: fn(&[RunReport]) -> Verdict) -> SystemTest {
        SystemTest {
            name: name.to_owned(),
            scenario,
            full: None,
            only_full: false,
            kind: MachineKind::Bochs,
            firmware: Firmware::Bios,
            memory_mib: None,
            timeout: Duration::from_secs(240),
            runs: 1,
            damage: None,
            script: None,
            expect,
        }
    }
}

#[cfg(test)]
mod unit {
    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = super::all().into_iter().map(|test| test.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
