//! `cargo xtask new`: a guest of one's own, in a crate outside this repository, with a scenario that runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use crate::{paths, run};

/// What `new` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder to make; its last part is the name of the crate and of the VM
    folder: PathBuf,
    /// Makes it and does not run it
    #[arg(long)]
    no_run: bool,
}

const MANIFEST: &str = include_str!("../template/Cargo.toml.in");
const SCENARIO: &str = include_str!("../template/scenario.toml.in");
const MAIN: &str = include_str!("../template/main.rs");

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let name = name(&args.folder)?;
    make(&args.folder, &name, &paths::root())?;
    let scenario = args.folder.join(format!("{name}.toml"));
    say!(
        "made {}; `cargo xtask run {}` builds and runs it",
        args.folder.display(),
        typed(&scenario)
    );
    if args.no_run {
        return Ok(ExitCode::SUCCESS);
    }
    run::scenario(&typed(&scenario))
}

/// The path as `run` takes it for one, wherever it lies.
fn typed(scenario: &Path) -> String {
    let text = scenario.display().to_string();
    if text.contains('/') {
        text
    } else {
        format!("./{text}")
    }
}

/// The last part of the folder, if a crate and a VM can be called so.
fn name(folder: &Path) -> Result<String> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} has no name", folder.display()))?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    ensure!(
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(plain)
            && nagaya_vmm::config::is_valid_name(name),
        "{name:?} is no name for a crate and a VM: a lower-case letter, then up to 30 of a-z 0-9 - _"
    );
    Ok(name.to_owned())
}

/// Writes the files. `root` is this repository, which the crate depends on.
fn make(folder: &Path, name: &str, root: &Path) -> Result<()> {
    if folder.exists() {
        bail!("{} is there already: give another name", folder.display());
    }
    let rt = root.join("guest-abi/rt");
    let filled = |text: &str| {
        text.replace("{name}", name)
            .replace("{rt}", &rt.display().to_string())
    };
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    for (file, text) in [
        ("Cargo.toml".to_owned(), filled(MANIFEST)),
        // The versions that are tested together; cargo takes out what is not needed.
        ("Cargo.lock".to_owned(), lock),
        (format!("{name}.toml"), filled(SCENARIO)),
        ("src/main.rs".to_owned(), MAIN.to_owned()),
        (".gitignore".to_owned(), "/target\n".to_owned()),
    ] {
        let path = folder.join(file);
        let failed = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(failed)?;
        }
        fs::write(&path, text).with_context(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> String {
        format!("\n{text}```\n")
    }

    #[test]
    fn the_readme_shows_what_is_made_and_what_is_tested() {
        let readme = fs::read_to_string(paths::root().join("README.md")).expect("is there");
        let echo = paths::root().join("tests/guests/src/bin/echo.rs");
        let echo = fs::read_to_string(echo).expect("is there");
        let code = echo.find("#![cfg_attr").map_or("", |start| &echo[start..]);
        for shown in [MAIN, &SCENARIO.replace("{name}", "greeter"), code] {
            assert!(readme.contains(&block(shown)), "not in README.md:\n{shown}");
        }
    }

    #[test]
    fn a_crate_is_made_with_a_scenario_that_is_right_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let guest = folder.path().join("greeter");
        let name = name(&guest).expect("is one");
        make(&guest, &name, &paths::root()).expect("is made");
        let scenario = guest.join("greeter.toml").display().to_string();
        let overrides = crate::scenario::Overrides::default();
        let loaded = crate::scenario::load(&scenario, &overrides).expect("is right");
        assert_eq!(loaded.scenario.vms[0].image, "greeter");
        assert!(make(&guest, &name, &paths::root()).is_err(), "it is there");
    }

    #[test]
    fn a_name_is_one_for_a_crate_and_for_a_vm() {
        for bad in ["A", "1a", "a b", "..", "-a", "é"] {
            assert!(name(Path::new(bad)).is_err(), "{bad}");
        }
        assert_eq!(
            name(Path::new("x/my-guest_2")).expect("is one"),
            "my-guest_2"
        );
        assert_eq!(typed(Path::new("a/a.toml")), "a/a.toml");
    }
}
