//! `cargo xtask setup`: all that the other verbs install when they first need it; `--check` looks and installs nothing.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;

use crate::needs::{self, Need, Proof};
use crate::{image, toolchain};

/// What `setup` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tells what is there and what is missing; fails if something is
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if args.check {
        return Ok(check());
    }
    needs::need(&[Need::Bochs, Need::Qemu, Need::Module, Need::Tests])?;
    let toolchain = toolchain::find()?;
    say!("toolchain: {toolchain}");
    say!("image tool: {}", image::tool(&toolchain)?.display());
    say!("ready: `cargo xtask run` boots Nagaya");
    Ok(ExitCode::SUCCESS)
}

fn check() -> ExitCode {
    let mut missing = 0;
    for (name, proof) in needs::all() {
        // By what is there, whoever installed it: a package of another distribution, or somebody's own build.
        match proof.find() {
            Some(path) if matches!(proof, Proof::File(_)) || answers(&path) => {
                say!("ok       {name}: {}", path.display());
            }
            Some(path) => {
                missing += 1;
                say!("broken   {name}: {} does not answer --help", path.display());
            }
            None => {
                missing += 1;
                say!("missing  {name} (Debian's name)");
            }
        }
    }
    if missing == 0 {
        say!("all is there");
        return ExitCode::SUCCESS;
    }
    say!("{missing} missing; what a verb needs it installs itself where it can");
    ExitCode::FAILURE
}

/// Whether a program starts and has something to say when it is asked for help, whatever its status: not all know the option.
fn answers(program: &Path) -> bool {
    let output = Command::new(program)
        .arg("--help")
        .env("SDL_VIDEODRIVER", "dummy")
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|output| {
        output.status.code().is_some_and(|code| code < 126)
            && !(output.stdout.is_empty() && output.stderr.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_run_is_not_taken_for_one_that_is_there() {
        assert!(answers(Path::new("/bin/ls")));
        assert!(!answers(Path::new("/etc/passwd")));
        assert!(!answers(Path::new("/no/such/program")));
    }
}
