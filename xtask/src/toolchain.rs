//! The bare-metal toolchain, chosen in this one place (docs/adr/0002):
//!
//! 1. the active rustup toolchain, if it can build for `x86_64-unknown-none` and has what the `bootloader` crate wants
//!    (`rust-src`, `llvm-tools`); `rust-toolchain.toml` names these, so that a user's rustup fetches them;
//! 2. else a folder of links to Debian's compiler, which has no prebuilt `core` for bare metal but its source;
//! 3. else an error with the command for either.

use std::fmt;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cmd::Cmd;
use crate::needs::{self, Need};
use crate::paths;

/// The target of everything on bare metal.
pub(crate) const TARGET: &str = "x86_64-unknown-none";
const HOST: &str = "x86_64-unknown-linux-gnu";
/// The oldest compiler that knows all we use: `rust-version` of the workspace, 1.MINOR.
const OLDEST_MINOR: u32 = 95;

/// A toolchain that builds for bare metal.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    sysroot: PathBuf,
    /// Its own `cargo` and `rustc`; `None` for those that rustup's cargo gave us in the environment.
    programs: Option<PathBuf>,
    /// 1.MINOR.
    minor: u32,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = if self.programs.is_some() {
            "Debian's"
        } else {
            "rustup's"
        };
        write!(
            f,
            "{origin} Rust 1.{} in {}",
            self.minor,
            self.sysroot.display()
        )
    }
}

impl Toolchain {
    /// `cargo` of this toolchain; whatever the environment says of other folders and compilers does not count.
    pub(crate) fn cargo(&self) -> Cmd {
        let cmd = match &self.programs {
            None => Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
            Some(programs) => {
                let old = std::env::var_os("PATH").unwrap_or_default();
                let all = [programs.clone()]
                    .into_iter()
                    .chain(std::env::split_paths(&old));
                // A folder whose name holds a `:` cannot be on PATH; then the old one has to do, and RUSTC still holds.
                let path = std::env::join_paths(all).unwrap_or(old);
                Cmd::new(programs.join("cargo"))
                    .env("PATH", path)
                    .env("RUSTC", programs.join("rustc"))
            }
        };
        // `cargo install`, which the build script of `bootloader` calls, would take this folder, too, and wait for ever for
        // the lock that the outer cargo holds on it.
        cmd.env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_BUILD_TARGET_DIR")
            .directory(paths::root())
    }

    /// `cargo build` for [`TARGET`]: with Debian's compiler `core` is built, too, which only its own source allows.
    pub(crate) fn cargo_build_bare(&self) -> Cmd {
        let build = self.cargo().args(["build", "--target", TARGET]);
        match self.programs {
            None => build,
            Some(_) => build.env("RUSTC_BOOTSTRAP", "1").args([
                "-Zbuild-std=core,alloc",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]),
        }
    }

    /// A program of LLVM, such as `llvm-objcopy`.
    pub(crate) fn llvm_tool(&self, name: &str) -> PathBuf {
        tools(&self.sysroot).join(name)
    }

    /// What compiles, in a word: code of another compiler takes other ticks.
    pub(crate) fn compiler(&self) -> String {
        format!("rustc 1.{}", self.minor)
    }

    /// The version of the `bootloader` crate that this compiler can build. Its stages are built with a lock file of their
    /// own and nightly features, so that each version knows a span of compilers: 0.11.15 those before July 2026, 0.11.17
    /// those after.
    pub(crate) fn bootloader_version(&self) -> &'static str {
        bootloader_version(self.minor)
    }
}

fn bootloader_version(minor: u32) -> &'static str {
    // 1.99 is the first that was branched off after that change of the compiler.
    if minor < 99 { "0.11.15" } else { "0.11.17" }
}

/// The toolchain to use. Debian's packages are installed if they are the way and missing.
pub(crate) fn find() -> Result<Toolchain> {
    if let Some(toolchain) = rustup()? {
        return Ok(toolchain);
    }
    needs::need(&[Need::Toolchain]).context(
        "no toolchain for bare metal: rustup's needs\n    rustup component add rust-src llvm-tools && \
         rustup target add x86_64-unknown-none\nor Debian's",
    )?;
    debian()
}

/// The active toolchain, if it has all that is needed.
fn rustup() -> Result<Option<Toolchain>> {
    let sysroot = PathBuf::from(
        Cmd::new("rustc")
            .args(["--print", "sysroot"])
            .directory(paths::root())
            .read()?
            .trim(),
    );
    let parts = [
        sysroot.join("lib/rustlib").join(TARGET).join("lib"),
        sysroot.join("lib/rustlib/src/rust/library/core"),
        tools(&sysroot).join("rust-lld"),
        tools(&sysroot).join("llvm-objcopy"),
    ];
    if !parts.iter().all(|part| part.exists()) {
        return Ok(None);
    }
    let version = Cmd::new("rustc")
        .arg("-V")
        .directory(paths::root())
        .read()?;
    Ok(Some(Toolchain {
        sysroot,
        programs: None,
        minor: minor(&version)?,
    }))
}

/// The folder of links to Debian's compiler. A compiler finds its parts below its sysroot, and a distribution's sysroot
/// (`/usr`) lacks the linker and the LLVM tools at the places where `cargo` and `bootloader` look.
fn debian() -> Result<Toolchain> {
    let version = Cmd::new("/usr/bin/rustc").arg("-vV").read()?;
    let minor = minor(&version)?;
    ensure!(
        minor >= OLDEST_MINOR,
        "Debian's compiler is too old: {} and 1.{OLDEST_MINOR} is needed; `apt-get install rustc-web cargo-web rust-web-src`, \
         or `rustup component add rust-src llvm-tools && rustup target add {TARGET}`",
        version.lines().next().unwrap_or_default()
    );
    let folder = paths::target().join("toolchain");
    let programs = folder.join("bin");
    let stamp = folder.join("made-for");
    // cargo remembers what a compiler is by the age of its file. Ours is a script that an upgrade of Debian's packages does not
    // touch, so it is made anew when their version has changed.
    let made_for = format!("{version}{}", folder.display());
    if fs::read_to_string(&stamp).is_ok_and(|found| found == made_for) {
        return Ok(Toolchain {
            sysroot: folder,
            programs: Some(programs),
            minor,
        });
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let rustlib = folder.join("lib/rustlib");
    link_all(&[
        ("/usr/bin/cargo".into(), programs.join("cargo")),
        ("/usr/bin/rustdoc".into(), programs.join("rustdoc")),
        ("/usr/lib/rustlib/src".into(), rustlib.join("src")),
        ("/usr/lib/rustlib/etc".into(), rustlib.join("etc")),
        (
            Path::new("/usr/lib/rustlib").join(HOST).join("lib"),
            rustlib.join(HOST).join("lib"),
        ),
        ("/usr/bin/lld".into(), tools(&folder).join("rust-lld")),
        (
            "/usr/bin/llvm-objcopy".into(),
            tools(&folder).join("llvm-objcopy"),
        ),
        (
            "/usr/bin/llvm-objdump".into(),
            tools(&folder).join("llvm-objdump"),
        ),
    ])?;
    let rustc = programs.join("rustc");
    let quoted = folder.display().to_string().replace('\'', r"'\''");
    write(
        &rustc,
        &format!("#!/bin/sh\nexec /usr/bin/rustc --sysroot '{quoted}' \"$@\"\n"),
    )?;
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755))?;
    let answer = Cmd::new(&rustc).args(["--print", "sysroot"]).read()?;
    ensure!(
        Path::new(answer.trim()) == folder,
        "the toolchain in {} does not work: it says {answer}",
        folder.display()
    );
    // Last, so that a half-made folder is made again.
    write(&stamp, &made_for)?;
    Ok(Toolchain {
        sysroot: folder,
        programs: Some(programs),
        minor,
    })
}

/// Where a sysroot keeps its linker and LLVM tools.
fn tools(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib").join(HOST).join("bin")
}

fn link_all(links: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (original, link) in links {
        let parent = link.parent().context("a link has a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        symlink(original, link)
            .with_context(|| format!("cannot make the link {}", link.display()))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// The MINOR of `rustc 1.MINOR.0 (...)`.
fn minor(version: &str) -> Result<u32> {
    version
        .strip_prefix("rustc 1.")
        .and_then(|rest| rest.split('.').next())
        .and_then(|minor| minor.parse().ok())
        .with_context(|| format!("cannot read this compiler's version: {version:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_stable_nightly_and_debian_are_read() {
        assert_eq!(
            minor("rustc 1.95.0 (59807616e 2026-04-14)\n").expect("stable"),
            95
        );
        assert_eq!(
            minor("rustc 1.97.0-nightly (a 2026-05-01)").expect("nightly"),
            97
        );
        assert_eq!(
            minor("rustc 1.96.0 (b 2026-05-25) (built from a source tarball)\nbinary: rustc")
                .expect("Debian"),
            96
        );
        assert!(minor("gcc 12").is_err());
    }

    #[test]
    fn the_next_compiler_of_debian_gets_the_bootloader_it_can_build() {
        assert_eq!(bootloader_version(96), "0.11.15");
        assert_eq!(bootloader_version(100), "0.11.17");
    }
}
