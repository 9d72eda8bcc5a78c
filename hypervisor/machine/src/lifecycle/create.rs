//! Making VMs and groups: objects, vCPUs, and their entries with the scheduler.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use nagaya_sched::{Affinity, CpuId, CpuSet, Mode};
use nagaya_vmm::config::{GroupConfig, Right, VmConfig};

use super::unstarted;
use crate::dispatch;
use crate::host::cpu::percpu;
use crate::host::memory;
use crate::objects::devices::ResetPersistentDevices;
use crate::objects::family::Family;
use crate::objects::group::Group;
use crate::objects::identity::{Identity, Kin};
use crate::objects::vcpu::Vcpu;
use crate::objects::vm::Vm;
use crate::objects::{convert, registry};

/// More than what a group, a VM and each of its vCPUs have on the heap; `out-of-memory` of `tests/system` looks at it.
const HEAP_OF_GROUP: usize = 64 << 10;
const HEAP_OF_VM: usize = 128 << 10;
const HEAP_OF_VCPU: usize = 32 << 10;

/// The heap cannot run out in the middle: where it might, nothing is begun.
fn check_heap(bytes: usize) -> Result<(), String> {
    let left = memory::heap_left().saturating_sub(memory::HEAP_RESERVE);
    if left >= bytes {
        return Ok(());
    }
    Err(format!(
        "the hypervisor's heap has {} KiB left for VMs and groups, and this one may take {}: end others first",
        left >> 10,
        bytes >> 10
    ))
}

/// Makes a group and enters it among the others.
///
/// # Errors
/// What there is not enough of.
pub fn group(config: &GroupConfig) -> Result<Arc<Group>, String> {
    check_heap(HEAP_OF_GROUP)?;
    let group = Arc::new(Group::create(config, |id| {
        let share = convert::share(config.weight, config.cap_percent);
        let mode = convert::mode(config.mode);
        dispatch::add_group(id, share, mode, config.directed_yield)
            .map_err(|error| format!("the scheduler does not take it: {error:?}"))
    })?);
    registry::add_group(&group);
    Ok(group)
}

/// Makes a VM that has not lived yet: the scheduler and the registry know it, and its name is taken. One that may fork begins a family.
///
/// # Errors
/// Why it cannot be.
pub fn identity(
    id: u16,
    config: &VmConfig,
    group: Option<&Arc<Group>>,
    deterministic: bool,
) -> Result<Arc<Identity>, String> {
    let family = if config.may.has(Right::Fork) {
        Some(Arc::new(family(config, group.is_none())?))
    } else {
        None
    };
    let kin = Kin {
        group,
        family,
        parent: None,
    };
    enter(id, config, kin, deterministic)
}

/// Makes a VM that is to be a child of another, in whose family it has been given a place.
///
/// # Errors
/// Why it cannot be.
pub fn child_identity(
    id: u16,
    config: &VmConfig,
    parent: &Arc<Identity>,
) -> Result<Arc<Identity>, String> {
    let kin = Kin {
        group: parent.group.as_ref(),
        family: parent.family.clone(),
        parent: Some(parent),
    };
    enter(id, config, kin, parent.deterministic)
}

/// VMs in no group that fork are one account together: whoever has many children has no more of the CPUs for it.
fn family(config: &VmConfig, is_account: bool) -> Result<Family, String> {
    let share = convert::share(config.weight, config.cap_percent);
    let enter = |id| {
        dispatch::add_group(id, share, Mode::Off, false)
            .map_err(|error| format!("the scheduler does not take its family: {error:?}"))
    };
    let most = config.max_children;
    Family::new(
        &config.name,
        most,
        config.family_bytes(),
        is_account.then_some(enter),
    )
}

fn enter(
    id: u16,
    config: &VmConfig,
    kin: Kin<'_>,
    deterministic: bool,
) -> Result<Arc<Identity>, String> {
    check_heap(HEAP_OF_VM + HEAP_OF_VCPU * config.vcpus as usize)?;
    let affinities = affinities(config)?;
    if !config.bare {
        let share = convert::share(config.weight, config.cap_percent);
        let account = kin.family.as_ref().and_then(|family| family.account());
        let group = kin.group.map(|group| group.id).or(account);
        dispatch::add_vm(id, group, share)
            .map_err(|error| format!("the scheduler does not take it: {error:?}"))?;
    }
    let identity = Identity::new(id, config, kin, deterministic, affinities).inspect_err(|_| {
        if !config.bare {
            dispatch::remove_vm(id);
        }
    })?;
    registry::add(&identity);
    Ok(identity)
}

/// Makes a life of a VM and its vCPUs, loads its image, and joins its group. `kept` are devices that it had before its reset. In
/// slices if a worker does it.
///
/// # Errors
/// Why it cannot be made: the VM is as it was.
pub fn life(identity: &Arc<Identity>, kept: &ResetPersistentDevices) -> Result<Arc<Vm>, String> {
    let (vm, start) = Vm::create(identity, kept)?;
    let mut start = Some(start);
    // vCPUs hold their VM: dropped here, on an error, they let it go.
    let vcpus: Option<Vec<Vcpu>> = (0..identity.config.vcpus)
        .map(|index| Vcpu::create(&vm, index, start.take()))
        .collect();
    let vcpus = vcpus.ok_or("there is not enough memory for a vCPU's structures")?;
    for vcpu in vcpus {
        unstarted::put(vcpu, || ());
    }
    Ok(vm)
}

/// Makes a VM and its first life.
///
/// # Errors
/// Why it cannot be: nothing of it is left.
pub fn vm(
    id: u16,
    config: &VmConfig,
    group: Option<&Arc<Group>>,
    deterministic: bool,
    paused: bool,
) -> Result<Arc<Vm>, String> {
    let identity = identity(id, config, group, deterministic)?;
    identity.paused.store(paused, Ordering::SeqCst);
    life(&identity, &ResetPersistentDevices::default())
        .inspect_err(|_| registry::strike_out(&identity))
}

/// Where each vCPU may run, as the configuration says.
fn affinities(config: &VmConfig) -> Result<Vec<Affinity>, String> {
    let online: CpuSet = percpu::all()
        .filter(|cpu| cpu.online.load(Ordering::SeqCst))
        .map(|cpu| CpuId(cpu.index))
        .collect();
    let affinity = |hard: CpuSet| {
        let hard = hard.intersection(online);
        if hard.is_empty() {
            return Err(String::from(
                "none of the CPUs it may run on is there and has started",
            ));
        }
        Ok(Affinity {
            hard,
            soft: convert::to_scheduler(config.soft_affinity).intersection(hard),
        })
    };
    if config.cpus.is_empty() {
        let affinity = affinity(convert::to_scheduler(config.affinity))?;
        return Ok(vec![affinity; config.vcpus as usize]);
    }
    config
        .cpus
        .iter()
        .map(|cpu| affinity(CpuSet::single(CpuId(*cpu))))
        .collect()
}
