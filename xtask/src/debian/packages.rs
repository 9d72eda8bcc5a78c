//! Debian packages that are used without being installed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use anyhow::{Context, Result};

use super::apt;
use crate::cmd::Cmd;
use crate::paths;

/// A package in a folder of its own.
pub(crate) struct Unpacked {
    /// Its files, as they would be below `/`.
    pub(crate) root: PathBuf,
    /// Its version and architecture as they stand in the file's name: good for names of what is made out of it.
    pub(crate) version: String,
}

/// Unpacks a package, unless that was done before.
pub(crate) fn unpacked(package: &str) -> Result<Unpacked> {
    let file = file(package)?;
    let stem = file
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    let version = stem
        .split_once('_')
        .map_or("", |(_, version)| version)
        .to_owned();
    let root = unpack_with(&stem, &[file], |_| Ok(()))?;
    Ok(Unpacked { root, version })
}

/// Unpacks packages that want to find each other into one folder with this name.
pub(crate) fn unpacked_together(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let files: Result<Vec<PathBuf>> = packages.iter().map(|package| file(package)).collect();
    unpack_with(name, &files?, |_| Ok(()))
}

/// Unpacks files of packages into one folder with this name, unless that was done before. `finish` may add to it.
pub(crate) fn unpack_with(
    name: &str,
    files: &[PathBuf],
    finish: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<PathBuf> {
    let root = folder("unpacked").join(name);
    if !root.is_dir() {
        let half = folder("unpacked").join(format!("{name}.half-{}", std::process::id()));
        fs::create_dir_all(&half).with_context(|| format!("cannot make {}", half.display()))?;
        for file in files {
            Cmd::new("dpkg-deb").arg("-x").args([file, &half]).run()?;
        }
        finish(&half).with_context(|| format!("cannot write into {}", half.display()))?;
        // Somebody else may have been faster; then theirs is as good.
        if fs::rename(&half, &root).is_err() && root.is_dir() {
            let _ = fs::remove_dir_all(&half);
        }
    }
    Ok(root)
}

/// A field of a package's description, as `Depends`.
pub(crate) fn field(package: &str, field: &str) -> Result<String> {
    let said = Cmd::new("dpkg-deb")
        .arg("--field")
        .arg(file(package)?)
        .arg(field)
        .read()?;
    Ok(said.trim().to_owned())
}

/// The names in a field such as `a (= 1), b | c`; of alternatives the first.
pub(crate) fn names(depends: &str) -> impl Iterator<Item = &str> {
    depends
        .split(',')
        .filter_map(|one| one.split(['|', '(']).next())
        .map(|name| name.trim())
        .filter(|name| !name.is_empty())
}

/// The package's file, downloaded unless it is there.
fn file(package: &str) -> Result<PathBuf> {
    let downloads = folder("packages");
    if let Some(file) = cached(&downloads, package) {
        return Ok(file);
    }
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot make {}", downloads.display()))?;
    note!("downloading the Debian package {package} (once)");
    // As root apt would drop to a user who cannot write there, and warn that it does not.
    let download = || {
        Cmd::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .directory(&downloads)
            .read()
    };
    let failed = || {
        format!(
            "the Debian package {package} is not in {} and cannot be downloaded; `apt-get update` (as root) may help, or a \
             Debian with network: copy its file there",
            downloads.display()
        )
    };
    if let Err(first) = download() {
        // A list that is too old names files that are not there any more.
        if !apt::refresh_lists()? {
            return Err(first).with_context(failed);
        }
        download().with_context(failed)?;
    }
    cached(&downloads, package).with_context(failed)
}

/// The newest file of a package: the name ends at the first `_`.
fn cached(downloads: &Path, package: &str) -> Option<PathBuf> {
    let age = |path: &PathBuf| {
        fs::metadata(path)
            .and_then(|data| data.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH)
    };
    fs::read_dir(downloads)
        .ok()?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.split_once('_'))
                .is_some_and(|(name, _)| name == package)
        })
        .max_by_key(age)
}

/// A folder of ours below `target/`.
pub(crate) fn folder(name: &str) -> PathBuf {
    paths::target().join("linux").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_alternatives_are_no_part_of_a_name() {
        let depends = "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), a | b (>= 1)";
        assert_eq!(
            names(depends).collect::<Vec<_>>(),
            ["linux-image-6.1.0-56-cloud-amd64", "a"]
        );
        assert_eq!(names("").count(), 0);
    }

    #[test]
    fn a_package_is_not_taken_for_another_whose_name_begins_alike() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in [
            "busybox-static_1%3a1.35_amd64.deb",
            "busybox_1_amd64.deb.part",
        ] {
            fs::write(folder.path().join(name), "").expect("is written");
        }
        assert_eq!(cached(folder.path(), "busybox"), None);
        assert!(cached(folder.path(), "busybox-static").is_some());
    }
}
