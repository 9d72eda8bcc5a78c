//! An uncompressed Linux kernel, an ELF `vmlinux`, by its PVH entry.
//!
//! The kernel's ELF notes name the entry; what it is handed is Xen's start info with memory map and one module, the initial
//! file system.
//! Source: Xen, docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h.

use alloc::vec::Vec;

use elf::abi;

use super::super::GuestWriter;
use super::elf_file::{self, File};
use super::{Entry, LINUX_LOW, LoadedPc, PcIdentity, PcLoadError, Target, c_string};
use crate::platform::{ACPI_GPA, HIGH_RAM_GPA, memory_map};
use guest_abi::PAGE_BYTES;

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336E_C578;
/// Version 1 is the first with a memory map.
const START_VERSION: u32 = 1;
const NOTE_NAME: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// x86 Linux takes `COMMAND_LINE_SIZE` bytes, the zero at the end included, and cuts off what is longer without a word.
const MAX_CMDLINE_BYTES: usize = 2047;

/// Loads it.
pub(super) fn load(
    image: &[u8],
    initramfs: Option<&[u8]>,
    identity: &PcIdentity<'_>,
    memory: &mut impl GuestWriter,
) -> Result<LoadedPc, PcLoadError> {
    if identity.cmdline.len() > MAX_CMDLINE_BYTES {
        return Err(PcLoadError::CmdlineTooLong {
            bytes: identity.cmdline.len(),
            most: MAX_CMDLINE_BYTES as u64,
        });
    }
    let file = elf_file::parse(image)?;
    let segments = elf_file::segments(&file)?;
    let entry = phys32_entry(&file)?.ok_or(PcLoadError::NoPvhEntry)?;
    let eip = u32::try_from(entry)
        .ok()
        .filter(|_| elf_file::holds(&segments, entry))
        .ok_or(PcLoadError::BadEntry { entry })?;

    let mut target = Target::new(memory, identity.loadable_bytes());
    let range = elf_file::place(&segments, &mut target)?;

    let mut modules = Vec::new();
    if let Some(bytes) = initramfs {
        let window = HIGH_RAM_GPA..identity.loadable_bytes();
        let at = target.put_high("the initramfs", window, PAGE_BYTES, bytes)?;
        // Address, size, command line, reserved.
        for word in [at, bytes.len() as u64, 0, 0] {
            modules.extend(word.to_le_bytes());
        }
    }
    let modules_at = target.put_low("the module list", LINUX_LOW, 16, &modules)?;
    let cmdline = c_string(identity.cmdline);
    let cmdline = target.put_low("the command line", LINUX_LOW, 16, &cmdline)?;
    let map = memory_map(identity.layout);
    let mut pieces = Vec::new();
    for piece in &map {
        pieces.extend(piece.range.start.to_le_bytes());
        pieces.extend((piece.range.end - piece.range.start).to_le_bytes());
        pieces.extend((piece.kind as u32).to_le_bytes());
        pieces.extend(0_u32.to_le_bytes()); // reserved
    }
    let pieces = target.put_low("the memory map", LINUX_LOW, 16, &pieces)?;

    let mut info = Vec::new();
    let flags = 0_u32;
    let module_count = u32::from(initramfs.is_some());
    for word in [START_MAGIC, START_VERSION, flags, module_count] {
        info.extend(word.to_le_bytes());
    }
    for address in [modules_at, cmdline, ACPI_GPA, pieces] {
        info.extend(address.to_le_bytes());
    }
    info.extend((map.len() as u32).to_le_bytes());
    info.extend(0_u32.to_le_bytes()); // reserved
    let info = target.put_low("the start info", LINUX_LOW, 16, &info)?;
    Ok(LoadedPc {
        entry: Entry::Pvh {
            eip,
            // In LINUX_LOW.
            start_info: info as u32,
        },
        start: range.start,
        end: range.end,
    })
}

/// The address in the note of the PVH entry, if there is such a note. It is known by its type; where several have that, by its
/// owner's name, which some kernels leave out.
fn phys32_entry(file: &File<'_>) -> Result<Option<u64>, PcLoadError> {
    let headers = file.segments().ok_or(PcLoadError::Empty)?;
    let mut entry = None;
    for (index, header) in headers.iter().enumerate() {
        if header.p_type != abi::PT_NOTE {
            continue;
        }
        let bad = PcLoadError::BadSegment { index };
        let data = file.segment_data(&header).map_err(|_| bad)?;
        for note in Notes::new(data, header.p_align) {
            if note.kind != NOTE_PHYS32_ENTRY {
                continue;
            }
            // The note's word has the width of the kernel's addresses; an entry is below 4 GiB in both.
            let found = match *note.descriptor {
                [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
                [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => return Err(bad),
            };
            if note.name == NOTE_NAME {
                return Ok(Some(found));
            }
            entry = entry.or(Some(found));
        }
    }
    Ok(entry)
}

/// One note.
struct Note<'data> {
    kind: u32,
    name: &'data [u8],
    descriptor: &'data [u8],
}

/// The notes of a segment, up to the first that is cut short.
struct Notes<'data> {
    rest: &'data [u8],
    align: usize,
}

impl<'data> Notes<'data> {
    /// Notes are aligned to 4 bytes; those of a segment that says so, to 8 ("Linux Extensions to gABI", "Alignment of Note
    /// Sections").
    fn new(data: &'data [u8], align: u64) -> Notes<'data> {
        Notes {
            rest: data,
            align: if align == 8 { 8 } else { 4 },
        }
    }

    /// Takes so many bytes off the front, and what aligns the end.
    fn take(&mut self, bytes: usize) -> Option<&'data [u8]> {
        let taken = self.rest.get(..bytes)?;
        let aligned = bytes.checked_next_multiple_of(self.align)?;
        self.rest = self.rest.get(aligned..).unwrap_or_default();
        Some(taken)
    }
}

impl<'data> Iterator for Notes<'data> {
    type Item = Note<'data>;

    fn next(&mut self) -> Option<Note<'data>> {
        const HEADER_BYTES: usize = 12;
        let (header, rest) = self.rest.split_at_checked(HEADER_BYTES)?;
        let word = |at: usize| Some(u32::from_le_bytes(*header.get(at..)?.first_chunk()?));
        let (name_bytes, bytes, kind) = (word(0)?, word(4)?, word(8)?);
        self.rest = rest;
        // The descriptor begins at a multiple of the alignment from the note's start.
        let name_bytes = usize::try_from(name_bytes).ok()?;
        let name = rest.get(..name_bytes)?;
        let before = (HEADER_BYTES + name_bytes).checked_next_multiple_of(self.align)?;
        self.rest = rest.get(before - HEADER_BYTES..)?;
        let descriptor = self.take(usize::try_from(bytes).ok()?)?;
        Some(Note {
            kind,
            name,
            descriptor,
        })
    }
}
