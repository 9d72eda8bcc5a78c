//! The checks. Each entry is judged by itself and by the entries before it, so that of two that exclude each other the
//! first stands.

mod guest;

use super::{
    ConfigError, GroupConfig, GuestKind, KeyPath, MAX_CAP_PERCENT, MAX_CHILDREN, MAX_IMAGE_BYTES,
    MAX_NICS, MAX_REGION_PAGES, MAX_SLICE_US, MAX_WEIGHT, MEMORY_GRANULE_BYTES, MIN_RATE,
    MIN_SLICE_US, MTU_RANGE, Problem, Scenario, VmConfig, is_valid_name, ram_disk_bytes,
};
use crate::archive::PACKED_SUFFIX;
use crate::control::CpuSet;
use alloc::string::String;
use alloc::vec::Vec;
use guest_abi::boot::{MAX_CMDLINE_BYTES, MAX_VCPUS};
use guest_abi::{MAX_MEMBERS, PAGE_BYTES};

/// What the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of CPUs, numbered from 0.
    pub cpus: u32,
    /// Bytes of RAM for all groups and VMs together; `u64::MAX` if not known.
    pub memory_bytes: u64,
}

/// Everything that is wrong with a scenario, in the order of its entries; empty if it is right.
#[must_use]
pub fn check_scenario(scenario: &Scenario, limits: &Limits) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    if scenario.vms.is_empty() && !scenario.machine.linger {
        errors.push(ConfigError::new(KeyPath::Scenario, Problem::NoVms));
    }
    check_machine(scenario, &mut errors);
    for index in 0..scenario.groups.len() {
        errors.extend(check_group(scenario, index));
    }
    for (index, vm) in scenario.vms.iter().enumerate() {
        check_vm_itself(scenario, index, vm, limits, &mut errors);
    }
    errors
}

fn check_machine(scenario: &Scenario, errors: &mut Vec<ConfigError>) {
    let machine = &scenario.machine;
    let mut tell = |key, problem| errors.push(ConfigError::new(KeyPath::Machine { key }, problem));
    if !(MIN_SLICE_US..=MAX_SLICE_US).contains(&machine.slice_us) {
        tell("slice", Problem::Slice(machine.slice_us));
    }
    if machine.rate_limit_us > machine.slice_us {
        tell(
            "rate_limit",
            Problem::RateLimit {
                rate_limit_us: machine.rate_limit_us,
                slice_us: machine.slice_us,
            },
        );
    }
    if machine.linger && !machine.control {
        tell("linger", Problem::LingerWithoutControl);
    }
}

fn share_problems(weight: u32, cap: u32, mut tell: impl FnMut(&'static str, Problem)) {
    if !(1..=MAX_WEIGHT).contains(&weight) {
        tell("weight", Problem::Weight(weight));
    }
    if cap > MAX_CAP_PERCENT {
        tell("cap", Problem::Cap(cap));
    }
}

/// What is wrong with one group; empty if it is right, or if there is no group with that index.
#[must_use]
pub fn check_group(scenario: &Scenario, index: usize) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let Some(group) = scenario.groups.get(index) else {
        return errors;
    };
    let mut tell = |key, problem| {
        errors.push(ConfigError::new(KeyPath::Group { index, key }, problem));
    };
    if let Some(problem) = name_problem(&group.name, scenario.groups.iter().map(|g| &g.name), index)
    {
        tell("name", problem);
    }
    if !(1..=MAX_REGION_PAGES).contains(&group.pages) {
        tell("pages", Problem::RegionPages(group.pages));
    }
    if group.doorbells_per_second == 0 {
        tell("doorbells_per_second", Problem::NoDoorbells);
    }
    share_problems(group.weight, group.cap_percent, tell);
    errors
}

/// What keeps one VM from being started: what is wrong with it or with the group it names. Empty if it can be started, or
/// if there is no VM with that index.
#[must_use]
pub fn check_vm(scenario: &Scenario, index: usize, limits: &Limits) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    if let Some(vm) = scenario.vms.get(index) {
        if let Some(group) = scenario.group_of(index) {
            errors = check_group(scenario, group);
        }
        check_vm_itself(scenario, index, vm, limits, &mut errors);
    }
    errors
}

fn check_vm_itself(
    scenario: &Scenario,
    index: usize,
    vm: &VmConfig,
    limits: &Limits,
    errors: &mut Vec<ConfigError>,
) {
    let mut tell = |key, problem| {
        errors.push(ConfigError::new(KeyPath::Vm { index, key }, problem));
    };
    if let Some(problem) = name_problem(&vm.name, scenario.vms.iter().map(|vm| &vm.name), index) {
        tell("name", problem);
    }
    if let Some(problem) = membership_problem(scenario, index, vm) {
        tell("group", problem);
    }
    if !is_archive_name(&vm.image) {
        tell("image", Problem::BadImage(vm.image.clone()));
    }
    if let Some(problem) = memory_problem(scenario, index, vm, limits) {
        tell("memory", problem);
    }
    if !(1..=MAX_VCPUS).contains(&vm.vcpus) {
        tell("vcpus", Problem::Vcpus(vm.vcpus));
    } else if vm.bare && vm.vcpus != 1 {
        tell("vcpus", Problem::BareVcpus(vm.vcpus));
    }
    if !vm.cpus.is_empty() && usize::try_from(vm.vcpus) != Ok(vm.cpus.len()) {
        tell(
            "cpu",
            Problem::CpuCount {
                cpus: vm.cpus.len(),
                vcpus: vm.vcpus,
            },
        );
    }
    for cpu in vm.cpus.iter().copied() {
        if let Some(problem) = cpu_problem(scenario, index, vm, cpu, limits) {
            tell("cpu", problem);
        }
    }
    for (key, set) in [
        ("affinity", vm.affinity),
        ("soft_affinity", vm.soft_affinity),
    ] {
        if set.and(CpuSet::first(limits.cpus)).is_empty() {
            tell(
                key,
                Problem::NoCpuLeft {
                    set,
                    cpus: limits.cpus,
                },
            );
        }
    }
    share_problems(vm.weight, vm.cap_percent, &mut tell);
    if vm.bare && vm.cpus.is_empty() {
        tell("cpu", Problem::BareUnpinned);
    }
    if vm.cmdline.len() > MAX_CMDLINE_BYTES {
        tell("cmdline", Problem::CommandLine(vm.cmdline.len()));
    }
    if vm.bare && !scenario.machine.allow_bare {
        tell("bare", Problem::BareNotAllowed);
    }
    if vm.bare && (!vm.nics.is_empty() || !vm.disks.is_empty() || vm.rng || vm.virtio_console) {
        tell("bare", Problem::BareDevices);
    }
    check_rights(vm, &mut tell);
    if vm.nics.len() > MAX_NICS {
        tell("nic", Problem::TooManyNics(vm.nics.len()));
    }
    for nic in 0..vm.nics.len() {
        check_nic(scenario, (index, nic), errors);
    }
    guest::check(scenario, index, vm, limits, errors);
}

fn check_rights(vm: &VmConfig, mut tell: impl FnMut(&'static str, Problem)) {
    if vm.max_children > MAX_CHILDREN {
        tell("max_children", Problem::TooManyChildren(vm.max_children));
    }
    if vm
        .max_memory_bytes
        .is_some_and(|most| most < vm.memory_bytes)
    {
        tell(
            "max_memory",
            Problem::FamilyMemory {
                family_bytes: vm.family_bytes(),
                memory_bytes: vm.memory_bytes,
            },
        );
    }
    if !vm.may.any() {
        return;
    }
    if vm.kind != GuestKind::Native {
        tell(
            "may",
            Problem::NotOfKind {
                key: "may",
                kind: vm.kind,
                wanted: "native VMs",
            },
        );
    }
    let has_devices =
        !vm.nics.is_empty() || !vm.disks.is_empty() || vm.rng || vm.virtio_console || vm.bare;
    if has_devices {
        tell("may", Problem::RightsWithDevices);
    }
}

/// Whether the archive can hold an image of that name. One that ends as compressed members do could be taken for such.
fn is_archive_name(name: &str) -> bool {
    (1..=MAX_IMAGE_BYTES).contains(&name.len())
        && !name.chars().any(char::is_control)
        && !name.ends_with(PACKED_SUFFIX)
}

/// A card, by the index of its VM and its own.
fn check_nic(scenario: &Scenario, at: (usize, usize), errors: &mut Vec<ConfigError>) {
    let (vm_index, index) = at;
    let Some(vm) = scenario.vms.get(vm_index) else {
        return;
    };
    let Some(nic) = vm.nics.get(index) else {
        return;
    };
    let mut tell = |key, problem| {
        let path = KeyPath::Nic {
            vm: vm_index,
            index,
            key,
        };
        errors.push(ConfigError::new(path, problem));
    };
    match (&nic.segment, &vm.group) {
        (Some(name), _) if !is_valid_name(name) => {
            tell("segment", Problem::BadName(name.clone()));
        }
        (None, None) => tell("segment", Problem::NoSegment),
        _ => {}
    }
    if let Some(mac) = nic.mac {
        if !mac.is_station() {
            tell("mac", Problem::NoStation(mac));
        }
        let segment = nic.segment(vm.group.as_deref());
        let earlier = scenario.vms.iter().enumerate().take(vm_index + 1);
        let by = earlier
            .flat_map(|(other_index, other)| {
                let cards = if other_index == vm_index {
                    index
                } else {
                    other.nics.len()
                };
                other.nics.iter().take(cards).map(move |nic| (other, nic))
            })
            .find(|(other, other_nic)| {
                other_nic.mac == Some(mac) && other_nic.segment(other.group.as_deref()) == segment
            });
        if let Some((by, _)) = by {
            tell(
                "mac",
                Problem::MacTaken {
                    mac,
                    by: by.name.clone(),
                },
            );
        }
    }
    if let Some(mtu) = nic.mtu.filter(|mtu| !MTU_RANGE.contains(mtu)) {
        tell("mtu", Problem::Mtu(mtu));
    }
    if let Some(rate) = nic.rate.filter(|rate| *rate < MIN_RATE) {
        tell("rate", Problem::Rate(rate));
    }
}

fn name_problem<'a>(
    name: &str,
    mut all: impl Iterator<Item = &'a String>,
    index: usize,
) -> Option<Problem> {
    if !is_valid_name(name) {
        return Some(Problem::BadName(name.into()));
    }
    match all.position(|other| other == name) {
        Some(first) if first < index => Some(Problem::DuplicateName {
            name: name.into(),
            first,
        }),
        _ => None,
    }
}

fn membership_problem(scenario: &Scenario, index: usize, vm: &VmConfig) -> Option<Problem> {
    let name = vm.group.as_ref()?;
    if scenario.group_of(index).is_none() {
        let known: Vec<&str> = scenario.groups.iter().map(|g| g.name.as_str()).collect();
        return Some(Problem::UnknownGroup {
            name: name.clone(),
            known: known.join(", "),
        });
    }
    let earlier = scenario
        .vms
        .iter()
        .take(index)
        .filter(|other| other.group.as_ref() == Some(name))
        .count();
    (earlier >= MAX_MEMBERS).then(|| Problem::TooManyMembers {
        group: name.clone(),
    })
}

fn memory_problem(
    scenario: &Scenario,
    index: usize,
    vm: &VmConfig,
    limits: &Limits,
) -> Option<Problem> {
    let wanted = vm.memory_bytes;
    if !(vm.kind.min_memory_bytes()..=vm.kind.max_memory_bytes()).contains(&wanted) {
        return Some(Problem::MemoryRange {
            wanted_bytes: wanted,
            kind: vm.kind,
        });
    }
    if !wanted.is_multiple_of(MEMORY_GRANULE_BYTES) {
        return Some(Problem::MemoryGranule(wanted));
    }
    let left = memory_left(scenario, index, limits);
    (wanted > left).then_some(Problem::MemoryDoesNotFit {
        wanted_bytes: wanted,
        left_bytes: left,
    })
}

/// Bytes of RAM that the groups, and the VMs before this one with their disks, leave.
fn memory_left(scenario: &Scenario, index: usize, limits: &Limits) -> u64 {
    let regions = scenario.groups.iter().map(region_bytes);
    let earlier = scenario
        .vms
        .iter()
        .take(index)
        .map(|vm| vm.memory_bytes.saturating_add(ram_disk_bytes(&vm.disks)));
    let taken = regions.chain(earlier).fold(0, u64::saturating_add);
    limits.memory_bytes.saturating_sub(taken)
}

/// What a group takes of RAM; nothing if its region is refused.
fn region_bytes(group: &GroupConfig) -> u64 {
    match group.pages {
        1..=MAX_REGION_PAGES => group.pages * PAGE_BYTES,
        _ => 0,
    }
}

fn cpu_problem(
    scenario: &Scenario,
    index: usize,
    vm: &VmConfig,
    cpu: u32,
    limits: &Limits,
) -> Option<Problem> {
    if cpu >= limits.cpus {
        return Some(Problem::NoSuchCpu {
            cpu,
            cpus: limits.cpus,
        });
    }
    // A bare loop never gives its CPU back: nobody else can be pinned to it.
    scenario
        .vms
        .iter()
        .take(index)
        .find(|other| (other.bare || vm.bare) && other.cpus.contains(&cpu))
        .map(|by| Problem::CpuTaken {
            cpu,
            by: by.name.clone(),
        })
}
