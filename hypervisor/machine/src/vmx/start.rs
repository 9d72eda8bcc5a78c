//! The state in which a vCPU begins: 64-bit mode as `guest_abi::boot` promises, flat 32-bit protected mode for kernels that boot
//! loaders start so (PVH, multiboot), or real mode at a start-up message's page.
//!
//! Source: Intel SDM Vol. 3, "Checking and Loading Guest State", "Processor State After Reset", "Typical BSP Initialization
//! Sequence"; the boot protocols' own documents.

use guest_abi::boot;
use nagaya_vmm::cpu::Segment;
use x86_defs::controls::{Entry, Exit};
use x86_defs::cr::{Cr0 as Cr0Bits, Cr4 as Cr4Bits};
use x86_defs::{msr, vmcs as field};

use crate::arch::GuestRegisters;
use crate::vmx::vmcs::LoadedVmcs;
use crate::vmx::{capabilities, cr};

// Access rights (SDM, "Guest Register State"): present, DPL 0, accessed.
const CODE_64: u32 = 0xA09B;
const CODE_32: u32 = 0xC09B;
const CODE_16: u32 = 0x009B;
const DATA_FLAT: u32 = 0xC093;
const DATA_16: u32 = 0x0093;
const BUSY_TSS: u32 = 0x8B;
const UNUSABLE: u32 = 1 << 16;
/// Limit of a segment in real mode.
const REAL_LIMIT: u32 = 0xFFFF;

const fn flat(selector: u16, rights: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        rights,
    }
}

/// Where a vCPU starts, and how.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// RIP.
    pub entry: u64,
    /// RSP.
    pub stack: u64,
    /// The other general registers.
    pub registers: GuestRegisters,
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// CS.
    pub code: Segment,
    /// All other segments.
    pub data: Segment,
    /// Base and limit of the GDT.
    pub gdtr: (u64, u32),
    /// Base and limit of the IDT.
    pub idtr: (u64, u32),
}

/// CR0 in 64-bit mode.
const CR0_LONG: u64 = Cr0Bits::PE
    .union(Cr0Bits::ET)
    .union(Cr0Bits::NE)
    .union(Cr0Bits::WP)
    .union(Cr0Bits::MP)
    .union(Cr0Bits::PG)
    .bits();
/// CR4 in 64-bit mode.
const CR4_LONG: u64 = Cr4Bits::PAE
    .union(Cr4Bits::OSFXSR)
    .union(Cr4Bits::OSXMMEXCPT)
    .bits();
/// IA32_EFER in 64-bit mode.
const EFER_LONG: u64 = msr::EFER_LME | msr::EFER_LMA | msr::EFER_NXE | msr::EFER_SCE;

// What the contract says of a native guest's entry is what it gets.
const _: () = assert!(CR0_LONG == boot::BOOT_CR0 && EFER_LONG == boot::BOOT_EFER);
const _: () = assert!(CR4_LONG == boot::BOOT_CR4);

impl Start {
    /// 64-bit mode with flat segments; no stack, no GDT.
    #[must_use]
    pub fn long(entry: u64, cr3: u64, code: u16, data: u16) -> Start {
        Start {
            entry,
            stack: 0,
            registers: GuestRegisters::default(),
            cr0: CR0_LONG,
            cr3,
            cr4: CR4_LONG,
            efer: EFER_LONG,
            code: flat(code, CODE_64),
            data: flat(data, DATA_FLAT),
            gdtr: (0, 0),
            idtr: (0, 0),
        }
    }

    /// vCPU 0 at the entry point of a native image.
    #[must_use]
    pub fn native(entry: u64) -> Start {
        Start {
            stack: boot::BOOT_STACK_POINTER,
            registers: GuestRegisters {
                rdi: boot::BOOT_INFO_GPA,
                ..GuestRegisters::default()
            },
            gdtr: (boot::BOOT_GDT_GPA, 23),
            ..Start::long(
                entry,
                boot::BOOT_PML4_GPA,
                boot::BOOT_CODE_SELECTOR,
                boot::BOOT_DATA_SELECTOR,
            )
        }
    }

    /// A further vCPU of a native guest, which shares the control registers and tables of the one that starts it.
    #[must_use]
    pub fn beside(cr3: u64, cr4: u64, efer: u64, gdtr: (u64, u32), idtr: (u64, u32)) -> Start {
        Start {
            cr3,
            cr4,
            efer,
            gdtr,
            idtr,
            ..Start::native(0)
        }
    }

    /// Flat 32-bit protected mode without paging: what PVH and multiboot promise.
    #[must_use]
    pub fn protected(entry: u32, registers: GuestRegisters) -> Start {
        Start {
            entry: u64::from(entry),
            stack: 0,
            registers,
            cr0: (Cr0Bits::PE | Cr0Bits::ET).bits(),
            cr3: 0,
            cr4: 0,
            efer: 0,
            code: flat(0x08, CODE_32),
            data: flat(0x10, DATA_FLAT),
            gdtr: (0, 0),
            idtr: (0, 0),
        }
    }

    /// Real mode at the page that a start-up message names, as after INIT.
    #[must_use]
    pub fn real(page: u8) -> Start {
        let data = Segment {
            selector: 0,
            base: 0,
            limit: REAL_LIMIT,
            rights: DATA_16,
        };
        Start {
            entry: 0,
            stack: 0,
            registers: GuestRegisters {
                // The signature, as after a reset.
                rdx: u64::from(core::arch::x86_64::__cpuid(1).eax),
                ..GuestRegisters::default()
            },
            cr0: (Cr0Bits::CD | Cr0Bits::NW | Cr0Bits::ET).bits(),
            cr3: 0,
            cr4: 0,
            efer: 0,
            code: Segment {
                selector: u16::from(page) << 8,
                base: u64::from(page) << 12,
                limit: REAL_LIMIT,
                rights: CODE_16,
            },
            data,
            gdtr: (0, REAL_LIMIT),
            idtr: (0, REAL_LIMIT),
        }
    }

    /// Writes the guest area, but for IA32_PAT, which INIT leaves as it is.
    pub fn write(&self, vmcs: &mut LoadedVmcs<'_>) {
        let capabilities = capabilities::get();
        debug_assert!(
            capabilities.entry.contains(Entry::LOAD_IA32_EFER)
                && capabilities.exit.contains(Exit::LOAD_IA32_EFER)
        );
        let mut entry = capabilities.entry;
        entry.set(Entry::IA32E_MODE_GUEST, self.efer & msr::EFER_LMA != 0);
        vmcs.write(field::ENTRY_CONTROLS, entry.bits());
        vmcs.write(field::GUEST_CR0, cr::real_cr0(self.cr0));
        vmcs.write(field::CR0_READ_SHADOW, self.cr0);
        vmcs.write(field::GUEST_CR3, self.cr3);
        vmcs.write(field::GUEST_CR4, cr::real_cr4(self.cr4));
        vmcs.write(field::CR4_READ_SHADOW, self.cr4);
        vmcs.write(field::GUEST_DR7, 0x400);
        vmcs.write(field::GUEST_RIP, self.entry);
        vmcs.write(field::GUEST_RSP, self.stack);
        vmcs.write(field::GUEST_RFLAGS, 2);
        self.write_segments(vmcs);
        vmcs.write(field::GUEST_INTERRUPTIBILITY, 0);
        vmcs.write(field::GUEST_ACTIVITY_STATE, 0);
        vmcs.write(field::GUEST_PENDING_DEBUG_EXCEPTIONS, 0);
        vmcs.write(field::VMCS_LINK_POINTER, u64::MAX);
        vmcs.write(field::GUEST_IA32_EFER, self.efer);
        vmcs.write(field::GUEST_IA32_DEBUGCTL, 0);
        vmcs.write(field::GUEST_IA32_SYSENTER_CS, 0);
        vmcs.write(field::GUEST_IA32_SYSENTER_ESP, 0);
        vmcs.write(field::GUEST_IA32_SYSENTER_EIP, 0);
    }

    fn write_segments(&self, vmcs: &mut LoadedVmcs<'_>) {
        for (segment, selector, base, limit, rights) in [
            (
                self.code,
                field::GUEST_CS_SELECTOR,
                field::GUEST_CS_BASE,
                field::GUEST_CS_LIMIT,
                field::GUEST_CS_ACCESS_RIGHTS,
            ),
            (
                self.data,
                field::GUEST_SS_SELECTOR,
                field::GUEST_SS_BASE,
                field::GUEST_SS_LIMIT,
                field::GUEST_SS_ACCESS_RIGHTS,
            ),
            (
                self.data,
                field::GUEST_DS_SELECTOR,
                field::GUEST_DS_BASE,
                field::GUEST_DS_LIMIT,
                field::GUEST_DS_ACCESS_RIGHTS,
            ),
            (
                self.data,
                field::GUEST_ES_SELECTOR,
                field::GUEST_ES_BASE,
                field::GUEST_ES_LIMIT,
                field::GUEST_ES_ACCESS_RIGHTS,
            ),
            (
                self.data,
                field::GUEST_FS_SELECTOR,
                field::GUEST_FS_BASE,
                field::GUEST_FS_LIMIT,
                field::GUEST_FS_ACCESS_RIGHTS,
            ),
            (
                self.data,
                field::GUEST_GS_SELECTOR,
                field::GUEST_GS_BASE,
                field::GUEST_GS_LIMIT,
                field::GUEST_GS_ACCESS_RIGHTS,
            ),
        ] {
            vmcs.write(selector, segment.selector);
            vmcs.write(base, segment.base);
            vmcs.write(limit, segment.limit);
            vmcs.write(rights, segment.rights);
        }
        vmcs.write(field::GUEST_LDTR_SELECTOR, 0);
        vmcs.write(field::GUEST_LDTR_BASE, 0);
        vmcs.write(field::GUEST_LDTR_LIMIT, 0);
        vmcs.write(field::GUEST_LDTR_ACCESS_RIGHTS, UNUSABLE);
        vmcs.write(field::GUEST_TR_SELECTOR, 0);
        vmcs.write(field::GUEST_TR_BASE, 0);
        vmcs.write(field::GUEST_TR_LIMIT, 0x67);
        vmcs.write(field::GUEST_TR_ACCESS_RIGHTS, BUSY_TSS);
        vmcs.write(field::GUEST_GDTR_BASE, self.gdtr.0);
        vmcs.write(field::GUEST_GDTR_LIMIT, self.gdtr.1);
        vmcs.write(field::GUEST_IDTR_BASE, self.idtr.0);
        vmcs.write(field::GUEST_IDTR_LIMIT, self.idtr.1);
    }
}
