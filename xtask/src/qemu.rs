//! QEMU without being installed: where a package of Debian's excludes something that the machine has (QEMU's own tools of another
//! release do), or where nobody is root, it is unpacked below `target/` with all that it needs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nagaya_harness::qemu;

use crate::cmd::Cmd;
use crate::linux::packages;
use crate::setup;

/// Packages that are not unpacked: the machine's own C library and its loader belong together.
const OF_THE_MACHINE: [&str; 2] = ["libc6_", "libc-bin_"];

/// Starts the QEMU beside it with its own libraries, wherever the folder has been moved to.
const STARTER: &str = "#!/bin/sh
here=$(dirname \"$(readlink -f \"$0\")\")
LD_LIBRARY_PATH=$here/usr/lib/x86_64-linux-gnu:$here/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH
exec \"$here/usr/bin/qemu-system-x86_64\" \"$@\"
";

fn starter() -> PathBuf {
    packages::folder("unpacked").join("qemu").join("start")
}

/// Whether it has been unpacked; then that one is used from now on.
pub(crate) fn is_unpacked() -> bool {
    let starter = starter();
    let exists = starter.exists();
    if exists {
        qemu::use_program(starter.display().to_string());
    }
    exists
}

/// Unpacks these packages and those that they depend on.
pub(crate) fn unpack(names: &[&str]) -> Result<()> {
    let downloads = packages::folder("qemu-packages");
    // As if nothing were installed: all that they depend on comes along, and nothing is in the way.
    let (status, partial) = (downloads.join("status"), downloads.join("partial"));
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
    let option = |name: &str, value: &Path| format!("{name}={}", value.display());
    eprintln!(
        "downloading what QEMU needs into {} (once)",
        downloads.display()
    );
    let download = || {
        setup::apt(&[
            "install",
            "-y",
            "--download-only",
            "--no-install-recommends",
        ])
        .args(["-o", "APT::Sandbox::User=root"])
        .args(["-o", "Debug::NoLocking=true"])
        .args(["-o", &option("Dir::State::status", &status)])
        .args(["-o", &option("Dir::Cache::archives", &downloads)])
        .args(names)
        .read()
    };
    if let Err(first) = download() {
        // A list that is too old names files that are not there any more.
        if !setup::refresh_lists()? {
            return Err(first);
        }
        download()?;
    }
    let files: Vec<PathBuf> = fs::read_dir(&downloads)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .filter(|path| !is_of_the_machine(path))
        .collect();
    packages::unpack_with("qemu", &files, |root| {
        let start = root.join("start");
        fs::write(&start, STARTER)?;
        fs::set_permissions(&start, fs::Permissions::from_mode(0o755))
    })?;
    // They are of no more use.
    let _ = fs::remove_dir_all(&downloads);
    ensure!(is_unpacked(), "{} is not there", starter().display());
    Cmd::new(qemu::program())
        .arg("--version")
        .read()
        .map(|_| ())
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
