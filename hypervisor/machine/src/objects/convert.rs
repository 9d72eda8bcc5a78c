//! The same things in the words of the control port and of the scheduler.

use nagaya_sched::CpuId;
use nagaya_vmm::control::CpuSet;

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
