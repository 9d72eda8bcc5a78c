//! A second vCPU, started as in every PC: INIT, start-up message, real mode.
//!
//! Source: Intel SDM Vol. 3, "Typical BSP Initialization Sequence", "Processor State After Reset".

use crate::cpu::{read, tsc, write};
use crate::report::Report;

/// Where the real-mode code goes, and what it tells.
const PAGE: u64 = 0x9000;
const TOLD: u64 = 0x7900;
const LOCAL_APIC: u64 = 0xFEE0_0000;
const COMMAND: u64 = LOCAL_APIC + 0x300;
const TARGET: u64 = LOCAL_APIC + 0x310;
const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;
/// More than any of this takes.
const PATIENCE_TICKS: u64 = 1 << 33;

unsafe extern "C" {
    static second_start: u8;
    static second_end: u8;
}

/// Waits until that is true.
fn await_that(holds: impl Fn() -> bool) -> bool {
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

fn send(command: u32) {
    write(TARGET, 1_u32 << 24);
    write(COMMAND, command);
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
    for offset in (0..32).step_by(4) {
        write(TOLD + offset, 0_u32);
    }
    let told = |index: u64| read::<u32>(TOLD + index * 4);
    send(INIT);
    pause(100_000);
    report.equal("waits-for-start-up", told(1), 0);
    send(START_UP | (PAGE >> 12) as u32);
    pause(10_000);
    // A PC gets two of them: the second finds it running.
    send(START_UP | (PAGE >> 12) as u32);
    report.check("counts", await_that(|| told(1) > 1000), told(1));
    write(TOLD + 8, 1_u32);
    report.check("stops", await_that(|| told(4) == 1), told(4));
    report.equal("starts-at-page", told(0), (PAGE >> 4) as u32);
    report.equal("own-apic-id", told(3) >> 24, 1);
    report.equal("starts-once", told(5), 1);
    report.equal("real-mode", told(6) & 0x8000_0001, 0);
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
    jmp 2b
    .globl second_end
second_end:
    .popsection
"#,
    options(att_syntax)
);
