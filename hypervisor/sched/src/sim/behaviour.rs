//! What vCPUs do.

use crate::Ticks;

/// A barrier of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierId(pub(super) usize);

/// A lock of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockId(pub(super) usize);

/// How one waits for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// In a loop, however long it takes.
    Spin,
    /// In a loop for so long, then blocked until its doorbell is rung.
    SpinThenBlock(Ticks),
}

/// What a vCPU does. Times are times on a CPU, but for those blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Runs whenever it may.
    Hog,
    /// Runs, then waits for a timer.
    RunBlock {
        /// For so long.
        run: Ticks,
        /// For so long.
        block: Ticks,
    },
    /// Works, then waits at a barrier for all others that use it. A round is a unit.
    Barrier {
        /// The barrier.
        barrier: BarrierId,
        /// Work between two barriers.
        work: Ticks,
        /// Up to this much more, drawn each time.
        jitter: Ticks,
        /// How it waits.
        wait: Wait,
    },
    /// Works, then takes a lock that goes to waiters in the order in which they came. A time it held the lock is a unit.
    TicketLock {
        /// The lock.
        lock: LockId,
        /// Work without the lock.
        work: Ticks,
        /// Work with the lock.
        hold: Ticks,
        /// How it waits.
        wait: Wait,
    },
    /// Yields `margin` before each multiple of `tick`, where another scheduler would look who runs.
    TickThief {
        /// Time between the looks.
        tick: Ticks,
        /// How long before.
        margin: Ticks,
    },
    /// Yields `margin` before its slice ends.
    SliceThief {
        /// How long before.
        margin: Ticks,
    },
    /// Blocks shortly and is rung, boosted, all the time.
    DoorbellThief {
        /// Runs for so long.
        run: Ticks,
        /// Is blocked for so long.
        sleep: Ticks,
    },
    /// Runs for a time up to `run`, then blocks for a time up to `block`, is woken by a timer or a doorbell, yields, or does
    /// nothing; all drawn.
    Random {
        /// Longest run.
        run: Ticks,
        /// Longest sleep.
        block: Ticks,
    },
}
