//! Loading a kernel that expects a PC: Linux by its own 64-bit boot protocol or by PVH, others by Multiboot.
//!
//! Image, initial file system and modules come from a user: every number in them is checked before it is used, and nothing of
//! them is written before the image is known to be right. What a boot loader of a PC leaves in memory is written here; the registers
//! that go with it are in [`Entry`].

mod bzimage;
mod elf_file;
mod error;
mod multiboot;
mod pvh;
mod space;
#[cfg(test)]
mod tests;

pub use error::PcLoadError;

use alloc::vec::Vec;
use core::ops::Range;

use super::GuestWriter;
use crate::acpi::{self, AcpiConfig};
use crate::config::GuestKind;
use crate::layout::Layout;
use crate::mp_tables;
use crate::platform::{BIOS_DATA, COM1_PORT, LOW_RAM_END_GPA, MP_TABLES_GPA};
use space::Space;

/// How vCPU 0 of a PC starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol (Documentation/x86/boot.rst): 64-bit mode with paging, CPL 0, interrupts off, CS =
    /// [`LINUX_CODE_SELECTOR`], DS, ES and SS = [`LINUX_DATA_SELECTOR`], flat; RSI = the zero page.
    Linux64 {
        /// Entry point.
        rip: u64,
        /// The `boot_params`: RSI.
        zero_page: u64,
        /// Top of a stack of one page. The protocol asks for none; Linux makes its own at once.
        stack: u64,
        /// CR3: page tables that map the first 4 GiB one to one.
        page_table: u64,
        /// Base of the GDT.
        gdt: u64,
        /// Its limit.
        gdt_limit: u16,
    },
    /// PVH (Xen, docs/misc/pvh): 32-bit protected mode, paging off, flat segments, interrupts off; EBX = the start info.
    Pvh {
        /// Entry point.
        eip: u32,
        /// The `hvm_start_info`: EBX.
        start_info: u32,
    },
    /// Multiboot 0.6.96, 3.2 "Machine state": 32-bit protected mode, paging off, flat segments, interrupts off; EAX =
    /// [`MULTIBOOT_EAX`], EBX = the information.
    Multiboot {
        /// Entry point.
        eip: u32,
        /// The Multiboot information: EBX.
        info: u32,
    },
}

/// Code selector of [`Entry::Linux64`].
pub const LINUX_CODE_SELECTOR: u16 = 0x10;
/// Data selector of [`Entry::Linux64`].
pub const LINUX_DATA_SELECTOR: u16 = 0x18;
/// EAX of [`Entry::Multiboot`].
pub const MULTIBOOT_EAX: u32 = 0x2BAD_B002;

/// What the loader must know of a VM.
#[derive(Clone, Copy, Debug)]
pub struct PcIdentity<'a> {
    /// Its RAM.
    pub layout: Layout,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Command line.
    pub cmdline: &'a str,
    /// It is a member of a group, and has a group page.
    pub in_group: bool,
}

impl PcIdentity<'_> {
    /// Where RAM ends below the devices: what is loaded lies there.
    fn loadable_bytes(&self) -> u64 {
        self.layout.below()
    }
}

/// A loaded kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedPc {
    /// How vCPU 0 starts.
    pub entry: Entry,
    /// First byte of the image.
    pub start: u64,
    /// One past its last, BSS or what it needs to unpack itself included.
    pub end: u64,
}

/// Loads a kernel, and everything a PC's firmware and boot loader leave for it, into fresh, zeroed memory.
///
/// # Errors
/// [`PcLoadError`]; the memory's contents are then unspecified.
pub fn load_pc(
    kind: GuestKind,
    image: &[u8],
    initramfs: Option<&[u8]>,
    modules: &[(&[u8], &str)],
    identity: &PcIdentity<'_>,
    memory: &mut impl GuestWriter,
) -> Result<LoadedPc, PcLoadError> {
    if kind != GuestKind::Native {
        // First, as on a PC: where an image lies on what the firmware has left, the image counts.
        write_firmware(identity, memory)?;
    }
    let loaded = match kind {
        GuestKind::Native => return Err(PcLoadError::NoPc),
        GuestKind::Linux if bzimage::is_one(image) => {
            bzimage::load(image, initramfs, identity, memory)?
        }
        GuestKind::Linux if elf_file::is_one(image) => {
            pvh::load(image, initramfs, identity, memory)?
        }
        GuestKind::Linux => return Err(PcLoadError::NotLinux),
        GuestKind::Multiboot => multiboot::load(image, modules, identity, memory)?,
    };
    Ok(loaded)
}

/// Where to take memory for what: pieces that are in use already.
struct Target<'a, W> {
    memory: &'a mut W,
    space: Space,
    memory_bytes: u64,
}

impl<'a, W: GuestWriter> Target<'a, W> {
    /// All of a VM's memory, free but for what the firmware has.
    fn new(memory: &'a mut W, memory_bytes: u64) -> Target<'a, W> {
        Target {
            memory,
            space: Space::new(memory_bytes),
            memory_bytes,
        }
    }

    /// Takes these addresses if they are free RAM.
    fn take(&mut self, range: Range<u64>) -> Result<(), PcLoadError> {
        let refused = PcLoadError::OutOfMemory {
            start: range.start,
            end: range.end,
            memory_bytes: self.memory_bytes,
        };
        self.space.take(range).ok_or(refused)
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), PcLoadError> {
        if self.memory.write(gpa, bytes) {
            return Ok(());
        }
        Err(PcLoadError::OutOfMemory {
            start: gpa,
            end: gpa.saturating_add(bytes.len() as u64),
            memory_bytes: self.memory_bytes,
        })
    }

    /// Puts bytes at the lowest free place of a window.
    fn put_low(
        &mut self,
        what: &'static str,
        window: Range<u64>,
        align: u64,
        bytes: &[u8],
    ) -> Result<u64, PcLoadError> {
        let at = self.space.lowest(window, bytes.len() as u64, align);
        self.put(what, at, bytes)
    }

    /// Puts bytes at the highest free place of a window.
    fn put_high(
        &mut self,
        what: &'static str,
        window: Range<u64>,
        align: u64,
        bytes: &[u8],
    ) -> Result<u64, PcLoadError> {
        let at = self.space.highest(window, bytes.len() as u64, align);
        self.put(what, at, bytes)
    }

    fn put(
        &mut self,
        what: &'static str,
        at: Option<u64>,
        bytes: &[u8],
    ) -> Result<u64, PcLoadError> {
        let no_room = PcLoadError::NoRoom {
            what,
            bytes: bytes.len(),
            memory_bytes: self.memory_bytes,
        };
        let at = at.ok_or(no_room)?;
        self.write(at, bytes)?;
        Ok(at)
    }
}

/// Where Linux is handed its structures: low memory, apart from its first 64 KiB, which Linux does not touch but for the
/// bugs of firmware, and from its end, where its decompressor puts a trampoline.
const LINUX_LOW: Range<u64> = 0x1_0000..0x9_0000;

/// The command line as C has it.
fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = Vec::from(text.as_bytes());
    bytes.push(0);
    bytes
}

/// What a PC's firmware leaves for those who look: in its data area COM1's port, equipment (one serial port) and the size of
/// low memory in KiB; the ACPI and the MultiProcessor tables.
fn write_firmware(
    identity: &PcIdentity<'_>,
    memory: &mut impl GuestWriter,
) -> Result<(), PcLoadError> {
    const EQUIPMENT_ONE_SERIAL: u16 = 1 << 9;
    let low_kib = (LOW_RAM_END_GPA >> 10) as u16;
    let mut target = Target::new(memory, identity.loadable_bytes());
    for (offset, value) in [
        (0x00, COM1_PORT),
        (0x10, EQUIPMENT_ONE_SERIAL),
        (0x13, low_kib),
    ] {
        target.write(BIOS_DATA.start + offset, &value.to_le_bytes())?;
    }
    let config = AcpiConfig {
        vcpus: identity.vcpus,
        in_group: identity.in_group,
    };
    for table in acpi::tables(&config) {
        target.write(table.gpa, &table.bytes)?;
    }
    target.write(MP_TABLES_GPA, &mp_tables::tables(identity.vcpus))
}
