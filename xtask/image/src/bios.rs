//! The BIOS image: an MBR, the loader's second stage in partition 1, a FAT file system in partition 2.
//!
//! The `bootloader` crate makes it with small FAT clusters, and its BIOS stages read one cluster at a time: 8 MB then take
//! minutes. So the image is made with the kernel alone, its files are read back, and partition 2 is written anew with
//! clusters of 32 KiB, this time with the ramdisk.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bootloader::{BiosBoot, BootConfig};

use crate::fat;

const SECTOR_BYTES: usize = 512;
/// Where the MBR keeps partition 2: the second of four entries of 16 bytes from 446.
const PARTITION_2: usize = 446 + 16;
/// Emulators address a disk by 16 heads of 63 sectors; what is no whole cylinder they may cut off.
const CYLINDER_BYTES: usize = 16 * 63 * SECTOR_BYTES;
/// The name under which the loader looks for the ramdisk.
const RAMDISK: &str = "ramdisk";

/// Writes the image to `output`.
pub fn make(kernel: &Path, ramdisk: &Path, config: &BootConfig, output: &Path) -> Result<()> {
    BiosBoot::new(kernel)
        .set_boot_config(config)
        .create_disk_image(output)
        .context("cannot make the BIOS image")?;
    let disk = fs::read(output).with_context(|| format!("cannot read {}", output.display()))?;
    let ramdisk =
        fs::read(ramdisk).with_context(|| format!("cannot read {}", ramdisk.display()))?;
    let disk = with_ramdisk(disk, ramdisk)?;
    fs::write(output, disk).with_context(|| format!("cannot write {}", output.display()))
}

/// The disk with partition 2 written anew: the same files in large clusters, and the ramdisk.
fn with_ramdisk(mut disk: Vec<u8>, ramdisk: Vec<u8>) -> Result<Vec<u8>> {
    let start = number(&disk, PARTITION_2 + 8)? * SECTOR_BYTES;
    let length = number(&disk, PARTITION_2 + 12)? * SECTOR_BYTES;
    ensure!(
        start > 0 && length > 0 && start < disk.len(),
        "the loader's image has no partition 2"
    );
    // The last sector of the crate's image is not padded.
    disk.resize(disk.len().max(start + length), 0);
    let mut files = fat::read(&disk[start..start + length])?;
    ensure!(
        files.iter().all(|(name, _)| name != RAMDISK),
        "the loader's image has a ramdisk already"
    );
    files.push((RAMDISK.into(), ramdisk));
    let partition = fat::write(&files)?;

    disk.truncate(start);
    let sectors = u32::try_from(partition.len() / SECTOR_BYTES)?;
    disk[PARTITION_2 + 12..PARTITION_2 + 16].copy_from_slice(&sectors.to_le_bytes());
    disk.extend_from_slice(&partition);
    disk.resize(disk.len().next_multiple_of(CYLINDER_BYTES), 0);
    Ok(disk)
}

/// The 32-bit little-endian number at `offset`.
fn number(disk: &[u8], offset: usize) -> Result<usize> {
    let bytes = disk
        .get(offset..offset + 4)
        .context("the loader's image has no MBR")?;
    Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk as the crate makes it: MBR, one sector of second stage, a FAT partition.
    fn disk(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let partition = fat::write(files).expect("fits");
        let mut disk = vec![0; 2 * SECTOR_BYTES];
        disk[PARTITION_2 + 8] = 2;
        let sectors = (partition.len() / SECTOR_BYTES) as u32;
        disk[PARTITION_2 + 12..PARTITION_2 + 16].copy_from_slice(&sectors.to_le_bytes());
        disk.extend(partition);
        disk
    }

    #[test]
    fn the_ramdisk_joins_the_files_of_the_loader_and_the_mbr_knows_the_new_size() {
        let before = [
            ("kernel-x86_64".to_string(), vec![7; 100_000]),
            ("boot-stage-3".to_string(), vec![1; 10]),
        ];
        let ramdisk = vec![9; 3_000_000];
        let after = with_ramdisk(disk(&before), ramdisk.clone()).expect("fits");
        assert_eq!(after.len() % CYLINDER_BYTES, 0);
        let start = number(&after, PARTITION_2 + 8).expect("MBR") * SECTOR_BYTES;
        let length = number(&after, PARTITION_2 + 12).expect("MBR") * SECTOR_BYTES;
        let mut files = fat::read(&after[start..start + length]).expect("is FAT");
        files.sort();
        let mut wanted = before.to_vec();
        wanted.push((RAMDISK.into(), ramdisk));
        wanted.sort();
        assert_eq!(files, wanted);
    }

    #[test]
    fn something_that_is_no_disk_is_an_error() {
        assert!(with_ramdisk(vec![0; 100], vec![]).is_err());
        assert!(with_ramdisk(vec![0; 10_000], vec![]).is_err());
    }
}
