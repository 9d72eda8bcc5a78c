//! Instructions of all kinds where nothing is do what they do on RAM full of ones, but that nothing they write stays.
//!
//! Each runs twice: on RAM, where the CPU carries it out by itself, and where nobody answers. Registers, flags, the other
//! operand and the exception have to be the same.
//!
//! Source: Intel SDM Vol. 2; MULTIBOOT.md, "Memory".

use core::slice;

use crate::cpu::{in32, out32, read, write};
use crate::information::number;
use crate::interrupts::{NONE, last_error_code};
use crate::report::Report;
use crate::serial::line;

const PAGE: u64 = 4096;
/// Nobody's: above RAM, and among devices.
const NOWHERE: [u64; 2] = [0x4000_0000, 0xFE20_0000];
const INVALID_OPCODE: u64 = 6;
const PAGE_FAULT: u64 = 14;
/// CF, PF, AF, ZF, SF, TF, IF, DF, OF.
const FLAGS: u64 = 0xFD5;

/// What an instruction left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct State {
    pub(crate) rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    flags: u64,
    pub(crate) fault: u64,
    xmm: [u64; 4],
}

/// One of the table.
#[repr(C)]
struct Entry {
    code: u64,
    name: *const u8,
    bytes: u64,
}

unsafe extern "C" {
    fn run_instruction(code: u64, at: u64, other: u64, state: *mut State);
    fn prepare_vectors() -> u32;
    fn code_of_jump();
    fn code_of_interrupt();
    fn code_of_undefined();
    fn code_of_read();
    fn code_of_return();
    fn code_of_iret();
    fn code_of_popf();
    static first_instruction: Entry;
    static end_of_instructions: Entry;
    static mut scratch_pages: [u8; 5 * PAGE as usize];
    static mut idt_64: [u64; 512];
    fn event_handler();
}

/// Pages of RAM: two that stand for nowhere, two for the other operand, one for a page table.
pub(crate) fn scratch(page: usize, bytes: usize) -> &'static mut [u8] {
    // SAFETY: one vCPU runs this code, and each call's slice is used before the next call.
    unsafe {
        let start = core::ptr::addr_of_mut!(scratch_pages).cast::<u8>();
        slice::from_raw_parts_mut(start.add(page * PAGE as usize), bytes)
    }
}

/// Runs one at an address, after the other operand has been made what it always is.
pub(crate) fn run(code: u64, at: u64) -> (State, u64) {
    for (index, byte) in scratch(2, 2 * PAGE as usize).iter_mut().enumerate() {
        *byte = index as u8 ^ 0x5A;
    }
    let other = scratch(2, 1).as_ptr() as u64 + 64;
    let mut state = State::default();
    // SAFETY: the code changes nothing but the registers that are saved and the memory that it is given.
    unsafe { run_instruction(code, at, other, &raw mut state) };
    state.rsi = state.rsi.wrapping_sub(at);
    state.rdi = state.rdi.wrapping_sub(other);
    state.flags &= FLAGS;
    let sum = scratch(2, 2 * PAGE as usize)
        .iter()
        .fold(0_u64, |sum, byte| {
            sum.rotate_left(5).wrapping_add(u64::from(*byte))
        });
    (state, sum)
}

fn entries() -> &'static [Entry] {
    // SAFETY: the table lies between its two labels.
    unsafe {
        let (first, end) = (&raw const first_instruction, &raw const end_of_instructions);
        slice::from_raw_parts(first, end.offset_from(first) as usize)
    }
}

pub(crate) fn check(report: &mut Report) {
    // SAFETY: sets bits of CR4 and XCR0 that CPUID offers.
    let has_avx = unsafe { prepare_vectors() } != 0;
    let (mut seen, mut wrong) = (0, 0);
    for entry in entries() {
        // SAFETY: the table's names are constants.
        let name = unsafe { slice::from_raw_parts(entry.name, entry.bytes as usize) };
        let name = str::from_utf8(name).unwrap_or("?");
        if name.starts_with("avx") && !has_avx {
            continue;
        }
        seen += 1;
        scratch(0, 2 * PAGE as usize).fill(0xFF);
        let ones = scratch(0, 1).as_ptr() as u64 + 64;
        let expected = run(entry.code, ones);
        // In the middle of nowhere, and across two of its pages.
        for at in [NOWHERE[0] + 64, NOWHERE[1] + 64, NOWHERE[0] + PAGE - 3] {
            let aligned = at % 64 == 0;
            // Emulators carry these out bit by bit, so that they cannot be begun again in the middle.
            if !aligned && matches!(name, "fldenv" | "frstor") {
                continue;
            }
            scratch(0, 2 * PAGE as usize).fill(0xFF);
            let expected = if aligned {
                expected
            } else {
                run(entry.code, ones - 64 + PAGE - 3)
            };
            let found = run(entry.code, at);
            let page = at & !(PAGE - 1);
            let left = (read::<u64>(page + 64), read::<u64>(page + PAGE - 3));
            if found != expected {
                wrong += 1;
                line(format_args!(
                    "{name} at {at:#x}: {found:x?} and not {expected:x?}"
                ));
            }
            if left != (u64::MAX, u64::MAX) {
                wrong += 1;
                line(format_args!("{name} at {at:#x} left {left:x?}"));
            }
        }
    }
    report.check(
        "instructions-nowhere",
        seen > 100 && wrong == 0,
        (seen, wrong),
    );
    across_the_end(report);
    on_a_device(report);
    code_and_tables(report);
    events(report);
}

/// The first half of an operand is the end of RAM.
fn across_the_end(report: &mut Report) {
    let end = number("mib") << 20;
    let saved = read::<u64>(end - 8);
    for entry in entries() {
        // SAFETY: as above.
        let name = unsafe { slice::from_raw_parts(entry.name, entry.bytes as usize) };
        // What is larger than what was saved, or repeats, is left out.
        if !matches!(
            name,
            b"movq load"
                | b"movq store"
                | b"lock xadd"
                | b"pushq"
                | b"popq"
                | b"btsl"
                | b"movups load"
                | b"cmpxchg"
        ) {
            continue;
        }
        let of_ram = end - 4;
        write(of_ram, 0x8765_4321_u32);
        scratch(0, 2 * PAGE as usize).fill(0xFF);
        let like = scratch(0, 1).as_ptr() as u64 + PAGE - 4;
        scratch(0, PAGE as usize)[PAGE as usize - 4..]
            .copy_from_slice(&0x8765_4321_u32.to_le_bytes());
        let expected = (run(entry.code, like), read::<u32>(like), u32::MAX);
        let found = (
            run(entry.code, of_ram),
            read::<u32>(of_ram),
            read::<u32>(end),
        );
        write(end - 8, saved);
        if found != expected {
            let name = str::from_utf8(name).unwrap_or("?");
            return report.fail(
                "instructions-across-the-end",
                format_args!("{name}: {found:x?} and not {expected:x?}"),
            );
        }
    }
    report.pass("instructions-across-the-end");
}

/// Instructions on the entry of a device's MSI-X table: registers that keep what is written to them. Each with the offset at which
/// what it writes is kept whole: the lowest two bits of the address are not.
const ON_A_DEVICE: [(&str, u64); 51] = [
    ("movl", 8),
    ("movq load", 0),
    ("movq store", 0),
    ("movnti", 0),
    ("movzb", 9),
    ("movslq", 8),
    ("movbe load", 8),
    ("movbe store", 8),
    ("xchg", 8),
    ("xadd", 0),
    ("lock xadd", 8),
    ("cmpxchg", 8),
    ("cmpxchg same", 8),
    ("cmpxchg8b", 0),
    ("cmpxchg16b", 0),
    ("addl", 8),
    ("addl to", 8),
    ("adc", 0),
    ("sbb", 8),
    ("and", 8),
    ("or", 8),
    ("cmp", 8),
    ("test", 8),
    ("inc", 8),
    ("not", 8),
    ("imul", 8),
    ("imul 3", 0),
    ("mulq", 0),
    ("shl", 8),
    ("shld", 8),
    ("btl", 8),
    ("btsl", 8),
    ("bsf", 8),
    ("popcnt", 8),
    ("cmovz", 8),
    ("pushq", 0),
    ("popq", 0),
    ("push from there to there", 0),
    ("call through", 0),
    ("jump through", 0),
    ("movups load", 0),
    ("movaps load", 0),
    ("movd store", 8),
    ("movq xmm", 0),
    ("paddd", 0),
    ("cvtsi2sd", 8),
    ("fld", 0),
    ("fst", 8),
    ("rep lodsl", 0),
    ("rep cmpsb", 0),
    ("clflush", 0),
];

/// On a device instructions do what they do on RAM with the same in it, and what they write arrives.
fn on_a_device(report: &mut Report) {
    const ENTRY_BYTES: usize = 16;
    // The vector control's other bits do not exist.
    const KEPT_BYTES: usize = 12;
    const VALUE: [u32; 4] = [0x7654_3210, 0xFEDC_BA98, 0x8765_4321, 1];
    let Some(table) = table_of_vectors() else {
        return report.fail("instructions-on-a-device", "there is no table");
    };
    let image = |start: u64| -> [u8; ENTRY_BYTES] {
        core::array::from_fn(|index| read::<u8>(start + index as u64))
    };
    let (mut seen, mut wrong) = (0, 0);
    for (wanted, offset) in ON_A_DEVICE {
        let find = |entry: &&Entry| {
            // SAFETY: as above.
            let name = unsafe { slice::from_raw_parts(entry.name, entry.bytes as usize) };
            name == wanted.as_bytes()
        };
        let Some(entry) = entries().iter().find(find) else {
            return report.fail("instructions-on-a-device", wanted);
        };
        seen += 1;
        scratch(0, 2 * PAGE as usize).fill(0xFF);
        for (index, value) in (0..).zip(VALUE) {
            write(table + index * 4, value);
            let at = 64 + index as usize * 4;
            scratch(0, PAGE as usize)[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let like = scratch(0, 1).as_ptr() as u64 + 64;
        let expected = (run(entry.code, like + offset), image(like));
        let found = (run(entry.code, table + offset), image(table));
        if found.0 != expected.0 || found.1[..KEPT_BYTES] != expected.1[..KEPT_BYTES] {
            wrong += 1;
            line(format_args!(
                "{wanted} on a device: {found:x?} and not {expected:x?}"
            ));
        }
    }
    report.check(
        "instructions-on-a-device",
        seen == ON_A_DEVICE.len() && wrong == 0,
        (seen, wrong),
    );
    // FXSAVE is too much for any device's registers: no instruction there, and the VM goes on.
    let fxsave = entries().iter().find(|entry| {
        // SAFETY: as above.
        let name = unsafe { slice::from_raw_parts(entry.name, entry.bytes as usize) };
        name == b"fxsave"
    });
    let fault = fxsave.map(|entry| run(entry.code, table).0.fault);
    report.equal("instruction-refused", fault, Some(INVALID_OPCODE));
}

/// The address of the MSI-X table of the first device that has one.
fn table_of_vectors() -> Option<u64> {
    const MSIX: u32 = 0x11;
    let config = |device: u32, register: u32| {
        out32(0xCF8, 1 << 31 | device << 11 | register);
        in32(0xCFC)
    };
    (1..32)
        .filter(|device| config(*device, 0) != u32::MAX)
        .find_map(|device| {
            let mut capability = config(device, 0x34) & 0xFC;
            while capability != 0 {
                let first = config(device, capability);
                if first & 0xFF == MSIX {
                    let place = config(device, capability + 4);
                    let bar = config(device, 0x10 + (place & 7) * 4) & !0xF;
                    return Some(u64::from(bar + (place & !7)));
                }
                capability = first >> 8 & 0xFC;
            }
            None
        })
}

/// Nowhere as code is no instruction; as the rest of one it is ones; as a page table it has reserved bits.
fn code_and_tables(report: &mut Report) {
    let (state, _) = run(code_of_jump as *const () as u64, NOWHERE[0]);
    report.equal("code-nowhere", state.fault, INVALID_OPCODE);
    let end = number("mib") << 20;
    let saved = read::<u8>(end - 1);
    // MOV of a constant to EAX, whose four bytes are beyond the end.
    write(end - 1, 0xB8_u8);
    let (state, _) = run(code_of_jump as *const () as u64, end - 1);
    write(end - 1, saved);
    report.equal(
        "code-across-the-end",
        (state.rax, state.fault),
        (0xFFFF_FFFF, INVALID_OPCODE),
    );
    let root: u64;
    // SAFETY: CR3 is only read.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) root) };
    let entry = (root & !0xFFF) + 8;
    // SAFETY: an entry of the kernel's own root that nothing uses.
    let set = |value: u64| unsafe { core::ptr::write_volatile(entry as *mut u64, value) };
    set(NOWHERE[0] | 7);
    let (state, _) = run(code_of_read as *const () as u64, 1 << 39);
    set(0);
    // Present, with reserved bits.
    report.equal(
        "page-table-nowhere",
        (state.fault, last_error_code()),
        (PAGE_FAULT, 9),
    );
}

/// Events whose frame goes nowhere arrive.
fn events(report: &mut Report) {
    let gate = |vector: usize, handler: u64| {
        // SAFETY: one vCPU; the gates are put back before anything else uses them.
        unsafe {
            let table = &mut *core::ptr::addr_of_mut!(idt_64);
            let old = (table[vector * 2], table[vector * 2 + 1]);
            let rest = old.0 & 0x0000_FFFF_FFFF_0000;
            table[vector * 2] = handler & 0xFFFF | (handler >> 16 & 0xFFFF) << 48 | rest;
            table[vector * 2 + 1] = handler >> 32;
            old
        }
    };
    for (name, vector, code) in [
        (
            "software-interrupt-nowhere",
            0xF0,
            code_of_interrupt as *const () as u64,
        ),
        (
            "exception-nowhere",
            6,
            code_of_undefined as *const () as u64,
        ),
        ("return-nowhere", 14, code_of_return as *const () as u64),
        ("iret-nowhere", 13, code_of_iret as *const () as u64),
        ("popf-nowhere", 1, code_of_popf as *const () as u64),
    ] {
        let handler = |entry: (u64, u64)| entry.0 & 0xFFFF | (entry.0 >> 48) << 16 | entry.1 << 32;
        let old = gate(vector, event_handler as *const () as u64);
        let (state, _) = run(code, NOWHERE[0] + 256);
        gate(vector, handler(old));
        report.equal(name, (state.fault, state.rax), (u64::from(NONE), 0xE7E7));
    }
}

core::arch::global_asm!(
    r#"
    .pushsection .text.instructions, "ax"
    .code64
    // Code, operand in RSI, other operand in RDI; then registers go to the fourth argument.
    .globl run_instruction
run_instruction:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    movq %rcx, instruction_state(%rip)
    movq %rsp, instruction_stack(%rip)
    movq %rdi, %r13
    movq %rdx, %rdi
    leaq 9f(%rip), %rax
    movq %rax, fixup_64(%rip)
    movl $0xFF, fault_vector(%rip)
    fninit
    movups vector_a(%rip), %xmm0
    movups vector_b(%rip), %xmm1
    movq $0x1122334455667788, %rax
    movq $0x0102030405060708, %rbx
    movq $3, %rcx
    movq $0x00A0B0C0D0E0F001, %rdx
    movq %rsp, %r14
    // All six arithmetic flags.
    pushq $0x8D7
    popfq
    callq *%r13
9:  movq instruction_stack(%rip), %rsp
    pushfq
    popq %r15
    cld
    movq instruction_state(%rip), %r12
    movq %rax, (%r12)
    movq %rbx, 8(%r12)
    movq %rcx, 16(%r12)
    movq %rdx, 24(%r12)
    movq %rsi, 32(%r12)
    movq %rdi, 40(%r12)
    movq %r15, 48(%r12)
    movl fault_vector(%rip), %eax
    movq %rax, 56(%r12)
    movups %xmm0, 64(%r12)
    movups %xmm1, 80(%r12)
    movq $0, fixup_64(%rip)
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    retq

    // A handler for events whose frame is nowhere: from here there is no way back but this.
    .globl event_handler
event_handler:
    movl $0xE7E7, %eax
    jmp 9b

    .globl code_of_jump
code_of_jump:
    jmpq *%rsi
    .globl code_of_read
code_of_read:
    movb (%rsi), %al
    retq
    .globl code_of_interrupt
code_of_interrupt:
    movq %rsi, %rsp
    int $0xF0
    .globl code_of_undefined
code_of_undefined:
    movq %rsi, %rsp
    ud2
    .globl code_of_return
code_of_return:
    movq %rsi, %rsp
    retq
    .globl code_of_iret
code_of_iret:
    movq %rsi, %rsp
    iretq
    .globl code_of_popf
code_of_popf:
    movq %rsi, %rsp
    popfq
    nop
    nop

    // SSE, and AVX if it is there, which is said.
    .globl prepare_vectors
prepare_vectors:
    pushq %rbx
    movq %cr4, %rax
    orq $0x600, %rax
    movq %rax, %cr4
    movl $1, %eax
    cpuid
    movl %ecx, %edi
    andl $0x14000000, %edi
    xorl %eax, %eax
    cmpl $0x14000000, %edi
    jne 2f
    movl $7, %eax
    xorl %ecx, %ecx
    cpuid
    // AVX2, BMI2.
    andl $0x120, %ebx
    xorl %eax, %eax
    cmpl $0x120, %ebx
    jne 2f
    movq %cr4, %rax
    orq $0x40000, %rax
    movq %rax, %cr4
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $7, %eax
    xsetbv
    movl $1, %eax
2:  popq %rbx
    retq

    .macro INSTRUCTION name, code
    .pushsection .rodata.instructions, "a"
    .balign 8
    .quad 7f
    .quad 8f
    .quad 9f - 8f
    .popsection
    .pushsection .rodata.instruction_names, "a"
8:  .ascii "\name"
9:
    .popsection
7:  \code
    retq
    .endm

    .pushsection .rodata.instructions, "a"
    .balign 8
    .globl first_instruction
first_instruction:
    .popsection
    INSTRUCTION "movb", "movb (%rsi), %al"
    INSTRUCTION "movw", "movw (%rsi), %ax"
    INSTRUCTION "movl", "movl (%rsi), %eax"
    INSTRUCTION "movq load", "movq (%rsi), %rax"
    INSTRUCTION "movq store", "movq %rax, (%rsi)"
    INSTRUCTION "movl constant", "movl $5, (%rsi)"
    INSTRUCTION "movb store", "movb %ah, (%rsi)"
    INSTRUCTION "movzb", "movzbl (%rsi), %eax"
    INSTRUCTION "movsw", "movswq (%rsi), %rax"
    INSTRUCTION "movslq", "movslq (%rsi), %rax"
    INSTRUCTION "movnti", "movnti %rax, (%rsi)"
    INSTRUCTION "movbe load", "movbe (%rsi), %eax"
    INSTRUCTION "movbe store", "movbe %eax, (%rsi)"
    INSTRUCTION "xchg", "xchgl %eax, (%rsi)"
    INSTRUCTION "xchgb", "xchgb %ah, (%rsi)"
    INSTRUCTION "xadd", "xaddq %rax, (%rsi)"
    INSTRUCTION "lock xadd", "lock xaddl %eax, (%rsi)"
    INSTRUCTION "cmpxchg", "cmpxchgl %ebx, (%rsi)"
    INSTRUCTION "cmpxchg same", "movl $-1, %eax; cmpxchgl %ebx, (%rsi)"
    INSTRUCTION "lock cmpxchg", "lock cmpxchgq %rbx, (%rsi)"
    INSTRUCTION "cmpxchg8b", "lock cmpxchg8b (%rsi)"
    INSTRUCTION "cmpxchg16b", "lock cmpxchg16b (%rsi)"
    INSTRUCTION "addl", "addl (%rsi), %eax"
    INSTRUCTION "addl to", "addl %eax, (%rsi)"
    INSTRUCTION "adc", "adcq (%rsi), %rax"
    INSTRUCTION "sub", "subw %ax, (%rsi)"
    INSTRUCTION "sbb", "sbbl %eax, (%rsi)"
    INSTRUCTION "and", "andl (%rsi), %eax"
    INSTRUCTION "or", "lock orl %eax, (%rsi)"
    INSTRUCTION "xor", "xorb $0x5A, (%rsi)"
    INSTRUCTION "cmp", "cmpl (%rsi), %eax"
    INSTRUCTION "test", "testb $4, (%rsi)"
    INSTRUCTION "inc", "lock incl (%rsi)"
    INSTRUCTION "dec", "decq (%rsi)"
    INSTRUCTION "neg", "negw (%rsi)"
    INSTRUCTION "not", "lock notl (%rsi)"
    INSTRUCTION "imul", "imull (%rsi), %eax"
    INSTRUCTION "imul 3", "imulq $7, (%rsi), %rax"
    INSTRUCTION "mul", "mulb (%rsi)"
    INSTRUCTION "mulq", "mulq (%rsi)"
    INSTRUCTION "div", "divl (%rsi)"
    INSTRUCTION "idiv", "cqto; idivq (%rsi)"
    INSTRUCTION "shl", "shll $1, (%rsi)"
    INSTRUCTION "sar", "sarq %cl, (%rsi)"
    INSTRUCTION "rol", "rolb $3, (%rsi)"
    INSTRUCTION "rcr", "rcrw $2, (%rsi)"
    INSTRUCTION "shld", "shldl $4, %eax, (%rsi)"
    INSTRUCTION "shrd", "shrdq %cl, %rax, (%rsi)"
    INSTRUCTION "btl", "btl $3, (%rsi)"
    INSTRUCTION "btsl", "btsl $3, (%rsi)"
    INSTRUCTION "lock btr", "lock btrq $60, (%rsi)"
    INSTRUCTION "btc", "btcw $9, (%rsi)"
    INSTRUCTION "bt far", "movq $200, %rax; btq %rax, (%rsi)"
    INSTRUCTION "bts far", "movq $-100, %rax; lock btsl %eax, (%rsi)"
    INSTRUCTION "bsf", "bsfl (%rsi), %eax"
    INSTRUCTION "bsr", "bsrq (%rsi), %rax"
    INSTRUCTION "popcnt", "popcntl (%rsi), %eax"
    INSTRUCTION "lzcnt", "lzcntl (%rsi), %eax"
    INSTRUCTION "crc32", "crc32l (%rsi), %eax"
    INSTRUCTION "cmovz", "cmovzl (%rsi), %eax"
    INSTRUCTION "cmovnz", "cmovnzq (%rsi), %rax"
    INSTRUCTION "sete", "sete (%rsi)"
    INSTRUCTION "setne", "setne (%rsi)"
    INSTRUCTION "xlat", "movq %rsi, %rbx; xlatb; movl $1, %ebx"
    INSTRUCTION "crossed 8", "movq 0xF90(%rsi), %rax"
    INSTRUCTION "pushq", "pushq (%rsi); popq %rax"
    INSTRUCTION "popq", "pushq %rbx; popq (%rsi)"
    INSTRUCTION "push there", "leaq 32(%rsi), %rsp; pushq (%rdi); leaq -8(%r14), %rsp"
    INSTRUCTION "pop there", "movq %rsi, %rsp; popq %rax; leaq -8(%r14), %rsp"
    INSTRUCTION "push from there to there", "leaq 64(%rsi), %rsp; pushq (%rsi); leaq -8(%r14), %rsp"
    INSTRUCTION "pushf there", "leaq 32(%rsi), %rsp; pushfq; leaq -8(%r14), %rsp"
    INSTRUCTION "call there", "leaq 32(%rsi), %rsp; callq 1f; 1: leaq -8(%r14), %rsp"
    INSTRUCTION "enter", "leaq 48(%rsi), %rsp; leaq 40(%rsi), %rbp; enter $16, $2; movq %rsp, %rbx; subq %rsi, %rbx; movq %rbp, %rcx; subq %rsi, %rcx; leaq -8(%r14), %rsp"
    INSTRUCTION "leave", "movq %rsi, %rbp; leaveq; movq %rbp, %rax; leaq -8(%r14), %rsp"
    INSTRUCTION "call through", "callq *(%rsi)"
    INSTRUCTION "jump through", "jmpq *(%rsi)"
    INSTRUCTION "far call", "lcall *(%rsi)"
    INSTRUCTION "far jump", "ljmp *(%rsi)"
    INSTRUCTION "movups load", "movups (%rsi), %xmm0"
    INSTRUCTION "movups store", "movups %xmm0, (%rsi)"
    INSTRUCTION "movaps load", "movaps (%rsi), %xmm0"
    INSTRUCTION "movaps store", "movaps %xmm0, (%rsi)"
    INSTRUCTION "movntdq", "movntdq %xmm0, (%rsi)"
    INSTRUCTION "movdqu", "movdqu (%rsi), %xmm1"
    INSTRUCTION "movq xmm", "movq (%rsi), %xmm0"
    INSTRUCTION "movd store", "movd %xmm0, (%rsi)"
    INSTRUCTION "movss", "movss (%rsi), %xmm0"
    INSTRUCTION "movsd store", "movsd %xmm0, (%rsi)"
    INSTRUCTION "movhps", "movhps (%rsi), %xmm0"
    INSTRUCTION "movlpd store", "movlpd %xmm0, (%rsi)"
    INSTRUCTION "cvtsi2sd", "cvtsi2sdl (%rsi), %xmm0"
    INSTRUCTION "paddd", "movdqa %xmm1, %xmm0; paddd (%rsi), %xmm0"
    INSTRUCTION "pshufb", "pshufb (%rsi), %xmm0"
    INSTRUCTION "pinsrw", "pinsrw $2, (%rsi), %xmm0"
    INSTRUCTION "pextrd", "pextrd $1, %xmm0, (%rsi)"
    INSTRUCTION "ptest", "ptest (%rsi), %xmm0"
    INSTRUCTION "ucomisd", "ucomisd (%rsi), %xmm0"
    INSTRUCTION "addps", "addps (%rsi), %xmm0"
    INSTRUCTION "lddqu", "lddqu (%rsi), %xmm0"
    INSTRUCTION "maskmovdqu", "xchgq %rsi, %rdi; maskmovdqu %xmm1, %xmm0; xchgq %rsi, %rdi"
    INSTRUCTION "fld", "fldl (%rsi); fstpl (%rdi)"
    INSTRUCTION "fldt", "fldt (%rsi); fstpt (%rdi)"
    INSTRUCTION "fst", "fldpi; fstps (%rsi)"
    INSTRUCTION "fild", "fildl (%rsi); fistpl (%rdi)"
    INSTRUCTION "fbld", "fldpi; fbstp (%rsi)"
    INSTRUCTION "fadd", "fldpi; faddl (%rsi); fstpl (%rdi)"
    INSTRUCTION "fldcw", "fldcw (%rsi); fnstcw (%rdi); fninit"
    INSTRUCTION "fnstcw", "fnstcw (%rsi)"
    INSTRUCTION "fnstsw", "fnstsw (%rsi)"
    INSTRUCTION "fnstenv", "fnstenv (%rsi)"
    INSTRUCTION "fldenv", "fldenv (%rsi); fnstcw (%rdi); fninit"
    INSTRUCTION "fnsave", "fldpi; fnsave (%rsi)"
    INSTRUCTION "frstor", "frstor (%rsi); fnstcw (%rdi); fninit"
    INSTRUCTION "fxsave", "fxsave64 (%rsi)"
    INSTRUCTION "fxrstor", "fxrstor64 (%rsi)"
    INSTRUCTION "stmxcsr", "stmxcsr (%rsi)"
    INSTRUCTION "ldmxcsr", "ldmxcsr (%rsi)"
    INSTRUCTION "sgdt", "sgdt (%rsi)"
    INSTRUCTION "sidt", "sidt (%rsi)"
    INSTRUCTION "lidt", "subq $16, %rsp; sidt (%rsp); lidt (%rsi); lidt (%rsp); addq $16, %rsp"
    INSTRUCTION "sldt", "sldt (%rsi)"
    INSTRUCTION "str", "str (%rsi)"
    INSTRUCTION "smsw", "smsw (%rsi)"
    INSTRUCTION "lldt", "lldt (%rsi)"
    INSTRUCTION "ltr", "ltr (%rsi)"
    INSTRUCTION "verr", "verr (%rsi)"
    INSTRUCTION "verw", "verw (%rsi)"
    INSTRUCTION "lar", "lar (%rsi), %eax"
    INSTRUCTION "lsl", "lsl (%rsi), %eax"
    INSTRUCTION "mov ds", "movw (%rsi), %ds"
    INSTRUCTION "mov from ds", "movw %ds, (%rsi)"
    INSTRUCTION "lss", "lss (%rsi), %eax"
    INSTRUCTION "lfs", "lfs (%rsi), %eax"
    INSTRUCTION "prefetch", "prefetcht0 (%rsi)"
    INSTRUCTION "prefetchw", "prefetchw (%rsi)"
    INSTRUCTION "clflush", "clflush (%rsi)"
    INSTRUCTION "invlpg", "invlpg (%rsi)"
    INSTRUCTION "lodsb", "lodsb"
    INSTRUCTION "rep lodsl", "rep lodsl"
    INSTRUCTION "rep movsb", "rep movsb"
    INSTRUCTION "movsq to", "xchgq %rsi, %rdi; movsq; xchgq %rsi, %rdi"
    INSTRUCTION "rep movsl within", "leaq 16(%rsi), %rdi; rep movsl; subq %rsi, %rdi; subq %rdi, %rdi"
    INSTRUCTION "rep stosb", "xchgq %rsi, %rdi; rep stosb; xchgq %rsi, %rdi"
    INSTRUCTION "rep stosq", "xchgq %rsi, %rdi; rep stosq; xchgq %rsi, %rdi"
    INSTRUCTION "rep cmpsb", "rep cmpsb"
    INSTRUCTION "repne cmpsw", "repne cmpsw"
    INSTRUCTION "cmpsl within", "leaq 8(%rsi), %rdi; repe cmpsl; subq %rsi, %rdi; subq %rdi, %rdi"
    INSTRUCTION "rep scasb", "xchgq %rsi, %rdi; rep scasb; xchgq %rsi, %rdi"
    INSTRUCTION "repe scasl", "movl $-1, %eax; xchgq %rsi, %rdi; repe scasl; xchgq %rsi, %rdi"
    INSTRUCTION "std lodsw", "std; rep lodsw; cld"
    INSTRUCTION "rep outsb", "movw $0x80, %dx; rep outsb"
    INSTRUCTION "rep insb", "movw $0x1234, %dx; xchgq %rsi, %rdi; rep insb; xchgq %rsi, %rdi"
    INSTRUCTION "avx vmovups load", "vmovups (%rsi), %ymm0; vzeroupper"
    INSTRUCTION "avx vmovups store", "vmovups %ymm0, (%rsi); vzeroupper"
    INSTRUCTION "avx vpaddd", "vpaddd (%rsi), %xmm1, %xmm0; vzeroupper"
    INSTRUCTION "avx vmaskmovps", "vmaskmovps %xmm1, %xmm0, (%rsi)"
    INSTRUCTION "avx vmaskmovps load", "vmaskmovps (%rsi), %xmm0, %xmm1"
    INSTRUCTION "avx vbroadcastss", "vbroadcastss (%rsi), %xmm0"
    INSTRUCTION "avx vpgatherdd", "vpxor %xmm1, %xmm1, %xmm1; vpcmpeqd %xmm2, %xmm2, %xmm2; vpgatherdd %xmm2, (%rsi,%xmm1,4), %xmm0"
    INSTRUCTION "avx andn", "andnl (%rsi), %eax, %ebx"
    INSTRUCTION "avx shlx", "shlxq %rcx, (%rsi), %rax"
    INSTRUCTION "avx mulx", "mulxq (%rsi), %rax, %rbx"
    INSTRUCTION "avx xsave", "movl $3, %eax; xorl %edx, %edx; xsave64 (%rsi)"
    INSTRUCTION "avx xrstor", "movl $3, %eax; xorl %edx, %edx; xrstor64 (%rsi)"
    .pushsection .rodata.instructions, "a"
    .globl end_of_instructions
end_of_instructions:
    .quad 0
    .popsection
    .popsection

    .pushsection .rodata.vectors, "a"
    .balign 16
vector_a: .quad 0x400921FB54442D18, 0x0123456789ABCDEF
vector_b: .quad 0x80FF0080FF008000, 0x00807F80FF00FF80
    .popsection

    .pushsection .bss.instructions, "aw", @nobits
    .balign 4096
    .globl scratch_pages
scratch_pages: .skip 5 * 4096
instruction_stack: .skip 8
instruction_state: .skip 8
    .popsection
"#,
    options(att_syntax)
);
