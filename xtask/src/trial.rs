//! Loads each VM's image on the host, by the very code that the hypervisor loads it with, to tell of one that no VM could boot
//! before a machine is started for it.

use anyhow::{Result, bail};
use guest_abi::pack_name;
use nagaya_vmm::config::{GuestKind, VmConfig};
use nagaya_vmm::loader::pc::{self, PcIdentity};
use nagaya_vmm::loader::{self, GuestWriter, Identity};

/// A VM's memory of which only the extent matters.
struct Extent<'a> {
    vm: &'a VmConfig,
}

impl GuestWriter for Extent<'_> {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        self.vm.layout().is_ram(gpa, bytes.len() as u64)
    }
}

/// Tries every VM of a scenario; `image` gives the bytes of an image by its name in the archive.
///
/// # Errors
/// One line for each VM that cannot boot what it names, and why; or an image cannot be read.
pub(crate) fn every(vms: &[VmConfig], image: impl Fn(&str) -> Result<Vec<u8>>) -> Result<()> {
    let mut complaints = Vec::new();
    for vm in vms {
        if let Some(why) = one(vm, &image)? {
            complaints.push(format!("VM {}, image {:?}: {why}", vm.name, vm.image));
        }
    }
    if !complaints.is_empty() {
        bail!("no machine is started:\n{}", complaints.join("\n"));
    }
    Ok(())
}

/// Why that VM cannot boot, if it cannot.
fn one(vm: &VmConfig, image: &impl Fn(&str) -> Result<Vec<u8>>) -> Result<Option<String>> {
    let kernel = image(&vm.image)?;
    let mut memory = Extent { vm };
    if vm.kind == GuestKind::Native {
        let identity = Identity {
            vm_id: 0,
            name: pack_name(&vm.name),
            memory_bytes: vm.memory_bytes,
            vcpus: vm.vcpus,
            member_index: vm.group.as_ref().map(|_| 0),
            tsc_khz: 1,
            cmdline: &vm.cmdline,
            bare_hypercall: 0,
        };
        let loaded = loader::load(&kernel, &identity, &mut memory);
        return Ok(loaded.err().map(|error| error.to_string()));
    }
    let initramfs = vm.initramfs.as_deref().map(image).transpose()?;
    let modules = vm
        .modules
        .iter()
        .map(|module| Ok((image(&module.image)?, module.cmdline.as_str())))
        .collect::<Result<Vec<_>>>()?;
    let modules: Vec<(&[u8], &str)> = modules
        .iter()
        .map(|(bytes, cmdline)| (&**bytes, *cmdline))
        .collect();
    let identity = PcIdentity {
        layout: vm.layout(),
        vcpus: vm.vcpus,
        cmdline: &vm.cmdline,
        in_group: vm.group.is_some(),
    };
    let loaded = pc::load_pc(
        vm.kind,
        &kernel,
        initramfs.as_deref(),
        &modules,
        &identity,
        &mut memory,
    );
    Ok(loaded.err().map(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_kind(kind: GuestKind, image: &str) -> VmConfig {
        VmConfig {
            kind,
            ..VmConfig::new("a", image)
        }
    }

    #[test]
    fn images_that_no_vm_could_boot_are_all_told_before_a_machine_is_started() {
        // A program for Linux, an ELF head without a body, and a kernel that is none.
        let vms = [
            of_kind(GuestKind::Native, "dynamic"),
            of_kind(GuestKind::Native, "cut"),
            of_kind(GuestKind::Linux, "zeros"),
            of_kind(GuestKind::Multiboot, "zeros"),
        ];
        let image = |name: &str| {
            Ok(match name {
                "dynamic" => std::fs::read("/bin/sh")?,
                "cut" => b"\x7fELF".to_vec(),
                _ => vec![0; 4096],
            })
        };
        let error = every(&vms, image).expect_err("none can boot").to_string();
        assert!(error.contains("dynamic linker"), "{error}");
        assert!(error.contains("no ELF64 file"), "{error}");
        assert_eq!(error.matches("VM a, image").count(), 4, "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_of_its_own() {
        let vms = [of_kind(GuestKind::Native, "x")];
        let error = every(&vms, |_| bail!("no such file")).expect_err("is told");
        assert_eq!(error.to_string(), "no such file");
    }
}
