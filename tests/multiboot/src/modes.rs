//! The CPU's modes, each reached from 64-bit mode and left again: 32-bit protected mode, PAE paging, 32-bit paging with pages of
//! 4 MiB and 4 KiB, real mode.
//!
//! Source: Intel SDM Vol. 3, "Mode Switching", "PAE Paging", "32-Bit Paging".

use core::ptr::addr_of;

use crate::boot::{call, kernel_range};
use crate::cpu::{read, write};
use crate::report::Report;
use crate::timers;

/// RAM that nothing else uses, above kernel and modules.
const PLAYGROUND: u64 = 0x0080_0000;
/// Where the real-mode code goes; its results lie in the page below.
const REAL_CODE: u64 = 0x8000;
const REAL_RESULTS: u64 = 0x7800;
/// Real mode's table of interrupts.
const REAL_GATES: u64 = 0;
const INTERRUPT_60: u64 = 0x60;
/// IRQ 0 where a PC's firmware has it.
const REAL_TIMER: u64 = 8;

const PAGE_FAULT: u32 = 14;
const GENERAL_PROTECTION: u32 = 13;
const INVALID_OPCODE: u32 = 6;
/// PG and PE.
const MODE_BITS: u32 = 0x8000_0001;

unsafe extern "C" {
    static in_protected_mode: u8;
    static under_pae_paging: u8;
    static under_32_bit_paging: u8;
    static through_real_mode: u8;
    static real_start: u8;
    static real_end: u8;
    static real_interrupt: u8;
    static real_timer: u8;
}

pub(crate) fn check(report: &mut Report) {
    protected(report);
    pae(report);
    large(report);
    real(report);
}

fn protected(report: &mut Report) {
    timers::start_pic(0x20);
    timers::start_pit(100);
    let found = call(
        addr_of!(in_protected_mode),
        [0xC001_1234, 0, 0, 0, 0, 0, 0, 0],
    );
    timers::stop_pit();
    timers::mask_pic();
    report.equal(
        "protected-mode",
        (found[0] & MODE_BITS, found[1] & 0x20, found[2] & 0x500),
        (1, 0, 0),
    );
    report.equal("protected-software-interrupt", found[3], 1);
    report.equal("protected-undefined-opcode", found[4], INVALID_OPCODE);
    report.equal("protected-unknown-msr", found[5], GENERAL_PROTECTION);
    report.check("protected-timer-ends-halt", found[6] >= 3, found[6]);
    report.equal("protected-ports-float", found[7], 0xFFFF_FFFF);
    report.equal("protected-apic-version", found[8] & 0xF0, 0x10);
    report.equal("protected-strings", (found[9], found[10]), (0xFFFF_FFFF, 0));
}

fn pae(report: &mut Report) {
    let table = PLAYGROUND;
    let (same, high, other) = (table + 0x1000, table + 0x2000, table + 0x3000);
    let (one, two) = (PLAYGROUND + 0x20_0000, PLAYGROUND + 0x40_0000);
    for entry in 0..512 {
        for directory in [table, high, other] {
            write(directory + entry * 8, 0_u64);
        }
        write(same + entry * 8, entry << 21 | 0x83);
    }
    // PAE's first level: present only; no other bits.
    write(table, same | 1);
    write(table + 8, high | 1);
    write(high, one | 0x83);
    write(other, two | 0x83);
    write(one, 0x1111_1111_u32);
    write(two, 0x2222_2222_u32);
    let found = call(
        addr_of!(under_pae_paging),
        [table as u32, other as u32 | 1, 0, 0, 0, 0, 0, 0],
    );
    report.equal(
        "pae-paging",
        (found[0], found[6] & MODE_BITS),
        (0x1111_1111, MODE_BITS),
    );
    report.equal("pae-entry-replaced", found[1], 0x2222_2222);
    report.equal("pae-write", read(two + 4), 0xCAFE_0001_u32);
    report.equal(
        "pae-page-fault",
        (found[2], found[3], found[4]),
        (PAGE_FAULT, 0x8000_0010, 0),
    );
    report.equal("pae-malformed-entry", found[5], GENERAL_PROTECTION);
}

fn large(report: &mut Report) {
    let (directory, table) = (PLAYGROUND, PLAYGROUND + 0x1000);
    let frame = PLAYGROUND + 0x40_0000;
    for entry in 0..1024 {
        write(directory + entry * 4, 0_u32);
        write(table + entry * 4, 0_u32);
    }
    for entry in 0..8 {
        write(directory + entry * 4, (entry << 22 | 0x83) as u32);
    }
    write(directory + 256 * 4, (frame | 0x83) as u32);
    write(directory + 257 * 4, (table | 3) as u32);
    write(table, (frame + 0x5000) as u32 | 3);
    write(table + 4, (frame + 0x6000) as u32 | 1);
    write(frame, 0x3333_3333_u32);
    write(frame + 0x5000, 0x4444_4444_u32);
    write(frame + 0x6000, 0x5555_5555_u32);
    let found = call(
        addr_of!(under_32_bit_paging),
        [directory as u32, 0, 0, 0, 0, 0, 0, 0],
    );
    report.equal(
        "large-pages",
        (found[0], found[6] & MODE_BITS),
        (0x3333_3333, MODE_BITS),
    );
    report.equal(
        "small-pages",
        (found[1], found[2]),
        (0x4444_4444, 0x5555_5555),
    );
    report.equal("write-protection", (found[3], found[4]), (PAGE_FAULT, 3));
    report.equal(
        "write-protected-is-kept",
        read(frame + 0x6000),
        0x5555_5555_u32,
    );
    report.equal("absent-page", found[5], PAGE_FAULT);
    // The CPU notes what was used.
    report.equal("accessed-and-dirty", read::<u32>(table) & 0x60, 0x60);
}

fn real(report: &mut Report) {
    let start = addr_of!(real_start) as u64;
    let length = addr_of!(real_end) as u64 - start;
    let entries = [
        (INTERRUPT_60, addr_of!(real_interrupt) as u64 - start),
        (REAL_TIMER, addr_of!(real_timer) as u64 - start),
    ];
    for offset in 0..length {
        write(REAL_CODE + offset, read::<u8>(start + offset));
    }
    for (vector, offset) in entries {
        write(REAL_GATES + vector * 4, (REAL_CODE + offset) as u32);
    }
    for offset in (0..64).step_by(4) {
        write(REAL_RESULTS + offset, 0_u32);
    }
    write(0x12345, 0_u32);
    timers::start_pic(REAL_TIMER as u8);
    timers::start_pit(100);
    let found = call(addr_of!(through_real_mode), [0; 8]);
    timers::stop_pit();
    timers::mask_pic();
    let result = |index: u64| read::<u32>(REAL_RESULTS + index * 4);
    report.equal("real-mode", result(0) & MODE_BITS, 0);
    report.equal("real-software-interrupt", result(1), 1);
    report.check("real-timer-ends-halt", result(2) >= 3, result(2));
    report.equal("real-segments", read(0x12345), 0x600D_CAFE_u32);
    report.check("real-cpuid", result(3) >= 0x4000_0001, result(3));
    report.equal("back-in-protected-mode", found[0] & MODE_BITS, 1);
    report.check(
        "kernel-is-whole",
        kernel_range().start == 0x10_0000,
        kernel_range(),
    );
}

core::arch::global_asm!(
    r#"
    .pushsection .boot, "ax"
    .code32
    .macro EXPECT_FAULT at
    movl $0xFF, fault_vector
    movl $\at, fixup_32
    movl %esp, fault_stack
    .endm

    .globl in_protected_mode
in_protected_mode:
    movl %cr0, %eax
    movl %eax, excursion_results
    movl %cr4, %eax
    movl %eax, excursion_results+4
    movl $0xC0000080, %ecx
    rdmsr
    movl %eax, excursion_results+8
    movl interrupts_32, %ebx
    int $0x30
    movl interrupts_32, %eax
    subl %ebx, %eax
    movl %eax, excursion_results+12
    EXPECT_FAULT 1f
    ud2
1:  movl fault_vector, %eax
    movl %eax, excursion_results+16
    EXPECT_FAULT 2f
    movl excursion_arguments, %ecx
    rdmsr
2:  movl fault_vector, %eax
    movl %eax, excursion_results+20
    movl interrupts_32, %ebx
    addl $3, %ebx
3:  sti
    hlt
    cli
    cmpl %ebx, interrupts_32
    jb 3b
    movl interrupts_32, %eax
    subl %ebx, %eax
    addl $3, %eax
    movl %eax, excursion_results+24
    movw $0x1234, %dx
    inl %dx, %eax
    movl %eax, excursion_results+28
    // Devices' memory by 32-bit code: the local APIC's version, and an end of interrupt.
    movl 0xFEE00030, %eax
    movl %eax, excursion_results+32
    movl $0, 0xFEE000B0
    // Strings from and to ports.
    cld
    movl $0, excursion_results+36
    movl $excursion_results+36, %edi
    insl
    movl $string_text, %esi
    movl $string_end - string_text, %ecx
    movw $0x3F8, %dx
    rep outsb
    subl $string_end, %esi
    movl %esi, excursion_results+40
    ret
string_text:
    .ascii "said by OUTS\n"
string_end:

    .globl under_pae_paging
under_pae_paging:
    movl excursion_arguments, %edi
    movl %edi, %cr3
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    movl %cr0, %eax
    movl %eax, excursion_results+24
    movl 0x40000000, %eax
    movl %eax, excursion_results
    movl excursion_arguments+4, %eax
    movl %eax, 8(%edi)
    movl %edi, %cr3
    movl 0x40000000, %eax
    movl %eax, excursion_results+4
    movl $0xCAFE0001, 0x40000004
    EXPECT_FAULT 1f
    movl 0x80000010, %eax
1:  movl fault_vector, %eax
    movl %eax, excursion_results+8
    movl %cr2, %eax
    movl %eax, excursion_results+12
    movl fault_error, %eax
    movl %eax, excursion_results+16
    // Writable is no bit of this level.
    movl $3, 24(%edi)
    EXPECT_FAULT 2f
    movl %edi, %cr3
2:  movl fault_vector, %eax
    movl %eax, excursion_results+20
    movl $0, 24(%edi)
    movl %cr0, %eax
    andl $0x7FFFFFFF, %eax
    movl %eax, %cr0
    movl %cr4, %eax
    andl $~0x20, %eax
    movl %eax, %cr4
    ret

    .globl under_32_bit_paging
under_32_bit_paging:
    movl excursion_arguments, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x10, %eax
    movl %eax, %cr4
    movl %cr0, %eax
    orl $0x80010000, %eax
    movl %eax, %cr0
    movl %cr0, %eax
    movl %eax, excursion_results+24
    movl 0x40000000, %eax
    movl %eax, excursion_results
    movl 0x40400000, %eax
    movl %eax, excursion_results+4
    movl %eax, 0x40400004
    movl 0x40401000, %eax
    movl %eax, excursion_results+8
    EXPECT_FAULT 1f
    movl %esp, 0x40401000
1:  movl fault_vector, %eax
    movl %eax, excursion_results+12
    movl fault_error, %eax
    movl %eax, excursion_results+16
    EXPECT_FAULT 2f
    movl 0x80000000, %eax
2:  movl fault_vector, %eax
    movl %eax, excursion_results+20
    movl %cr0, %eax
    andl $0x7FFEFFFF, %eax
    movl %eax, %cr0
    movl %cr4, %eax
    andl $~0x10, %eax
    movl %eax, %cr4
    ret

    .globl through_real_mode
through_real_mode:
    movl %esp, protected_stack
    ljmp $0x20, $0x8000
from_real_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl protected_stack, %esp
    lidt idt_32_pointer
    movl %cr0, %eax
    movl %eax, excursion_results
    ret

    // At 0x8000.
    .code16
    .globl real_start
real_start:
    movw $0x28, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl %cr0, %eax
    andb $0xFE, %al
    movl %eax, %cr0
    ljmp $0, $(1f - real_start + 0x8000)
1:  xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7000, %sp
    lidtl real_table - real_start + 0x8000
    movl %cr0, %eax
    movl %eax, 0x7800
    movw $0x1234, %ax
    movw %ax, %es
    movl $0x600DCAFE, %es:5
    int $0x60
2:  sti
    hlt
    cli
    cmpw $3, 0x7808
    jb 2b
    movl $0x40000000, %eax
    cpuid
    movl %eax, 0x780C
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $0x08, $from_real_mode
    .globl real_interrupt
real_interrupt:
    incw 0x7804
    iretw
    .globl real_timer
real_timer:
    pushw %ax
    incw 0x7808
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    iretw
real_table:
    .word 0x3FF
    .long 0
    .globl real_end
real_end:
    .popsection

    .pushsection .bss.modes, "aw", @nobits
    .balign 16
protected_stack:    .skip 4
    .popsection
"#,
    options(att_syntax)
);
