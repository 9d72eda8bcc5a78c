//! Making a VM that is as another is.
//!
//! In order: a place in the family, a number, an identity; then, with no vCPU of the parent's running, memory and vCPUs. What has
//! been made is undone by its drop if what follows cannot be: all or nothing.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_abi::process::child_name;
use guest_abi::{Errno, unpack_name};
use nagaya_vmm::process::Found;

use super::{announce, create, end_if_doomed, start_vcpu, unstarted};
use crate::objects::identity::Identity;
use crate::objects::registry;
use crate::objects::vcpu::Vcpu;
use crate::objects::vm::Vm;

/// A child that is on its way. Dropped before [`Newborn::start`] it is undone.
#[derive(Debug)]
#[must_use]
pub struct Newborn {
    parent: Arc<Identity>,
    identity: Option<Arc<Identity>>,
}

impl Newborn {
    /// Makes the identity of a VM's child.
    ///
    /// # Errors
    /// `EPERM`: it belongs to no family. `EAGAIN`: as many live as may, or the scheduler or the registry has no room.
    pub fn new(parent: &Arc<Identity>) -> Result<Newborn, Errno> {
        let family = parent.family.as_ref().ok_or(Errno::Perm)?;
        let place = family.place().ok_or(Errno::Again)?;
        let number = registry::number_for_vm().ok_or(Errno::Again)?;
        let mut config = parent.config.clone();
        let name = child_name(family.name(), number.get().into());
        config.name = String::from(unpack_name(&name));
        let identity = create::child_identity(number.get(), &config, parent).map_err(|reason| {
            log::warn!("VM {} has no child: {reason}", parent.name);
            Errno::Again
        })?;
        // The identity gives it back.
        place.keep();
        parent.children.lock().born(identity.id);
        Ok(Newborn {
            parent: Arc::clone(parent),
            identity: Some(identity),
        })
    }

    /// Makes its life: all but its vCPUs. No vCPU of the parent's runs meanwhile.
    ///
    /// # Errors
    /// `ENOMEM`, or `EAGAIN` if its group is full.
    pub fn life(&self, parent: &Vm) -> Result<Arc<Vm>, Errno> {
        let identity = self.identity.as_ref().ok_or(Errno::NoMem)?;
        Vm::fork(parent, identity).map_err(|reason| {
            log::warn!("VM {} has no child: {reason}", parent.name);
            let is_full = identity.group.is_some() && identity.place().is_none();
            if is_full { Errno::Again } else { Errno::NoMem }
        })
    }

    /// Starts it: its number. `runs` are the vCPUs that go on; the others wait for their start.
    #[must_use]
    pub fn start(mut self, vm: &Arc<Vm>, vcpus: Vec<Vcpu>, runs: &[u32]) -> u16 {
        self.identity = None;
        for vcpu in vcpus {
            unstarted::put(vcpu, || ());
        }
        announce(vm);
        for index in runs {
            let handed = start_vcpu(vm, *index, None);
            debug_assert!(
                handed || vm.is_ending(),
                "vCPU {index} was put there just now"
            );
        }
        end_if_doomed(vm);
        vm.id
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(identity) = self.identity.take() {
            drop(unstarted::take_all(identity.id));
            self.parent.children.lock().not_born(identity.id);
            registry::strike_out(&identity);
        }
    }
}

/// Ends a VM that descends from another, for that one.
///
/// # Errors
/// `ESRCH`: there is none such.
pub fn kill(killer: &Identity, number: u64) -> Result<(), Errno> {
    let number = u16::try_from(number).map_err(|_| Errno::NoPeer)?;
    let known = registry::known(number).ok_or(Errno::NoPeer)?;
    if !known.identity.descends_from(killer.id) {
        return Err(Errno::NoPeer);
    }
    match known.life {
        Some(life) => super::end(&life, nagaya_vmm::outcome::Cause::KilledByParent),
        None => super::destroy(&known.identity),
    }
    Ok(())
}

/// What there is of a child that is waited for.
#[must_use]
pub fn find(parent: &Identity, child: Option<u16>) -> Found {
    parent.children.lock().find(child)
}
