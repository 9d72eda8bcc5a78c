//! Debian's kernel for virtual machines, out of its package.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::debian::packages::{self, Unpacked};

/// The package that always names Debian's newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Debian's kernel, unpacked.
pub(super) struct Kernel {
    pub(super) package: Unpacked,
    /// What `uname -r` says in it, which is also the end of its files' names.
    pub(super) release: String,
}

impl Kernel {
    pub(super) fn find() -> Result<Self> {
        const IMAGE: &str = "linux-image-";
        let depends = packages::field(KERNEL, "Depends")?;
        let name = packages::names(&depends)
            .find(|name| name.starts_with(IMAGE))
            .with_context(|| format!("{KERNEL} depends on no kernel but on: {depends}"))?;
        Ok(Self {
            package: packages::unpacked(name)?,
            release: name.trim_start_matches(IMAGE).to_owned(),
        })
    }

    pub(super) fn image(&self) -> PathBuf {
        let name = format!("boot/vmlinuz-{}", self.release);
        self.package.root.join(name)
    }

    /// The folder of its modules.
    pub(super) fn modules(&self) -> Result<PathBuf> {
        // Since Debian's merge of /usr packages have them in either place.
        for library in ["usr/lib", "lib"] {
            let folder = format!("{library}/modules/{}", self.release);
            let folder = self.package.root.join(folder);
            if folder.is_dir() {
                return Ok(folder);
            }
        }
        bail!("the package of kernel {} has no modules", self.release)
    }
}
