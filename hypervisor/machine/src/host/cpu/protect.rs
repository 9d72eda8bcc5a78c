//! GDT and TSS of each CPU, with separate stacks for NMI, double fault and machine check.
//!
//! Source: Intel SDM Vol. 3, "Protected-Mode Memory Management", "Interrupt Stack Table".

use alloc::boxed::Box;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use crate::host::paging;

/// Index in the interrupt-stack table of the double-fault stack.
pub const DOUBLE_FAULT_STACK: u16 = 0;
/// Of the NMI stack.
pub const NMI_STACK: u16 = 1;
/// Of the machine-check stack.
pub const MACHINE_CHECK_STACK: u16 = 2;

/// Selectors and bases that the host area of every VMCS on this CPU needs.
#[derive(Clone, Copy, Debug)]
pub struct HostSegments {
    /// 64-bit code segment.
    pub code: u16,
    /// Data segment.
    pub data: u16,
    /// Task-state segment.
    pub task: u16,
    /// Base of the task-state segment.
    pub task_base: u64,
}

/// Loads a GDT and a TSS of its own on the executing CPU. They live for ever.
///
/// # Errors
/// `None` when there is no memory for the stacks.
#[must_use]
pub fn load() -> Option<HostSegments> {
    let mut tss = Box::new(TaskStateSegment::new());
    for index in [DOUBLE_FAULT_STACK, NMI_STACK, MACHINE_CHECK_STACK] {
        tss.interrupt_stack_table[usize::from(index)] = paging::new_stack()?;
    }
    let tss: &'static TaskStateSegment = Box::leak(tss);
    let gdt: &'static mut GlobalDescriptorTable = Box::leak(Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    // FS and GS stay as they are: loading a selector would clear the GS base, which names the per-CPU state.
    // SAFETY: the selectors name flat segments of the GDT just loaded, which is never freed; the TSS is not busy.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
    }
    Some(HostSegments {
        code: code.0,
        data: data.0,
        task: task.0,
        task_base: VirtAddr::from_ptr(tss).as_u64(),
    })
}
