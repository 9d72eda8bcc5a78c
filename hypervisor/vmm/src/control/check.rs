//! Checks on what came from the wire: everything that can be judged without asking the machine.

use alloc::format;
use alloc::string::ToString;

use guest_abi::MAX_MEMBERS;
use guest_abi::boot::{MAX_CMDLINE_BYTES, MAX_VCPUS};

use super::{
    Answer, ControlError, CpuSet, CreateVm, ErrorCode, GroupChange, GroupRow, MAX_CAP_PERCENT,
    MAX_CONSOLE_INPUT_BYTES, MAX_CONSOLE_OUTPUT_BYTES, MAX_ERROR_TEXT_BYTES, MAX_LAST_EXITS,
    MAX_WEIGHT, Notice, Request, Selector, VmChange, VmRow,
};
use crate::config::{
    GroupConfig, Limits, MAX_IMAGE_BYTES, MAX_NAME_BYTES, MAX_REGION_PAGES, MEMORY_GRANULE_BYTES,
    MachineConfig, NAME_RULE, Problem, Scenario, check_vm, is_valid_name,
};

/// Most reasons that a VM's exits are told by.
pub(super) const MAX_EXIT_REASONS: usize = 128;

fn invalid(text: impl Into<alloc::string::String>) -> ControlError {
    ControlError::new(ErrorCode::Invalid, text)
}

impl Request {
    /// Whether everything in it is in range, for a machine with that many CPUs. What it names may still not be there.
    ///
    /// # Errors
    /// What is wrong first.
    pub fn check(&self, cpus: u32) -> Result<(), ControlError> {
        match self {
            Request::Hello
            | Request::ListVms { .. }
            | Request::ListGroups { .. }
            | Request::ListImages { .. }
            | Request::Frames
            | Request::Events { .. }
            | Request::Shutdown => Ok(()),
            Request::Create(vm) => check_create(vm, cpus),
            Request::Destroy(vm)
            | Request::Pause(vm)
            | Request::Resume(vm)
            | Request::Reset(vm)
            | Request::Dump { vm, .. }
            | Request::ConsoleAttach(vm)
            | Request::ConsoleDetach(vm) => check_selector(vm),
            Request::GroupSet { group, change } => {
                check_selector(group)?;
                check_group_change(change)
            }
            Request::VmSet { vm, change } => {
                check_selector(vm)?;
                check_vm_change(change, cpus)
            }
            Request::Debug { vm, order } => {
                check_selector(vm)?;
                order.check()
            }
            Request::ConsoleInput { vm, bytes } => {
                check_selector(vm)?;
                if bytes.len() > MAX_CONSOLE_INPUT_BYTES {
                    return Err(invalid(format!(
                        "{} bytes of console input: at most {MAX_CONSOLE_INPUT_BYTES} at once",
                        bytes.len()
                    )));
                }
                Ok(())
            }
        }
    }
}

fn check_selector(selector: &Selector) -> Result<(), ControlError> {
    match selector {
        Selector::Id(_) => Ok(()),
        Selector::Name(name) => check_name(name),
    }
}

fn check_name(name: &str) -> Result<(), ControlError> {
    if is_valid_name(name) {
        return Ok(());
    }
    // A long one is cut, so that the rule behind it is still told.
    let shown = name
        .get(..name.floor_char_boundary(2 * MAX_NAME_BYTES))
        .unwrap_or_default();
    Err(invalid(Problem::BadName(shown.into()).to_string()))
}

/// A name for something new: what is all digits would be read as a number ever after.
fn check_new_name(name: &str) -> Result<(), ControlError> {
    check_name(name)?;
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid(format!(
            "{name:?} would be taken for a number: use {NAME_RULE}, one of them no digit"
        )));
    }
    Ok(())
}

fn check_create(vm: &CreateVm, cpus: u32) -> Result<(), ControlError> {
    check_new_name(&vm.name)?;
    match &vm.group {
        Some(Selector::Name(group)) => check_new_name(group)?,
        Some(Selector::Id(_)) | None => {}
    }
    if !(1..=MAX_IMAGE_BYTES).contains(&vm.image.len()) || vm.image.chars().any(char::is_control) {
        let shown = vm.image.floor_char_boundary(MAX_IMAGE_BYTES);
        let shown = vm.image.get(..shown).unwrap_or_default();
        return Err(invalid(Problem::BadImage(shown.into()).to_string()));
    }
    let kind = vm.platform.kind;
    if !(kind.min_memory_bytes()..=kind.max_memory_bytes()).contains(&vm.memory_bytes) {
        return Err(invalid(
            Problem::MemoryRange {
                wanted_bytes: vm.memory_bytes,
                kind,
            }
            .to_string(),
        ));
    }
    if !vm.memory_bytes.is_multiple_of(MEMORY_GRANULE_BYTES) {
        return Err(invalid(Problem::MemoryGranule(vm.memory_bytes).to_string()));
    }
    if !(1..=MAX_VCPUS).contains(&vm.vcpus) {
        return Err(invalid(Problem::Vcpus(vm.vcpus).to_string()));
    }
    if vm.cmdline.len() > MAX_CMDLINE_BYTES {
        return Err(invalid(Problem::CommandLine(vm.cmdline.len()).to_string()));
    }
    if let Some(pages) = vm.group_plan.pages
        && !(1..=MAX_REGION_PAGES).contains(&pages)
    {
        return Err(invalid(Problem::RegionPages(pages).to_string()));
    }
    check_weight(vm.weight)?;
    check_cap(vm.cap_percent)?;
    check_affinity(vm.affinity, cpus)?;
    check_affinity(vm.soft_affinity, cpus)?;
    check_platform(vm, cpus)
}

/// Kind and devices, by the same rules as in a scenario file with this VM alone. Groups that are there are not known here.
fn check_platform(vm: &CreateVm, cpus: u32) -> Result<(), ControlError> {
    // One that is named by its number has a name that is not known here: any will do.
    let group = match &vm.group {
        Some(Selector::Name(name)) => Some(name.as_str()),
        Some(Selector::Id(_)) => Some("group"),
        None => None,
    };
    let scenario = Scenario {
        machine: MachineConfig::default(),
        groups: group.map(GroupConfig::new).into_iter().collect(),
        vms: [vm.config(group)].into(),
    };
    let limits = Limits {
        cpus,
        memory_bytes: u64::MAX,
    };
    match check_vm(&scenario, 0, &limits).first() {
        None => Ok(()),
        Some(error) => Err(invalid(error.problem().to_string())),
    }
}

fn check_weight(weight: u32) -> Result<(), ControlError> {
    if (1..=MAX_WEIGHT).contains(&weight) {
        return Ok(());
    }
    Err(invalid(format!("weight {weight}: use 1 to {MAX_WEIGHT}")))
}

fn check_cap(percent: u32) -> Result<(), ControlError> {
    if percent <= MAX_CAP_PERCENT {
        return Ok(());
    }
    Err(invalid(format!(
        "cap {percent}: use percent of one CPU, up to {MAX_CAP_PERCENT}, or 0 for no bound"
    )))
}

fn check_affinity(set: CpuSet, cpus: u32) -> Result<(), ControlError> {
    if set.and(CpuSet::first(cpus)).is_empty() {
        return Err(invalid(format!(
            "CPUs {set}: the machine has none of them, only {}",
            CpuSet::first(cpus)
        )));
    }
    Ok(())
}

fn check_group_change(change: &GroupChange) -> Result<(), ControlError> {
    if *change == GroupChange::default() {
        return Err(invalid(
            "nothing to change: give a mode, a weight, a cap or directed yield",
        ));
    }
    change.weight.map_or(Ok(()), check_weight)?;
    change.cap_percent.map_or(Ok(()), check_cap)
}

fn check_vm_change(change: &VmChange, cpus: u32) -> Result<(), ControlError> {
    let nothing = VmChange {
        vcpu: change.vcpu,
        ..VmChange::default()
    };
    if *change == nothing {
        return Err(invalid(
            "nothing to change: give a weight, a cap or an affinity",
        ));
    }
    change.weight.map_or(Ok(()), check_weight)?;
    change.cap_percent.map_or(Ok(()), check_cap)?;
    let affinities = [change.affinity, change.soft_affinity];
    affinities
        .into_iter()
        .flatten()
        .try_for_each(|set| check_affinity(set, cpus))
}

impl Answer {
    /// Whether everything in it is in range: what a client asks before it believes an answer.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        match self {
            Answer::Ok
            | Answer::Created { .. }
            | Answer::Attached { .. }
            | Answer::Accepted { .. }
            | Answer::Frames(_) => true,
            Answer::Debug(answer) => answer.is_sane(),
            Answer::Error(error) => error.text.len() <= MAX_ERROR_TEXT_BYTES,
            Answer::Hello(hello) => {
                (1..=64).contains(&hello.cpus) && hello.tsc_khz > 0 && hello.version.len() <= 64
            }
            Answer::Vms { rows, next } => {
                ascends(rows.iter().map(|row| row.id), *next) && rows.iter().all(vm_is_sane)
            }
            Answer::Groups { rows, next } => {
                ascends(rows.iter().map(|row| row.id), *next) && rows.iter().all(group_is_sane)
            }
            Answer::Images { rows, .. } => rows
                .iter()
                .all(|row| (1..=MAX_IMAGE_BYTES).contains(&row.name.len())),
            Answer::Dump(dump) => {
                dump.vcpu < dump.vcpus
                    && dump.vcpus <= MAX_VCPUS
                    && dump.last_exits.len() <= MAX_LAST_EXITS
            }
        }
    }
}

/// A list whose pages do not ascend would never end.
fn ascends(ids: impl Iterator<Item = u32>, next: Option<u32>) -> bool {
    ids.chain(next).is_sorted_by(|a, b| a < b)
}

fn vm_is_sane(row: &VmRow) -> bool {
    is_valid_name(&row.name)
        && row
            .group
            .as_ref()
            .is_none_or(|tag| is_valid_name(&tag.name))
        && (1..=MAX_VCPUS).contains(&row.vcpus)
        && row.exits.len() <= MAX_EXIT_REASONS
        && row
            .cause
            .as_ref()
            .is_none_or(|cause| cause.len() <= MAX_ERROR_TEXT_BYTES)
}

fn group_is_sane(row: &GroupRow) -> bool {
    is_valid_name(&row.name) && row.members.len() <= MAX_MEMBERS
}

impl Notice {
    /// Whether everything in it is in range.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        match self {
            Notice::ConsoleOutput { bytes, .. } => bytes.len() <= MAX_CONSOLE_OUTPUT_BYTES,
            Notice::ConsoleClosed { .. } => true,
            Notice::Event(event) => {
                is_valid_name(&event.name) && event.text.len() <= MAX_ERROR_TEXT_BYTES
            }
        }
    }
}
