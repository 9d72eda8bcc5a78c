//! A spin lock whose holder may die, after the model of POSIX robust mutexes.

use super::atomic::{AtomicU64, Ordering};
use super::{LOOKS, Life, Patience, PeerDied, Peers};

/// Nobody holds it.
const FREE: u64 = 0;
/// A holder died and its heir did not mend what it protects.
const POISONED: u64 = u64::MAX;
/// The holder's index plus 1 stands in the low bits, its incarnation above.
const INDEX_BITS: u32 = 8;

/// A lock in one word of the region. Zero is an open lock.
#[derive(Debug)]
#[repr(C)]
pub struct SpinLock {
    word: AtomicU64,
}

/// Why a lock was not taken as usual.
#[derive(Debug)]
pub enum LockError<'a> {
    /// The holder died with it. The caller now holds the lock, and must mend what it protects.
    OwnerDied(Recovery<'a>),
    /// A holder died, and its heir could not mend what the lock protects.
    NotRecoverable,
    /// The word is none that this code writes: a peer is broken.
    Corrupt(u64),
    /// The time has passed; the holder is alive.
    TimedOut,
}

/// The lock, held. Dropping it opens the lock.
#[derive(Debug)]
pub struct Guard<'a> {
    lock: &'a SpinLock,
    word: u64,
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        // Not a plain store: if a peer has overwritten the word, it is not ours to open.
        let _ =
            self.lock
                .word
                .compare_exchange(self.word, FREE, Ordering::Release, Ordering::Relaxed);
    }
}

/// The lock, held after its holder's death. Dropping it without [`Recovery::recovered`] closes the lock for good.
#[derive(Debug)]
pub struct Recovery<'a> {
    guard: Option<Guard<'a>>,
    died: PeerDied,
}

impl<'a> Recovery<'a> {
    /// Who died with the lock.
    #[must_use]
    pub fn died(&self) -> PeerDied {
        self.died
    }

    /// What the lock protects has been mended: it is an ordinary lock again, held by the caller. `None` never comes.
    #[must_use]
    pub fn recovered(mut self) -> Option<Guard<'a>> {
        self.guard.take()
    }
}

impl Drop for Recovery<'_> {
    fn drop(&mut self) {
        if let Some(guard) = &self.guard {
            let word = &guard.lock.word;
            let _ =
                word.compare_exchange(guard.word, POISONED, Ordering::Release, Ordering::Relaxed);
        }
    }
}

impl SpinLock {
    /// An open lock.
    #[must_use]
    #[cfg(not(loom))]
    pub const fn new() -> SpinLock {
        SpinLock {
            word: AtomicU64::new(FREE),
        }
    }

    /// An open lock.
    #[must_use]
    #[cfg(loom)]
    pub fn new() -> SpinLock {
        SpinLock {
            word: AtomicU64::new(FREE),
        }
    }

    /// Takes the lock for member `me`, however long its holders live.
    ///
    /// # Errors
    /// [`LockError`], never `TimedOut`.
    #[inline]
    pub fn lock(&self, me: u32, peers: &impl Peers) -> Result<Guard<'_>, LockError<'_>> {
        self.acquire(me, peers, Patience::Endless)
    }

    /// Takes the lock for member `me`, waiting at most `ticks`; 0 tries once.
    ///
    /// # Errors
    /// [`LockError`].
    #[inline]
    pub fn try_lock_for(
        &self,
        me: u32,
        peers: &impl Peers,
        ticks: u64,
    ) -> Result<Guard<'_>, LockError<'_>> {
        self.acquire(me, peers, Patience::Ticks(ticks))
    }

    #[inline]
    fn acquire(
        &self,
        me: u32,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<Guard<'_>, LockError<'_>> {
        let word = pack(me, peers.incarnation(me));
        match self.exchange(FREE, word) {
            Ok(guard) => Ok(guard),
            Err(_) => self.contend(word, peers, patience),
        }
    }

    #[inline]
    fn exchange(&self, found: u64, word: u64) -> Result<Guard<'_>, u64> {
        self.word
            .compare_exchange(found, word, Ordering::Acquire, Ordering::Relaxed)
            .map(|_| Guard { lock: self, word })
    }

    #[cold]
    #[inline(never)]
    fn contend(
        &self,
        mine: u64,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<Guard<'_>, LockError<'_>> {
        let deadline = patience.deadline(peers);
        loop {
            let mut holder = FREE;
            for _ in 0..LOOKS {
                match self.exchange(FREE, mine) {
                    Ok(guard) => return Ok(guard),
                    Err(POISONED) => return Err(LockError::NotRecoverable),
                    Err(other) => holder = other,
                }
                peers.relax();
            }
            let Some(life) = unpack(holder) else {
                return Err(LockError::Corrupt(holder));
            };
            let lives = peers.is_alive(life.member)
                && same(peers.incarnation(life.member), life.incarnation);
            // The exchange fails if the holder opened the lock before it died, or another member inherits first.
            if !lives && let Ok(guard) = self.exchange(holder, mine) {
                return Err(LockError::OwnerDied(Recovery {
                    guard: Some(guard),
                    died: life.died(),
                }));
            }
            if lives && deadline.is_some_and(|deadline| peers.ticks() >= deadline) {
                return Err(LockError::TimedOut);
            }
        }
    }
}

impl Default for SpinLock {
    fn default() -> SpinLock {
        SpinLock::new()
    }
}

#[inline]
fn pack(index: u32, incarnation: u64) -> u64 {
    incarnation << INDEX_BITS | (u64::from(index) + 1)
}

/// The holder; `None` if no member has such an index.
fn unpack(word: u64) -> Option<Life> {
    let index = (word & ((1 << INDEX_BITS) - 1)).checked_sub(1)?;
    let index = u32::try_from(index)
        .ok()
        .filter(|index| (*index as usize) < guest_abi::MAX_MEMBERS)?;
    Some(Life {
        member: index,
        incarnation: word >> INDEX_BITS,
    })
}

/// Whether a member's incarnation is the one a word holds, which has no room for its highest bits.
fn same(incarnation: u64, in_word: u64) -> bool {
    incarnation << INDEX_BITS >> INDEX_BITS == in_word
}
