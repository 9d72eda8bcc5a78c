//! Every basic exit reason that the manual defines, and what Nagaya does about it. `docs/VM-EXITS.md` is made from this table.
//!
//! Source: Intel SDM Vol. 3, appendix "VMX Basic Exit Reasons"; "Instructions That Cause VM Exits", "Other Causes of VM Exits".

use alloc::format;
use alloc::string::String;

use x86_defs::exit::ExitReason;

/// What becomes of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It is carried out, for the guest or for the hypervisor.
    CarriedOut(&'static str),
    /// The guest gets an exception: its CPU lacks the instruction.
    Raises(&'static str),
    /// The VM ends, with a report.
    Ends(&'static str),
    /// It is not asked for by any control, or there is no such event in VMX non-root operation as it is used here. Should it come all
    /// the same, the VM ends with a report.
    NeverComes(&'static str),
}

use Treatment::{CarriedOut, Ends, NeverComes, Raises};

const NO_CONTROL: &str = "its control is off";
const NO_SMM: &str = "dual-monitor treatment of SMM is off";

/// The table, in ascending order.
pub const TABLE: &[(ExitReason, Treatment)] = &[
    (
        ExitReason::EXCEPTION_OR_NMI,
        CarriedOut(
            "NMI: the hypervisor's own; #DB, #AC: raised in the guest; #MC: stops the machine",
        ),
    ),
    (
        ExitReason::EXTERNAL_INTERRUPT,
        CarriedOut("the hypervisor's own"),
    ),
    (
        ExitReason::TRIPLE_FAULT,
        Ends("triple fault; a restart if the scenario says so"),
    ),
    (
        ExitReason::INIT_SIGNAL,
        NeverComes("nobody sends INIT to a CPU that runs guests"),
    ),
    (
        ExitReason::STARTUP_IPI,
        NeverComes("activity state wait-for-SIPI is not used"),
    ),
    (ExitReason::IO_SMI, NeverComes(NO_SMM)),
    (ExitReason::OTHER_SMI, NeverComes(NO_SMM)),
    (
        ExitReason::INTERRUPT_WINDOW,
        CarriedOut("a waiting interrupt is injected"),
    ),
    (
        ExitReason::NMI_WINDOW,
        CarriedOut("a waiting NMI is injected"),
    ),
    (
        ExitReason::TASK_SWITCH,
        CarriedOut("the task is switched, or the fault on the way raised"),
    ),
    (ExitReason::CPUID, CarriedOut("answered by policy")),
    (ExitReason::GETSEC, Raises("#UD")),
    (ExitReason::HLT, CarriedOut("the vCPU waits")),
    (
        ExitReason::INVD,
        CarriedOut("stepped over: caches are coherent"),
    ),
    (ExitReason::INVLPG, NeverComes(NO_CONTROL)),
    (ExitReason::RDPMC, Raises("#GP: there are no counters")),
    (ExitReason::RDTSC, NeverComes(NO_CONTROL)),
    (ExitReason::RSM, Raises("#UD")),
    (ExitReason::VMCALL, CarriedOut("a hypercall")),
    (ExitReason::VMCLEAR, Raises("#UD")),
    (ExitReason::VMLAUNCH, Raises("#UD")),
    (ExitReason::VMPTRLD, Raises("#UD")),
    (ExitReason::VMPTRST, Raises("#UD")),
    (ExitReason::VMREAD, Raises("#UD")),
    (ExitReason::VMRESUME, Raises("#UD")),
    (ExitReason::VMWRITE, Raises("#UD")),
    (ExitReason::VMXOFF, Raises("#UD")),
    (ExitReason::VMXON, Raises("#UD")),
    (
        ExitReason::CONTROL_REGISTER,
        CarriedOut("writes of CR0 and CR4 that touch the hypervisor's bits; CR8"),
    ),
    (
        ExitReason::MOV_DR,
        CarriedOut("while a debugger has hardware breakpoints: the guest's own registers are kept"),
    ),
    (
        ExitReason::IO_INSTRUCTION,
        CarriedOut("a device's port, or nobody's: ones"),
    ),
    (ExitReason::RDMSR, CarriedOut("answered by policy, or #GP")),
    (ExitReason::WRMSR, CarriedOut("answered by policy, or #GP")),
    (
        ExitReason::ENTRY_INVALID_GUEST_STATE,
        Ends("entry refused, with all guest state"),
    ),
    (
        ExitReason::ENTRY_MSR_LOADING,
        Ends("entry refused, with all guest state"),
    ),
    (ExitReason::MWAIT, Raises("#UD")),
    (ExitReason::MONITOR_TRAP_FLAG, NeverComes(NO_CONTROL)),
    (ExitReason::MONITOR, Raises("#UD")),
    (
        ExitReason::PAUSE,
        CarriedOut("the scheduler learns that the vCPU spins"),
    ),
    (
        ExitReason::ENTRY_MACHINE_CHECK,
        Ends("entry refused, with all guest state"),
    ),
    (
        ExitReason::TPR_BELOW_THRESHOLD,
        NeverComes("the threshold is 0"),
    ),
    (ExitReason::APIC_ACCESS, NeverComes(NO_CONTROL)),
    (
        ExitReason::VIRTUALIZED_EOI,
        CarriedOut("told to the I/O APIC"),
    ),
    (ExitReason::GDTR_IDTR_ACCESS, NeverComes(NO_CONTROL)),
    (ExitReason::LDTR_TR_ACCESS, NeverComes(NO_CONTROL)),
    (
        ExitReason::EPT_VIOLATION,
        CarriedOut("a device's memory, or nobody's"),
    ),
    (
        ExitReason::EPT_MISCONFIGURATION,
        Ends("an entry of the hypervisor's own making"),
    ),
    (ExitReason::INVEPT, Raises("#UD")),
    (ExitReason::RDTSCP, NeverComes(NO_CONTROL)),
    (
        ExitReason::PREEMPTION_TIMER,
        CarriedOut("the clock is looked at"),
    ),
    (ExitReason::INVVPID, Raises("#UD")),
    (
        ExitReason::WBINVD,
        CarriedOut("stepped over: caches are coherent"),
    ),
    (
        ExitReason::XSETBV,
        CarriedOut("XCR0 within what CPUID offers, or #GP"),
    ),
    (
        ExitReason::APIC_WRITE,
        NeverComes("no register that is written so is let through"),
    ),
    (ExitReason::RDRAND, Raises("#UD, in repeatable runs")),
    (ExitReason::INVPCID, NeverComes("INVLPG exiting is off")),
    (ExitReason::VMFUNC, Raises("#UD")),
    (ExitReason::ENCLS, Raises("#UD")),
    (ExitReason::RDSEED, Raises("#UD, in repeatable runs")),
    (ExitReason::PML_FULL, NeverComes(NO_CONTROL)),
    (ExitReason::XSAVES, Raises("#UD")),
    (ExitReason::XRSTORS, Raises("#UD")),
    (ExitReason::PCONFIG, Raises("#UD")),
    (ExitReason::SUB_PAGE, NeverComes(NO_CONTROL)),
    (ExitReason::UMWAIT, Raises("#UD")),
    (ExitReason::TPAUSE, Raises("#UD")),
    (ExitReason::LOADIWKEY, Raises("#UD")),
    (ExitReason::ENCLV, Raises("#UD")),
    (ExitReason::ENQCMD_PASID, NeverComes(NO_CONTROL)),
    (ExitReason::ENQCMDS_PASID, NeverComes(NO_CONTROL)),
    (ExitReason::BUS_LOCK, NeverComes(NO_CONTROL)),
    (ExitReason::INSTRUCTION_TIMEOUT, NeverComes(NO_CONTROL)),
    (ExitReason::SEAMCALL, Raises("#UD")),
    (ExitReason::TDCALL, Raises("#UD")),
    (ExitReason::RDMSRLIST, Raises("#UD")),
    (ExitReason::WRMSRLIST, Raises("#UD")),
    (ExitReason::URDMSR, Raises("#UD")),
    (ExitReason::UWRMSR, Raises("#UD")),
    (ExitReason::RDMSR_IMMEDIATE, Raises("#UD")),
    (ExitReason::WRMSR_IMMEDIATE, Raises("#UD")),
];

/// A reason that is missing, or twice there, does not compile.
const _: () = {
    assert!(TABLE.len() == ExitReason::ALL.len());
    let mut index = 0;
    while index < TABLE.len() {
        assert!(TABLE[index].0.0 == ExitReason::ALL[index].0);
        index += 1;
    }
};

/// `docs/VM-EXITS.md`.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(
        "# VM exits\n\nWhat Nagaya does about each basic exit reason that the Intel SDM (Vol. 3, appendix C) defines. Made from \
         `hypervisor/vmm/src/exit/table.rs`,\nwhere a missing reason does not compile; `cargo test -p nagaya-vmm exit` compares.\n\n\
         | reason | what | treatment |\n|---|---|---|\n",
    );
    for (reason, treatment) in TABLE {
        let (kind, detail) = match treatment {
            CarriedOut(detail) => ("carried out", detail),
            Raises(detail) => ("raises", detail),
            Ends(detail) => ("ends the VM", detail),
            NeverComes(detail) => ("never comes", detail),
        };
        text += &format!("| {} | {} | {kind}: {detail} |\n", reason.0, reason.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{ExitSnapshot, Instruction, VmExit, vmx};
    use std::path::Path;

    fn decoded(reason: ExitReason) -> VmExit {
        let is_entry = matches!(reason.0, 33 | 34 | 41);
        vmx::decode(&ExitSnapshot {
            reason: u32::from(reason.0) | u32::from(is_entry) << 31,
            ..ExitSnapshot::default()
        })
    }

    #[test]
    fn the_table_says_what_the_decoder_does() {
        for (reason, treatment) in TABLE {
            let exit = decoded(*reason);
            let agrees = match treatment {
                CarriedOut(_) => !matches!(
                    exit,
                    VmExit::Unknown(_) | VmExit::EntryFailure(_) | VmExit::TripleFault
                ),
                Raises(_) => matches!(
                    exit,
                    VmExit::Instruction(Instruction::Absent | Instruction::Rdpmc)
                ),
                Ends(_) => matches!(
                    exit,
                    VmExit::EntryFailure(_) | VmExit::TripleFault | VmExit::Misconfiguration { .. }
                ),
                NeverComes(_) => {
                    matches!(exit, VmExit::Unknown(told) if told.number == reason.0)
                }
            };
            assert!(agrees, "{reason}: {exit:?} and {treatment:?}");
        }
    }

    #[test]
    fn the_document_is_the_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/VM-EXITS.md");
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == document(),
            "docs/VM-EXITS.md is to be:\n{}",
            document()
        );
    }
}
