//! Loading a guest: its ELF64 image, then page tables, GDT, `BootInfo` and command line as `guest_abi::boot` promises.
//!
//! The image comes from a user: every number in it is checked before it is used. Position-independent images (ET_DYN) are put
//! at `IMAGE_BASE_GPA` and relocated (R_X86_64_RELATIVE only), fixed ones (ET_EXEC) where their program headers say.
//! Source: System V ABI, "Object Files", "Program Loading"; AMD64 supplement, "Relocation".

mod boot_structures;
mod image;
pub mod pc;
#[cfg(test)]
mod tests;

use core::fmt;

use guest_abi::NAME_BYTES;
use guest_abi::boot;

/// Where the loader writes: guest-physical memory of a VM that has not started.
pub trait GuestWriter {
    /// Copies bytes to `gpa`; `false` if that is not all RAM of the VM.
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> bool;
}

/// Why an image cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// It is no ELF64 file for x86-64, or it is cut short.
    NotElf,
    /// It is neither an executable nor position-independent.
    WrongType {
        /// `e_type`.
        found: u16,
    },
    /// It needs an interpreter: a dynamically linked program.
    Dynamic,
    /// There is nothing to load in it.
    Empty,
    /// A segment's numbers contradict each other or the file's size.
    BadSegment {
        /// Index of the program header.
        index: usize,
    },
    /// A segment does not fit between the image base and the end of memory.
    OutOfMemory {
        /// First guest-physical byte.
        start: u64,
        /// One past the last.
        end: u64,
        /// Bytes of RAM.
        memory_bytes: u64,
    },
    /// Two segments share bytes of memory.
    Overlap {
        /// Index of the program header of the lower one.
        first: usize,
        /// Index of the program header of the upper one.
        second: usize,
    },
    /// Its table of relocations is malformed, or lies outside what is loaded.
    BadRelocationTable,
    /// A relocation that would change bytes outside the image.
    RelocationOutside {
        /// Guest-physical address it names.
        place: u64,
    },
    /// The entry point lies in no executable segment.
    BadEntry {
        /// Guest-physical address.
        entry: u64,
    },
    /// A relocation of a kind that only a dynamic linker could do.
    BadRelocation {
        /// Its type.
        kind: u32,
    },
    /// The command line is longer than `MAX_CMDLINE_BYTES`.
    CmdlineTooLong {
        /// Its bytes.
        bytes: usize,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::NotElf => {
                f.write_str("the image is no ELF64 file for x86-64, or it is cut short")
            }
            LoadError::WrongType { found } => {
                write!(
                    f,
                    "the image is an ELF file of type {found}: link it as a static executable (2) or static PIE (3)"
                )
            }
            LoadError::Dynamic => {
                f.write_str("the image wants a dynamic linker: link it statically")
            }
            LoadError::Empty => f.write_str("the image has no segment to load"),
            LoadError::BadSegment { index } => {
                write!(f, "program header {index} of the image is malformed")
            }
            LoadError::OutOfMemory {
                start,
                end,
                memory_bytes,
            } => write!(
                f,
                "the image wants {start:#x} to {end:#x}, but a guest's own memory is {:#x} to {memory_bytes:#x}",
                boot::IMAGE_BASE_GPA
            ),
            LoadError::Overlap { first, second } => write!(
                f,
                "the segments of program headers {first} and {second} of the image share memory"
            ),
            LoadError::BadRelocationTable => {
                f.write_str("the image's table of relocations is malformed")
            }
            LoadError::RelocationOutside { place } => {
                write!(
                    f,
                    "the image has a relocation at {place:#x}, outside itself"
                )
            }
            LoadError::BadEntry { entry } => write!(
                f,
                "the entry point {entry:#x} lies in no executable segment"
            ),
            LoadError::BadRelocation { kind } => write!(
                f,
                "the image has a relocation of type {kind}: only R_X86_64_RELATIVE (8) works"
            ),
            LoadError::CmdlineTooLong { bytes } => {
                write!(
                    f,
                    "the command line has {bytes} bytes, at most {} are possible",
                    boot::MAX_CMDLINE_BYTES
                )
            }
        }
    }
}

/// What a VM is told about itself at its start.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Its number.
    pub vm_id: u32,
    /// Its name.
    pub name: [u8; NAME_BYTES],
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Index in its group.
    pub member_index: Option<u32>,
    /// TSC frequency in kHz.
    pub tsc_khz: u64,
    /// Command line.
    pub cmdline: &'a str,
    /// Where to call for hypercalls when it runs outside VMX; 0 else.
    pub bare_hypercall: u64,
}

/// A loaded image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Guest-physical entry point.
    pub entry: u64,
    /// First byte of the image.
    pub start: u64,
    /// One past its last.
    pub end: u64,
}

/// Loads `image` and everything a guest starts with into fresh, zeroed memory.
///
/// # Errors
/// [`LoadError`]; the memory's contents are then unspecified.
pub fn load(
    image: &[u8],
    identity: &Identity<'_>,
    memory: &mut impl GuestWriter,
) -> Result<Loaded, LoadError> {
    let loaded = image::load(image, identity.memory_bytes, memory)?;
    boot_structures::write_boot_structures(identity, &loaded, memory)?;
    Ok(loaded)
}
