//! A vCPU's registers out of its VMCS, for dumps.

use nagaya_vmm::control::{Registers, Segment, Table};
use x86_defs::vmcs as field;

use crate::arch::GuestRegisters;

/// Those of a vCPU whose VMCS `read` reads by encoding (0 for what is not there).
pub(super) fn registers(
    general: &GuestRegisters,
    cr2: u64,
    read: impl Fn(u32) -> u64,
) -> Registers {
    // Selectors, limits, access rights and bases lie 2 apart, in the order ES, CS, SS, DS, FS, GS, LDTR, TR.
    let segment = |index: u32| Segment {
        selector: read(field::GUEST_ES_SELECTOR.encoding() + 2 * index) as u16,
        base: read(field::GUEST_ES_BASE.encoding() + 2 * index),
        limit: read(field::GUEST_ES_LIMIT.encoding() + 2 * index) as u32,
        access: read(field::GUEST_ES_ACCESS_RIGHTS.encoding() + 2 * index) as u32,
    };
    Registers {
        general: [
            general.rax,
            general.rcx,
            general.rdx,
            general.rbx,
            read(field::GUEST_RSP.encoding()),
            general.rbp,
            general.rsi,
            general.rdi,
            general.r8,
            general.r9,
            general.r10,
            general.r11,
            general.r12,
            general.r13,
            general.r14,
            general.r15,
        ],
        rip: read(field::GUEST_RIP.encoding()),
        rflags: read(field::GUEST_RFLAGS.encoding()),
        cr0: read(field::GUEST_CR0.encoding()),
        cr2,
        cr3: read(field::GUEST_CR3.encoding()),
        cr4: read(field::GUEST_CR4.encoding()),
        efer: read(field::GUEST_IA32_EFER.encoding()),
        segments: core::array::from_fn(|index| segment(index as u32)),
        ldtr: segment(6),
        tr: segment(7),
        gdtr: Table {
            base: read(field::GUEST_GDTR_BASE.encoding()),
            limit: read(field::GUEST_GDTR_LIMIT.encoding()) as u32,
        },
        idtr: Table {
            base: read(field::GUEST_IDTR_BASE.encoding()),
            limit: read(field::GUEST_IDTR_LIMIT.encoding()) as u32,
        },
    }
}
