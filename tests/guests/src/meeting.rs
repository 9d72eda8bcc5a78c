//! How members of a test agree on what comes next: a few structures at fixed places of the region's first page.

use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::{Barrier, GroupPeers, Patience, RingHeader, SpinLock, WaitError, spin_for};
use nagaya_rt::{Errno, group, time};

use crate::REGION_VA;

const STAGE: u64 = 0;
const LOCK: u64 = 64;
const RING: u64 = 128;
const BARRIER: u64 = 256;
const SLOTS: u64 = 1024;
/// Elements of the ring.
pub const SLOT_COUNT: usize = 8;
/// First offset that is the test's own.
pub const FREE: u64 = 4096;

/// How long one member waits for another in a test, in milliseconds: far longer than anything takes.
pub const LONG_MS: u64 = 5_000;

/// The region with the agreed structures.
#[derive(Debug)]
pub struct Meeting {
    /// The region.
    pub region: SharedRegion,
    /// This member's index.
    pub me: u32,
}

impl Meeting {
    /// Maps the region at the usual address.
    ///
    /// # Errors
    /// As `SharedRegion::map_at`.
    pub fn join() -> Result<Meeting, Errno> {
        let me = group::my_index().ok_or(Errno::Perm)?;
        Ok(Meeting {
            region: SharedRegion::map_at(REGION_VA)?,
            me,
        })
    }

    /// The cell at `offset`.
    ///
    /// # Panics
    /// Outside the region.
    #[must_use]
    pub fn cell(&self, offset: u64) -> &AtomicU64 {
        self.region
            .u64(offset)
            .expect("tests use offsets inside the region")
    }

    /// Tells all that the test has come to stage `stage`.
    pub fn set_stage(&self, stage: u64) {
        self.cell(STAGE).store(stage, Ordering::Release);
    }

    /// Waits until the test has come to stage `stage`, while member `by`, who is to bring it there, lives.
    ///
    /// # Panics
    /// If it does not come in time: the test has failed.
    pub fn await_stage(&self, stage: u64, by: u32) {
        let ready = || (self.cell(STAGE).load(Ordering::Acquire) >= stage).then_some(());
        let waited = spin_for(&GroupPeers, by, long(), ready);
        assert!(waited.is_ok(), "stage {stage} by member {by}: {waited:?}");
    }

    /// Waits until member `member` was started: a peer may still be booting, and is `Absent` before.
    ///
    /// # Panics
    /// If it does not come in time.
    pub fn await_member(&self, member: u32) {
        let deadline = time::Deadline::after_ms(LONG_MS);
        while !group::is_alive(member) {
            assert!(!deadline.has_passed(), "member {member} was never started");
            time::pause();
        }
    }

    /// Waits until `flag` holds `value`.
    ///
    /// # Errors
    /// `WaitError` if member `by` does not set it.
    pub fn await_value(&self, flag: &AtomicU64, value: u64, by: u32) -> Result<(), WaitError> {
        spin_for(&GroupPeers, by, long(), || {
            (flag.load(Ordering::Acquire) == value).then_some(())
        })
    }

    /// The agreed lock.
    ///
    /// # Panics
    /// Never: it lies inside the region.
    #[must_use]
    pub fn lock(&self) -> &SpinLock {
        self.region.cell(LOCK).expect("inside the region")
    }

    /// The agreed barrier.
    ///
    /// # Panics
    /// Never: it lies inside the region.
    #[must_use]
    pub fn barrier(&self) -> &Barrier {
        self.region.cell(BARRIER).expect("inside the region")
    }

    /// The agreed ring.
    ///
    /// # Panics
    /// Never: it lies inside the region.
    #[must_use]
    pub fn ring(&self) -> (&RingHeader, &[AtomicU64]) {
        let slots = self
            .region
            .u64s(SLOTS, SLOT_COUNT)
            .expect("inside the region");
        (self.region.cell(RING).expect("inside the region"), slots)
    }
}

/// The patience of tests that expect success.
#[must_use]
pub fn long() -> Patience {
    Patience::Ticks(time::ms_to_ticks(LONG_MS))
}
