//! What the machine of a run looks like. Plain data and its checks.

use std::fmt;
use std::time::Duration;

/// Most CPUs a run can ask for.
pub const MAX_CPUS: u32 = 8;
/// Least RAM, in MiB: the loader can still bring the hypervisor, which says that it is too little. One small guest wants 64.
pub const MIN_MEMORY_MIB: u32 = 32;
/// Most RAM, in MiB.
pub const MAX_MEMORY_MIB: u32 = 16 * 1024;
/// Most RAM of a Bochs machine in MiB: what it can hold in memory at once.
pub const MAX_BOCHS_MEMORY_MIB: u32 = 2048;
/// The CPU model Bochs emulates unless told otherwise: it has every VMX feature that Bochs 2.7 has.
pub const DEFAULT_BOCHS_MODEL: &str = "tigerlake";

/// Simulated instructions a second of a Bochs machine unless told otherwise. It scales how long the BIOS waits, not how fast Bochs
/// runs: small is quick to boot.
pub const DEFAULT_IPS: u32 = 10_000_000;
/// Bounds of what can be asked for: below, timers of the BIOS end before it looks; above, no host comes near.
pub const IPS_RANGE: std::ops::RangeInclusive<u32> = 1_000_000..=1_000_000_000;

/// Which machine runs the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MachineKind {
    /// Bochs, which emulates VMX and EPT. Slow, and deterministic.
    Bochs,
    /// QEMU on KVM with nested VMX: a real CPU's VT-x.
    QemuKvm,
    /// QEMU's own emulation. It has no VMX: the hypervisor must end with its clear message there.
    QemuTcg,
}

impl MachineKind {
    /// The name in reports and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            MachineKind::Bochs => "bochs",
            MachineKind::QemuKvm => "qemu-kvm",
            MachineKind::QemuTcg => "qemu-tcg",
        }
    }
}

impl MachineKind {
    /// The CPU model that this back end emulates unless it is told otherwise, by its own name.
    #[must_use]
    pub const fn default_cpu_model(self) -> &'static str {
        match self {
            MachineKind::Bochs => DEFAULT_BOCHS_MODEL,
            MachineKind::QemuKvm => "host",
            MachineKind::QemuTcg => "max",
        }
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the machine boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Firmware {
    /// PC BIOS and a master boot record.
    Bios,
    /// The same, but nobody finds its ACPI tables; Bochs only.
    BiosWithoutAcpi,
    /// UEFI; QEMU only.
    Uefi,
}

impl Firmware {
    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Firmware::Bios | Firmware::BiosWithoutAcpi => "bios",
            Firmware::Uefi => "uefi",
        }
    }
}

/// One machine, ready to be checked and started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// The back end.
    pub kind: MachineKind,
    /// The firmware.
    pub firmware: Firmware,
    /// CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// A CPU model by the name that this back end has for it; `None` for the back end's default.
    pub cpu_model: Option<String>,
    /// Bochs: simulated instructions a second; `None` for [`DEFAULT_IPS`]. The others have a real clock.
    pub ips: Option<u32>,
    /// Wall-clock limit of a run; the emulator is ended when it has passed.
    pub timeout: Duration,
    /// Open the machine's control port, as a socket in the run's directory.
    pub control: bool,
}

/// Why a [`MachineConfig`] cannot be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Not 1 to [`MAX_CPUS`] CPUs.
    Cpus(u32),
    /// RAM outside [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    Memory(u32),
    /// A CPU model with characters that a configuration file would read as something else.
    CpuModel(String),
    /// A wall-clock limit of zero.
    Timeout,
    /// UEFI on Bochs.
    UefiOnBochs,
    /// A simulated speed outside [`IPS_RANGE`].
    Ips(u32),
    /// More RAM than Bochs keeps: it loses some of what it puts into a file beyond that.
    MemoryOnBochs(u32),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Cpus(cpus) => write!(f, "{cpus} CPUs: a machine has 1 to {MAX_CPUS}"),
            ConfigError::Memory(mib) => {
                write!(
                    f,
                    "{mib} MiB of RAM: a machine has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB"
                )
            }
            ConfigError::MemoryOnBochs(mib) => write!(
                f,
                "{mib} MiB of RAM: Bochs loses what is beyond {MAX_BOCHS_MEMORY_MIB} MiB; use less, or QEMU"
            ),
            ConfigError::CpuModel(model) => write!(
                f,
                "CPU model {model:?}: only letters, digits, '_', '-', '.', ',', '+' and '=' can be in a model's name"
            ),
            ConfigError::Timeout => f.write_str("a time limit of zero: give at least one second"),
            ConfigError::Ips(ips) => write!(
                f,
                "{ips} instructions a second: Bochs simulates {} to {}",
                IPS_RANGE.start(),
                IPS_RANGE.end()
            ),
            ConfigError::UefiOnBochs => {
                f.write_str("Bochs cannot boot UEFI: use --machine qemu, or the BIOS image")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl MachineConfig {
    /// Checks everything that can be known before the emulator starts.
    ///
    /// # Errors
    /// The first thing that is wrong, with the value given.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        if self.kind == MachineKind::Bochs && self.memory_mib > MAX_BOCHS_MEMORY_MIB {
            return Err(ConfigError::MemoryOnBochs(self.memory_mib));
        }
        if let Some(ips) = self.ips.filter(|ips| !IPS_RANGE.contains(ips)) {
            return Err(ConfigError::Ips(ips));
        }
        if self.timeout.is_zero() {
            return Err(ConfigError::Timeout);
        }
        if self.kind == MachineKind::Bochs && self.firmware == Firmware::Uefi {
            return Err(ConfigError::UefiOnBochs);
        }
        // The model is written into Bochs's configuration file: a newline there would be a second directive.
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,+=".contains(c);
        match &self.cpu_model {
            Some(model) if model.is_empty() || !model.chars().all(plain) => {
                Err(ConfigError::CpuModel(model.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The CPU model by name, with the back end's default filled in.
    #[must_use]
    pub fn cpu_model_name(&self) -> &str {
        self.cpu_model
            .as_deref()
            .unwrap_or(self.kind.default_cpu_model())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            kind: MachineKind::Bochs,
            firmware: Firmware::Bios,
            cpus: 2,
            memory_mib: 512,
            cpu_model: None,
            ips: None,
            timeout: Duration::from_secs(1),
            control: false,
        }
    }

    #[test]
    fn a_sound_machine_is_accepted_and_each_bad_value_is_named() {
        assert_eq!(config().check(), Ok(()));
        let bad = |change: fn(&mut MachineConfig)| {
            let mut config = config();
            change(&mut config);
            config.check()
        };
        assert_eq!(bad(|c| c.cpus = 0), Err(ConfigError::Cpus(0)));
        assert_eq!(bad(|c| c.cpus = 9), Err(ConfigError::Cpus(9)));
        assert_eq!(bad(|c| c.memory_mib = 1), Err(ConfigError::Memory(1)));
        assert_eq!(
            bad(|c| c.memory_mib = 2049),
            Err(ConfigError::MemoryOnBochs(2049))
        );
        assert_eq!(bad(|c| c.ips = Some(7)), Err(ConfigError::Ips(7)));
        assert_eq!(
            bad(|c| c.timeout = Duration::ZERO),
            Err(ConfigError::Timeout)
        );
        assert_eq!(
            bad(|c| c.firmware = Firmware::Uefi),
            Err(ConfigError::UefiOnBochs)
        );
    }

    #[test]
    fn a_cpu_model_cannot_smuggle_a_second_directive_into_the_configuration_file() {
        let mut config = config();
        for model in ["", "a\nlog: /etc/passwd", "a b", "x:y"] {
            config.cpu_model = Some(model.to_owned());
            assert_eq!(config.check(), Err(ConfigError::CpuModel(model.to_owned())));
        }
        config.cpu_model = Some("corei7_skylake_x".to_owned());
        assert_eq!(config.check(), Ok(()));
    }
}
