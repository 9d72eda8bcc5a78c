//! `cargo xtask build`: the hypervisor and the guests for bare metal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cmd::Cmd;
use crate::guests::{self, MULTIBOOT, STRIP};
use crate::toolchain::{TARGET, Toolchain};
use crate::{paths, progress, toolchain};

/// What was built.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// The hypervisor without its debug information, as it goes into the image.
    pub(crate) hypervisor: PathBuf,
    /// The folder of the guests, likewise stripped, one file each by the name of its `[[bin]]`.
    pub(crate) guests: PathBuf,
}

/// Runs the verb.
pub(crate) fn main() -> Result<ExitCode> {
    let toolchain = toolchain::find()?;
    let built = all(&toolchain)?;
    say!("hypervisor: {}", built.hypervisor.display());
    say!("guests:     {}", built.guests.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds what is out of date; says nothing when nothing is.
pub(crate) fn all(toolchain: &Toolchain) -> Result<Built> {
    let target = paths::bare_target();
    let cargo = toolchain
        .cargo_build_bare()
        .args([
            "--package",
            "nagaya-machine",
            "--package",
            "nagaya-guests",
            "--package",
            "nagaya-multiboot",
            "--bins",
            "--profile",
            "bare",
        ])
        .args([
            "--color",
            if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
                "always"
            } else {
                "never"
            },
        ])
        .arg("--target-dir")
        .arg(&target);
    progress::run("building the hypervisor and the guests", cargo, is_noise)?;

    let output = target.join(TARGET).join("bare");
    let stripped = target.join("stripped");
    let folder = stripped.join("guests");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let hypervisor = stripped.join("nagaya");
    copy(toolchain, STRIP, &output.join("nagaya"), &hypervisor)?;
    for guest in guests::names()? {
        let form = MULTIBOOT.iter().find(|(name, ..)| *name == guest);
        let (program, arguments) = form.map_or((&*guest, STRIP), |(_, program, arguments)| {
            (*program, *arguments)
        });
        copy(
            toolchain,
            arguments,
            &output.join(program),
            &folder.join(&guest),
        )?;
    }
    Ok(Built {
        hypervisor,
        guests: folder,
    })
}

/// Where the programs are with their symbols.
pub(crate) fn symbols() -> PathBuf {
    paths::bare_target().join(TARGET).join("bare")
}

/// Builds a Cargo package that lies somewhere, with the toolchain of all guests; gives its program of that name, stripped.
pub(crate) fn package(toolchain: &Toolchain, folder: &Path, name: &str) -> Result<PathBuf> {
    // One for all of them: what they have in common is built once.
    let target = paths::target().join("packages");
    let cargo = toolchain
        .cargo_build_bare()
        .directory(folder)
        .args(["--release", "--bin", name, "--target-dir"])
        .arg(&target);
    progress::run(&format!("building {name}"), cargo, is_noise)?;
    let stripped = target.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot make {}", stripped.display()))?;
    let program = stripped.join(name);
    // It may be of another package with that name, built later than this one.
    let _ = fs::remove_file(&program);
    copy(
        toolchain,
        STRIP,
        &target.join(TARGET).join("release").join(name),
        &program,
    )?;
    Ok(program)
}

/// Whether the environment asks for another profile than the one that figures are measured with: faster to build, slower to run.
pub(crate) fn has_other_profile() -> bool {
    std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("CARGO_PROFILE_BARE_"))
}

/// cargo's last word, which is all it says when there is nothing to do.
pub(crate) fn is_noise(line: &str) -> bool {
    line.contains("Finished") && line.contains("profile")
}

/// Copies a program in the form that these arguments of `llvm-objcopy` say.
fn copy(toolchain: &Toolchain, arguments: &[&str], from: &Path, to: &Path) -> Result<()> {
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let source =
        modified(from).with_context(|| format!("cargo did not make {}", from.display()))?;
    if modified(to).is_some_and(|made| made > source) {
        return Ok(());
    }
    Cmd::new(toolchain.llvm_tool("llvm-objcopy"))
        .args(arguments)
        .arg(from)
        .arg(to)
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_with_nothing_to_do_is_silent_and_a_warning_is_not() {
        assert!(is_noise(
            "    Finished `bare` profile [optimized + debuginfo] target(s) in 0.10s"
        ));
        assert!(!is_noise("   Compiling nagaya-machine v0.1.0 (/x)"));
        assert!(!is_noise("warning: unused variable: `x`"));
    }
}
