//! What a guest says, by hypercall or by its virtio console: whole lines for the log, everything for whoever is attached.
//!
//! Concurrency: two leaf locks, for the line that has begun and for the attached control port.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use crate::console;

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
    /// Output for the control port, while somebody is attached.
    pub attached: Mutex<Option<Attached>>,
}

impl GuestConsole {
    /// The console of the VM of that name.
    #[must_use]
    pub fn new(name: &str) -> GuestConsole {
        GuestConsole {
            name: name.into(),
            line: Mutex::new(Vec::new()),
            was_empty: AtomicBool::new(false),
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
                    console::guest_line(&self.name, &line);
                }
                self.was_empty.store(line.is_empty(), Ordering::Relaxed);
                line.clear();
            }
            if *byte != b'\n' && *byte != b'\r' {
                line.push(*byte);
            }
        }
    }

    /// Sends what has begun: no end of the line will come.
    pub fn flush(&self) {
        let mut line = self.line.lock();
        if !line.is_empty() {
            console::guest_line(&self.name, &line);
            line.clear();
        }
    }
}
