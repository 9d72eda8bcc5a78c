//! Decoding of VMX exits. Source: Intel SDM Vol. 3, "VM Exits", appendix "VMX Basic Exit Reasons", tables of exit qualifications.

use guest_abi::ExitKind;
use x86_defs::exit::{CrAccess, CrAccessKind, EptViolation, ExitReason, IoAccess};
use x86_defs::interrupt::{EventKind, InterruptionInfo};

use super::{
    ControlRegisterAccess, DebugRegisterAccess, Exception, ExitSnapshot, Instruction, MemoryAccess,
    PortAccess, Reason, VmExit,
};
use crate::cpu::task::Initiator;

/// Reads what there is to know of an exit beside EXIT_REASON, and not more: most exits need little, and each field costs. A field
/// that is not read is 0.
#[inline]
#[must_use]
pub fn snapshot(reason: u32, read: &impl ReadExit) -> ExitSnapshot {
    let mut snapshot = ExitSnapshot {
        reason,
        ..ExitSnapshot::default()
    };
    if needs_only_exit_reason(reason) {
        return snapshot;
    }
    if reason == ExitReason::IO_INSTRUCTION.0 as u32 {
        snapshot.qualification = read.qualification();
        return snapshot;
    }
    snapshot.interruption_info = read.interruption_info();
    let is_nmi = InterruptionInfo(snapshot.interruption_info).kind() == EventKind::Nmi;
    if reason == ExitReason::EXCEPTION_OR_NMI.0 as u32 && is_nmi {
        return snapshot;
    }
    snapshot.qualification = read.qualification();
    snapshot.interruption_error = read.interruption_error();
    snapshot.guest_physical = read.guest_physical();
    snapshot
}

/// The fields of an exit.
pub trait ReadExit {
    /// EXIT_QUALIFICATION.
    fn qualification(&self) -> u64;
    /// EXIT_INTERRUPTION_INFO.
    fn interruption_info(&self) -> u32;
    /// EXIT_INTERRUPTION_ERROR_CODE.
    fn interruption_error(&self) -> u32;
    /// GUEST_PHYSICAL_ADDRESS.
    fn guest_physical(&self) -> u64;
}

/// Whether EXIT_REASON alone tells what such an exit means. Entry failures never.
#[inline]
const fn needs_only_exit_reason(reason: u32) -> bool {
    const ALONE: [ExitReason; 9] = [
        ExitReason::EXTERNAL_INTERRUPT,
        ExitReason::INTERRUPT_WINDOW,
        ExitReason::NMI_WINDOW,
        ExitReason::CPUID,
        ExitReason::HLT,
        ExitReason::VMCALL,
        ExitReason::RDMSR,
        ExitReason::WRMSR,
        ExitReason::PREEMPTION_TIMER,
    ];
    const MASK: u64 = {
        let mut mask = 0;
        let mut index = 0;
        while index < ALONE.len() {
            mask |= 1 << ALONE[index].0;
            index += 1;
        }
        mask
    };
    reason < u64::BITS && MASK >> reason & 1 != 0
}

/// What an exit means.
#[inline]
#[must_use]
pub fn decode(snapshot: &ExitSnapshot) -> VmExit {
    // The commonest first; the compiler keeps the order of these tests.
    if snapshot.reason == ExitReason::VMCALL.0 as u32 {
        return VmExit::Hypercall;
    }
    decode_rest(snapshot)
}

/// The kinds of exits that come most, each with the one reason that it has.
pub const COMMON: [(ExitKind, u32); 5] = [
    (ExitKind::Hypercall, ExitReason::VMCALL.0 as u32),
    (ExitKind::Cpuid, ExitReason::CPUID.0 as u32),
    (ExitKind::MsrRead, ExitReason::RDMSR.0 as u32),
    (ExitKind::MsrWrite, ExitReason::WRMSR.0 as u32),
    (ExitKind::Port, ExitReason::IO_INSTRUCTION.0 as u32),
];

/// The reason of a kind of [`COMMON`]; 0 of any other kind.
#[inline]
#[must_use]
pub const fn reason_of(kind: ExitKind) -> u32 {
    let mut index = 0;
    while index < COMMON.len() {
        let (common, reason) = COMMON[index];
        if common as u8 == kind as u8 {
            return reason;
        }
        index += 1;
    }
    0
}

/// An exit by a port access, which its qualification tells.
#[inline]
#[must_use]
pub fn port_exit(qualification: u64) -> (PortAccess, ExitSnapshot) {
    let snapshot = ExitSnapshot {
        reason: reason_of(ExitKind::Port),
        qualification,
        ..ExitSnapshot::default()
    };
    (port(qualification), snapshot)
}

/// An exit of which all is kept: what its reason says not to have been read is 0.
#[must_use]
pub fn whole(kept: ExitSnapshot) -> ExitSnapshot {
    if needs_only_exit_reason(kept.reason) {
        return ExitSnapshot {
            reason: kept.reason,
            ..ExitSnapshot::default()
        };
    }
    kept
}

fn decode_rest(snapshot: &ExitSnapshot) -> VmExit {
    let reason = ExitReason::from_raw(snapshot.reason);
    if ExitReason::is_entry_failure(snapshot.reason) {
        return VmExit::EntryFailure(told(reason));
    }
    match reason {
        ExitReason::VMCALL => VmExit::Hypercall,
        ExitReason::CPUID => VmExit::Cpuid,
        ExitReason::RDMSR => VmExit::MsrRead,
        ExitReason::WRMSR => VmExit::MsrWrite,
        ExitReason::IO_INSTRUCTION => VmExit::Port(port(snapshot.qualification)),
        ExitReason::HLT => VmExit::Halt,
        ExitReason::EXTERNAL_INTERRUPT => VmExit::ExternalInterrupt,
        ExitReason::PREEMPTION_TIMER => VmExit::PreemptionTimer,
        ExitReason::INTERRUPT_WINDOW | ExitReason::NMI_WINDOW => VmExit::InterruptWindow,
        ExitReason::TASK_SWITCH => VmExit::TaskSwitch {
            selector: snapshot.qualification as u16,
            initiator: Initiator::from_qualification(snapshot.qualification),
        },
        ExitReason::TRIPLE_FAULT => VmExit::TripleFault,
        ExitReason::CONTROL_REGISTER => {
            VmExit::ControlRegister(control_register(snapshot.qualification))
        }
        ExitReason::MOV_DR => VmExit::DebugRegister(debug_register(snapshot.qualification)),
        ExitReason::EPT_VIOLATION => VmExit::MemoryViolation {
            gpa: snapshot.guest_physical,
            access: memory_access(snapshot.qualification),
        },
        // The vector is in bits 7 to 0 (SDM, "Exit Qualification for EOI-Induced VM Exits").
        ExitReason::VIRTUALIZED_EOI => VmExit::EndOfInterrupt {
            vector: snapshot.qualification as u8,
        },
        ExitReason::EPT_MISCONFIGURATION => VmExit::Misconfiguration {
            gpa: snapshot.guest_physical,
        },
        ExitReason::EXCEPTION_OR_NMI => exception(snapshot),
        ExitReason::INVD => VmExit::Instruction(Instruction::Invd),
        ExitReason::WBINVD => VmExit::Instruction(Instruction::Wbinvd),
        ExitReason::XSETBV => VmExit::Instruction(Instruction::Xsetbv),
        ExitReason::RDPMC => VmExit::Instruction(Instruction::Rdpmc),
        ExitReason::PAUSE => VmExit::Instruction(Instruction::Pause),
        ExitReason::MONITOR
        | ExitReason::MWAIT
        | ExitReason::RDRAND
        | ExitReason::RDSEED
        | ExitReason::GETSEC
        | ExitReason::VMCLEAR
        | ExitReason::VMLAUNCH
        | ExitReason::VMPTRLD
        | ExitReason::VMPTRST
        | ExitReason::VMREAD
        | ExitReason::VMRESUME
        | ExitReason::VMWRITE
        | ExitReason::VMXOFF
        | ExitReason::VMXON
        | ExitReason::INVEPT
        | ExitReason::INVVPID
        | ExitReason::VMFUNC
        | ExitReason::RSM
        | ExitReason::ENCLS
        | ExitReason::ENCLV
        | ExitReason::PCONFIG
        | ExitReason::UMWAIT
        | ExitReason::TPAUSE
        | ExitReason::LOADIWKEY
        | ExitReason::XSAVES
        | ExitReason::XRSTORS
        | ExitReason::SEAMCALL
        | ExitReason::TDCALL
        | ExitReason::RDMSRLIST
        | ExitReason::WRMSRLIST
        | ExitReason::URDMSR
        | ExitReason::UWRMSR
        | ExitReason::RDMSR_IMMEDIATE
        | ExitReason::WRMSR_IMMEDIATE => VmExit::Instruction(Instruction::Absent),
        unknown => VmExit::Unknown(told(unknown)),
    }
}

fn exception(snapshot: &ExitSnapshot) -> VmExit {
    let info = InterruptionInfo(snapshot.interruption_info);
    if info.kind() == EventKind::Nmi {
        return VmExit::Nmi;
    }
    VmExit::Exception(Exception {
        vector: info.vector(),
        error_code: info.has_error_code().then_some(snapshot.interruption_error),
        is_int1: info.kind() == EventKind::PrivilegedSoftwareException,
        // "Exit Qualification for Debug Exceptions".
        debug_causes: snapshot.qualification,
    })
}

/// A reason with its name.
fn told(reason: ExitReason) -> Reason {
    Reason {
        name: reason.name(),
        number: reason.0,
    }
}

/// The reason with that number, for dumps.
#[must_use]
pub fn reason_of_number(number: u16) -> Reason {
    told(ExitReason(number))
}

/// The reason of an exit, for dumps.
#[must_use]
pub fn reason(snapshot: &ExitSnapshot) -> Reason {
    told(ExitReason::from_raw(snapshot.reason))
}

fn port(qualification: u64) -> PortAccess {
    let access = IoAccess::from_qualification(qualification);
    PortAccess {
        port: access.port,
        size: access.size,
        input: access.input,
        string: access.string,
    }
}

fn memory_access(qualification: u64) -> MemoryAccess {
    let violation = EptViolation(qualification);
    MemoryAccess {
        read: violation.read(),
        write: violation.write(),
        execute: violation.execute(),
        is_final: violation.linear_address_valid() && violation.is_translated_access(),
    }
}

/// "Exit Qualification for MOV DR".
fn debug_register(qualification: u64) -> DebugRegisterAccess {
    DebugRegisterAccess {
        register: qualification as u8 & 7,
        is_read: qualification & 1 << 4 != 0,
        general: (qualification >> 8) as u8 & 0xF,
    }
}

fn control_register(qualification: u64) -> ControlRegisterAccess {
    let access = CrAccess::from_qualification(qualification);
    match access.kind {
        CrAccessKind::Write => ControlRegisterAccess::Write {
            register: access.register,
            from: access.gpr,
        },
        CrAccessKind::Read => ControlRegisterAccess::Read {
            register: access.register,
            to: access.gpr,
        },
        CrAccessKind::Clts => ControlRegisterAccess::Clts,
        CrAccessKind::Lmsw => ControlRegisterAccess::Lmsw {
            source: access.lmsw_source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: ExitReason) -> ExitSnapshot {
        ExitSnapshot {
            reason: u32::from(reason.0),
            ..ExitSnapshot::default()
        }
    }

    #[test]
    fn a_refused_entry_is_never_taken_for_an_exit() {
        let mut snapshot = exit(ExitReason::ENTRY_INVALID_GUEST_STATE);
        snapshot.reason |= 1 << 31;
        assert_eq!(
            decode(&snapshot),
            VmExit::EntryFailure(told(ExitReason::ENTRY_INVALID_GUEST_STATE))
        );
    }

    /// An exit with a value in each field.
    struct Fields {
        all: u64,
        info: u32,
    }

    impl ReadExit for Fields {
        fn qualification(&self) -> u64 {
            self.all
        }

        fn interruption_info(&self) -> u32 {
            self.info
        }

        fn interruption_error(&self) -> u32 {
            self.all as u32
        }

        fn guest_physical(&self) -> u64 {
            self.all
        }
    }

    #[test]
    fn fields_that_are_not_read_change_nothing() {
        // A valid hardware exception with its code, an NMI, nothing, everything.
        let infos = [0x8000_0B0E, 0x8000_0202, 0, u32::MAX];
        for reason in (0..=u32::from(u16::MAX)).flat_map(|raw| [raw, raw | 1 << 31]) {
            for info in infos {
                for all in [0, u64::MAX, 0xC004_0001] {
                    let fields = Fields { all, info };
                    let full = ExitSnapshot {
                        reason,
                        qualification: all,
                        interruption_info: info,
                        interruption_error: all as u32,
                        guest_physical: all,
                    };
                    let found = snapshot(reason, &fields);
                    assert_eq!(decode(&found), decode(&full), "reason {reason:#x}");
                    // Of these more is looked at than what they are decoded to.
                    let is_whole = match ExitReason(reason as u16) {
                        ExitReason::EPT_VIOLATION | ExitReason::CONTROL_REGISTER => true,
                        ExitReason::EXCEPTION_OR_NMI => {
                            InterruptionInfo(info).kind() != EventKind::Nmi
                        }
                        _ => false,
                    };
                    if is_whole {
                        assert_eq!(found, full, "reason {reason:#x}");
                    }
                    assert!(!needs_only_exit_reason(reason) || reason >> 31 == 0);
                }
            }
        }
    }

    #[test]
    fn a_common_exit_is_told_as_any_other() {
        for (kind, reason) in COMMON {
            // A byte by OUT to 0x80, a word by IN from DX, a REP OUTS.
            for all in [0x80_0040, 0x03F8_0009, 0x00E9_0030] {
                let fields = Fields { all, info: 0 };
                let found = snapshot(reason, &fields);
                assert_eq!(decode(&found).kind(), kind);
                if let VmExit::Port(access) = decode(&found) {
                    assert_eq!(port_exit(all), (access, found));
                    continue;
                }
                // The reason is kept over what was there before.
                let kept = ExitSnapshot {
                    reason: reason_of(kind),
                    qualification: 5,
                    interruption_info: 6,
                    interruption_error: 7,
                    guest_physical: 8,
                };
                assert_eq!(whole(kept), found);
            }
        }
        // No other reason is taken for one of these.
        for reason in 0..=u32::from(u16::MAX) {
            let kind = decode(&snapshot(reason, &Fields { all: 0, info: 0 })).kind();
            let common = COMMON.into_iter().find(|(_, common)| *common == reason);
            let is_common = COMMON.into_iter().any(|(common, _)| common == kind);
            assert_eq!(common.is_some(), is_common, "reason {reason:#x}");
        }
    }

    #[test]
    fn an_nmi_is_told_from_an_exception() {
        let mut snapshot = exit(ExitReason::EXCEPTION_OR_NMI);
        snapshot.interruption_info = 1 << 31 | 2 << 8 | 2;
        assert_eq!(decode(&snapshot), VmExit::Nmi);
        snapshot.interruption_info = 1 << 31 | 1 << 11 | 3 << 8 | 17;
        snapshot.interruption_error = 4;
        assert_eq!(
            decode(&snapshot),
            VmExit::Exception(Exception {
                vector: 17,
                error_code: Some(4),
                is_int1: false,
                debug_causes: 0,
            })
        );
    }

    #[test]
    fn a_violation_carries_address_and_access() {
        let mut snapshot = exit(ExitReason::EPT_VIOLATION);
        // A write, to where the valid linear address leads.
        snapshot.qualification = 0b1_1000_0010;
        snapshot.guest_physical = 0x1234_5000;
        assert_eq!(
            decode(&snapshot),
            VmExit::MemoryViolation {
                gpa: 0x1234_5000,
                access: MemoryAccess {
                    read: false,
                    write: true,
                    execute: false,
                    is_final: true,
                }
            }
        );
        // To a page table of the guest's; with no linear address the bit means nothing.
        for qualification in [0b0_1000_0010, 0b1_0000_0010] {
            snapshot.qualification = qualification;
            let VmExit::MemoryViolation { access, .. } = decode(&snapshot) else {
                panic!("{qualification:#b} is a violation");
            };
            assert!(!access.is_final && access.bits() == 2, "{qualification:#b}");
        }
    }

    #[test]
    fn every_reason_decodes_to_something_that_is_counted() {
        for raw in 0..=u16::MAX {
            let decoded = decode(&exit(ExitReason(raw)));
            assert!(ExitKind::ALL.contains(&decoded.kind()));
        }
        assert_eq!(
            decode(&exit(ExitReason(999))),
            VmExit::Unknown(told(ExitReason(999)))
        );
    }
}
