//! Two NMIs at once: a vCPU sends itself one while another vCPU sends it one. One is in service, the other latched, and neither is lost;
//! an interrupt sent behind the other's NMI does not overtake it.
//!
//! Source: Intel SDM Vol. 3, "Handling Multiple NMIs", "Interrupt Command Register (ICR)".

use core::sync::atomic::{AtomicU32, Ordering};

use crate::cpu::{read, tsc, write, write_msr};
use crate::interrupts::{self, NMI};
use crate::report::Report;
use crate::second;

/// Where the real-mode code of the other vCPU goes, and what the two tell each other: that it is up, the round that is asked for, and
/// the round that it has begun.
const PAGE: u64 = 0xA000;
const UP: u64 = 0x7A00;
const ASKED: u64 = 0x7A04;
const BEGUN: u64 = 0x7A08;
/// Whether it sends an interrupt behind its NMI.
const BEHIND: u64 = 0x7A0C;
const APIC_BASE: u32 = 0x1B;
const EOI: u32 = 0x80B;
const SPURIOUS: u32 = 0x80F;
const COMMAND: u32 = 0x830;
const SEND_NMI: u64 = 0x4400;
const ROUNDS: u32 = 100;
const PATIENCE_TICKS: u64 = 1 << 30;
/// Longer than a message takes.
const UNDER_WAY_TICKS: u64 = 100_000;

/// NMIs that had been taken when the interrupt came.
static AT_INTERRUPT: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    static nmi_sender_start: u8;
    static nmi_sender_end: u8;
}

fn note_and_end(_vector: u8) {
    AT_INTERRUPT.store(interrupts::count(NMI), Ordering::SeqCst);
    write_msr(EOI, 0);
}

/// Both vCPUs stay in x2APIC mode.
pub(crate) fn check(report: &mut Report) {
    let (start, end) = (
        core::ptr::addr_of!(nmi_sender_start) as u64,
        core::ptr::addr_of!(nmi_sender_end) as u64,
    );
    for offset in 0..end - start {
        write(PAGE + offset, read::<u8>(start + offset));
    }
    for at in [UP, ASKED, BEGUN, BEHIND] {
        write(at, 0_u32);
    }
    second::start_at(PAGE);
    if !second::await_that(|| read::<u32>(UP) == 1) {
        return report.fail("nmi-sender-is-up", read::<u32>(UP));
    }
    write_msr(APIC_BASE, 0xFEE0_0D00);
    write_msr(SPURIOUS, 0x1FF);
    interrupts::end_by(note_and_end);
    for (name, behind) in [("two-nmis-are-two", 0), ("nmi-before-interrupt", 1)] {
        write(BEHIND, behind);
        let (mut lost, mut late) = (0, 0);
        for _ in 0..ROUNDS {
            let before = interrupts::count(NMI);
            AT_INTERRUPT.store(before + 2, Ordering::SeqCst);
            let round = read::<u32>(ASKED) + 1;
            write(ASKED, round);
            let asked = tsc();
            while read::<u32>(BEGUN) != round && tsc() - asked < PATIENCE_TICKS {
                core::hint::spin_loop();
            }
            write_msr(COMMAND, SEND_NMI);
            let sent = tsc();
            while tsc() - sent < UNDER_WAY_TICKS {
                crate::cpu::let_interrupts_in();
            }
            lost += u32::from(interrupts::count(NMI) != before + 2);
            // The one that it sends itself may come behind.
            late += u32::from(AT_INTERRUPT.load(Ordering::SeqCst) < before + 1);
        }
        report.equal(name, (lost, late), (0, 0));
    }
}

core::arch::global_asm!(
    r#"
    .pushsection .boot, "ax"
    .code16
    .globl nmi_sender_start
nmi_sender_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    // x2APIC mode, software-enabled.
    movl $0x1B, %ecx
    rdmsr
    orl $0xC00, %eax
    wrmsr
    movl $0x80F, %ecx
    movl $0x1FF, %eax
    xorl %edx, %edx
    wrmsr
    movl $1, 0x7A00
1:  pause
    movl 0x7A04, %eax
    cmpl 0x7A08, %eax
    je 1b
    movl %eax, 0x7A08
    xorl %edx, %edx
    movl $0x830, %ecx
    movl $0x4400, %eax
    wrmsr
    cmpl $0, 0x7A0C
    je 1b
    movl $0x4044, %eax
    wrmsr
    jmp 1b
    .globl nmi_sender_end
nmi_sender_end:
    .popsection
"#,
    options(att_syntax)
);
