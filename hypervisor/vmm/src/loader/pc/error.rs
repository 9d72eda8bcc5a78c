//! Why a kernel cannot be loaded.

use core::fmt;

use super::bzimage::MIN_PROTOCOL;
use super::multiboot::SEARCHED_BYTES;
use crate::platform::{ACPI_END_GPA, ACPI_GPA, MP_TABLES_GPA, TABLES_END_GPA};

/// Why a kernel of a PC cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PcLoadError {
    /// The guest is of a kind that has no PC.
    NoPc,
    /// The image is neither a bzImage nor an ELF file.
    NotLinux,
    /// A bzImage of a boot protocol that has no 64-bit entry.
    OldProtocol {
        /// Its version: major in the upper byte.
        found: u16,
    },
    /// A bzImage of a kernel that is not for x86-64.
    No64BitEntry {
        /// `xloadflags`.
        flags: u16,
    },
    /// A field of the image's header is wrong.
    BadField {
        /// Its name in the specification of the format.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// The image ends before what its header promises.
    CutShort {
        /// What the header promises, in bytes.
        wanted_bytes: u64,
        /// Bytes of the image.
        image_bytes: usize,
    },
    /// It is no ELF file for an x86, or it is cut short.
    NotElf,
    /// It is an ELF file, but no executable at a fixed address.
    WrongType {
        /// `e_type`.
        found: u16,
    },
    /// There is nothing to load in it.
    Empty,
    /// A segment's numbers contradict each other or the file's size.
    BadSegment {
        /// Index of the program header.
        index: usize,
    },
    /// Two segments share bytes of memory.
    Overlap {
        /// Index of the program header of the lower one.
        first: usize,
        /// Index of the program header of the upper one.
        second: usize,
    },
    /// An ELF kernel without the note that names its PVH entry.
    NoPvhEntry,
    /// The entry point lies in nothing that is loaded, or above 4 GiB.
    BadEntry {
        /// The entry point.
        entry: u64,
    },
    /// There is no Multiboot header where one must be.
    NoMultibootHeader,
    /// The Multiboot header demands what is not known.
    UnknownDemands {
        /// The bits of its flags that are not known.
        flags: u32,
    },
    /// The image does not fit where it must be.
    OutOfMemory {
        /// First guest-physical byte.
        start: u64,
        /// One past the last.
        end: u64,
        /// Bytes of RAM.
        memory_bytes: u64,
    },
    /// There is no place left for something that goes with the image.
    NoRoom {
        /// What it is.
        what: &'static str,
        /// Bytes of it.
        bytes: usize,
        /// Bytes of RAM.
        memory_bytes: u64,
    },
    /// The command line is longer than the kernel takes.
    CmdlineTooLong {
        /// Bytes of it.
        bytes: usize,
        /// The most that the kernel takes.
        most: u64,
    },
}

impl fmt::Display for PcLoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PcLoadError::NoPc => f.write_str("a native guest is not loaded as on a PC"),
            PcLoadError::NotLinux => f.write_str(
                "the image is no Linux kernel: give a bzImage (the file vmlinuz), or an ELF vmlinux",
            ),
            PcLoadError::OldProtocol { found } => write!(
                f,
                "the kernel speaks version {}.{:02} of the boot protocol; the 64-bit entry wants {}.{:02} (Linux 3.8) or later",
                found >> 8,
                found & 0xFF,
                MIN_PROTOCOL >> 8,
                MIN_PROTOCOL & 0xFF
            ),
            PcLoadError::No64BitEntry { flags } => write!(
                f,
                "the kernel has no 64-bit entry (xloadflags {flags:#x}): give one for x86-64"
            ),
            PcLoadError::BadField { field, value } => write!(
                f,
                "the image's header is malformed: {field} is {value:#x}"
            ),
            PcLoadError::CutShort {
                wanted_bytes,
                image_bytes,
            } => write!(
                f,
                "the image is cut short: it has {image_bytes} bytes, and its header promises {wanted_bytes}"
            ),
            PcLoadError::NotElf => {
                f.write_str("the image is no ELF file for an x86, or it is cut short")
            }
            PcLoadError::WrongType { found } => write!(
                f,
                "the image is an ELF file of type {found}: link it as a static executable (2)"
            ),
            PcLoadError::Empty => f.write_str("the image has no segment to load"),
            PcLoadError::BadSegment { index } => {
                write!(f, "program header {index} of the image is malformed")
            }
            PcLoadError::Overlap { first, second } => write!(
                f,
                "the segments of program headers {first} and {second} of the image share memory"
            ),
            PcLoadError::NoPvhEntry => f.write_str(
                "the ELF kernel has no PVH entry: build it with CONFIG_PVH=y, or give its bzImage",
            ),
            PcLoadError::BadEntry { entry } => write!(
                f,
                "the entry point {entry:#x} lies in nothing that is loaded below 4 GiB"
            ),
            PcLoadError::NoMultibootHeader => write!(
                f,
                "the image has no right Multiboot header in its first {SEARCHED_BYTES} bytes: is it a kernel of kind multiboot?"
            ),
            PcLoadError::UnknownDemands { flags } => write!(
                f,
                "the Multiboot header demands what is not known: flags {flags:#x}"
            ),
            PcLoadError::OutOfMemory {
                start,
                end,
                memory_bytes,
            } => write!(
                f,
                "the image wants {start:#x} to {end:#x}, but free is only what lies from 0 to {memory_bytes:#x}, the firmware's tables ({ACPI_GPA:#x} to {ACPI_END_GPA:#x}, {MP_TABLES_GPA:#x} to {TABLES_END_GPA:#x}) and other parts of the image aside"
            ),
            PcLoadError::NoRoom {
                what,
                bytes,
                memory_bytes,
            } => write!(
                f,
                "{what} of {bytes} bytes does not fit beside the image: give the VM more memory than its {}M below 4 GiB",
                memory_bytes >> 20
            ),
            PcLoadError::CmdlineTooLong { bytes, most } => write!(
                f,
                "the command line has {bytes} bytes, and the kernel takes at most {most}"
            ),
        }
    }
}

impl core::error::Error for PcLoadError {}
