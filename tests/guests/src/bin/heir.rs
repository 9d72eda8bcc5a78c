//! Inherits a lock from a C program in a Linux VM that an operator kills: `tests/linux/programs/robust-lock.c` has it there, with two words that
//! are to be equal, of which the holder has changed the first.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering;

use nagaya_guests::{REGION_VA, check};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::{GroupPeers, LockError, SpinLock};
use nagaya_rt::{Errno, group, hypercall, println};

nagaya_rt::entry!(main);

/// `struct heirloom` of the C program.
const LOCK: u64 = 4096;
const FIRST: u64 = LOCK + 8;
const SECOND: u64 = LOCK + 16;

fn main() -> Result<(), Errno> {
    let region = SharedRegion::map_at(REGION_VA)?;
    let me = group::my_index().ok_or(Errno::Perm)?;
    let lock: &SpinLock = region.cell(LOCK).ok_or(Errno::Inval)?;
    let cell = |offset| region.u64(offset).ok_or(Errno::Inval);
    let (first, second) = (cell(FIRST)?, cell(SECOND)?);
    // The holder changes the first word when it has the lock. A Linux VM takes its time to come so far.
    while first.load(Ordering::Acquire) == 0 {
        let _ = hypercall::wait(10_000_000);
    }
    let recovery = loop {
        match lock.try_lock_for(me, &GroupPeers, 1000) {
            Err(LockError::TimedOut) => {}
            Err(LockError::OwnerDied(recovery)) => break recovery,
            other => {
                check::holds("the-holder-dies-with-it", false);
                println!("{other:?}");
                check::finish();
            }
        }
        // It ends when the group changes.
        let _ = hypercall::wait(10_000_000);
    };
    let died = recovery.died();
    check::equal(
        "the-holder-is-named",
        (died.member, died.incarnation),
        (0, 1),
    );
    let words = (
        first.load(Ordering::Relaxed),
        second.load(Ordering::Relaxed),
    );
    check::equal("half-done-as-it-was-left", words, (1, 0));
    second.store(words.0, Ordering::Relaxed);
    drop(recovery.recovered());
    check::holds(
        "a-lock-again",
        lock.try_lock_for(me, &GroupPeers, 0).is_ok(),
    );
    check::finish();
}
