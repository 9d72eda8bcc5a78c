//! A ring with one producer and one consumer, each of which believes nothing of what the other wrote.

use super::atomic::{AtomicU8, AtomicU64, Ordering};
use super::{Patience, PeerDied, Peers, WaitError, spin_for};

/// The counters of a ring, each on a cache line of its own. All zeros is an empty ring.
#[derive(Debug, Default)]
#[repr(C)]
pub struct RingHeader {
    taken: Line,
    put: Line,
}

#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Line(AtomicU64);

#[cfg(all(test, not(loom)))]
impl RingHeader {
    /// What a broken consumer could write.
    pub(super) fn overwrite_taken(&self, value: u64) {
        self.taken.0.store(value, Ordering::SeqCst);
    }

    /// What a broken producer could write.
    pub(super) fn overwrite_put(&self, value: u64) {
        self.put.0.store(value, Ordering::SeqCst);
    }
}

/// An atomic that can be an element.
pub trait Word {
    /// What it holds.
    type Value: Copy;
    /// Loads it; the counters order what came before.
    fn get(&self) -> Self::Value;
    /// Stores it.
    fn set(&self, value: Self::Value);
}

impl Word for AtomicU64 {
    type Value = u64;

    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn set(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }
}

impl Word for AtomicU8 {
    type Value = u8;

    fn get(&self) -> u8 {
        self.load(Ordering::Relaxed)
    }

    fn set(&self, value: u8) {
        self.store(value, Ordering::Relaxed);
    }
}

/// Why an element was not passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The peer at the other end has ended, and for the consumer: nothing it put is left.
    PeerDied(PeerDied),
    /// The peer's counter goes back, or past ours: it wrote nonsense. The ring is of no use any more.
    Corrupt {
        /// What the peer's counter holds.
        found: u64,
    },
    /// The time has passed.
    TimedOut,
}

/// One end: what both have in common. The own counter is kept here and never read back from the region.
#[derive(Debug)]
struct End<'a, W> {
    slots: &'a [W],
    mine: u64,
    theirs: u64,
    peer: u32,
}

impl<W: Word> End<'_, W> {
    fn slot(&self) -> Option<&W> {
        let length = self.slots.len() as u64;
        // An empty ring has no slot, and room for nothing.
        let index = self.mine.checked_rem(length)?;
        self.slots.get(index as usize)
    }
}

/// The end that puts elements in.
#[derive(Debug)]
pub struct Producer<'a, W> {
    header: &'a RingHeader,
    end: End<'a, W>,
}

/// The end that takes elements out.
#[derive(Debug)]
pub struct Consumer<'a, W> {
    header: &'a RingHeader,
    end: End<'a, W>,
}

impl<'a, W: Word> Producer<'a, W> {
    /// The producer's end of a fresh ring; member `peer` is to take.
    #[must_use]
    pub fn new(header: &'a RingHeader, slots: &'a [W], peer: u32) -> Producer<'a, W> {
        Producer {
            header,
            end: End {
                slots,
                mine: 0,
                theirs: 0,
                peer,
            },
        }
    }

    /// Puts a value if there is room; says whether it did.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn try_push(&mut self, value: W::Value) -> Result<bool, RingError> {
        let length = self.end.slots.len() as u64;
        if self.end.mine - self.end.theirs >= length {
            let found = self.header.taken.0.load(Ordering::Acquire);
            // It may only grow, and never past what was put.
            if !(self.end.theirs..=self.end.mine).contains(&found) {
                return Err(RingError::Corrupt { found });
            }
            self.end.theirs = found;
            if self.end.mine - found >= length {
                return Ok(false);
            }
        }
        let Some(slot) = self.end.slot() else {
            return Ok(false);
        };
        slot.set(value);
        self.end.mine += 1;
        self.header.put.0.store(self.end.mine, Ordering::Release);
        Ok(true)
    }

    /// Puts a value, waiting for room.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn push(
        &mut self,
        value: W::Value,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), RingError> {
        let peer = self.end.peer;
        until(peers, peer, patience, || {
            self.try_push(value).map(|done| done.then_some(()))
        })
    }
}

impl<'a, W: Word> Consumer<'a, W> {
    /// The consumer's end of a fresh ring; member `peer` is to put.
    #[must_use]
    pub fn new(header: &'a RingHeader, slots: &'a [W], peer: u32) -> Consumer<'a, W> {
        Consumer {
            header,
            end: End {
                slots,
                mine: 0,
                theirs: 0,
                peer,
            },
        }
    }

    /// Takes a value if there is one.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn try_pop(&mut self) -> Result<Option<W::Value>, RingError> {
        if self.end.mine == self.end.theirs {
            let found = self.header.put.0.load(Ordering::Acquire);
            // It may only grow, and never further ahead than the ring is long.
            let most = self.end.mine.saturating_add(self.end.slots.len() as u64);
            if !(self.end.theirs..=most).contains(&found) {
                return Err(RingError::Corrupt { found });
            }
            self.end.theirs = found;
            if found == self.end.mine {
                return Ok(None);
            }
        }
        let Some(slot) = self.end.slot() else {
            return Ok(None);
        };
        let value = slot.get();
        self.end.mine += 1;
        self.header.taken.0.store(self.end.mine, Ordering::Release);
        Ok(Some(value))
    }

    /// Takes a value, waiting for one. What a dead peer had put is still taken.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn pop(&mut self, peers: &impl Peers, patience: Patience) -> Result<W::Value, RingError> {
        let peer = self.end.peer;
        until(peers, peer, patience, || self.try_pop())
    }
}

fn until<T>(
    peers: &impl Peers,
    peer: u32,
    patience: Patience,
    mut attempt: impl FnMut() -> Result<Option<T>, RingError>,
) -> Result<T, RingError> {
    spin_for(peers, peer, patience, || attempt().transpose()).map_err(|error| match error {
        WaitError::PeerDied(died) => RingError::PeerDied(died),
        WaitError::TimedOut => RingError::TimedOut,
    })?
}
