//! apt-get: installing what is missing, or saying how to.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::progress;

/// Installs packages if we are root, and says how to if we are not.
pub(super) fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("programs are missing and this is no Debian: install what Debian calls {names}");
    }
    if !is_root()? {
        bail!(
            "Debian packages are missing; install them with:\n    sudo apt-get update && \
             sudo apt-get install -y --no-install-recommends {names}"
        );
    }
    note!("installing Debian packages (once): {names}");
    let failed = || format!("cannot install {names}");
    progress::run("apt-get update", apt(&["update"]), is_noise).with_context(failed)?;
    // `--no-remove`: should one of them exclude something that is installed, the user is to decide.
    let install = ["install", "-y", "--no-install-recommends", "--no-remove"];
    progress::run("apt-get install", apt(&install).args(missing), is_noise).with_context(failed)
}

/// Renews apt's lists of packages, which takes root; says whether it did.
pub(crate) fn refresh_lists() -> Result<bool> {
    if !is_root()? {
        return Ok(false);
    }
    progress::run("apt-get update", apt(&["update"]), is_noise)?;
    Ok(true)
}

/// apt-get that asks nothing and waits its turn if another one is at work.
pub(super) fn apt(arguments: &[&str]) -> Cmd {
    Cmd::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args([
            "-qq",
            "-o",
            "DPkg::Lock::Timeout=120",
            "-o",
            "Dpkg::Use-Pty=0",
        ])
        .args(arguments)
}

/// Packages have much to say while they are installed; only apt's errors and warnings matter here.
fn is_noise(line: &str) -> bool {
    !["E: ", "W: ", "dpkg: error"]
        .iter()
        .any(|start| line.starts_with(start))
}

fn is_root() -> Result<bool> {
    Ok(Cmd::new("id").arg("-u").read()?.trim() == "0")
}
