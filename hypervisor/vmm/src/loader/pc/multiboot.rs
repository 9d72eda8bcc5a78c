//! Kernels that follow the Multiboot specification, version 0.6.96.
//!
//! Where the header has address fields, they say what of the file goes where; else the image is an ELF file, of 32 bits, or of
//! 64 as GRUB takes them, too. The entry is 32-bit code in both.
//!
//! Left out: the section headers' table and symbols (flags 4 and 5 of the information), drives, APM and the BIOS's own tables,
//! which nothing here has. A header that asks for a video mode is taken all the same: the mode is "only recommended" (3.1.4),
//! and the information says by its flags that there is no display.
//! Source: Multiboot Specification 0.6.96, chapter 3.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::super::GuestWriter;
use super::elf_file;
use super::{Entry, LoadedPc, PcIdentity, PcLoadError, Target, c_string};
use crate::platform::{BIOS_DATA, HIGH_RAM_GPA, LOW_RAM_END_GPA, memory_map};
use guest_abi::PAGE_BYTES;

/// The header lies wholly within this many bytes from the start of the image (3.1.1).
pub(super) const SEARCHED_BYTES: usize = 8192;

const MAGIC: u32 = 0x1BAD_B002;
/// Modules are to be aligned to pages. They always are.
const FLAG_ALIGN: u32 = 1 << 0;
/// Memory is to be told. It always is.
const FLAG_MEMORY: u32 = 1 << 1;
/// A video mode is recommended.
const FLAG_VIDEO: u32 = 1 << 2;
/// The address fields are there.
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Who sees one of these set and does not know it must not load the image.
const DEMANDS: u32 = 0xFFFF;

/// Flags of the information: what of it is there.
mod info_flag {
    pub(super) const MEMORY: u32 = 1 << 0;
    pub(super) const CMDLINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
}

/// Bytes of the information, the fields of a display included, which are 0.
const INFO_BYTES: usize = 116;
/// Where the loader's structures go: the end of low memory, so that kernels that lie there at its start have room.
const LOW: Range<u64> = BIOS_DATA.end..LOW_RAM_END_GPA;

/// The header, its checksum right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Where it lies in the file.
    offset: usize,
    flags: u32,
    /// `header_addr`, `load_addr`, `load_end_addr`, `bss_end_addr`, `entry_addr`; only if the flags say so.
    addresses: Option<[u32; 5]>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// The first header there is.
fn find(image: &[u8]) -> Result<Header, PcLoadError> {
    let searched = image.get(..SEARCHED_BYTES).unwrap_or(image);
    let header_at = |offset: usize| {
        let flags = u32_at(searched, offset + 4)?;
        let sum = MAGIC
            .wrapping_add(flags)
            .wrapping_add(u32_at(searched, offset + 8)?);
        if u32_at(searched, offset)? != MAGIC || sum != 0 {
            return None;
        }
        let mut addresses = [0; 5];
        if flags & FLAG_ADDRESSES != 0 {
            for (index, address) in addresses.iter_mut().enumerate() {
                *address = u32_at(searched, offset + 12 + index * 4)?;
            }
        }
        Some(Header {
            offset,
            flags,
            addresses: (flags & FLAG_ADDRESSES != 0).then_some(addresses),
        })
    };
    let header = (0..searched.len())
        .step_by(4)
        .find_map(header_at)
        .ok_or(PcLoadError::NoMultibootHeader)?;
    match header.flags & DEMANDS & !(FLAG_ALIGN | FLAG_MEMORY | FLAG_VIDEO) {
        0 => Ok(header),
        flags => Err(PcLoadError::UnknownDemands { flags }),
    }
}

/// Loads what the address fields say. Entry point and the memory the image takes.
fn load_addresses(
    image: &[u8],
    header: Header,
    addresses: [u32; 5],
    target: &mut Target<'_, impl GuestWriter>,
) -> Result<(u64, Range<u64>), PcLoadError> {
    let bad = |field, value: u64| PcLoadError::BadField { field, value };
    let [header_addr, load_addr, load_end, bss_end, entry] = addresses.map(u64::from);
    // The header's own place ties addresses to offsets in the file.
    let before = header_addr
        .checked_sub(load_addr)
        .ok_or(bad("load_addr", load_addr))?;
    let file_start = (header.offset as u64)
        .checked_sub(before)
        .ok_or(bad("header_addr", header_addr))?;
    // Not behind the header, so it is inside the image.
    let rest = usize::try_from(file_start)
        .ok()
        .and_then(|start| image.get(start..))
        .unwrap_or_default();
    let data = match load_end {
        // "If this field is zero, … text and data segments occupy the whole OS image file."
        0 => rest,
        _ => {
            let bytes = load_end
                .checked_sub(load_addr)
                .ok_or(bad("load_end_addr", load_end))?;
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            rest.get(..bytes).ok_or(PcLoadError::CutShort {
                wanted_bytes: file_start.saturating_add(bytes as u64),
                image_bytes: image.len(),
            })?
        }
    };
    let data_end = load_addr + data.len() as u64;
    let end = match bss_end {
        0 => data_end,
        end if end >= data_end => end,
        _ => return Err(bad("bss_end_addr", bss_end)),
    };
    let range = load_addr..end;
    if !range.contains(&entry) {
        return Err(PcLoadError::BadEntry { entry });
    }
    target.take(range.clone())?;
    target.write(load_addr, data)?;
    Ok((entry, range))
}

/// Loads an ELF file. Entry point and the memory from its first segment to its last.
fn load_elf(
    image: &[u8],
    target: &mut Target<'_, impl GuestWriter>,
) -> Result<(u64, Range<u64>), PcLoadError> {
    let file = elf_file::parse(image)?;
    let segments = elf_file::segments(&file)?;
    let entry = file.ehdr.e_entry;
    // The entry point is a virtual address; where a kernel's differ from the physical ones, its segment tells how. As the
    // first instructions run without paging, some linker scripts give a physical address instead.
    let by_segment = segments.iter().find_map(|segment| {
        let offset = entry.checked_sub(segment.virtual_start)?;
        let at = segment.memory.start.checked_add(offset)?;
        segment.memory.contains(&at).then_some(at)
    });
    let at = by_segment.or_else(|| elf_file::holds(&segments, entry).then_some(entry));
    let at = at.ok_or(PcLoadError::BadEntry { entry })?;
    Ok((at, elf_file::place(&segments, target)?))
}

/// Loads the kernel and its modules, and writes the information.
pub(super) fn load(
    image: &[u8],
    modules: &[(&[u8], &str)],
    identity: &PcIdentity<'_>,
    memory: &mut impl GuestWriter,
) -> Result<LoadedPc, PcLoadError> {
    let header = find(image)?;
    let mut target = Target::new(memory, identity.loadable_bytes());
    let (entry, range) = match header.addresses {
        Some(addresses) => load_addresses(image, header, addresses, &mut target)?,
        None => load_elf(image, &mut target)?,
    };
    let eip = u32::try_from(entry).map_err(|_| PcLoadError::BadEntry { entry })?;

    // Behind the image, where kernels look for the first free memory by the modules' ends.
    let window = range.end.max(HIGH_RAM_GPA)..identity.loadable_bytes();
    let mut list = Vec::new();
    for (bytes, cmdline) in modules {
        let start = target.put_low("a module", window.clone(), PAGE_BYTES, bytes)?;
        let text = c_string(cmdline);
        let text = put_information("a module's command line", 1, &text, &mut target)?;
        for word in [start, start + bytes.len() as u64, text, 0] {
            list.extend(low_word(word));
        }
    }
    let modules_at = put_information("the module list", 16, &list, &mut target)?;
    let cmdline = c_string(identity.cmdline);
    let cmdline = put_information("the command line", 1, &cmdline, &mut target)?;
    let name = put_information("the boot loader's name", 1, b"Nagaya\0", &mut target)?;
    let mut map = Vec::new();
    for piece in memory_map(identity.layout) {
        const ENTRY_BYTES: u32 = 20; // without this field itself
        map.extend(ENTRY_BYTES.to_le_bytes());
        map.extend(piece.range.start.to_le_bytes());
        map.extend((piece.range.end - piece.range.start).to_le_bytes());
        map.extend((piece.kind as u32).to_le_bytes());
    }
    let map_at = put_information("the memory map", 16, &map, &mut target)?;

    let flags = info_flag::MEMORY
        | info_flag::CMDLINE
        | info_flag::MODULES
        | info_flag::MEMORY_MAP
        | info_flag::LOADER_NAME;
    let mut info = vec![0; INFO_BYTES];
    for (offset, value) in [
        (0, u64::from(flags)),
        // KiB of memory from 0 and from 1 MiB.
        (4, LOW_RAM_END_GPA >> 10),
        (
            8,
            identity.loadable_bytes().saturating_sub(HIGH_RAM_GPA) >> 10,
        ),
        (16, cmdline),
        (20, modules.len() as u64),
        (24, modules_at),
        (44, map.len() as u64),
        (48, map_at),
        (64, name),
    ] {
        let slot: Option<&mut [u8; 4]> = info
            .get_mut(offset..)
            .and_then(|rest| rest.first_chunk_mut());
        if let Some(slot) = slot {
            *slot = low_word(value);
        }
    }
    let info = put_information("the Multiboot information", 16, &info, &mut target)?;
    Ok(LoadedPc {
        entry: Entry::Multiboot {
            eip,
            // Below 4 GiB, as all that is loaded.
            info: info as u32,
        },
        start: range.start,
        end: range.end,
    })
}

/// Puts a structure for the kernel into low memory, or, if the image leaves no room there, as high as there is room.
fn put_information(
    what: &'static str,
    align: u64,
    bytes: &[u8],
    target: &mut Target<'_, impl GuestWriter>,
) -> Result<u64, PcLoadError> {
    target.put_high(what, LOW, align, bytes).or_else(|_| {
        let high = HIGH_RAM_GPA..target.memory_bytes;
        target.put_high(what, high, align, bytes)
    })
}

/// An address or size as the information has it. All of them are below 4 GiB, as all RAM is.
fn low_word(value: u64) -> [u8; 4] {
    (value as u32).to_le_bytes()
}
