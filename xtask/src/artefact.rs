//! Files that scenarios and tests name but that nobody keeps in the repository: made when they are first asked for, and then found
//! in `target/linux`.
//!
//! A name is `debian/..` for what comes out of Debian's packages as it is, and `built/..` for what is put together here.
//! Deleting `target/linux` brings newer packages; until then every run uses the same.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

use crate::{foreign, linux};

/// What `artefact` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its name; without one, those there are are listed
    name: Option<String>,
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    match &args.name {
        Some(name) => say!("{}", path(name)?.display()),
        None => say!("{}", list()),
    }
    Ok(ExitCode::SUCCESS)
}

type Maker = fn() -> Result<PathBuf>;

/// Every name, what it is, and who makes it.
const ARTEFACTS: &[(&str, &str, Maker)] = &[
    (
        "debian/bzImage",
        "the kernel of linux-image-cloud-amd64",
        linux::bzimage,
    ),
    (
        "debian/vmlinux",
        "the same, decompressed: an ELF file with what is loaded and nothing else",
        linux::vmlinux,
    ),
    (
        "debian/gnumach",
        "GNU Mach with its kernel debugger, a Multiboot kernel: an ELF file",
        linux::multiboot::gnumach,
    ),
    (
        "debian/xen",
        "Xen, a Multiboot kernel: an ELF file of 32 bits",
        linux::multiboot::xen,
    ),
    (
        "built/initramfs-busybox",
        "busybox, the virtio modules, and the scripts of tests/linux",
        linux::initramfs_busybox,
    ),
    (
        "built/rootfs",
        "a root file system for a disk: ext4 with Debian's shell and C library, and busybox",
        linux::root_file_system,
    ),
    (
        "built/foreign-c",
        "a native guest in C (tests/foreign)",
        foreign::c,
    ),
    (
        "built/foreign-asm",
        "a native guest in assembler (tests/foreign)",
        foreign::assembler,
    ),
    (
        "built/nagaya.ko",
        "guest-kmod for that kernel",
        linux::module,
    ),
    (
        "built/initramfs-nagaya",
        "the same as built/initramfs-busybox, with nagaya.ko and the programs that use it",
        linux::initramfs_nagaya,
    ),
    (
        "built/initramfs-iperf3",
        "the same as built/initramfs-busybox, with iperf3",
        linux::initramfs_iperf3,
    ),
    (
        "built/initramfs-costs",
        "the same as built/initramfs-busybox, with a program that tells ticks and exits up to the first process",
        linux::initramfs_costs,
    ),
    (
        "built/bare.img",
        "a disk that boots debian/bzImage and built/initramfs-costs without a hypervisor",
        linux::bare_disk,
    ),
    (
        "built/initramfs-nagaya-fake",
        "the same, with a module that brings its own hypervisor, to try the module in any emulator",
        linux::initramfs_nagaya_fake,
    ),
];

/// One at a time: tests run on several threads, and two of them would unpack the same package.
static MAKING: Mutex<()> = Mutex::new(());

/// The file with this name, made if it is not there.
pub(crate) fn path(name: &str) -> Result<PathBuf> {
    let Some((_, _, make)) = ARTEFACTS.iter().find(|(known, ..)| *known == name) else {
        bail!("no artefact is called {name:?}; there are:\n{}", list());
    };
    let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    make()
}

/// The names and what they are, one on each line.
fn list() -> String {
    ARTEFACTS
        .iter()
        .map(|(name, what, _)| format!("    {name}: {what}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_refused_with_the_names_there_are() {
        let error = path("debian/vmlinuz")
            .expect_err("no such name")
            .to_string();
        assert!(
            error.contains("debian/vmlinuz") && error.contains("debian/bzImage"),
            "{error}"
        );
    }
}
