//! Making VMs and groups: objects, vCPUs, and their entries with the scheduler.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use nagaya_sched::{Affinity, CpuId, CpuSet};
use nagaya_vmm::config::{GroupConfig, VmConfig};

use super::unstarted;
use crate::dispatch;
use crate::host::cpu::percpu::{self, PerCpu};
use crate::objects::devices::ResetPersistentDevices;
use crate::objects::group::Group;
use crate::objects::vcpu::Vcpu;
use crate::objects::vm::Vm;
use crate::objects::{convert, registry};

/// Makes a group and enters it among the others.
///
/// # Errors
/// What there is not enough of.
pub fn group(config: &GroupConfig) -> Result<Arc<Group>, String> {
    let group = Arc::new(Group::create(config, |id| {
        let share = convert::share(config.weight, config.cap_percent);
        let mode = convert::mode(config.mode);
        dispatch::add_group(id, share, mode, config.directed_yield)
            .map_err(|error| format!("the scheduler does not take it: {error:?}"))
    })?);
    registry::add_group(&group);
    Ok(group)
}

/// Makes a VM and its vCPUs, loads its image, and joins its group. `kept` are devices that it had before its reset.
///
/// # Errors
/// Why this VM cannot be: the message names the value.
pub fn vm(
    id: u16,
    config: &VmConfig,
    group: Option<&Arc<Group>>,
    deterministic: bool,
    kept: &ResetPersistentDevices,
) -> Result<Arc<Vm>, String> {
    let affinities = affinities(config)?;
    let (vm, start) = Vm::create(id, config, group, deterministic, affinities, kept)?;
    let mut start = Some(start);
    // vCPUs hold their VM: dropped here, on an error, they let it go.
    let vcpus: Option<Vec<Vcpu>> = (0..config.vcpus)
        .map(|index| Vcpu::create(&vm, index, start.take()))
        .collect();
    let vcpus = vcpus.ok_or("there is not enough memory for a vCPU's structures")?;
    if !config.bare {
        let share = convert::share(config.weight, config.cap_percent);
        dispatch::add_vm(id, group.map(|group| group.id), share)
            .map_err(|error| format!("the scheduler does not take it: {error:?}"))?;
    }
    for vcpu in vcpus {
        unstarted::put(vcpu, || ());
    }
    Ok(vm)
}

/// As [`vm`], while others run: zeroing its RAM takes as long as the RAM is large, and this CPU does nothing else meanwhile.
///
/// # Errors
/// As [`vm`].
pub fn vm_beside_others(
    id: u16,
    config: &VmConfig,
    group: Option<&Arc<Group>>,
    deterministic: bool,
    kept: &ResetPersistentDevices,
) -> Result<Arc<Vm>, String> {
    let cpu = PerCpu::current();
    let make = || vm(id, config, group, deterministic, kept);
    dispatch::away(cpu, || cpu.watch.excuse(make))
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
