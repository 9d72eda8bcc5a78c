//! The timer ("APIC Timer"). Time is in TSC ticks; counts are the register's.

use serde::{Deserialize, Serialize};

use super::ApicConfig;
use super::register::DIVIDE_BITS;
use crate::state::{StateError, TscShift, check};

/// What the timer does, by bits 18 and 17 of its entry ("TSC-Deadline Mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimerMode {
    /// One interrupt when the count reaches 0.
    OneShot,
    /// One at the end of each period.
    Periodic,
    /// One when the TSC reaches a value.
    TscDeadline,
    /// Not defined: the timer stands.
    Reserved,
}

impl TimerMode {
    pub(super) const fn from_bits(bits: u32) -> TimerMode {
        match bits & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    ticks_per_count: u32,
    least_period_ticks: u64,
    mode: TimerMode,
    divide: u32,
    initial: u32,
    /// When it comes next.
    expires_at: Option<u64>,
}

/// The timer as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TimerState {
    mode: TimerMode,
    divide: u32,
    initial: u32,
    expires_at: Option<u64>,
}

impl TimerState {
    pub(super) fn shift(&mut self, by: TscShift) {
        self.expires_at = self.expires_at.map(|at| by.moved(at));
    }
}

impl Timer {
    pub(super) fn save(&self) -> TimerState {
        let Timer {
            ticks_per_count: _,
            least_period_ticks: _,
            mode,
            divide,
            initial,
            expires_at,
        } = self;
        TimerState {
            mode: *mode,
            divide: *divide,
            initial: *initial,
            expires_at: *expires_at,
        }
    }

    pub(super) fn restore(config: &ApicConfig, state: &TimerState) -> Result<Timer, StateError> {
        let TimerState {
            mode,
            divide,
            initial,
            expires_at,
        } = state;
        check(
            divide & !DIVIDE_BITS == 0,
            "divide",
            *divide,
            "without reserved bits",
        )?;
        Ok(Timer {
            ticks_per_count: config.ticks_per_count,
            least_period_ticks: config.least_period_ticks,
            mode: *mode,
            divide: *divide,
            initial: *initial,
            expires_at: *expires_at,
        })
    }

    pub(super) fn mode(&self) -> TimerMode {
        self.mode
    }

    pub(super) fn new(ticks_per_count: u32, least_period_ticks: u64) -> Timer {
        Timer {
            ticks_per_count: ticks_per_count.max(1),
            least_period_ticks,
            mode: TimerMode::OneShot,
            divide: 0,
            initial: 0,
            expires_at: None,
        }
    }

    pub(super) fn expires_at(&self) -> Option<u64> {
        self.expires_at
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// Ticks of one count ("Divide Configuration Register"): bits 3, 1, 0 from 0b000 are 2, 4, ... 128, and 0b111 is 1.
    fn ticks_per_count(&self) -> u64 {
        let bits = self.divide & 3 | (self.divide & 8) >> 1;
        let shift = if bits == 7 { 0 } else { bits + 1 };
        u64::from(self.ticks_per_count) << shift
    }

    fn ticks(&self, counts: u32) -> u64 {
        self.ticks_per_count().saturating_mul(counts.into())
    }

    fn period(&self) -> u64 {
        self.ticks(self.initial).max(self.least_period_ticks).max(1)
    }

    /// Changes the mode. Between one-shot and periodic the count goes on from where it is, and what follows its end is the new
    /// mode's ("APIC Timer": the count is loaded by the initial-count register alone). The way to and from TSC-deadline mode
    /// disarms the timer ("TSC-Deadline Mode"), and leaves no count.
    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        let counts = |mode| matches!(mode, TimerMode::OneShot | TimerMode::Periodic);
        if mode != self.mode && !(counts(mode) && counts(self.mode)) {
            self.expires_at = None;
            self.initial = 0;
        }
        self.mode = mode;
    }

    /// Starts it anew; 0 stops it. Has no effect in TSC-deadline mode.
    pub(super) fn set_initial(&mut self, counts: u32, now: u64) {
        match self.mode {
            TimerMode::TscDeadline => return,
            _ => self.initial = counts,
        }
        let ticks = match self.mode {
            TimerMode::Periodic => self.period(),
            _ => self.ticks(counts),
        };
        let runs = counts != 0 && self.mode != TimerMode::Reserved;
        self.expires_at = runs.then(|| now.saturating_add(ticks));
    }

    /// Goes on from the count where it is.
    pub(super) fn set_divide(&mut self, divide: u32, now: u64) {
        let left = self.current(now);
        self.divide = divide;
        if self.mode != TimerMode::TscDeadline && self.expires_at.is_some() {
            self.expires_at = Some(now.saturating_add(self.ticks(left)));
        }
    }

    /// The current count: 0 in TSC-deadline mode and when it stands.
    pub(super) fn current(&self, now: u64) -> u32 {
        if self.mode == TimerMode::TscDeadline {
            return 0;
        }
        let left = self.expires_at.map_or(0, |at| at.saturating_sub(now));
        let counts = left.div_ceil(self.ticks_per_count());
        u32::try_from(counts).unwrap_or(u32::MAX).min(self.initial)
    }

    /// IA32_TSC_DEADLINE: 0 when it stands or in another mode.
    pub(super) fn deadline(&self) -> u64 {
        match self.mode {
            TimerMode::TscDeadline => self.expires_at.unwrap_or(0),
            _ => 0,
        }
    }

    /// Sets IA32_TSC_DEADLINE; 0 stops it. Has no effect in other modes.
    pub(super) fn set_deadline(&mut self, tsc: u64) {
        if self.mode == TimerMode::TscDeadline {
            self.expires_at = (tsc != 0).then_some(tsc);
        }
    }

    /// Whether it has come by now; then it stands, or its next period runs.
    pub(super) fn take_expired(&mut self, now: u64) -> bool {
        let Some(at) = self.expires_at.filter(|at| *at <= now) else {
            return false;
        };
        self.expires_at = match self.mode {
            TimerMode::Periodic => {
                let period = self.period();
                let missed = (now - at) / period;
                let next = missed.saturating_add(1).saturating_mul(period);
                Some(at.saturating_add(next))
            }
            _ => None,
        };
        true
    }
}
