//! `cargo xtask coverage`: which lines of the pure crates their host tests run.
//!
//! Measured by `cargo-llvm-cov`, which is installed below `target/`; the tools of LLVM come from Debian, in the version that the
//! compiler was made with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cmd::Cmd;
use crate::{debian, paths};

/// The crates that are pure: all of what they do can be run on the host.
const PURE: &[&str] = &[
    "guest-abi",
    "nagaya-devices",
    "nagaya-mem",
    "nagaya-sched",
    "nagaya-vmm",
    "x86-defs",
];

/// What `coverage` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The crates to measure [default: all pure ones]
    crates: Vec<String>,
    /// Writes a page for each file, with the lines that no test runs, into target/llvm-cov/html
    #[arg(long)]
    html: bool,
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let version = Cmd::new("rustc")
        .arg("-vV")
        .directory(paths::root())
        .read()?;
    let llvm = llvm_major(&version).context("`rustc -vV` names no LLVM version")?;
    let tools = tools(llvm)?;
    let bin = installed()?;
    let mut command = Cmd::new("cargo")
        .directory(paths::root())
        .env("PATH", path_with(&bin)?)
        .env("LLVM_COV", tools.join("llvm-cov"))
        .env("LLVM_PROFDATA", tools.join("llvm-profdata"))
        .arg("llvm-cov");
    let named: Vec<&str> = args.crates.iter().map(String::as_str).collect();
    for package in if named.is_empty() { PURE } else { &named } {
        command = command.args(["--package", package]);
    }
    // Tests and their doubles do not count as covered code.
    command = command.args([
        "--ignore-filename-regex",
        r"/tests?(/|\.rs$|_support)|/sim/|/test_support",
    ]);
    command = command.args(if args.html {
        ["--html", "--quiet"]
    } else {
        ["--summary-only", "--quiet"]
    });
    command.run()?;
    Ok(ExitCode::SUCCESS)
}

/// The major version of the compiler's LLVM.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// The folder of LLVM's tools in that version.
fn tools(llvm: u32) -> Result<PathBuf> {
    let folder = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin"));
    if !folder.join("llvm-profdata").exists() {
        debian::install(&[&format!("llvm-{llvm}")])?;
    }
    Ok(folder)
}

/// The folder of `cargo-llvm-cov`, which is built if it is not there.
fn installed() -> Result<PathBuf> {
    let root = paths::target().join("tools");
    let bin = root.join("bin");
    if !bin.join("cargo-llvm-cov").exists() {
        Cmd::new("cargo")
            .args(["install", "--quiet", "--locked", "cargo-llvm-cov"])
            .arg("--root")
            .arg(&root)
            .run()?;
    }
    Ok(bin)
}

fn path_with(folder: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).context("a folder of PATH has a colon in its name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_llvm_is_read_from_what_the_compiler_says() {
        let said = "rustc 1.95.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.2\n";
        assert_eq!(llvm_major(said), Some(22));
        assert_eq!(llvm_major("rustc 1.95.0\n"), None);
    }
}
