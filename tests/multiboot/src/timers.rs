//! Interrupts of timers by every way there is: the 8254 through the 8259As and through the I/O APIC, the local APIC's own timer,
//! the clock's periodic interrupt. Each ends HLTs.
//!
//! Source: Intel 8259A and 8254 data sheets; Intel 82093AA data sheet; Intel SDM Vol. 3, "APIC Timer"; Motorola MC146818A.

use crate::cpu::{in8, out8, read, tsc, wait_for_interrupt, write};
use crate::interrupts::{self, count};
use crate::report::Report;

const PIC: u16 = 0x20;
const PIC_2: u16 = 0xA0;
const PIT_COUNTER: u16 = 0x40;
const PIT_CONTROL: u16 = 0x43;
const PIT_HZ: u32 = 1_193_182;

const IOAPIC: u64 = 0xFEC0_0000;
const LOCAL_APIC: u64 = 0xFEE0_0000;
/// The 8254's pin: the MADT says so.
const TIMER_PIN: u32 = 2;

const PIC_VECTOR: u8 = 0x20;
const IOAPIC_VECTOR: u8 = 0x50;
const APIC_TIMER_VECTOR: u8 = 0x60;
/// IRQ 8, the first of the second 8259A.
const CLOCK_VECTOR: u8 = PIC_VECTOR + 8;

/// Sets up both 8259As with that first vector, all lines masked but the timer's, the cascade and the clock's.
pub(crate) fn start_pic(vector: u8) {
    for (port, vector, wiring) in [(PIC, vector, 4), (PIC_2, vector + 8, 2)] {
        out8(port, 0x11);
        out8(port + 1, vector);
        out8(port + 1, wiring);
        out8(port + 1, 1);
    }
    out8(PIC + 1, !0b101);
    out8(PIC_2 + 1, !1);
}

pub(crate) fn mask_pic() {
    out8(PIC + 1, 0xFF);
    out8(PIC_2 + 1, 0xFF);
}

/// The 8254's first counter as a rate generator.
pub(crate) fn start_pit(hz: u32) {
    out8(PIT_CONTROL, 0x34);
    let [low, high, ..] = (PIT_HZ / hz).to_le_bytes();
    out8(PIT_COUNTER, low);
    out8(PIT_COUNTER, high);
}

/// One shot without a count: its output stays low.
pub(crate) fn stop_pit() {
    out8(PIT_CONTROL, 0x30);
}

/// Sleeps until that many interrupts have come; gives up when others have woken it too often.
fn await_interrupts(vector: u8, more: u32) -> bool {
    let before = count(vector);
    for _ in 0..more + 20 {
        if count(vector) - before >= more {
            return true;
        }
        wait_for_interrupt();
    }
    false
}

pub(crate) fn check(report: &mut Report) {
    interrupts::end_by(interrupts::end_at_pic);
    start_pic(PIC_VECTOR);
    out8(PIC_2 + 1, 0xFF);
    start_pit(1000);
    let start = tsc();
    let came = await_interrupts(PIC_VECTOR, 20);
    let thousandth = (tsc() - start) / 20;
    report.check("pit-through-pic", came, count(PIC_VECTOR));
    clock(report);

    // Behind the I/O APIC it comes as often: the same timer.
    mask_pic();
    interrupts::end_by(interrupts::end_at_apic);
    write(LOCAL_APIC + 0xF0, 0x1FF_u32);
    let ioapic = |register: u32, value: u32| {
        write(IOAPIC, register);
        write(IOAPIC + 0x10, value);
    };
    write(IOAPIC, 1_u32);
    let version: u32 = read(IOAPIC + 0x10);
    report.equal("ioapic-pins", version >> 16 & 0xFF, 23);
    ioapic(
        0x11 + TIMER_PIN * 2,
        read::<u32>(LOCAL_APIC + 0x20) & 0xFF00_0000,
    );
    ioapic(0x10 + TIMER_PIN * 2, IOAPIC_VECTOR.into());
    start_pit(1000);
    let start = tsc();
    let came = await_interrupts(IOAPIC_VECTOR, 20);
    let again = (tsc() - start) / 20;
    report.check("pit-through-ioapic", came, count(IOAPIC_VECTOR));
    report.check(
        "pit-keeps-its-rate",
        again.abs_diff(thousandth) < thousandth / 4,
        (thousandth, again),
    );
    ioapic(0x10 + TIMER_PIN * 2, 1 << 16);
    stop_pit();

    local(report);
    interrupts::end_by(interrupts::end_at_pic);
}

/// The clock's periodic interrupt, 1,024 times a second, through the second 8259A.
fn clock(report: &mut Report) {
    let register = |index: u8| {
        out8(0x70, index);
        in8(0x71)
    };
    let set = |index: u8, value: u8| {
        out8(0x70, index);
        out8(0x71, value);
    };
    stop_pit();
    out8(PIC_2 + 1, !1);
    set(0x0A, 0x26);
    let before = register(0x0B);
    set(0x0B, before | 0x40);
    let mut came = true;
    let mut causes = 0xFF;
    for _ in 0..5 {
        // It does not come again before somebody has looked at the cause.
        came &= await_interrupts(CLOCK_VECTOR, 1);
        causes &= register(0x0C);
    }
    set(0x0B, before);
    report.check(
        "clock-interrupt",
        came && causes & 0xC0 == 0xC0,
        (count(CLOCK_VECTOR), causes),
    );
}

/// The local APIC's timer, once and periodically.
fn local(report: &mut Report) {
    const TIMER: u64 = LOCAL_APIC + 0x320;
    const INITIAL: u64 = LOCAL_APIC + 0x380;
    const CURRENT: u64 = LOCAL_APIC + 0x390;
    const DIVIDER: u64 = LOCAL_APIC + 0x3E0;
    const PERIODIC: u32 = 1 << 17;
    const MASKED: u32 = 1 << 16;
    write(DIVIDER, 0b1011_u32);
    write(TIMER, u32::from(APIC_TIMER_VECTOR));
    write(INITIAL, 100_000_u32);
    let once = await_interrupts(APIC_TIMER_VECTOR, 1);
    report.check(
        "apic-timer-once",
        once && read::<u32>(CURRENT) == 0,
        count(APIC_TIMER_VECTOR),
    );
    write(TIMER, u32::from(APIC_TIMER_VECTOR) | PERIODIC);
    write(INITIAL, 100_000_u32);
    let came = await_interrupts(APIC_TIMER_VECTOR, 10);
    report.check("apic-timer-periodic", came, count(APIC_TIMER_VECTOR));
    write(TIMER, MASKED);
    write(INITIAL, 0_u32);
}
