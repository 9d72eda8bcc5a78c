//! VMs as the control port tells of them.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use guest_abi::ExitKind;
use nagaya_sched::{Account, CpuId, VcpuId};
use nagaya_vmm::control::{CpuSet, ExitCount, GroupTag, Ticks, VmRow, VmState};

use crate::dispatch;
use crate::host::cpu::time;
use crate::objects::convert;
use crate::objects::registry::{Ended, Known};
use crate::objects::vm::Vm;

/// The names that a VM's vCPUs have to the scheduler.
pub(super) fn ids(vm: &Vm) -> Vec<VcpuId> {
    vm.vcpus.iter().map(|vcpu| vcpu.id).collect()
}

/// Where a VM's ticks went that has been there for so long.
fn ticks(account: &Account, lived: u64, vcpus: u32) -> Ticks {
    let total = lived.saturating_mul(u64::from(vcpus));
    // What was not in the scheduler's hands yet, or is not any more, is idle.
    let busy = account.running + account.runnable + account.co_stopped + account.blocked;
    Ticks {
        running: account.running,
        runnable: account.runnable,
        co_stopped: account.co_stopped,
        blocked: account.blocked,
        idle: total.saturating_sub(busy),
        total,
    }
}

/// What a life is doing.
fn state(vm: &Vm, on: &[u32]) -> VmState {
    let (running, ready) = dispatch::with_scheduler(|scheduler, _| {
        let running = on
            .iter()
            .filter_map(|cpu| scheduler.current(CpuId(*cpu)))
            .any(|id| vm.vcpus.iter().any(|vcpu| vcpu.id == id));
        let ready = vm.vcpus.iter().any(|vcpu| scheduler.is_ready(vcpu.id));
        (running, ready)
    });
    if running {
        VmState::Running
    } else if ready {
        VmState::Runnable
    } else {
        // vCPUs that have not been started are not in the scheduler.
        VmState::Blocked
    }
}

/// A VM that is not over.
pub(super) fn row(known: &Known) -> VmRow {
    let Known { identity, life } = known;
    let life = life.as_deref();
    let account = identity.account();
    let on = life
        .map(|vm| dispatch::loaded_on(&ids(vm)))
        .unwrap_or_default();
    let none = nagaya_sched::CpuSet::EMPTY;
    let (hard, soft) = identity
        .affinities
        .lock()
        .iter()
        .fold((none, none), |(hard, soft), affinity| {
            (hard.union(affinity.hard), soft.union(affinity.soft))
        });
    let state = match life {
        _ if identity.paused.load(Ordering::SeqCst) => VmState::Paused,
        Some(vm) if vm.panicked.load(Ordering::SeqCst) => VmState::Panicked,
        Some(vm) => state(vm, &on),
        None if identity.has_lived() => VmState::Resetting,
        None => VmState::Creating,
    };
    let (weight, cap_percent) = *identity.share.lock();
    let lived = time::ticks().saturating_sub(identity.made_at);
    let counts = identity.counts(life.map(Vm::counts).as_ref());
    VmRow {
        id: u32::from(identity.id),
        name: identity.name.clone(),
        group: identity.group.as_ref().map(|group| GroupTag {
            id: u32::from(group.id),
            name: group.name.clone(),
        }),
        state,
        vcpus: identity.config.vcpus,
        memory_bytes: identity.config.memory_bytes,
        cpus: on.iter().fold(CpuSet::NONE, |set, cpu| set.with(*cpu)),
        affinity: convert::from_scheduler(hard),
        soft_affinity: convert::from_scheduler(soft),
        ticks: ticks(&account, lived, identity.config.vcpus),
        exits: exits(&counts.exits),
        doorbells: counts.doorbells,
        switches: account.switches,
        migrations: account.migrations,
        weight,
        cap_percent,
        resets: identity.resets(),
        cause: None,
    }
}

/// A VM that is over.
pub(super) fn ended_row(ended: Ended) -> VmRow {
    let (weight, cap_percent) = ended.share;
    VmRow {
        id: u32::from(ended.id),
        name: ended.name,
        group: None,
        state: VmState::Ended,
        vcpus: ended.vcpus,
        memory_bytes: ended.memory_bytes,
        cpus: CpuSet::NONE,
        affinity: CpuSet::NONE,
        soft_affinity: CpuSet::NONE,
        ticks: ticks(&ended.account, ended.lived_ticks, ended.vcpus),
        exits: exits(&ended.exits),
        doorbells: ended.doorbells,
        switches: ended.account.switches,
        migrations: ended.account.migrations,
        weight,
        cap_percent,
        resets: ended.resets,
        cause: Some(ended.cause.to_string()),
    }
}

/// Exits by basic reason. Kinds that cover several reasons are told under the one that is usual for them.
fn exits(kinds: &[u64; ExitKind::COUNT]) -> Vec<ExitCount> {
    let reason = |kind: ExitKind| match kind {
        ExitKind::Exception | ExitKind::Nmi => 0,
        ExitKind::ExternalInterrupt => 1,
        ExitKind::InterruptWindow => 7,
        ExitKind::Cpuid => 10,
        ExitKind::Halt => 12,
        ExitKind::Hypercall => 18,
        ExitKind::ControlRegister => 28,
        ExitKind::Port => 30,
        ExitKind::MsrRead => 31,
        ExitKind::MsrWrite => 32,
        ExitKind::Instruction => 40,
        ExitKind::MemoryViolation => 48,
        ExitKind::PreemptionTimer => 52,
        ExitKind::Other => 2,
    };
    let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
    for (kind, count) in ExitKind::ALL.into_iter().zip(kinds) {
        *counts.entry(reason(kind)).or_default() += count;
    }
    counts
        .into_iter()
        .filter(|(_, count)| *count != 0)
        .map(|(reason, count)| ExitCount { reason, count })
        .collect()
}
