//! The same things in the words of the control port and of the scheduler.

use nagaya_sched::{CpuId, Mode, Share};
use nagaya_vmm::control::{CpuSet, GroupMode};

/// CPUs as the scheduler names them.
#[must_use]
pub fn to_scheduler(cpus: CpuSet) -> nagaya_sched::CpuSet {
    cpus.iter().map(CpuId).collect()
}

/// CPUs as the control port names them.
#[must_use]
pub fn from_scheduler(cpus: nagaya_sched::CpuSet) -> CpuSet {
    cpus.iter()
        .map(|cpu| cpu.0)
        .fold(CpuSet::NONE, CpuSet::with)
}

/// A mode in the scheduler's terms.
#[must_use]
pub fn mode(mode: GroupMode) -> Mode {
    match mode {
        GroupMode::Off => Mode::Off,
        GroupMode::Prefer => Mode::Prefer,
        GroupMode::Balance => Mode::Balance,
        GroupMode::Relaxed => Mode::Relaxed,
        GroupMode::Strict => Mode::Strict,
    }
}

/// A share in the scheduler's terms.
#[must_use]
pub fn share(weight: u32, cap_percent: u32) -> Share {
    Share {
        weight: u16::try_from(weight).unwrap_or(u16::MAX),
        cap: cap_percent,
    }
}
