//! What the caller sets.

use core::fmt;
use core::str::FromStr;

use crate::ids::{CpuSet, Ticks};

/// The machine and its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// CPUs that vCPUs may run on.
    pub cpus: CpuSet,
    /// Ticks in a millisecond.
    pub ticks_per_ms: u64,
    /// How long a vCPU runs before others are asked.
    pub slice: Ticks,
    /// How long it runs at least before one that wakes up takes its CPU.
    pub rate_limit: Ticks,
    /// Over which time caps are kept.
    pub period: Ticks,
    /// How far a member of a relaxed gang may run ahead of one that could run and does not.
    pub skew: Ticks,
}

impl Config {
    /// The defaults: slice 10 ms, rate limit 1 ms, period 30 ms, skew 1.5 slices.
    #[must_use]
    pub const fn new(cpus: CpuSet, ticks_per_ms: u64) -> Config {
        Config {
            cpus,
            ticks_per_ms,
            slice: 10 * ticks_per_ms,
            rate_limit: ticks_per_ms,
            period: 30 * ticks_per_ms,
            skew: 15 * ticks_per_ms,
        }
    }

    /// The same with another slice; skew and period go with it.
    #[must_use]
    pub const fn with_slice(mut self, slice: Ticks) -> Config {
        self.slice = if slice == 0 { 1 } else { slice };
        self.period = self.slice * 3;
        self.skew = self.slice + self.slice / 2;
        if self.rate_limit > self.slice {
            self.rate_limit = self.slice;
        }
        self
    }
}

/// How the members of a group are scheduled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Each by itself; the group is only an account.
    #[default]
    Off,
    /// Members have homes on different CPUs and leave them only for a CPU that would be idle.
    Balance,
    /// Where a member ran, another member goes next (paper 004).
    Prefer,
    /// Members that can run start together; one that gets ahead of a member that is kept waiting is stopped.
    Relaxed,
    /// Members that can run start together or not at all.
    Strict,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 5] = [
        Mode::Off,
        Mode::Balance,
        Mode::Prefer,
        Mode::Relaxed,
        Mode::Strict,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Balance => "balance",
            Mode::Prefer => "prefer",
            Mode::Relaxed => "relaxed",
            Mode::Strict => "strict",
        }
    }

    /// Whether what its gang has consumed is compared with that of gangs that run on other CPUs.
    pub(crate) const fn compares_with_all(self) -> bool {
        !matches!(self, Mode::Off | Mode::Balance)
    }

    /// Whether members are started together.
    pub(crate) const fn is_gang(self) -> bool {
        matches!(self, Mode::Relaxed | Mode::Strict)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mode, Error> {
        Mode::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or(Error::NoSuchMode)
    }
}

/// A claim to CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// In proportion to the weights of others; 0 counts as 1. Usually 256.
    pub weight: u16,
    /// The most it gets, in percent of one CPU; 0 for no bound.
    pub cap: u32,
}

impl Default for Share {
    fn default() -> Share {
        Share {
            weight: 256,
            cap: 0,
        }
    }
}

/// Where a vCPU may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// On no other CPUs.
    pub hard: CpuSet,
    /// On these rather than on others.
    pub soft: CpuSet,
}

impl Affinity {
    /// Anywhere.
    #[must_use]
    pub const fn any() -> Affinity {
        Affinity {
            hard: CpuSet::first(64),
            soft: CpuSet::first(64),
        }
    }

    /// On one CPU.
    #[must_use]
    pub const fn pinned(cpu: crate::CpuId) -> Affinity {
        Affinity {
            hard: CpuSet::single(cpu),
            soft: CpuSet::single(cpu),
        }
    }
}

/// Why a call was refused; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A group, VM or vCPU that is not there.
    Unknown,
    /// One that is there already.
    Exists,
    /// A group or VM that still has VMs or vCPUs.
    NotEmpty,
    /// An affinity with none of the machine's CPUs.
    NoCpu,
    /// Text that names no mode.
    NoSuchMode,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Unknown => "there is no such group, VM or vCPU",
            Error::Exists => "it is there already",
            Error::NotEmpty => "it is not empty",
            Error::NoCpu => "none of the CPUs it may run on is there",
            Error::NoSuchMode => {
                "there is no such mode: off, balance, prefer, relaxed and strict are"
            }
        })
    }
}

impl core::error::Error for Error {}
