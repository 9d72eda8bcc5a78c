//! Segments of the new task.
//!
//! All selectors are in their registers before the first descriptor is looked at. A register whose descriptor has not been loaded
//! cannot be used; CS, which has to be usable for the CPU to run at all, is flat until then: nothing is fetched through it, for what
//! comes next is the fault's handler.

use x86_defs::cr::Rflags;

use super::descriptor::{self, Descriptor};
use super::{Fault, LinearMemory, NP, SS, TS, TaskRegisters};
use crate::cpu::segment::UNUSABLE;
use crate::cpu::{Segment, SegmentRegister};

const VIRTUAL_8086: u32 = Rflags::VM.bits() as u32;
/// Access rights of every segment in virtual-8086 mode: present, DPL 3, data, writable, accessed.
const RIGHTS_8086: u32 = 0xF3;
/// Of code that is flat, without its DPL.
const FLAT_CODE: u32 = 0xC09B;

/// The privilege level at which the task runs: RPL of CS.
fn privilege(registers: &TaskRegisters) -> u16 {
    if registers.eflags & VIRTUAL_8086 != 0 {
        3
    } else {
        registers.segment(SegmentRegister::Cs).selector & 3
    }
}

/// Puts the selectors into their registers.
pub(super) fn selectors(registers: &mut TaskRegisters, selectors: [u16; 6], ldt: u16) {
    let unusable = |selector, dpl: u16| Segment {
        selector,
        base: 0,
        limit: 0,
        rights: UNUSABLE | u32::from(dpl) << 5,
    };
    registers.ldtr = unusable(ldt, 0);
    let is_8086 = registers.eflags & VIRTUAL_8086 != 0;
    let [_, code, ..] = selectors;
    let level = if is_8086 { 3 } else { code & 3 };
    for (register, selector) in SegmentRegister::ALL.into_iter().zip(selectors) {
        let segment = match register {
            _ if is_8086 => Segment {
                selector,
                base: u64::from(selector) << 4,
                limit: 0xFFFF,
                rights: RIGHTS_8086,
            },
            SegmentRegister::Cs => Segment {
                selector,
                base: 0,
                limit: u32::MAX,
                rights: FLAT_CODE | u32::from(level) << 5,
            },
            SegmentRegister::Ss => unusable(selector, level),
            _ => unusable(selector, 0),
        };
        registers.set_segment(register, segment);
    }
}

/// Loads what the selectors name.
pub(super) fn segments(
    registers: &mut TaskRegisters,
    memory: &impl LinearMemory,
) -> Result<(), Fault> {
    local_table(registers, memory)?;
    if registers.eflags & VIRTUAL_8086 != 0 {
        return Ok(());
    }
    let order = [
        SegmentRegister::Ss,
        SegmentRegister::Cs,
        SegmentRegister::Es,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ];
    order
        .into_iter()
        .try_for_each(|register| segment(registers, memory, register))
}

fn local_table(registers: &mut TaskRegisters, memory: &impl LinearMemory) -> Result<(), Fault> {
    const LDT: u32 = 2;
    let selector = registers.ldtr.selector;
    if selector & !3 == 0 {
        return Ok(());
    }
    let bad = Fault::Selector(TS, selector);
    if selector & 4 != 0 {
        return Err(bad);
    }
    let found = descriptor::fetch(registers, memory, selector)?.ok_or(bad)?;
    if found.system_type() != Some(LDT) || !found.is_present() {
        return Err(bad);
    }
    registers.ldtr = found.segment(selector);
    Ok(())
}

fn segment(
    registers: &mut TaskRegisters,
    memory: &impl LinearMemory,
    register: SegmentRegister,
) -> Result<(), Fault> {
    let selector = registers.segment(register).selector;
    let bad = Fault::Selector(TS, selector);
    let level = privilege(registers);
    if selector & !3 == 0 {
        return match register {
            SegmentRegister::Ss | SegmentRegister::Cs => Err(bad),
            _ => Ok(()),
        };
    }
    let found = descriptor::fetch(registers, memory, selector)?.ok_or(bad)?;
    qualify(found, register, selector, level)?;
    if !found.is_accessed() {
        descriptor::set_accessed(registers, memory, selector)?;
    }
    registers.set_segment(register, found.segment(selector));
    Ok(())
}

/// Whether a descriptor may be loaded there at a privilege level.
fn qualify(
    found: Descriptor,
    register: SegmentRegister,
    selector: u16,
    level: u16,
) -> Result<(), Fault> {
    let (dpl, rpl) = (found.dpl(), selector & 3);
    let present_or = |vector| {
        if found.is_present() {
            Ok(())
        } else {
            Err(Fault::Selector(vector, selector))
        }
    };
    let must = |holds: bool| {
        if holds {
            Ok(())
        } else {
            Err(Fault::Selector(TS, selector))
        }
    };
    match register {
        SegmentRegister::Ss => {
            must(found.is_writable())?;
            present_or(SS)?;
            must(dpl == level && rpl == level)
        }
        SegmentRegister::Cs => {
            must(found.is_code())?;
            must(if found.is_conforming() {
                dpl <= rpl
            } else {
                dpl == rpl
            })?;
            present_or(NP)
        }
        _ => {
            must(found.is_readable())?;
            must(found.is_conforming() || dpl >= level.max(rpl))?;
            present_or(NP)
        }
    }
}
