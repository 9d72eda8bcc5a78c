//! `nagayactl`: what an operator does with a running Nagaya. `cargo xtask ctl` is the same program under another name.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use xtask::ctl;

/// Lists and steers the VMs of a running Nagaya
#[derive(Parser)]
#[command(name = "nagayactl", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    args: ctl::Args,
}

fn main() -> ExitCode {
    ctl::main(&Cli::parse().args)
}
