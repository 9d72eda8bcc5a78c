//! Linux's bzImage by its 64-bit boot protocol.
//!
//! The kernel unpacks itself in the guest. Where it lies is the loader's choice within what its header allows; how much memory
//! it needs there until it can look at the memory map, the header says (`init_size`).
//! Source: Linux, Documentation/x86/boot.rst and zero-page.rst.

use alloc::vec;
use alloc::vec::Vec;

use super::super::GuestWriter;
use super::{Entry, LINUX_LOW, LoadedPc, PcIdentity, PcLoadError, Target, c_string};
use crate::platform::{ACPI_GPA, HIGH_RAM_GPA, memory_map};
use guest_abi::PAGE_BYTES;

/// The first version of the protocol with `xloadflags`.
pub(super) const MIN_PROTOCOL: u16 = 0x020C;

/// Offsets in the setup header, which are the same in the file and in the zero page.
mod at {
    pub(super) const SETUP_SECTS: usize = 0x1F1;
    pub(super) const SYSSIZE: usize = 0x1F4;
    pub(super) const VID_MODE: usize = 0x1FA;
    pub(super) const BOOT_FLAG: usize = 0x1FE;
    /// Second byte of the jump over the header: it ends that many bytes behind [`MAGIC`].
    pub(super) const JUMP: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21C;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22C;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(super) const PAYLOAD_LENGTH: usize = 0x24C;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    /// The end of `init_size`, the last field that is read.
    pub(super) const END: usize = 0x264;

    // In the zero page alone.
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const E820_ENTRIES: usize = 0x1E8;
    pub(super) const E820_TABLE: usize = 0x2D0;
}

const MAGIC: &[u8] = b"HdrS";
/// `loadflags`: the protected-mode code belongs at or above 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: it has the 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Where that entry is.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of loaders without a number of their own.
const UNDEFINED_LOADER: u8 = 0xFF;
const SECTOR_BYTES: usize = 512;

/// Whether it starts as a bzImage does.
pub(super) fn is_one(image: &[u8]) -> bool {
    image.get(at::MAGIC..at::VERSION) == Some(MAGIC)
        && image.get(at::BOOT_FLAG..at::JUMP - 1) == Some(&[0x55, 0xAA])
}

fn field<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], PcLoadError> {
    let bytes = image.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().ok_or(PcLoadError::CutShort {
        wanted_bytes: at::END as u64,
        image_bytes: image.len(),
    })
}

fn u8_at(image: &[u8], at: usize) -> Result<u8, PcLoadError> {
    field::<1>(image, at).map(u8::from_le_bytes)
}

fn u16_at(image: &[u8], at: usize) -> Result<u16, PcLoadError> {
    field(image, at).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], at: usize) -> Result<u32, PcLoadError> {
    field(image, at).map(u32::from_le_bytes)
}

/// What the header says, checked.
struct Kernel<'data> {
    /// The setup header as it is, from [`at::SETUP_SECTS`].
    header: &'data [u8],
    /// What is put into memory.
    code: &'data [u8],
    /// Bytes of memory it needs from where it lies.
    memory_bytes: u64,
    preferred: u64,
    alignment: u64,
    is_relocatable: bool,
    /// Highest address of the initial file system's last byte.
    initrd_max: u64,
    cmdline_max: u64,
}

impl Kernel<'_> {
    fn parse(image: &[u8]) -> Result<Kernel<'_>, PcLoadError> {
        let bad = |field, value| PcLoadError::BadField { field, value };
        let image_bytes = image.len();
        let version = u16_at(image, at::VERSION)?;
        if version < MIN_PROTOCOL {
            return Err(PcLoadError::OldProtocol { found: version });
        }
        let flags = u16_at(image, at::XLOADFLAGS)?;
        if flags & XLF_KERNEL_64 == 0 {
            return Err(PcLoadError::No64BitEntry { flags });
        }
        let loadflags = u8_at(image, at::LOADFLAGS)?;
        if loadflags & LOADED_HIGH == 0 {
            return Err(bad("loadflags", loadflags.into()));
        }
        let init_size = u64::from(u32_at(image, at::INIT_SIZE)?);

        let jump = u8_at(image, at::JUMP)?;
        let header_end = at::MAGIC + usize::from(jump);
        let header = image
            .get(at::SETUP_SECTS..header_end)
            .filter(|_| (at::END..=at::E820_TABLE).contains(&header_end))
            .ok_or(bad("jump", jump.into()))?;

        let sectors = match u8_at(image, at::SETUP_SECTS)? {
            // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
            0 => 4,
            sectors => usize::from(sectors),
        };
        let code_start = (sectors + 1) * SECTOR_BYTES;
        // In paragraphs of 16 bytes. What follows (a signature) is none of the kernel's.
        let code_bytes = u64::from(u32_at(image, at::SYSSIZE)?) * 16;
        let code = image.get(code_start..).unwrap_or_default();
        // The file may end within the last paragraph.
        if code_bytes.saturating_sub(15) > code.len() as u64 {
            return Err(PcLoadError::CutShort {
                wanted_bytes: code_start as u64 + code_bytes,
                image_bytes,
            });
        }
        let loaded = usize::try_from(code_bytes).unwrap_or(usize::MAX);
        let code = code.get(..loaded).unwrap_or(code);
        if code.len() as u64 <= ENTRY_64 {
            return Err(bad("syssize", code_bytes / 16));
        }
        let payload = u32_at(image, at::PAYLOAD_OFFSET)?;
        let payload_bytes = u32_at(image, at::PAYLOAD_LENGTH)?;
        // A kernel that unpacks nothing has none.
        if payload_bytes != 0 && u64::from(payload) + u64::from(payload_bytes) > code.len() as u64 {
            return Err(bad("payload_length", payload_bytes.into()));
        }
        let is_relocatable = u8_at(image, at::RELOCATABLE)? != 0;
        let alignment = u32_at(image, at::KERNEL_ALIGNMENT)?;
        let is_aligned = alignment.is_power_of_two() && alignment >= PAGE_BYTES as u32;
        if is_relocatable && !is_aligned {
            return Err(bad("kernel_alignment", alignment.into()));
        }
        if init_size < code.len() as u64 {
            return Err(bad("init_size", init_size));
        }
        Ok(Kernel {
            header,
            code,
            memory_bytes: init_size,
            preferred: field(image, at::PREF_ADDRESS).map(u64::from_le_bytes)?,
            alignment: alignment.into(),
            is_relocatable,
            initrd_max: u32_at(image, at::INITRD_ADDR_MAX)?.into(),
            cmdline_max: u32_at(image, at::CMDLINE_SIZE)?.into(),
        })
    }

    /// Takes memory for it: where it prefers to lie, else as low as it can.
    fn take(&self, target: &mut Target<'_, impl GuestWriter>) -> Result<u64, PcLoadError> {
        let start = if self.is_relocatable {
            self.preferred.checked_next_multiple_of(self.alignment)
        } else {
            Some(self.preferred)
        };
        let range = start
            .and_then(|start| Some(start..start.checked_add(self.memory_bytes)?))
            // It runs in 64-bit mode, but its own first page tables and ours reach to 4 GiB.
            .filter(|range| range.start >= HIGH_RAM_GPA && range.end <= 1 << 32)
            .ok_or(PcLoadError::BadField {
                field: "pref_address",
                value: self.preferred,
            })?;
        let refused = match target.take(range.clone()) {
            Ok(()) => return Ok(range.start),
            Err(refused) => refused,
        };
        let window = HIGH_RAM_GPA..target.memory_bytes;
        let lowest = self.is_relocatable.then(|| {
            target
                .space
                .lowest(window, self.memory_bytes, self.alignment)
        });
        lowest.flatten().ok_or(refused)
    }
}

/// Loads it.
pub(super) fn load(
    image: &[u8],
    initramfs: Option<&[u8]>,
    identity: &PcIdentity<'_>,
    memory: &mut impl GuestWriter,
) -> Result<LoadedPc, PcLoadError> {
    let kernel = Kernel::parse(image)?;
    if identity.cmdline.len() as u64 > kernel.cmdline_max {
        return Err(PcLoadError::CmdlineTooLong {
            bytes: identity.cmdline.len(),
            most: kernel.cmdline_max,
        });
    }
    let mut target = Target::new(memory, identity.loadable_bytes());
    let start = kernel.take(&mut target)?;
    target.write(start, kernel.code)?;
    let ramdisk = match initramfs {
        Some(bytes) => {
            let window = HIGH_RAM_GPA..kernel.initrd_max.saturating_add(1);
            target.put_high("the initramfs", window, PAGE_BYTES, bytes)?
        }
        None => 0,
    };
    let ramdisk_bytes = initramfs.map_or(0, <[u8]>::len);
    let cmdline = c_string(identity.cmdline);
    let cmdline = target.put_low("the command line", LINUX_LOW, 16, &cmdline)?;

    let mut page = vec![0; PAGE_BYTES as usize];
    put(&mut page, at::SETUP_SECTS, kernel.header);
    put(&mut page, at::VID_MODE, &0xFFFF_u16.to_le_bytes()); // "normal"
    put(&mut page, at::TYPE_OF_LOADER, &[UNDEFINED_LOADER]);
    // All of these are below 4 GiB: what is loaded ends at 3 GiB, so that the upper halves, `ext_*`, stay 0.
    for (offset, value) in [
        (at::CODE32_START, start),
        (at::RAMDISK_IMAGE, ramdisk),
        (at::RAMDISK_SIZE, ramdisk_bytes as u64),
        (at::CMD_LINE_PTR, cmdline),
    ] {
        put(&mut page, offset, &(value as u32).to_le_bytes());
    }
    put(&mut page, at::ACPI_RSDP_ADDR, &ACPI_GPA.to_le_bytes());
    let map = memory_map(identity.layout);
    put(&mut page, at::E820_ENTRIES, &[map.len() as u8]);
    let table: Vec<u8> = map
        .iter()
        .flat_map(|piece| {
            let bytes = piece.range.end - piece.range.start;
            let words = [piece.range.start, bytes].into_iter();
            let kind = (piece.kind as u32).to_le_bytes();
            words.flat_map(u64::to_le_bytes).chain(kind)
        })
        .collect();
    put(&mut page, at::E820_TABLE, &table);
    let zero_page = target.put_low("the zero page", LINUX_LOW, PAGE_BYTES, &page)?;

    let page_table = put_page_tables(&mut target)?;
    // Selectors 0x10, flat 64-bit code, and 0x18, flat data.
    let gdt: Vec<u8> = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF_u64]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    let gdt_limit = gdt.len() as u16 - 1;
    let gdt = target.put_low("the GDT", LINUX_LOW, 16, &gdt)?;
    let stack = [0; PAGE_BYTES as usize];
    let stack = target.put_low("the stack", LINUX_LOW, PAGE_BYTES, &stack)? + PAGE_BYTES;
    Ok(LoadedPc {
        entry: Entry::Linux64 {
            rip: start + ENTRY_64,
            zero_page,
            stack,
            page_table,
            gdt,
            gdt_limit,
        },
        start,
        end: start + kernel.memory_bytes,
    })
}

/// Writes into a structure that has that place.
fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    let slot = page
        .get_mut(at..)
        .and_then(|rest| rest.get_mut(..bytes.len()));
    debug_assert!(slot.is_some(), "{at:#x} is outside");
    if let Some(slot) = slot {
        slot.copy_from_slice(bytes);
    }
}

/// Page tables that map the first 4 GiB one to one by 2 MiB pages; the address of their root.
fn put_page_tables(target: &mut Target<'_, impl GuestWriter>) -> Result<u64, PcLoadError> {
    /// Present, writable.
    const TABLE: u64 = 0b11;
    /// Present, writable, large.
    const LARGE: u64 = 0b1000_0011;
    const GIBS: u64 = 4;
    let bytes = |entries: Vec<u64>| -> Vec<u8> {
        let mut table: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
        table.resize(table.len().next_multiple_of(PAGE_BYTES as usize), 0);
        table
    };
    let what = "the page tables";
    let pages = bytes((0..GIBS * 512).map(|page| page << 21 | LARGE).collect());
    let directories = target.put_low(what, LINUX_LOW, PAGE_BYTES, &pages)?;
    let pointers = (0..GIBS).map(|gib| (directories + gib * PAGE_BYTES) | TABLE);
    let pointers = target.put_low(what, LINUX_LOW, PAGE_BYTES, &bytes(pointers.collect()))?;
    let root = bytes(vec![pointers | TABLE]);
    target.put_low(what, LINUX_LOW, PAGE_BYTES, &root)
}

const _: () = assert!(at::E820_TABLE + crate::platform::MEMORY_PIECES * 20 <= PAGE_BYTES as usize);
