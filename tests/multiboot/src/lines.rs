//! Interrupt lines at the I/O APIC: edges of the serial port's transmitter, and levels that no local APIC takes at first.
//!
//! Source: PC16550D data sheet, "Interrupt Identification Register"; Intel 82093AA data sheet, 3.2.4 "IOREDTBL[23:0]".

use crate::cpu::{in8, let_interrupts_in, out8, read, write};
use crate::interrupts::{self, count};
use crate::report::Report;
use crate::serial;
use crate::timers;

const IOAPIC: u64 = 0xFEC0_0000;
const LOCAL_APIC: u64 = 0xFEE0_0000;
const SPURIOUS: u64 = LOCAL_APIC + 0xF0;
const ENABLED: u32 = 0x1FF;
const DISABLED: u32 = 0xFF;

const COM1: u16 = 0x3F8;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const INTERRUPT_CAUSE: u16 = COM1 + 2;
const MODEM_CONTROL: u16 = COM1 + 4;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
/// DTR, RTS, and OUT2, which lets the interrupt through.
const CONNECTED: u8 = 0x0B;

/// The serial port's pin.
const ENTRY: u32 = 0x10 + 4 * 2;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;
const MASKED: u32 = 1 << 16;
const EDGE_VECTOR: u8 = 0x58;
const LEVEL_VECTOR: u8 = 0x59;
/// An APIC that there is not.
const NOBODY: u32 = 5 << 24;

fn ioapic(register: u32, value: u32) {
    write(IOAPIC, register);
    write(IOAPIC + 0x10, value);
}

fn entry() -> u32 {
    write(IOAPIC, ENTRY);
    read(IOAPIC + 0x10)
}

/// The handler's part where the port is level-triggered: it takes the line back.
fn take_back(vector: u8) {
    out8(INTERRUPT_ENABLE, 0);
    interrupts::end_at_apic(vector);
}

pub(crate) fn check(report: &mut Report) {
    timers::start_pic(0x20);
    timers::mask_pic();
    timers::stop_pit();
    let destination = read::<u32>(LOCAL_APIC + 0x20) & 0xFF00_0000;
    write(SPURIOUS, ENABLED);
    out8(MODEM_CONTROL, CONNECTED);
    ioapic(ENTRY + 1, destination);

    interrupts::end_by(interrupts::end_at_apic);
    ioapic(ENTRY, EDGE_VECTOR.into());
    out8(INTERRUPT_ENABLE, TRANSMITTER_EMPTY);
    let_interrupts_in();
    // Nobody reads the cause: each byte that is written ends the interrupt and brings the next.
    let text = b"sent by interrupts\n";
    for byte in text {
        out8(COM1, *byte);
        let_interrupts_in();
    }
    // What is printed is sent by the same port: it is not to make further ones.
    out8(INTERRUPT_ENABLE, 0);
    report.equal(
        "transmitter-edges",
        count(EDGE_VECTOR),
        1 + text.len() as u32,
    );

    interrupts::end_by(take_back);
    let assert_line = || out8(INTERRUPT_ENABLE, TRANSMITTER_EMPTY);
    let is_served = || entry() & REMOTE_IRR != 0;
    ioapic(ENTRY, MASKED);
    write(SPURIOUS, DISABLED);
    ioapic(ENTRY, LEVEL | u32::from(LEVEL_VECTOR));
    assert_line();
    let_interrupts_in();
    report.equal(
        "level-refused-by-a-disabled-apic",
        (is_served(), count(LEVEL_VECTOR)),
        (false, 0),
    );
    write(SPURIOUS, ENABLED);
    let_interrupts_in();
    report.equal("level-taken-once-enabled", count(LEVEL_VECTOR), 1);

    ioapic(ENTRY + 1, NOBODY);
    assert_line();
    let_interrupts_in();
    report.equal(
        "level-refused-by-nobody",
        (is_served(), count(LEVEL_VECTOR)),
        (false, 1),
    );
    ioapic(ENTRY + 1, destination);
    let_interrupts_in();
    report.equal("level-taken-where-it-is-sent-then", count(LEVEL_VECTOR), 2);

    // It gives up while it waits.
    ioapic(ENTRY + 1, NOBODY);
    assert_line();
    let _ = in8(INTERRUPT_CAUSE);
    ioapic(ENTRY + 1, destination);
    let_interrupts_in();
    report.equal("level-that-gave-up", count(LEVEL_VECTOR), 2);

    ioapic(ENTRY, MASKED);
    serial::start();
}
