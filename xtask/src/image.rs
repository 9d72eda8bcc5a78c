//! `cargo xtask image`: a bootable disk image of a scenario.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::scenario::Loaded;

/// What the machine's firmware is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firmware {
    /// A PC BIOS: Bochs, SeaBIOS.
    Bios,
    /// UEFI: OVMF and hardware of today.
    Uefi,
}

/// What `image` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The scenario: a name in tests/scenarios or a path to a TOML file
    #[arg(default_value = "pingpong")]
    scenario: String,
    /// Where the image goes
    #[arg(short, long)]
    output: PathBuf,
}

/// Runs the verb.
pub(crate) fn main(_args: Args) -> Result<ExitCode> {
    bail!("to come")
}

/// Builds what is out of date of the hypervisor, the guests and the image tool, and writes the image of `scenario`.
pub(crate) fn make(_scenario: &Loaded, _firmware: Firmware, _output: &Path) -> Result<()> {
    bail!("to come")
}
