//! Task switches by hardware: JMP, CALL and IRET, gates in the IDT, the old format of a TSS, and their faults.
//!
//! Source: Intel SDM Vol. 3, "Task Management".

use core::ptr::addr_of;

use crate::boot;
use crate::cpu::{read, write};
use crate::report::Report;
use crate::timers;

/// A GDT, then TSSs, each a page with its task's stack behind it. The assembler below knows these numbers.
const GDT: u64 = 0x0080_0000;
const fn tss(index: u64) -> u64 {
    GDT + 0x1000 + index * 0x1000
}
/// Their selectors: 0x30, 0x38 and so on.
const FIRST_SELECTOR: u64 = 0x30;
/// Where a TSS of 16 bits finds its code, and its stack's top.
const LOW_CODE: u64 = 0xB000;
const LOW_STACK: u32 = 0x7000;

const CODE: u32 = 0x08;
const DATA: u32 = 0x10;
const NOT_THERE: u32 = 0x1230;

unsafe extern "C" {
    static task_results: [u32; 24];
    static through_tasks: u8;
    static task_two: u8;
    static task_undefined: u8;
    static task_protection: u8;
    static task_low: u8;
    static task_low_end: u8;
    static task_back: u8;
    static task_timer: u8;
    static boot_gdt: u8;
    static idt_32: u8;
}

/// The tasks, in the order of their selectors. The first is that which runs already.
const ONE: u64 = 0;
const TWO: u64 = 1;
const UNDEFINED: u64 = 2;
const PROTECTION: u64 = 3;
const LOW: u64 = 4;
const TRAPPED: u64 = 5;
const ABSENT: u64 = 6;
const BAD_SEGMENT: u64 = 7;
const TIMER: u64 = 8;

fn set_descriptor(index: u64, rights: u64, limit: u64) {
    let base = tss(index);
    let low = limit | (base & 0xFF_FFFF) << 16 | rights << 40 | base >> 24 << 56;
    write(GDT + FIRST_SELECTOR + index * 8, low);
}

fn set_task(index: u64, code: *const u8) {
    const AVAILABLE: u64 = 0x89;
    for offset in (0..0x68).step_by(4) {
        write(tss(index) + offset, 0_u32);
    }
    let stack = tss(index) as u32 + 0x1000;
    for (offset, value) in [
        (0x20, code as u32),
        (0x24, 2),
        (0x38, stack),
        (0x48, DATA),
        (0x4C, CODE),
        (0x50, DATA),
        (0x54, DATA),
        (0x64, 0x68 << 16),
    ] {
        write(tss(index) + offset, value);
    }
    set_descriptor(index, AVAILABLE, 0x67);
}

/// A gate of the 32-bit IDT becomes one to a task; what it was.
fn set_gate(vector: usize, task: u64) -> u64 {
    const TASK_GATE: u64 = 0x85;
    let selector = FIRST_SELECTOR + task * 8;
    let gate = selector << 16 | TASK_GATE << 40;
    // SAFETY: the table has 64 words, and is loaded in excursions only.
    unsafe {
        let at = (addr_of!(idt_32) as *mut u64).add(vector);
        let before = at.read_volatile();
        at.write_volatile(gate);
        before
    }
}

fn restore_gate(vector: usize, gate: u64) {
    // SAFETY: as above.
    unsafe {
        (addr_of!(idt_32) as *mut u64)
            .add(vector)
            .write_volatile(gate)
    };
}

fn prepare() {
    for offset in (0..FIRST_SELECTOR).step_by(8) {
        write(
            GDT + offset,
            read::<u64>(addr_of!(boot_gdt) as u64 + offset),
        );
    }
    for (index, code) in [
        (ONE, addr_of!(task_two)),
        (TWO, addr_of!(task_two)),
        (UNDEFINED, addr_of!(task_undefined)),
        (PROTECTION, addr_of!(task_protection)),
        (TRAPPED, addr_of!(task_back)),
        (ABSENT, addr_of!(task_two)),
        (BAD_SEGMENT, addr_of!(task_two)),
        (TIMER, addr_of!(task_timer)),
    ] {
        set_task(index, code);
    }
    set_descriptor(ABSENT, 0x09, 0x67);
    write(tss(TRAPPED) + 0x64, 1_u32 | 0x68 << 16);
    // GS, which is loaded last: the handler has the others.
    write(tss(BAD_SEGMENT) + 0x5C, NOT_THERE);
    // The old format: IP, FLAGS, SP and selectors, 16 bits each.
    let start = addr_of!(task_low) as u64;
    for offset in 0..addr_of!(task_low_end) as u64 - start {
        write(LOW_CODE + offset, read::<u8>(start + offset));
    }
    for offset in (0..0x2C).step_by(2) {
        write(tss(LOW) + offset, 0_u16);
    }
    for (offset, value) in [
        (0x0E, LOW_CODE as u32),
        (0x10, 2),
        (0x12, 0x1234),
        (0x1A, LOW_STACK),
        (0x22, DATA),
        (0x24, CODE),
        (0x26, DATA),
        (0x28, DATA),
    ] {
        write(tss(LOW) + offset, value as u16);
    }
    set_descriptor(LOW, 0x81, 0x2B);
}

pub(crate) fn check(report: &mut Report) {
    const NESTED: u32 = 1 << 14;
    const TASK_SWITCHED: u32 = 8;
    prepare();
    let gates = [(6, UNDEFINED), (13, PROTECTION), (0x20, TIMER)];
    let before = gates.map(|(vector, task)| (vector, set_gate(vector, task)));
    timers::start_pic(0x20);
    timers::start_pit(100);
    boot::excursion(addr_of!(through_tasks) as u32);
    timers::stop_pit();
    timers::mask_pic();
    for (vector, gate) in before {
        restore_gate(vector, gate);
    }
    // SAFETY: the routine has written them and is done. Volatile, since the compiler did not see that.
    let found = unsafe { addr_of!(task_results).read_volatile() };
    report.equal(
        "task-jump",
        (found[0], found[1] & TASK_SWITCHED),
        (1, TASK_SWITCHED),
    );
    report.equal(
        "task-call",
        (found[2], found[3] & NESTED, found[4] & NESTED),
        (2, NESTED, 0),
    );
    report.equal("task-call-link", read::<u16>(tss(TWO)), 0x30);
    report.equal("task-gate", found[5], 1);
    report.equal(
        "task-gate-error-code",
        (found[19], found[20]),
        (1, NOT_THERE),
    );
    report.equal("task-of-16-bits", (found[8], found[9]), (1, 0x1234));
    report.equal("task-trap", found[10] & 0x8000, 0x8000);
    report.equal("task-absent", (found[11], found[12]), (11, 0x60));
    report.equal("task-bad-segment", (found[13], found[14]), (10, NOT_THERE));
    report.equal("task-busy", (found[6], found[7]), (1, 0x30));
    report.check("task-interrupt", found[17] >= 3, found[17]);
    // The first task's registers came back each time.
    report.equal("task-registers", found[18], 0x5EED_5EED);
}

core::arch::global_asm!(
    r#"
    .pushsection .boot, "ax"
    .code32
    .set tss_one, 0x801000
    .globl through_tasks
through_tasks:
    lgdt task_gdt_pointer
    movl $0x30, %eax
    ltr %ax
    movl $0x5EED5EED, %ebp

    movl $0, task_runs
    ljmp $0x38, $0
    movl task_runs, %eax
    movl %eax, task_results
    movl %cr0, %eax
    movl %eax, task_results+4
    clts

    lcall $0x38, $0
    pushfl
    popl task_results+16
    movl task_runs, %eax
    movl %eax, task_results+8
    movl task_flags, %eax
    movl %eax, task_results+12

    movl $0, task_results+20
    ud2

    movl $0, task_results+24
    movl $0x1230, %eax
    movl %eax, %fs
    movl task_results+24, %eax
    movl %eax, task_results+76
    movl task_results+28, %eax
    movl %eax, task_results+80

    movl $0, task_results+32
    ljmp $0x50, $0

    // A debug trap in the new task.
    movl $0xFFFF0FF0, %eax
    movl %eax, %dr6
    movl $0x807000, fault_stack
    movl $1f, fixup_32
    ljmp $0x58, $0
    jmp 2f
1:  movl %dr6, %eax
    movl %eax, task_results+40
    ljmp $0x30, $0
2:
    movl $0xFF, fault_vector
    movl $1f, fixup_32
    movl %esp, fault_stack
    ljmp $0x60, $0
1:  movl fault_vector, %eax
    movl %eax, task_results+44
    movl fault_error, %eax
    movl %eax, task_results+48

    // A fault in the new task.
    movl $0xFF, fault_vector
    movl $1f, fixup_32
    movl $0x809000, fault_stack
    ljmp $0x68, $0
    jmp 2f
1:  movl fault_vector, %eax
    movl %eax, task_results+52
    movl fault_error, %eax
    movl %eax, task_results+56
    ljmp $0x30, $0
2:
    // To itself. Its gate leads to a task that steps over the 7 bytes.
    movl $0, task_results+24
    movl $5, task_step
    ljmp $0x30, $0

    movl $0, task_timers
3:  sti
    hlt
    cli
    cmpl $3, task_timers
    jb 3b
    movl task_timers, %eax
    movl %eax, task_results+68
    movl %ebp, task_results+72
    clts
    lgdt gdt_pointer
    ljmp $0x08, $4f
4:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    ret

    // By JMP and by CALL.
    .globl task_two
task_two:
    incl task_runs
    pushfl
    popl task_flags
    testl $0x4000, task_flags
    jnz 1f
    ljmp $0x30, $0
    jmp task_two
1:  iretl
    jmp task_two

    .globl task_undefined
task_undefined:
    incl task_results+20
    addl $2, tss_one+0x20
    iretl
    jmp task_undefined

    .globl task_protection
task_protection:
    incl task_results+24
    popl task_results+28
    movl task_step, %eax
    addl $2, %eax
    addl %eax, tss_one+0x20
    iretl
    jmp task_protection

    .globl task_back
task_back:
    ljmp $0x30, $0
    jmp task_back

    .globl task_timer
task_timer:
    incl task_timers
    movb $0x20, %al
    outb %al, $0x20
    iretl
    jmp task_timer

    // At 0xB000.
    .globl task_low
task_low:
    incl task_results+32
    movzwl %ax, %eax
    movl %eax, task_results+36
    ljmp $0x30, $0
    .globl task_low_end
task_low_end:

    .balign 8
task_gdt_pointer:
    .word 0x77
    .long 0x800000
    .popsection

    .pushsection .bss.tasks, "aw", @nobits
    .balign 16
    .globl task_results
task_results:   .skip 96
task_runs:      .skip 4
task_flags:     .skip 4
task_step:      .skip 4
task_timers:    .skip 4
    .popsection
"#,
    options(att_syntax)
);
