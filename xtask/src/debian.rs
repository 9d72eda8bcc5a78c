//! Debian's packages: installed by apt-get, or downloaded and unpacked below `target/linux` without being installed.

mod apt;
pub(crate) mod packages;
mod qemu;

use anyhow::{Context, Result};

/// Makes sure that packages which are missing are there: installs them if we are root, and says how to if we are not.
pub(crate) fn install(missing: &[&str]) -> Result<()> {
    apt::install(missing)
}

/// The same for QEMU, of which `missing` is not installed; it is unpacked, `all` of it, where it cannot be.
pub(crate) fn install_qemu(missing: &[&str], all: &[&str]) -> Result<()> {
    if missing.is_empty() || qemu::is_unpacked() {
        return Ok(());
    }
    apt::install(missing).or_else(|why| {
        note!("{why:#}\nQEMU will do without being installed");
        // All of it: one that is installed does not find what is unpacked, nor the reverse.
        qemu::unpack(all).context("cannot unpack QEMU")
    })
}
