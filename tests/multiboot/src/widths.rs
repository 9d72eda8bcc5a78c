//! Registers outside 64-bit code: only their lower halves count, the instruction pointer goes as far as its mode lets it, and no
//! exception has an error code in real mode.
//!
//! Source: Intel SDM Vol. 1, "Instruction Pointer", "General-Purpose Registers"; Vol. 2, "MOV—Move to/from Control Registers"; Vol. 3,
//! "Exception and Interrupt Handling in Real-Address Mode".

use core::ptr::addr_of;

use crate::boot::call;
use crate::cpu::{read, write};
use crate::report::Report;

/// RAM that nothing else uses, above kernel and modules.
const PLAYGROUND: u64 = 0x0080_0000;
/// Where the real-mode code goes, and what it tells.
const REAL_CODE: u64 = 0xA000;
const REAL_RESULTS: u64 = 0x7800;
/// Real mode's gate of #GP.
const REAL_GATE_13: u64 = 13 * 4;
/// The segment whose last bytes real mode runs.
const REAL_SEGMENT: u64 = 0x5_0000;

/// RET, and RETF.
const RETURN: u8 = 0xC3;
const RETURN_FAR: u8 = 0xCB;

unsafe extern "C" {
    static at_the_end_of_4_gib: u8;
    static at_the_end_of_64_kib: u8;
    static end_start: u8;
    static end_end: u8;
    static end_fault: u8;
    fn compat_cr0() -> u32;
    fn compat_cr4() -> u32;
    fn compat_vmcall(number: u64, argument: u64) -> u32;
}

pub(crate) fn check(report: &mut Report) {
    compatibility(report);
    end_of_4_gib(report);
    end_of_64_kib(report);
}

fn compatibility(report: &mut Report) {
    // SAFETY: each changes a bit and changes it back; a fault ends the VM with a line.
    unsafe {
        report.equal("compat-mov-cr0", compat_cr0(), 0x20);
        report.equal("compat-mov-cr4", compat_cr4(), 0x40);
        const ABOVE: u64 = 0x1234_5678 << 32;
        report.check(
            "compat-hypercall-number",
            (compat_vmcall(ABOVE | 0x100, 0) as i32) > 0,
            0,
        );
        // A mask of doorbells: 0 and 1 are all that it takes.
        report.equal(
            "compat-hypercall-argument",
            compat_vmcall(0x109, ABOVE | 1),
            0,
        );
        let _ = compat_vmcall(0x109, 0);
    }
}

/// Instructions that the hypervisor carries out, at the last linear addresses: the next one is at 0.
fn end_of_4_gib(report: &mut Report) {
    let (directory, table) = (PLAYGROUND, PLAYGROUND + 0x1000);
    let last = PLAYGROUND + 0x2000;
    for entry in 0..1024 {
        write(directory + entry * 4, 0_u32);
        write(table + entry * 4, 0_u32);
    }
    for entry in 0..8 {
        write(directory + entry * 4, (entry << 22 | 0x83) as u32);
    }
    write(directory + 1023 * 4, table as u32 | 3);
    write(table + 1023 * 4, last as u32 | 3);
    // In the page before the last, the local APIC.
    write(table + 1022 * 4, 0xFEE0_0003_u32);
    let before: u8 = read(0);
    write(0, RETURN);
    let cases: [(&str, &[u8], u32, u32); 5] = [
        ("end-nop", &[0x90], 0, 7),
        // IN of a port that is nobody's, CPUID, RDMSR of EFER, the APIC's version.
        ("end-in", &[0xED], 0x1234, 0xFFFF_FFFF),
        ("end-cpuid", &[0x0F, 0xA2], 0, 0),
        ("end-rdmsr", &[0x0F, 0x32], 0, 0),
        ("end-device", &[0xA1, 0x30, 0xE0, 0xFF, 0xFF], 0, 0),
    ];
    for (name, bytes, edx, wanted) in cases {
        let start = 0x1000 - bytes.len() as u64;
        for (offset, byte) in (0..).zip(bytes) {
            write(last + start + offset, *byte);
        }
        let at = 0_u32.wrapping_sub(bytes.len() as u32);
        let found = call(
            addr_of!(at_the_end_of_4_gib),
            [directory as u32, at, edx, 0xC000_0080],
        );
        let value = found[0];
        let is_right = match name {
            "end-cpuid" => value != 7,
            "end-rdmsr" => value & !0x901 == 0,
            "end-device" => value & 0xF0 == 0x10,
            _ => value == wanted,
        };
        report.check(name, is_right && found[1] == 1, found);
    }
    write(0, before);
}

/// The same in real mode, where the segment ends: whatever NOP does there, instructions that the hypervisor carries out do.
fn end_of_64_kib(report: &mut Report) {
    let start = addr_of!(end_start) as u64;
    for offset in 0..addr_of!(end_end) as u64 - start {
        write(REAL_CODE + offset, read::<u8>(start + offset));
    }
    let kept: (u32, u8, u32) = (
        read(REAL_GATE_13),
        read(REAL_SEGMENT),
        read(REAL_SEGMENT + 0xFFFC),
    );
    let handler = REAL_CODE + (addr_of!(end_fault) as u64 - start);
    write(REAL_GATE_13, handler as u32);
    write(REAL_SEGMENT, RETURN_FAR);
    let run = |bytes: &[u8]| {
        let first = 0x1_0000 - bytes.len() as u64;
        for (offset, byte) in (0..).zip(bytes) {
            write(REAL_SEGMENT + first + offset, *byte);
        }
        for offset in (0..32).step_by(4) {
            write(REAL_RESULTS + offset, 0_u32);
        }
        // A far pointer to them.
        write(
            REAL_RESULTS + 0x10,
            (REAL_SEGMENT << 12) as u32 | first as u32,
        );
        call(addr_of!(at_the_end_of_64_kib), [0; 4]);
        let result = |index: u64| read::<u32>(REAL_RESULTS + index * 4);
        [result(0), result(1), result(2)]
    };
    let nop = run(&[0x90]);
    let cpuid = run(&[0x0F, 0xA2]);
    let port = run(&[0xEC]);
    // Faults at the end, and at which IP, and whether RETF was reached.
    report.check("end-of-segment", nop[0] + nop[2] == 1, nop);
    report.equal("end-of-segment-cpuid", cpuid, nop);
    report.equal("end-of-segment-in", port, nop);
    // RDMSR of what is not there, amid the segment.
    let fault = run(&[0x0F, 0x32, RETURN_FAR, 0x90]);
    report.equal(
        "real-mode-fault-has-no-error-code",
        (fault[0], fault[1]),
        (1, 0xFFFC),
    );
    write(REAL_GATE_13, kept.0);
    write(REAL_SEGMENT, kept.1);
    write(REAL_SEGMENT + 0xFFFC, kept.2);
}

core::arch::global_asm!(
    r#"
    .pushsection .boot, "ax"
    .code64
    // Runs in 32-bit code of long mode what follows, up to END_COMPAT. Keeps what registers have in their upper halves.
    .macro COMPAT
    pushq %rbx
    pushq %rbp
    movq %rsp, %r11
    leaq 7f(%rip), %r9
    pushq $0x08
    pushq %r9
    lretq
    .code32
7:
    .endm
    .macro END_COMPAT
    ljmp $0x18, $8f
    .code64
8:  movq %r11, %rsp
    popq %rbp
    popq %rbx
    movl width_value(%rip), %eax
    retq
    .endm

    // Changes a bit of a control register and changes it back, by registers with something in their upper halves; the bits that
    // have changed.
    .macro TOGGLE name, register, bit
    .globl \name
\name:
    movq %\register, %rdi
    movq %rdi, %rsi
    xorq $\bit, %rsi
    movq $0x1234567800000000, %rax
    orq %rax, %rdi
    orq %rax, %rsi
    COMPAT
    movl %esi, %\register
    movl %\register, %ecx
    movl %edi, %\register
    xorl %edi, %ecx
    movl %ecx, width_value
    END_COMPAT
    .endm

    TOGGLE compat_cr0, cr0, 0x20
    TOGGLE compat_cr4, cr4, 0x40

    .globl compat_vmcall
compat_vmcall:
    movq %rdi, %rax
    movq %rsi, %rdi
    COMPAT
    vmcall
    movl %eax, width_value
    END_COMPAT

    .code32
    .globl at_the_end_of_4_gib
at_the_end_of_4_gib:
    movl excursion_arguments, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x10, %eax
    movl %eax, %cr4
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    movl $0, excursion_results+4
    movl excursion_arguments+8, %edx
    movl excursion_arguments+12, %ecx
    movl $7, %eax
    pushl %ebx
    call *excursion_arguments+4
    popl %ebx
    incl excursion_results+4
    movl %eax, excursion_results
    movl %cr0, %eax
    andl $0x7FFFFFFF, %eax
    movl %eax, %cr0
    movl %cr4, %eax
    andl $~0x10, %eax
    movl %eax, %cr4
    ret

    .globl at_the_end_of_64_kib
at_the_end_of_64_kib:
    movl %esp, width_stack
    ljmp $0x20, $0xA000
back_from_the_end:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl width_stack, %esp
    lidt idt_32_pointer
    ret

    // At 0xA000.
    .code16
    .globl end_start
end_start:
    movw $0x28, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl %cr0, %eax
    andb $0xFE, %al
    movl %eax, %cr0
    ljmp $0, $(1f - end_start + 0xA000)
1:  xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7000, %sp
    lidtl end_table - end_start + 0xA000
    movl $1, %eax
    movl $0xC0011234, %ecx
    movw $0x1234, %dx
    lcall *0x7810
    incl 0x7808
2:  movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $0x08, $back_from_the_end
    .globl end_fault
end_fault:
    incl 0x7800
    movw %sp, %bp
    movzwl (%bp), %eax
    movl %eax, 0x7804
    movw $0x7000, %sp
    jmp 2b
end_table:
    .word 0x3FF
    .long 0
    .globl end_end
end_end:
    .popsection

    .pushsection .bss.widths, "aw", @nobits
    .balign 16
width_value:        .skip 4
width_stack:        .skip 4
    .popsection
"#,
    options(att_syntax)
);
