//! The ELF64 image: segments and relocations.
//!
//! Program headers and the dynamic segment alone count, as for every loader: section headers may be stripped. Everything is
//! checked before the first byte is written, but for relocations, which are checked one by one.

use alloc::vec::Vec;
use core::ops::Range;

use elf::ElfBytes;
use elf::abi;
use elf::dynamic::DynamicTable;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::parse::ParsingIterator;
use elf::relocation::RelaIterator;
use guest_abi::boot;

use super::{GuestWriter, LoadError, Loaded};

type File<'data> = ElfBytes<'data, LittleEndian>;

/// One PT_LOAD segment, checked.
struct Segment<'data> {
    /// Index of its program header.
    index: usize,
    /// Guest-physical memory it takes, BSS included.
    memory: Range<u64>,
    /// Virtual address that the image's own tables know it by.
    virtual_start: u64,
    /// What the file holds of it; the rest is zeros.
    data: &'data [u8],
    executable: bool,
}

/// Loads the image into fresh, zeroed memory.
pub(super) fn load(
    image: &[u8],
    memory_bytes: u64,
    memory: &mut impl GuestWriter,
) -> Result<Loaded, LoadError> {
    let file = File::minimal_parse(image).map_err(|_| LoadError::NotElf)?;
    let header = file.ehdr;
    if header.class != Class::ELF64 || header.e_machine != abi::EM_X86_64 {
        return Err(LoadError::NotElf);
    }
    let base = match header.e_type {
        abi::ET_EXEC => None,
        abi::ET_DYN => Some(boot::IMAGE_BASE_GPA),
        found => return Err(LoadError::WrongType { found }),
    };
    let segments = segments(&file, base, memory_bytes)?;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(LoadError::Empty);
    };
    let (start, end) = (first.memory.start, last.memory.end);
    let entry = header.e_entry;
    let entry = base.map_or(Some(entry), |base| entry.checked_add(base));
    let entry = entry.ok_or(LoadError::BadEntry {
        entry: header.e_entry,
    })?;
    if !segments
        .iter()
        .any(|segment| segment.executable && segment.memory.contains(&entry))
    {
        return Err(LoadError::BadEntry { entry });
    }
    for segment in &segments {
        if !memory.write(segment.memory.start, segment.data) {
            return Err(LoadError::OutOfMemory {
                start: segment.memory.start,
                end: segment.memory.end,
                memory_bytes,
            });
        }
    }
    if let Some(base) = base {
        relocate(&file, base, &segments, memory)?;
    }
    Ok(Loaded { entry, start, end })
}

/// The segments to load, by address; no two overlap.
fn segments<'data>(
    file: &File<'data>,
    base: Option<u64>,
    memory_bytes: u64,
) -> Result<Vec<Segment<'data>>, LoadError> {
    let mut segments = Vec::new();
    for (index, header) in file.segments().ok_or(LoadError::Empty)?.iter().enumerate() {
        if header.p_type == abi::PT_INTERP {
            return Err(LoadError::Dynamic);
        }
        if header.p_type != abi::PT_LOAD || header.p_memsz == 0 {
            continue;
        }
        let bad = LoadError::BadSegment { index };
        if header.p_filesz > header.p_memsz {
            return Err(bad);
        }
        let start = match base {
            Some(base) => header.p_vaddr.checked_add(base).ok_or(bad)?,
            None => header.p_paddr,
        };
        let end = start.checked_add(header.p_memsz).ok_or(bad)?;
        if start < boot::IMAGE_BASE_GPA || end > memory_bytes {
            return Err(LoadError::OutOfMemory {
                start,
                end,
                memory_bytes,
            });
        }
        segments.push(Segment {
            index,
            memory: start..end,
            virtual_start: header.p_vaddr,
            data: file.segment_data(&header).map_err(|_| bad)?,
            executable: header.p_flags & abi::PF_X != 0,
        });
    }
    segments.sort_unstable_by_key(|segment| segment.memory.start);
    for pair in segments.windows(2) {
        if let [lower, upper] = pair
            && lower.memory.end > upper.memory.start
        {
            return Err(LoadError::Overlap {
                first: lower.index,
                second: upper.index,
            });
        }
    }
    Ok(segments)
}

/// Where the dynamic segment says the relocations are.
#[derive(Default)]
struct RelocationTable {
    address: u64,
    bytes: u64,
}

fn relocation_table(file: &File<'_>) -> Result<RelocationTable, LoadError> {
    let mut table = RelocationTable::default();
    let bad = LoadError::BadRelocationTable;
    let Some(header) = file.segments().and_then(|headers| {
        headers
            .iter()
            .find(|header| header.p_type == abi::PT_DYNAMIC)
    }) else {
        return Ok(table);
    };
    let data = file.segment_data(&header).map_err(|_| bad)?;
    let entries = DynamicTable::new(LittleEndian, Class::ELF64, data);
    for entry in entries
        .iter()
        .take_while(|entry| entry.d_tag != abi::DT_NULL)
    {
        match entry.d_tag {
            abi::DT_RELA => table.address = entry.d_val(),
            abi::DT_RELASZ => table.bytes = entry.d_val(),
            abi::DT_RELAENT if entry.d_val() != RELA_BYTES => return Err(bad),
            abi::DT_NEEDED => return Err(LoadError::Dynamic),
            // Other forms of tables: linkers make them only when asked to, or for calls to other objects.
            abi::DT_RELSZ | DT_RELRSZ | abi::DT_PLTRELSZ if entry.d_val() != 0 => return Err(bad),
            _ => {}
        }
    }
    Ok(table)
}

/// Bytes of an `Elf64_Rela`.
const RELA_BYTES: u64 = 24;
/// Size of a table of relative relocations in the packed form.
const DT_RELRSZ: i64 = 35;

fn relocate(
    file: &File<'_>,
    base: u64,
    segments: &[Segment<'_>],
    memory: &mut impl GuestWriter,
) -> Result<(), LoadError> {
    let table = relocation_table(file)?;
    if table.bytes == 0 {
        return Ok(());
    }
    let data = segments
        .iter()
        .find_map(|segment| slice_of(segment, &table))
        .filter(|_| table.bytes.is_multiple_of(RELA_BYTES))
        .ok_or(LoadError::BadRelocationTable)?;
    let relocations: RelaIterator<'_, _> = ParsingIterator::new(LittleEndian, Class::ELF64, data);
    for relocation in relocations {
        match relocation.r_type {
            abi::R_X86_64_NONE => continue,
            abi::R_X86_64_RELATIVE => {}
            kind => return Err(LoadError::BadRelocation { kind }),
        }
        let outside = LoadError::RelocationOutside {
            place: relocation.r_offset,
        };
        let place = relocation.r_offset.checked_add(base).ok_or(outside)?;
        let end = place.checked_add(8).ok_or(outside)?;
        let inside = segments
            .iter()
            .any(|segment| segment.memory.start <= place && end <= segment.memory.end);
        let value = base.wrapping_add_signed(relocation.r_addend);
        if !inside || !memory.write(place, &value.to_le_bytes()) {
            return Err(outside);
        }
    }
    Ok(())
}

/// The table's bytes, if the file's part of this segment holds them all.
fn slice_of<'data>(segment: &Segment<'data>, table: &RelocationTable) -> Option<&'data [u8]> {
    let start = usize::try_from(table.address.checked_sub(segment.virtual_start)?).ok()?;
    let end = start.checked_add(usize::try_from(table.bytes).ok()?)?;
    segment.data.get(start..end)
}
