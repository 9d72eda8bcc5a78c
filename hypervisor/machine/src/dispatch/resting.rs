//! Waking a vCPU with whose state a CPU sleeps: by a mark and a kick, without the scheduler's lock.
//!
//! A CPU that has nothing to run sleeps with the vCPU loaded that blocked there last, and names it in its word. Whoever wakes that
//! vCPU swaps the name for a mark and kicks the CPU, which tells the scheduler itself when it is awake. Until then the scheduler
//! takes the vCPU for blocked and the CPU for idle, and both may change: the CPU's own question answers what holds then.
//!
//! Concurrency: one word for each CPU. Only its CPU names and takes; others only swap a name for a mark. A mark is taken by the
//! CPU before it does anything else with the vCPU ([`end`]), so that none is lost.

use core::sync::atomic::Ordering;

use nagaya_sched::VcpuId;

use crate::host::cpu::percpu::PerCpu;
use crate::objects::handle::Handle;

/// Nobody rests.
const NOBODY: u64 = u64::MAX;
/// The vCPU of the lower half has been woken.
const WOKEN: u64 = 1 << 32;
/// By a doorbell.
const BOOSTED: u64 = 1 << 33;

/// A wake-up that was left as a mark.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// It may go first for once.
    pub is_boosted: bool,
}

/// `cpu`, the executing one, is about to sleep with a vCPU that it has loaded.
pub fn begin(cpu: &PerCpu, vcpu: VcpuId) {
    cpu.resting.store(u64::from(vcpu.0), Ordering::SeqCst);
}

/// `cpu`, the executing one, does not sleep any more: the mark, if somebody left one.
pub fn end(cpu: &PerCpu) -> Option<Mark> {
    let word = cpu.resting.swap(NOBODY, Ordering::SeqCst);
    (word != NOBODY && word & WOKEN != 0).then_some(Mark {
        is_boosted: word & BOOSTED != 0,
    })
}

/// Wakes a vCPU by a mark, if a CPU sleeps with it, or if it is loaded here: its CPU looks for marks again once it has looked what
/// the time and its kicks have brought. Called by whoever roused the handle, which is one.
pub fn try_mark(handle: &Handle, is_boosted: bool) -> bool {
    let Some(cpu) = handle.cpu() else {
        return false;
    };
    let name = u64::from(handle.id.0);
    let mark = name | WOKEN | if is_boosted { BOOSTED } else { 0 };
    if cpu.index == PerCpu::current().index {
        cpu.resting.store(mark, Ordering::SeqCst);
        return true;
    }
    let swapped = cpu
        .resting
        .compare_exchange(name, mark, Ordering::SeqCst, Ordering::SeqCst);
    if swapped.is_ok() {
        cpu.kick();
    }
    swapped.is_ok()
}
