//! What EXIT_QUALIFICATION means, by exit reason.

/// An I/O instruction (SDM table "Exit Qualification for I/O Instructions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The port.
    pub port: u16,
    /// Bytes moved at once: 1, 2 or 4; the field's reserved values give 1, so that no caller meets a size it cannot handle.
    pub size: u8,
    /// IN or INS, as opposed to OUT and OUTS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub repeated: bool,
}

impl IoAccess {
    /// Decodes an exit qualification.
    #[inline]
    #[must_use]
    pub const fn from_qualification(raw: u64) -> IoAccess {
        IoAccess {
            port: (raw >> 16) as u16,
            size: match raw & 7 {
                1 => 2,
                3 => 4,
                _ => 1,
            },
            input: raw & 1 << 3 != 0,
            string: raw & 1 << 4 != 0,
            repeated: raw & 1 << 5 != 0,
        }
    }
}

/// How a control register was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccessKind {
    /// MOV to the register.
    Write,
    /// MOV from the register.
    Read,
    /// CLTS.
    Clts,
    /// LMSW.
    Lmsw,
}

/// A control-register access (SDM table "Exit Qualification for Control-Register Accesses").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrAccess {
    /// Number of the control register (0 for CLTS and LMSW).
    pub register: u8,
    /// What was done.
    pub kind: CrAccessKind,
    /// Number of the general-purpose register of a MOV, in the order RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: u8,
    /// Source of LMSW.
    pub lmsw_source: u16,
}

impl CrAccess {
    /// Decodes an exit qualification.
    #[inline]
    #[must_use]
    pub const fn from_qualification(raw: u64) -> CrAccess {
        CrAccess {
            register: (raw & 0xF) as u8,
            kind: match raw >> 4 & 3 {
                0 => CrAccessKind::Write,
                1 => CrAccessKind::Read,
                2 => CrAccessKind::Clts,
                _ => CrAccessKind::Lmsw,
            },
            gpr: (raw >> 8 & 0xF) as u8,
            lmsw_source: (raw >> 16) as u16,
        }
    }
}

/// An EPT violation (SDM table "Exit Qualification for EPT Violations").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation(pub u64);

impl EptViolation {
    /// The access was a data read.
    #[inline]
    #[must_use]
    pub const fn read(self) -> bool {
        self.0 & 1 << 0 != 0
    }

    /// The access was a data write.
    #[inline]
    #[must_use]
    pub const fn write(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// The access was an instruction fetch.
    #[inline]
    #[must_use]
    pub const fn execute(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// The EPT allows reads there.
    #[inline]
    #[must_use]
    pub const fn was_readable(self) -> bool {
        self.0 & 1 << 3 != 0
    }

    /// The EPT allows writes there.
    #[inline]
    #[must_use]
    pub const fn was_writable(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// The EPT allows fetches there.
    #[inline]
    #[must_use]
    pub const fn was_executable(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    /// GUEST_LINEAR_ADDRESS counts.
    #[inline]
    #[must_use]
    pub const fn linear_address_valid(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    /// The access was to the translation of a linear address, not to the guest's page tables; means something only if
    /// [`EptViolation::linear_address_valid`].
    #[inline]
    #[must_use]
    pub const fn is_translated_access(self) -> bool {
        self.0 & 1 << 8 != 0
    }

    /// An IRET had lifted NMI blocking before its access faulted.
    #[inline]
    #[must_use]
    pub const fn nmi_unblocking(self) -> bool {
        self.0 & 1 << 12 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_access_is_never_decoded_to_a_size_that_does_not_exist() {
        for raw in 0..=0x3F {
            assert!(matches!(IoAccess::from_qualification(raw).size, 1 | 2 | 4));
        }
        let outsd = IoAccess::from_qualification(0x03F8_0033);
        assert_eq!(
            outsd,
            IoAccess {
                port: 0x3F8,
                size: 4,
                input: false,
                string: true,
                repeated: true
            }
        );
    }

    #[test]
    fn a_mov_to_cr4_from_r12_is_told_as_such() {
        let access = CrAccess::from_qualification(0xC04);
        assert_eq!(access.register, 4);
        assert_eq!(access.kind, CrAccessKind::Write);
        assert_eq!(access.gpr, 12);
    }
}
