//! VMCS fields, typed by width and access.
//!
//! A [`Field`] carries its width and direction in its type, so that a 16-bit field cannot be written as a `u64` and a
//! read-only one not at all. The encoding itself is checked against both when the constant is evaluated, that is, at
//! compile time.
//!
//! Source: SDM volume 3, "Field Encoding in VMCS" (appendix B) and table "Structure of VMCS Component Encoding".

mod fields;

pub use fields::*;

use core::marker::PhantomData;

/// 16-bit fields.
#[derive(Clone, Copy, Debug)]
pub enum W16 {}
/// 32-bit fields.
#[derive(Clone, Copy, Debug)]
pub enum W32 {}
/// 64-bit fields.
#[derive(Clone, Copy, Debug)]
pub enum W64 {}
/// Fields as wide as a register: 64 bits on every CPU that Nagaya runs on.
#[derive(Clone, Copy, Debug)]
pub enum Natural {}

/// Width of a VMCS field.
pub trait Width {
    /// What the field holds.
    type Value: Copy;
    /// Bits 14:13 of the encoding of fields of this width.
    const CODE: u32;
    /// Widens a value to what VMWRITE takes.
    fn to_u64(value: Self::Value) -> u64;
    /// Narrows what VMREAD gives; the bits above the field's width are 0 by definition of VMREAD.
    fn from_u64(raw: u64) -> Self::Value;
}

macro_rules! width {
    ($marker:ident, $value:ty, $code:literal) => {
        impl Width for $marker {
            type Value = $value;
            const CODE: u32 = $code;
            #[inline]
            fn to_u64(value: $value) -> u64 {
                value.into()
            }
            #[inline]
            fn from_u64(raw: u64) -> $value {
                raw as $value
            }
        }
    };
}

width!(W16, u16, 0);
width!(W64, u64, 1);
width!(W32, u32, 2);
width!(Natural, u64, 3);

/// Fields that software may write.
#[derive(Clone, Copy, Debug)]
pub enum ReadWrite {}
/// Fields that report on an exit; VMWRITE to them fails on CPUs without IA32_VMX_MISC\[29\].
#[derive(Clone, Copy, Debug)]
pub enum ReadOnly {}

/// Direction of a VMCS field.
pub trait Access {
    /// Whether VMWRITE is allowed.
    const WRITABLE: bool;
}

impl Access for ReadWrite {
    const WRITABLE: bool = true;
}

impl Access for ReadOnly {
    const WRITABLE: bool = false;
}

/// What a field describes: bits 11:10 of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Controls of execution, entry and exit.
    Control,
    /// Information on the last exit.
    ExitInformation,
    /// State loaded on entry and saved on exit.
    Guest,
    /// State loaded on exit.
    Host,
}

/// One VMCS field of width `W` and direction `A`.
pub struct Field<W, A> {
    encoding: u32,
    name: &'static str,
    marker: PhantomData<(W, A)>,
}

impl<W, A> Clone for Field<W, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W, A> Copy for Field<W, A> {}

impl<W, A> core::fmt::Debug for Field<W, A> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({:#06x})", self.name, self.encoding)
    }
}

impl<W: Width, A: Access> Field<W, A> {
    /// The field with this encoding.
    ///
    /// # Panics
    /// At compile time when used in a constant, as all fields are: if the encoding contradicts `W` or `A`, has the
    /// "high half" bit set, or uses a reserved bit.
    #[must_use]
    pub const fn new(encoding: u32, name: &'static str) -> Self {
        assert!((encoding >> 13) & 3 == W::CODE, "width in the encoding");
        assert!(
            matches!(area_of(encoding), Area::ExitInformation) != A::WRITABLE,
            "fields of exit information are read-only, all others are not"
        );
        assert!(encoding & 1 == 0, "fields are accessed in full");
        assert!(encoding & !0x6FFE == 0, "reserved bits of the encoding");
        Field {
            encoding,
            name,
            marker: PhantomData,
        }
    }

    /// What VMREAD and VMWRITE take.
    #[inline]
    #[must_use]
    pub const fn encoding(self) -> u32 {
        self.encoding
    }

    /// Whether every CPU with VMX has the field, so that VMREAD and VMWRITE of it can only fail where no VMCS is current. Of these
    /// only fields that matter on the way of every exit are told; `false` says nothing.
    ///
    /// Source: SDM Vol. 3, appendix B, whose notes name the fields that "exist only on processors that support" something.
    #[inline]
    #[must_use]
    pub const fn is_everywhere(self) -> bool {
        matches!(
            self.encoding,
            // Exit information: reason, interruption information, instruction length, qualification.
            0x4402 | 0x4404 | 0x440C | 0x6400
            // Guest state: access rights of CS and SS, interruptibility, CR4, RIP, RFLAGS.
            | 0x4816 | 0x4818 | 0x4824 | 0x6804 | 0x681E | 0x6820
        )
    }

    /// The constant's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// What the field describes.
    #[must_use]
    pub const fn area(self) -> Area {
        area_of(self.encoding)
    }
}

/// What a field with this encoding describes.
#[must_use]
pub const fn area_of(encoding: u32) -> Area {
    match (encoding >> 10) & 3 {
        0 => Area::Control,
        1 => Area::ExitInformation,
        2 => Area::Guest,
        _ => Area::Host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_fields_share_an_encoding_or_a_name() {
        let mut all: std::vec::Vec<_> = [
            ALL_CONTROLS,
            ALL_EXIT_INFORMATION,
            ALL_GUEST_STATE,
            ALL_HOST_STATE,
        ]
        .concat();
        let count = all.len();
        all.sort_unstable();
        all.dedup_by_key(|entry| entry.0);
        assert_eq!(all.len(), count);
        all.sort_unstable_by_key(|entry| entry.1);
        all.dedup_by_key(|entry| entry.1);
        assert_eq!(all.len(), count);
    }

    #[test]
    fn each_table_holds_only_its_own_area() {
        for (table, area) in [
            (ALL_CONTROLS, Area::Control),
            (ALL_EXIT_INFORMATION, Area::ExitInformation),
            (ALL_GUEST_STATE, Area::Guest),
            (ALL_HOST_STATE, Area::Host),
        ] {
            for (encoding, name) in table {
                assert_eq!(area_of(*encoding), area, "{name}");
            }
        }
    }

    #[test]
    fn what_is_everywhere_is_what_an_exit_reads() {
        let names = [
            EXIT_REASON.is_everywhere(),
            EXIT_INTERRUPTION_INFO.is_everywhere(),
            EXIT_INSTRUCTION_LENGTH.is_everywhere(),
            EXIT_QUALIFICATION.is_everywhere(),
            GUEST_CS_ACCESS_RIGHTS.is_everywhere(),
            GUEST_SS_ACCESS_RIGHTS.is_everywhere(),
            GUEST_INTERRUPTIBILITY.is_everywhere(),
            GUEST_CR4.is_everywhere(),
            GUEST_RIP.is_everywhere(),
            GUEST_RFLAGS.is_everywhere(),
        ];
        assert_eq!(names, [true; 10]);
        // Only with "activate VMX-preemption timer", "enable EPT", "load IA32_EFER", APIC-register virtualisation.
        assert!(!PREEMPTION_TIMER_VALUE.is_everywhere());
        assert!(!GUEST_PHYSICAL_ADDRESS.is_everywhere());
        assert!(!GUEST_IA32_EFER.is_everywhere());
        assert!(!GUEST_INTERRUPT_STATUS.is_everywhere());
    }

    #[test]
    fn values_survive_widening_and_only_their_own_bits_come_back() {
        assert_eq!(W16::from_u64(W16::to_u64(0xFFFF) | 0xABCD_0000), 0xFFFF_u16);
        assert_eq!(W32::from_u64(W32::to_u64(u32::MAX) | 1 << 32), u32::MAX);
        assert_eq!(Natural::from_u64(Natural::to_u64(u64::MAX)), u64::MAX);
    }
}
