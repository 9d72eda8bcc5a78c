//! What a Linux guest is made of: Debian's kernel, and an initramfs with busybox; and others' kernels out of Debian's packages.
//!
//! Nothing of it is installed: packages are downloaded by `apt-get download`, which needs no root, and unpacked below
//! `target/linux`.

pub(crate) mod bare;
mod cpio;
mod debian_kernel;
mod files;
mod initramfs;
mod kernel;
mod module;
pub(crate) mod multiboot;
mod rootfs;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use self::debian_kernel::Kernel;
use self::files::{keep, made, replace};

use crate::cmd::Cmd;
use crate::needs::{self, Need};

/// Makes `debian/bzImage`.
pub(crate) fn bzimage() -> Result<PathBuf> {
    let image = Kernel::find()?.image();
    if !image.is_file() {
        bail!("the kernel's package has no {}", image.display());
    }
    Ok(image)
}

/// Makes `debian/vmlinux`.
pub(crate) fn vmlinux() -> Result<PathBuf> {
    let kernel = Kernel::find()?;
    let path = made().join(format!("vmlinux-{}", kernel.package.version));
    if !path.is_file() {
        let image = kernel.image();
        let read = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
        let elf = kernel::decompress(&read)
            .and_then(|elf| kernel::trim(&elf))
            .with_context(|| format!("cannot unpack {}", image.display()))?;
        replace(&path, &elf)?;
    }
    Ok(path)
}

/// Makes `built/initramfs-busybox`. It is put together each time, which takes no time, so that a changed script is in it.
pub(crate) fn initramfs_busybox() -> Result<PathBuf> {
    let kernel = Kernel::find()?;
    keep(
        "initramfs-busybox.cpio",
        &initramfs::busybox(&kernel)?.finish(),
    )
}

/// Makes `built/nagaya.ko`.
pub(crate) fn module() -> Result<PathBuf> {
    Ok(module::build(&Kernel::find()?)?.0)
}

/// Builds the module; what the compiler has to say is an error. `None` if the packages for it cannot be had.
pub(crate) fn check_module() -> Option<Result<(), String>> {
    let kernel = match Kernel::find() {
        Ok(kernel) => kernel,
        Err(error) => {
            note!("the module is not built: {error:#}");
            return None;
        }
    };
    Some(match module::build(&kernel) {
        Err(error) => Err(format!("{error:#}")),
        Ok((_, said)) => match module::warnings(&said) {
            warnings if warnings.is_empty() => Ok(()),
            warnings => Err(warnings.join("\n")),
        },
    })
}

/// Builds the module as its README says for DKMS, with Debian's own DKMS, in folders of its own. `None` if the packages for it
/// cannot be had.
pub(crate) fn check_dkms() -> Option<Result<(), String>> {
    match Kernel::find().and_then(|kernel| module::dkms(&kernel)) {
        Ok(outcome) => Some(outcome),
        Err(error) => {
            note!("DKMS is not tried: {error:#}");
            None
        }
    }
}

/// Tries the module in Debian's kernel in QEMU, with a hypervisor of its own: what `tests/linux/scripts/kmod` says. `None` if the
/// packages for it cannot be had.
pub(crate) fn try_module() -> Option<Result<(), String>> {
    const LIMIT: &str = "300";
    const PASSED: &str = "NAGAYA-KMOD all passed";
    let files = needs::need(&[Need::Qemu])
        .and_then(|()| Ok((vmlinux()?, initramfs_nagaya_fake()?)))
        .map_err(|error| note!("the module is not tried: {error:#}"));
    let (kernel, initramfs) = files.ok()?;
    let run = Cmd::new("timeout")
        .arg(LIMIT)
        .arg(nagaya_harness::qemu::program())
        .args(["-machine", "q35,accel=tcg"])
        .args(["-cpu", "max", "-smp", "2", "-m", "256", "-nic", "none"])
        .args(["-display", "none", "-vga", "none", "-serial", "stdio"])
        .args(["-monitor", "none", "-no-reboot", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet nagaya.run=kmod nagaya.fake"]);
    let said = match module::said(run) {
        Ok(said) => said,
        Err(error) => return Some(Err(format!("{error:#}"))),
    };
    // Both: a later failure does not unsay what came before.
    let good = said.contains(PASSED) && !said.contains("NAGAYA-KMOD FAILED");
    Some(if good { Ok(()) } else { Err(said) })
}

/// Makes `built/initramfs-nagaya`.
pub(crate) fn initramfs_nagaya() -> Result<PathBuf> {
    keep(
        "initramfs-nagaya.cpio",
        &with_nagaya(&Kernel::find()?)?.finish(),
    )
}

/// Makes `built/initramfs-nagaya-fake`.
pub(crate) fn initramfs_nagaya_fake() -> Result<PathBuf> {
    let kernel = Kernel::find()?;
    let mut archive = with_nagaya(&kernel)?;
    let (fake, _) = module::build_with(&kernel, "nagaya-fake", &["NAGAYA_FAKE=1"])?;
    initramfs::add_module(&mut archive, "nagaya-fake", &fake)?;
    keep("initramfs-nagaya-fake.cpio", &archive.finish())
}

/// Makes `built/initramfs-iperf3`.
pub(crate) fn initramfs_iperf3() -> Result<PathBuf> {
    let mut archive = initramfs::busybox(&Kernel::find()?)?;
    initramfs::add_iperf3(&mut archive)?;
    keep("initramfs-iperf3.cpio", &archive.finish())
}

/// Makes `built/rootfs`.
pub(crate) fn root_file_system() -> Result<PathBuf> {
    needs::need(&[Need::Module])?;
    rootfs::image()
}

/// Makes `built/initramfs-costs`.
pub(crate) fn initramfs_costs() -> Result<PathBuf> {
    const PROGRAM: &str = "costs";
    let mut archive = initramfs::busybox(&Kernel::find()?)?;
    let programs = module::programs()?;
    let program = programs
        .get(PROGRAM)
        .context("tests/linux/programs has no costs.c")?;
    initramfs::add_program(&mut archive, PROGRAM, program)?;
    keep("initramfs-costs.cpio", &archive.finish())
}

/// Makes `built/bare.img`.
pub(crate) fn bare_disk() -> Result<PathBuf> {
    let read =
        |path: PathBuf| fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
    let disk = bare::disk(&read(bzimage()?)?, &read(initramfs_costs()?)?)?;
    keep("bare.img", &disk)
}

fn with_nagaya(kernel: &Kernel) -> Result<cpio::Archive> {
    let mut archive = initramfs::busybox(kernel)?;
    initramfs::add_module(&mut archive, "nagaya", &module::build(kernel)?.0)?;
    let rust = module::rust_programs()?;
    for (name, program) in module::programs()?.into_iter().chain(rust) {
        initramfs::add_program(&mut archive, &name, &program)?;
    }
    Ok(archive)
}
