//! The legacy devices: clock, keyboard controller, cursor, port 0x80, PCI configuration, debug ports.
//!
//! Source: Motorola MC146818A; IBM Personal Computer AT Technical Reference; PCI Local Bus 3.0, 3.2.2.3.2 "Software Generation of
//! Configuration Transactions".

use crate::cpu::{in8, in32, out8, out32, stop, tsc};
use crate::information::number;
use crate::power::DEBUG_EXIT;
use crate::report::Report;
use crate::second;
use crate::serial::line;

const CLOCK: u16 = 0x70;
const KEYBOARD: u16 = 0x64;
const KEYBOARD_DATA: u16 = 0x60;
const SYSTEM_A: u16 = 0x92;
const DISPLAY: u16 = 0x3D4;
const DISPLAY_STATUS: u16 = 0x3DA;
const PANIC: u16 = 0x505;
const PROGRESS: u16 = 0x80;
const DEBUG_CONSOLE: u16 = 0xE9;
const RESET: u16 = 0xCF9;
/// A cell of the clock's RAM that nobody uses, for the number of boots.
const BOOTS: u8 = 0x60;

pub(crate) fn clock(index: u8) -> u8 {
    out8(CLOCK, index);
    in8(CLOCK + 1)
}

pub(crate) fn set_clock(index: u8, value: u8) {
    out8(CLOCK, index);
    out8(CLOCK + 1, value);
}

pub(crate) fn check(report: &mut Report) {
    date(report);
    set_clock(BOOTS, 0xA5);
    let first = clock(BOOTS);
    set_clock(BOOTS, 0);
    report.equal("clock-ram", (first, clock(BOOTS)), (0xA5, 0));
    out8(PROGRESS, 0x42);
    report.equal("progress-port", in8(PROGRESS), 0x42);
    keyboard(report);
    display(report);
    out8(PANIC, 1);
    out8(PANIC, 1);
    report.equal("panic-port", in8(PANIC), 3);
    pci(report);
}

/// The controller passes its test, and a keyboard answers.
fn keyboard(report: &mut Report) {
    report.equal("keyboard-status", in8(KEYBOARD) & 3, 0);
    let answer = || {
        let has_come = in8(KEYBOARD) & 1 != 0;
        has_come.then(|| in8(KEYBOARD_DATA))
    };
    out8(KEYBOARD, 0xAA);
    report.equal("keyboard-controller-test", answer(), Some(0x55));
    out8(KEYBOARD_DATA, 0xFF);
    report.equal(
        "keyboard-reset-answers",
        (answer(), answer(), answer()),
        (Some(0xFA), Some(0xAA), None),
    );
    // All lines but the processor's reset.
    out8(KEYBOARD, 0xF1);
    let fast = in8(SYSTEM_A);
    out8(SYSTEM_A, fast | 2);
    report.equal("fast-a20", fast, 2);
}

/// The cursor is on a screen of 80 columns and 25 lines, and the picture's retrace comes and goes.
fn display(report: &mut Report) {
    let register = |index: u8| {
        out8(DISPLAY, index);
        u16::from(in8(DISPLAY + 1))
    };
    let place = register(14) << 8 | register(15);
    report.check("cursor-on-screen", place < 80 * 25, place);
    let retrace = |wanted: bool| {
        let start = tsc();
        // A picture takes far fewer ticks than this on any machine.
        while (in8(DISPLAY_STATUS) & 8 != 0) != wanted && tsc() - start < 1 << 30 {}
        (in8(DISPLAY_STATUS) & 8 != 0) == wanted
    };
    report.check("retrace", retrace(true) && retrace(false), ());
}

/// A date that a calendar has, and a second that passes.
fn date(report: &mut Report) {
    let stable = || {
        while clock(0x0A) & 0x80 != 0 {}
        [0, 2, 4, 7, 8, 9].map(clock)
    };
    let binary = clock(0x0B) & 4 != 0;
    let number = |value: u8| {
        if binary {
            value
        } else {
            (value >> 4) * 10 + (value & 0xF)
        }
    };
    let now = stable();
    let [second, minute, hour, day, month, year] = now.map(number);
    let good = second < 60
        && minute < 60
        && hour < 24
        && (1..=31).contains(&day)
        && (1..=12).contains(&month)
        && year < 100;
    report.check("clock-date", good && clock(0x0D) == 0x80, now);
    let start = tsc();
    let mut later = now;
    // A second is far less than this many ticks on any machine.
    while later[0] == now[0] && tsc() - start < 1 << 34 {
        later = stable();
    }
    report.check(
        "clock-runs",
        number(later[0]) == (second + 1) % 60,
        (now[0], later[0]),
    );
}

/// Configuration space by its two ports: the host bridge is there, an empty slot floats.
fn pci(report: &mut Report) {
    let config = |device: u32, register: u32| {
        out32(0xCF8, 1 << 31 | device << 11 | register);
        in32(0xCFC)
    };
    report.check(
        "pci-host-bridge",
        config(0, 0) != u32::MAX && config(0, 8) >> 16 == 0x0600,
        config(0, 8),
    );
    let present = (0..32)
        .filter(|device| config(*device, 0) != u32::MAX)
        .count();
    report.check("pci-scan", (1..32).contains(&present), present);
    report.equal("pci-empty-slot", config(31, 0), u32::MAX);
    out32(0xCF8, 0);
    report.equal("pci-not-addressed", in32(0xCFC), u32::MAX);
}

/// As many virtio devices as the command line says, by their vendor's number.
pub(crate) fn virtio(report: &mut Report) {
    let vendor = |device: u32| {
        out32(0xCF8, 1 << 31 | device << 11);
        in32(0xCFC) & 0xFFFF
    };
    let found = (0..32).filter(|device| vendor(*device) == 0x1AF4).count();
    report.equal("virtio-devices", found as u64, number("devices"));
}

/// Boots four times: the keyboard controller resets the first, the reset register the second, INIT the third. The clock's RAM
/// counts.
pub(crate) fn reset(report: &mut Report) {
    let boots = clock(BOOTS);
    line(format_args!("boot {boots}"));
    set_clock(BOOTS, boots + 1);
    match boots {
        0 => {
            out8(KEYBOARD, 0xFE);
            report.fail("keyboard-reset", "the VM goes on");
        }
        1 => {
            report.pass("keyboard-reset");
            out8(RESET, 0x02);
            out8(RESET, 0x06);
            report.fail("reset-register", "the VM goes on");
        }
        2 => {
            report.pass("reset-register");
            second::init_oneself();
            report.fail("init", "the VM goes on");
        }
        _ => report.equal("init", boots, 3),
    }
}

/// Halts for ever with interrupts off.
pub(crate) fn halted(report: &mut Report) {
    report.pass("before-the-halt");
    stop()
}

/// The debug ports of a VM that has them: the console says that it is there, and prints.
pub(crate) fn debug_ports(report: &mut Report) {
    report.equal("debug-console", in8(DEBUG_CONSOLE), 0xE9);
    for byte in b"said through port 0xE9\n" {
        out8(DEBUG_CONSOLE, *byte);
    }
    line(format_args!("ends with 0x12345678"));
    out32(DEBUG_EXIT, 0x1234_5678);
    report.fail("debug-exit", "the VM goes on");
}

/// The same of one that has not: both ports float, and nothing ends.
pub(crate) fn no_debug_ports(report: &mut Report) {
    report.equal("no-debug-console", in8(DEBUG_CONSOLE), 0xFF);
    for byte in b"must not be seen\n" {
        out8(DEBUG_CONSOLE, *byte);
    }
    out32(DEBUG_EXIT, 7);
    out8(DEBUG_EXIT, 7);
    report.equal("no-debug-exit", in8(DEBUG_EXIT), 0xFF);
}
