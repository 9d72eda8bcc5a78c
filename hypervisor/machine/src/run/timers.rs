//! Deadlines of vCPUs that wait, kept by the CPU on which they began to.
//!
//! Concurrency: each CPU has its own and alone touches it. A vCPU that has been woken, or waits anew elsewhere, may leave its
//! deadline behind: it is then woken once for nothing and lies down again.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use crate::dispatch;
use crate::host::console;
use crate::host::cpu::percpu::PerCpu;
use crate::host::cpu::watchdog;
use crate::objects::devices::deferred;
use crate::objects::handle::Handle;
use crate::run::service;

/// The deadlines, the latest first.
#[derive(Debug)]
pub struct Timers {
    /// This CPU serves the control port, which has its times, too.
    serves: bool,
    /// The CPU they are of.
    cpu: &'static PerCpu,
    sorted: Vec<(u64, Arc<Handle>)>,
}

impl Timers {
    /// None.
    #[must_use]
    pub const fn new(cpu: &'static PerCpu) -> Timers {
        Timers {
            serves: cpu.index == 0,
            cpu,
            sorted: Vec::new(),
        }
    }

    /// Sets the deadline of a vCPU that has lain down, a TSC value, in place of one it may have here. Deadlines of vCPUs that
    /// got up meanwhile are dropped: nobody waits for them.
    pub fn set(&mut self, deadline: u64, handle: &Arc<Handle>) {
        self.sorted
            .retain(|(_, other)| other.id != handle.id && other.is_asleep());
        let at = self.sorted.partition_point(|(other, _)| *other > deadline);
        self.sorted.insert(at, (deadline, Arc::clone(handle)));
    }

    /// The next deadline, or `until` if that comes first.
    #[must_use]
    pub fn next(&self, until: u64) -> u64 {
        let port = if self.serves {
            service::due()
        } else {
            u64::MAX
        };
        self.sorted
            .last()
            .map_or(until, |(deadline, _)| until.min(*deadline))
            .min(port)
            .min(self.cpu.deferred_at.load(Ordering::Relaxed))
            .min(self.cpu.worker.due())
            .min(console::due(self.cpu))
    }

    /// As [`Timers::next`], for a CPU that sleeps meanwhile.
    #[must_use]
    pub fn next_while_asleep(&self, until: u64, now: u64) -> u64 {
        self.cpu.worker.hasten();
        let longest = if self.serves {
            service::longest_sleep()
        } else {
            u64::MAX
        };
        let longest = longest.min(watchdog::longest_sleep());
        self.next(until).min(now.saturating_add(longest))
    }

    /// Wakes the vCPUs whose deadline is `now` or before, and serves the control port if its time has come. `cpu` is the
    /// executing one.
    pub fn fire(&mut self, cpu: &PerCpu, now: u64) {
        watchdog::look(cpu, now);
        while let Some((_, handle)) = self.sorted.pop_if(|(deadline, _)| *deadline <= now) {
            if handle.try_wake() {
                dispatch::wake(&handle);
            }
        }
        console::pump(cpu, now);
        deferred::serve(cpu, now);
        if let Some(worked) = cpu.worker.serve(now) {
            dispatch::charge(worked.payer, worked.ticks);
        }
        if self.serves {
            service::serve(now);
        }
    }
}
