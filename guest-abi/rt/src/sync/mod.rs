//! Synchronisation between members of a group, in the region: a spin lock, a barrier, a ring. All of them survive the death of a
//! peer: what would wait for ever answers with an error instead.
//!
//! They are plain structures of atomics for which all zeros is the right beginning, so that a cell of a fresh region is one
//! ([`crate::region::View::cell`]). What a peer wrote is never trusted: an impossible value is an error, never undefined behaviour.
//! Who is alive is asked through [`Peers`]: in guests by a plain load of the group page, in tests by a double.
//!
//! Concurrency: a member's claims are made in its index's name; two vCPUs of one member exclude each other from a lock, but may
//! not share an end of a ring or arrive at a barrier both.
//!
//! Under `cfg(loom)` the atomics are the model checker's: `RUSTFLAGS="--cfg loom" cargo test -p nagaya-rt --release --test loom`.

mod barrier;
mod lock;
mod ring;
#[cfg(all(test, not(loom)))]
mod tests;

pub use barrier::{Barrier, BarrierError, Round};
pub use lock::{Guard, LockError, Recovery, SpinLock};
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

/// A member that was waited for has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerDied {
    /// Its index.
    pub member: u32,
}

/// Who can still answer, and what time it is.
pub trait Peers {
    /// Whether the member is alive. What it wrote before it died is visible once this says no.
    fn is_alive(&self, member: u32) -> bool;

    /// Tells a member from an earlier one with the same index.
    fn incarnation(&self, _member: u32) -> u64 {
        0
    }

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
    fn is_alive(&self, member: u32) -> bool {
        let alive = crate::group::is_alive(member);
        core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
        alive
    }

    fn incarnation(&self, member: u32) -> u64 {
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

/// Waits by spinning until `ready` gives a value, looking now and then whether `member` is alive.
///
/// # Errors
/// [`WaitError`], after one more look: what the peer did before it died counts.
pub fn spin_for<T>(
    peers: &impl Peers,
    member: u32,
    patience: Patience,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    let deadline = patience.deadline(peers);
    loop {
        for _ in 0..LOOKS {
            if let Some(value) = ready() {
                return Ok(value);
            }
            peers.relax();
        }
        if !peers.is_alive(member) {
            return ready().ok_or(WaitError::PeerDied(PeerDied { member }));
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
