//! Doorbells: one [`Mailbox`] for each member, made of atomics, so that ringing takes no lock.
//!
//! A ring sets the sender's bit in the receiver's word; rings that meet a set bit are merged with it (delivered: the receiver
//! has not looked yet). Nothing is lost without a word to the sender: whether the receiver is there and listens stands in the
//! same word as the bits, so that a ring is either answered with an error or taken by a later [`Mailbox::take`], and never
//! arrives at a mailbox that has been closed or masked before.
//!
//! Concurrency: every method may be called on every CPU at any time. What the sender wrote before ringing is seen by the
//! receiver after it took the bit; all accesses to the word are sequentially consistent, so that the machine's sleep protocol
//! (announce the sleep, look at the word, sleep; ring, look at the announcement, kick) can rely on it.
//! `RUSTFLAGS="--cfg loom" cargo test -p nagaya-vmm --release doorbell` explores all interleavings of small cases.

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(not(all(test, loom)))]
use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU64, Ordering};

use guest_abi::hypercall::WAIT_GROUP_CHANGED;
use guest_abi::{Errno, MAX_MEMBERS};
use nagaya_devices::state::{StateError, TscShift, check};
use serde::{Deserialize, Serialize};

/// Rings that may come at once before the rate counts.
const BURST: u64 = 64;

/// The member has ended.
const CLOSED: u64 = 1 << 63;
/// The member refuses doorbells.
const MASKED: u64 = 1 << 61;
/// What is pending has ended a HLT already ([`Mailbox::heed`]).
const HEEDED: u64 = 1 << 60;
/// What `wait` may return: the senders' bits and the change of the group.
const EVENTS: u64 = WAIT_GROUP_CHANGED | ((1 << MAX_MEMBERS) - 1);
const _: () = assert!(EVENTS & (CLOSED | MASKED | HEEDED) == 0);

/// Where one member's doorbells arrive.
#[derive(Debug)]
pub struct Mailbox {
    /// [`EVENTS`] that are pending, [`CLOSED`] and [`MASKED`].
    word: AtomicU64,
    received: AtomicU64,
    /// For each sender the time, in ticks, up to which its rings are paid for (virtual scheduling, as GCRA: ITU-T I.371).
    paid_until: [AtomicU64; MAX_MEMBERS],
    /// Ticks that one ring costs.
    interval_ticks: u64,
    /// How far ahead of time a sender may have paid.
    tolerance_ticks: u64,
}

/// A ring that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Nothing was pending before: whoever waits must be woken.
    pub was_empty: bool,
}

impl Mailbox {
    /// A mailbox of a member that is alive, taking at most one ring of each sender every `interval_ticks` in the long run.
    #[must_use]
    pub fn new(interval_ticks: u64) -> Mailbox {
        Mailbox {
            word: AtomicU64::new(0),
            received: AtomicU64::new(0),
            paid_until: core::array::from_fn(|_| AtomicU64::new(0)),
            interval_ticks,
            tolerance_ticks: interval_ticks.saturating_mul(BURST),
        }
    }

    /// Rings, as member `sender`, at time `now` in ticks.
    ///
    /// # Errors
    /// `ESRCH`: the receiver has ended. `EBUSY`: it has masked its doorbells. `EAGAIN`: the sender rings too often. `EINVAL`: no
    /// such sender.
    pub fn ring(&self, sender: usize, now: u64) -> Result<Delivered, Errno> {
        let paid_until = self.paid_until.get(sender).ok_or(Errno::Inval)?;
        // A ring that is refused as absent or masked costs nothing, hence this look before the payment.
        open(self.word.load(Ordering::SeqCst))?;
        self.pay(paid_until, now)?;
        let before = self.set(1 << sender)?;
        self.received.fetch_add(1, Ordering::Relaxed);
        Ok(Delivered {
            was_empty: before & EVENTS == 0,
        })
    }

    /// Takes the price of one ring from a sender, or refuses it. A compare-exchange, since several vCPUs of the sender may
    /// ring at once.
    fn pay(&self, paid_until: &AtomicU64, now: u64) -> Result<(), Errno> {
        paid_until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
                let start = paid.max(now);
                (start - now <= self.tolerance_ticks)
                    .then(|| start.saturating_add(self.interval_ticks))
            })
            .map(drop)
            .map_err(|_| Errno::Again)
    }

    /// Sets a sender's bit in a word that is open at that very moment; returns the word before.
    fn set(&self, bit: u64) -> Result<u64, Errno> {
        let mut word = self.word.load(Ordering::SeqCst);
        loop {
            open(word)?;
            match self.word.compare_exchange_weak(
                word,
                (word | bit) & !HEEDED,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(before) => return Ok(before),
                Err(now) => word = now,
            }
        }
    }

    /// Tells the receiver that the group has changed. Masks and rates do not apply.
    pub fn notify_group_changed(&self) -> Delivered {
        let before = self.word.fetch_or(WAIT_GROUP_CHANGED, Ordering::SeqCst);
        // In two steps: one who heeds it in between has seen it.
        self.word.fetch_and(!HEEDED, Ordering::SeqCst);
        Delivered {
            was_empty: before & (EVENTS | CLOSED) == 0,
        }
    }

    /// Takes all pending events.
    #[must_use]
    pub fn take(&self) -> u64 {
        self.word.fetch_and(!(EVENTS | HEEDED), Ordering::SeqCst) & EVENTS
    }

    /// Whether events are pending.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.word.load(Ordering::SeqCst) & EVENTS != 0
    }

    /// Whether something is pending that has not been heeded.
    #[must_use]
    pub fn has_outstanding(&self) -> bool {
        let word = self.word.load(Ordering::SeqCst);
        word & EVENTS != 0 && word & HEEDED == 0
    }

    /// Marks what is pending as heeded: it is news again with the next ring.
    pub fn heed(&self) {
        self.word.fetch_or(HEEDED, Ordering::SeqCst);
    }

    /// Rings that arrived so far, merged ones included.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Refuses rings from now on, or takes them again. What is pending stays.
    pub fn set_masked(&self, masked: bool) {
        if masked {
            self.word.fetch_or(MASKED, Ordering::SeqCst);
        } else {
            self.word.fetch_and(!MASKED, Ordering::SeqCst);
        }
    }

    /// Whether it refuses rings.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.word.load(Ordering::SeqCst) & MASKED != 0
    }

    /// Whether the member has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.word.load(Ordering::SeqCst) & CLOSED != 0
    }

    /// The member has ended: no ring reaches it any more.
    pub fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::SeqCst);
    }
}

/// Whether rings are taken in this state.
fn open(word: u64) -> Result<(), Errno> {
    if word & CLOSED != 0 {
        Err(Errno::NoPeer)
    } else if word & MASKED != 0 {
        Err(Errno::Busy)
    } else {
        Ok(())
    }
}

/// A mailbox as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxState {
    word: u64,
    received: u64,
    paid_until: [u64; MAX_MEMBERS],
    interval_ticks: u64,
}

impl MailboxState {
    /// Moves its times.
    pub fn shift(&mut self, by: TscShift) {
        for paid in &mut self.paid_until {
            *paid = by.moved(*paid);
        }
    }
}

impl Mailbox {
    /// What it is. Nobody rings meanwhile: else it is one of several moments.
    #[must_use]
    pub fn save(&self) -> MailboxState {
        let Mailbox {
            word,
            received,
            paid_until,
            interval_ticks,
            // It follows from the interval.
            tolerance_ticks: _,
        } = self;
        MailboxState {
            word: word.load(Ordering::SeqCst),
            received: received.load(Ordering::SeqCst),
            paid_until: core::array::from_fn(|sender| {
                let paid = paid_until.get(sender);
                paid.map_or(0, |paid| paid.load(Ordering::SeqCst))
            }),
            interval_ticks: *interval_ticks,
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: it has events that there are not.
    pub fn restore(state: &MailboxState) -> Result<Mailbox, StateError> {
        let MailboxState {
            word,
            received,
            paid_until,
            interval_ticks,
        } = state;
        check(
            word & !(EVENTS | CLOSED | MASKED | HEEDED) == 0,
            "word",
            *word,
            "without bits that mean nothing",
        )?;
        Ok(Mailbox {
            word: AtomicU64::new(*word),
            received: AtomicU64::new(*received),
            paid_until: paid_until.map(AtomicU64::new),
            ..Mailbox::new(*interval_ticks)
        })
    }
}
