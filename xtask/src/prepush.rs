//! `cargo xtask prepush`: to come.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// Runs the verb.
pub(crate) fn main() -> Result<ExitCode> {
    bail!("to come")
}
