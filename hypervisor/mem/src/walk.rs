//! A guest's own page tables, walked by software as the CPU would: 4-level paging of 64-bit mode.
//!
//! Entries are read once each, from memory the guest may change meanwhile; the answer is what the CPU might have seen at some
//! moment. Source: Intel SDM Vol. 3, "4-Level Paging and 5-Level Paging".

use crate::{Gpa, Gva, PageSize};
use x86_defs::cr::{Cr0, Cr4};
use x86_defs::msr::{EFER_LMA, EFER_NXE};

/// The registers that say how a guest translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingState {
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// Reads of guest-physical memory.
pub trait GuestRead {
    /// The 64-bit word at `gpa`, a multiple of 8; `None` where there is no readable RAM.
    fn read_u64(&self, gpa: Gpa) -> Option<u64>;

    /// The words from `gpa` on, a multiple of 8, none of them beyond its page; each is read once. `None` where there is no readable RAM.
    fn read_words(&self, gpa: Gpa, words: &mut [u64]) -> Option<()> {
        for (word, at) in words.iter_mut().zip((gpa.get()..).step_by(8)) {
            *word = self.read_u64(Gpa::new(at))?;
        }
        Some(())
    }
}

/// Guest-physical memory in which entries of page tables are marked.
pub trait GuestMark: GuestRead {
    /// Sets bits of the 64-bit word at `gpa`, a multiple of 8, as one atomic access. Where no RAM is, nothing happens.
    fn set_bits(&self, gpa: Gpa, bits: u64);
}

/// A page that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Guest-physical address of the very byte that was asked for.
    pub gpa: Gpa,
    /// Size of the guest's page.
    pub size: PageSize,
    /// All levels allow writes.
    pub writable: bool,
    /// All levels allow user accesses.
    pub user: bool,
    /// No level forbids execution.
    pub executable: bool,
}

/// Why no page was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkFault {
    /// The address is not canonical.
    NotCanonical,
    /// The guest is not in 64-bit mode with 4-level paging.
    Unsupported,
    /// The entry at this level (4 to 1) is not present.
    NotPresent {
        /// Level.
        level: u8,
    },
    /// The entry at this level has a reserved bit set.
    Reserved {
        /// Level.
        level: u8,
    },
    /// The table at this level does not lie in readable RAM.
    Unreadable {
        /// Level.
        level: u8,
        /// Address of the entry.
        entry: Gpa,
    },
}

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// The PAT bit of a large page, inside its address field.
const LARGE_PAT: u64 = 1 << 12;

/// Finds the page that maps `va`.
///
/// # Errors
/// [`WalkFault`].
pub fn walk(paging: &PagingState, memory: &impl GuestRead, va: Gva) -> Result<Walk, WalkFault> {
    check(paging, va)?;
    Levels::all(paging).descend(paging, memory, va)
}

/// Most entries of a last table that [`walk_block`] reads at once.
const BLOCK: usize = 64;

/// Walks on from `va` as far as one large page or one block of a last table reaches, but for `pages` pages at most, and tells `found` of each
/// stretch: its first page's address, its number of pages, whether it is writable. The number of pages altogether, at least 1.
///
/// It finds what [`walk`] would page by page; upper levels are read once for all of the block.
///
/// # Errors
/// The [`WalkFault`] of the first page that has one, after `found` was told of those before it.
#[inline]
pub fn walk_block(
    paging: &PagingState,
    memory: &impl GuestRead,
    va: Gva,
    pages: u64,
    mut found: impl FnMut(Gpa, u64, bool),
) -> Result<u64, WalkFault> {
    check(paging, va)?;
    let (table, above) = match Levels::all(paging).descend_to_last(paging, memory, va)? {
        Last::Page(page) => {
            let inside = va.get() & (page.size.bytes() - 1);
            let pages = pages.min((page.size.bytes() - inside) / PageSize::Size4K.bytes());
            found(page.gpa, pages, page.writable);
            return Ok(pages);
        }
        Last::Table(table, above) => (table, above),
    };
    let first = va.get() >> 12 & 511;
    let count = pages.min(512 - first).min(BLOCK as u64);
    let mut entries = [0; BLOCK];
    let entries = entries.get_mut(..count as usize).unwrap_or_default();
    let at = Gpa::new(table + first * 8);
    memory
        .read_words(at, entries)
        .ok_or(WalkFault::Unreadable {
            level: 1,
            entry: at,
        })?;
    for entry in entries {
        check_entry(paging, *entry, 1)?;
        let is_writable = above.writable && *entry & WRITABLE != 0;
        found(Gpa::new(*entry & ADDRESS), 1, is_writable);
    }
    Ok(count)
}

/// Whether this module knows the guest's mode, and the address is one.
#[inline]
fn check(paging: &PagingState, va: Gva) -> Result<(), WalkFault> {
    let is_on = |register: u64, bit: u64| register & bit != 0;
    if !is_on(paging.cr0, Cr0::PG.bits())
        || !is_on(paging.cr4, Cr4::PAE.bits())
        || is_on(paging.cr4, Cr4::LA57.bits())
        || !is_on(paging.efer, EFER_LMA)
    {
        return Err(WalkFault::Unsupported);
    }
    if va.is_canonical() {
        Ok(())
    } else {
        Err(WalkFault::NotCanonical)
    }
}

/// What holds for an entry of every level.
#[inline]
fn check_entry(paging: &PagingState, entry: u64, level: u8) -> Result<(), WalkFault> {
    if entry & PRESENT == 0 {
        return Err(WalkFault::NotPresent { level });
    }
    if entry & NO_EXECUTE != 0 && paging.efer & EFER_NXE == 0 {
        return Err(WalkFault::Reserved { level });
    }
    Ok(())
}

/// Tables yet to be gone through.
pub(crate) struct Levels {
    table: u64,
    level: u8,
}

/// Where the way down to the last level ends.
enum Last {
    /// In a large page.
    Page(Walk),
    /// In a table of small pages, with what the levels above allow.
    Table(u64, Walk),
}

impl Levels {
    fn all(paging: &PagingState) -> Levels {
        Levels {
            table: paging.cr3 & ADDRESS,
            level: 4,
        }
    }

    /// Those that one of PAE's four first entries leads to.
    pub(crate) fn below_pae(entry: u64) -> Levels {
        Levels {
            table: entry & ADDRESS,
            level: 2,
        }
    }

    pub(crate) fn descend(
        self,
        paging: &PagingState,
        memory: &impl GuestRead,
        va: Gva,
    ) -> Result<Walk, WalkFault> {
        let (table, mut found) = match self.descend_to_last(paging, memory, va)? {
            Last::Page(page) => return Ok(page),
            Last::Table(table, above) => (table, above),
        };
        let entry = read_entry(paging, memory, table, 1, va)?;
        found.restrict(entry);
        found.gpa = Gpa::new((entry & ADDRESS) | (va.get() & 0xFFF));
        Ok(found)
    }

    fn descend_to_last(
        self,
        paging: &PagingState,
        memory: &impl GuestRead,
        va: Gva,
    ) -> Result<Last, WalkFault> {
        let mut found = Walk {
            gpa: Gpa::new(0),
            size: PageSize::Size4K,
            writable: true,
            user: true,
            executable: true,
        };
        let Levels {
            mut table,
            mut level,
        } = self;
        while level > 1 {
            let entry = read_entry(paging, memory, table, level, va)?;
            found.restrict(entry);
            if entry & LARGE != 0 {
                if level == 4 {
                    return Err(WalkFault::Reserved { level });
                }
                let bytes = 1_u64 << shift(level);
                if entry & ADDRESS & (bytes - 1) & !LARGE_PAT != 0 {
                    return Err(WalkFault::Reserved { level });
                }
                found.size = if level == 2 {
                    PageSize::Size2M
                } else {
                    PageSize::Size1G
                };
                found.gpa = Gpa::new((entry & ADDRESS & !(bytes - 1)) | (va.get() & (bytes - 1)));
                return Ok(Last::Page(found));
            }
            table = entry & ADDRESS;
            level -= 1;
        }
        Ok(Last::Table(table, found))
    }
}

impl Walk {
    /// What a further level forbids.
    fn restrict(&mut self, entry: u64) {
        self.writable &= entry & WRITABLE != 0;
        self.user &= entry & USER != 0;
        self.executable &= entry & NO_EXECUTE == 0;
    }
}

fn shift(level: u8) -> u32 {
    12 + 9 * (u32::from(level) - 1)
}

/// Reads the entry of a table that `va` leads through.
fn read_entry(
    paging: &PagingState,
    memory: &impl GuestRead,
    table: u64,
    level: u8,
    va: Gva,
) -> Result<u64, WalkFault> {
    let at = Gpa::new(table + ((va.get() >> shift(level)) & 511) * 8);
    let entry = memory
        .read_u64(at)
        .ok_or(WalkFault::Unreadable { level, entry: at })?;
    check_entry(paging, entry, level)?;
    Ok(entry)
}
