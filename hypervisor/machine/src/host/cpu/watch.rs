//! What the watchdog knows of a CPU, written by that CPU and by whoever looks at it ([`super::watchdog`]).
//!
//! Concurrency: atomics only.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Words of the stack that are searched for return addresses.
const SEARCHED_WORDS: usize = 256;
/// Return addresses that are kept.
const KEPT: usize = 12;
const PAGE_BYTES: u64 = 4096;

/// What the watchdog knows of a CPU.
#[derive(Debug, Default)]
pub struct Watch {
    pub(super) laps: AtomicU64,
    /// It does something that may take as long as it likes.
    pub(super) excused: AtomicBool,
    /// When it looks at the others next.
    pub(super) next_look: AtomicU64,
    /// What others saw last, and since when.
    pub(super) seen_laps: AtomicU64,
    pub(super) seen_since: AtomicU64,
    pub(super) told: AtomicBool,
    /// Its NMI handler is to copy the stack.
    pub(super) wanted: AtomicBool,
    /// TSC value at which the CPU last came from a guest or from sleep; 0 while it is there, and before.
    root_since: AtomicU64,
    /// The longest that it was in root mode without a guest or sleep, in ticks.
    root_longest: AtomicU64,
    /// RIP, RSP and return addresses, the innermost first; 0 ends them.
    pub(super) stack: [AtomicU64; 2 + KEPT],
}

/// Where the hypervisor's image lies.
pub(super) static IMAGE_START: AtomicU64 = AtomicU64::new(0);
static IMAGE_BYTES: AtomicU64 = AtomicU64::new(0);

/// Remembers where the hypervisor's image lies, to tell return addresses from other words.
pub fn init(image_start: u64, image_bytes: u64) {
    IMAGE_START.store(image_start, Ordering::Relaxed);
    IMAGE_BYTES.store(image_bytes, Ordering::Relaxed);
}

impl Watch {
    /// A pass of the run loop. Cheap: only the CPU itself writes.
    #[inline]
    pub fn lap(&self) {
        let laps = self.laps.load(Ordering::Relaxed);
        self.laps.store(laps.wrapping_add(1), Ordering::Relaxed);
    }

    /// The CPU has come from a guest, or from sleep.
    #[inline]
    pub fn enter_root(&self, now: u64) {
        self.root_since.store(now, Ordering::Relaxed);
    }

    /// The CPU goes to a guest, or to sleep.
    #[inline]
    pub fn leave_root(&self, now: u64) {
        let since = self.root_since.load(Ordering::Relaxed);
        if since != 0 && now.saturating_sub(since) > self.root_longest.load(Ordering::Relaxed) {
            self.root_longest
                .store(now.saturating_sub(since), Ordering::Relaxed);
        }
    }

    /// The longest that the CPU kept its guests waiting in root mode, in ticks.
    #[must_use]
    pub fn root_longest(&self) -> u64 {
        self.root_longest.load(Ordering::Relaxed)
    }

    /// Runs what may take as long as it likes.
    pub fn excuse<R>(&self, action: impl FnOnce() -> R) -> R {
        self.excused.store(true, Ordering::SeqCst);
        let result = action();
        self.lap();
        self.excused.store(false, Ordering::SeqCst);
        result
    }

    /// Whether somebody waits for the stack.
    #[inline]
    pub fn wants_stack(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Part of the NMI handler: copies RIP and what on the stack looks like return addresses, if somebody wants them.
    pub fn copy_stack(&self, rip: u64, rsp: u64) {
        if !self.wants_stack() {
            return;
        }
        let start = IMAGE_START.load(Ordering::Relaxed);
        let end = start + IMAGE_BYTES.load(Ordering::Relaxed);
        let mut slots = self.stack.iter();
        let mut keep = |value: u64| {
            if let Some(slot) = slots.next() {
                slot.store(value, Ordering::Relaxed);
            }
        };
        keep(rip);
        keep(rsp);
        let mut at = rsp & !7;
        let page_end = (rsp | (PAGE_BYTES - 1)) + 1;
        for _ in 0..SEARCHED_WORDS {
            // The page of the stack pointer is mapped; the next may be a guard page.
            if at >= page_end {
                break;
            }
            // SAFETY: an aligned word in a page that the interrupted code has in use as its stack.
            let word =
                unsafe { core::ptr::with_exposed_provenance::<u64>(at as usize).read_volatile() };
            if (start..end).contains(&word) {
                keep(word);
            }
            at += 8;
        }
        keep(0);
        self.wanted.store(false, Ordering::SeqCst);
    }
}
