//! Addresses as types, so that the three spaces never mix: host-physical, guest-physical, guest-virtual.

use core::fmt;

use serde::{Deserialize, Serialize};

/// A size of pages that paging and EPT know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// Bytes of such a page.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            PageSize::Size4K => 1 << 12,
            PageSize::Size2M => 1 << 21,
            PageSize::Size1G => 1 << 30,
        }
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this value.
            #[inline]
            #[must_use]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The value.
            #[inline]
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The address `bytes` further, `None` beyond the last.
            #[inline]
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// Whether it is a multiple of `bytes`, a power of two.
            #[inline]
            #[must_use]
            pub const fn is_aligned(self, bytes: u64) -> bool {
                self.0 & (bytes - 1) == 0
            }

            /// The multiple of `bytes`, a power of two, at or below it.
            #[inline]
            #[must_use]
            pub const fn align_down(self, bytes: u64) -> Self {
                Self(self.0 & !(bytes - 1))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A host-physical address: what the memory bus sees.
    Hpa
}
address! {
    /// A guest-physical address: what a guest takes for physical, translated by its EPT.
    Gpa
}
address! {
    /// A guest-virtual address: what a guest's instructions use, translated by its page tables.
    Gva
}

impl Gva {
    /// Whether bits 63 to 47 are alike, as 4-level paging demands.
    #[inline]
    #[must_use]
    pub const fn is_canonical(self) -> bool {
        ((self.0 << 16) as i64 >> 16) as u64 == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_are_canonical_and_the_hole_is_not() {
        assert!(Gva::new(0x0000_7FFF_FFFF_FFFF).is_canonical());
        assert!(Gva::new(0xFFFF_8000_0000_0000).is_canonical());
        assert!(!Gva::new(0x0000_8000_0000_0000).is_canonical());
        assert!(!Gva::new(0xFFFF_7FFF_FFFF_FFFF).is_canonical());
    }
}
