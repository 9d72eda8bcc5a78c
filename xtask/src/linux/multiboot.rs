//! Kernels of Debian's that boot by Multiboot, as they are but for the gzip around them, which a boot loader takes off.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::files::{made, replace};
use crate::cmd::Cmd;
use crate::debian::packages::{self, Unpacked};

/// GNU Mach with its kernel debugger. The name of the package has a version in it; that of the one without the debugger is in
/// what the package depends on that always names the newest.
pub(crate) fn gnumach() -> Result<PathBuf> {
    let kernel = newest("gnumach-image-1-486", "gnumach-image-")?;
    unzipped(&packages::unpacked(&format!("{kernel}-dbg"))?, "gnumach")
}

/// Xen.
pub(crate) fn xen() -> Result<PathBuf> {
    let kernel = newest("xen-system-amd64", "xen-hypervisor-")?;
    unzipped(&packages::unpacked(&kernel)?, "xen")
}

/// What a package depends on whose name starts like that.
fn newest(package: &str, start: &str) -> Result<String> {
    let depends = packages::field(package, "Depends")?;
    let name = packages::names(&depends).find(|name| name.starts_with(start));
    let name =
        name.with_context(|| format!("{package} depends on no {start}.. but on: {depends}"))?;
    Ok(name.to_owned())
}

/// The one file in `/boot` with that name, the gzip taken off.
fn unzipped(package: &Unpacked, name: &str) -> Result<PathBuf> {
    let path = made().join(format!("{name}-{}", package.version));
    if path.is_file() {
        return Ok(path);
    }
    let file = zipped(&package.root.join("boot"), name)?;
    let output = Cmd::new("gzip").arg("-dc").arg(&file).into_std().output();
    let output = output.context("cannot run gzip")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("cannot unpack {}: {why}", file.display());
    }
    replace(&path, &output.stdout)?;
    Ok(path)
}

fn zipped(folder: &Path, name: &str) -> Result<PathBuf> {
    let files =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = files.filter_map(|entry| Some(entry.ok()?.path()));
    let fits = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.starts_with(name) && file.ends_with(".gz")
    };
    let file = files.find(fits);
    file.with_context(|| format!("there is no {name}*.gz in {}", folder.display()))
}
