//! How QEMU is started, on KVM or with its own emulation. Pure text; see `qemu-system-x86_64(1)`.

use std::sync::OnceLock;

use crate::machine::{Firmware, MachineConfig, MachineKind};
use crate::run_directory::RunDirectory;

/// The program as Debian installs it.
const INSTALLED: &str = "qemu-system-x86_64";
/// The program where it is not installed.
static ELSEWHERE: OnceLock<String> = OnceLock::new();

/// Says where the program is if it is not installed; the first to say so is heard.
pub fn use_program(path: String) {
    let _ = ELSEWHERE.set(path);
}

/// The program.
#[must_use]
pub fn program() -> &'static str {
    ELSEWHERE.get().map_or(INSTALLED, String::as_str)
}

/// Exit status that the hypervisor causes by writing 0x10 (all well) to the debug-exit port: `value << 1 | 1`.
pub const STATUS_OK: i32 = (0x10 << 1) | 1;
/// Exit status that the hypervisor causes by writing 0x11 (something failed).
pub const STATUS_FAILED: i32 = (0x11 << 1) | 1;
/// UEFI for virtual machines, as Debian's package `ovmf` puts it among QEMU's own files.
const OVMF: &str = "OVMF.fd";

/// The arguments for `config`, with every path relative to the run's directory.
#[must_use]
pub fn arguments(config: &MachineConfig) -> Vec<String> {
    let (accelerator, cpu) = match config.kind {
        MachineKind::QemuKvm => ("kvm", format!("{},+vmx", config.cpu_model_name())),
        MachineKind::QemuTcg | MachineKind::Bochs => ("tcg", config.cpu_model_name().to_owned()),
    };
    let mut arguments: Vec<String> = vec![
        // Its disk is AHCI, from which the firmware reads three times faster than from the PIO disk of `pc`.
        "-machine".into(),
        "q35".into(),
        "-accel".into(),
        accelerator.into(),
        "-cpu".into(),
        cpu,
        "-smp".into(),
        config.cpus.to_string(),
        "-m".into(),
        format!("{}M", config.memory_mib),
        "-display".into(),
        "none".into(),
        "-no-reboot".into(),
        "-nodefaults".into(),
        // The loader sets a graphics mode and fails without a card.
        "-vga".into(),
        "std".into(),
        "-serial".into(),
        format!("file:{}", RunDirectory::CONSOLE),
        "-serial".into(),
        format!("file:{}", RunDirectory::EVENTS),
        "-device".into(),
        "isa-debug-exit,iobase=0xf4,iosize=0x04".into(),
        "-drive".into(),
        format!("format=raw,snapshot=on,file={}", RunDirectory::IMAGE),
        "-D".into(),
        RunDirectory::MACHINE_LOG.into(),
    ];
    if config.control {
        arguments.extend([
            "-serial".into(),
            format!("unix:{},server=on,wait=off", crate::bridge::SOCKET),
        ]);
    }
    if config.firmware == Firmware::Uefi {
        arguments.extend(["-bios".into(), OVMF.into()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn joined(kind: MachineKind, firmware: Firmware) -> String {
        arguments(&MachineConfig {
            kind,
            firmware,
            cpus: 3,
            memory_mib: 768,
            cpu_model: None,
            ips: None,
            timeout: Duration::from_secs(1),
            control: false,
        })
        .join(" ")
    }

    #[test]
    fn on_kvm_the_guest_gets_the_hosts_cpu_with_vmx() {
        let line = joined(MachineKind::QemuKvm, Firmware::Bios);
        assert!(
            line.contains("-accel kvm -cpu host,+vmx -smp 3 -m 768M"),
            "{line}"
        );
        assert!(!line.contains("OVMF"), "{line}");
    }

    #[test]
    fn its_own_emulation_never_asks_for_vmx() {
        let line = joined(MachineKind::QemuTcg, Firmware::Uefi);
        assert!(line.contains("-accel tcg -cpu max "), "{line}");
        assert!(!line.contains("vmx"), "{line}");
        assert!(line.contains("-bios OVMF.fd"), "{line}");
    }
}
