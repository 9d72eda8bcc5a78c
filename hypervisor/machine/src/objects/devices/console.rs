//! What a guest says, by hypercall or by its virtio console: whole lines for the log, everything for whoever is attached.
//!
//! The serial lines are slow, and what is said waits for them in a ring that all share. So each guest has an allowance, in bytes as they
//! are on the wire, and all together leave a part of the line: what is beyond is dropped, and told.
//!
//! Concurrency: leaf locks, for the line that has begun, the attached control port and the allowance.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nagaya_vmm::allowance::{Admission, Allowance, Line};
use spin::Mutex;

use crate::host::cpu::time;
use crate::host::{console, event};

/// Bytes a second for all guests together, half of what a serial line carries.
const BYTES_PER_SECOND: u64 = 11_520 / 2;
/// What each may say at once after a pause: more than a kernel says while it boots.
const BURST_BYTES: u64 = 32 << 10;

/// How many consoles there are.
static SPEAKERS: AtomicU64 = AtomicU64::new(0);

/// Longest line that is kept before it is sent without its end.
const LINE_BYTES: usize = 512;

/// Output that waits for the control port.
#[derive(Debug, Default)]
pub struct Attached {
    /// What was said.
    pub bytes: VecDeque<u8>,
    /// Bytes that found no room.
    pub lost: u64,
}

/// Most bytes of it.
const ATTACHED_BYTES: usize = 4096;

/// A VM's console.
#[derive(Debug)]
pub struct GuestConsole {
    /// The VM's name.
    name: String,
    /// The line that has begun.
    line: Mutex<Vec<u8>>,
    /// The last one was empty.
    was_empty: AtomicBool,
    allowance: Mutex<Allowance>,
    /// Output for the control port, while somebody is attached.
    pub attached: Mutex<Option<Attached>>,
}

impl GuestConsole {
    /// The console of the VM of that name.
    #[must_use]
    pub fn new(name: &str) -> GuestConsole {
        SPEAKERS.fetch_add(1, Ordering::Relaxed);
        let line = Line {
            bytes: BYTES_PER_SECOND,
            per_ticks: time::khz().saturating_mul(1000),
            burst_bytes: BURST_BYTES,
        };
        GuestConsole {
            name: name.into(),
            line: Mutex::new(Vec::new()),
            was_empty: AtomicBool::new(false),
            allowance: Mutex::new(Allowance::new(line, time::ticks())),
            attached: Mutex::new(None),
        }
    }

    /// Takes text: whole lines are sent, the rest waits for its end.
    pub fn text(&self, bytes: &[u8]) {
        if let Some(attached) = &mut *self.attached.lock() {
            let room = ATTACHED_BYTES.saturating_sub(attached.bytes.len());
            attached.bytes.extend(bytes.iter().take(room));
            attached.lost += bytes.len().saturating_sub(room) as u64;
        }
        let mut line = self.line.lock();
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = LINE_BYTES - line.len().min(LINE_BYTES);
            let end = rest.iter().take(room + 1).position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(rest.len().min(room));
            let (now, later) = rest.split_at(taken);
            if now.contains(&b'\r') {
                line.extend(now.iter().filter(|byte| **byte != b'\r'));
            } else {
                line.extend_from_slice(now);
            }
            rest = if end.is_some() {
                later.get(1..).unwrap_or(&[])
            } else {
                later
            };
            if end.is_some() || line.len() >= LINE_BYTES {
                // Of several empty lines one is sent: each costs its VM's name on a slow line.
                if !line.is_empty() || !self.was_empty.load(Ordering::Relaxed) {
                    self.send(&line);
                }
                self.was_empty.store(line.is_empty(), Ordering::Relaxed);
                line.clear();
            }
        }
    }

    /// Sends a line if the guest may say as much.
    fn send(&self, line: &[u8]) {
        if self.is_shut(line.len()) {
            return;
        }
        let wire = console::guest_line(&self.name, line);
        if self.may_say(wire.len()) && !console::send_guest_line(&wire) {
            self.allowance.lock().drop_admitted(wire.len() as u64);
        }
    }

    /// Sends an event of the guest's, on the other line.
    pub fn event(&self, text: &[u8]) {
        if self.is_shut(text.len()) {
            return;
        }
        let text = String::from_utf8_lossy(text);
        let event = event::new("guest").string("vm", &self.name);
        let wire = event.string("text", &text).finish();
        if self.may_say(wire.len() + 1) && !console::send_guest_event(&wire) {
            self.allowance.lock().drop_admitted(wire.len() as u64);
        }
    }

    /// Whether the guest has said too much, so that this is not even looked at.
    fn is_shut(&self, bytes: usize) -> bool {
        console::is_slow()
            && self
                .allowance
                .lock()
                .refuse_if_shut(bytes as u64, time::ticks())
    }

    fn may_say(&self, bytes: usize) -> bool {
        if !console::is_slow() {
            return true;
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let speakers = SPEAKERS.load(Ordering::Relaxed);
        let admission = self.allowance.lock().admit(bytes, speakers, time::ticks());
        match admission {
            Admission::Passes { dropped } => {
                self.tell(dropped);
                true
            }
            Admission::Dropped => false,
        }
    }

    fn tell(&self, dropped: u64) {
        if dropped > 0 {
            log::warn!(
                "VM {}: {dropped} bytes of console output dropped",
                self.name
            );
        }
    }

    /// Sends what has begun: no end of the line will come. Tells what is missing.
    pub fn flush(&self) {
        let mut line = self.line.lock();
        if !line.is_empty() {
            self.send(&line);
            line.clear();
        }
        let dropped = self.allowance.lock().take_dropped();
        self.tell(dropped);
    }
}

impl Drop for GuestConsole {
    fn drop(&mut self) {
        SPEAKERS.fetch_sub(1, Ordering::Relaxed);
    }
}
