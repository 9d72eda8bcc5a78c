//! Loading a guest: its ELF64 image, then page tables, GDT, `BootInfo` and command line as `guest_abi::boot` promises.
//!
//! The image comes from a user: every number in it is checked before it is used. Position-independent images (ET_DYN) are put
//! at `IMAGE_BASE_GPA` and relocated (R_X86_64_RELATIVE only), fixed ones (ET_EXEC) where their program headers say.
//! Source: System V ABI, "Object Files", "Program Loading"; AMD64 supplement, "Relocation".

use alloc::vec::Vec;
use core::fmt;

use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use guest_abi::boot;
use guest_abi::{ABI_VERSION, BootInfo, NAME_BYTES};

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

const PAGE: u64 = 4096;

/// Loads `image` and everything a guest starts with into fresh, zeroed memory.
///
/// # Errors
/// [`LoadError`]; the memory's contents are then unspecified.
pub fn load(
    image: &[u8],
    identity: &Identity<'_>,
    memory: &mut impl GuestWriter,
) -> Result<Loaded, LoadError> {
    let loaded = load_image(image, identity.memory_bytes, memory)?;
    write_boot_structures(identity, &loaded, memory)?;
    Ok(loaded)
}

fn load_image(
    image: &[u8],
    memory_bytes: u64,
    memory: &mut impl GuestWriter,
) -> Result<Loaded, LoadError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image).map_err(|_| LoadError::NotElf)?;
    let header = file.ehdr;
    if header.class != elf::file::Class::ELF64 || header.e_machine != abi::EM_X86_64 {
        return Err(LoadError::NotElf);
    }
    let base = match header.e_type {
        abi::ET_EXEC => 0,
        abi::ET_DYN => boot::IMAGE_BASE_GPA,
        found => return Err(LoadError::WrongType { found }),
    };
    let segments = file.segments().ok_or(LoadError::Empty)?;
    let (mut start, mut end, mut entry_is_good) = (u64::MAX, 0, false);
    let entry = header
        .e_entry
        .checked_add(base)
        .ok_or(LoadError::BadEntry {
            entry: header.e_entry,
        })?;
    for (index, segment) in segments.iter().enumerate() {
        if segment.p_type == abi::PT_INTERP {
            return Err(LoadError::Dynamic);
        }
        if segment.p_type != abi::PT_LOAD || segment.p_memsz == 0 {
            continue;
        }
        let bad = LoadError::BadSegment { index };
        if segment.p_filesz > segment.p_memsz {
            return Err(bad);
        }
        let address = if base == 0 {
            segment.p_paddr
        } else {
            segment.p_vaddr
        };
        let first = address.checked_add(base).ok_or(bad)?;
        let last = first.checked_add(segment.p_memsz).ok_or(bad)?;
        if first < boot::IMAGE_BASE_GPA || last > memory_bytes {
            return Err(LoadError::OutOfMemory {
                start: first,
                end: last,
                memory_bytes,
            });
        }
        let data = file.segment_data(&segment).map_err(|_| bad)?;
        if !memory.write(first, data) {
            return Err(LoadError::OutOfMemory {
                start: first,
                end: last,
                memory_bytes,
            });
        }
        start = start.min(first);
        end = end.max(last);
        entry_is_good |= segment.p_flags & abi::PF_X != 0 && (first..last).contains(&entry);
    }
    if start > end {
        return Err(LoadError::Empty);
    }
    if !entry_is_good {
        return Err(LoadError::BadEntry { entry });
    }
    if base != 0 {
        relocate(&file, base, start..end, memory)?;
    }
    Ok(Loaded { entry, start, end })
}

fn relocate(
    file: &ElfBytes<'_, LittleEndian>,
    base: u64,
    image: core::ops::Range<u64>,
    memory: &mut impl GuestWriter,
) -> Result<(), LoadError> {
    let Some(headers) = file.section_headers() else {
        return Ok(());
    };
    for section in headers
        .iter()
        .filter(|section| section.sh_type == abi::SHT_RELA)
    {
        for relocation in file
            .section_data_as_relas(&section)
            .map_err(|_| LoadError::NotElf)?
        {
            if relocation.r_type == abi::R_X86_64_NONE {
                continue;
            }
            let bad = LoadError::BadRelocation {
                kind: relocation.r_type,
            };
            if relocation.r_type != abi::R_X86_64_RELATIVE {
                return Err(bad);
            }
            let place = relocation.r_offset.checked_add(base).ok_or(bad)?;
            let fits = place
                .checked_add(8)
                .is_some_and(|end| image.start <= place && end <= image.end);
            let value = base.wrapping_add_signed(relocation.r_addend);
            if !fits || !memory.write(place, &value.to_le_bytes()) {
                return Err(bad);
            }
        }
    }
    Ok(())
}

/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, large.
const LARGE: u64 = 0b1000_0011;

fn write_boot_structures(
    identity: &Identity<'_>,
    loaded: &Loaded,
    memory: &mut impl GuestWriter,
) -> Result<(), LoadError> {
    if identity.cmdline.len() > boot::MAX_CMDLINE_BYTES {
        return Err(LoadError::CmdlineTooLong {
            bytes: identity.cmdline.len(),
        });
    }
    let mut ok = memory.write(
        boot::BOOT_PML4_GPA,
        &(boot::BOOT_PDPT_GPA | TABLE).to_le_bytes(),
    );
    for gib in 0..4 {
        let directory = boot::BOOT_PD_GPA + gib * PAGE;
        ok &= memory.write(
            boot::BOOT_PDPT_GPA + gib * 8,
            &(directory | TABLE).to_le_bytes(),
        );
        let entries: Vec<u8> = (0..512)
            .flat_map(|index| {
                let address = gib << 30 | index << 21;
                let entry = if address == 0 {
                    boot::BOOT_PT_GPA | TABLE
                } else {
                    address | LARGE
                };
                entry.to_le_bytes()
            })
            .collect();
        ok &= memory.write(directory, &entries);
    }
    let pages: Vec<u8> = (0..512_u64)
        .map(|index| index * PAGE)
        // Page 0 and the page below the stack are left out, so that null pointers and overflows fault.
        .flat_map(|page| {
            if page == 0 || page == boot::BOOT_STACK_GUARD_GPA {
                [0; 8]
            } else {
                (page | TABLE).to_le_bytes()
            }
        })
        .collect();
    ok &= memory.write(boot::BOOT_PT_GPA, &pages);
    let gdt = [0_u64, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];
    for (index, descriptor) in gdt.into_iter().enumerate() {
        ok &= memory.write(
            boot::BOOT_GDT_GPA + index as u64 * 8,
            &descriptor.to_le_bytes(),
        );
    }
    ok &= memory.write(boot::BOOT_CMDLINE_GPA, identity.cmdline.as_bytes());
    ok &= memory.write(boot::BOOT_INFO_GPA, &encode(&boot_info(identity, loaded)));
    if ok {
        Ok(())
    } else {
        Err(LoadError::OutOfMemory {
            start: 0,
            end: boot::IMAGE_BASE_GPA,
            memory_bytes: identity.memory_bytes,
        })
    }
}

fn boot_info(identity: &Identity<'_>, loaded: &Loaded) -> BootInfo {
    BootInfo {
        magic: boot::BOOT_MAGIC,
        abi_version: ABI_VERSION,
        vm_id: identity.vm_id,
        memory_bytes: identity.memory_bytes,
        image_start_gpa: loaded.start,
        image_end_gpa: loaded.end,
        tsc_khz: identity.tsc_khz,
        group_page_gpa: if identity.member_index.is_some() {
            boot::GROUP_PAGE_GPA
        } else {
            0
        },
        info_page_gpa: boot::INFO_PAGE_GPA,
        cmdline_gpa: boot::BOOT_CMDLINE_GPA,
        cmdline_bytes: identity.cmdline.len() as u64,
        vcpus: identity.vcpus,
        member_index: identity.member_index.unwrap_or(u32::MAX),
        bare_hypercall: identity.bare_hypercall,
        name: identity.name,
    }
}

/// The structure's bytes in its C layout, field by field.
fn encode(info: &BootInfo) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<BootInfo>());
    bytes.extend(info.magic.to_le_bytes());
    bytes.extend(info.abi_version.to_le_bytes());
    bytes.extend(info.vm_id.to_le_bytes());
    for word in [
        info.memory_bytes,
        info.image_start_gpa,
        info.image_end_gpa,
        info.tsc_khz,
        info.group_page_gpa,
        info.info_page_gpa,
        info.cmdline_gpa,
        info.cmdline_bytes,
    ] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(info.vcpus.to_le_bytes());
    bytes.extend(info.member_index.to_le_bytes());
    bytes.extend(info.bare_hypercall.to_le_bytes());
    bytes.extend(info.name);
    debug_assert_eq!(bytes.len(), size_of::<BootInfo>());
    bytes
}
