//! Scenarios: TOML files that say which groups and VMs run on which machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

/// The part of `[machine]` that says what is to be emulated; the hypervisor does not see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostMachine {
    /// Emulated CPUs, 1 to 8.
    pub(crate) cpus: u32,
    /// Emulated RAM.
    pub(crate) memory_bytes: u64,
    /// Wall-clock limit of a run.
    pub(crate) timeout: Duration,
    /// The emulator's CPU model, if the scenario needs one.
    pub(crate) cpu_model: Option<String>,
}

/// A scenario that was read and found right.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The file's name without its extension.
    pub(crate) name: String,
    /// What is to be emulated.
    pub(crate) host: HostMachine,
    // pub(crate) scenario: nagaya_vmm::config::Scenario, (comes with the types)
}

/// Reads `tests/scenarios/NAME.toml`, or the file itself if `name` contains a `/` or ends in `.toml`.
pub(crate) fn load(_name: &str) -> Result<Loaded> {
    bail!("to come")
}

/// Reads a scenario from text; `file` is what errors call it.
pub(crate) fn parse(_text: &str, _file: &PathBuf) -> Result<Loaded> {
    bail!("to come")
}
