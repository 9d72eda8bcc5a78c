//! `[[vm]]` and its network cards.

use nagaya_vmm::config::{NicConfig, Right, VmConfig};
use nagaya_vmm::control::CpuSet;

use super::group::share;
use super::images::{Images, Role};
use super::reader::Section;
use super::report::Report;
use super::units::{self, parse_bytes};
use super::{guest, keys};

/// A VM as the file has it, its images by their names in the archive.
pub(super) fn read(
    section: &Section<'_>,
    images: &mut Images<'_>,
    report: &mut Report<'_>,
) -> VmConfig {
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
        .tables(&keys::NIC, report)
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
    let restarts = section.number("restarts", 0..=u64::from(u32::MAX), "resets", report);
    vm.restarts = restarts.and_then(|restarts| u32::try_from(restarts).ok());
    vm.bare = section.boolean("bare", report).unwrap_or(false);
    for (name, span) in section.texts("may", report).unwrap_or_default() {
        match Right::from_name(&name) {
            Some(right) => vm.may = vm.may.with(right),
            None => report.error(
                span,
                &format!("{name:?} is no right; there are {}", rights()),
            ),
        }
    }
    let children = section.number("max_children", 0..=u64::from(u32::MAX), "VMs", report);
    if let Some(children) = children.and_then(|children| u32::try_from(children).ok()) {
        vm.max_children = children;
    }
    if let Some((text, span)) = section.text("max_memory", report) {
        match parse_bytes(&text) {
            Ok(bytes) => vm.max_memory_bytes = Some(bytes),
            Err(message) => report.error(span, &message),
        }
    }
    vm
}

/// All rights there are, for messages.
fn rights() -> String {
    let names: Vec<String> = Right::ALL
        .iter()
        .map(|right| format!("{:?}", right.name()))
        .collect();
    names.join(", ")
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

/// A network card of a VM.
fn nic(section: &Section<'_>, report: &mut Report<'_>) -> NicConfig {
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
