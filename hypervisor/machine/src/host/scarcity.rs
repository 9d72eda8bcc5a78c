//! Memory that runs out on purpose: for the self-test that has every allocation of frames refused in its turn.
//!
//! Concurrency: one CPU begins and ends it; whoever allocates counts.

use core::sync::atomic::{AtomicU64, Ordering};

/// It is not on.
const OFF: u64 = u64::MAX;
/// Allocations that are granted before one is refused.
static GRANTED: AtomicU64 = AtomicU64::new(OFF);
/// After a refusal so many are granted; [`OFF`]: none.
static NEXT: AtomicU64 = AtomicU64::new(OFF);
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// From now on so many allocations are granted, and no more.
pub fn grant(allocations: u64) {
    NEXT.store(OFF, Ordering::SeqCst);
    REFUSED.store(0, Ordering::SeqCst);
    GRANTED.store(allocations, Ordering::SeqCst);
}

/// From now on one is refused, then one after another that was granted, then one after two: whoever tries again fails at each in turn.
pub fn refuse_in_turn() {
    grant(0);
    NEXT.store(1, Ordering::SeqCst);
}

/// All are granted again. How many were refused.
pub fn end() -> u64 {
    GRANTED.store(OFF, Ordering::SeqCst);
    NEXT.store(OFF, Ordering::SeqCst);
    REFUSED.load(Ordering::SeqCst)
}

/// Whether this allocation is granted.
pub(super) fn grants() -> bool {
    let counted = GRANTED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
        0 | OFF => None,
        left => Some(left - 1),
    });
    if counted != Err(0) {
        return true;
    }
    REFUSED.fetch_add(1, Ordering::SeqCst);
    let next = NEXT.load(Ordering::SeqCst);
    if next != OFF {
        NEXT.store(next + 1, Ordering::SeqCst);
        GRANTED.store(next, Ordering::SeqCst);
    }
    false
}
