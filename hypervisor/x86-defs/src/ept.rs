//! Layout of extended page-table entries and of the EPT pointer.
//!
//! Source: SDM volume 3, "The Extended Page Table Mechanism (EPT)", tables "Format of an EPT ...", and "Extended-Page-Table
//! Pointer (EPTP)".

use bitflags::bitflags;

bitflags! {
    /// An EPT entry of any level. Which bits count depends on the level and on [`EptEntry::LARGE`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptEntry: u64 {
        /// Reads are allowed.
        const READ = 1 << 0;
        /// Writes are allowed.
        const WRITE = 1 << 1;
        /// Instruction fetches are allowed (of supervisor mode only, under mode-based execute control).
        const EXECUTE = 1 << 2;
        /// Bits of the memory type; leaf entries only.
        const MEMORY_TYPE = 7 << 3;
        /// The guest's PAT is ignored; leaf entries only.
        const IGNORE_PAT = 1 << 6;
        /// This entry of a page directory (2 MiB) or PDPT (1 GiB) is a leaf.
        const LARGE = 1 << 7;
        /// Set by the CPU on an access, if EPTP\[6\] is set.
        const ACCESSED = 1 << 8;
        /// Set by the CPU on a write, if EPTP\[6\] is set; leaf entries only.
        const DIRTY = 1 << 9;
        /// User-mode fetches are allowed, under mode-based execute control.
        const USER_EXECUTE = 1 << 10;
        /// Ignored by the CPU. To us: a page that VMs share on purpose, which is never copied on a write.
        const NOT_COPIED = 1 << 11;
        /// Physical address of the next table or of the page.
        const ADDRESS = 0x000F_FFFF_FFFF_F000;
        /// Violations do not become #VE.
        const SUPPRESS_VE = 1 << 63;
    }
}

impl EptEntry {
    /// Reads, writes and fetches.
    pub const READ_WRITE_EXECUTE: EptEntry = EptEntry::READ
        .union(EptEntry::WRITE)
        .union(EptEntry::EXECUTE);

    /// The entry with this raw value; bits without a meaning here are kept.
    #[inline]
    #[must_use]
    pub const fn from_raw(raw: u64) -> EptEntry {
        EptEntry::from_bits_retain(raw)
    }

    /// Whether the entry is present: any of read, write, execute.
    #[inline]
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.intersects(EptEntry::READ_WRITE_EXECUTE)
    }

    /// Physical address of the next table or page. For large pages the bits below the page's size are reserved and 0.
    #[inline]
    #[must_use]
    pub const fn address(self) -> u64 {
        self.bits() & EptEntry::ADDRESS.bits()
    }

    /// The memory type's three bits.
    #[inline]
    #[must_use]
    pub const fn memory_type(self) -> u8 {
        ((self.bits() & EptEntry::MEMORY_TYPE.bits()) >> 3) as u8
    }
}

/// Memory type "uncacheable", in an EPT leaf, an EPTP, an MTRR or the PAT.
pub const MEMORY_TYPE_UNCACHEABLE: u8 = 0;
/// Memory type "write-combining".
pub const MEMORY_TYPE_WRITE_COMBINING: u8 = 1;
/// Memory type "write-through".
pub const MEMORY_TYPE_WRITE_THROUGH: u8 = 4;
/// Memory type "write-protected".
pub const MEMORY_TYPE_WRITE_PROTECTED: u8 = 5;
/// Memory type "write-back".
pub const MEMORY_TYPE_WRITE_BACK: u8 = 6;
/// Memory type "uncached, may be overridden by MTRRs"; PAT only.
pub const MEMORY_TYPE_UNCACHED: u8 = 7;

/// Bit of the EPTP that turns accessed and dirty flags on.
pub const EPTP_ACCESSED_DIRTY: u64 = 1 << 6;
/// Bits 5:3 of the EPTP for tables of 4 levels.
pub const EPTP_WALK_4: u64 = 3 << 3;

/// The EPTP for 4-level tables, themselves write-back, at physical address `root` (4 KiB aligned, below 2^52).
#[must_use]
pub const fn eptp(root: u64, accessed_dirty: bool) -> u64 {
    let flags = if accessed_dirty {
        EPTP_ACCESSED_DIRTY
    } else {
        0
    };
    (root & EptEntry::ADDRESS.bits()) | EPTP_WALK_4 | MEMORY_TYPE_WRITE_BACK as u64 | flags
}

/// INVEPT type: one EPTP.
pub const INVEPT_SINGLE_CONTEXT: u64 = 1;
/// INVEPT type: all EPTPs.
pub const INVEPT_ALL_CONTEXTS: u64 = 2;
/// INVVPID type: one linear address of one VPID.
pub const INVVPID_INDIVIDUAL_ADDRESS: u64 = 0;
/// INVVPID type: one VPID.
pub const INVVPID_SINGLE_CONTEXT: u64 = 1;
/// INVVPID type: all VPIDs but 0.
pub const INVVPID_ALL_CONTEXTS: u64 = 2;
/// INVVPID type: one VPID, global pages kept.
pub const INVVPID_SINGLE_CONTEXT_RETAINING_GLOBALS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_gives_back_what_was_put_in() {
        let entry = EptEntry::from_raw(
            0x1234_5000
                | u64::from(MEMORY_TYPE_WRITE_BACK) << 3
                | EptEntry::EXECUTE.bits()
                | 1 << 63,
        );
        assert!(entry.is_present());
        assert_eq!(entry.address(), 0x1234_5000);
        assert_eq!(entry.memory_type(), MEMORY_TYPE_WRITE_BACK);
        assert!(!EptEntry::from_raw(0x1234_5FF8).is_present());
    }

    #[test]
    fn the_pointer_never_takes_reserved_bits_from_its_root() {
        assert_eq!(eptp(u64::MAX, true), 0x000F_FFFF_FFFF_F05E);
        assert_eq!(eptp(0x8000, false), 0x801E);
    }
}
