//! Where what is made out of packages is kept, and how it gets there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::paths;

/// Writes something that was made, unless it is there.
pub(super) fn keep(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = made().join(name);
    if !fs::read(&path).is_ok_and(|found| found == bytes) {
        replace(&path, bytes)?;
    }
    Ok(path)
}

/// The folder of what is made out of packages.
pub(super) fn made() -> PathBuf {
    paths::target().join("linux/made")
}

/// Writes a file so that nobody ever sees half of it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(failed)?;
    }
    let half = path.with_extension(format!("half-{}", std::process::id()));
    fs::write(&half, bytes)
        .and_then(|()| fs::rename(&half, path))
        .with_context(failed)
}
