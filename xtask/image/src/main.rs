//! Makes a disk image that boots the hypervisor: `nagaya-image --kernel ELF --ramdisk TAR --firmware bios|uefi -o FILE`.
//!
//! Called by `cargo xtask image` only, which builds it with the bare-metal toolchain.

mod bios;
mod fat;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bootloader::{BootConfig, UefiBoot};
use bootloader_boot_config::LevelFilter;
use clap::{Parser, ValueEnum};

/// Makes a disk image that boots the hypervisor
#[derive(Parser)]
struct Arguments {
    /// The hypervisor, as cargo built it
    #[arg(long)]
    kernel: PathBuf,
    /// The boot archive
    #[arg(long)]
    ramdisk: PathBuf,
    /// What is to boot the image
    #[arg(long)]
    firmware: Firmware,
    /// Where the image goes
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Firmware {
    Bios,
    Uefi,
}

fn main() -> ExitCode {
    match make(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn make(arguments: &Arguments) -> Result<()> {
    let config = boot_config();
    match arguments.firmware {
        Firmware::Bios => bios::make(
            &arguments.kernel,
            &arguments.ramdisk,
            &config,
            &arguments.output,
        ),
        Firmware::Uefi => UefiBoot::new(&arguments.kernel)
            .set_ramdisk(&arguments.ramdisk)
            .set_boot_config(&config)
            .create_disk_image(&arguments.output)
            .context("cannot make the UEFI image"),
    }
}

/// The loader's console is the hypervisor's first serial port, and a character there is dear in an emulator: the loader
/// speaks only if it fails, and never on the screen.
fn boot_config() -> BootConfig {
    let mut config = BootConfig::default();
    config.log_level = LevelFilter::Error;
    config.frame_buffer_logging = false;
    config.serial_logging = true;
    config
}
