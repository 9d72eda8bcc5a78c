//! Scenarios: TOML files that say which groups and VMs run on which machine. Here they become
//! [`nagaya_vmm::config::Scenario`], and whatever is wrong with one is told with its line and column.

mod guest;
mod images;
mod reader;
mod report;
pub(crate) mod units;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nagaya_vmm::config::{
    AddressPolicy, GroupConfig, KeyPath, Limits, MachineConfig, NicConfig, Scenario, SelfTest,
    VmConfig, check_scenario,
};
use nagaya_vmm::control::{CpuSet, GroupMode};

pub(crate) use self::images::Source;
use self::images::{Images, Role};
use self::reader::Section;
use self::report::Report;
pub(crate) use self::units::{parse_bytes, parse_duration};
use crate::{build, paths};

/// What the loader, the hypervisor and its tables take of the machine's RAM before there is any VM.
const HYPERVISOR_BYTES: u64 = 64 << 20;
/// Most CPUs of a machine.
const MAX_CPUS: u32 = 8;

const MACHINE_KEYS: &[&str] = &[
    "cpus",
    "memory",
    "timeout",
    "cpu_model",
    "deterministic",
    "apic_virtualization",
    "selftest",
    "allow_bare",
    "slice",
    "rate_limit",
    "control",
    "linger",
];
const GROUP_KEYS: &[&str] = &[
    "name",
    "pages",
    "address",
    "doorbells_per_second",
    "mode",
    "directed_yield",
    "weight",
    "cap",
];
const VM_KEYS: &[&str] = &[
    "name",
    "group",
    "image",
    "memory",
    "vcpus",
    "cpu",
    "affinity",
    "soft_affinity",
    "weight",
    "cap",
    "cmdline",
    "bare",
    "nic",
    "rng",
    "virtio_console",
    "kind",
    "memory_below_4g",
    "initramfs",
    "module",
    "disk",
    "debug_exit",
    "debug_console",
];
const NIC_KEYS: &[&str] = &["segment", "mac", "mtu", "offloads", "check_source", "rate"];

/// The part of `[machine]` that says what is to be emulated; the hypervisor does not see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostMachine {
    /// Emulated CPUs, 1 to 8. Without the key: as many as the VMs are pinned to.
    pub(crate) cpus: u32,
    /// Emulated RAM, a multiple of 1 MiB.
    pub(crate) memory_bytes: u64,
    /// Wall-clock limit of a run.
    pub(crate) timeout: Duration,
    /// The emulator's CPU model, if the scenario needs one.
    pub(crate) cpu_model: Option<String>,
}

/// What the command line says in place of the file. It is checked as if it stood in the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) cpus: Option<u32>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) cpu_model: Option<String>,
}

/// A scenario that was read and found right.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The file's name without its extension.
    pub(crate) name: String,
    /// What is to be emulated.
    pub(crate) host: HostMachine,
    /// What the hypervisor is told; `debug_exit` is left for whoever makes the image.
    pub(crate) scenario: Scenario,
    /// The images used, by their names in the archive.
    pub(crate) images: BTreeMap<String, Source>,
}

/// Reads `tests/scenarios/NAME.toml`, or the file itself if `name` contains a `/` or ends in `.toml`.
pub(crate) fn load(name: &str, overrides: &Overrides) -> Result<Loaded> {
    let is_path = name.contains('/') || name.ends_with(".toml");
    let file = if is_path {
        PathBuf::from(name)
    } else {
        paths::scenarios().join(format!("{name}.toml"))
    };
    if !is_path && !file.exists() {
        let known = names()?;
        let hint = report::did_you_mean(name, known.iter().map(String::as_str));
        bail!(
            "there is no scenario {name:?}{hint}; there are: {}",
            known.join(", ")
        );
    }
    let text = fs::read_to_string(&file)
        .with_context(|| format!("cannot read the scenario {}", file.display()))?;
    let shown = file.strip_prefix(paths::root()).unwrap_or(&file);
    parse(&text, shown, overrides)
}

/// The scenarios in `tests/scenarios`, sorted.
pub(crate) fn names() -> Result<Vec<String>> {
    let folder = paths::scenarios();
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a scenario from text; `file` is what errors call it.
pub(crate) fn parse(text: &str, file: &Path, overrides: &Overrides) -> Result<Loaded> {
    parse_with(text, file, overrides, &build::guest_names()?)
}

/// As [`parse`], with the guests there are.
fn parse_with(text: &str, file: &Path, overrides: &Overrides, guests: &[String]) -> Result<Loaded> {
    let mut report = Report::new(text, file);
    let document = match toml::de::DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            report.error(error.span().unwrap_or_default(), error.message());
            return Err(report.into_error());
        }
    };
    let top = Section::new("", document.span(), Some(document.get_ref()));
    top.allow(&["machine", "group", "vm"], &mut report);
    let machine = top.table("machine", &mut report);
    machine.allow(MACHINE_KEYS, &mut report);
    let groups = top.tables("group", &mut report);
    let vms = top.tables("vm", &mut report);

    let mut images = Images {
        scenario: file,
        guests,
        found: BTreeMap::new(),
    };
    let mut scenario = Scenario::default();
    scenario.machine.deterministic = machine
        .boolean("deterministic", &mut report)
        .unwrap_or(false);
    scenario.machine.apic_virtualization = machine
        .boolean("apic_virtualization", &mut report)
        .unwrap_or(true);
    scenario.machine.selftest = selftest(&machine, &mut report);
    times(&machine, &mut scenario.machine, &mut report);
    scenario.machine.control = machine.boolean("control", &mut report).unwrap_or(false);
    scenario.machine.linger = machine.boolean("linger", &mut report).unwrap_or(false);
    scenario.machine.allow_bare = machine.boolean("allow_bare", &mut report).unwrap_or(false);
    scenario.groups = groups
        .iter()
        .map(|section| group(section, &mut report))
        .collect();
    for section in &vms {
        scenario.vms.push(vm(section, &mut images, &mut report));
    }
    let host = host(&machine, &scenario, overrides, &mut report);

    // What could not be read stands in the scenario as a default, and the checks could blame that.
    if report.is_empty() {
        let limits = Limits {
            cpus: host.cpus,
            memory_bytes: host.memory_bytes.saturating_sub(HYPERVISOR_BYTES),
        };
        for error in check_scenario(&scenario, &limits) {
            let span = match error.key_path() {
                KeyPath::Scenario => 0..0,
                KeyPath::Machine { key } => machine.span_of(key),
                KeyPath::Group { index, key } => groups
                    .get(index)
                    .map_or(0..0, |section| section.span_of(key)),
                KeyPath::Vm { index, key } => {
                    vms.get(index).map_or(0..0, |section| section.span_of(key))
                }
                KeyPath::Nic { vm, index, key } => span_in(&vms, (vm, "nic", index), key),
                KeyPath::Module { vm, index, key } => span_in(&vms, (vm, "module", index), key),
                KeyPath::Disk { vm, index, key } => span_in(&vms, (vm, "disk", index), key),
            };
            let hint = match error.problem() {
                nagaya_vmm::config::Problem::UnknownGroup { name, .. } => report::did_you_mean(
                    name,
                    scenario.groups.iter().map(|group| group.name.as_str()),
                ),
                _ => String::new(),
            };
            report.error(span, &format!("{error}{hint}"));
        }
    }
    if !report.is_empty() {
        return Err(report.into_error());
    }
    let name = file
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok(Loaded {
        name,
        host,
        scenario,
        images: images.found,
    })
}

/// Where `key` stands in the table of that VM, list and index.
fn span_in(vms: &[Section<'_>], at: (usize, &'static str, usize), key: &str) -> Range<usize> {
    let (vm, list, index) = at;
    let span = vms.get(vm).and_then(|vm| vm.span_in(list, index, key));
    span.unwrap_or(0..0)
}

/// The emulated machine: the command line's word, else the file's, else a default.
fn host(
    machine: &Section<'_>,
    scenario: &Scenario,
    overrides: &Overrides,
    report: &mut Report<'_>,
) -> HostMachine {
    let pinned = scenario
        .vms
        .iter()
        .flat_map(|vm| vm.cpus.iter().copied())
        .max()
        .unwrap_or(0);
    let needed = pinned.saturating_add(1).clamp(1, MAX_CPUS);
    let cpus = machine
        .number("cpus", 1..=u64::from(MAX_CPUS), "CPUs", report)
        .and_then(|cpus| u32::try_from(cpus).ok());
    let memory = machine.text("memory", report).and_then(|(text, span)| {
        let parsed = parse_bytes(&text).and_then(|bytes| {
            let granular = bytes >= 64 << 20 && bytes.is_multiple_of(1 << 20);
            granular
                .then_some(bytes)
                .ok_or_else(|| format!("{text:?}: a machine has 64M or more, in whole megabytes"))
        });
        parsed.map_err(|message| report.error(span, &message)).ok()
    });
    let timeout = machine.text("timeout", report).and_then(|(text, span)| {
        parse_duration(&text)
            .map_err(|message| report.error(span, &message))
            .ok()
    });
    let lingers = machine.boolean("linger", report).unwrap_or(false);
    HostMachine {
        cpus: overrides.cpus.or(cpus).unwrap_or(needed),
        memory_bytes: overrides.memory_bytes.or(memory).unwrap_or(512 << 20),
        timeout: overrides
            .timeout
            .or(timeout)
            // A machine that waits for orders ends when it is told to.
            .unwrap_or(if lingers {
                Duration::MAX
            } else {
                Duration::from_secs(60)
            }),
        cpu_model: overrides
            .cpu_model
            .clone()
            .or_else(|| machine.text("cpu_model", report).map(|(text, _)| text)),
    }
}

fn group(section: &Section<'_>, report: &mut Report<'_>) -> GroupConfig {
    section.allow(GROUP_KEYS, report);
    let mut group = GroupConfig::new(&section.required_text("name", report));
    if let Some(pages) = section.number("pages", 0..=u64::MAX, "pages", report) {
        group.pages = pages;
    }
    if let Some(limit) = section.number(
        "doorbells_per_second",
        0..=u64::from(u32::MAX),
        "doorbells a second",
        report,
    ) {
        group.doorbells_per_second = u32::try_from(limit).unwrap_or(u32::MAX);
    }
    if let Some((address, span)) = section.text("address", report) {
        match address.as_str() {
            "fixed" => group.address = AddressPolicy::Fixed,
            "any" => group.address = AddressPolicy::Any,
            _ => report.error(
                span,
                &format!(
                    "{address:?} is no address policy{}; it is \"fixed\" (the first member that maps the region chooses for all) \
                     or \"any\" (each member chooses)",
                    report::did_you_mean(&address, ["fixed", "any"])
                ),
            ),
        }
    }
    if let Some((mode, span)) = section.text("mode", report) {
        match GroupMode::from_word(&mode) {
            Some(found) => group.mode = found,
            None => {
                let known = GroupMode::ALL.map(GroupMode::word);
                report.error(
                    span,
                    &format!(
                        "{mode:?} is no mode of scheduling{}; there are {}",
                        report::did_you_mean(&mode, known),
                        known.join(", ")
                    ),
                );
            }
        }
    }
    group.directed_yield = section.boolean("directed_yield", report).unwrap_or(true);
    share(section, report, &mut group.weight, &mut group.cap_percent);
    group
}

/// Slice and rate limit.
fn times(machine: &Section<'_>, config: &mut MachineConfig, report: &mut Report<'_>) {
    for (key, value) in [
        ("slice", &mut config.slice_us),
        ("rate_limit", &mut config.rate_limit_us),
    ] {
        let Some((text, span)) = machine.text(key, report) else {
            continue;
        };
        match units::parse_micros(&text) {
            Ok(micros) => *value = micros,
            Err(message) => report.error(span, &message),
        }
    }
    // A slice that is shorter than the usual rate limit makes that shorter, too.
    if machine.text("rate_limit", report).is_none() {
        config.rate_limit_us = config.rate_limit_us.min(config.slice_us);
    }
}

/// Weight and cap, which VMs and groups have.
fn share(section: &Section<'_>, report: &mut Report<'_>, weight: &mut u32, cap: &mut u32) {
    for (key, value) in [("weight", weight), ("cap", cap)] {
        if let Some(number) = section.number(key, 0..=u64::from(u32::MAX), "", report) {
            *value = u32::try_from(number).unwrap_or(u32::MAX);
        }
    }
}

/// A set of CPUs, as `"0-3,5"`.
fn cpu_set(section: &Section<'_>, key: &str, set: &mut CpuSet, report: &mut Report<'_>) {
    if let Some((text, span)) = section.text(key, report) {
        match text.parse() {
            Ok(found) => *set = found,
            Err(error) => report.error(span, &format!("{text:?} is no set of CPUs: {error}")),
        }
    }
}

/// The self-test that the machine is to run, if any.
fn selftest(machine: &Section<'_>, report: &mut Report<'_>) -> Option<SelfTest> {
    let (name, span) = machine.text("selftest", report)?;
    let found = SelfTest::from_name(&name);
    if found.is_none() {
        let known = SelfTest::ALL.map(SelfTest::name);
        report.error(
            span,
            &format!(
                "{name:?} is no self-test{}; there are {}",
                report::did_you_mean(&name, known),
                known.join(", ")
            ),
        );
    }
    found
}

/// A network card of a VM.
fn nic(section: &Section<'_>, report: &mut Report<'_>) -> NicConfig {
    section.allow(NIC_KEYS, report);
    let mut nic = NicConfig {
        segment: section.text("segment", report).map(|(text, _)| text),
        ..NicConfig::default()
    };
    if let Some((text, span)) = section.text("mac", report) {
        match text.parse() {
            Ok(mac) => nic.mac = Some(mac),
            Err(error) => report.error(span, &format!("{text:?} is no MAC address: {error}")),
        }
    }
    let mtu = section.number("mtu", 0..=u64::from(u16::MAX), "bytes", report);
    nic.mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok());
    nic.offloads = section.boolean("offloads", report).unwrap_or(true);
    nic.check_source = section.boolean("check_source", report).unwrap_or(false);
    if let Some((text, span)) = section.text("rate", report) {
        match units::parse_rate(&text) {
            Ok(rate) => nic.rate = Some(rate),
            Err(message) => report.error(span, &message),
        }
    }
    nic
}

/// A VM as the file has it, its images by their names in the archive.
fn vm(section: &Section<'_>, images: &mut Images<'_>, report: &mut Report<'_>) -> VmConfig {
    section.allow(VM_KEYS, report);
    let name = section.required_text("name", report);
    let mut vm = VmConfig::new(&name, &section.required_text("image", report));
    vm.group = section.text("group", report).map(|(text, _)| text);
    let mut bytes_of = |key| {
        let (text, span) = section.text(key, report)?;
        parse_bytes(&text)
            .map_err(|message| report.error(span, &message))
            .ok()
    };
    vm.memory_bytes = bytes_of("memory").unwrap_or(vm.memory_bytes);
    vm.memory_below_4g_bytes = bytes_of("memory_below_4g");
    if let Some(vcpus) = section.number("vcpus", 0..=u64::from(u32::MAX), "vCPUs", report) {
        vm.vcpus = u32::try_from(vcpus).unwrap_or(u32::MAX);
    }
    if let Some(cpus) = section.numbers("cpu", report) {
        vm.cpus = cpus;
    }
    cpu_set(section, "affinity", &mut vm.affinity, report);
    cpu_set(section, "soft_affinity", &mut vm.soft_affinity, report);
    share(section, report, &mut vm.weight, &mut vm.cap_percent);
    vm.nics = section
        .tables("nic", report)
        .iter()
        .map(|section| nic(section, report))
        .collect();
    vm.rng = section.boolean("rng", report).unwrap_or(false);
    vm.virtio_console = section.boolean("virtio_console", report).unwrap_or(false);
    vm.cmdline = section
        .text("cmdline", report)
        .map(|(text, _)| text)
        .unwrap_or_default();
    guest::read(section, &mut vm, images, report);
    if let Some(name) = images.find(section, "image", Role::Kernel(vm.kind), report) {
        vm.image = name;
    }
    vm.bare = section.boolean("bare", report).unwrap_or(false);
    vm
}
