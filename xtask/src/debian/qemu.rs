//! QEMU without being installed: where a package of Debian's excludes something that the machine has (QEMU's own tools of another
//! release do), or where nobody is root, it is unpacked below `target/` with all that it needs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use nagaya_harness::qemu;

use super::{apt, packages};
use crate::cmd::Cmd;

/// Packages that are not unpacked: the machine's own C library and its loader belong together.
const OF_THE_MACHINE: [&str; 2] = ["libc6_", "libc-bin_"];

/// Starts the QEMU beside it with its own libraries, wherever the folder has been moved to.
const STARTER: &str = "#!/bin/sh
here=$(dirname \"$(readlink -f \"$0\")\")
LD_LIBRARY_PATH=$here/usr/lib/x86_64-linux-gnu:$here/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH
exec \"$here/usr/bin/qemu-system-x86_64\" \"$@\"
";

/// What has to be there: the program, and the firmware for UEFI among its files.
const PROOFS: [&str; 3] = [
    START,
    "usr/bin/qemu-system-x86_64",
    "usr/share/qemu/OVMF.fd",
];
const START: &str = "start";

fn root() -> PathBuf {
    packages::folder("unpacked").join("qemu")
}

/// Whether it has been unpacked; then that one is used from now on.
pub(crate) fn is_unpacked() -> bool {
    let root = root();
    let is_whole = PROOFS.iter().all(|file| root.join(file).exists());
    if is_whole {
        qemu::use_program(root.join(START).display().to_string());
    }
    is_whole
}

/// Unpacks these packages and those that they depend on.
pub(crate) fn unpack(names: &[&str]) -> Result<()> {
    // Each try has its own: another may be under way, and an old one may have left other versions.
    let downloads = packages::folder(&format!("qemu-packages-{}", std::process::id()));
    let done = unpack_by(&downloads, names);
    let _ = fs::remove_dir_all(&downloads);
    done?;
    ensure!(is_unpacked(), "{} is not whole", root().display());
    Ok(())
}

fn unpack_by(downloads: &Path, names: &[&str]) -> Result<()> {
    // As if nothing were installed: all that they depend on comes along, and nothing is in the way.
    let (status, partial) = (downloads.join("status"), downloads.join("partial"));
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
    let option = |name: &str, value: &Path| format!("{name}={}", value.display());
    note!("downloading QEMU and what it needs (once)");
    let download = || {
        apt::apt(&[
            "install",
            "-y",
            "--download-only",
            "--no-install-recommends",
        ])
        .args(["-o", "APT::Sandbox::User=root"])
        .args(["-o", "Debug::NoLocking=true"])
        .args(["-o", &option("Dir::State::status", &status)])
        .args(["-o", &option("Dir::Cache::archives", downloads)])
        .args(names)
        .read()
    };
    if let Err(first) = download() {
        // A list that is too old names files that are not there any more.
        if !apt::refresh_lists()? {
            return Err(first);
        }
        download()?;
    }
    // What is there and not whole is of no use.
    let _ = fs::remove_dir_all(root());
    let files: Vec<PathBuf> = fs::read_dir(downloads)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .filter(|path| !is_of_the_machine(path))
        .collect();
    packages::unpack_with("qemu", &files, |root| {
        let start = root.join(START);
        fs::write(&start, STARTER)?;
        fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
        // Before it counts as there.
        Cmd::new(start)
            .arg("--version")
            .read()
            .map(|_| ())
            .map_err(io::Error::other)
    })?;
    Ok(())
}

fn is_of_the_machine(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| OF_THE_MACHINE.iter().any(|start| name.starts_with(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_c_library_stays_the_machines() {
        for (name, is_left) in [
            ("libc6_2.36-9_amd64.deb", true),
            ("libc-bin_2.36-9_amd64.deb", true),
            ("libcacard0_1_amd64.deb", false),
            ("libc6-dev_2.36_amd64.deb", false),
        ] {
            assert_eq!(
                is_of_the_machine(&Path::new("/a").join(name)),
                is_left,
                "{name}"
            );
        }
    }
}
