//! Who spent which time how.

use crate::ids::Ticks;

/// What a vCPU, or all vCPUs of a VM or group together, did since they were added. The five times sum to the time since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Ticks on a CPU.
    pub running: Ticks,
    /// Ticks in which it could have run and had no CPU: stolen.
    pub runnable: Ticks,
    /// Ticks in which it was kept from running because it was ahead of its gang.
    pub co_stopped: Ticks,
    /// Ticks in which it waited for an event.
    pub blocked: Ticks,
    /// Ticks in which the operator had it stopped.
    pub paused: Ticks,
    /// Times it was put on a CPU.
    pub switches: u64,
    /// Times that was another CPU than before.
    pub migrations: u64,
}

impl Account {
    pub(crate) fn add(&mut self, other: Account) {
        self.running += other.running;
        self.runnable += other.runnable;
        self.co_stopped += other.co_stopped;
        self.blocked += other.blocked;
        self.paused += other.paused;
        self.switches += other.switches;
        self.migrations += other.migrations;
    }

    /// All five times together.
    #[must_use]
    pub fn total(&self) -> Ticks {
        self.running + self.runnable + self.co_stopped + self.blocked + self.paused
    }
}

/// A group's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupAccount {
    /// Its vCPUs together.
    pub sum: Account,
    /// Concurrency hazard: ticks in which a part of the group ran while a member that wanted to run waited.
    pub hazard: Ticks,
    /// Ticks on CPUs of all its vCPUs, those that have left included.
    pub ran: Ticks,
    /// How far apart its members started.
    pub starts: Starts,
}

/// Times that a gang started: how long from its first member's start, when none ran, until all ran that wanted to then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// Starts that were whole at last, by the bits that their skew in ticks takes: 0, 1, 2 to 3, 4 to 7, and so on.
    counts: [u32; 32],
    most: Ticks,
    /// How many members wanted to run when the start was decided.
    wanted: Option<u32>,
    /// When the start that is not whole yet began.
    open: Option<Ticks>,
    /// Members run, and it is counted.
    is_counted: bool,
}

impl Starts {
    /// Takes note of a change: so many run, so many others want to, and so many of these are being loaded.
    pub(crate) fn note(&mut self, running: u32, waiting: u32, arriving: u32, now: Ticks) {
        if running + arriving == 0 {
            self.wanted = None;
            self.open = None;
            self.is_counted = false;
            return;
        }
        // One that wakes while others are being loaded comes by itself.
        let wanted = *self.wanted.get_or_insert(running + waiting);
        if self.is_counted || running == 0 {
            return;
        }
        let since = *self.open.get_or_insert(now);
        if waiting == 0 || running >= wanted {
            let skew = now.saturating_sub(since);
            let bits = (Ticks::BITS - skew.leading_zeros()) as usize;
            let last = self.counts.len() - 1;
            if let Some(count) = self.counts.get_mut(bits.min(last)) {
                *count = count.saturating_add(1);
            }
            self.most = self.most.max(skew);
            self.is_counted = true;
        }
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Ticks that so many of a hundred starts did not exceed, rounded up to a power of two less 1, but not beyond the most.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Ticks {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        for (bits, count) in (0_usize..).zip(&self.counts) {
            seen += u64::from(*count);
            // The last ones have no bound but the most.
            if seen >= wanted && bits + 1 < self.counts.len() {
                return ((1 << bits) - 1).min(self.most);
            }
        }
        self.most
    }

    /// The longest, in ticks.
    #[must_use]
    pub fn most(&self) -> Ticks {
        self.most
    }
}

/// A CPU's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuAccount {
    /// Ticks with a vCPU.
    pub busy: Ticks,
    /// Ticks without.
    pub idle: Ticks,
    /// Times the vCPU changed.
    pub switches: u64,
}
