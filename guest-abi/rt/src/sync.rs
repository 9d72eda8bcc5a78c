//! Synchronisation between members of a group, in the region: a spin lock, a barrier, a ring of words. All of them survive the
//! death of a peer: what would wait for ever answers [`PeerDied`] instead.
//!
//! They are made of atomics that live in the region; the values of this module are only views. What a peer wrote is never
//! trusted: an impossible index is an error. Who is alive is asked through [`Peers`], in guests by a plain load of the group
//! page, in tests by a double.

use core::sync::atomic::{AtomicU64, Ordering};

/// A member that was waited for has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerDied {
    /// Its index.
    pub member: u32,
}

/// Who can still answer.
pub trait Peers {
    /// Whether the member is alive.
    fn is_alive(&self, member: u32) -> bool;
}

/// The members of this guest's group.
#[derive(Clone, Copy, Debug)]
pub struct GroupPeers;

impl Peers for GroupPeers {
    fn is_alive(&self, member: u32) -> bool {
        crate::group::is_alive(member)
    }
}

fn relax() {
    core::hint::spin_loop();
    #[cfg(test)]
    std::thread::yield_now();
}

/// Waits by spinning until `ready` gives a value, looking every few rounds whether `member` is alive.
///
/// # Errors
/// [`PeerDied`], after one more look: what the peer did before it died counts.
pub fn spin_until<T>(
    peers: &impl Peers,
    member: u32,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T, PeerDied> {
    loop {
        for _ in 0..256 {
            if let Some(value) = ready() {
                return Ok(value);
            }
            relax();
        }
        if !peers.is_alive(member) {
            return ready().ok_or(PeerDied { member });
        }
    }
}

/// A lock in one word of the region: 0 free, else the holder's index plus 1.
#[derive(Debug)]
pub struct SpinLock<'a> {
    word: &'a AtomicU64,
    me: u32,
}

/// Why a lock was not taken as usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockError {
    /// The holder died with it. The lock is now held by the caller, who must mend what it protects, as with robust mutexes.
    OwnerDied(PeerDied),
    /// The word holds no member's index.
    Corrupt(u64),
}

impl<'a> SpinLock<'a> {
    /// The lock in `word`, for member `me`.
    #[must_use]
    pub fn new(word: &'a AtomicU64, me: u32) -> SpinLock<'a> {
        SpinLock { word, me }
    }

    fn mine(&self) -> u64 {
        u64::from(self.me) + 1
    }

    /// Takes the lock if it is free.
    #[must_use]
    pub fn try_lock(&self) -> bool {
        self.word
            .compare_exchange(0, self.mine(), Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes the lock, however long its holders live.
    ///
    /// # Errors
    /// [`LockError`]. After `OwnerDied` the caller holds the lock.
    pub fn lock(&self, peers: &impl Peers) -> Result<(), LockError> {
        loop {
            for _ in 0..64 {
                if self.try_lock() {
                    return Ok(());
                }
                relax();
            }
            let holder = self.word.load(Ordering::Relaxed);
            if holder == 0 {
                continue;
            }
            let Some(member) = holder
                .checked_sub(1)
                .and_then(|index| u32::try_from(index).ok())
                .filter(|index| *index < 32)
            else {
                return Err(LockError::Corrupt(holder));
            };
            if !peers.is_alive(member)
                && self
                    .word
                    .compare_exchange(holder, self.mine(), Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Err(LockError::OwnerDied(PeerDied { member }));
            }
        }
    }

    /// Gives the lock up. Does nothing if the caller does not hold it.
    pub fn unlock(&self) {
        let _ = self
            .word
            .compare_exchange(self.mine(), 0, Ordering::Release, Ordering::Relaxed);
    }
}

/// A barrier in two words: how many arrived, and how often all have.
#[derive(Debug)]
pub struct Barrier<'a> {
    arrived: &'a AtomicU64,
    round: &'a AtomicU64,
    members: u32,
}

impl<'a> Barrier<'a> {
    /// The barrier of members 0 to `members` - 1.
    #[must_use]
    pub fn new(arrived: &'a AtomicU64, round: &'a AtomicU64, members: u32) -> Barrier<'a> {
        Barrier {
            arrived,
            round,
            members,
        }
    }

    /// Waits until all members have come here.
    ///
    /// # Errors
    /// [`PeerDied`] if a member ended before all had come; the barrier is then of no use until it is made anew.
    pub fn wait(&self, peers: &impl Peers) -> Result<(), PeerDied> {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == u64::from(self.members) {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return Ok(());
        }
        loop {
            for _ in 0..256 {
                if self.round.load(Ordering::Acquire) != round {
                    return Ok(());
                }
                relax();
            }
            let dead = (0..self.members).find(|member| !peers.is_alive(*member));
            if let Some(member) = dead
                && self.round.load(Ordering::Acquire) == round
            {
                return Err(PeerDied { member });
            }
        }
    }
}

/// One end of a ring of 64-bit words with one producer and one consumer. `head` counts what was taken, `tail` what was put; put
/// them on cache lines of their own.
#[derive(Debug)]
pub struct Ring<'a> {
    head: &'a AtomicU64,
    tail: &'a AtomicU64,
    slots: &'a [AtomicU64],
    peer: u32,
}

/// Why a word was not passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The peer at the other end has ended, and for the consumer: nothing it put is left.
    PeerDied(PeerDied),
    /// The counters contradict each other: the peer wrote nonsense.
    Corrupt,
}

impl<'a> Ring<'a> {
    /// The ring made of these cells; `peer` is at the other end.
    #[must_use]
    pub fn new(
        head: &'a AtomicU64,
        tail: &'a AtomicU64,
        slots: &'a [AtomicU64],
        peer: u32,
    ) -> Ring<'a> {
        Ring {
            head,
            tail,
            slots,
            peer,
        }
    }

    fn slot(&self, count: u64) -> Result<&AtomicU64, RingError> {
        let length = self.slots.len() as u64;
        if length == 0 {
            return Err(RingError::Corrupt);
        }
        self.slots
            .get((count % length) as usize)
            .ok_or(RingError::Corrupt)
    }

    /// Puts a word if there is room.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn try_push(&self, word: u64) -> Result<bool, RingError> {
        let tail = self.tail.load(Ordering::Relaxed);
        let used = tail.wrapping_sub(self.head.load(Ordering::Acquire));
        let length = self.slots.len() as u64;
        if used > length {
            return Err(RingError::Corrupt);
        }
        if used == length {
            return Ok(false);
        }
        self.slot(tail)?.store(word, Ordering::Relaxed);
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Ok(true)
    }

    /// Takes a word if there is one.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn try_pop(&self) -> Result<Option<u64>, RingError> {
        let head = self.head.load(Ordering::Relaxed);
        let used = self.tail.load(Ordering::Acquire).wrapping_sub(head);
        if used > self.slots.len() as u64 {
            return Err(RingError::Corrupt);
        }
        if used == 0 {
            return Ok(None);
        }
        let word = self.slot(head)?.load(Ordering::Relaxed);
        self.head.store(head.wrapping_add(1), Ordering::Release);
        Ok(Some(word))
    }

    /// Puts a word, waiting for room.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn push(&self, word: u64, peers: &impl Peers) -> Result<(), RingError> {
        self.until(peers, || self.try_push(word).map(|done| done.then_some(())))
    }

    /// Takes a word, waiting for one. What a dead peer had put is still taken.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn pop(&self, peers: &impl Peers) -> Result<u64, RingError> {
        self.until(peers, || self.try_pop())
    }

    fn until<T>(
        &self,
        peers: &impl Peers,
        mut attempt: impl FnMut() -> Result<Option<T>, RingError>,
    ) -> Result<T, RingError> {
        spin_until(peers, self.peer, || attempt().transpose()).map_err(RingError::PeerDied)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU32;
    use std::sync::Arc;
    use std::thread;
    use std::vec::Vec;

    /// Members by bit: set while alive.
    struct Double(AtomicU32);

    impl Peers for Double {
        fn is_alive(&self, member: u32) -> bool {
            self.0.load(Ordering::SeqCst) & (1 << member) != 0
        }
    }

    #[test]
    fn a_dead_holders_lock_is_taken_over_with_an_error() {
        let word = AtomicU64::new(0);
        let peers = Double(AtomicU32::new(0b01));
        let (dead, alive) = (SpinLock::new(&word, 1), SpinLock::new(&word, 0));
        assert!(dead.try_lock());
        assert_eq!(
            alive.lock(&peers),
            Err(LockError::OwnerDied(PeerDied { member: 1 }))
        );
        dead.unlock();
        assert!(!dead.try_lock(), "the new holder keeps it");
        alive.unlock();
        assert!(dead.try_lock());
        word.store(77, Ordering::SeqCst);
        assert_eq!(alive.lock(&peers), Err(LockError::Corrupt(77)));
    }

    #[test]
    fn the_lock_excludes() {
        let word = Arc::new(AtomicU64::new(0));
        let counter = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..4)
            .map(|me| {
                let (word, counter) = (word.clone(), counter.clone());
                thread::spawn(move || {
                    let lock = SpinLock::new(&word, me);
                    let peers = Double(AtomicU32::new(u32::MAX));
                    for _ in 0..500 {
                        assert_eq!(lock.lock(&peers), Ok(()));
                        // Not atomic as a whole: only the lock makes it right.
                        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        lock.unlock();
                    }
                })
            })
            .collect();
        for thread in threads {
            assert!(thread.join().is_ok());
        }
        assert_eq!(counter.load(Ordering::SeqCst), 2000);
    }

    #[test]
    fn nobody_passes_the_barrier_alone_and_a_death_breaks_it() {
        let cells = Arc::new([const { AtomicU64::new(0) }; 3]);
        let threads: Vec<_> = (0..3_u64)
            .map(|_| {
                let cells = cells.clone();
                thread::spawn(move || {
                    let barrier = Barrier::new(&cells[0], &cells[1], 3);
                    let peers = Double(AtomicU32::new(0b111));
                    for round in 0..100 {
                        cells[2].fetch_add(1, Ordering::SeqCst);
                        assert_eq!(barrier.wait(&peers), Ok(()));
                        assert!(cells[2].load(Ordering::SeqCst) >= (round + 1) * 3);
                        assert_eq!(barrier.wait(&peers), Ok(()));
                    }
                })
            })
            .collect();
        for thread in threads {
            assert!(thread.join().is_ok());
        }
        let barrier = Barrier::new(&cells[0], &cells[1], 3);
        assert_eq!(
            barrier.wait(&Double(AtomicU32::new(0b011))),
            Err(PeerDied { member: 2 })
        );
    }

    #[test]
    fn words_pass_the_ring_in_order_and_what_a_dead_peer_put_is_kept() {
        let cells = Arc::new((
            AtomicU64::new(0),
            AtomicU64::new(0),
            [const { AtomicU64::new(0) }; 7],
        ));
        let producer = {
            let cells = cells.clone();
            thread::spawn(move || {
                let ring = Ring::new(&cells.0, &cells.1, &cells.2, 1);
                let peers = Double(AtomicU32::new(0b11));
                for word in 0..5000 {
                    assert_eq!(ring.push(word, &peers), Ok(()));
                }
            })
        };
        let ring = Ring::new(&cells.0, &cells.1, &cells.2, 0);
        let peers = Double(AtomicU32::new(0b11));
        for word in 0..4998 {
            assert_eq!(ring.pop(&peers), Ok(word));
        }
        assert!(producer.join().is_ok());
        let dead = Double(AtomicU32::new(0b10));
        assert_eq!(ring.pop(&dead), Ok(4998));
        assert_eq!(ring.pop(&dead), Ok(4999));
        assert_eq!(
            ring.pop(&dead),
            Err(RingError::PeerDied(PeerDied { member: 0 }))
        );
    }

    #[test]
    fn nonsense_in_the_counters_is_an_error() {
        let (head, tail) = (AtomicU64::new(5), AtomicU64::new(0));
        let slots = [const { AtomicU64::new(0) }; 4];
        let ring = Ring::new(&head, &tail, &slots, 0);
        assert_eq!(ring.try_pop(), Err(RingError::Corrupt));
        assert_eq!(ring.try_push(1), Err(RingError::Corrupt));
        let empty = Ring::new(&tail, &tail, &[], 0);
        assert_eq!(empty.try_push(1), Ok(false));
    }
}
