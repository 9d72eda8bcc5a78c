//! VMs for whose writes there is no memory: they are paused, and try again when there may be some.
//!
//! Concurrency: a leaf lock over the list.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use nagaya_sched::VcpuId;
use spin::Mutex;

use crate::dispatch;
use crate::host::event;
use crate::objects::identity::Identity;
use crate::objects::vm::Vm;
use crate::objects::{notices, registry};

static STARVING: Mutex<Vec<Weak<Identity>>> = Mutex::new(Vec::new());

fn ids(vm: &Vm) -> Vec<VcpuId> {
    vm.vcpus.iter().map(|vcpu| vcpu.id).collect()
}

/// There is no memory for a write of this VM's: it is paused until a VM has ended, or the operator resumes or destroys it. The write is
/// tried again then.
pub fn pause(vm: &Arc<Vm>) {
    if vm.identity.paused.swap(true, Ordering::SeqCst) {
        // Another vCPU was faster, or the operator; this one is called off as well.
        dispatch::pause(&ids(vm), true);
        return;
    }
    STARVING.lock().push(Arc::downgrade(&vm.identity));
    log::warn!(
        "VM {} is paused: there is no memory for what it writes",
        vm.name
    );
    event::send(
        event::new("vm-paused")
            .string("vm", &vm.name)
            .string("cause", "out-of-memory"),
    );
    notices::note("vm-paused", Some(vm.id), &vm.name);
    dispatch::pause(&ids(vm), true);
}

/// Memory has come back: who waits for some tries again.
pub fn resume_all() {
    let starving = core::mem::take(&mut *STARVING.lock());
    for identity in starving.iter().filter_map(Weak::upgrade) {
        // The operator may have resumed it already.
        if identity.paused.swap(false, Ordering::SeqCst)
            && let Some(life) = registry::vm(identity.id)
        {
            event::send(event::new("vm-resumed").string("vm", &identity.name));
            dispatch::pause(&ids(&life), false);
        }
    }
}
