//! Checks of what goes with the kind of a guest, and of disks.

use alloc::vec::Vec;

use guest_abi::{PAGE_BYTES, boot};

use super::{is_archive_name, memory_left};
use crate::config::{
    ConfigError, DiskSource, GuestKind, KeyPath, Limits, MAX_DISKS, MAX_MODULE_CMDLINE_BYTES,
    MAX_MODULES, MEMORY_GRANULE_BYTES, Problem, RAM_DISK_BYTES, Scenario, VmConfig, ram_disk_bytes,
};

/// Kind, initramfs, modules, disks, debug ports.
pub(super) fn check(
    scenario: &Scenario,
    vm_index: usize,
    vm: &VmConfig,
    limits: &Limits,
    errors: &mut Vec<ConfigError>,
) {
    check_kind(vm_index, vm, errors);
    for (index, module) in vm.modules.iter().enumerate() {
        let mut tell = |key, problem| {
            let vm = vm_index;
            errors.push(ConfigError::new(
                KeyPath::Module { vm, index, key },
                problem,
            ));
        };
        if !is_archive_name(&module.image) {
            tell("image", Problem::BadImage(module.image.clone()));
        }
        if module.cmdline.len() > MAX_MODULE_CMDLINE_BYTES {
            tell("cmdline", Problem::ModuleCommandLine(module.cmdline.len()));
        } else if module.cmdline.contains('\0') {
            tell("cmdline", Problem::ZeroInCommandLine);
        }
    }
    // Too many were told already, and cannot fill the list of errors.
    for (index, disk) in vm.disks.iter().enumerate().take(MAX_DISKS) {
        let mut tell = |key, problem| {
            let vm = vm_index;
            errors.push(ConfigError::new(KeyPath::Disk { vm, index, key }, problem));
        };
        match &disk.source {
            DiskSource::Image(name) if !is_archive_name(name) => {
                tell("image", Problem::BadImage(name.clone()));
            }
            DiskSource::Image(_) => {}
            DiskSource::Ram { bytes }
                if !RAM_DISK_BYTES.contains(bytes) || !bytes.is_multiple_of(PAGE_BYTES) =>
            {
                tell("ram", Problem::RamDisk(*bytes));
            }
            DiskSource::Ram { bytes } => {
                let earlier = vm.disks.get(..index).unwrap_or_default();
                let left_bytes = memory_left(scenario, vm_index, limits)
                    .saturating_sub(vm.memory_bytes)
                    .saturating_sub(ram_disk_bytes(earlier));
                if *bytes > left_bytes {
                    tell(
                        "ram",
                        Problem::RamDiskDoesNotFit {
                            wanted_bytes: *bytes,
                            left_bytes,
                        },
                    );
                }
            }
        }
    }
}

fn check_kind(index: usize, vm: &VmConfig, errors: &mut Vec<ConfigError>) {
    let mut tell = |key, problem| {
        errors.push(ConfigError::new(KeyPath::Vm { index, key }, problem));
    };
    let kind = vm.kind;
    let other = |key, wanted| Problem::NotOfKind { key, kind, wanted };
    if vm.bare && kind.is_pc() {
        tell("bare", Problem::BareKind(kind));
    }
    if kind.is_pc() && vm.cmdline.contains('\0') {
        tell("cmdline", Problem::ZeroInCommandLine);
    }
    if let Some(initramfs) = &vm.initramfs {
        if kind != GuestKind::Linux {
            tell("initramfs", other("initramfs", "kind = \"linux\""));
        } else if !is_archive_name(initramfs) {
            tell("initramfs", Problem::BadImage(initramfs.clone()));
        }
    }
    if !vm.modules.is_empty() && kind != GuestKind::Multiboot {
        tell("module", other("[[vm.module]]", "kind = \"multiboot\""));
    } else if vm.modules.len() > MAX_MODULES {
        tell("module", Problem::TooManyModules(vm.modules.len()));
    }
    for (key, wanted) in [
        ("debug_exit", vm.debug_exit),
        ("debug_console", vm.debug_console),
    ] {
        if wanted && !kind.is_pc() {
            tell(key, other(key, "kind = \"linux\" or \"multiboot\""));
        }
    }
    if let Some(below) = vm.memory_below_4g_bytes {
        let most = vm.memory_bytes.min(boot::DEVICE_SPACE_GPA);
        let problem = if !kind.is_pc() {
            let needs = "kind = \"linux\" or \"multiboot\"";
            Some(other("memory_below_4g", needs))
        } else if !(kind.min_memory_bytes()..=most).contains(&below) {
            Some(Problem::MemoryBelow4G {
                wanted_bytes: below,
                least_bytes: kind.min_memory_bytes(),
                most_bytes: most,
            })
        } else if !below.is_multiple_of(MEMORY_GRANULE_BYTES) {
            Some(Problem::MemoryGranule(below))
        } else {
            None
        };
        if let Some(problem) = problem {
            tell("memory_below_4g", problem);
        }
    }
    if vm.disks.len() > MAX_DISKS {
        tell("disk", Problem::TooManyDisks(vm.disks.len()));
    }
}
