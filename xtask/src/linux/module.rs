//! `guest-kmod` built against Debian's headers, which are unpacked and not installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::debian_kernel::Kernel;
use super::files::{made, replace};
use crate::cmd::Cmd;
use crate::debian::packages;
use crate::needs::{self, Need};
use crate::paths;

/// Builds the module for Debian's kernel; gives its file without debug information, and all that the build said.
pub(crate) fn build(kernel: &Kernel) -> Result<(PathBuf, String)> {
    build_with(kernel, "nagaya", &[])
}

/// Builds it in a folder of its own with these settings of its Makefile.
pub(crate) fn build_with(
    kernel: &Kernel,
    name: &str,
    settings: &[&str],
) -> Result<(PathBuf, String)> {
    needs::need(&[Need::Module])?;
    let headers = headers(kernel)?;
    let folder = paths::target().join(format!("linux/{name}-{}", kernel.package.version));
    copy(&paths::root().join("guest-kmod"), &folder)?;
    let mut make = Cmd::new("make")
        .arg("-C")
        .arg(&folder)
        .arg(format!("KDIR={}", headers.display()))
        // Without it kernels from 6.12 on want pahole, for type information that needs the vmlinux they are not given.
        .args(["W=1", "PAHOLE=true"])
        .args(settings);
    if !Path::new("/usr/bin/gcc-12").exists() {
        // Debian's headers name the compiler that the kernel was built with; any near one does.
        make = make.arg("CC=gcc");
    }
    let said = said(make)?;
    let object = folder.join("nagaya.ko");
    let stripped = folder.join("nagaya.ko.stripped");
    Cmd::new("objcopy")
        .arg("--strip-debug")
        .args([&object, &stripped])
        .run()?;
    let module = made().join(format!("{name}-{}.ko", kernel.package.version));
    let bytes = fs::read(&stripped).context("the module was not built")?;
    if !fs::read(&module).is_ok_and(|found| found == bytes) {
        replace(&module, &bytes)?;
    }
    Ok((module, said))
}

/// Builds the module with Debian's DKMS, which is unpacked and not installed, in folders of its own.
///
/// # Errors
/// A package cannot be had. What DKMS has to complain of is in the result.
pub(crate) fn dkms(kernel: &Kernel) -> Result<Result<(), String>> {
    const MODULE: &str = "nagaya/1.0";
    needs::need(&[Need::Module])?;
    let headers = headers(kernel)?;
    let program = packages::unpacked("dkms")?.root.join("usr/sbin/dkms");
    let work = paths::target().join(format!("linux/dkms-{}", std::process::id()));
    let (sources, tree) = (work.join("src"), work.join("tree"));
    fs::create_dir_all(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
    copy(
        &paths::root().join("guest-kmod"),
        &sources.join(MODULE.replace('/', "-")),
    )?;
    let built = said(
        Cmd::new("bash")
            .arg(program)
            .args(["build", MODULE, "-k"])
            .arg(format!("{}/x86_64", kernel.release))
            .arg("--kernelsourcedir")
            .arg(headers)
            .arg("--sourcetree")
            .arg(&sources)
            .arg("--dkmstree")
            .arg(&tree),
    );
    let object = tree.join(format!(
        "{MODULE}/{}/x86_64/module/nagaya.ko",
        kernel.release
    ));
    let outcome = match built {
        Ok(_) if object.is_file() => Ok(()),
        Ok(said) => Err(format!("DKMS made no {}:\n{said}", object.display())),
        Err(error) => {
            let log = tree.join(format!("{MODULE}/build/make.log"));
            Err(format!(
                "{error:#}\n{}",
                fs::read_to_string(log).unwrap_or_default()
            ))
        }
    };
    let _ = fs::remove_dir_all(&work);
    Ok(outcome)
}

/// Builds the C library, its samples and the tests' programs, each without dependencies; gives their files by name.
pub(crate) fn programs() -> Result<BTreeMap<String, PathBuf>> {
    needs::need(&[Need::Module])?;
    let folder = paths::target().join("linux/programs");
    said(library(&folder)?)?;
    let mut programs = BTreeMap::new();
    for sources in ["guest-kmod/samples", "tests/linux/programs"] {
        let sources = paths::root().join(sources);
        let entries =
            fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))?;
        for entry in entries {
            let source = entry?.path();
            if let Some(name) = source.file_stem().and_then(|stem| stem.to_str()) {
                programs.insert(name.to_owned(), folder.join(name));
            }
        }
    }
    Ok(programs)
}

/// Builds the Rust programs of `tests/linux`, each without dependencies; gives their files by name.
pub(crate) fn rust_programs() -> Result<BTreeMap<String, PathBuf>> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let target = paths::target().join("linux/rust");
    said(
        Cmd::new("cargo")
            .args(["build", "--quiet", "--release", "--target", TARGET])
            .args(["--package", "nagaya-linux-programs", "--bins"])
            .arg("--target-dir")
            .arg(&target)
            .env(
                "RUSTFLAGS",
                "-C target-feature=+crt-static -C strip=symbols",
            )
            .directory(paths::root()),
    )?;
    let sources = paths::root().join("tests/linux/src/bin");
    let mut programs = BTreeMap::new();
    let entries =
        fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))?;
    for entry in entries {
        let source = entry?.path();
        if let Some(name) = source.file_stem().and_then(|stem| stem.to_str()) {
            let program = target.join(TARGET).join("release").join(name);
            programs.insert(name.to_owned(), program);
        }
    }
    Ok(programs)
}

/// `make` for the library, with its results in a folder.
fn library(folder: &Path) -> Result<Cmd> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let more = paths::root().join("tests/linux/programs");
    Ok(Cmd::new("make")
        .args(["--no-print-directory", "-C"])
        .arg(paths::root().join("guest-kmod/lib"))
        .arg(format!("O={}", folder.display()))
        .arg(format!("MORE={}", more.display())))
}

/// Runs a command; gives everything it said, which is the error if it failed.
pub(super) fn said(command: Cmd) -> Result<String> {
    let text = command.to_string();
    let output = command
        .into_std()
        .output()
        .with_context(|| format!("cannot start `{text}`"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "`{text}` failed:\n{said}");
    Ok(said)
}

/// The lines of a build that are warnings.
pub(crate) fn warnings(said: &str) -> Vec<&str> {
    said.lines()
        .filter(|line| line.contains("warning:") || line.starts_with("WARNING:"))
        .collect()
}

/// A folder of headers that an external module can be built with.
fn headers(kernel: &Kernel) -> Result<PathBuf> {
    let package = format!("linux-headers-{}", kernel.release);
    let depends = packages::field(&package, "Depends")?;
    let more = packages::names(&depends)
        .filter(|name| name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-"));
    let all: Vec<&str> = [package.as_str()].into_iter().chain(more).collect();
    let root = packages::unpacked_together(&format!("headers-{}", kernel.package.version), &all)?;
    let sources = root.join("usr/src");
    let folder = sources.join(&package);
    // The one line in it says where the rest would be if it were installed.
    let makefile = folder.join("Makefile");
    let text = fs::read_to_string(&makefile)
        .with_context(|| format!("cannot read {}", makefile.display()))?;
    let wanted = pointing_at(&text, &sources);
    if wanted != text {
        fs::write(&makefile, wanted)
            .with_context(|| format!("cannot write {}", makefile.display()))?;
    }
    Ok(folder)
}

/// A Makefile whose `include` of what lies in a folder `usr/src`, wherever that was, is of what lies in this one.
fn pointing_at(makefile: &str, sources: &Path) -> String {
    let lines = makefile.split_inclusive('\n').map(|line| {
        match (line.starts_with("include "), line.split_once("/usr/src/")) {
            (true, Some((_, file))) => format!("include {}/{file}", sources.display()),
            _ => line.to_owned(),
        }
    });
    lines.collect()
}

/// Copies what has changed, so that make builds no more than that.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let from = entry?.path();
        let Some(name) = from.file_name() else {
            continue;
        };
        let to = to.join(name);
        if from.is_dir() {
            copy(&from, &to)?;
            continue;
        }
        let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        if !fs::read(&to).is_ok_and(|found| found == bytes) {
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_found_among_what_a_build_says() {
        let said = "  CC [M]  a.o\na.c:3:1: warning: unused variable\nWARNING: modpost: missing\n  LD [M]  a.ko\n";
        assert_eq!(warnings(said).len(), 2);
        assert!(warnings("  CC [M]  warning.o\n").is_empty());
    }

    #[test]
    fn the_headers_are_found_after_the_checkout_has_moved() {
        let here = Path::new("/here/target/usr/src");
        let wanted = "include /here/target/usr/src/common/Makefile\nall:\n";
        for before in ["/usr/src", "/there/target/usr/src", "/here/target/usr/src"] {
            let before = format!("include {before}/common/Makefile\nall:\n");
            assert_eq!(pointing_at(&before, here), wanted);
        }
    }

    #[test]
    fn the_c_library_keeps_its_promises_without_a_warning() {
        let folder = tempfile::tempdir().expect("a folder");
        let make = library(folder.path()).expect("a folder");
        let said = said(make.args(["CFLAGS=-O2 -Werror", "all", "check"])).expect("is well");
        assert!(said.contains("\nok\n"), "{said}");
    }

    #[test]
    fn a_file_that_has_not_changed_keeps_its_age() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir_all(from.join("c")).expect("is made");
        fs::write(from.join("c/d.h"), "1").expect("is written");
        copy(&from, &to).expect("copies");
        let age = || {
            fs::metadata(to.join("c/d.h"))
                .and_then(|data| data.modified())
                .expect("is there")
        };
        let first = age();
        copy(&from, &to).expect("copies");
        assert_eq!(age(), first);
        fs::write(from.join("c/d.h"), "2").expect("is written");
        copy(&from, &to).expect("copies");
        assert_eq!(fs::read(to.join("c/d.h")).expect("is there"), b"2");
    }
}
