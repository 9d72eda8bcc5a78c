//! A guest's translations in every mode: paging off, 32-bit paging, PAE paging, 4-level paging.
//!
//! Source: Intel SDM Vol. 3, "32-Bit Paging", "PAE Paging", "Access Rights". PAE's four first entries are read from memory, where
//! a CPU has them in registers since CR3 was written: a guest that changes them without a write to CR3 is answered too early.

use x86_defs::cr::{Cr0, Cr4};
use x86_defs::msr::EFER_LMA;

use crate::walk::{LARGE, Levels, PRESENT, USER, WRITABLE};
use crate::{Gpa, GuestRead, Gva, PageSize, PagingState, Walk, WalkFault, walk};

/// Where a guest's data accesses may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// It writes.
    pub writes: bool,
    /// It comes from privilege level 3.
    pub is_user: bool,
    /// RFLAGS.AC: lets a supervisor at a user's pages where SMAP would not.
    pub is_smap_off: bool,
}

/// Why a data access faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFault {
    /// #PF with this error code.
    Page(u32),
    /// The address is not canonical: #GP, or #SS through the stack's segment.
    NotCanonical,
    /// The tables are not in RAM, or of a kind that no guest is offered.
    Unreadable,
}

/// Bits of a page fault's error code.
const FAULT_PRESENT: u32 = 1;
const FAULT_WRITE: u32 = 1 << 1;
const FAULT_USER: u32 = 1 << 2;
const FAULT_RESERVED: u32 = 1 << 3;

/// Finds the page that maps a linear address, in whatever mode the guest is. Without paging a page is said to have 4 KiB.
///
/// # Errors
/// [`WalkFault`].
pub fn translate(
    paging: &PagingState,
    memory: &impl GuestRead,
    linear: u64,
) -> Result<Walk, WalkFault> {
    if paging.cr0 & Cr0::PG.bits() == 0 {
        return Ok(Walk {
            gpa: Gpa::new(linear & 0xFFFF_FFFF),
            size: PageSize::Size4K,
            writable: true,
            user: true,
            executable: true,
        });
    }
    if paging.efer & EFER_LMA != 0 {
        return walk(paging, memory, Gva::new(linear));
    }
    let linear = linear & 0xFFFF_FFFF;
    if paging.cr4 & Cr4::PAE.bits() == 0 {
        return two_levels(paging, memory, linear);
    }
    let first = Gpa::new((paging.cr3 & 0xFFFF_FFE0) + (linear >> 30) * 8);
    let entry = read(memory, 3, first)?;
    if entry & PRESENT == 0 {
        return Err(WalkFault::NotPresent { level: 3 });
    }
    Levels::below_pae(entry).descend(paging, memory, Gva::new(linear))
}

fn read(memory: &impl GuestRead, level: u8, entry: Gpa) -> Result<u64, WalkFault> {
    let unreadable = WalkFault::Unreadable { level, entry };
    memory.read_u64(entry).ok_or(unreadable)
}

/// An entry of 32 bits.
fn read_half(memory: &impl GuestRead, level: u8, entry: Gpa) -> Result<u64, WalkFault> {
    let both = read(memory, level, Gpa::new(entry.get() & !7))?;
    let half = both >> (entry.get() % 8 * 8) & 0xFFFF_FFFF;
    if half & PRESENT == 0 {
        return Err(WalkFault::NotPresent { level });
    }
    Ok(half)
}

/// 32-bit paging.
fn two_levels(
    paging: &PagingState,
    memory: &impl GuestRead,
    linear: u64,
) -> Result<Walk, WalkFault> {
    const TABLE: u64 = 0xFFFF_F000;
    let at = Gpa::new((paging.cr3 & TABLE) + (linear >> 22) * 4);
    let directory = read_half(memory, 2, at)?;
    let found = |gpa: u64, rights: u64| Walk {
        gpa: Gpa::new(gpa),
        size: PageSize::Size4K,
        writable: rights & WRITABLE != 0,
        user: rights & USER != 0,
        executable: true,
    };
    if directory & LARGE != 0 && paging.cr4 & Cr4::PSE.bits() != 0 {
        // Bits 39:32 of a 4 MiB page are in bits 20:13 (PSE-36).
        if directory & 1 << 21 != 0 {
            return Err(WalkFault::Reserved { level: 2 });
        }
        let start = directory & 0xFFC0_0000 | (directory >> 13 & 0xFF) << 32;
        return Ok(found(start | linear & 0x3F_FFFF, directory));
    }
    let at = Gpa::new((directory & TABLE) + (linear >> 12 & 0x3FF) * 4);
    let entry = read_half(memory, 1, at)?;
    let gpa = entry & TABLE | linear & 0xFFF;
    Ok(found(gpa, directory & entry))
}

/// Changes of page tables by the hypervisor, as a CPU's walk makes them.
pub trait GuestMark: GuestRead {
    /// Sets bits of the 64-bit word at `gpa`, a multiple of 8, at once; nothing where there is no RAM.
    fn set_bits(&self, gpa: Gpa, bits: u64);
}

/// Bits of an entry: it has been used, its page has been written.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// Marks the entries on the way to an address that [`access`] has found as accessed, and the last one as dirty if it is written (SDM
/// Vol. 3, "Accessed and Dirty Flags"). PAE's first entries have no such bits.
pub fn mark_accessed(paging: &PagingState, memory: &impl GuestMark, linear: u64, writes: bool) {
    if paging.cr0 & Cr0::PG.bits() == 0 {
        return;
    }
    let is_long = paging.efer & EFER_LMA != 0;
    let is_wide = is_long || paging.cr4 & Cr4::PAE.bits() != 0;
    let linear = if is_long {
        linear
    } else {
        linear & 0xFFFF_FFFF
    };
    let (bytes, bits) = if is_wide { (8, 9) } else { (4, 10) };
    let mut level = match (is_long, is_wide) {
        (true, _) => 4,
        (false, true) => 3,
        (false, false) => 2,
    };
    let mut table = match (is_long, is_wide) {
        (false, true) => paging.cr3 & 0xFFFF_FFE0,
        _ => paging.cr3 & TABLE,
    };
    loop {
        let index = linear >> (12 + bits * (level - 1)) & ((1 << bits) - 1);
        let at = table + index * bytes;
        let shift = at % 8 * 8;
        let Some(word) = memory.read_u64(Gpa::new(at & !7)) else {
            return;
        };
        let entry = if is_wide {
            word
        } else {
            word >> shift & 0xFFFF_FFFF
        };
        if entry & PRESENT == 0 {
            return;
        }
        let has_large = is_wide || paging.cr4 & Cr4::PSE.bits() != 0;
        let is_last = level == 1 || level < 4 && has_large && entry & LARGE != 0;
        let is_pdpte = is_wide && !is_long && level == 3;
        let marks = if is_last && writes {
            ACCESSED | DIRTY
        } else {
            ACCESSED
        };
        if !is_pdpte && entry & marks != marks {
            memory.set_bits(Gpa::new(at & !7), marks << shift);
        }
        if is_last && !is_pdpte {
            return;
        }
        table = entry & TABLE;
        level -= 1;
    }
}

/// Where an entry says the next table is.
const TABLE: u64 = 0x000F_FFFF_FFFF_F000;

/// Finds the byte that a data access goes to. Entries are not marked: [`mark_accessed`] does that.
///
/// # Errors
/// [`AccessFault`].
pub fn access(
    paging: &PagingState,
    memory: &impl GuestRead,
    linear: u64,
    access: Access,
) -> Result<Gpa, AccessFault> {
    let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
    let code = bit(access.writes, FAULT_WRITE) | bit(access.is_user, FAULT_USER);
    let found = translate(paging, memory, linear).map_err(|fault| match fault {
        WalkFault::NotCanonical => AccessFault::NotCanonical,
        WalkFault::NotPresent { .. } => AccessFault::Page(code),
        WalkFault::Reserved { .. } => AccessFault::Page(code | FAULT_PRESENT | FAULT_RESERVED),
        WalkFault::Unsupported | WalkFault::Unreadable { .. } => AccessFault::Unreadable,
    })?;
    let is_paging = paging.cr0 & Cr0::PG.bits() != 0;
    let is_write_protected = access.is_user || paging.cr0 & Cr0::WP.bits() != 0;
    let is_kept_out = paging.cr4 & Cr4::SMAP.bits() != 0 && !access.is_smap_off;
    let is_refused = access.is_user && !found.user
        || access.writes && !found.writable && is_write_protected
        || !access.is_user && found.user && is_kept_out;
    if is_paging && is_refused {
        return Err(AccessFault::Page(code | FAULT_PRESENT));
    }
    Ok(found.gpa)
}
