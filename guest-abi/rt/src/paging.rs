//! This guest's own page tables: mapping virtual addresses to its RAM. RAM is identity-mapped, so that tables are reached by
//! their physical addresses. Source: Intel SDM Vol. 3, "4-Level Paging".
//!
//! Concurrency: one vCPU changes mappings at a time.

use core::arch::asm;

use crate::heap;

/// The entry is present.
pub const PRESENT: u64 = 1;
/// Writes are allowed.
pub const WRITABLE: u64 = 2;
/// User accesses are allowed.
pub const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Size of a small page.
pub const SMALL: u64 = 4096;
/// Size of a large page.
pub const BIG: u64 = 2 << 20;

fn cr3() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value & ADDRESS
}

fn flush() {
    // SAFETY: reloading CR3 only empties the TLB.
    unsafe {
        asm!("mov {t}, cr3", "mov cr3, {t}", t = out(reg) _, options(nostack, preserves_flags))
    };
}

fn slot(table: u64, va: u64, level: u32) -> *mut u64 {
    let index = (va >> (12 + 9 * (level - 1))) & 511;
    core::ptr::with_exposed_provenance_mut((table + index * 8) as usize)
}

/// The table at `level` on the way to `va`, made if missing; large pages on the way are split.
fn table_at(va: u64, level: u32) -> Option<u64> {
    let mut table = cr3();
    for at in (level + 1..=4).rev() {
        let entry = slot(table, va, at);
        // SAFETY: `table` is one of this guest's page tables, identity-mapped; nobody else edits them now.
        let value = unsafe { entry.read_volatile() };
        table = if value & PRESENT == 0 {
            let fresh = heap::take_frames(SMALL, SMALL)?;
            // SAFETY: as above.
            unsafe { entry.write_volatile(fresh | PRESENT | WRITABLE | USER) };
            fresh
        } else if value & LARGE != 0 {
            let fresh = heap::take_frames(SMALL, SMALL)?;
            let step = 1_u64 << (12 + 9 * (at - 2));
            for index in 0..512 {
                let large = if at > 2 { LARGE } else { 0 };
                let part = (value & !LARGE | large) + index * step;
                // SAFETY: `fresh` is a frame of our own.
                unsafe { slot(fresh, index * step, at - 1).write_volatile(part) };
            }
            // SAFETY: as above.
            unsafe { entry.write_volatile(fresh | PRESENT | WRITABLE | USER) };
            fresh
        } else {
            value & ADDRESS
        };
    }
    Some(table)
}

/// Sets the entry of one small page: `entry` is its raw value, 0 to unmap.
///
/// # Safety
/// The caller must not take memory away, or change it, that Rust code uses.
#[must_use]
pub unsafe fn set_page(va: u64, entry: u64) -> bool {
    let Some(table) = table_at(va, 1) else {
        return false;
    };
    // SAFETY: the table is ours; what the entry does is the caller's affair.
    unsafe { slot(table, va, 1).write_volatile(entry) };
    flush();
    true
}

/// Maps `[va, va + bytes)` to RAM from `pa`, writable, with large pages where both are aligned. `false` without memory for tables.
///
/// # Safety
/// As [`set_page`].
#[must_use]
pub unsafe fn map(va: u64, pa: u64, bytes: u64) -> bool {
    let mut done = 0;
    while done < bytes {
        let (at, to) = (va + done, pa + done);
        let (level, size, large) = if (at | to) % BIG == 0 && bytes - done >= BIG {
            (2, BIG, LARGE)
        } else {
            (1, SMALL, 0)
        };
        let Some(table) = table_at(at, level) else {
            return false;
        };
        // SAFETY: as in `set_page`.
        unsafe { slot(table, at, level).write_volatile(to | PRESENT | WRITABLE | large) };
        done += size;
    }
    flush();
    true
}

/// Takes the mappings of `[va, va + bytes)` away, large pages that lie inside as a whole. Page tables stay. `false` if a large page
/// would have to be split and there is no memory for it.
///
/// # Safety
/// As [`set_page`].
#[must_use]
pub unsafe fn unmap(va: u64, bytes: u64) -> bool {
    let mut done = 0;
    while done < bytes {
        let at = va + done;
        let Some(directory) = table_at(at, 2) else {
            return false;
        };
        // SAFETY: one of this guest's page tables, mapped one to one.
        let entry = unsafe { slot(directory, at, 2).read_volatile() };
        let whole = at.is_multiple_of(BIG) && bytes - done >= BIG;
        let (table, level, size) = if entry & LARGE != 0 && whole {
            (Some(directory), 2, BIG)
        } else {
            (table_at(at, 1), 1, SMALL)
        };
        let Some(table) = table else { return false };
        // SAFETY: as above; what becomes unmapped is the caller's affair.
        unsafe { slot(table, at, level).write_volatile(0) };
        done += size;
    }
    flush();
    true
}
