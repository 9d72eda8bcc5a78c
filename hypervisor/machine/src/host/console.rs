//! The two serial lines: COM1 carries text for people, COM2 JSON events for programs (one object a line).
//!
//! Each line is composed first and sent under one lock, so that lines of several CPUs never mix. Nothing on the hot exit
//! path may call into this module: sending is slow (a character takes about 87 us at 115,200 baud) and holds the lock.
//! Hardware: PC16550D UART data sheet, through the crate `uart_16550`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use alloc::string::String;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::{Mutex, MutexGuard};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::LSR;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::host::cpu::time;

const COM1: u16 = 0x3F8;
const COM2: u16 = 0x2F8;

/// How many polls of the line status register a character may take before the line is given up: far more than a character
/// needs at 115,200 baud on any machine, so that a dead port slows the hypervisor but never stops it.
const SEND_POLLS: u32 = 1_000_000;

/// How often a line is tried for after [`do_not_wait`].
const LOCK_POLLS: u32 = 1_000_000;

struct Line {
    uart: Option<Uart16550<PioBackend>>,
}

impl Line {
    const fn absent() -> Line {
        Line { uart: None }
    }

    fn open(&mut self, base: u16) {
        // SAFETY: `base` is one of the two standard port ranges of PC serial ports; nothing else in the hypervisor touches
        // them, and this is called once, at boot, before other CPUs run.
        let port = unsafe { Uart16550::new_port(base) };
        if let Ok(mut uart) = port
            && uart.check_present()
            && uart
                .init(Config {
                    baud_rate: BaudRate::Baud115200,
                    ..Config::DEFAULT
                })
                .is_ok()
        {
            self.uart = Some(uart);
        }
    }

    fn send(&mut self, mut bytes: &[u8]) {
        let Some(uart) = self.uart.as_mut() else {
            return;
        };
        let mut polls = 0;
        while !bytes.is_empty() {
            let sent = uart.send_bytes(bytes);
            bytes = bytes.get(sent..).unwrap_or(&[]);
            polls = if sent == 0 { polls + 1 } else { 0 };
            if polls > SEND_POLLS {
                self.uart = None;
                return;
            }
        }
    }

    /// Waits until the last character has left the shift register.
    fn drain(&mut self) {
        if let Some(uart) = self.uart.as_mut() {
            for _ in 0..SEND_POLLS {
                if uart.lsr().contains(LSR::TRANSMITTER_EMPTY) {
                    return;
                }
            }
        }
    }
}

static TEXT: Mutex<Line> = Mutex::new(Line::absent());
static EVENTS: Mutex<Line> = Mutex::new(Line::absent());
static LOGGER: Logger = Logger;
/// See [`do_not_wait`].
static GIVES_UP: AtomicBool = AtomicBool::new(false);
static EVENTS_CLOSED: AtomicBool = AtomicBool::new(false);
/// There is a serial line: what is sent costs its sender time.
static IS_SLOW: AtomicBool = AtomicBool::new(false);

/// Opens both lines and makes the first the sink of the `log` crate. Called once, on the boot CPU.
pub fn init() {
    for (line, base) in [(&TEXT, COM1), (&EVENTS, COM2)] {
        let mut line = line.lock();
        line.open(base);
        IS_SLOW.fetch_or(line.uart.is_some(), Ordering::Relaxed);
    }
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// A line for the executing CPU. `None` only after [`do_not_wait`].
fn take(line: &'static Mutex<Line>) -> Option<MutexGuard<'static, Line>> {
    if !GIVES_UP.load(Ordering::Relaxed) {
        return Some(line.lock());
    }
    (0..LOCK_POLLS).find_map(|_| line.try_lock())
}

/// From now on whoever cannot have a line soon sends nothing: for the last words of a hypervisor of which a CPU does not stop.
pub fn do_not_wait() {
    GIVES_UP.store(true, Ordering::Relaxed);
}

/// Whether sending costs anything: without a serial port nothing is sent.
#[must_use]
pub fn is_slow() -> bool {
    IS_SLOW.load(Ordering::Relaxed)
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata())
            && let Some(mut line) = take(&TEXT)
        {
            write_stamped(&mut line, record.level(), *record.args());
        }
    }

    fn flush(&self) {
        if let Some(mut line) = take(&TEXT) {
            line.drain();
        }
    }
}

/// Writes a message of one or more lines; lines after the first are indented behind a `[`, so that every line of the
/// output starts with either the hypervisor's mark or a VM's name.
struct Message<'a> {
    line: &'a mut Line,
    after_line_feed: bool,
}

impl Write for Message<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            if self.after_line_feed {
                self.line.send(b"[           ]       ");
            }
            self.line.send(piece.as_bytes());
            self.after_line_feed = piece.ends_with('\n');
        }
        Ok(())
    }
}

fn write_stamped(line: &mut Line, level: Level, message: fmt::Arguments<'_>) {
    let micros = time::micros_since_boot();
    let mut writer = Message {
        line,
        after_line_feed: false,
    };
    // Writing to `Message` never fails.
    let _ = write!(
        writer,
        "[{:4}.{:06}] {level:<5} {message}",
        micros / 1_000_000,
        micros % 1_000_000
    );
    writer.line.send(b"\n");
}

/// Sends one line of a guest's console: `NAME| text`. Control characters are shown as `.` so that a guest cannot
/// counterfeit another line.
pub fn guest_line(vm: &str, text: &[u8]) {
    let mut clean = String::with_capacity(vm.len() + text.len() + 3);
    clean.push_str(vm);
    clean.push_str("| ");
    for character in String::from_utf8_lossy(text).chars() {
        clean.push(if character.is_control() && character != '\t' {
            '.'
        } else {
            character
        });
    }
    clean.push('\n');
    if let Some(mut line) = take(&TEXT) {
        line.send(clean.as_bytes());
    }
}

/// Sends one JSON object (no line feed in it) on the event line. After [`close_events`] nothing is sent.
pub fn event(object: &str) {
    let Some(mut line) = take(&EVENTS) else {
        return;
    };
    if !EVENTS_CLOSED.load(Ordering::Relaxed) {
        line.send(object.as_bytes());
        line.send(b"\n");
    }
}

/// Sends the last event and closes the line: `end` is the last line of every stream. Without touching the heap: it may be what
/// is broken.
pub fn close_events(object: fmt::Arguments<'_>) {
    let Some(mut line) = take(&EVENTS) else {
        return;
    };
    if !EVENTS_CLOSED.swap(true, Ordering::Relaxed) {
        let mut message = Message {
            line: &mut line,
            after_line_feed: false,
        };
        // Writing to `Message` never fails.
        let _ = message.write_fmt(object);
        line.send(b"\n");
    }
}

/// Waits until all characters have left the machine.
pub fn drain() {
    if let Some(mut line) = take(&TEXT) {
        line.drain();
    }
    if let Some(mut line) = take(&EVENTS) {
        line.drain();
    }
}

/// Takes both lines from whoever holds them: only for the last words of a hypervisor whose other CPUs have been stopped.
///
/// # Safety
/// No other CPU may be sending or send later: its lock is broken.
pub unsafe fn break_locks() {
    // SAFETY: the caller guarantees that the holder of either lock, if any, never continues.
    unsafe {
        if TEXT.is_locked() {
            TEXT.force_unlock();
        }
        if EVENTS.is_locked() {
            EVENTS.force_unlock();
        }
    }
}
