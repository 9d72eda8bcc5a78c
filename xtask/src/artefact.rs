//! Files that xtask makes itself, out of Debian's packages: kernels, initial file systems, disk images. Scenarios name them
//! `debian/...` or `built/...`.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// What the names of artefacts start with.
const PREFIXES: [&str; 2] = ["debian/", "built/"];
/// Every artefact that there is.
const KNOWN: &[&str] = &[];

/// Whether a scenario's name of an image is that of an artefact, known or not.
pub(crate) fn is_name(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The artefact's file, made if it is not there yet.
pub(crate) fn path(name: &str) -> Result<PathBuf> {
    let known = if KNOWN.is_empty() {
        "none".into()
    } else {
        KNOWN.join(", ")
    };
    bail!("{name:?} is nothing that xtask can make; there are: {known}")
}
