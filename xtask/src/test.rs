//! `cargo xtask test`: every level of tests, one line each; the last line reads `N passed, N failed`.
//!
//! Levels: checks (format, clippy, documentation, tidy), tests on the host, tests in the machine. The loader's stages, which
//! take minutes to build the first time, are built by a thread beside the checks and host tests.

mod checks;
mod ctrl_c;
mod host;
mod machine;
mod new_guest;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use nagaya_harness::interrupt;
use nagaya_system_tests::SystemTest;

use self::tally::Tally;
use crate::bench;
use crate::image::Imager;
use crate::needs::{self, Need};

/// What `test` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs only tests whose name contains this, on every level
    filter: Option<String>,
    /// Gives long tests all their rounds: hours, not minutes
    #[arg(long)]
    full: bool,
}

/// Runs the verb.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let wanted = |name: &str| {
        args.filter
            .as_deref()
            .is_none_or(|filter| name.contains(filter))
    };
    let systems: Vec<SystemTest> = nagaya_system_tests::all()
        .into_iter()
        .filter(|test| args.full || !test.only_full)
        .filter(|test| wanted(&format!("machine/{}", test.name)))
        .collect();
    let ctrl_c = wanted("machine/ctrl-c");
    let benches: Vec<&str> = bench::SHORT
        .into_iter()
        .filter(|bench| wanted(&format!("machine/bench-{bench}")))
        .collect();
    let new_guest = wanted("machine/new-guest");
    let needs_images = new_guest || ctrl_c || !systems.is_empty() || !benches.is_empty();
    if needs_images {
        needs::need(&[Need::Bochs, Need::Qemu])?;
    }
    let plan = host::Plan::of(args.filter.as_deref())?;
    if let Some(filter) = &args.filter {
        let boots = systems.len() + benches.len() + usize::from(ctrl_c) + usize::from(new_guest);
        say!(
            "of the tests with {filter:?} in their names (check/.., host/.., loom/.., machine/..): {}; {boots} in the machine",
            plan.describe()
        );
    }
    let mut tally = Tally::default();
    let imager = std::thread::scope(|scope| {
        let building = scope.spawn(|| needs_images.then(Imager::prepare));
        checks::run(&mut tally, &wanted);
        host::run(&mut tally, &plan, &wanted);
        building
            .join()
            .map_err(|_| anyhow!("the thread that builds the images panicked"))
    })?;
    match imager {
        Some(Ok(imager)) => {
            machine::system_tests(&mut tally, &imager, &systems, args.full);
            for bench in benches {
                if !interrupt::requested() {
                    machine::figures(&mut tally, &imager, bench);
                }
            }
            if new_guest && !interrupt::requested() {
                let started = Instant::now();
                tally.one("machine/new-guest", &new_guest::check(), started);
            }
            if ctrl_c && !interrupt::requested() {
                let started = Instant::now();
                tally.one("machine/ctrl-c", &ctrl_c::check(), started);
            }
        }
        Some(Err(error)) => {
            tally.one("build", &Err(format!("{error:#}")), Instant::now());
        }
        None => {}
    }
    say!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed == 0 && tally.passed == 0 {
        note!(
            "nothing was tested: a filter is a part of a name, with its level, as the lines above would begin"
        );
    }
    // A filter that fits nothing is a mistake, not a success.
    let good = tally.failed == 0 && tally.passed > 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
