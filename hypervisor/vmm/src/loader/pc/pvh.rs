//! An uncompressed Linux kernel, an ELF `vmlinux`, by its PVH entry.
//!
//! The kernel's ELF notes name the entry; what it is handed is Xen's start info with memory map and one module, the initial
//! file system.
//! Source: Xen, docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h.

use alloc::vec::Vec;

use elf::abi;
use elf::endian::LittleEndian;
use elf::note::{Note, NoteIterator};

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
/// Notes of kernels are aligned to this, whatever the program header says.
const NOTE_ALIGN: usize = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u64 = 18;
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
    // What a kernel below 1 MiB would need there, LINUX_LOW is for.
    if let Some(low) = segments
        .first()
        .filter(|low| low.memory.start < HIGH_RAM_GPA)
    {
        return Err(PcLoadError::OutOfMemory {
            start: low.memory.start,
            end: low.memory.end,
            memory_bytes: identity.loadable_bytes(),
        });
    }
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

/// The address in the note of the PVH entry, if there is such a note.
fn phys32_entry(file: &File<'_>) -> Result<Option<u64>, PcLoadError> {
    let headers = file.segments().ok_or(PcLoadError::Empty)?;
    for (index, header) in headers.iter().enumerate() {
        if header.p_type != abi::PT_NOTE {
            continue;
        }
        let bad = PcLoadError::BadSegment { index };
        let data = file.segment_data(&header).map_err(|_| bad)?;
        for note in NoteIterator::new(LittleEndian, file.ehdr.class, NOTE_ALIGN, data) {
            let Note::Unknown(note) = note else { continue };
            if note.name != NOTE_NAME || note.n_type != NOTE_PHYS32_ENTRY {
                continue;
            }
            // The note's word has the width of the kernel's addresses; an entry is below 4 GiB in both.
            return match *note.desc {
                [a, b, c, d] => Ok(Some(u32::from_le_bytes([a, b, c, d]).into())),
                [a, b, c, d, e, f, g, h] => Ok(Some(u64::from_le_bytes([a, b, c, d, e, f, g, h]))),
                _ => Err(bad),
            };
        }
    }
    Ok(None)
}
