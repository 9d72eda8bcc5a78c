//! Interrupts and exceptions in 64-bit mode, and the gates for those in 32-bit mode.
//!
//! Exceptions that a case provokes go on at its fix-up; all others end the VM. Interrupts are counted by vector and ended at
//! whoever sent them.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::boot::{CODE_32, CODE_64};
use crate::cpu::{out8, write};
use crate::power;
use crate::serial::line;

/// No exception came.
pub(crate) const NONE: u32 = 0xFF;
/// The vector of NMIs.
pub(crate) const NMI: u8 = 2;
/// Vectors below are exceptions.
const FIRST_INTERRUPT: u64 = 0x20;

/// Tells whoever sent an interrupt of that vector that it has been handled.
pub(crate) type End = fn(u8);

/// The 8259As.
pub(crate) fn end_at_pic(vector: u8) {
    if vector >= 0x28 {
        out8(0xA0, 0x20);
    }
    out8(0x20, 0x20);
}

/// The local APIC, by its page.
pub(crate) fn end_at_apic(_vector: u8) {
    write(0xFEE0_00B0, 0_u32);
}

static mut END: End = end_at_pic;
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// What the stubs push, from the top of the stack up.
#[derive(Debug)]
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    error_code: u64,
    rip: u64,
}

unsafe extern "C" {
    static stubs_64: u8;
    static stubs_32: u8;
    static idt_32: u8;
    static mut idt_64: [u64; 512];
    static mut fixup_64: u64;
    static mut fault_vector: u32;
    static mut fault_error: u32;
    fn load_idt_64();
}

/// The last exception: its vector and error code.
static FAULT: AtomicU64 = AtomicU64::new(0);

/// The error code of the last exception.
pub(crate) fn last_error_code() -> u32 {
    FAULT.load(Ordering::SeqCst) as u32
}

/// How many interrupts came with this vector.
pub(crate) fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::SeqCst)
}

/// From now on interrupts are ended by that.
pub(crate) fn end_by(end: End) {
    // SAFETY: one vCPU runs Rust code, and a function's address is written by one instruction: a handler sees the old or the new.
    unsafe { core::ptr::addr_of_mut!(END).write_volatile(end) };
}

/// Fills and loads the tables.
pub(crate) fn start() {
    {
        const STUB_BYTES: u64 = 16;
        let first = core::ptr::addr_of!(stubs_64) as u64;
        for vector in 0..256 {
            let stub = first + vector * STUB_BYTES;
            let low =
                stub & 0xFFFF | u64::from(CODE_64) << 16 | 0x8E << 40 | (stub & 0xFFFF_0000) << 32;
            // SAFETY: the table has two words for each of 256 vectors, and is not loaded yet.
            unsafe { idt_64[vector as usize * 2] = low };
        }
        let first = core::ptr::addr_of!(stubs_32) as u64;
        let table = core::ptr::addr_of!(idt_32) as *mut u64;
        for vector in 0..64 {
            let stub = first + vector * STUB_BYTES;
            let gate =
                stub & 0xFFFF | u64::from(CODE_32) << 16 | 0x8E << 40 | (stub & 0xFFFF_0000) << 32;
            // SAFETY: the table has a word for each of 64 vectors, and is not loaded yet.
            unsafe { table.add(vector as usize).write_volatile(gate) };
        }
        // SAFETY: every gate leads to a stub.
        unsafe { load_idt_64() };
    }
}

/// Called by the stubs.
#[unsafe(no_mangle)]
extern "C" fn handle_interrupt(frame: &mut Frame) {
    COUNTS[frame.vector as usize & 0xFF].fetch_add(1, Ordering::SeqCst);
    if frame.vector == u64::from(NMI) {
        // Counted; nobody is to be told.
    } else if frame.vector < FIRST_INTERRUPT {
        exception(frame);
    } else {
        // SAFETY: as in `end_by`.
        let end = unsafe { core::ptr::addr_of!(END).read_volatile() };
        end(frame.vector as u8);
    }
}

fn exception(frame: &mut Frame) {
    FAULT.store(frame.error_code, Ordering::SeqCst);
    // SAFETY: one vCPU, and the probes read these when the handler has returned.
    let fixup = unsafe {
        fault_vector = frame.vector as u32;
        fault_error = frame.error_code as u32;
        core::mem::replace(&mut *core::ptr::addr_of_mut!(fixup_64), 0)
    };
    if fixup == 0 {
        line(format_args!("FAIL kernel: exception {frame:x?}"));
        power::end(102);
    }
    frame.rip = fixup;
}

core::arch::global_asm!(
    r#"
    .pushsection .boot, "ax"
    .code64
    .balign 16
    .globl stubs_64
stubs_64:
    .set stub_vector, 0
    .rept 256
    .balign 16
    .if (stub_vector == 8) || ((stub_vector >= 10) && (stub_vector <= 14)) || (stub_vector == 17) || (stub_vector == 21)
    .else
    pushq $0
    .endif
    pushq $stub_vector
    jmp common_64
    .set stub_vector, stub_vector + 1
    .endr
common_64:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    cld
    movq %rsp, %rbp
    andq $-16, %rsp
    call handle_interrupt
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    .globl load_idt_64
load_idt_64:
    lidt idt_64_pointer(%rip)
    retq
idt_64_pointer:
    .word 256 * 16 - 1
    .quad idt_64

    // In 32-bit mode: exceptions go on at the fix-up with the stack that it was set with; interrupts are counted and ended at
    // the first 8259A, to which an end that it does not wait for means nothing.
    .code32
    .balign 16
    .globl stubs_32
stubs_32:
    .set stub_vector, 0
    .rept 64
    .balign 16
    .if (stub_vector == 8) || ((stub_vector >= 10) && (stub_vector <= 14)) || (stub_vector == 17) || (stub_vector == 21)
    .else
    pushl $0
    .endif
    pushl $stub_vector
    jmp common_32
    .set stub_vector, stub_vector + 1
    .endr
common_32:
    cmpl $0x20, (%esp)
    jae 1f
    popl fault_vector
    popl fault_error
    movl fault_stack, %esp
    jmp *fixup_32
1:  addl $8, %esp
    incl interrupts_32
    pushl %eax
    movb $0x20, %al
    outb %al, $0x20
    popl %eax
    iretl
    .popsection

    .pushsection .bss.interrupts, "aw", @nobits
    .balign 16
    .globl idt_64
idt_64:         .skip 4096
    .globl fixup_64
fixup_64:       .skip 8
    .globl fault_vector
fault_vector:   .skip 4
    .globl fault_error
fault_error:    .skip 4
    .globl fixup_32
fixup_32:       .skip 4
    .globl fault_stack
fault_stack:    .skip 4
    .globl interrupts_32
interrupts_32:  .skip 4
    .popsection
"#,
    options(att_syntax)
);
