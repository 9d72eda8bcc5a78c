//! `cargo xtask prepush`: everything that can be checked in a minute or two without the machine.

use std::process::ExitCode;

use anyhow::Result;

use crate::cmd::Cmd;
use crate::{image, paths, tidy, toolchain};

/// Runs the verb. All steps are run, so that one push shows everything that is wrong.
pub(crate) fn main() -> Result<ExitCode> {
    let cargo = || Cmd::new("cargo").directory(paths::root());
    let image = "xtask/image/Cargo.toml";
    let steps = [
        ("format", cargo().args(["fmt", "--all", "--check"])),
        (
            "format of the image tool",
            cargo().args(["fmt", "--check", "--manifest-path", image]),
        ),
        (
            "clippy",
            cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        ),
        (
            "docs",
            cargo()
                .args([
                    "doc",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                ])
                .env("RUSTDOCFLAGS", "-D warnings"),
        ),
        (
            "host tests",
            cargo().args(["test", "--workspace", "--quiet"]),
        ),
        (
            "tests of the image tool",
            image::tool_tests(&toolchain::find()?)?,
        ),
    ];
    let mut failed = Vec::new();
    for (name, command) in steps {
        say!("== {name}");
        if !command.status()?.success() {
            failed.push(name);
        }
    }
    say!("== tidy");
    if tidy::main(&tidy::Args::default())? != ExitCode::SUCCESS {
        failed.push("tidy");
    }
    if failed.is_empty() {
        say!("prepush: all is well");
        return Ok(ExitCode::SUCCESS);
    }
    say!("prepush: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}
