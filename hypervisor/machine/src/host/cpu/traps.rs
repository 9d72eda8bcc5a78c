//! The IDT: exceptions end the hypervisor with a dump; NMIs and the two interrupts only leave marks.
//!
//! The hypervisor runs with interrupts off except in the idle loop and for one instruction after an exit by an external
//! interrupt. NMIs can come at any time: their handler touches atomics, CR3 and what
//! [`NmiWork`] says.
//!
//! Source: Intel SDM Vol. 3, "Interrupt and Exception Handling".

use core::sync::atomic::Ordering;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::structures::idt::InterruptDescriptorTable;

use crate::host::cpu::percpu::PerCpu;
use crate::host::cpu::trap_frame::TrapFrame;
use crate::host::cpu::{apic, protect};
use crate::host::{paging, stop};

/// Bytes between two entry stubs.
const STUB_BYTES: u64 = 16;

#[cfg(target_os = "none")]
core::arch::global_asm!(
    // One stub for each vector, 16 bytes apart: an error code (0 where the CPU pushes none), the vector, the common part.
    ".balign 16",
    ".global nagaya_trap_stubs",
    "nagaya_trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp nagaya_trap_common",
    ".set vector, vector + 1",
    ".endr",
    "nagaya_trap_common:",
    "push rax", "push rbx", "push rcx", "push rdx", "push rsi", "push rdi", "push rbp",
    "push r8", "push r9", "push r10", "push r11", "push r12", "push r13", "push r14", "push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {handler}",
    "mov rsp, rbp",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
    "pop rbp", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rbx", "pop rax",
    "add rsp, 16",
    "iretq",
    handler = sym handle,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    #[link_name = "nagaya_trap_stubs"]
    static STUBS: u8;
}

fn stub_address(vector: u8) -> VirtAddr {
    #[cfg(target_os = "none")]
    // The address only is taken; nothing is read.
    let base = (&raw const STUBS).expose_provenance() as u64;
    #[cfg(not(target_os = "none"))]
    let base = 0;
    VirtAddr::new(base + u64::from(vector) * STUB_BYTES)
}

static IDT: Once<InterruptDescriptorTable> = Once::new();

/// Loads the IDT, one for all CPUs, on the executing one. `protect::load` must have run there: the special stacks are its TSS's.
pub fn load() {
    let idt = IDT.call_once(|| {
        let mut idt = InterruptDescriptorTable::new();
        macro_rules! set {
            ($($field:ident = $vector:literal),* $(,)?) => {
                $(
                    // SAFETY: the stub at that address takes exactly this vector, with or without error code as the CPU
                    // pushes it.
                    unsafe { idt.$field.set_handler_addr(stub_address($vector)) };
                )*
            };
        }
        set!(
            divide_error = 0,
            debug = 1,
            breakpoint = 3,
            overflow = 4,
            bound_range_exceeded = 5,
            invalid_opcode = 6,
            device_not_available = 7,
            invalid_tss = 10,
            segment_not_present = 11,
            stack_segment_fault = 12,
            general_protection_fault = 13,
            page_fault = 14,
            x87_floating_point = 16,
            alignment_check = 17,
            simd_floating_point = 19,
            virtualization = 20,
            cp_protection_exception = 21,
        );
        // SAFETY: as above; each special stack belongs to one vector only and exists in every CPU's TSS.
        unsafe {
            idt.double_fault
                .set_handler_addr(stub_address(8))
                .set_stack_index(protect::DOUBLE_FAULT_STACK);
            idt.non_maskable_interrupt
                .set_handler_addr(stub_address(2))
                .set_stack_index(protect::NMI_STACK);
            idt.machine_check
                .set_handler_addr(stub_address(18))
                .set_stack_index(protect::MACHINE_CHECK_STACK);
        }
        for vector in 32..=255_u8 {
            // SAFETY: as above.
            unsafe { idt[vector].set_handler_addr(stub_address(vector)) };
        }
        idt
    });
    idt.load();
}

#[cfg_attr(
    not(target_os = "none"),
    expect(
        dead_code,
        reason = "called by the stubs, which exist on bare metal only"
    )
)]
extern "sysv64" fn handle(frame: &TrapFrame) {
    match frame.vector as u8 {
        2 => nmi(frame),
        vector if vector >= 32 => interrupted(vector),
        _ => stop::trapped(frame),
    }
}

/// The work of an interrupt, whether it came in host mode (through the IDT) or ended a guest's run: it has nothing to do but end
/// a sleep or that run.
#[inline]
pub fn interrupted(vector: u8) {
    match vector {
        apic::KICK_VECTOR | apic::TIMER_VECTOR => acknowledge(),
        apic::SPURIOUS_VECTOR => {}
        _ => {
            acknowledge();
            log::warn!("interrupt with vector {vector} that nobody asked for");
        }
    }
}

fn acknowledge() {
    PerCpu::current().with_apic(apic::Apic::end_of_interrupt);
}

/// What the layers above do in NMIs: a table of functions, set once at boot. Both may touch atomics only, and the second one VMCS field.
#[derive(Clone, Copy, Debug)]
pub struct NmiWork {
    /// Looks whether the NMI came from a device that somebody waits for.
    pub note_device: fn(&PerCpu),
    /// Makes the next entry of a guest on the executing CPU end at once.
    pub end_next_entry: fn(&PerCpu),
}

static NMI_WORK: Once<NmiWork> = Once::new();

/// Sets the table. The first call counts; NMIs before it only do what this layer needs.
pub fn set_nmi_work(work: NmiWork) {
    NMI_WORK.call_once(|| work);
}

/// An NMI in host mode.
fn nmi(frame: &TrapFrame) {
    let cpu = PerCpu::current();
    cpu.watch.copy_stack(frame.rip, frame.rsp);
    attend_nmi(cpu);
    // The NMI may have come between the run loop's last look at its marks and the entry of a guest.
    if let Some(work) = NMI_WORK.get() {
        (work.end_next_entry)(cpu);
    }
}

/// An NMI that ended a guest's run. True if the preemption timer has to be armed anew.
pub fn nmi_ended_run(cpu: &PerCpu) -> bool {
    if cpu.watch.wants_stack() {
        // SAFETY: vector 2's handler may run at any point in the hypervisor.
        unsafe { core::arch::asm!("int 2") };
        return true;
    }
    attend_nmi(cpu);
    // The exit leaves NMIs blocked until an IRET. The handler, which ends with one, does more than is needed here.
    // SAFETY: returns to the next instruction with stack, flags and segments as they are.
    unsafe {
        core::arch::asm!(
            "mov {stack}, rsp",
            "mov {selector:e}, ss",
            "push {selector}",
            "push {stack}",
            "pushfq",
            "mov {selector:e}, cs",
            "push {selector}",
            "lea {stack}, [rip + 2f]",
            "push {stack}",
            "iretq",
            "2:",
            stack = out(reg) _,
            selector = out(reg) _,
        );
    }
    false
}

/// What any NMI is for.
fn attend_nmi(cpu: &PerCpu) {
    cpu.nmis.fetch_add(1, Ordering::Relaxed);
    if stop::is_stopping() {
        stop::halt_stopped();
    }
    paging::flush_if_stale(cpu);
    if let Some(work) = NMI_WORK.get() {
        (work.note_device)(cpu);
    }
}
