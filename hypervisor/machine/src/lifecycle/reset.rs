//! A VM that is made again after its end, under its number and in its place: an operator's reset, or the guest's own.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use nagaya_sched::Affinity;
use nagaya_vmm::config::VmConfig;

use super::create;
use crate::objects::devices::ResetPersistentDevices;
use crate::objects::group::Group;
use crate::objects::vm::Vm;
use crate::objects::{convert, registry};

/// What a VM is made from, kept while there is none.
pub struct ResetPlan {
    /// Its number.
    pub id: u16,
    config: VmConfig,
    /// ResetPersistentDevices, so that it does not vanish with its last member.
    group: Option<Arc<Group>>,
    deterministic: bool,
    /// What a reset leaves as it is.
    kept: ResetPersistentDevices,
}

impl ResetPlan {
    /// That VM, as it is now.
    #[must_use]
    pub fn of(vm: &Vm) -> ResetPlan {
        ResetPlan {
            id: vm.id,
            config: settings(vm),
            group: vm
                .membership
                .as_ref()
                .map(|membership| Arc::clone(&membership.group)),
            deterministic: vm.deterministic,
            kept: vm.devices.kept(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Makes it, to be started. The one before has gone.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub(super) fn make(&self) -> Result<Arc<Vm>, String> {
        registry::forget_ended(self.id);
        create::vm_beside_others(
            self.id,
            &self.config,
            self.group.as_ref(),
            self.deterministic,
            &self.kept,
        )
    }
}

/// What a VM is made from when it is made again: as it was, with the share and the CPUs that have been set since; vCPUs with
/// different sets of several CPUs get those of the scenario back.
fn settings(vm: &Vm) -> VmConfig {
    let mut config = vm.config.clone();
    (config.weight, config.cap_percent) = *vm.share.lock();
    let affinities = vm.affinities.lock();
    let single = |affinity: &Affinity| {
        let cpu = affinity.hard.iter().next().map(|cpu| cpu.0);
        cpu.filter(|_| affinity.hard.len() == 1)
    };
    let pins: Option<Vec<u32>> = affinities.iter().map(single).collect();
    if let Some(pins) = pins {
        config.cpus = pins;
    } else if let Some(first) = affinities.first()
        && affinities.iter().all(|affinity| affinity == first)
    {
        config.cpus.clear();
        config.affinity = convert::from_scheduler(first.hard);
        config.soft_affinity = convert::from_scheduler(first.soft);
    }
    config
}
