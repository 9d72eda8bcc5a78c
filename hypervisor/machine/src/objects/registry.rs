//! Which VMs and groups there are, by number and name, and which have been.
//!
//! Concurrency: one lock, held for look-ups only. Whoever takes an [`Arc`] out keeps the VM's memory for that long.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use guest_abi::ExitKind;
use nagaya_sched::Account;
use nagaya_vmm::control::DoorbellCounts;
use nagaya_vmm::outcome::Cause;
use spin::Mutex;

use crate::host::cpu::time;
use crate::objects::devices::console::Attached;
use crate::objects::group::Group;
use crate::objects::identity::Identity;
use crate::objects::numbers::free_number;
use crate::objects::vm::Vm;

/// The largest number of a VM: its VPIDs, 8 for each, fill 16 bits.
const MAX_VM: u16 = 8190;
/// Ended VMs that can still be told of.
const MAX_ENDED: usize = 32;

/// A VM that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Bytes of RAM it had.
    pub memory_bytes: u64,
    /// vCPUs it had.
    pub vcpus: u32,
    /// Why it ended.
    pub cause: Cause,
    /// Ticks from its making to its end.
    pub lived_ticks: u64,
    /// What it had of the CPUs.
    pub account: Account,
    /// Exits by kind.
    pub exits: [u64; ExitKind::COUNT],
    /// Its doorbells.
    pub doorbells: DoorbellCounts,
    /// Its weight and its cap in percent.
    pub share: (u32, u32),
    /// How often it was reset.
    pub resets: u32,
}

/// A VM that is not over, and its life if it is not between two.
#[derive(Clone, Debug)]
pub struct Known {
    /// What of it stays.
    pub identity: Arc<Identity>,
    /// Its life.
    pub life: Option<Arc<Vm>>,
}

#[derive(Debug)]
struct Registry {
    vms: BTreeMap<u16, Known>,
    groups: BTreeMap<u16, Weak<Group>>,
    ended: VecDeque<Ended>,
    /// VMs that have been struck out and still hold memory.
    departing: Vec<Ended>,
    /// What ended VMs had said that no client has been told yet.
    final_console_output: BTreeMap<u16, Attached>,
    next_vm: u16,
    /// Numbers of VMs that are on their way.
    reserved: BTreeSet<u16>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    vms: BTreeMap::new(),
    groups: BTreeMap::new(),
    ended: VecDeque::new(),
    departing: Vec::new(),
    final_console_output: BTreeMap::new(),
    next_vm: 1,
    reserved: BTreeSet::new(),
});

/// A number for a VM that is on its way, nobody else's until this is dropped, which is after the VM has been added.
#[derive(Debug)]
pub struct VmNumber(u16);

impl VmNumber {
    /// The number.
    #[must_use]
    pub fn get(&self) -> u16 {
        self.0
    }
}

impl Drop for VmNumber {
    fn drop(&mut self) {
        REGISTRY.lock().reserved.remove(&self.0);
    }
}

/// A number for a VM. Numbers are given anew as late as possible.
#[must_use]
pub fn number_for_vm() -> Option<VmNumber> {
    let mut registry = REGISTRY.lock();
    let Registry {
        vms,
        ended,
        departing,
        next_vm,
        reserved,
        ..
    } = &mut *registry;
    let number = free_number(next_vm, MAX_VM, |number| {
        vms.contains_key(&number)
            || reserved.contains(&number)
            || departing.iter().any(|ended| ended.id == number)
            || ended.iter().any(|ended| ended.id == number)
    })?;
    reserved.insert(number);
    Some(VmNumber(number))
}

/// Enters a VM: from now on its name is taken.
pub fn add(identity: &Arc<Identity>) {
    let known = Known {
        identity: Arc::clone(identity),
        life: None,
    };
    REGISTRY.lock().vms.insert(identity.id, known);
}

/// Strikes a VM out that could not be made.
pub fn strike_out(identity: &Identity) {
    let struck = REGISTRY.lock().vms.remove(&identity.id);
    // Dropped after the lock.
    drop(struck);
}

/// A life of a VM begins.
pub fn begin_life(vm: &Arc<Vm>) {
    if let Some(known) = REGISTRY.lock().vms.get_mut(&vm.id) {
        known.life = Some(Arc::clone(vm));
    }
}

/// The life of a VM is over.
pub fn end_life(identity: &Identity) {
    let life = REGISTRY
        .lock()
        .vms
        .get_mut(&identity.id)
        .and_then(|known| known.life.take());
    // Dropped after the lock.
    drop(life);
}

/// Enters a group, for as long as it has members.
pub fn add_group(group: &Arc<Group>) {
    let groups = &mut REGISTRY.lock().groups;
    groups.retain(|_, group| group.strong_count() > 0);
    groups.insert(group.id, Arc::downgrade(group));
}

/// A VM that is struck out and has not given its memory back yet.
#[must_use]
pub struct PendingRemoval(u16);

/// A VM is over: it is struck out.
pub fn end(identity: &Arc<Identity>, cause: Cause) -> PendingRemoval {
    let counts = identity.counts(None);
    let ended = Ended {
        id: identity.id,
        name: identity.name.clone(),
        memory_bytes: identity.config.memory_bytes,
        vcpus: identity.config.vcpus,
        cause,
        lived_ticks: time::ticks().saturating_sub(identity.made_at),
        account: identity.account(),
        exits: counts.exits,
        doorbells: counts.doorbells,
        share: *identity.share.lock(),
        resets: identity.resets(),
    };
    let final_console_output = identity.console.attached.lock().take();
    let struck = {
        let mut registry = REGISTRY.lock();
        registry.departing.push(ended);
        if let Some(final_console_output) = final_console_output {
            registry
                .final_console_output
                .insert(identity.id, final_console_output);
        }
        registry.vms.remove(&identity.id)
    };
    // Dropped after the lock.
    drop(struck);
    PendingRemoval(identity.id)
}

impl PendingRemoval {
    /// Its memory is back: it is remembered for a while.
    pub fn complete(self) {
        let mut registry = REGISTRY.lock();
        let Some(place) = registry
            .departing
            .iter()
            .position(|ended| ended.id == self.0)
        else {
            return;
        };
        let ended = registry.departing.swap_remove(place);
        let oldest = if registry.ended.len() >= MAX_ENDED {
            registry.ended.pop_front()
        } else {
            None
        };
        let unheard = oldest
            .as_ref()
            .and_then(|oldest| registry.final_console_output.remove(&oldest.id));
        registry.ended.push_back(ended);
        // What is dropped is dropped after the lock.
        drop(registry);
        drop((oldest, unheard));
    }
}

/// Runs `action` on what an ended VM had said and nobody has been told; forgets it if the action says so.
pub fn with_last_words<R>(id: u16, action: impl FnOnce(&mut Attached) -> (R, bool)) -> Option<R> {
    let mut registry = REGISTRY.lock();
    let (result, forget) = action(registry.final_console_output.get_mut(&id)?);
    let heard = forget.then(|| registry.final_console_output.remove(&id));
    drop(registry);
    drop(heard);
    Some(result)
}

/// Whether a VM is over and its memory is back.
#[must_use]
pub fn has_gone(id: u16) -> bool {
    let registry = REGISTRY.lock();
    !registry.vms.contains_key(&id) && !registry.departing.iter().any(|ended| ended.id == id)
}

/// The VM of that number, between two lives as well.
#[must_use]
pub fn known(id: u16) -> Option<Known> {
    REGISTRY.lock().vms.get(&id).cloned()
}

/// The life of the VM of that number.
#[must_use]
pub fn vm(id: u16) -> Option<Arc<Vm>> {
    REGISTRY.lock().vms.get(&id)?.life.clone()
}

/// The number of the VM of that name, between two lives as well.
#[must_use]
pub fn named(name: &str) -> Option<u16> {
    REGISTRY
        .lock()
        .vms
        .values()
        .find(|known| known.identity.name == name)
        .map(|known| known.identity.id)
}

/// The VM with the least number that is at least `from`, between two lives as well.
#[must_use]
pub fn next(from: u16) -> Option<Known> {
    REGISTRY
        .lock()
        .vms
        .range(from..)
        .next()
        .map(|(_, known)| known.clone())
}

/// The VM that has ended with the least number that is at least `from`.
#[must_use]
pub fn next_ended(from: u16) -> Option<Ended> {
    let registry = REGISTRY.lock();
    registry
        .ended
        .iter()
        .chain(&registry.departing)
        .filter(|ended| ended.id >= from)
        .min_by_key(|ended| ended.id)
        .cloned()
}

/// The last VM of that name that has ended.
#[must_use]
pub fn ended_named(name: &str) -> Option<u16> {
    let registry = REGISTRY.lock();
    registry
        .ended
        .iter()
        .chain(&registry.departing)
        .rev()
        .find(|ended| ended.name == name)
        .map(|ended| ended.id)
}

/// All VMs that are not over.
#[must_use]
pub fn all() -> Vec<Known> {
    REGISTRY.lock().vms.values().cloned().collect()
}

/// The group of that number, if it has members.
#[must_use]
pub fn group(id: u16) -> Option<Arc<Group>> {
    REGISTRY.lock().groups.get(&id)?.upgrade()
}

/// The group of that name, if it has members.
#[must_use]
pub fn group_named(name: &str) -> Option<Arc<Group>> {
    let groups: Vec<Arc<Group>> = REGISTRY
        .lock()
        .groups
        .values()
        .filter_map(Weak::upgrade)
        .collect();
    groups.into_iter().find(|group| group.name == name)
}

/// The group with the least number that is at least `from`.
#[must_use]
pub fn next_group(from: u16) -> Option<Arc<Group>> {
    let groups: Vec<Arc<Group>> = REGISTRY
        .lock()
        .groups
        .range(from..)
        .filter_map(|(_, group)| group.upgrade())
        .collect();
    groups.into_iter().next()
}
