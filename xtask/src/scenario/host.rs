//! What is to be emulated: the part of `[machine]` that the hypervisor does not see.

use std::time::Duration;

use nagaya_harness::MachineKind;
use nagaya_harness::machine::IPS_RANGE;
use nagaya_vmm::config::{GuestKind, Scenario};

use super::keys;
use super::reader::Section;
use super::report::Report;
use super::units::{parse_bytes, parse_duration};

/// Most CPUs of a machine.
const MAX_CPUS: u32 = 8;
/// Least RAM of a machine.
const MIN_MEMORY_BYTES: u64 = 64 << 20;
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// Wall-clock limit of a run of native guests, which are small.
const NATIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// The same where a VM boots a kernel for PCs: in Bochs Debian's takes minutes.
const PC_TIMEOUT: Duration = Duration::from_secs(600);

/// The emulated machine. Models have other names on each emulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostMachine {
    /// Emulated CPUs, 1 to 8. Without the key: as many as the VMs are pinned to.
    pub(crate) cpus: u32,
    /// Emulated RAM, a multiple of 1 MiB.
    pub(crate) memory_bytes: u64,
    /// Wall-clock limit of a run.
    pub(crate) timeout: Duration,
    /// Bochs's CPU model, if the scenario needs one.
    pub(crate) bochs_cpu_model: Option<String>,
    /// Bochs's instructions a second, if the scenario needs a number.
    pub(crate) ips: Option<u32>,
    /// QEMU's CPU model, if the scenario needs one.
    pub(crate) qemu_cpu_model: Option<String>,
}

impl HostMachine {
    /// The CPU model by the name that this back end has for it, if the scenario or the command line names one.
    pub(crate) fn cpu_model(&self, kind: MachineKind) -> Option<String> {
        match kind {
            MachineKind::Bochs => self.bochs_cpu_model.clone(),
            MachineKind::QemuKvm | MachineKind::QemuTcg => self.qemu_cpu_model.clone(),
        }
    }
}

/// What the command line says in place of the file. It is checked as if it stood in the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) cpus: Option<u32>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) timeout: Option<Duration>,
    /// A name of the back end that will be used: who types it knows which.
    pub(crate) cpu_model: Option<String>,
    pub(crate) ips: Option<u32>,
}

/// The emulated machine: the command line's word, else the file's, else a default.
pub(super) fn read(
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
            let granular = bytes >= MIN_MEMORY_BYTES && bytes.is_multiple_of(1 << 20);
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
    let bochs = machine.table(&keys::BOCHS, report);
    let qemu = machine.table(&keys::QEMU, report);
    let model = |section: &Section<'_>, report: &mut Report<'_>| {
        let named = section.text("cpu_model", report).map(|(text, _)| text);
        overrides.cpu_model.clone().or(named)
    };
    let ips_range = u64::from(*IPS_RANGE.start())..=u64::from(*IPS_RANGE.end());
    let ips = bochs
        .number("ips", ips_range, "instructions a second", report)
        .and_then(|ips| u32::try_from(ips).ok());
    HostMachine {
        cpus: overrides.cpus.or(cpus).unwrap_or(needed),
        memory_bytes: overrides
            .memory_bytes
            .or(memory)
            .unwrap_or(DEFAULT_MEMORY_BYTES),
        timeout: overrides
            .timeout
            .or(timeout)
            .unwrap_or_else(|| usual_timeout(scenario)),
        bochs_cpu_model: model(&bochs, report),
        ips: overrides.ips.or(ips),
        qemu_cpu_model: model(&qemu, report),
    }
}

fn usual_timeout(scenario: &Scenario) -> Duration {
    if scenario.machine.linger {
        // A machine that waits for orders ends when it is told to.
        Duration::MAX
    } else if scenario.vms.iter().all(|vm| vm.kind == GuestKind::Native) {
        NATIVE_TIMEOUT
    } else {
        PC_TIMEOUT
    }
}
