//! Raising an event at the next entry, as the CPU would where the guest is.

use x86_defs::cr::{Cr0, Rflags};
use x86_defs::interrupt::{EventInjection, EventKind, vector};

use super::CpuState;
use super::debug::{BTF, GENERAL_DETECT, LBR};
use super::step::unblock;

/// Has the next entry deliver `event`, and does what its delivery by an entry leaves out:
///
/// * in real mode no exception has an error code, and an entry with one is refused (SDM, "Checks on VMX Controls and Host-State
///   Area");
/// * a fault saves RFLAGS with RF set, so that no instruction breakpoint hits again on the way back ("Debug Exceptions");
/// * #DB clears DR7.GD and IA32_DEBUGCTL's BTF and LBR ("Debug Control Register", "IA32_DEBUGCTL MSR");
/// * blocking by STI or MOV SS ends.
#[inline]
pub fn raise(cpu: &mut impl CpuState, event: EventInjection) {
    let mut event = event;
    if is_exception(event) {
        prepare(cpu, &mut event);
    }
    let blocking = cpu.blocking();
    if !blocking.allows_interrupt() {
        unblock(cpu, blocking);
    }
    cpu.set_event(event);
}

const fn is_exception(event: EventInjection) -> bool {
    matches!(
        event.kind,
        EventKind::HardwareException | EventKind::PrivilegedSoftwareException
    )
}

#[inline(never)]
fn prepare(cpu: &mut impl CpuState, event: &mut EventInjection) {
    if cpu.cr0() & Cr0::PE.bits() == 0 {
        event.error_code = None;
    }
    if event.kind == EventKind::HardwareException && is_fault(event.vector) {
        let flags = cpu.rflags();
        cpu.set_rflags(flags | Rflags::RF.bits());
    }
    if event.vector == vector::DEBUG {
        let dr7 = cpu.dr7();
        if dr7 & GENERAL_DETECT != 0 {
            cpu.set_dr7(dr7 & !GENERAL_DETECT);
        }
        let debugctl = cpu.debugctl();
        if debugctl & (BTF | LBR) != 0 {
            cpu.set_debugctl(debugctl & !(BTF | LBR));
        }
    }
}

/// Whether an exception of hardware's is a fault. #DB is a trap, or the exit has saved RF as its fault would ("Saving RIP, RSP,
/// RFLAGS, and SSP"); #DF and #MC are aborts.
const fn is_fault(vector: u8) -> bool {
    !matches!(
        vector,
        vector::DEBUG
            | vector::BREAKPOINT
            | vector::OVERFLOW
            | vector::DOUBLE_FAULT
            | vector::MACHINE_CHECK
    )
}

/// What is delivered when `second` is raised during the delivery of `first`: itself, or a double fault. `None`: the CPU shuts down.
/// An interrupt that was being delivered is gone either way. Source: SDM Vol. 3, "Interrupt 8—Double Fault Exception (#DF)".
#[must_use]
pub(super) const fn raised_during(
    first: EventInjection,
    second: EventInjection,
) -> Option<EventInjection> {
    const fn is_contributory(vector: u8) -> bool {
        matches!(vector, vector::DIVIDE_ERROR | 10..=13)
    }
    if !matches!(first.kind, EventKind::HardwareException) {
        return Some(second);
    }
    let is_grave = is_contributory(second.vector) || second.vector == vector::PAGE_FAULT;
    match first.vector {
        vector::DOUBLE_FAULT if is_grave => None,
        vector::PAGE_FAULT if is_grave => Some(DOUBLE_FAULT),
        vector if is_contributory(vector) && is_contributory(second.vector) => Some(DOUBLE_FAULT),
        _ => Some(second),
    }
}

const DOUBLE_FAULT: EventInjection = EventInjection {
    vector: vector::DOUBLE_FAULT,
    kind: EventKind::HardwareException,
    error_code: Some(0),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::test_cpu::TestCpu;
    use x86_defs::interrupt::Interruptibility;

    const RF: u64 = Rflags::RF.bits();
    const DEBUG: EventInjection = EventInjection {
        vector: vector::DEBUG,
        kind: EventKind::HardwareException,
        error_code: None,
    };

    #[test]
    fn a_fault_has_its_error_code_in_protected_mode_only() {
        let mut cpu = TestCpu::bits_16();
        raise(&mut cpu, EventInjection::GENERAL_PROTECTION);
        let found = cpu.event.map(|event| (event.vector, event.error_code));
        assert_eq!(found, Some((vector::GENERAL_PROTECTION, None)));

        let mut cpu = TestCpu::bits_32();
        raise(&mut cpu, EventInjection::GENERAL_PROTECTION);
        assert_eq!(cpu.event, Some(EventInjection::GENERAL_PROTECTION));
    }

    #[test]
    fn a_fault_is_saved_with_rf_and_nothing_else_is() {
        for vector in 0..32 {
            let mut cpu = TestCpu::bits_64();
            let event = EventInjection { vector, ..DEBUG };
            raise(&mut cpu, event);
            let is_fault = !matches!(vector, 1 | 3 | 4 | 8 | 18);
            assert_eq!(cpu.rflags & RF != 0, is_fault, "{vector}");
        }
        for event in [
            EventInjection::NMI,
            EventInjection::external_interrupt(0x30),
        ] {
            let mut cpu = TestCpu::bits_64();
            raise(&mut cpu, event);
            assert_eq!((cpu.rflags, cpu.event), (2, Some(event)));
        }
    }

    #[test]
    fn a_debug_exception_opens_the_debug_registers_to_its_handler() {
        let mut cpu = TestCpu::bits_64();
        (cpu.dr7, cpu.debugctl) = (0x400 | GENERAL_DETECT | 1, BTF);
        raise(&mut cpu, DEBUG);
        assert_eq!((cpu.dr7, cpu.debugctl), (0x401, 0));

        let mut cpu = TestCpu::bits_64();
        (cpu.dr7, cpu.debugctl) = (0x400 | GENERAL_DETECT, BTF);
        raise(&mut cpu, EventInjection::GENERAL_PROTECTION);
        assert_eq!((cpu.dr7, cpu.debugctl), (0x400 | GENERAL_DETECT, BTF));
    }

    #[test]
    fn faults_on_the_way_to_a_handler_become_double_faults_as_the_manuals_table_says() {
        let exception = |vector| EventInjection { vector, ..DEBUG };
        let after = |first, second| {
            raised_during(exception(first), exception(second)).map(|event| event.vector)
        };
        // Benign, contributory, page fault: rows and columns of the table.
        let table = [(6, [6, 13, 14]), (13, [6, 8, 14]), (14, [6, 8, 8])];
        for (first, wanted) in table {
            for (second, wanted) in [6, 13, 14].into_iter().zip(wanted) {
                assert_eq!(after(first, second), Some(wanted), "{first} {second}");
            }
        }
        assert_eq!(
            (after(8, 13), after(8, 14), after(8, 6)),
            (None, None, Some(6))
        );
        let outside = EventInjection::external_interrupt(13);
        assert_eq!(raised_during(outside, exception(13)), Some(exception(13)));
    }

    /// With blocking an entry with TF set would be refused unless a trap is pending (SDM, "Checks on Guest Non-Register State").
    #[test]
    fn an_event_ends_what_sti_and_mov_ss_block() {
        let mut cpu = TestCpu::bits_64();
        cpu.blocking = Interruptibility::BLOCKED_BY_MOV_SS | Interruptibility::BLOCKED_BY_NMI;
        raise(&mut cpu, EventInjection::INVALID_OPCODE);
        assert_eq!(cpu.blocking, Interruptibility::BLOCKED_BY_NMI);
    }
}
