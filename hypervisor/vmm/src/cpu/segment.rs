//! Segments: linear addresses of data accesses, with the faults that a CPU raises on the way to them.
//!
//! Source: Intel SDM Vol. 3, "Limit Checking", "Type Checking", "Segmentation in IA-32e Mode"; Vol. 2, the exceptions of "INS" and
//! "OUTS".

use x86_defs::cr::{Cr0, Rflags};
use x86_defs::interrupt::{EventInjection, EventKind, vector};

use super::CodeSize;

/// A segment register that an access can go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRegister {
    /// ES: what a string instruction writes is always here.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS: what is read is here unless a prefix says otherwise.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

impl SegmentRegister {
    /// All, in the order of their numbers in instructions.
    pub const ALL: [SegmentRegister; 6] = [
        SegmentRegister::Es,
        SegmentRegister::Cs,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ];
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base.
    pub base: u64,
    /// Limit in bytes: the last offset.
    pub limit: u32,
    /// Access rights as the VMCS holds them (SDM Vol. 3, "Guest Register State").
    pub rights: u32,
}

/// Access rights: the segment cannot be used, as after a null selector has been loaded.
pub(crate) const UNUSABLE: u32 = 1 << 16;
/// Access rights: the lowest bits of the type of a code or data segment.
const WRITABLE_OR_READABLE: u32 = 1 << 1;
const EXPANDS_DOWN: u32 = 1 << 2;
const CODE: u32 = 1 << 3;
/// Access rights: D or B.
const DEFAULT_BIG: u32 = 1 << 14;

/// How data accesses form addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addressing {
    code: CodeSize,
    /// Types of segments are looked at: neither real mode nor virtual-8086 mode.
    checks_types: bool,
}

/// The access faults: #SS(0) through SS, #GP(0) through any other segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFault {
    /// Through which.
    pub register: SegmentRegister,
}

impl SegmentFault {
    /// The exception.
    #[must_use]
    pub const fn event(self) -> EventInjection {
        EventInjection {
            vector: match self.register {
                SegmentRegister::Ss => vector::STACK_FAULT,
                _ => vector::GENERAL_PROTECTION,
            },
            kind: EventKind::HardwareException,
            error_code: Some(0),
        }
    }
}

impl Addressing {
    /// By the size of the code that accesses, CR0 and RFLAGS.
    #[must_use]
    pub const fn new(code: CodeSize, cr0: u64, rflags: u64) -> Addressing {
        Addressing {
            code,
            checks_types: cr0 & Cr0::PE.bits() != 0 && rflags & Rflags::VM.bits() == 0,
        }
    }

    /// The linear address of an access to `bytes` bytes (1 or more) at an offset in a segment. Whether the address is canonical is
    /// for the page walk to say: [`SegmentFault`] is its fault in 64-bit code, too.
    ///
    /// # Errors
    /// [`SegmentFault`] if the segment is null, too short, or not of the right type.
    pub fn linear(
        self,
        register: SegmentRegister,
        segment: &Segment,
        offset: u64,
        bytes: u64,
        writes: bool,
    ) -> Result<u64, SegmentFault> {
        if self.code == CodeSize::Bits64 {
            // Only two have a base, none a limit, a type or a null selector.
            return Ok(match register {
                SegmentRegister::Fs | SegmentRegister::Gs => segment.base.wrapping_add(offset),
                _ => offset,
            });
        }
        let offset = offset & 0xFFFF_FFFF;
        let is_allowed =
            (!self.checks_types || segment.allows(writes)) && segment.contains(offset, bytes);
        if !is_allowed {
            return Err(SegmentFault { register });
        }
        Ok(segment.base.wrapping_add(offset) & 0xFFFF_FFFF)
    }

    /// The address `bytes` further on, as far as such addresses go.
    #[must_use]
    pub const fn further(self, linear: u64, bytes: u64) -> u64 {
        let next = linear.wrapping_add(bytes);
        match self.code {
            CodeSize::Bits64 => next,
            CodeSize::Bits32 | CodeSize::Bits16 => next & 0xFFFF_FFFF,
        }
    }
}

impl Segment {
    /// Whether it can be used for that.
    const fn allows(&self, writes: bool) -> bool {
        if self.rights & UNUSABLE != 0 {
            return false;
        }
        let is_code = self.rights & CODE != 0;
        let has_right = self.rights & WRITABLE_OR_READABLE != 0;
        match (is_code, writes) {
            (true, true) => false,
            (true, false) | (false, true) => has_right,
            (false, false) => true,
        }
    }

    /// Whether all bytes of an access lie within the limit.
    const fn contains(&self, offset: u64, bytes: u64) -> bool {
        let last = offset + bytes.saturating_sub(1);
        let is_down = self.rights & (CODE | EXPANDS_DOWN) == EXPANDS_DOWN;
        if !is_down {
            return last <= self.limit as u64;
        }
        let top = if self.rights & DEFAULT_BIG != 0 {
            0xFFFF_FFFF
        } else {
            0xFFFF
        };
        offset > self.limit as u64 && last <= top
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: Segment = Segment {
        selector: 0x10,
        base: 0x1000,
        limit: 0xFFF,
        rights: 0x93,
    };
    const PROTECTED: Addressing = Addressing {
        code: CodeSize::Bits32,
        checks_types: true,
    };
    const REAL: Addressing = Addressing {
        code: CodeSize::Bits16,
        checks_types: false,
    };
    const LONG: Addressing = Addressing {
        code: CodeSize::Bits64,
        checks_types: true,
    };

    fn at(addressing: Addressing, segment: Segment, offset: u64, writes: bool) -> Option<u64> {
        addressing
            .linear(SegmentRegister::Ds, &segment, offset, 4, writes)
            .ok()
    }

    #[test]
    fn an_access_ends_within_the_limit() {
        assert_eq!(at(PROTECTED, DATA, 0xFFC, true), Some(0x1FFC));
        assert_eq!(at(PROTECTED, DATA, 0xFFD, true), None);
        assert_eq!(
            at(REAL, DATA, 0xFFD, true),
            None,
            "limits hold in real mode"
        );
        // It does not go round.
        let flat = Segment {
            limit: u32::MAX,
            ..DATA
        };
        assert_eq!(at(PROTECTED, flat, 0xFFFF_FFFD, false), None);
        assert_eq!(at(PROTECTED, flat, 0xFFFF_FFFC, false), Some(0xFFC));
    }

    #[test]
    fn a_segment_that_expands_down_begins_above_its_limit() {
        let down = Segment {
            rights: 0x97,
            ..DATA
        };
        assert_eq!(at(PROTECTED, down, 0xFFF, true), None);
        assert_eq!(at(PROTECTED, down, 0x1000, true), Some(0x2000));
        assert_eq!(at(PROTECTED, down, 0xFFFD, true), None);
        let big = Segment {
            rights: 0x4097,
            ..DATA
        };
        assert_eq!(at(PROTECTED, big, 0xFFFD, true), Some(0x1_0FFD));
    }

    #[test]
    fn types_count_in_protected_mode_only() {
        // Read-only data, executable only, executable and readable, null: whether they can be read, and written.
        for (rights, reads, writes) in [
            (0x91, true, false),
            (0x99, false, false),
            (0x9B, true, false),
            (0x93 | UNUSABLE, false, false),
            (0x93, true, true),
        ] {
            let segment = Segment { rights, ..DATA };
            assert_eq!(
                at(PROTECTED, segment, 0, false).is_some(),
                reads,
                "{rights:#x}"
            );
            assert_eq!(
                at(PROTECTED, segment, 0, true).is_some(),
                writes,
                "{rights:#x}"
            );
            assert_eq!(at(REAL, segment, 0, true), Some(0x1000));
            assert_eq!(at(LONG, segment, 0xF_0000, true), Some(0xF_0000));
        }
    }

    #[test]
    fn in_64_bit_code_only_two_segments_have_a_base() {
        let far = Segment {
            base: 0xFFFF_8000_0000_0000,
            limit: 0,
            ..DATA
        };
        let find = |register| LONG.linear(register, &far, 0x10, 8, true);
        assert_eq!(find(SegmentRegister::Fs), Ok(0xFFFF_8000_0000_0010));
        assert_eq!(find(SegmentRegister::Gs), Ok(0xFFFF_8000_0000_0010));
        for register in [
            SegmentRegister::Es,
            SegmentRegister::Cs,
            SegmentRegister::Ss,
        ] {
            assert_eq!(find(register), Ok(0x10));
        }
    }

    #[test]
    fn the_stack_has_an_exception_of_its_own() {
        for register in SegmentRegister::ALL {
            let fault = PROTECTED.linear(register, &DATA, 0x1000, 1, false);
            let vector = fault.map_err(|fault| fault.event().vector);
            let wanted = if register == SegmentRegister::Ss {
                12
            } else {
                13
            };
            assert_eq!(vector, Err(wanted));
        }
    }
}
