//! `cargo xtask`: everything one does with Nagaya, from a clean machine to a benchmark table. One module per verb.
//!
//! Each verb does the set-up it needs by itself and nothing it does not need. Every external command goes through
//! [`cmd::Cmd`], so that `-v` shows all of them.

// Nothing here may die of a reader that has read enough: see `out`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
extern crate xtask;

mod abi_header;
mod abi_reference;
mod artefact;
mod artefact_name;
mod bench;
mod build;
mod cmd;
mod coverage;
mod debian;
mod foreign;
mod guests;
mod image;
mod linux;
mod needs;
mod new;
mod prepush;
mod progress;
mod run;
mod scenario;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod trial;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{ctl, out, paths};

/// Builds, runs, tests and measures Nagaya
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Cli {
    /// Print every external command that is run
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Boot a scenario on the best machine there is and show its console
    Run(run::Args),
    /// Run the tests: those on the host, then those in the machine
    Test(test::Args),
    /// Measure, and print the results as tables and as JSON
    Bench(bench::Args),
    /// List and steer the VMs of a running machine
    Ctl(ctl::Args),
    /// Build the hypervisor and the guests for bare metal
    Build,
    /// Make a guest of your own in a new folder, build it and run it
    New(new::Args),
    /// Write a bootable disk image of a scenario
    Image(image::Args),
    /// Make a file that scenarios name, such as Debian's kernel, and print where it is
    Artefact(artefact::Args),
    /// Say which lines of the pure crates their tests run
    Coverage(coverage::Args),
    /// Install the Debian packages and put together the toolchain that the other verbs need
    Setup(setup::Args),
    /// Check what the compiler does not: layers, file lengths, safety comments, links
    Tidy(tidy::Args),
    /// Check what must hold before a push: format, clippy, docs, tidy and the host tests
    Prepush,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cmd::set_verbose(cli.verbose);
    let done = match cli.verb {
        Verb::Run(args) => run::main(args),
        Verb::Test(args) => test::main(args),
        Verb::Bench(args) => bench::main(args),
        Verb::Ctl(args) => return ctl::main(&args),
        Verb::Build => build::main(),
        Verb::New(args) => new::main(&args),
        Verb::Image(args) => image::main(args),
        Verb::Artefact(args) => artefact::main(&args),
        Verb::Coverage(args) => coverage::main(&args),
        Verb::Setup(args) => setup::main(&args),
        Verb::Tidy(args) => tidy::main(&args),
        Verb::Prepush => prepush::main(),
    };
    if out::reader_is_gone() {
        return ExitCode::SUCCESS;
    }
    done.unwrap_or_else(|error| {
        note!("error: {error:#}");
        ExitCode::FAILURE
    })
}
