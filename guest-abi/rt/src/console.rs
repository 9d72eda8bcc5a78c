//! `print!` and events: text for people is collected into lines, because each call costs an exit.
//!
//! Concurrency: one buffer for the VM behind a spin lock; a line printed by one call stays whole.

use core::fmt;

use guest_abi::hypercall::{CONSOLE_EVENT, CONSOLE_TEXT, MAX_CONSOLE_BYTES};
use spin::Mutex;

use crate::hypercall;

/// Room for a long line; a longer one is sent in pieces.
const BUFFER_BYTES: usize = 1024;
const _: () = assert!(BUFFER_BYTES as u64 <= MAX_CONSOLE_BYTES);

struct Buffer {
    bytes: [u8; BUFFER_BYTES],
    used: usize,
}

impl Buffer {
    const fn new() -> Buffer {
        Buffer {
            bytes: [0; BUFFER_BYTES],
            used: 0,
        }
    }

    fn flush(&mut self) {
        if let Some(text) = self.bytes.get(..self.used).filter(|text| !text.is_empty()) {
            // There is nobody to tell that the console refuses.
            let _ = hypercall::console(text, CONSOLE_TEXT);
        }
        self.used = 0;
    }
}

impl fmt::Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(slot) = self.bytes.get_mut(self.used) {
                *slot = byte;
                self.used += 1;
            }
            if byte == b'\n' || self.used == BUFFER_BYTES {
                self.flush();
            }
        }
        Ok(())
    }
}

static BUFFER: Mutex<Buffer> = Mutex::new(Buffer::new());

/// The function behind [`print!`](crate::print).
pub fn print_fmt(arguments: fmt::Arguments<'_>) {
    // Writing to the buffer does not fail; an error can only come from a `Display` in the arguments, and is that one's loss.
    let _ = fmt::Write::write_fmt(&mut *BUFFER.lock(), arguments);
}

/// Sends what is held back.
pub fn flush() {
    BUFFER.lock().flush();
}

/// Prints although the lock may be held by the very code that failed.
pub(crate) fn print_urgently(arguments: fmt::Arguments<'_>) {
    if let Some(mut buffer) = BUFFER.try_lock() {
        buffer.flush();
    }
    let mut own = Buffer::new();
    let _ = fmt::Write::write_fmt(&mut own, arguments);
    own.flush();
}

/// Sends one event for programs: it appears as an escaped string in the hypervisor's JSON event stream. Text beyond
/// [`MAX_CONSOLE_BYTES`] is refused by the hypervisor.
///
/// # Errors
/// As [`hypercall::console`].
pub fn event(text: &str) -> Result<(), guest_abi::Errno> {
    hypercall::console(text.as_bytes(), CONSOLE_EVENT).map(drop)
}
