//! Work of devices that is left for later: a guest's kick has a bound, what is beyond it is done when the guest, or the next
//! one on that CPU, has had a moment.
//!
//! Concurrency: each CPU has its own list, behind a lock that others do not want. When it is due is in `PerCpu`, where the run loop
//! looks at it with the other timers.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use spin::Mutex;

use super::Devices;
use crate::host::cpu::percpu::{MAX_CPUS, PerCpu};
use crate::host::cpu::time;

/// A device of a VM with work left.
type Item = (Arc<Devices>, u8);

static LISTS: [Mutex<Vec<Item>>; MAX_CPUS] = [const { Mutex::new(Vec::new()) }; MAX_CPUS];

fn list(cpu: &PerCpu) -> &'static Mutex<Vec<Item>> {
    // `PerCpu::create` makes none beyond.
    &LISTS[cpu.index as usize]
}

/// How long a guest runs at least before the work goes on, as a part of a millisecond: enough for some work of its own.
const PAUSES_PER_MS: u64 = 20;

/// Work that goes on and on gets one of so many parts of its CPU's time.
const SHARE: u64 = 5;

/// Leaves a slot's work for later on the executing CPU.
pub(super) fn add(devices: Arc<Devices>, slot: u8) {
    let cpu = PerCpu::current();
    list(cpu).lock().push((devices, slot));
    let due = time::ticks().saturating_add(time::khz() / PAUSES_PER_MS);
    cpu.deferred_at.fetch_min(due, Ordering::Relaxed);
}

/// Does what was left on `cpu`, the executing one, if its time has come: a burst for each device.
pub fn serve(cpu: &PerCpu, now: u64) {
    if cpu.deferred_at.load(Ordering::Relaxed) > now {
        return;
    }
    cpu.deferred_at.store(u64::MAX, Ordering::Relaxed);
    // What is added meanwhile waits for its own time.
    let items = core::mem::take(&mut *list(cpu).lock());
    for (devices, slot) in items {
        devices.serve_deferred(slot);
    }
    // What goes on then waits for as long as this took, several times: whoever runs here is not to lose more by it.
    let end = time::ticks();
    let rest = end.saturating_sub(now).saturating_mul(SHARE - 1);
    if cpu.deferred_at.load(Ordering::Relaxed) != u64::MAX {
        cpu.deferred_at
            .fetch_max(end.saturating_add(rest), Ordering::Relaxed);
    }
}
