//! Deadlines of vCPUs that wait, kept by the CPU on which they began to.
//!
//! Concurrency: each CPU has its own and alone touches it. A vCPU that has been woken, or waits anew elsewhere, may leave its
//! deadline behind: it is then woken once for nothing and lies down again.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::dispatch;
use crate::vcpu::Handle;

/// The deadlines, the latest first.
#[derive(Debug, Default)]
pub struct Timers {
    sorted: Vec<(u64, Arc<Handle>)>,
}

impl Timers {
    /// None.
    #[must_use]
    pub const fn new() -> Timers {
        Timers { sorted: Vec::new() }
    }

    /// Sets the deadline of a vCPU, a TSC value, in place of one it may have here.
    pub fn set(&mut self, deadline: u64, handle: &Arc<Handle>) {
        self.sorted.retain(|(_, other)| other.id != handle.id);
        let at = self.sorted.partition_point(|(other, _)| *other > deadline);
        self.sorted.insert(at, (deadline, Arc::clone(handle)));
    }

    /// The next deadline, or `until` if that comes first.
    #[must_use]
    pub fn next(&self, until: u64) -> u64 {
        self.sorted
            .last()
            .map_or(until, |(deadline, _)| until.min(*deadline))
    }

    /// Wakes the vCPUs whose deadline is `now` or before.
    pub fn fire(&mut self, now: u64) {
        while let Some((_, handle)) = self.sorted.pop_if(|(deadline, _)| *deadline <= now) {
            if handle.rouse() {
                dispatch::wake(handle.id);
            }
        }
    }
}
