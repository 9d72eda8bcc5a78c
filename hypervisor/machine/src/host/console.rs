//! The two serial lines: COM1 carries text for people, COM2 JSON events for programs (one object a line).
//!
//! A character takes about 87 us at 115,200 baud, so nobody waits for it: what is said goes into a ring, one message under one lock, and
//! the port takes it from there a FIFO at a time. One CPU at a time looks after that ([`pump`]), by its timer: one that sleeps if
//! there is such. Only the hypervisor's own messages wait for room in a full ring; what a guest says is dropped then and told, so
//! that who says too much waits alone. At the end of the run, and when the hypervisor itself fails, the rings are emptied first.
//! Hardware: PC16550D UART data sheet, through the crate `uart_16550`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use alloc::string::String;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::{Mutex, MutexGuard};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::LSR;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::host::cpu::percpu::{self, PerCpu};
use crate::host::cpu::time;

const COM1: u16 = 0x3F8;
const COM2: u16 = 0x2F8;

/// How many polls of the line status register a character may take before the line is given up: far more than a character
/// needs at 115,200 baud on any machine, so that a dead port slows the hypervisor but never stops it.
const SEND_POLLS: u32 = 1_000_000;

/// How often a line is tried for after [`do_not_wait`].
const LOCK_POLLS: u32 = 1_000_000;
/// Bytes that wait for a port: as much as several kernels say while they boot.
const RING_BYTES: usize = 256 << 10;
/// What guests leave of it for the hypervisor's own messages.
const RESERVED_BYTES: usize = 32 << 10;
/// Bytes that a 16550's transmit FIFO holds.
const FIFO_BYTES: usize = 16;

struct Line {
    uart: Option<Uart16550<PioBackend>>,
    ring: [u8; RING_BYTES],
    /// Where the next byte is taken from the ring, and how many wait.
    from: usize,
    waiting: usize,
}

impl Line {
    const fn absent() -> Line {
        Line {
            uart: None,
            ring: [0; RING_BYTES],
            from: 0,
            waiting: 0,
        }
    }

    /// Whether a guest may say that much.
    fn has_room_for_guest(&self, bytes: usize) -> bool {
        self.waiting + bytes + RESERVED_BYTES <= RING_BYTES
    }

    /// Puts bytes behind those that wait; waits for room.
    fn push(&mut self, bytes: &[u8]) {
        if self.uart.is_none() {
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.waiting == RING_BYTES {
                self.send_until(RING_BYTES - FIFO_BYTES);
                if self.uart.is_none() {
                    return;
                }
            }
            let to = (self.from + self.waiting) % RING_BYTES;
            let room = (RING_BYTES - self.waiting).min(RING_BYTES - to);
            let (now, later) = rest.split_at(room.min(rest.len()));
            if let Some(place) = self.ring.get_mut(to..to + now.len()) {
                place.copy_from_slice(now);
            }
            self.waiting += now.len();
            rest = later;
        }
    }

    /// Gives the port what it takes at once.
    fn pump(&mut self) -> usize {
        let Some(uart) = self.uart.as_mut() else {
            self.waiting = 0;
            return 0;
        };
        let end = (self.from + self.waiting.min(FIFO_BYTES)).min(RING_BYTES);
        let sent = uart.send_bytes(self.ring.get(self.from..end).unwrap_or(&[]));
        self.from = (self.from + sent) % RING_BYTES;
        self.waiting -= sent.min(self.waiting);
        sent
    }

    /// Waits until no more than `left` bytes wait.
    fn send_until(&mut self, left: usize) {
        let mut polls = 0;
        while self.waiting > left {
            // The watchdog is told that this CPU gets on: at the end of a run a ring may hold seconds.
            if HAS_RUN_LOOPS.load(Ordering::Relaxed) {
                PerCpu::current().watch.lap();
            }
            polls = if self.pump() == 0 { polls + 1 } else { 0 };
            if polls > SEND_POLLS {
                self.uart = None;
                self.waiting = 0;
            }
        }
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

    /// Waits until the last character that waits has left the shift register.
    fn drain(&mut self) {
        self.send_until(0);
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
            drop(line);
            look_after();
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
                self.line.push(b"[           ]       ");
            }
            self.line.push(piece.as_bytes());
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
    writer.line.push(b"\n");
}

/// One line of a guest's console as it goes on the wire: `NAME| text`. Control characters are shown as `.` so that a guest cannot
/// counterfeit another line.
#[must_use]
pub fn guest_line(vm: &str, text: &[u8]) -> String {
    let mut clean = String::with_capacity(vm.len() + text.len() + 3);
    clean.push_str(vm);
    clean.push_str("| ");
    // In runs of plain text: a guest is charged for bytes, and each character by itself would cost far more than its byte.
    let plain = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7E);
    let mut rest = text;
    while !rest.is_empty() {
        let run = rest
            .iter()
            .position(|byte| !plain(byte))
            .unwrap_or(rest.len());
        let (now, later) = rest.split_at(run);
        clean.push_str(core::str::from_utf8(now).unwrap_or(""));
        let run = later.iter().position(plain).unwrap_or(later.len());
        let (special, later) = later.split_at(run);
        if special.is_ascii() {
            clean.extend(core::iter::repeat_n('.', special.len()));
        } else {
            for character in String::from_utf8_lossy(special).chars() {
                clean.push(if character.is_control() {
                    '.'
                } else {
                    character
                });
            }
        }
        rest = later;
    }
    clean.push('\n');
    clean
}

/// Sends what a guest says on the text line, whole or not at all: false if there is no room for it.
#[must_use]
pub fn send_guest_line(line: &str) -> bool {
    let sent = {
        let Some(mut text) = take(&TEXT) else {
            return false;
        };
        let has_room = text.has_room_for_guest(line.len());
        if has_room {
            text.push(line.as_bytes());
        }
        has_room
    };
    look_after();
    sent
}

/// Sends an event of a guest's, a JSON object without line feed, as [`send_guest_line`].
#[must_use]
pub fn send_guest_event(object: &str) -> bool {
    let sent = {
        let Some(mut events) = take(&EVENTS) else {
            return false;
        };
        let has_room = events.has_room_for_guest(object.len() + 1);
        if has_room && !EVENTS_CLOSED.load(Ordering::Relaxed) {
            events.push(object.as_bytes());
            events.push(b"\n");
        }
        has_room
    };
    look_after();
    sent
}

/// Sends one JSON object (no line feed in it) on the event line. After [`close_events`] nothing is sent.
pub fn event(object: &str) {
    {
        let Some(mut line) = take(&EVENTS) else {
            return;
        };
        if EVENTS_CLOSED.load(Ordering::Relaxed) {
            return;
        }
        line.push(object.as_bytes());
        line.push(b"\n");
    }
    look_after();
}

/// The number of no CPU.
const NOBODY: u32 = u32::MAX;
/// The CPU that looks after what waits; [`NOBODY`] for none.
static KEEPER: AtomicU32 = AtomicU32::new(NOBODY);
/// TSC value at which it looks next; `u64::MAX` for never.
static DUE: AtomicU64 = AtomicU64::new(u64::MAX);
/// Ticks between two looks, set when time is known: a FIFO's time on the wire. 0: the run loops do not look yet.
static INTERVAL: AtomicU64 = AtomicU64::new(0);

/// There are run loops, and a state of each CPU.
static HAS_RUN_LOOPS: AtomicBool = AtomicBool::new(false);

/// The CPUs look after the lines in their run loops from now on.
pub fn hand_to_run_loops() {
    HAS_RUN_LOOPS.store(true, Ordering::SeqCst);
    // 87 us a character.
    INTERVAL.store(
        (time::khz() * 87 * FIFO_BYTES as u64 / 1000).max(1),
        Ordering::SeqCst,
    );
    look_after();
}

/// Something waits, or may wait: a CPU looks after it. Before there are run loops the sender waits.
fn look_after() {
    if INTERVAL.load(Ordering::SeqCst) == 0 {
        for line in [&TEXT, &EVENTS] {
            if let Some(mut line) = take(line) {
                line.send_until(0);
            }
        }
        return;
    }
    if KEEPER.load(Ordering::SeqCst) != NOBODY {
        return;
    }
    let me = PerCpu::current();
    let sleeper = percpu::all().find(|cpu| cpu.sleeping.load(Ordering::SeqCst));
    let keeper = sleeper.unwrap_or(me);
    if KEEPER
        .compare_exchange(NOBODY, keeper.index, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
    {
        DUE.store(0, Ordering::SeqCst);
        keeper.kick();
    }
}

/// When that CPU is to look after the lines.
#[inline]
#[must_use]
pub fn due(cpu: &PerCpu) -> u64 {
    if KEEPER.load(Ordering::Relaxed) == cpu.index {
        DUE.load(Ordering::Relaxed)
    } else {
        u64::MAX
    }
}

/// Gives the ports what they take, if that is the executing CPU's business now.
pub fn pump(cpu: &PerCpu, now: u64) {
    if due(cpu) > now {
        return;
    }
    let mut waiting = 0;
    for line in [&TEXT, &EVENTS] {
        // Who composes a long message holds its line meanwhile: the guests here do not wait for that.
        match line.try_lock() {
            Some(mut line) => {
                line.pump();
                waiting += line.waiting;
            }
            None => waiting += 1,
        }
    }
    if waiting != 0 {
        DUE.store(
            now.saturating_add(INTERVAL.load(Ordering::Relaxed)),
            Ordering::SeqCst,
        );
        return;
    }
    DUE.store(u64::MAX, Ordering::SeqCst);
    KEEPER.store(NOBODY, Ordering::SeqCst);
    // Who came between the look and this found a keeper; who has a line now looks for one afterwards.
    let more = [&TEXT, &EVENTS]
        .into_iter()
        .any(|line| line.try_lock().is_some_and(|line| line.waiting != 0));
    if more {
        look_after();
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
        line.push(b"\n");
    }
}

/// Waits until all characters have left the machine.
pub fn drain() {
    INTERVAL.store(0, Ordering::SeqCst);
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
