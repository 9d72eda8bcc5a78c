//! A second vCPU, started as in every PC: INIT, start-up message, real mode; NMIs for it, and INIT while it runs.
//!
//! Source: Intel SDM Vol. 3, "Typical BSP Initialization Sequence", "Processor State After Reset", "Handling Multiple NMIs".

use crate::cpu::{read, tsc, write};
use crate::interrupts::{self, NMI};
use crate::report::Report;

/// Where the real-mode code goes, and what it tells: CS, rounds, whether it is to stop, CPUID, whether it has stopped, starts,
/// CR0, NMIs, whether its handler of those is to wait, and how often its HLT ended.
const PAGE: u64 = 0x9000;
const TOLD: u64 = 0x7900;
const LOCAL_APIC: u64 = 0xFEE0_0000;
const COMMAND: u64 = LOCAL_APIC + 0x300;
const TARGET: u64 = LOCAL_APIC + 0x310;
const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;
const SEND_NMI: u32 = 0x4400;
/// Where real mode looks for the handler of NMIs.
const NMI_VECTOR: u64 = 2 * 4;
/// Longer than a message takes to arrive.
const WHILE_TICKS: u64 = 200_000;
/// More than any of this takes.
const PATIENCE_TICKS: u64 = 1 << 33;

unsafe extern "C" {
    static second_start: u8;
    static second_nmi: u8;
    static second_end: u8;
}

/// Waits until that is true.
pub(crate) fn await_that(holds: impl Fn() -> bool) -> bool {
    let start = tsc();
    while !holds() {
        if tsc() - start > PATIENCE_TICKS {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

fn pause(ticks: u64) {
    let start = tsc();
    while tsc() - start < ticks {
        core::hint::spin_loop();
    }
}

fn send_to(apic: u32, command: u32) {
    write(TARGET, apic << 24);
    write(COMMAND, command);
}

fn send(command: u32) {
    send_to(1, command);
}

fn told(index: u64) -> u32 {
    read(TOLD + index * 4)
}

fn tell(index: u64, value: u32) {
    write(TOLD + index * 4, value);
}

/// Starts the second vCPU in real mode at that page.
pub(crate) fn start_at(page: u64) {
    send(INIT);
    pause(100_000);
    send(START_UP | (page >> 12) as u32);
}

pub(crate) fn check(report: &mut Report) {
    {
        let (start, end) = (
            core::ptr::addr_of!(second_start) as u64,
            core::ptr::addr_of!(second_end) as u64,
        );
        for offset in 0..end - start {
            write(PAGE + offset, read::<u8>(start + offset));
        }
    }
    (0..10).for_each(|index| tell(index, 0));
    send(INIT);
    pause(100_000);
    report.equal("waits-for-start-up", told(1), 0);
    send(START_UP | (PAGE >> 12) as u32);
    pause(10_000);
    // A PC gets two of them: the second finds it running.
    send(START_UP | (PAGE >> 12) as u32);
    report.check("counts", await_that(|| told(1) > 1000), told(1));
    tell(2, 1);
    report.check("stops", await_that(|| told(4) == 1), told(4));
    report.equal("starts-at-page", told(0), (PAGE >> 4) as u32);
    report.equal("own-apic-id", told(3) >> 24, 1);
    report.equal("starts-once", told(5), 1);
    report.equal("real-mode", told(6) & 0x8000_0001, 0);
}

/// Once [`check`] has left it halted: NMIs and INIT for a vCPU with its interrupts off.
pub(crate) fn check_signals(report: &mut Report) {
    let start_up = START_UP | (PAGE >> 12) as u32;
    let offset = core::ptr::addr_of!(second_nmi) as u64 - core::ptr::addr_of!(second_start) as u64;
    write(NMI_VECTOR, (PAGE >> 4 << 16 | offset) as u32);
    send(SEND_NMI);
    report.check(
        "nmi-ends-halt",
        await_that(|| told(7) == 1 && told(9) == 1),
        (told(7), told(9)),
    );

    (1..3).for_each(|index| tell(index, 0));
    send(INIT);
    // Before it can have been reset.
    send(start_up);
    report.check(
        "start-up-right-after-init",
        await_that(|| told(5) == 2 && told(1) > 1000),
        (told(5), told(1)),
    );

    send(SEND_NMI);
    let comes = await_that(|| told(7) == 2);
    let rounds = told(1);
    let goes_on = await_that(|| told(1) > rounds);
    report.check("nmi-while-interrupts-off", comes && goes_on, told(7));

    tell(8, 1);
    send(SEND_NMI);
    report.check("nmi-waits", await_that(|| told(7) == 3), told(7));
    send(SEND_NMI);
    pause(WHILE_TICKS);
    send(SEND_NMI);
    pause(WHILE_TICKS);
    report.equal("none-in-the-handler", told(7), 3);
    tell(8, 0);
    let comes = await_that(|| told(7) == 4);
    pause(WHILE_TICKS);
    report.check("one-after-the-handler", comes && told(7) == 4, told(7));

    send(INIT);
    pause(WHILE_TICKS);
    let rounds = told(1);
    send(SEND_NMI);
    pause(WHILE_TICKS);
    report.equal("init-stops-it", told(1), rounds);
    send(start_up);
    let starts = await_that(|| told(5) == 3 && told(1) > rounds);
    report.check("starts-again", starts, (told(5), told(1), rounds));
    report.equal("none-while-it-waited", told(7), 4);

    send_to(0, SEND_NMI);
    let comes = await_that(|| interrupts::count(NMI) == 1);
    report.check("nmi-for-oneself", comes, interrupts::count(NMI));
}

/// The one that boots sends itself INIT.
pub(crate) fn init_oneself() {
    send_to(0, INIT);
    pause(WHILE_TICKS);
}

core::arch::global_asm!(
    r#"
    .pushsection .boot, "ax"
    .code16
    .globl second_start
second_start:
    movw %cs, %bx
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7900, %sp
    movw %bx, 0x7900
    incl 0x7914
    movl %cr0, %eax
    movl %eax, 0x7918
1:  incl 0x7904
    cmpl $0, 0x7908
    je 1b
    movl $1, %eax
    cpuid
    movl %ebx, 0x790C
    movl $1, 0x7910
2:  cli
    hlt
    incl 0x7924
    jmp 2b
    .globl second_nmi
second_nmi:
    incl 0x791C
3:  cmpl $0, 0x7920
    jne 3b
    iretw
    .globl second_end
second_end:
    .popsection
"#,
    options(att_syntax)
);
