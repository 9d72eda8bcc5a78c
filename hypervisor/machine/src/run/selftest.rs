//! What each CPU's loop does for the self-tests of `boot::selftest`, where they are asked for.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::host::cpu::percpu::{MAX_CPUS, PerCpu};
use crate::host::cpu::{time, watchdog};
use crate::host::paging;

/// The round that all CPUs are to answer; 0 while there is none.
pub static ROUND: AtomicU64 = AtomicU64::new(0);
/// What each CPU answered: the round, and in the upper half what it read.
pub static ANSWERS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// CPU 1 is to stay away from its run loop for a while.
pub static STALL: AtomicBool = AtomicBool::new(false);

/// Stays away from the run loop for longer than the watchdog allows.
#[inline(never)]
fn stall() {
    let end = time::ticks() + 2 * watchdog::BOUND_MS * time::khz();
    while time::ticks() < end {
        core::hint::spin_loop();
    }
}

/// Answers on this CPU if a shootdown is under way: reads through the mapping that changes, which puts it into the TLB.
pub fn answer(cpu: &PerCpu) {
    if cpu.index == 1 && STALL.swap(false, Ordering::SeqCst) {
        stall();
    }
    let round = ROUND.load(Ordering::Acquire);
    let Some(answer) = ANSWERS.get(cpu.index as usize) else {
        return;
    };
    if round == 0 || answer.load(Ordering::Relaxed) & 0xFFFF_FFFF == round {
        return;
    }
    // SAFETY: while `ROUND` is not 0 the page is mapped to a frame of the hypervisor, which nobody else writes.
    let read = unsafe { paging::PROBE_PAGE.as_ptr::<u64>().read_volatile() };
    answer.store(read << 32 | round, Ordering::Release);
}
