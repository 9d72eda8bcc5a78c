//! What kind of guest a VM runs, and what only some kinds have: an initial RAM file system, modules, disks, debug ports.

use alloc::string::String;
use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// What a VM's image is, which decides how it is loaded and which platform it sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestKind {
    /// An ELF64 program for Nagaya's own platform (`guest_abi::boot`).
    #[default]
    Native,
    /// A Linux kernel on a PC: a bzImage, or an ELF `vmlinux` with a PVH entry.
    Linux,
    /// A kernel on a PC that follows the Multiboot specification, version 0.6.96 ("multiboot 1").
    Multiboot,
}

impl GuestKind {
    /// All of them.
    pub const ALL: [GuestKind; 3] = [GuestKind::Native, GuestKind::Linux, GuestKind::Multiboot];

    /// Its word in scenario files.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            GuestKind::Native => "native",
            GuestKind::Linux => "linux",
            GuestKind::Multiboot => "multiboot",
        }
    }

    /// The kind of that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<GuestKind> {
        GuestKind::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Whether it sees a PC: legacy devices, ACPI tables, the entry states of a boot loader.
    #[must_use]
    pub const fn is_pc(self) -> bool {
        match self {
            GuestKind::Native => false,
            GuestKind::Linux | GuestKind::Multiboot => true,
        }
    }

    /// Most RAM in bytes: native guests know of none above the devices.
    #[must_use]
    pub const fn max_memory_bytes(self) -> u64 {
        if self.is_pc() {
            crate::layout::MAX_PC_MEMORY_BYTES
        } else {
            guest_abi::boot::MAX_MEMORY_BYTES
        }
    }

    /// Least RAM in bytes: a Linux kernel alone takes most of what is below.
    #[must_use]
    pub const fn min_memory_bytes(self) -> u64 {
        match self {
            GuestKind::Native | GuestKind::Multiboot => guest_abi::boot::MIN_MEMORY_BYTES,
            GuestKind::Linux => 16 << 20,
        }
    }
}

/// Most modules of a multiboot kernel.
pub const MAX_MODULES: usize = 16;
/// Longest command line of a module in bytes.
pub const MAX_MODULE_CMDLINE_BYTES: usize = 1024;
/// Most disks of a VM.
pub const MAX_DISKS: usize = 8;
/// Sizes of a RAM disk in bytes; a whole number of pages, too.
pub const RAM_DISK_BYTES: RangeInclusive<u64> = 4096..=2 << 30;

/// A file that a multiboot kernel is handed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleConfig {
    /// The file `images/<image>` of the boot archive.
    pub image: String,
    /// The string that goes with it: at most [`MAX_MODULE_CMDLINE_BYTES`] bytes.
    pub cmdline: String,
}

/// What is on a disk when the VM starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskSource {
    /// The file `images/<image>` of the boot archive. What the guest writes is kept while the VM runs.
    Image(String),
    /// Zeros.
    Ram {
        /// Size in bytes: [`RAM_DISK_BYTES`].
        bytes: u64,
    },
}

/// A virtio disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// What is on it at the start.
    pub source: DiskSource,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// Bytes of RAM that the disks of a VM take from the machine; those that are refused take none.
#[must_use]
pub fn ram_disk_bytes(disks: &[DiskConfig]) -> u64 {
    let sizes = disks.iter().map(|disk| match disk.source {
        DiskSource::Ram { bytes } if RAM_DISK_BYTES.contains(&bytes) => bytes,
        DiskSource::Ram { .. } | DiskSource::Image(_) => 0,
    });
    sizes.fold(0, u64::saturating_add)
}
