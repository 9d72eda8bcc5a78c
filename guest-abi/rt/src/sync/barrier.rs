//! A barrier that tells who is missing.
//!
//! Every member counts its arrivals in a slot of its own; nobody writes another's slot. So a member that dies leaves nothing half
//! done, and the others can go on without it.

use super::atomic::{AtomicU64, Ordering};
use super::{Patience, PeerDied, Peers, WaitError, spin_for};

const SLOTS: usize = guest_abi::MAX_MEMBERS;

/// A barrier for up to 32 members. All zeros is a fresh one.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Barrier {
    arrivals: [AtomicU64; SLOTS],
}

/// The number of a meeting at the barrier, which the caller has arrived for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round(u64);

/// Why not all came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierError {
    /// A member ended before it arrived. Meet without it from now on.
    PeerDied(PeerDied),
    /// The time has passed. The caller's arrival stands: wait again with [`Barrier::wait_for`].
    TimedOut(Round),
    /// The caller's index is no member's.
    NoMember(u32),
}

impl Barrier {
    /// A fresh barrier.
    #[must_use]
    pub fn new() -> Barrier {
        Barrier {
            arrivals: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Arrives as member `me` and waits until all of `participants` (one bit for each member) have.
    ///
    /// # Errors
    /// [`BarrierError`].
    pub fn wait(
        &self,
        me: u32,
        participants: u32,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), BarrierError> {
        let round = self.arrive(me)?;
        self.wait_for(round, participants, peers, patience)
    }

    /// Arrives as member `me`, without waiting.
    ///
    /// # Errors
    /// [`BarrierError::NoMember`].
    pub fn arrive(&self, me: u32) -> Result<Round, BarrierError> {
        let slot = self
            .arrivals
            .get(me as usize)
            .ok_or(BarrierError::NoMember(me))?;
        let round = slot.load(Ordering::Relaxed).wrapping_add(1);
        slot.store(round, Ordering::Release);
        Ok(Round(round))
    }

    /// Waits until all of `participants` have arrived for `round`. Each wait lasts `patience`, so that all together may last longer.
    ///
    /// # Errors
    /// [`BarrierError::PeerDied`] names the first participant that ended without having arrived.
    pub fn wait_for(
        &self,
        round: Round,
        participants: u32,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), BarrierError> {
        for (member, slot) in (0_u32..).zip(&self.arrivals) {
            if participants >> member & 1 == 0 {
                continue;
            }
            // Nobody can be more than half the numbers ahead or behind; a peer that writes nonsense spoils only its own meeting.
            let arrived = || {
                (slot
                    .load(Ordering::Acquire)
                    .wrapping_sub(round.0)
                    .cast_signed()
                    >= 0)
                    .then_some(())
            };
            spin_for(peers, member, patience, arrived).map_err(|error| match error {
                WaitError::PeerDied(died) => BarrierError::PeerDied(died),
                WaitError::TimedOut => BarrierError::TimedOut(round),
            })?;
        }
        Ok(())
    }
}

impl Default for Barrier {
    fn default() -> Barrier {
        Barrier::new()
    }
}
