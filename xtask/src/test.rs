//! `cargo xtask test`: to come.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// What `test` takes.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the verb.
pub(crate) fn main(_args: Args) -> Result<ExitCode> {
    bail!("to come")
}
