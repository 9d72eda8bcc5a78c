//! A ring with one producer and one consumer, each of which believes nothing of what the other wrote.

use super::atomic::{AtomicU8, AtomicU64, Ordering};
use super::{Life, Patience, PeerDied, Peers, WaitError, spin_to};

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
    /// The peer at the other end has ended, and for the consumer: nothing it put is left. A peer that was reset has ended, whatever its
    /// next life puts; the ring is of no use any more.
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
    /// The slot that comes next.
    next: usize,
    /// Slots, from that one on, that are known to be ours to use.
    ready: u64,
    mine: u64,
    /// The peer, once it has been looked at.
    life: Option<Life>,
    peer: u32,
}

impl<'a, W: Word> End<'a, W> {
    fn new(slots: &'a [W], ready: usize, peer: u32) -> End<'a, W> {
        End {
            slots,
            next: 0,
            ready: ready as u64,
            mine: 0,
            life: None,
            peer,
        }
    }

    /// Uses the next slot, if it is known to be ours, and publishes that.
    #[inline]
    fn use_next<R>(&mut self, counter: &Line, action: impl FnOnce(&W) -> R) -> Option<R> {
        self.ready.checked_sub(1).and_then(|ready| {
            let result = action(self.slots.get(self.next)?);
            self.ready = ready;
            self.next += 1;
            if self.next == self.slots.len() {
                self.next = 0;
            }
            self.mine += 1;
            counter.0.store(self.mine, Ordering::Release);
            Some(result)
        })
    }

    /// Believes the peer's counter if it says that at least one slot is ours: it stands for `found` of them.
    #[inline]
    fn believe(&mut self, ours: u64) -> bool {
        // One comparison for "none" and "more than there are".
        let is_good = ours.wrapping_sub(1) < self.slots.len() as u64;
        if is_good {
            self.ready = ours;
        }
        is_good
    }

    /// The peer's life, which is the one that it led when this was first asked.
    #[inline]
    fn life(&mut self, peers: &impl Peers) -> Life {
        let peer = self.peer;
        *self.life.get_or_insert_with(|| Life::now(peers, peer))
    }

    /// Waits until `attempt` has done it, or the peer's life is over.
    fn wait<T>(
        life: Life,
        peers: &impl Peers,
        patience: Patience,
        mut attempt: impl FnMut() -> Result<Option<T>, RingError>,
    ) -> Result<T, RingError> {
        let deadline = patience.deadline(peers);
        spin_to(peers, life, deadline, || attempt().transpose()).map_err(|error| match error {
            WaitError::PeerDied(died) => RingError::PeerDied(died),
            WaitError::TimedOut => RingError::TimedOut,
        })?
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
    /// The producer's end of a fresh ring; member `peer` is to take. Its peer is the life that the member leads when
    /// [`Producer::push`] is first called.
    #[must_use]
    pub fn new(header: &'a RingHeader, slots: &'a [W], peer: u32) -> Producer<'a, W> {
        Producer {
            header,
            end: End::new(slots, slots.len(), peer),
        }
    }

    /// As [`Producer::new`], for one life of the peer.
    #[must_use]
    pub fn to_life(header: &'a RingHeader, slots: &'a [W], life: Life) -> Producer<'a, W> {
        let mut producer = Producer::new(header, slots, life.member);
        producer.end.life = Some(life);
        producer
    }

    /// Puts a value if there is room; says whether it did. It does not ask whether the peer is alive.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    #[inline]
    pub fn try_push(&mut self, value: W::Value) -> Result<bool, RingError> {
        if self.end.ready == 0 && !self.look()? {
            return Ok(false);
        }
        let put = self.end.use_next(&self.header.put, |slot| slot.set(value));
        Ok(put.is_some())
    }

    /// Looks how much the peer has taken; says whether there is room.
    #[inline]
    fn look(&mut self) -> Result<bool, RingError> {
        let found = self.header.taken.0.load(Ordering::Acquire);
        let length = self.end.slots.len() as u64;
        let filled = self.end.mine.wrapping_sub(found);
        if self.end.believe(length.wrapping_sub(filled)) {
            return Ok(true);
        }
        // It may only grow, and never past what was put.
        if filled > length {
            return Err(RingError::Corrupt { found });
        }
        Ok(false)
    }

    /// Puts a value, waiting for room.
    ///
    /// # Errors
    /// [`RingError`].
    #[inline]
    pub fn push(
        &mut self,
        value: W::Value,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), RingError> {
        if self.end.life.is_some()
            && let Some(()) = self.end.use_next(&self.header.put, |slot| slot.set(value))
        {
            return Ok(());
        }
        self.push_slowly(value, peers, patience)
    }

    #[cold]
    #[inline(never)]
    fn push_slowly(
        &mut self,
        value: W::Value,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), RingError> {
        let life = self.end.life(peers);
        End::<W>::wait(life, peers, patience, || {
            self.try_push(value).map(|done| done.then_some(()))
        })
    }
}

impl<'a, W: Word> Consumer<'a, W> {
    /// The consumer's end of a fresh ring; member `peer` is to put. Its peer is the life that the member leads when
    /// [`Consumer::pop`] is first called.
    #[must_use]
    pub fn new(header: &'a RingHeader, slots: &'a [W], peer: u32) -> Consumer<'a, W> {
        Consumer {
            header,
            end: End::new(slots, 0, peer),
        }
    }

    /// As [`Consumer::new`], for one life of the peer.
    #[must_use]
    pub fn of_life(header: &'a RingHeader, slots: &'a [W], life: Life) -> Consumer<'a, W> {
        let mut consumer = Consumer::new(header, slots, life.member);
        consumer.end.life = Some(life);
        consumer
    }

    /// Takes a value if there is one. It does not ask who put it.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    #[inline]
    pub fn try_pop(&mut self) -> Result<Option<W::Value>, RingError> {
        if self.end.ready == 0 && !self.look()? {
            return Ok(None);
        }
        Ok(self.end.use_next(&self.header.taken, W::get))
    }

    /// Looks how much the peer has put; says whether anything is there.
    #[inline]
    fn look(&mut self) -> Result<bool, RingError> {
        let found = self.header.put.0.load(Ordering::Acquire);
        if self.end.believe(found.wrapping_sub(self.end.mine)) {
            return Ok(true);
        }
        // It may only grow, and never further ahead than the ring is long.
        if found != self.end.mine {
            return Err(RingError::Corrupt { found });
        }
        Ok(false)
    }

    /// Takes a value, waiting for one. What a dead peer had put is still taken, until its next life begins.
    ///
    /// # Errors
    /// [`RingError`].
    #[inline]
    pub fn pop(&mut self, peers: &impl Peers, patience: Patience) -> Result<W::Value, RingError> {
        if self.end.ready == 0 && !self.finds_own_peers(peers) {
            return self.pop_slowly(peers, patience);
        }
        match self.end.use_next(&self.header.taken, W::get) {
            Some(value) => Ok(value),
            None => self.pop_slowly(peers, patience),
        }
    }

    /// Whether something is there, and none of it can be the next life's.
    #[inline]
    fn finds_own_peers(&mut self, peers: &impl Peers) -> bool {
        let Some(life) = self.end.life else {
            return false;
        };
        let is_there = matches!(self.look(), Ok(true)) && life.is_latest(peers);
        if !is_there {
            self.end.ready = 0;
        }
        is_there
    }

    #[cold]
    #[inline(never)]
    fn pop_slowly(
        &mut self,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<W::Value, RingError> {
        let life = self.end.life(peers);
        End::<W>::wait(life, peers, patience, || self.try_pop())
    }
}
