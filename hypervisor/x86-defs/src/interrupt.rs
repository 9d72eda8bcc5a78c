//! Exceptions, events and the interruption-information format of VM exits and entries.
//!
//! Source: SDM volume 3, "Information for VM Exits Due to Vectored Events", "VM-Entry Controls for Event Injection", "Guest
//! Non-Register State" (interruptibility) and "Protected-Mode Exceptions and Interrupts".

use bitflags::bitflags;

/// Vectors of the exceptions.
pub mod vector {
    /// #DE.
    pub const DIVIDE_ERROR: u8 = 0;
    /// #DB.
    pub const DEBUG: u8 = 1;
    /// NMI.
    pub const NMI: u8 = 2;
    /// #BP.
    pub const BREAKPOINT: u8 = 3;
    /// #OF.
    pub const OVERFLOW: u8 = 4;
    /// #BR.
    pub const BOUND_RANGE: u8 = 5;
    /// #UD.
    pub const INVALID_OPCODE: u8 = 6;
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: u8 = 7;
    /// #DF.
    pub const DOUBLE_FAULT: u8 = 8;
    /// #TS.
    pub const INVALID_TSS: u8 = 10;
    /// #NP.
    pub const SEGMENT_NOT_PRESENT: u8 = 11;
    /// #SS.
    pub const STACK_FAULT: u8 = 12;
    /// #GP.
    pub const GENERAL_PROTECTION: u8 = 13;
    /// #PF.
    pub const PAGE_FAULT: u8 = 14;
    /// #MF.
    pub const X87: u8 = 16;
    /// #AC.
    pub const ALIGNMENT_CHECK: u8 = 17;
    /// #MC.
    pub const MACHINE_CHECK: u8 = 18;
    /// #XM.
    pub const SIMD: u8 = 19;
    /// #VE.
    pub const VIRTUALIZATION: u8 = 20;
    /// #CP.
    pub const CONTROL_PROTECTION: u8 = 21;
}

/// The mnemonic of an exception, `"#??"` for vectors that are none.
#[must_use]
pub const fn exception_name(vector: u8) -> &'static str {
    match vector {
        vector::DIVIDE_ERROR => "#DE",
        vector::DEBUG => "#DB",
        vector::NMI => "NMI",
        vector::BREAKPOINT => "#BP",
        vector::OVERFLOW => "#OF",
        vector::BOUND_RANGE => "#BR",
        vector::INVALID_OPCODE => "#UD",
        vector::DEVICE_NOT_AVAILABLE => "#NM",
        vector::DOUBLE_FAULT => "#DF",
        vector::INVALID_TSS => "#TS",
        vector::SEGMENT_NOT_PRESENT => "#NP",
        vector::STACK_FAULT => "#SS",
        vector::GENERAL_PROTECTION => "#GP",
        vector::PAGE_FAULT => "#PF",
        vector::X87 => "#MF",
        vector::ALIGNMENT_CHECK => "#AC",
        vector::MACHINE_CHECK => "#MC",
        vector::SIMD => "#XM",
        vector::VIRTUALIZATION => "#VE",
        vector::CONTROL_PROTECTION => "#CP",
        _ => "#??",
    }
}

/// Whether the CPU pushes an error code for this exception.
#[must_use]
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// What kind of event: bits 10:8 of the interruption information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// An interrupt from outside.
    ExternalInterrupt = 0,
    /// Not used by the manual.
    Reserved = 1,
    /// A non-maskable interrupt.
    Nmi = 2,
    /// An exception that hardware raised.
    HardwareException = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftwareException = 5,
    /// INT3 and INTO.
    SoftwareException = 6,
    /// No event: a pending monitor-trap-flag exit (entry only).
    OtherEvent = 7,
}

impl EventKind {
    const fn from_bits(bits: u32) -> EventKind {
        match bits & 7 {
            0 => EventKind::ExternalInterrupt,
            1 => EventKind::Reserved,
            2 => EventKind::Nmi,
            3 => EventKind::HardwareException,
            4 => EventKind::SoftwareInterrupt,
            5 => EventKind::PrivilegedSoftwareException,
            6 => EventKind::SoftwareException,
            _ => EventKind::OtherEvent,
        }
    }
}

/// Bit 11: the error-code field counts.
const ERROR_CODE_VALID: u32 = 1 << 11;
/// Bit 12 (exits only): IRET had lifted NMI blocking before it faulted.
const NMI_UNBLOCKING: u32 = 1 << 12;
/// Bit 31: there is an event at all.
const VALID: u32 = 1 << 31;

/// EXIT_INTERRUPTION_INFO or IDT_VECTORING_INFO as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptionInfo(pub u32);

impl InterruptionInfo {
    /// Whether there is an event at all; the other methods mean nothing if not.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// The event's vector.
    #[inline]
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The event's kind.
    #[inline]
    #[must_use]
    pub const fn kind(self) -> EventKind {
        EventKind::from_bits(self.0 >> 8)
    }

    /// Whether the error-code field beside this one counts.
    #[inline]
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        self.0 & ERROR_CODE_VALID != 0
    }

    /// Whether an IRET that faulted had already lifted NMI blocking; undefined for IDT_VECTORING_INFO and for #DF.
    #[inline]
    #[must_use]
    pub const fn nmi_unblocking(self) -> bool {
        self.0 & NMI_UNBLOCKING != 0
    }

    /// The event to inject so that a delivery that an exit cut short is made again; `None` if there was none.
    /// `error_code` is IDT_VECTORING_ERROR_CODE. A software event needs ENTRY_INSTRUCTION_LENGTH, too.
    #[must_use]
    pub const fn reinjection(self, error_code: u32) -> Option<EventInjection> {
        if !self.is_valid() {
            return None;
        }
        Some(EventInjection {
            vector: self.vector(),
            kind: self.kind(),
            error_code: if self.has_error_code() {
                Some(error_code)
            } else {
                None
            },
        })
    }
}

/// An event to be injected on the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventInjection {
    /// Vector of the event.
    pub vector: u8,
    /// Kind of the event.
    pub kind: EventKind,
    /// What goes to ENTRY_EXCEPTION_ERROR_CODE, if the exception has an error code.
    pub error_code: Option<u32>,
}

impl EventInjection {
    /// An interrupt.
    #[must_use]
    pub const fn external_interrupt(vector: u8) -> EventInjection {
        EventInjection {
            vector,
            kind: EventKind::ExternalInterrupt,
            error_code: None,
        }
    }

    /// An NMI.
    pub const NMI: EventInjection = EventInjection {
        vector: vector::NMI,
        kind: EventKind::Nmi,
        error_code: None,
    };

    /// #UD.
    pub const INVALID_OPCODE: EventInjection = EventInjection {
        vector: vector::INVALID_OPCODE,
        kind: EventKind::HardwareException,
        error_code: None,
    };

    /// #GP(0).
    pub const GENERAL_PROTECTION: EventInjection = EventInjection {
        vector: vector::GENERAL_PROTECTION,
        kind: EventKind::HardwareException,
        error_code: Some(0),
    };

    /// What goes to ENTRY_INTERRUPTION_INFO.
    #[inline]
    #[must_use]
    pub const fn to_u32(self) -> u32 {
        let error_code = if self.error_code.is_some() {
            ERROR_CODE_VALID
        } else {
            0
        };
        VALID | error_code | (self.kind as u32) << 8 | self.vector as u32
    }
}

bitflags! {
    /// Interruptibility state of the guest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Interruptibility: u32 {
        /// Interrupts are blocked for one instruction after STI.
        const BLOCKED_BY_STI = 1 << 0;
        /// Interrupts are blocked for one instruction after MOV SS or POP SS.
        const BLOCKED_BY_MOV_SS = 1 << 1;
        /// SMIs are blocked.
        const BLOCKED_BY_SMI = 1 << 2;
        /// NMIs are blocked.
        const BLOCKED_BY_NMI = 1 << 3;
        /// The exit came from inside an enclave.
        const ENCLAVE_INTERRUPTION = 1 << 4;
    }
}

impl Interruptibility {
    /// Whether an NMI can be injected now: injecting one while STI blocks is refused by some CPUs (SDM, "Checks on Guest
    /// Non-Register State").
    #[inline]
    #[must_use]
    pub const fn allows_nmi(self) -> bool {
        self.allows_interrupt() && !self.contains(Interruptibility::BLOCKED_BY_NMI)
    }

    /// Whether an interrupt can be injected now, given that RFLAGS.IF is set.
    #[inline]
    #[must_use]
    pub const fn allows_interrupt(self) -> bool {
        !self
            .intersects(Interruptibility::BLOCKED_BY_STI.union(Interruptibility::BLOCKED_BY_MOV_SS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_short_delivery_is_injected_as_it_was() {
        for event in [
            EventInjection::NMI,
            EventInjection::GENERAL_PROTECTION,
            EventInjection::INVALID_OPCODE,
            EventInjection::external_interrupt(0xF0),
        ] {
            let seen = InterruptionInfo(event.to_u32());
            assert_eq!(seen.reinjection(event.error_code.unwrap_or(7)), Some(event));
        }
        assert_eq!(InterruptionInfo(0x0000_0B0E).reinjection(0), None);
    }

    #[test]
    fn an_interrupt_waits_for_the_instruction_after_sti_but_not_for_nmi_blocking() {
        assert!(!Interruptibility::BLOCKED_BY_STI.allows_interrupt());
        assert!(!Interruptibility::BLOCKED_BY_MOV_SS.allows_interrupt());
        assert!(Interruptibility::BLOCKED_BY_NMI.allows_interrupt());
        assert!(!Interruptibility::BLOCKED_BY_NMI.allows_nmi());
        assert!(!Interruptibility::BLOCKED_BY_STI.allows_nmi());
        assert!(Interruptibility::empty().allows_nmi());
    }
}
