//! Synchronisation between members of a group, in the region: a spin lock, a barrier, a ring, a queue of several producers. All of
//! them survive the death of a peer: what would wait for ever answers with an error instead.
//!
//! They are plain structures of atomics for which all zeros is the right beginning, so that a cell of a fresh region is one
//! ([`crate::region::View::cell`]). What a peer wrote is never trusted: an impossible value is an error, never undefined behaviour.
//! Who is alive is asked through [`Peers`]: in guests by a plain load of the group page, in tests by a double.
//!
//! A peer is one *life* of a member ([`Life`]), not an index: every wait remembers the incarnation it began with, and a member that was
//! reset has ended, however well its second life is. What a life did before it ended counts until the next one begins; what the next
//! one does never counts as the first one's.
//!
//! Concurrency: a member's claims are made in its index's name; two vCPUs of one member exclude each other from a lock, but may
//! not share an end of a ring or arrive at a barrier both.
//!
//! Under `cfg(loom)` the atomics are the model checker's: `RUSTFLAGS="--cfg loom" cargo test -p nagaya-rt --release --test loom`.

mod barrier;
mod lock;
mod queue;
mod ring;
#[cfg(all(test, not(loom)))]
mod tests;

pub use barrier::{Barrier, BarrierError, Round};
pub use lock::{Guard, LockError, Recovery, SpinLock};
pub use queue::{QueueError, QueueHeader, QueueSlot, Receiver, Sender};
pub use ring::{Consumer, Producer, RingError, RingHeader, Word};

/// The atomics that the primitives are made of.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
    #[cfg(loom)]
    pub use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering};
}

/// How often a waiting loop looks at its cell before it looks at the clock and the peer. The model checker explores each round.
const LOOKS: u32 = if cfg!(loom) { 1 } else { 256 };

/// A member that was waited for has ended. A member that was reset has, too: its second life is another peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerDied {
    /// Its index.
    pub member: u32,
    /// The incarnation that ended; 0 if no member ever had that index.
    pub incarnation: u64,
}

/// One life of a member: what a wait is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The member's index.
    pub member: u32,
    /// Which VM in a row it is that has this index.
    pub incarnation: u64,
}

impl Life {
    /// The life that a member leads now, or has led last.
    #[inline]
    #[must_use]
    pub fn now(peers: &impl Peers, member: u32) -> Life {
        Life {
            member,
            incarnation: peers.incarnation(member),
        }
    }

    /// Whether it is led still. What it did before is visible once this says no.
    #[must_use]
    pub fn is_on(self, peers: &impl Peers) -> bool {
        // In this order: the hypervisor writes a new incarnation before the state that goes with it, so that a live state of the
        // next life is never taken for this one's.
        peers.is_alive(self.member) && self.is_latest(peers)
    }

    /// Whether no other life has begun: what is found in the region is this one's, even if it has ended.
    #[inline]
    #[must_use]
    pub fn is_latest(self, peers: &impl Peers) -> bool {
        peers.incarnation(self.member) == self.incarnation
    }

    /// Its end, as an error.
    #[must_use]
    pub fn died(self) -> PeerDied {
        PeerDied {
            member: self.member,
            incarnation: self.incarnation,
        }
    }
}

/// Who can still answer, and what time it is.
pub trait Peers {
    /// Whether the member is alive. What it wrote before it died is visible once this says no.
    fn is_alive(&self, member: u32) -> bool;

    /// Tells a member from an earlier one with the same index. Loads that come after this one see what that member does.
    fn incarnation(&self, member: u32) -> u64;

    /// A clock that never goes back.
    fn ticks(&self) -> u64 {
        crate::time::ticks()
    }

    /// What to do in a waiting loop.
    fn relax(&self) {
        #[cfg(not(loom))]
        core::hint::spin_loop();
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(all(test, not(loom)))]
        std::thread::yield_now();
    }
}

/// The members of this guest's group.
#[derive(Clone, Copy, Debug)]
pub struct GroupPeers;

impl Peers for GroupPeers {
    #[inline]
    fn is_alive(&self, member: u32) -> bool {
        let alive = crate::group::is_alive(member);
        core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
        alive
    }

    #[inline]
    fn incarnation(&self, member: u32) -> u64 {
        // What the caller has looked at before was looked at before.
        core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
        crate::group::incarnation(member)
    }
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as the peer lives.
    Endless,
    /// That many ticks.
    Ticks(u64),
}

impl Patience {
    /// The clock's value at which it ends.
    fn deadline(self, peers: &impl Peers) -> Option<u64> {
        match self {
            Patience::Endless => None,
            Patience::Ticks(span) => Some(peers.ticks().saturating_add(span)),
        }
    }
}

/// Why waiting ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// The peer has ended.
    PeerDied(PeerDied),
    /// The time has passed.
    TimedOut,
}

/// Waits by spinning until `ready` gives a value, looking now and then whether `member` still leads the life that it led when the
/// wait began.
///
/// # Errors
/// [`WaitError`], after one more look: what the peer did before it died counts, what its next life does does not.
#[inline]
pub fn spin_for<T>(
    peers: &impl Peers,
    member: u32,
    patience: Patience,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    match ready() {
        Some(value) => Ok(value),
        None => spin_for_life(peers, Life::now(peers, member), patience, ready),
    }
}

/// As [`spin_for`], for a life that the caller remembers.
///
/// # Errors
/// [`WaitError`].
pub fn spin_for_life<T>(
    peers: &impl Peers,
    life: Life,
    patience: Patience,
    ready: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    spin_to(peers, life, patience.deadline(peers), ready)
}

fn spin_to<T>(
    peers: &impl Peers,
    life: Life,
    deadline: Option<u64>,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    // What is there is believed only if it cannot be the next life's.
    let mut ready = || {
        let value = ready()?;
        Some(if life.is_latest(peers) {
            Ok(value)
        } else {
            Err(WaitError::PeerDied(life.died()))
        })
    };
    loop {
        for _ in 0..LOOKS {
            if let Some(result) = ready() {
                return result;
            }
            peers.relax();
        }
        if !life.is_on(peers) {
            return ready().unwrap_or(Err(WaitError::PeerDied(life.died())));
        }
        if deadline.is_some_and(|deadline| peers.ticks() >= deadline) {
            return Err(WaitError::TimedOut);
        }
    }
}

/// As [`spin_for`], as long as the peer lives.
///
/// # Errors
/// [`PeerDied`].
pub fn spin_until<T>(
    peers: &impl Peers,
    member: u32,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T, PeerDied> {
    loop {
        match spin_for(peers, member, Patience::Endless, &mut ready) {
            Ok(value) => return Ok(value),
            Err(WaitError::PeerDied(died)) => return Err(died),
            // Endless patience does not end.
            Err(WaitError::TimedOut) => {}
        }
    }
}
