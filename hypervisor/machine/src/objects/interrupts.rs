//! Interrupts on their way: messages of devices and of other vCPUs, brought to the vCPUs they are for.
//!
//! Concurrency: called from any CPU; takes no lock but what waking a vCPU takes.

use alloc::sync::Arc;

use nagaya_devices::apic::{Acceptance, BusMessage, Delivery, Route};

use crate::objects::handle::Handle;
use crate::objects::scheduling;

/// Brings a message to the vCPUs of a VM that it is for. Called from any CPU; takes no lock.
///
/// Of several recipients of a lowest-priority interrupt the first that is enabled gets it: priorities change too often to be
/// published. For start-up messages see `run::interrupts`.
pub fn send(vcpus: &[Arc<Handle>], message: &BusMessage) -> Acceptance {
    let (vector, only_one) = match message.delivery {
        Delivery::Fixed { vector } => (vector, false),
        Delivery::LowestPriority { vector } => (vector, true),
        Delivery::Nmi => return post_nmi_or_init(vcpus, message, |vcpu| vcpu.posted.post_nmi()),
        Delivery::Init => return post_nmi_or_init(vcpus, message, |vcpu| vcpu.start_up.init()),
        Delivery::StartUp { .. } => return Acceptance::Refused,
    };
    let mut acceptance = Acceptance::Refused;
    for vcpu in vcpus {
        let route = Route::from_bits(vcpu.posted.route());
        if !route.is_recipient(&message.recipients) || !route.is_software_enabled() {
            continue;
        }
        acceptance = Acceptance::Accepted;
        if vcpu.posted.post(vector, message.trigger) {
            notify_vcpu(vcpu);
        }
        if only_one {
            break;
        }
    }
    acceptance
}

/// Brings all recipients of a message what `post` stores for them, and tells those for which that says so: whether they take
/// interrupts or not, and whether software has enabled their APIC or not ("Local APIC State After It Has Been Software Disabled").
#[cold]
fn post_nmi_or_init(
    vcpus: &[Arc<Handle>],
    message: &BusMessage,
    post: impl Fn(&Handle) -> bool,
) -> Acceptance {
    let mut acceptance = Acceptance::Refused;
    for vcpu in vcpus {
        let route = Route::from_bits(vcpu.posted.route());
        if !route.is_recipient(&message.recipients) {
            continue;
        }
        acceptance = Acceptance::Accepted;
        if !post(vcpu) {
            continue;
        }
        if vcpu.try_wake() {
            scheduling::wake(vcpu);
        } else if let Some(cpu) = vcpu.cpu() {
            // By NMI if it is in the guest; in the hypervisor it looks before it goes back.
            cpu.kick_to_reschedule();
        }
    }
    acceptance
}

/// Makes a vCPU look at what is not a vector: the PIC's output, a timer of its VM's that has become due earlier.
pub fn request_recheck(vcpu: &Handle) {
    if vcpu.posted.request_recheck() {
        notify_vcpu(vcpu);
    }
}

/// Makes a vCPU look at what has been posted.
fn notify_vcpu(vcpu: &Handle) {
    if vcpu.try_wake() {
        scheduling::wake_boosted(vcpu);
    } else if let Some(cpu) = vcpu.cpu() {
        // If it is on no CPU, it looks when it is loaded; if it is in no guest, before it enters one.
        cpu.call_out();
    }
}
