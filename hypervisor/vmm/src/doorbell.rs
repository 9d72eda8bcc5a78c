//! Doorbells: one [`Mailbox`] for each member, made of atomics, so that ringing takes no lock.
//!
//! A ring sets the sender's bit in the receiver's mask; rings that meet a set bit are merged with it (delivered: the receiver
//! has not looked yet). Nothing is lost without a word to the sender. Memory order: what the sender wrote before ringing is
//! seen by the receiver after it took the bit (sequentially consistent, so that the machine's sleep protocol can rely on it).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_abi::hypercall::WAIT_GROUP_CHANGED;
use guest_abi::{Errno, MAX_MEMBERS};

/// Rings that may come at once before the rate counts.
const BURST: u64 = 64;

/// Where one member's doorbells arrive.
#[derive(Debug)]
pub struct Mailbox {
    pending: AtomicU64,
    received: AtomicU64,
    alive: AtomicBool,
    masked: AtomicBool,
    /// For each sender the time, in ticks, up to which its rings are paid for (virtual scheduling, as GCRA: ITU-T I.371).
    paid_until: [AtomicU64; MAX_MEMBERS],
    /// Ticks that one ring costs.
    interval_ticks: u64,
}

/// A ring that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The mask was empty before: whoever waits must be woken.
    pub was_empty: bool,
}

impl Mailbox {
    /// A mailbox of a member that is alive, taking at most one ring of each sender every `interval_ticks` in the long run.
    #[must_use]
    pub fn new(interval_ticks: u64) -> Mailbox {
        Mailbox {
            pending: AtomicU64::new(0),
            received: AtomicU64::new(0),
            alive: AtomicBool::new(true),
            masked: AtomicBool::new(false),
            paid_until: [const { AtomicU64::new(0) }; MAX_MEMBERS],
            interval_ticks,
        }
    }

    /// Rings, as member `sender`, at time `now` in ticks.
    ///
    /// # Errors
    /// `ESRCH`: the receiver has ended. `EBUSY`: it has masked its doorbells. `EAGAIN`: the sender rings too often. `EINVAL`: no
    /// such sender.
    pub fn ring(&self, sender: usize, now: u64) -> Result<Delivered, Errno> {
        let paid = self.paid_until.get(sender).ok_or(Errno::Inval)?;
        if !self.alive.load(Ordering::SeqCst) {
            return Err(Errno::NoPeer);
        }
        if self.masked.load(Ordering::SeqCst) {
            return Err(Errno::Busy);
        }
        // Two vCPUs of the sender may race here; then one of the rings goes unpaid, which bounds the rate all the same.
        let start = paid.load(Ordering::Relaxed).max(now);
        if start - now > self.interval_ticks.saturating_mul(BURST) {
            return Err(Errno::Again);
        }
        paid.store(start.saturating_add(self.interval_ticks), Ordering::Relaxed);
        self.received.fetch_add(1, Ordering::Relaxed);
        Ok(Delivered {
            was_empty: self.pending.fetch_or(1 << sender, Ordering::SeqCst) == 0,
        })
    }

    /// Tells the receiver that the group has changed. Masks and rates do not apply.
    pub fn notify_group_changed(&self) -> Delivered {
        Delivered {
            was_empty: self.pending.fetch_or(WAIT_GROUP_CHANGED, Ordering::SeqCst) == 0,
        }
    }

    /// Takes all pending events.
    #[must_use]
    pub fn take(&self) -> u64 {
        self.pending.swap(0, Ordering::SeqCst)
    }

    /// Whether events are pending.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) != 0
    }

    /// Rings that arrived so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Refuses rings from now on, or takes them again.
    pub fn set_masked(&self, masked: bool) {
        self.masked.store(masked, Ordering::SeqCst);
    }

    /// The member has ended: nothing reaches it any more.
    pub fn close(&self) {
        self.alive.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn a_ring_arrives_once_and_names_its_sender() {
        let mailbox = Mailbox::new(1);
        assert_eq!(mailbox.ring(3, 0), Ok(Delivered { was_empty: true }));
        assert_eq!(mailbox.ring(3, 0), Ok(Delivered { was_empty: false }));
        assert_eq!(mailbox.ring(0, 0), Ok(Delivered { was_empty: false }));
        assert_eq!(mailbox.take(), 0b1001);
        assert_eq!(mailbox.take(), 0);
        assert_eq!(mailbox.received(), 3);
    }

    #[test]
    fn the_dead_and_the_masked_say_so() {
        let mailbox = Mailbox::new(1);
        mailbox.set_masked(true);
        assert_eq!(mailbox.ring(0, 0), Err(Errno::Busy));
        mailbox.set_masked(false);
        assert!(mailbox.ring(0, 0).is_ok());
        mailbox.close();
        assert_eq!(mailbox.ring(0, 0), Err(Errno::NoPeer));
        assert_eq!(mailbox.ring(MAX_MEMBERS, 0), Err(Errno::Inval));
    }

    #[test]
    fn a_flood_is_throttled_to_the_rate_and_others_are_not() {
        let mailbox = Mailbox::new(100);
        let delivered = (0..10_000)
            .filter(|now| mailbox.ring(1, *now).is_ok())
            .count() as u64;
        assert!(delivered <= 10_000 / 100 + BURST + 2, "{delivered}");
        assert!(delivered >= 10_000 / 100, "{delivered}");
        while mailbox.ring(1, 10_000).is_ok() {}
        assert_eq!(mailbox.ring(1, 10_000), Err(Errno::Again));
        assert!(mailbox.ring(2, 10_000).is_ok());
        assert!(mailbox.ring(1, 10_000 + 100 * BURST).is_ok());
    }

    #[test]
    fn a_change_of_the_group_passes_the_mask() {
        let mailbox = Mailbox::new(1);
        mailbox.set_masked(true);
        assert!(mailbox.notify_group_changed().was_empty);
        assert_eq!(mailbox.take(), WAIT_GROUP_CHANGED);
    }

    #[test]
    fn no_ring_is_lost_between_ringing_and_taking() {
        let mailbox = Arc::new(Mailbox::new(0));
        let rings = if cfg!(miri) { 200 } else { 100_000 };
        let data = Arc::new(AtomicU64::new(0));
        let sender = {
            let (mailbox, data) = (mailbox.clone(), data.clone());
            thread::spawn(move || {
                for value in 1..=rings {
                    data.store(value, Ordering::Relaxed);
                    assert!(mailbox.ring(0, 0).is_ok());
                }
            })
        };
        // What was written before the last ring is seen by whoever takes the last bit.
        let mut seen = 0;
        while seen < rings {
            if mailbox.take() != 0 {
                seen = data.load(Ordering::Relaxed);
            }
        }
        assert!(sender.join().is_ok());
    }
}
