//! Which machine this host can offer, and why.
//!
//! The decision is a pure function of [`HostFacts`]; [`HostFacts::probe`] is the only part that looks at the host. A
//! `/dev/kvm` that opens says nothing: KVM without nested virtualisation opens as well, and offers its guests no VMX. So the
//! question is put to KVM itself (`KVM_GET_SUPPORTED_CPUID`, leaf 1, ECX bit 5; Linux `Documentation/virt/kvm/api.rst`).

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
}

impl HostFacts {
    /// Asks the host.
    #[must_use]
    pub fn probe() -> HostFacts {
        HostFacts { kvm: probe_kvm() }
    }
}

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
        HostFacts { kvm }
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
