//! A barrier that tells who is missing.
//!
//! Every member counts its arrivals in a slot of its own; nobody writes another's slot. So a member that dies leaves nothing half
//! done, and the others can go on without it.

use super::atomic::{AtomicU64, Ordering};
use super::{LOOKS, Life, Patience, PeerDied, Peers};

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
    /// A member ended, or was reset, before it arrived. Meet without it from now on, or with its next life.
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
    #[inline]
    pub fn wait(
        &self,
        me: u32,
        participants: u32,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), BarrierError> {
        let round = self.arrive(me)?;
        self.wait_for(round, participants & !(1 << me), peers, patience)
    }

    /// Arrives as member `me`, without waiting.
    ///
    /// # Errors
    /// [`BarrierError::NoMember`].
    #[inline]
    pub fn arrive(&self, me: u32) -> Result<Round, BarrierError> {
        let slot = self
            .arrivals
            .get(me as usize)
            .ok_or(BarrierError::NoMember(me))?;
        let round = slot.load(Ordering::Relaxed).wrapping_add(1);
        slot.store(round, Ordering::Release);
        Ok(Round(round))
    }

    /// Waits until all of `participants` have arrived for `round`, at most `patience` for all together.
    ///
    /// # Errors
    /// [`BarrierError::PeerDied`] names the first participant whose life, as it was when the wait began, ended without its having
    /// arrived. One whose next life has begun counts as ended whether it had arrived or not: the arrival may be the next life's.
    #[inline]
    pub fn wait_for(
        &self,
        round: Round,
        participants: u32,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), BarrierError> {
        // The sign bit is set if anybody's is.
        let mut behind = 0;
        let mut left = participants;
        while left != 0 {
            behind |= self.ahead(left.trailing_zeros() as usize, round);
            left &= left - 1;
        }
        if behind >= 0 {
            return Ok(());
        }
        self.await_all(round, participants, peers, patience)
    }

    /// How far a member is ahead of a round. Nobody can be more than half the numbers ahead or behind; a peer that writes nonsense
    /// spoils only its own meeting.
    #[inline]
    fn ahead(&self, member: usize, round: Round) -> i64 {
        let slot = &self.arrivals[member % SLOTS];
        slot.load(Ordering::Acquire)
            .wrapping_sub(round.0)
            .cast_signed()
    }

    #[cold]
    #[inline(never)]
    fn await_all(
        &self,
        round: Round,
        participants: u32,
        peers: &impl Peers,
        patience: Patience,
    ) -> Result<(), BarrierError> {
        let deadline = patience.deadline(peers);
        // All of them now: one may be reset while another is waited for.
        let lives: [Life; SLOTS] = core::array::from_fn(|member| Life::now(peers, member as u32));
        let mut left = participants;
        // Takes out who has arrived; names one who was reset, and of whom nothing can be told any more.
        let look = |left: &mut u32| {
            for (member, life) in lives.iter().enumerate() {
                if *left >> member & 1 == 0 || self.ahead(member, round) < 0 {
                    continue;
                }
                if !life.is_latest(peers) {
                    return Err(BarrierError::PeerDied(life.died()));
                }
                *left &= !(1 << member);
            }
            Ok(*left == 0)
        };
        loop {
            for _ in 0..LOOKS {
                if look(&mut left)? {
                    return Ok(());
                }
                peers.relax();
            }
            let is_waited_for = |life: &&Life| left >> life.member & 1 == 1;
            let ended = lives
                .iter()
                .filter(is_waited_for)
                .find(|life| !life.is_on(peers));
            if let Some(life) = ended {
                // What it did before it died counts.
                if look(&mut left)? {
                    return Ok(());
                }
                if left >> life.member & 1 == 1 {
                    return Err(BarrierError::PeerDied(life.died()));
                }
            }
            if deadline.is_some_and(|deadline| peers.ticks() >= deadline) {
                return Err(BarrierError::TimedOut(round));
            }
        }
    }
}

impl Default for Barrier {
    fn default() -> Barrier {
        Barrier::new()
    }
}
