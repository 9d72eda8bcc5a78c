//! The watchdog: a CPU that does not come back to its run loop is told of, with its stack.
//!
//! Every pass of a run loop is a lap. The other CPUs look at the laps when they sleep or when a timer calls them out, at least
//! once a second while one of them is idle. A CPU that is neither in a guest nor asleep and makes no lap for [`BOUND_MS`] gets an
//! NMI; its handler copies what lies on the stack, and whoever looked prints that. Nothing is stopped: a CPU that only took
//! long goes on.
//!
//! Concurrency: atomics only. Two that look at once may both tell; what they tell is true.

use core::sync::atomic::Ordering;

use crate::host::cpu::percpu::{self, PerCpu};
use crate::host::cpu::time;
use crate::host::cpu::watch::IMAGE_START;

/// How long a CPU may be away from its run loop, in milliseconds: far longer than any exit, wake-up or creation of a VM takes
/// that is no fault.
pub const BOUND_MS: u64 = 2_000;
/// How often a CPU looks at the others, and how long an idle one sleeps at most, in milliseconds.
const INTERVAL_MS: u64 = 500;
/// The longest that a CPU sleeps, in ticks.
#[must_use]
pub fn longest_sleep() -> u64 {
    INTERVAL_MS * time::khz()
}

/// Looks at the other CPUs, if it is time to.
pub fn look(me: &PerCpu, now: u64) {
    if me.watch.told.load(Ordering::Relaxed) && me.watch.told.swap(false, Ordering::SeqCst) {
        log::warn!("CPU {} is back in its run loop", me.index);
    }
    if now < me.watch.next_look.load(Ordering::Relaxed) {
        return;
    }
    me.watch
        .next_look
        .store(now + INTERVAL_MS * time::khz(), Ordering::Relaxed);
    for cpu in percpu::all() {
        if cpu.index != me.index && cpu.online.load(Ordering::SeqCst) {
            look_at(cpu, now);
        }
    }
}

fn look_at(cpu: &PerCpu, now: u64) {
    let watch = &cpu.watch;
    let laps = watch.laps.load(Ordering::Relaxed);
    // 0: it is still starting up.
    let is_away = laps != 0
        && !cpu.in_guest.load(Ordering::SeqCst)
        && !cpu.sleeping.load(Ordering::SeqCst)
        && !watch.excused.load(Ordering::SeqCst);
    if !is_away || laps != watch.seen_laps.load(Ordering::Relaxed) {
        watch.seen_laps.store(laps, Ordering::Relaxed);
        watch.seen_since.store(now, Ordering::Relaxed);
        return;
    }
    let away = now.saturating_sub(watch.seen_since.load(Ordering::Relaxed));
    if away >= BOUND_MS * time::khz() && !watch.told.swap(true, Ordering::SeqCst) {
        tell(cpu, away);
    }
}

/// Asks the CPU for its stack and prints it.
fn tell(cpu: &PerCpu, away: u64) {
    let watch = &cpu.watch;
    watch.wanted.store(true, Ordering::SeqCst);
    cpu.kick_urgently();
    let deadline = time::ticks() + 10 * time::khz();
    while watch.wanted.load(Ordering::SeqCst) && time::ticks() < deadline {
        core::hint::spin_loop();
    }
    let ms = away / time::khz().max(1);
    if watch.wanted.swap(false, Ordering::SeqCst) {
        log::error!(
            "CPU {} has not come back to its run loop for {ms} ms, and takes no NMI",
            cpu.index
        );
        return;
    }
    let start = IMAGE_START.load(Ordering::Relaxed);
    let mut words = watch.stack.iter().map(|word| word.load(Ordering::Relaxed));
    let (rip, rsp) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
    let calls: alloc::vec::Vec<_> = words
        .take_while(|word| *word != 0)
        .map(|word| alloc::format!("{:#x}", word.wrapping_sub(start)))
        .collect();
    log::error!(
        "CPU {} has not come back to its run loop for {ms} ms: rip {rip:#x} rsp {rsp:#x}\n\
         addresses in the image (addr2line -e on the hypervisor's ELF file): at {:#x}, called from {}",
        cpu.index,
        rip.wrapping_sub(start),
        calls.join(" ")
    );
}
