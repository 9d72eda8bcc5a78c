//! ELF kernels: segments at their physical addresses.
//!
//! Source: System V ABI, "Object Files", "Program Loading".

use alloc::vec::Vec;
use core::ops::Range;

use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::Class;

use super::super::GuestWriter;
use super::{PcLoadError, Target};

pub(super) type File<'data> = ElfBytes<'data, LittleEndian>;

/// Whether it starts as an ELF file does.
pub(super) fn is_one(image: &[u8]) -> bool {
    image.starts_with(&abi::ELFMAGIC)
}

/// One PT_LOAD segment, checked.
pub(super) struct Segment<'data> {
    /// Index of its program header.
    index: usize,
    /// Guest-physical memory it takes, BSS included.
    pub(super) memory: Range<u64>,
    /// Virtual address of its first byte.
    pub(super) virtual_start: u64,
    /// What the file holds of it; the rest is zeros.
    data: &'data [u8],
}

/// A kernel's file.
pub(super) fn parse(image: &[u8]) -> Result<File<'_>, PcLoadError> {
    let file = File::minimal_parse(image).map_err(|_| PcLoadError::NotElf)?;
    let header = file.ehdr;
    match (header.class, header.e_machine) {
        (Class::ELF64, abi::EM_X86_64) | (Class::ELF32, abi::EM_386) => {}
        _ => return Err(PcLoadError::NotElf),
    }
    match header.e_type {
        // One that could be moved is not: it lies where its program headers say.
        abi::ET_EXEC | abi::ET_DYN => Ok(file),
        found => Err(PcLoadError::WrongType { found }),
    }
}

/// The segments to load, by address; no two overlap, and all end below 4 GiB.
pub(super) fn segments<'data>(file: &File<'data>) -> Result<Vec<Segment<'data>>, PcLoadError> {
    let mut segments = Vec::new();
    for (index, header) in file
        .segments()
        .ok_or(PcLoadError::Empty)?
        .iter()
        .enumerate()
    {
        if header.p_type != abi::PT_LOAD || header.p_memsz == 0 {
            continue;
        }
        let bad = PcLoadError::BadSegment { index };
        let start = header.p_paddr;
        let end = start.checked_add(header.p_memsz).ok_or(bad)?;
        if header.p_filesz > header.p_memsz || end > 1 << 32 {
            return Err(bad);
        }
        segments.push(Segment {
            index,
            memory: start..end,
            virtual_start: header.p_vaddr,
            data: file.segment_data(&header).map_err(|_| bad)?,
        });
    }
    segments.sort_unstable_by_key(|segment| segment.memory.start);
    for pair in segments.windows(2) {
        if let [lower, upper] = pair
            && lower.memory.end > upper.memory.start
        {
            return Err(PcLoadError::Overlap {
                first: lower.index,
                second: upper.index,
            });
        }
    }
    Ok(segments)
}

/// Takes the segments' memory and writes them. The addresses from the first to the last.
pub(super) fn place(
    segments: &[Segment<'_>],
    target: &mut Target<'_, impl GuestWriter>,
) -> Result<Range<u64>, PcLoadError> {
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(PcLoadError::Empty);
    };
    for segment in segments {
        target.take(segment.memory.clone())?;
    }
    for segment in segments {
        target.write(segment.memory.start, segment.data)?;
    }
    Ok(first.memory.start..last.memory.end)
}

/// Whether a segment holds this guest-physical address.
pub(super) fn holds(segments: &[Segment<'_>], gpa: u64) -> bool {
    segments.iter().any(|segment| segment.memory.contains(&gpa))
}
