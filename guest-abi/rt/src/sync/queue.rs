//! A queue with several producers and one consumer, in which a producer that dies half way holds nobody up.
//!
//! A producer claims a slot by its own name, stores its value, and marks the slot as full. The consumer takes the slots in order; where it
//! finds a claim whose owner has died, it takes the claim away and goes on. Which slot comes next for producers is a hint: one that is
//! behind costs a few looks, one that is ahead of what can be is an error.
//!
//! A slot's state is a number that tells in which pass over the slots (its *lap*) it is free or full, or who claims it.
//! Source: D. Vyukov's bounded queue, with claims that have names.

use guest_abi::MAX_MEMBERS;

use super::atomic::{AtomicU64, Ordering};
use super::{LOOKS, Life, Patience, PeerDied, Peers, WaitError, spin_for};

/// What the producers have in common. All zeros is an empty queue.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct QueueHeader {
    /// A hint: no slot before this one is free for its lap.
    tail: AtomicU64,
}

/// One slot. All zeros is a free one.
#[derive(Debug, Default)]
#[repr(C)]
pub struct QueueSlot {
    state: AtomicU64,
    value: AtomicU64,
}

#[cfg(all(test, not(loom)))]
impl QueueHeader {
    /// What a broken peer could write.
    pub(super) fn overwrite_tail(&self, value: u64) {
        self.tail.store(value, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
impl QueueSlot {
    /// What a broken peer could write.
    pub(super) fn overwrite_state(&self, value: u64) {
        self.state.store(value, Ordering::SeqCst);
    }
}

/// Why nothing was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A member at the other end has ended. The consumer is told so once of each producer, after it has taken what that one had put; the
    /// queue goes on with the others.
    PeerDied(PeerDied),
    /// All producers have ended, and nothing is left.
    NobodyLeft,
    /// A slot's state is none that this code writes: a peer is broken.
    Corrupt {
        /// The state.
        found: u64,
    },
    /// The time has passed.
    TimedOut,
}

const FREE: u64 = 0;
const FULL: u64 = 1;
const CLAIMED: u64 = 2;
const KIND_BITS: u32 = 2;
const KIND: u64 = (1 << KIND_BITS) - 1;
/// The claiming member's index plus 1 stands in the low bits behind the kind, its incarnation above.
const INDEX_BITS: u32 = 8;

#[inline]
const fn free(lap: u64) -> u64 {
    lap << KIND_BITS | FREE
}

#[inline]
const fn full(lap: u64) -> u64 {
    lap << KIND_BITS | FULL
}

#[inline]
fn claim(life: Life) -> u64 {
    let name = (life.incarnation << INDEX_BITS) | (u64::from(life.member) + 1);
    name << KIND_BITS | CLAIMED
}

/// Whose claim a state is.
fn owner(state: u64) -> Option<Life> {
    if state & KIND != CLAIMED {
        return None;
    }
    let name = state >> KIND_BITS;
    let member = u32::try_from((name & ((1 << INDEX_BITS) - 1)).checked_sub(1)?).ok()?;
    ((member as usize) < MAX_MEMBERS).then_some(Life {
        member,
        incarnation: name >> INDEX_BITS,
    })
}

/// The slots as both ends see them.
#[derive(Clone, Copy, Debug)]
struct Slots<'a> {
    slots: &'a [QueueSlot],
    /// Its length is 1 << `shift`.
    shift: u32,
}

impl<'a> Slots<'a> {
    fn new(slots: &'a [QueueSlot]) -> Option<Slots<'a>> {
        let shift = slots.len().trailing_zeros();
        slots
            .len()
            .is_power_of_two()
            .then_some(Slots { slots, shift })
    }

    /// The slot of a position, and the lap that the position belongs to.
    #[inline]
    fn at(&self, position: u64) -> (&'a QueueSlot, u64) {
        let index = position as usize & (self.slots.len() - 1);
        (&self.slots[index], position >> self.shift)
    }
}

/// The end of one producer. Several may be made for one queue, in one member or in many.
#[derive(Debug)]
pub struct Sender<'a> {
    header: &'a QueueHeader,
    slots: Slots<'a>,
    claim: u64,
    peer: u32,
}

impl<'a> Sender<'a> {
    /// A producer in member `me`; member `peer` is to take. `None` if the number of slots is no power of two.
    #[must_use]
    pub fn new(
        header: &'a QueueHeader,
        slots: &'a [QueueSlot],
        me: u32,
        peer: u32,
        peers: &impl Peers,
    ) -> Option<Sender<'a>> {
        Some(Sender {
            header,
            slots: Slots::new(slots)?,
            claim: claim(Life::now(peers, me)),
            peer,
        })
    }

    /// Puts a value if there is room; says whether it did. It does not ask whether the consumer is alive.
    ///
    /// # Errors
    /// [`QueueError::Corrupt`].
    #[inline]
    pub fn try_send(&self, value: u64) -> Result<bool, QueueError> {
        let position = self.header.tail.load(Ordering::Relaxed);
        if self.try_at(position, value) {
            return Ok(true);
        }
        self.seek(position, value)
    }

    /// Puts a value at that position, if it is free.
    #[inline]
    fn try_at(&self, position: u64, value: u64) -> bool {
        let (slot, lap) = self.slots.at(position);
        let claimed = slot.state.compare_exchange(
            free(lap),
            self.claim,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        if claimed.is_err() {
            return false;
        }
        slot.value.store(value, Ordering::Relaxed);
        slot.state.store(full(lap), Ordering::Release);
        let next = position.wrapping_add(1);
        self.header.tail.store(next, Ordering::Relaxed);
        true
    }

    /// Puts a value at the first position from there on that is free, if any is.
    #[cold]
    #[inline(never)]
    fn seek(&self, mut position: u64, value: u64) -> Result<bool, QueueError> {
        // Twice round: a hint that is behind leads over what others have filled meanwhile.
        for _ in 0..2 * self.slots.slots.len() {
            let (slot, lap) = self.slots.at(position);
            let found = slot.state.load(Ordering::Relaxed);
            let (kind, its_lap) = (found & KIND, found >> KIND_BITS);
            match kind {
                FREE if its_lap == lap => {
                    if self.try_at(position, value) {
                        return Ok(true);
                    }
                    continue;
                }
                // Not yet taken since the last time round.
                FULL if its_lap.wrapping_add(1) == lap => return Ok(false),
                FREE | FULL if its_lap < lap => return Err(QueueError::Corrupt { found }),
                FREE | FULL => {}
                _ if owner(found).is_some() => {}
                _ => return Err(QueueError::Corrupt { found }),
            }
            let hint = self.header.tail.load(Ordering::Relaxed);
            position = position.wrapping_add(1).max(hint);
        }
        Ok(false)
    }

    /// Puts a value, waiting for room.
    ///
    /// # Errors
    /// [`QueueError::PeerDied`] if the life that the consumer led when the wait began has ended; [`QueueError::TimedOut`];
    /// [`QueueError::Corrupt`].
    #[inline]
    pub fn send(
        &self,
        value: u64,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), QueueError> {
        if self.try_send(value)? {
            return Ok(());
        }
        let sent = || self.try_send(value).map(|done| done.then_some(()));
        spin_for(peers, self.peer, patience, || sent().transpose()).map_err(
            |error| match error {
                WaitError::PeerDied(died) => QueueError::PeerDied(died),
                WaitError::TimedOut => QueueError::TimedOut,
            },
        )?
    }
}

#[cfg(any(test, loom))]
impl Sender<'_> {
    /// What is left of one that dies half way: a claim at that position.
    #[doc(hidden)]
    pub fn claim_only(&self, position: u64) {
        let (slot, lap) = self.slots.at(position);
        let claimed = slot.state.compare_exchange(
            free(lap),
            self.claim,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        assert!(claimed.is_ok(), "the slot is not free");
    }
}

/// The consumer's end.
#[derive(Debug)]
pub struct Receiver<'a> {
    slots: Slots<'a>,
    head: u64,
    /// The producers' lives, and which of them have not been told to have ended.
    lives: [Life; MAX_MEMBERS],
    left: u32,
}

impl<'a> Receiver<'a> {
    /// The consumer of a fresh queue whose producers are the lives that these members (one bit for each) lead now. `None` if the number
    /// of slots is no power of two.
    #[must_use]
    pub fn new(slots: &'a [QueueSlot], producers: u32, peers: &impl Peers) -> Option<Receiver<'a>> {
        Some(Receiver {
            slots: Slots::new(slots)?,
            head: 0,
            lives: core::array::from_fn(|member| Life::now(peers, member as u32)),
            left: producers,
        })
    }

    /// Takes a value if there is one.
    ///
    /// # Errors
    /// [`QueueError::Corrupt`].
    #[inline]
    pub fn try_receive(&mut self) -> Result<Option<u64>, QueueError> {
        let (slot, lap) = self.slots.at(self.head);
        let found = slot.state.load(Ordering::Acquire);
        if found == full(lap) {
            let value = slot.value.load(Ordering::Relaxed);
            slot.state.store(free(lap + 1), Ordering::Release);
            self.head += 1;
            return Ok(Some(value));
        }
        if found == free(lap) || owner(found).is_some() {
            return Ok(None);
        }
        Err(QueueError::Corrupt { found })
    }

    /// Takes a value, waiting for one.
    ///
    /// # Errors
    /// [`QueueError`]. After [`QueueError::PeerDied`] the queue goes on.
    #[inline]
    pub fn receive(&mut self, peers: &impl Peers, patience: Patience) -> Result<u64, QueueError> {
        match self.try_receive()? {
            Some(value) => Ok(value),
            None => self.receive_slowly(peers, patience),
        }
    }

    #[cold]
    #[inline(never)]
    fn receive_slowly(
        &mut self,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<u64, QueueError> {
        let deadline = patience.deadline(peers);
        loop {
            for _ in 0..LOOKS {
                if let Some(value) = self.try_receive()? {
                    return Ok(value);
                }
                peers.relax();
            }
            // Whose claim stands in the way need be none of the producers that were named.
            if self.skip_dead(peers) {
                continue;
            }
            if let Some(died) = self.ended(peers) {
                // What it had put before is still taken, and the next call tells.
                if let Some(value) = self.try_receive()? {
                    return Ok(value);
                }
                if self.skip_dead(peers) {
                    continue;
                }
                self.left &= !(1 << died.member);
                return Err(QueueError::PeerDied(died));
            }
            if self.left == 0 {
                return Err(QueueError::NobodyLeft);
            }
            if deadline.is_some_and(|deadline| peers.ticks() >= deadline) {
                return Err(QueueError::TimedOut);
            }
        }
    }

    /// A producer that has ended and of whom that was not told.
    fn ended(&self, peers: &impl Peers) -> Option<PeerDied> {
        self.lives
            .iter()
            .filter(|life| self.left >> life.member & 1 == 1)
            .find(|life| !life.is_on(peers))
            .map(|life| life.died())
    }

    /// Takes the claim away that stands in the way if its owner has died: what it had not put whole is lost. Says whether it did.
    fn skip_dead(&mut self, peers: &impl Peers) -> bool {
        let (slot, lap) = self.slots.at(self.head);
        let found = slot.state.load(Ordering::Acquire);
        if owner(found).is_none_or(|life| life.is_on(peers)) {
            return false;
        }
        // It fails if the owner had filled the slot before it died.
        let skipped =
            slot.state
                .compare_exchange(found, free(lap + 1), Ordering::Release, Ordering::Relaxed);
        self.head += u64::from(skipped.is_ok());
        skipped.is_ok()
    }
}
