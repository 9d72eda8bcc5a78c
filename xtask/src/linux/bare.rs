//! A disk from which Debian's kernel boots without a hypervisor, to measure against: GRUB, and behind it a partition that is
//! nothing but a cpio archive, which GRUB can read.
//!
//! Sources: GRUB's manual, "Images" and "BIOS installation" (boot.img in the first sector finds core.img from the second on).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::cpio;
use super::files::{made, replace};
use crate::cmd::Cmd;
use crate::debian::packages;

/// The command line, in a VM the same: `costs` is the first process.
pub(crate) const CMDLINE: &str = "console=ttyS0 quiet rdinit=/bin/costs nagaya.run=poweroff";
/// Where GRUB enters a bzImage: `code32_start`, which for a relocatable kernel is where it prefers to be.
pub(crate) const ENTRY: u64 = 0x100_0000;

const SECTOR: usize = 512;
/// First sector of the partition; all before it is GRUB's.
const PARTITION: usize = 2048;
/// Sectors of a cylinder, as Bochs counts them: a disk has whole ones.
const CYLINDER: usize = 16 * 63;

/// The disk's bytes.
pub(crate) fn disk(kernel: &[u8], initramfs: &[u8]) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::default();
    archive.file("bzImage", 0o644, kernel);
    archive.file("initramfs", 0o644, initramfs);
    let (boot, core) = grub()?;
    layout(&boot, &core, &archive.finish())
}

/// The first sector, and what it loads.
fn grub() -> Result<(Vec<u8>, Vec<u8>)> {
    const PACKAGES: [&str; 3] = ["grub-pc-bin", "grub-common", "libdevmapper1.02.1"];
    let root = packages::unpacked_together("grub", &PACKAGES)?;
    let modules = root.join("usr/lib/grub/i386-pc");
    let script = made().join("bare-grub.cfg");
    let text =
        format!("linux (hd0,msdos1)/bzImage {CMDLINE}\ninitrd (hd0,msdos1)/initramfs\nboot\n");
    replace(&script, text.as_bytes())?;
    let core = made().join("bare-grub.img");
    Cmd::new(root.join("usr/bin/grub-mkimage"))
        .args(["-O", "i386-pc", "-p", "/", "-d"])
        .arg(&modules)
        .arg("-c")
        .arg(&script)
        .arg("-o")
        .arg(&core)
        .args(["biosdisk", "part_msdos", "newc", "linux"])
        .env("LD_LIBRARY_PATH", libraries(&root))
        .run()?;
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    Ok((read(&modules.join("boot.img"))?, read(&core)?))
}

/// Where the packages have their libraries, before and after Debian's merge of /usr.
fn libraries(root: &Path) -> String {
    ["lib", "usr/lib"]
        .map(|folder| format!("{}/{folder}/x86_64-linux-gnu", root.display()))
        .join(":")
}

/// Puts the pieces where they are looked for.
fn layout(boot: &[u8], core: &[u8], archive: &[u8]) -> Result<Vec<u8>> {
    /// Offset of the partition table, and of the mark at the end of the first sector.
    const TABLE: usize = 0x1BE;
    const MARK: usize = 0x1FE;
    const LINUX: u8 = 0x83;
    ensure!(
        boot.len() == SECTOR,
        "GRUB's boot.img has {} bytes",
        boot.len()
    );
    ensure!(
        core.len() <= (PARTITION - 1) * SECTOR,
        "GRUB's core image has {} bytes: too many",
        core.len()
    );
    let sectors = archive.len().div_ceil(SECTOR);
    let mut disk = vec![0; (PARTITION + sectors).next_multiple_of(CYLINDER) * SECTOR];
    disk[..SECTOR].copy_from_slice(boot);
    disk[SECTOR..SECTOR + core.len()].copy_from_slice(core);
    disk[PARTITION * SECTOR..][..archive.len()].copy_from_slice(archive);
    disk[TABLE..MARK].fill(0);
    disk[TABLE] = 0x80;
    disk[TABLE + 4] = LINUX;
    disk[TABLE + 8..TABLE + 12].copy_from_slice(&(PARTITION as u32).to_le_bytes());
    disk[TABLE + 12..TABLE + 16].copy_from_slice(&u32::try_from(sectors)?.to_le_bytes());
    disk[MARK..SECTOR].copy_from_slice(&[0x55, 0xAA]);
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_whole_cylinders_and_each_piece_in_its_place() {
        let disk = layout(&[1; SECTOR], &[2; 1000], &[3; 700]).expect("fits");
        assert_eq!(disk.len() % (CYLINDER * SECTOR), 0);
        assert_eq!((disk[0], disk[SECTOR], disk[SECTOR + 999]), (1, 2, 2));
        assert_eq!(disk[SECTOR + 1000], 0);
        let start = PARTITION * SECTOR;
        assert_eq!(
            (disk[start], disk[start + 699], disk[start + 700]),
            (3, 3, 0)
        );
        // The table: one entry that can be booted, of two sectors; then the mark.
        assert_eq!(disk[0x1BE], 0x80);
        assert_eq!(disk[0x1CA..0x1CE], [2, 0, 0, 0]);
        assert_eq!(disk[0x1FE..0x200], [0x55, 0xAA]);
    }

    #[test]
    fn a_loader_that_would_reach_into_the_partition_is_refused() {
        let large = vec![0; PARTITION * SECTOR];
        assert!(layout(&[0; SECTOR], &large, &[]).is_err());
        assert!(layout(&[0; 100], &[], &[]).is_err());
    }
}
