//! COM1, polled.

use core::fmt::{self, Write};

use crate::cpu::{in8, out8};

const PORT: u16 = 0x3F8;
const LINE_CONTROL: u16 = PORT + 3;
const LINE_STATUS: u16 = PORT + 5;
const DIVISOR_ACCESS: u8 = 0x80;
const EIGHT_BITS: u8 = 3;
const ROOM: u8 = 1 << 5;

/// 115,200 baud, 8 bits, no parity, FIFO on.
pub(crate) fn start() {
    out8(PORT + 1, 0);
    out8(LINE_CONTROL, DIVISOR_ACCESS | EIGHT_BITS);
    out8(PORT, 1);
    out8(PORT + 1, 0);
    out8(LINE_CONTROL, EIGHT_BITS);
    out8(PORT + 2, 0x07);
    out8(PORT + 4, 0x03);
}

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while in8(LINE_STATUS) & ROOM == 0 {}
            out8(PORT, byte);
        }
        Ok(())
    }
}

/// Prints a line.
pub(crate) fn line(arguments: fmt::Arguments<'_>) {
    let _ = Com1.write_fmt(arguments);
    let _ = Com1.write_str("\n");
}
