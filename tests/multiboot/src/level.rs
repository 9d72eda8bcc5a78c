//! A level-triggered interrupt of the I/O APIC whose end goes by an MSR: in x2APIC mode, where the CPU may keep the interrupts by
//! itself, the I/O APIC has to hear of the end all the same, or the interrupt never comes again.
//!
//! Source: Motorola MC146818A, "Register C"; Intel 82093AA data sheet, "Remote IRR"; Intel SDM Vol. 3, "Signaling Interrupt
//! Servicing Completion", "EOI Virtualization".

use crate::cpu::{read, wait_for_interrupt, write, write_msr};
use crate::devices::{clock, set_clock};
use crate::interrupts::{self, count};
use crate::report::Report;
use crate::timers;

const IOAPIC: u64 = 0xFEC0_0000;
const LOCAL_APIC_ID: u64 = 0xFEE0_0020;
/// The clock's pin. It asserts its line until somebody looks at the cause.
const ENTRY: u32 = 0x10 + 8 * 2;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;
const MASKED: u32 = 1 << 16;
/// The vector here.
const VECTOR: u8 = 0x70;
/// After so many the handler masks the pin: its source goes on asserting it.
const ENOUGH: u32 = 3;

const IA32_APIC_BASE: u32 = 0x1B;
const X2APIC_EOI: u32 = 0x80B;
const X2APIC_SVR: u32 = 0x80F;
/// Base, enabled, x2APIC, the one that boots.
const X2APIC_MODE: u64 = 0xFEE0_0D00;

fn ioapic(register: u32, value: u32) {
    write(IOAPIC, register);
    write(IOAPIC + 0x10, value);
}

fn entry() -> u32 {
    write(IOAPIC, ENTRY);
    read(IOAPIC + 0x10)
}

/// Ends an interrupt in x2APIC mode; the last that is wanted masks its pin.
fn end(_vector: u8) {
    if count(VECTOR) >= ENOUGH {
        ioapic(ENTRY, MASKED | LEVEL | u32::from(VECTOR));
    }
    write_msr(X2APIC_EOI, 0);
}

/// Leaves the APIC in x2APIC mode.
pub(crate) fn check(report: &mut Report) {
    timers::start_pic(0x20);
    timers::mask_pic();
    timers::stop_pit();
    ioapic(ENTRY + 1, read::<u32>(LOCAL_APIC_ID) & 0xFF00_0000);
    write_msr(IA32_APIC_BASE, X2APIC_MODE);
    write_msr(X2APIC_SVR, 0x1FF);
    interrupts::end_by(end);
    ioapic(ENTRY, LEVEL | u32::from(VECTOR));
    // 1,024 times a second.
    set_clock(0x0A, 0x26);
    let before = clock(0x0B);
    clock(0x0C);
    set_clock(0x0B, before | 0x40);
    for _ in 0..ENOUGH + 20 {
        if count(VECTOR) >= ENOUGH {
            break;
        }
        wait_for_interrupt();
    }
    report.equal("level-comes-again", count(VECTOR), ENOUGH);
    report.equal("level-has-ended", entry() & REMOTE_IRR, 0);
    set_clock(0x0B, before);
    clock(0x0C);
    ioapic(ENTRY, LEVEL | u32::from(VECTOR));
    report.equal("level-goes-with-its-source", count(VECTOR), ENOUGH);
}
