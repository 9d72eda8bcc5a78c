//! The segment registers of the VMCS, and what a task switch reads and changes.
//!
//! Source: Intel SDM Vol. 3, "Guest Register State".

use nagaya_vmm::cpu::task::TaskRegisters;
use nagaya_vmm::cpu::{CpuState, Segment, SegmentRegister};
use x86_defs::vmcs::{self as field, Field, Natural, ReadWrite, W16, W32};

use crate::vmx::vmcs::LoadedVmcs;

/// The fields of a segment register: selector, base, limit, access rights.
type SegmentFields = (
    Field<W16, ReadWrite>,
    Field<Natural, ReadWrite>,
    Field<W32, ReadWrite>,
    Field<W32, ReadWrite>,
);

macro_rules! segment_fields {
    ($selector:ident, $base:ident, $limit:ident, $rights:ident) => {
        (
            field::$selector,
            field::$base,
            field::$limit,
            field::$rights,
        )
    };
}

/// In the order of their numbers in instructions.
#[rustfmt::skip]
const SEGMENTS: [SegmentFields; 6] = [
    segment_fields!(GUEST_ES_SELECTOR, GUEST_ES_BASE, GUEST_ES_LIMIT, GUEST_ES_ACCESS_RIGHTS),
    segment_fields!(GUEST_CS_SELECTOR, GUEST_CS_BASE, GUEST_CS_LIMIT, GUEST_CS_ACCESS_RIGHTS),
    segment_fields!(GUEST_SS_SELECTOR, GUEST_SS_BASE, GUEST_SS_LIMIT, GUEST_SS_ACCESS_RIGHTS),
    segment_fields!(GUEST_DS_SELECTOR, GUEST_DS_BASE, GUEST_DS_LIMIT, GUEST_DS_ACCESS_RIGHTS),
    segment_fields!(GUEST_FS_SELECTOR, GUEST_FS_BASE, GUEST_FS_LIMIT, GUEST_FS_ACCESS_RIGHTS),
    segment_fields!(GUEST_GS_SELECTOR, GUEST_GS_BASE, GUEST_GS_LIMIT, GUEST_GS_ACCESS_RIGHTS),
];
#[rustfmt::skip]
const LDTR: SegmentFields =
    segment_fields!(GUEST_LDTR_SELECTOR, GUEST_LDTR_BASE, GUEST_LDTR_LIMIT, GUEST_LDTR_ACCESS_RIGHTS);
#[rustfmt::skip]
const TR: SegmentFields =
    segment_fields!(GUEST_TR_SELECTOR, GUEST_TR_BASE, GUEST_TR_LIMIT, GUEST_TR_ACCESS_RIGHTS);

fn segment(vmcs: &LoadedVmcs<'_>, (selector, base, limit, rights): SegmentFields) -> Segment {
    Segment {
        selector: vmcs.read(selector),
        base: vmcs.read(base),
        limit: vmcs.read(limit),
        rights: vmcs.read(rights),
    }
}

/// A segment that data accesses go through.
pub(super) fn data_segment(vmcs: &LoadedVmcs<'_>, register: SegmentRegister) -> Segment {
    let [es, cs, ss, ds, fs, gs] = SEGMENTS;
    segment(
        vmcs,
        match register {
            SegmentRegister::Es => es,
            SegmentRegister::Cs => cs,
            SegmentRegister::Ss => ss,
            SegmentRegister::Ds => ds,
            SegmentRegister::Fs => fs,
            SegmentRegister::Gs => gs,
        },
    )
}

fn set_segment(vmcs: &mut LoadedVmcs<'_>, fields: SegmentFields, segment: Segment) {
    let (selector, base, limit, rights) = fields;
    vmcs.write(selector, segment.selector);
    vmcs.write(base, segment.base);
    vmcs.write(limit, segment.limit);
    vmcs.write(rights, segment.rights);
}

/// All but the general registers, which are 0.
pub(super) fn task_registers(vmcs: &LoadedVmcs<'_>) -> TaskRegisters {
    TaskRegisters {
        general: [0; 8],
        eip: vmcs.rip() as u32,
        eflags: vmcs.rflags() as u32,
        cr0: vmcs.cr0(),
        cr3: vmcs.read(field::GUEST_CR3),
        dr7: vmcs.dr7(),
        segments: SEGMENTS.map(|fields| segment(vmcs, fields)),
        ldtr: segment(vmcs, LDTR),
        tr: segment(vmcs, TR),
        gdtr: (
            vmcs.read(field::GUEST_GDTR_BASE) as u32,
            vmcs.read(field::GUEST_GDTR_LIMIT),
        ),
    }
}

/// Sets all but the general registers.
pub(super) fn set_task_registers(vmcs: &mut LoadedVmcs<'_>, registers: &TaskRegisters) {
    vmcs.set_rip(registers.eip.into());
    vmcs.set_rflags(registers.eflags.into());
    // What changes of CR0 is TS, which is the guest's own.
    vmcs.write(field::GUEST_CR0, registers.cr0);
    vmcs.write(field::GUEST_CR3, registers.cr3);
    vmcs.set_dr7(registers.dr7);
    for (fields, value) in SEGMENTS.into_iter().zip(registers.segments) {
        set_segment(vmcs, fields, value);
    }
    set_segment(vmcs, LDTR, registers.ldtr);
    set_segment(vmcs, TR, registers.tr);
}
