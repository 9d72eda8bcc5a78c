//! A FAT file system in memory, with the largest clusters there are. Only files in its root are known here.

use std::io::{Cursor, Read, Write};

use anyhow::{Context, Result, bail};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

/// A file's name and content.
pub type Named = (String, Vec<u8>);

const CLUSTER_BYTES: usize = 32 * 1024;
/// The loader's BIOS stages know the 16-bit sector count of FAT12 and FAT16 only; with more sectors they hang.
const MAX_SECTORS: usize = 0xFFFF;
/// Two tables, the root folder and the boot sector: less than this for a file system of [`MAX_SECTORS`].
const OVERHEAD_BYTES: usize = 64 * 1024;

/// The files in the root of a file system.
pub fn read(partition: &[u8]) -> Result<Vec<Named>> {
    // The crate wants a file system it could write to.
    let copy = Cursor::new(partition.to_vec());
    let system =
        FileSystem::new(copy, FsOptions::new()).context("partition 2 is no FAT file system")?;
    let mut files = Vec::new();
    for entry in system.root_dir().iter() {
        let entry = entry.context("cannot read the root folder of partition 2")?;
        if entry.is_file() {
            let mut content = Vec::new();
            entry
                .to_file()
                .read_to_end(&mut content)
                .with_context(|| format!("cannot read {}", entry.file_name()))?;
            files.push((entry.file_name(), content));
        }
    }
    Ok(files)
}

/// A file system with these files in its root, a whole number of sectors long.
pub fn write(files: &[Named]) -> Result<Vec<u8>> {
    let needed: usize = files
        .iter()
        .map(|(_, content)| content.len().next_multiple_of(CLUSTER_BYTES))
        .sum();
    let bytes = needed + OVERHEAD_BYTES;
    let most = MAX_SECTORS * 512;
    if bytes > most {
        let of: Vec<String> = files
            .iter()
            .map(|(name, content)| format!("{name} {} KiB", content.len() / 1024))
            .collect();
        bail!(
            "too large for a BIOS image: {} KiB ({}) and the limit is {} KiB, because the loader's BIOS stages know no FAT \
             of more than {MAX_SECTORS} sectors; use smaller guest images, or --uefi, which has no such limit",
            needed / 1024,
            of.join(", "),
            (most - OVERHEAD_BYTES) / 1024,
        );
    }
    let mut partition = Cursor::new(vec![0; bytes]);
    let options = FormatVolumeOptions::new()
        .bytes_per_cluster(CLUSTER_BYTES as u32)
        .volume_label(*b"NAGAYA     ");
    format_volume(&mut partition, options).context("cannot format partition 2")?;
    {
        let system =
            FileSystem::new(&mut partition, FsOptions::new()).context("cannot open partition 2")?;
        for (name, content) in files {
            let mut file = system
                .root_dir()
                .create_file(name)
                .with_context(|| format!("cannot create {name}"))?;
            file.write_all(content)
                .and_then(|()| file.flush())
                .with_context(|| format!("cannot write {name}"))?;
        }
    }
    Ok(partition.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_for_bios_is_refused_with_the_limit() {
        let error = write(&[("ramdisk".into(), vec![0; 33 << 20])]).expect_err("is too large");
        assert!(
            error.to_string().contains("the limit is 32703 KiB"),
            "{error}"
        );
        write(&[(
            "ramdisk".into(),
            vec![0; 32703 * 1024 / CLUSTER_BYTES * CLUSTER_BYTES],
        )])
        .expect("just fits");
    }

    #[test]
    fn equal_files_give_equal_bytes() {
        let files = [("kernel-x86_64".to_string(), vec![3; 70_000])];
        assert_eq!(write(&files).expect("fits"), write(&files).expect("fits"));
    }
}
