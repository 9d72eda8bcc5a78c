//! What a guest says, by hypercall or by its virtio console: whole lines for the log, everything for whoever is attached.
//!
//! The serial lines are slow, and the sender waits for them, with the hypervisor's own messages behind it. So each guest has an
//! allowance, and all together leave a part of the line: what is beyond is dropped, and told.
//!
//! Concurrency: leaf locks, for the line that has begun, the attached control port and the allowance.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nagaya_vmm::allowance::{Admission, Allowance, Line};
use spin::Mutex;

use crate::host::cpu::percpu::PerCpu;
use crate::host::cpu::time;
use crate::host::{console, event};

/// Bytes a second for all guests together, half of what a serial line carries.
const BYTES_PER_SECOND: u64 = 11_520 / 2;
/// What each may say at once after a pause: more than a kernel says while it boots.
const BURST_BYTES: u64 = 32 << 10;
/// What an event costs besides its text.
const EVENT_BYTES: usize = 64;

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
        for byte in bytes {
            if *byte == b'\n' || line.len() >= LINE_BYTES {
                // Of several empty lines one is sent: each costs its VM's name on a slow line.
                if !line.is_empty() || !self.was_empty.load(Ordering::Relaxed) {
                    self.send(&line);
                }
                self.was_empty.store(line.is_empty(), Ordering::Relaxed);
                line.clear();
            }
            if *byte != b'\n' && *byte != b'\r' {
                line.push(*byte);
            }
        }
    }

    /// Sends a line if the guest may say as much.
    fn send(&self, line: &[u8]) {
        // `NAME| ` and the end.
        if self.may_say(self.name.len() + line.len() + 3) {
            console::guest_line(&self.name, line);
        }
    }

    /// Sends an event of the guest's, on the other line.
    pub fn event(&self, text: &[u8]) {
        if self.may_say(text.len() + EVENT_BYTES) {
            let text = String::from_utf8_lossy(text);
            let event = event::new("guest").string("vm", &self.name);
            event::send(event.string("text", &text));
        }
    }

    fn may_say(&self, bytes: usize) -> bool {
        if !console::is_slow() {
            return true;
        }
        // Each line is a lap: a CPU that sends many of them is slow, but gets on.
        PerCpu::current().watch.lap();
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
