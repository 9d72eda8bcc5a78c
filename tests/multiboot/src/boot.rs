//! The way into 64-bit mode, and back out of it for a while ([`excursion`]).
//!
//! Everything lies below 4 GiB and is mapped one to one, so that code goes on at the same address whatever the mode.

use core::ops::Range;
use core::ptr::{addr_of, addr_of_mut};

/// Selectors of the kernel's GDT.
pub(crate) const CODE_64: u16 = 0x18;
/// Code of 32 bits.
pub(crate) const CODE_32: u16 = 0x08;

/// The registers at the start.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct State {
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) eflags: u32,
    pub(crate) cr0: u32,
    pub(crate) cr4: u32,
    /// CS, DS, ES, SS, FS, GS.
    pub(crate) selectors: [u16; 6],
}

unsafe extern "C" {
    static start_state: State;
    static kernel_start: u8;
    static kernel_end: u8;
    fn enter_excursion(routine: u32);
    static mut excursion_arguments: [u32; 8];
    static excursion_results: [u32; 16];
}

/// The registers at the start.
pub(crate) fn state() -> State {
    // SAFETY: written once, before any Rust code.
    unsafe { start_state }
}

/// The memory that the kernel takes.
pub(crate) fn kernel_range() -> Range<u64> {
    addr_of!(kernel_start) as u64..addr_of!(kernel_end) as u64
}

/// Leaves 64-bit mode for 32-bit protected mode without paging, calls the routine there, and comes back.
pub(crate) fn excursion(routine: u32) {
    // SAFETY: the routine is one of `modes`, which keep what they are called with but for the registers they may change.
    unsafe {
        enter_excursion(routine);
    }
}

/// An excursion of a routine that takes arguments: what it leaves in its results.
pub(crate) fn call<const N: usize>(routine: *const u8, arguments: [u32; N]) -> [u32; 16] {
    let mut all = [0; 8];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: one vCPU; the routines touch these only while it is in them.
    unsafe { addr_of_mut!(excursion_arguments).write_volatile(all) };
    excursion(routine as u32);
    // SAFETY: as above. Volatile, since the compiler did not see them written.
    unsafe { addr_of!(excursion_results).read_volatile() }
}

core::arch::global_asm!(
    r#"
    .pushsection .boot, "ax"
    .code32
    .globl multiboot_entry
multiboot_entry:
    movl %eax, start_state
    movl %ebx, start_state+4
    movl $boot_stack_top, %esp
    pushfl
    popl start_state+8
    movl %cr0, %eax
    movl %eax, start_state+12
    movl %cr4, %eax
    movl %eax, start_state+16
    movw %cs, start_state+20
    movw %ds, start_state+22
    movw %es, start_state+24
    movw %ss, start_state+26
    movw %fs, start_state+28
    movw %gs, start_state+30

    // 4 GiB, one to one, by pages of 2 MiB.
    movl $boot_pdpt+3, boot_pml4
    movl $boot_directories+0x0003, boot_pdpt
    movl $boot_directories+0x1003, boot_pdpt+8
    movl $boot_directories+0x2003, boot_pdpt+16
    movl $boot_directories+0x3003, boot_pdpt+24
    movl $boot_directories, %edi
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b

    lgdt gdt_pointer
    ljmp $0x08, $2f
2:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movl $first_in_64_bit, long_target

    // From 32-bit protected mode without paging to `long_target`.
enter_long_mode:
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xC0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmp $0x18, $3f
    .code64
3:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl long_target(%rip), %eax
    jmpq *%rax

first_in_64_bit:
    leaq boot_stack_top(%rip), %rsp
    xorl %ebp, %ebp
    call kernel_main
    ud2

    .globl enter_excursion
enter_excursion:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    cli
    movl %edi, excursion_routine(%rip)
    movq %rsp, excursion_stack(%rip)
    sidt excursion_idt(%rip)
    leaq return_to_64_bit(%rip), %rax
    movl %eax, long_target(%rip)
    leaq 4f(%rip), %rax
    pushq $0x08
    pushq %rax
    lretq
    .code32
4:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $excursion_stack_top, %esp
    movl %cr0, %eax
    andl $0x7FFFFFFF, %eax
    movl %eax, %cr0
    movl $0xC0000080, %ecx
    rdmsr
    andl $~0x100, %eax
    wrmsr
    movl %cr4, %eax
    andl $~0x20, %eax
    movl %eax, %cr4
    lidt idt_32_pointer
    call *excursion_routine
    cli
    jmp enter_long_mode
    .code64
return_to_64_bit:
    movq excursion_stack(%rip), %rsp
    lidt excursion_idt(%rip)
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    retq

    .balign 16
    .globl boot_gdt, gdt_pointer
boot_gdt:
gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF // 0x08: code, 32 bits
    .quad 0x00CF93000000FFFF // 0x10: data
    .quad 0x00AF9B000000FFFF // 0x18: code, 64 bits
    .quad 0x00009B000000FFFF // 0x20: code, 16 bits, 64 KiB
    .quad 0x000093000000FFFF // 0x28: data, 16 bits, 64 KiB
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .long 0
    .globl idt_32_pointer
idt_32_pointer:
    .word 64 * 8 - 1
    .long idt_32
    .popsection

    .pushsection .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4:          .skip 4096
boot_pdpt:          .skip 4096
boot_directories:   .skip 4096 * 4
boot_stack:         .skip 65536
boot_stack_top:
    .skip 16384
excursion_stack_top:
    .balign 16
    .globl start_state
start_state:        .skip 32
long_target:        .skip 8
excursion_routine:  .skip 8
excursion_stack:    .skip 8
excursion_idt:      .skip 16
    .globl excursion_arguments
excursion_arguments: .skip 32
    .globl excursion_results
excursion_results:  .skip 64
    .globl idt_32
idt_32:             .skip 64 * 8
    .popsection
"#,
    options(att_syntax)
);
