//! Interrupts: vectors with handlers, and waiting for them.
//!
//! ```no_run
//! use nagaya_rt::{apic::Apic, interrupts};
//! let apic = Apic::enable().expect("this guest has a local APIC");
//! let vector = interrupts::take_vector(|| {}).expect("a vector is free");
//! apic.one_shot(vector, 100_000);
//! interrupts::wait_until(|| interrupts::count(vector) > 0);
//! ```
//!
//! A handler runs with interrupts off on the vCPU that was interrupted, at any point of its program: it must not take a lock,
//! allocate or print. Storing to an atomic and returning is what most do; each interrupt is counted beside ([`count`]).
//!
//! Concurrency: the table is the VM's; flags are the calling vCPU's.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::traps::{self, Frame};
use crate::{apic, time};

/// The first vector that is given out; the ones below are for exceptions and for whoever names a vector himself.
const FIRST: u8 = 0x40;
/// One past the last one; the spurious vector lies above.
const END: u8 = 0xF0;

static NEXT: AtomicU8 = AtomicU8::new(FIRST);
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// Takes a free vector for interrupts from the local APIC; each is counted and acknowledged, then `handler` is called. A vector
/// given out later has a higher priority or the same. `None` if all are taken.
#[must_use]
pub fn take_vector(handler: fn()) -> Option<u8> {
    let next = |vector: u8| (vector < END).then(|| vector + 1);
    let vector = NEXT
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
        .ok()?;
    HANDLERS[usize::from(vector)].store(
        (handler as *const ()).expose_provenance(),
        Ordering::Release,
    );
    traps::set_handler(vector, dispatch);
    Some(vector)
}

/// Interrupts taken with that vector, by all vCPUs.
#[must_use]
pub fn count(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].load(Ordering::Acquire)
}

fn dispatch(frame: &mut Frame) {
    let index = frame.vector as usize & 255;
    COUNTS[index].fetch_add(1, Ordering::AcqRel);
    let handler = HANDLERS[index].load(Ordering::Acquire);
    if handler != 0 {
        // SAFETY: `take_vector` stored a function with this signature.
        let handler: fn() = unsafe { core::mem::transmute(handler as *const ()) };
        handler();
    }
    apic::end_of_interrupt();
}

/// Whether the calling vCPU takes interrupts.
#[must_use]
pub fn are_enabled() -> bool {
    let flags: u64;
    // SAFETY: reads the flags through the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & 1 << 9 != 0
}

/// Runs `work` with interrupts kept out, and leaves them as they were.
pub fn without<R>(work: impl FnOnce() -> R) -> R {
    let were_enabled = are_enabled();
    traps::disable_interrupts();
    let result = work();
    if were_enabled {
        traps::enable_interrupts();
    }
    result
}

/// STI and at once CLI: the CPU's flag changes, but no interrupt gets in, since none comes before the instruction after STI has
/// been carried out. For tests of what listens to the flag; interrupts are off afterwards.
#[doc(hidden)]
pub fn blink() {
    // SAFETY: no more than disabling them.
    unsafe { asm!("sti", "cli", options(nomem, nostack)) };
}

/// Halts until `condition` holds; it is asked with interrupts kept out, and again after each interrupt. One that comes between the
/// question and the halt ends the halt, so that no news is slept through. Interrupts are left as they were.
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    without(|| {
        while !condition() {
            traps::halt_for_interrupt();
            traps::disable_interrupts();
        }
    });
}

/// As [`wait_until`], but not for longer than to `deadline`. Whether the condition held. It takes the vCPU's one timer of the
/// hypervisor (`set_deadline`).
pub fn wait_until_or(deadline: time::Deadline, mut condition: impl FnMut() -> bool) -> bool {
    let held = without(|| {
        loop {
            if condition() {
                return true;
            }
            if deadline.has_passed() {
                return false;
            }
            if crate::hypercall::set_deadline(deadline.tsc()).is_err() {
                continue;
            }
            traps::halt_for_interrupt();
            traps::disable_interrupts();
        }
    });
    let _ = crate::hypercall::set_deadline(0);
    held
}
