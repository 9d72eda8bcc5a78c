//! Which machine this host can offer, and why.
//!
//! The decision is a pure function of [`HostFacts`]; [`HostFacts::probe`] is the only part that looks at the host. A
//! `/dev/kvm` that opens says nothing: KVM without nested virtualisation opens as well, and offers its guests no VMX. So the
//! question is put to KVM itself (`KVM_GET_SUPPORTED_CPUID`, leaf 1, ECX bit 5; Linux `Documentation/virt/kvm/api.rst`).

use std::fmt;

use crate::bochs;
use crate::machine::MachineKind;

/// CPUID.1:ECX.VMX (Intel SDM volume 2A, CPUID, "Feature Information Returned in the ECX Register").
const CPUID_1_ECX_VMX: u32 = 1 << 5;

/// What KVM on this host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmFact {
    /// `/dev/kvm` cannot be opened or asked, for this reason.
    Unusable(String),
    /// KVM works but offers its guests no VMX.
    WithoutVmx,
    /// KVM offers its guests VMX.
    WithVmx,
}

/// Everything the choice depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// What KVM says.
    pub kvm: KvmFact,
    /// What the module `kvm_intel` was told about nested virtualisation; `None` where that module is not loaded.
    pub nested: Option<bool>,
}

impl HostFacts {
    /// Asks the host.
    #[must_use]
    pub fn probe() -> HostFacts {
        let parameter = std::fs::read_to_string("/sys/module/kvm_intel/parameters/nested");
        HostFacts {
            kvm: probe_kvm(),
            nested: parameter.ok().map(|value| is_on(&value)),
        }
    }
}

/// A parameter of a kernel module as it can be read: `Y` or `1`, `N` or `0` in older kernels' spelling of this one.
fn is_on(parameter: &str) -> bool {
    matches!(parameter.trim(), "Y" | "1")
}

/// How nested virtualisation is switched on, for whoever has an Intel CPU and has it off.
const NESTED_HINT: &str = "nested virtualisation is off (kvm_intel nested=0); \
    `modprobe -r kvm_intel && modprobe kvm_intel nested=1` as root switches it on while no VM runs";

fn probe_kvm() -> KvmFact {
    let supported = kvm_ioctls::Kvm::new()
        .and_then(|kvm| kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES));
    match supported {
        Err(error) => {
            KvmFact::Unusable(std::io::Error::from_raw_os_error(error.errno()).to_string())
        }
        Ok(table) => {
            let has_vmx = table
                .as_slice()
                .iter()
                .any(|entry| entry.function == 1 && entry.ecx & CPUID_1_ECX_VMX != 0);
            if has_vmx {
                KvmFact::WithVmx
            } else {
                KvmFact::WithoutVmx
            }
        }
    }
}

/// The chosen machine and the reason, for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The back end.
    pub kind: MachineKind,
    /// Why, in one clause.
    pub reason: String,
}

/// As the line `machine: ..` of every verb that starts one: the back end, its version where it tells one, and why.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.machine(), self.reason)
    }
}

impl Choice {
    /// The back end with its version.
    #[must_use]
    pub fn machine(&self) -> String {
        match &bochs::Abilities::probe().version {
            Some(version) if self.kind == MachineKind::Bochs => format!("{} {version}", self.kind),
            _ => self.kind.to_string(),
        }
    }
}

/// What the user asked for by `--machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Any,
    /// `--machine bochs`.
    Bochs,
    /// `--machine qemu`: on KVM where that has VMX, else QEMU's own emulation.
    Qemu,
}

/// Chooses: QEMU on KVM where KVM really gives guests VMX, else Bochs; a wish overrides.
#[must_use]
pub fn choose(facts: &HostFacts, wish: Wish) -> Choice {
    let why_not_kvm = match &facts.kvm {
        KvmFact::Unusable(error) => format!("/dev/kvm cannot be used: {error}"),
        KvmFact::WithoutVmx if facts.nested == Some(false) => {
            format!("KVM here offers its guests no VMX: {NESTED_HINT}")
        }
        KvmFact::WithoutVmx => "KVM here offers its guests no VMX".to_owned(),
        KvmFact::WithVmx => String::new(),
    };
    let (kind, reason) = match (wish, &facts.kvm) {
        (Wish::Bochs, _) => (
            MachineKind::Bochs,
            "asked for by --machine bochs".to_owned(),
        ),
        (Wish::Any, KvmFact::WithVmx) => {
            (MachineKind::QemuKvm, "KVM offers its guests VMX".to_owned())
        }
        (Wish::Qemu, KvmFact::WithVmx) => (
            MachineKind::QemuKvm,
            "asked for by --machine qemu; KVM offers its guests VMX".to_owned(),
        ),
        (Wish::Qemu, _) => (
            MachineKind::QemuTcg,
            format!(
                "asked for by --machine qemu; {why_not_kvm}, so it is QEMU's own emulation, which has no VT-x"
            ),
        ),
        (Wish::Any, _) => (
            MachineKind::Bochs,
            format!("it emulates VT-x; {why_not_kvm}"),
        ),
    };
    Choice { kind, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kvm: KvmFact) -> HostFacts {
        HostFacts { kvm, nested: None }
    }

    #[test]
    fn where_nested_virtualisation_is_only_switched_off_the_reason_says_how_to_switch_it_on() {
        let reason = |nested, kvm| choose(&HostFacts { kvm, nested }, Wish::Any).reason;
        let off = reason(Some(false), KvmFact::WithoutVmx);
        assert!(off.contains("modprobe kvm_intel nested=1"), "{off}");
        for other in [
            reason(Some(true), KvmFact::WithoutVmx),
            reason(None, KvmFact::WithoutVmx),
            reason(Some(true), KvmFact::WithVmx),
        ] {
            assert!(!other.contains("modprobe"), "{other}");
        }
        assert!(is_on("Y\n") && is_on("1\n") && !is_on("N\n") && !is_on("0\n"));
    }

    #[test]
    fn kvm_is_chosen_only_where_it_offers_vmx() {
        let unusable = KvmFact::Unusable("No such file or directory".to_owned());
        assert_eq!(
            choose(&facts(KvmFact::WithVmx), Wish::Any).kind,
            MachineKind::QemuKvm
        );
        assert_eq!(
            choose(&facts(KvmFact::WithoutVmx), Wish::Any).kind,
            MachineKind::Bochs
        );
        assert_eq!(choose(&facts(unusable), Wish::Any).kind, MachineKind::Bochs);
    }

    #[test]
    fn a_wish_is_obeyed_and_qemu_without_vmx_falls_to_its_own_emulation() {
        assert_eq!(
            choose(&facts(KvmFact::WithVmx), Wish::Bochs).kind,
            MachineKind::Bochs
        );
        assert_eq!(
            choose(&facts(KvmFact::WithVmx), Wish::Qemu).kind,
            MachineKind::QemuKvm
        );
        assert_eq!(
            choose(&facts(KvmFact::WithoutVmx), Wish::Qemu).kind,
            MachineKind::QemuTcg
        );
    }

    #[test]
    fn the_reason_tells_what_kvm_said() {
        let unusable = KvmFact::Unusable("Permission denied".to_owned());
        let choice = choose(&facts(unusable), Wish::Any);
        assert!(choice.reason.contains("Permission denied"), "{choice:?}");
        let choice = choose(&facts(KvmFact::WithoutVmx), Wish::Any);
        assert!(choice.reason.contains("no VMX"), "{choice:?}");
    }
}
