//! What a Linux guest is made of: Debian's kernel, and an initramfs with busybox; and others' kernels out of Debian's packages.
//!
//! Nothing of it is installed: packages are downloaded by `apt-get download`, which needs no root, and unpacked below
//! `target/linux`.

mod cpio;
mod initramfs;
mod kernel;
pub(crate) mod multiboot;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use packages::Unpacked;

use crate::paths;

/// The package that always names Debian's newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Debian's kernel, unpacked.
struct Kernel {
    package: Unpacked,
    /// What `uname -r` says in it, which is also the end of its files' names.
    release: String,
}

impl Kernel {
    fn find() -> Result<Self> {
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

    fn image(&self) -> PathBuf {
        let name = format!("boot/vmlinuz-{}", self.release);
        self.package.root.join(name)
    }

    /// The folder of its modules.
    fn modules(&self) -> Result<PathBuf> {
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

/// Makes `debian/bzImage`.
pub(crate) fn bzimage() -> Result<PathBuf> {
    let image = Kernel::find()?.image();
    if !image.is_file() {
        bail!("the kernel's package has no {}", image.display());
    }
    Ok(image)
}

/// Makes `debian/vmlinux`.
pub(crate) fn vmlinux() -> Result<PathBuf> {
    let kernel = Kernel::find()?;
    let path = made().join(format!("vmlinux-{}", kernel.package.version));
    if !path.is_file() {
        let image = kernel.image();
        let read = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
        let elf = kernel::decompress(&read)
            .and_then(|elf| kernel::trim(&elf))
            .with_context(|| format!("cannot unpack {}", image.display()))?;
        replace(&path, &elf)?;
    }
    Ok(path)
}

/// Makes `built/initramfs-busybox`. It is put together each time, which takes no time, so that a changed script is in it.
pub(crate) fn initramfs_busybox() -> Result<PathBuf> {
    let kernel = Kernel::find()?;
    let archive = initramfs::busybox(&kernel)?.finish();
    let path = made().join("initramfs-busybox.cpio");
    if fs::read(&path).is_ok_and(|found| found == archive) {
        return Ok(path);
    }
    replace(&path, &archive)?;
    Ok(path)
}

/// The folder of what is made out of packages.
fn made() -> PathBuf {
    paths::target().join("linux/made")
}

/// Writes a file so that nobody ever sees half of it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(failed)?;
    }
    let half = path.with_extension(format!("half-{}", std::process::id()));
    fs::write(&half, bytes)
        .and_then(|()| fs::rename(&half, path))
        .with_context(failed)
}
