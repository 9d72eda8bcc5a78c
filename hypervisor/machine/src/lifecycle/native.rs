//! The way of an image that runs outside VMX (`vm.bare`) to its CPU, which the scheduler has no part in.
//!
//! Concurrency: a leaf lock for each CPU.

use alloc::boxed::Box;

use spin::Mutex;

use crate::host::cpu::percpu::{MAX_CPUS, PerCpu};
use crate::objects::vcpu::Vcpu;

static HANDED: [Mutex<Option<Box<Vcpu>>>; MAX_CPUS] = [const { Mutex::new(None) }; MAX_CPUS];

/// Hands one to its CPU.
pub(super) fn hand(cpu: &PerCpu, vcpu: Box<Vcpu>) {
    if let Some(slot) = HANDED.get(cpu.index as usize) {
        *slot.lock() = Some(vcpu);
        cpu.kick();
    }
}

/// The one that was handed to this CPU, if it has not taken it yet.
#[must_use]
pub fn take(cpu: &PerCpu) -> Option<Box<Vcpu>> {
    HANDED.get(cpu.index as usize)?.lock().take()
}
