//! A guest's translations in every mode: paging off, 32-bit paging, PAE paging, 4-level paging.
//!
//! Source: Intel SDM Vol. 3, "32-Bit Paging", "PAE Paging", "Access Rights". PAE's four first entries are read from memory, where
//! a CPU has them in registers since CR3 was written: a guest that changes them without a write to CR3 is answered too early.

use core::cell::Cell;

use x86_defs::cr::{Cr0, Cr4};
use x86_defs::msr::EFER_LMA;

use crate::walk::{LARGE, Levels, PRESENT, USER, WRITABLE};
use crate::{Gpa, GuestMark, GuestRead, Gva, PageSize, PagingState, Walk, WalkFault, walk};

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

/// Finds the byte that a data access goes to. Entries are not marked as accessed or dirty.
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

/// As [`access`], and marks the entries that lead there as a CPU does: all as accessed, the last as dirty if the access writes. A
/// refused access marks nothing.
///
/// # Errors
/// [`AccessFault`].
pub fn access_and_mark(
    paging: &PagingState,
    memory: &impl GuestMark,
    linear: u64,
    wanted: Access,
) -> Result<Gpa, AccessFault> {
    let way = Way {
        memory,
        words: Cell::new([None; LEVELS]),
        count: Cell::new(0),
    };
    let found = access(paging, &way, linear, wanted)?;
    way.mark(paging, linear, wanted.writes);
    Ok(found)
}

/// The most levels.
const LEVELS: usize = 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// The words that a walk reads.
struct Way<'a, M> {
    memory: &'a M,
    words: Cell<[Option<(Gpa, u64)>; LEVELS]>,
    count: Cell<usize>,
}

impl<M: GuestRead> GuestRead for Way<'_, M> {
    fn read_u64(&self, gpa: Gpa) -> Option<u64> {
        let word = self.memory.read_u64(gpa)?;
        let mut words = self.words.get();
        *words.get_mut(self.count.get())? = Some((gpa, word));
        self.words.set(words);
        self.count.set(self.count.get() + 1);
        Some(word)
    }
}

impl<M: GuestMark> Way<'_, M> {
    fn mark(&self, paging: &PagingState, linear: u64, writes: bool) {
        let is_pae = paging.cr4 & Cr4::PAE.bits() != 0;
        let is_long = paging.efer & EFER_LMA != 0;
        let last = self.count.get().saturating_sub(1);
        for (index, (gpa, word)) in self.words.get().into_iter().flatten().enumerate() {
            // The four first entries of PAE paging have no such bits.
            if index == 0 && is_pae && !is_long {
                continue;
            }
            let dirty = if writes && index == last { DIRTY } else { 0 };
            // Two entries of 32 bits lie in a word: which of them is in the address.
            let shift = match (is_pae, index) {
                (true, _) => 0,
                (false, 0) => linear >> 22 & 1,
                (false, _) => linear >> 12 & 1,
            } * 32;
            let bits = (ACCESSED | dirty) << shift;
            if word & bits != bits {
                self.memory.set_bits(gpa, bits);
            }
        }
    }
}
