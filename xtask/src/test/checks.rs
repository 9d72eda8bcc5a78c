//! Checks of the tree: format, clippy, documentation, tidy, the Linux module.

use std::process::ExitCode;
use std::time::Instant;

use super::tally::Tally;
use crate::cmd::Cmd;
use crate::{linux, paths, tidy};

pub(super) fn run(tally: &mut Tally, wanted: &dyn Fn(&str) -> bool) {
    let cargo = |arguments: &[&str]| Cmd::new("cargo").directory(paths::root()).args(arguments);
    let steps = [
        ("check/format", cargo(&["fmt", "--all", "--check"])),
        (
            "check/clippy",
            cargo(&[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        ),
        (
            "check/documentation",
            cargo(&["doc", "--quiet", "--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        ),
    ];
    for (name, command) in steps {
        if wanted(name) {
            let started = Instant::now();
            let outcome = command.run().map_err(|error| format!("{error:#}"));
            tally.one(name, &outcome, started);
        }
    }
    if wanted("check/tidy") {
        let started = Instant::now();
        let outcome = match tidy::main(&tidy::Args::default()) {
            Ok(code) if code == ExitCode::SUCCESS => Ok(()),
            Ok(_) => Err("see the findings above".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        };
        tally.one("check/tidy", &outcome, started);
    }
    module_check(tally, wanted, "check/kmod", linux::check_module);
    module_check(tally, wanted, "check/kmod-dkms", linux::check_dkms);
    module_check(tally, wanted, "check/kmod-promises", linux::try_module);
}

/// A check of the Linux module, which is left out where Debian's packages for it cannot be had.
fn module_check(
    tally: &mut Tally,
    wanted: &dyn Fn(&str) -> bool,
    name: &str,
    check: fn() -> Option<Result<(), String>>,
) {
    if wanted(name) {
        let started = Instant::now();
        match check() {
            Some(outcome) => tally.one(name, &outcome, started),
            None => say!("skipped {name}"),
        }
    }
}
