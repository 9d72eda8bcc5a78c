//! The root file system `built/rootfs`: a small Debian on a disk, out of its packages, with the first process of
//! `tests/linux/root`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cmd::Cmd;
use crate::debian::packages;
use crate::paths;

/// Room for what is in it, four times over.
const SIZE: &str = "24M";

/// Package, file in it, where it goes.
const FILES: &[(&str, &str, &str)] = &[
    ("dash", "bin/dash", "bin/sh"),
    (
        "libc6",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib/x86_64-linux-gnu/libc.so.6",
    ),
    (
        "libc6",
        "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "lib64/ld-linux-x86-64.so.2",
    ),
    ("busybox-static", "bin/busybox", "bin/busybox"),
];

/// Makes the image of an ext4 file system, unless it is there and its first process has not changed since: it holds the times at
/// which its files were made, and is another each time.
pub(crate) fn image() -> Result<PathBuf> {
    let work = super::made().join("rootfs");
    let image = work.join("rootfs.ext4");
    let init = paths::root().join("tests/linux/root/init");
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let is_new =
        matches!((changed(&image), changed(&init)), (Ok(made), Ok(source)) if made > source);
    if is_new {
        return Ok(image);
    }
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot delete {}", work.display()))?;
    }
    let tree = work.join("root");
    fill(&tree, &init)?;
    let unfinished = work.join("unfinished");
    Cmd::new("/usr/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "nagaya-root"])
        .args(["-E", "root_owner=0:0", "-d"])
        .arg(&tree)
        .arg(&unfinished)
        .arg(SIZE)
        .read()?;
    fs::rename(&unfinished, &image).with_context(|| format!("cannot make {}", image.display()))?;
    Ok(image)
}

fn fill(tree: &Path, init: &Path) -> Result<()> {
    const FOLDERS: &[&str] = &["dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"];
    for folder in FOLDERS {
        make_folder(&tree.join(folder))?;
    }
    for (package, name, inside) in FILES {
        let root = packages::unpacked(package)?.root;
        // Since Debian's merge of /usr packages have them in either place.
        let file = [root.join("usr").join(name), root.join(name)]
            .into_iter()
            .find(|file| file.is_file())
            .with_context(|| format!("the package {package} has no file {name}"))?;
        add_program(&file, &tree.join(inside))?;
    }
    add_program(init, &tree.join("sbin/init"))?;
    let names = Cmd::new(tree.join("bin/busybox")).arg("--list").read()?;
    for name in names.lines() {
        let link = tree.join("bin").join(name);
        if !link.exists() {
            symlink("busybox", &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    Ok(())
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn add_program(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        make_folder(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot change {}", to.display()))
}
