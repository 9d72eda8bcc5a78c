//! How a guest is entered, and the [`BootInfo`] it is handed.
//!
//! Entry state of vCPU 0: 64-bit mode at the image's entry point, CPL 0, interrupts off, RDI = [`BOOT_INFO_GPA`],
//! RSP = [`BOOT_STACK_POINTER`], flat segments from a GDT at [`BOOT_GDT_GPA`] (0x08 code, 0x10 data), CR3 = [`BOOT_PML4_GPA`]:
//! the first 4 GiB of guest-physical addresses mapped one to one, writable, executable; pages 0 and [`BOOT_STACK_GUARD_GPA`]
//! are not present. The image is loaded from [`IMAGE_BASE_GPA`] (position-independent ELF) or where its program headers say.

use crate::NAME_BYTES;

/// `BootInfo::magic`: "NAGAYAVM" as little-endian bytes.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"NAGAYAVM");

/// Root of the page tables a guest starts on (PML4, then PDPT, 4 page directories, 1 page table, one page each).
pub const BOOT_PML4_GPA: u64 = 0x1000;
/// The page-directory-pointer table.
pub const BOOT_PDPT_GPA: u64 = 0x2000;
/// The first of four page directories, one for each GiB.
pub const BOOT_PD_GPA: u64 = 0x3000;
/// The page table of the first 2 MiB.
pub const BOOT_PT_GPA: u64 = 0x7000;
/// The GDT a guest starts with.
pub const BOOT_GDT_GPA: u64 = 0x8000;
/// Selector of the flat 64-bit code segment.
pub const BOOT_CODE_SELECTOR: u16 = 0x08;
/// Selector of the flat data segment.
pub const BOOT_DATA_SELECTOR: u16 = 0x10;
/// Where the [`BootInfo`] lies.
pub const BOOT_INFO_GPA: u64 = 0x9000;
/// Where the command line lies: at most [`MAX_CMDLINE_BYTES`] bytes of UTF-8, no terminating zero.
pub const BOOT_CMDLINE_GPA: u64 = 0xA000;
/// Longest command line.
pub const MAX_CMDLINE_BYTES: usize = 4096;
/// The page below the first stack; not present in the page tables a guest starts on.
pub const BOOT_STACK_GUARD_GPA: u64 = 0x1_F000;
/// Top of the first stack (it reaches down to [`BOOT_STACK_GUARD_GPA`] + 4096).
pub const BOOT_STACK_TOP_GPA: u64 = 0x8_0000;
/// RSP at the entry: as the System V ABI has it where a function begins, a return address (0, where nothing is) above a multiple
/// of 16.
pub const BOOT_STACK_POINTER: u64 = BOOT_STACK_TOP_GPA - 8;
/// CR0 at the entry: PG, WP, NE, ET, MP, PE.
pub const BOOT_CR0: u64 = 0x8001_0033;
/// CR4 at the entry: OSXMMEXCPT, OSFXSR, PAE.
pub const BOOT_CR4: u64 = 0x620;
/// IA32_EFER at the entry: NXE, LMA, LME, SCE.
pub const BOOT_EFER: u64 = 0xD01;
/// Where a position-independent image is loaded; nothing of the hypervisor's lies at or above it in RAM.
pub const IMAGE_BASE_GPA: u64 = 0x20_0000;
/// Most RAM of a VM of kind `native`: above it lies the platform's window.
pub const MAX_MEMORY_BYTES: u64 = DEVICE_SPACE_GPA;
/// Least RAM a VM can have.
pub const MIN_MEMORY_BYTES: u64 = 4 << 20;
/// From here to 4 GiB there is no RAM: what no device answers for reads as all ones, and writes go nowhere.
pub const DEVICE_SPACE_GPA: u64 = 3 << 30;
/// Where the hypervisor places the BARs of PCI devices.
pub const PCI_WINDOW_GPA: u64 = 0xE000_0000;
/// One past the last byte of that window.
pub const PCI_WINDOW_END_GPA: u64 = 0xE010_0000;
/// Where PCI devices' BARs of ports are when a guest starts; it may move them to any port from [`PCI_FIRST_PORT`] on.
pub const PCI_PORTS: core::ops::Range<u16> = 0xC000..0xD000;
/// Below it no BAR answers.
pub const PCI_FIRST_PORT: u16 = 0x1000;
/// The group page (read-only; [`crate::GroupPage`]), there if the VM is in a group.
pub const GROUP_PAGE_GPA: u64 = 0xFE00_0000;
/// The info page of vCPU 0 (read-only; [`crate::InfoPage`]); vCPU n has its own, n pages further.
pub const INFO_PAGE_GPA: u64 = 0xFE01_0000;
/// Most vCPUs of a VM.
pub const MAX_VCPUS: u32 = 8;

/// What a guest learns at its start. Written once by the hypervisor before the first entry, at [`BOOT_INFO_GPA`]; it lies in
/// the guest's own RAM, so that nobody else writes it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BootInfo {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// The VM's number, unique while the machine is up.
    pub vm_id: u32,
    /// Bytes of RAM from guest-physical address 0.
    pub memory_bytes: u64,
    /// First guest-physical byte of the loaded image.
    pub image_start_gpa: u64,
    /// One past the last byte of the loaded image (BSS included); RAM above is free.
    pub image_end_gpa: u64,
    /// TSC frequency in kHz.
    pub tsc_khz: u64,
    /// Guest-physical address of the group page, 0 if the VM is in no group.
    pub group_page_gpa: u64,
    /// Guest-physical address of vCPU 0's info page.
    pub info_page_gpa: u64,
    /// Guest-physical address of the command line.
    pub cmdline_gpa: u64,
    /// Bytes of the command line.
    pub cmdline_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// This VM's index in its group, `u32::MAX` if in none.
    pub member_index: u32,
    /// Where to *call* for a hypercall instead of executing VMCALL, 0 for VMCALL. Non-zero only when the image runs outside
    /// VMX as a bare loop to measure the floor: `extern "sysv64" fn(number, a1, a2, a3, a4, a5) -> i64`.
    pub bare_hypercall: u64,
    /// The VM's name, padded with zeros.
    pub name: [u8; NAME_BYTES],
}

const _: () = assert!(size_of::<BootInfo>() == 128);
const _: () = assert!(BOOT_CMDLINE_GPA + MAX_CMDLINE_BYTES as u64 <= BOOT_STACK_GUARD_GPA);
const _: () = assert!(BOOT_STACK_TOP_GPA < IMAGE_BASE_GPA && BOOT_STACK_TOP_GPA.is_multiple_of(16));
const _: () = assert!(MAX_MEMORY_BYTES <= PCI_WINDOW_GPA && PCI_WINDOW_END_GPA <= GROUP_PAGE_GPA);
