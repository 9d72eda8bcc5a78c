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
    let is_on = |register: u64, bit: u64| register & bit != 0;
    if !is_on(paging.cr0, Cr0::PG.bits())
        || !is_on(paging.cr4, Cr4::PAE.bits())
        || is_on(paging.cr4, Cr4::LA57.bits())
        || !is_on(paging.efer, EFER_LMA)
    {
        return Err(WalkFault::Unsupported);
    }
    if !va.is_canonical() {
        return Err(WalkFault::NotCanonical);
    }
    Levels {
        table: paging.cr3 & ADDRESS,
        level: 4,
    }
    .descend(paging, memory, va)
}

/// Tables yet to be gone through.
pub(crate) struct Levels {
    table: u64,
    level: u8,
}

impl Levels {
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
        let is_on = |register: u64, bit: u64| register & bit != 0;
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
        loop {
            let shift = 12 + 9 * (u32::from(level) - 1);
            let entry_address = Gpa::new(table + ((va.get() >> shift) & 511) * 8);
            let entry = memory
                .read_u64(entry_address)
                .ok_or(WalkFault::Unreadable {
                    level,
                    entry: entry_address,
                })?;
            if !is_on(entry, PRESENT) {
                return Err(WalkFault::NotPresent { level });
            }
            if is_on(entry, NO_EXECUTE) && !is_on(paging.efer, EFER_NXE) {
                return Err(WalkFault::Reserved { level });
            }
            found.writable &= is_on(entry, WRITABLE);
            found.user &= is_on(entry, USER);
            found.executable &= !is_on(entry, NO_EXECUTE);
            let large = level > 1 && is_on(entry, LARGE);
            if level == 4 && large {
                return Err(WalkFault::Reserved { level });
            }
            if level == 1 || large {
                let bytes = 1_u64 << shift;
                let low = if large {
                    ADDRESS & (bytes - 1) & !LARGE_PAT
                } else {
                    0
                };
                if entry & low != 0 {
                    return Err(WalkFault::Reserved { level });
                }
                found.size = match level {
                    1 => PageSize::Size4K,
                    2 => PageSize::Size2M,
                    _ => PageSize::Size1G,
                };
                found.gpa = Gpa::new((entry & ADDRESS & !(bytes - 1)) | (va.get() & (bytes - 1)));
                return Ok(found);
            }
            table = entry & ADDRESS;
            level -= 1;
        }
    }
}
