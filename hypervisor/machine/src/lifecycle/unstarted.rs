//! vCPUs that wait for their start: those that have not been started yet, and those that INIT has reset.
//!
//! Concurrency: one lock, held for look-ups only; what is taken out is dropped by the caller.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use spin::Mutex;

use crate::objects::vcpu::Vcpu;

/// By number of the VM.
static WAITING: Mutex<BTreeMap<u16, Vec<Vcpu>>> = Mutex::new(BTreeMap::new());

/// Leaves a vCPU to wait. `also`, if it is needed, is done before anybody can find it: whoever is told that it waits finds it.
pub fn put<R>(vcpu: Vcpu, also: impl FnOnce() -> R) -> R {
    let mut waiting = WAITING.lock();
    waiting.entry(vcpu.vm.id).or_default().push(vcpu);
    also()
}

/// Takes a vCPU of a VM out, if it waits.
#[must_use]
pub fn take(vm: u16, index: u32) -> Option<Vcpu> {
    let mut waiting = WAITING.lock();
    let vcpus = waiting.get_mut(&vm)?;
    let at = vcpus.iter().position(|vcpu| vcpu.index == index)?;
    Some(vcpus.swap_remove(at))
}

/// Takes all vCPUs of a VM out, which will not be started any more: they hold their VM.
#[must_use]
pub fn take_all(vm: u16) -> Vec<Vcpu> {
    WAITING.lock().remove(&vm).unwrap_or_default()
}

/// Makes the start of a VM's waiting vCPUs one that every CPU refuses (a CR3 beyond physical addresses), for a self-test.
pub fn spoil_start(vm: u16) {
    let mut waiting = WAITING.lock();
    let vcpus = waiting.get_mut(&vm).into_iter().flatten();
    for start in vcpus.filter_map(|vcpu| vcpu.start.as_mut()) {
        start.cr3 = 1 << 62;
    }
}
