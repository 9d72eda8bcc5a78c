//! How VMs and groups begin and end: made, started, reset, ended, and with the last VM the run.
//!
//! Above the scheduler's `dispatch`, which has the vCPUs that are on no CPU, and below `run`, which finds out that a VM is to end. The
//! last vCPU to leave destroys its VM.

pub mod create;
pub mod fork;
pub mod native;
pub mod starvation;
pub mod unstarted;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use guest_abi::ExitKind;
use nagaya_sched::{GroupAccount, GroupId, VmId};
use nagaya_vmm::outcome::Cause;

use crate::dispatch;
use crate::host::cpu::{percpu, time};
use crate::host::{event, memory, stop};
use crate::objects::devices::ResetPersistentDevices;
use crate::objects::identity::{Fate, Identity};
use crate::objects::scheduling::{self, SchedulerPort};
use crate::objects::vcpu::Vcpu;
use crate::objects::vm::Vm;
use crate::objects::{notices, registry};
use crate::vmx::start::Start;

static RUN_REFERENCES: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static STARTED: AtomicU32 = AtomicU32::new(0);
/// The machine goes on without VMs.
static LINGERS: AtomicBool = AtomicBool::new(false);

/// No VM is to begin any more.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// No life begins from now on.
pub fn close() {
    CLOSED.store(true, Ordering::SeqCst);
}

/// Ends a VM, in whatever state it is.
pub fn destroy(identity: &Identity) {
    identity.doom();
    if let Some(life) = registry::vm(identity.id) {
        end(&life, Cause::Destroyed);
    }
    // Between two lives it is not to wait for the next.
    identity.hurry();
}

/// Gives objects their way to the scheduler. Called once, before the first group is made.
pub fn init() {
    scheduling::connect(SchedulerPort {
        wake: dispatch::wake,
        wake_boosted: dispatch::wake_boosted,
        charge: dispatch::charge,
        vm_account: |id| {
            let id = VmId(u32::from(id));
            dispatch::with_scheduler(|scheduler, now| scheduler.vm_account(id, now))
                .unwrap_or_default()
        },
        vm_ended: dispatch::remove_vm,
        group_ended,
    });
}

fn group_ended(id: u16) -> Option<GroupAccount> {
    let group = GroupId(u32::from(id));
    let account = dispatch::with_scheduler(|scheduler, now| scheduler.group_account(group, now));
    dispatch::remove_group(id);
    account
}

/// Whether the machine goes on when the last VM has ended, for the control port to make others.
pub fn set_lingers(lingers: bool) {
    LINGERS.store(lingers, Ordering::SeqCst);
}

/// Hands vCPU 0 to its CPU.
pub fn start(vm: &Arc<Vm>) {
    announce(vm);
    let handed = start_vcpu(vm, 0, None);
    debug_assert!(handed, "vCPU 0 is parked at the start");
    end_if_doomed(vm);
}

/// Tells everybody of a life that begins.
fn announce(vm: &Arc<Vm>) {
    if vm.identity.begins() {
        RUN_REFERENCES.fetch_add(1, Ordering::SeqCst);
        STARTED.fetch_add(1, Ordering::SeqCst);
    }
    if let Some(membership) = &vm.membership {
        membership
            .group
            .update(|state, page| state.started(page, membership.index));
    }
    // Children come and go too often for serial lines: the operator's log has them, their parents know how they end.
    if !vm.identity.is_child {
        tell_start(vm);
    }
    registry::begin_life(vm);
    notices::note("vm-start", Some(vm.id), &vm.name);
}

fn tell_start(vm: &Vm) {
    let first = vm.identity.affinities.lock().first().copied();
    let cpu = first
        .and_then(|affinity| affinity.hard.iter().next())
        .map_or(0, |cpu| cpu.0);
    event::send(
        event::new("vm-start")
            .string("vm", &vm.name)
            .number("cpu", cpu)
            // As the guest reads it, to tell how long it took to come somewhere.
            .number("tsc", time::ticks()),
    );
}

/// Whoever dooms a VM does that first and then looks for a life; we the other way round.
fn end_if_doomed(vm: &Arc<Vm>) {
    if vm.identity.is_doomed() || CLOSED.load(Ordering::SeqCst) {
        end(vm, Cause::Destroyed);
    }
}

/// Hands a parked vCPU to its CPU, starting at `start` if that is given. `false` if it is not parked.
pub fn start_vcpu(vm: &Vm, index: u32, start: Option<Start>) -> bool {
    let Some(mut vcpu) = unstarted::take(vm.id, index) else {
        return false;
    };
    if start.is_some() {
        vcpu.start = start;
    }
    // One that waits for its start takes no NMI.
    let _ = vcpu.handle.posted.take_nmis();
    vcpu.handle.start_up.started();
    // Held until the scheduler has it, so that whoever changes it meanwhile finds it there.
    let affinities = vm.identity.affinities.lock();
    let Some(affinity) = affinities.get(index as usize).copied() else {
        return false;
    };
    vm.count_in();
    let vcpu = Box::new(vcpu);
    if vm.is_bare {
        if let Some(cpu) = affinity
            .hard
            .iter()
            .next()
            .and_then(|cpu| percpu::get(cpu.0))
        {
            native::hand(cpu, vcpu);
        }
        return true;
    }
    let admitted = dispatch::admit(vcpu, affinity);
    drop(affinities);
    match admitted {
        Ok(()) => true,
        Err((_, vcpu)) if vm.is_ending() => {
            leave(vcpu);
            false
        }
        Err((error, vcpu)) => {
            log::error!(
                "VM {}: vCPU {index} cannot be scheduled: {error:?}",
                vm.name
            );
            let _ = vm.count_out();
            let handle = Arc::clone(&vcpu.handle);
            unstarted::put(*vcpu, || handle.start_up.not_started());
            false
        }
    }
}

/// Takes a vCPU back that INIT has reset and that has left its CPU: it waits for a start-up message, or follows the one that
/// has come since.
pub fn park(mut vcpu: Box<Vcpu>) {
    let vm = Arc::clone(&vcpu.vm);
    let (index, handle) = (vcpu.index, Arc::clone(&vcpu.handle));
    let all = vm.vcpus.clone();
    vcpu.init();
    // A start-up message that finds it waiting finds it there.
    let page = unstarted::put(*vcpu, || handle.start_up.reset());
    if let Some(page) = page {
        start_vcpu(&vm, index, Some(Start::real(page)));
    }
    count_out(vm);
    // One that halted while this one ran looks again whether anybody is left who could wake it.
    for other in all.iter().filter(|other| other.try_wake()) {
        dispatch::wake(other);
    }
}

/// Ends the VM for that cause, unless it is ending already, and calls its other vCPUs back.
pub fn end(vm: &Vm, cause: Cause) {
    if !vm.begin_end(cause) {
        return;
    }
    for handle in &vm.vcpus {
        if let Some(vcpu) = dispatch::remove_vcpu(handle.id) {
            leave(vcpu);
        }
        // Timers that still name it are dropped.
        handle.try_wake();
    }
}

/// A vCPU has left its CPU for good.
pub fn leave(vcpu: Box<Vcpu>) {
    let vm = Arc::clone(&vcpu.vm);
    drop(vcpu);
    count_out(vm);
}

/// One vCPU less runs. After the last one the VM's end is reported and everything given back.
fn count_out(vm: Arc<Vm>) {
    if !vm.count_out() {
        return;
    }
    drop(unstarted::take_all(vm.id));
    life_ended(vm);
}

/// The last vCPU has left: the life is over, and perhaps the VM.
fn life_ended(vm: Arc<Vm>) {
    let life_cause = vm.cause().unwrap_or(Cause::Killed);
    let fate = vm
        .identity
        .after(life_cause, time::ticks().saturating_sub(vm.began_at));
    let cause = match fate {
        Fate::Again { .. } => life_cause,
        Fate::Over(cause) => cause,
    };
    let code = if let Cause::Exit(code) = cause {
        Some(code)
    } else {
        None
    };
    let mut reports = Vec::new();
    vm.devices.report(&mut reports);
    vm.devices.report_disks(&mut reports);
    // From here on nothing of the VM writes to the region, which is what its end tells the others. And that comes before
    // anything is sent: lines are slow, and a lock's heir waits.
    vm.devices.detach();
    if let Some(membership) = &vm.membership {
        membership.group.ended(membership.index, code);
    }
    reports.into_iter().for_each(event::send);
    vm.console.flush();
    if vm.identity.is_child {
        // How it has ended is for its parent to judge.
        if !matches!(cause, Cause::Exit(_)) && !cause.is_success() {
            log::warn!("VM {} {cause}", vm.name);
        }
    } else {
        tell_end(&vm, cause);
    }
    let identity = Arc::clone(&vm.identity);
    identity.remember(&vm.counts());
    registry::end_life(&identity);
    let kept = vm.devices.kept();
    // What is not the identity's comes back here: nobody else holds a VM whose vCPUs have left, but for a moment the control port.
    drop(vm);
    match fate {
        Fate::Over(_) => {
            drop(kept);
            over(identity, cause);
        }
        Fate::Again { not_before } => {
            notices::note(
                "vm-reset",
                Some(identity.id),
                &format!("{} {cause}", identity.name),
            );
            let again = Arc::clone(&identity);
            identity.work(not_before, move || make_again(again, kept));
        }
    }
}

fn tell_end(vm: &Vm, cause: Cause) {
    let mut end = event::new("vm-end")
        .string("vm", &vm.name)
        .string("cause", cause.word());
    if let Cause::Exit(code) = cause {
        end = end.number("code", code);
    }
    let exits = vm.exits();
    event::send(
        end.display("detail", cause)
            .counts(
                "exits",
                ExitKind::ALL
                    .iter()
                    .map(|kind| (kind.name(), exits[*kind as usize])),
            )
            .number("doorbells", vm.endpoint.mailbox.received()),
    );
    if cause.is_success() {
        log::info!("VM {} {cause}", vm.name);
    } else {
        log::warn!("VM {} {cause}", vm.name);
        FAILED.fetch_add(1, Ordering::SeqCst);
    }
}

/// A life after the first; none if the VM is to be gone.
fn make_again(identity: Arc<Identity>, kept: ResetPersistentDevices) {
    let made = if identity.is_doomed() {
        Err(String::new())
    } else {
        create::life(&identity, &kept).map(|life| start(&life))
    };
    drop(kept);
    match made {
        Ok(()) => {}
        Err(_) if identity.is_doomed() => {
            let cause = Cause::Destroyed;
            event::send(
                event::new("vm-end")
                    .string("vm", &identity.name)
                    .string("cause", cause.word())
                    .display("detail", cause),
            );
            log::info!("VM {} {cause}", identity.name);
            over(identity, cause);
        }
        Err(reason) => {
            refused(&identity.name, &reason);
            over(identity, Cause::Killed);
        }
    }
}

/// The VM is over. Its memory comes back here: nobody else holds it, but for a moment the control port.
fn over(identity: Arc<Identity>, cause: Cause) {
    notices::note(
        "vm-end",
        Some(identity.id),
        &format!("{} {cause}", identity.name),
    );
    let removal = registry::end(&identity, cause);
    let (id, parent) = (identity.id, identity.parent());
    drop(identity);
    removal.complete();
    if let Some(parent) = parent {
        parent.children.lock().ended(id, cause);
        wake_all(&parent);
    }
    starvation::resume_all();
    drop_run_reference();
}

/// Has the vCPUs of a VM that wait look whether they have a reason to go on.
fn wake_all(identity: &Identity) {
    if let Some(life) = registry::vm(identity.id) {
        for handle in life.vcpus.iter().filter(|handle| handle.try_wake()) {
            dispatch::wake(handle);
        }
    }
}

/// A VM that could not be created: counted as failed, reported, everything else goes on.
pub fn refused(name: &str, reason: &str) {
    FAILED.fetch_add(1, Ordering::SeqCst);
    log::error!("VM {name} is refused: {reason}");
    event::send(
        event::new("vm-end")
            .string("vm", name)
            .string("cause", "refused")
            .string("detail", reason),
    );
}

/// Sends the number of free frames and who holds the others.
pub fn report_frames(when: &str) {
    let counts = memory::frames().counts();
    event::send(
        event::new("frames")
            .string("when", when)
            .number("free", counts.free)
            .number("hypervisor", counts.hypervisor)
            // What a family shares is VMs'.
            .number("vm", counts.vm + counts.family)
            .number("group", counts.group),
    );
}

/// Ends the run if no VM is left.
pub fn all_ended() {
    report_frames("after-last-vm");
    let (started, failed) = (
        STARTED.load(Ordering::SeqCst),
        FAILED.load(Ordering::SeqCst),
    );
    if LINGERS.load(Ordering::SeqCst) {
        log::info!("no VM is left; the control port can make others");
        return;
    }
    if failed == 0 {
        stop::end_run(true, &format!("all {started} VMs ended well"));
    }
    stop::end_run(false, &format!("{failed} VMs did not end well"));
}

/// Keeps the run from ending while VMs are still being started: counts as one VM.
pub fn take_run_reference() {
    RUN_REFERENCES.fetch_add(1, Ordering::SeqCst);
}

/// Lets the run end.
pub fn drop_run_reference() {
    if RUN_REFERENCES.fetch_sub(1, Ordering::SeqCst) == 1 {
        all_ended();
    }
}
