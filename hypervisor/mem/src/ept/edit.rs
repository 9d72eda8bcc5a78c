//! The changes: map, unmap, replace, split, merge.
//!
//! Each runs in two passes over the same pieces. The first only reads: it checks the range and counts the tables that the
//! second will need. These are set aside ([`Pool`]), and only then does the second pass change entries; nothing in it can fail.
//!
//! No table but the root is ever left without an entry: a range that is not mapped has no tables of its own, so that mapping it
//! always finds room for the largest pages, and owes no invalidation.

use alloc::vec::Vec;

use x86_defs::ept::EptEntry;

use super::pool::Pool;
use super::range::{Range, check_target};
use super::{
    ENTRIES, Ept, EptError, EptFeatures, Flush, FrameStore, GPA_BITS, HARDWARE_BITS, MemoryType,
    Permissions, ROOT_LEVEL, address, index, is_leaf, is_present, leaf, link, span,
};
use crate::{Gpa, Hpa};

/// What a range is to be mapped to.
#[derive(Clone, Copy)]
struct Target {
    range: Range,
    hpa: u64,
    permissions: Permissions,
    memory_type: MemoryType,
    /// Bits of the leaves that the CPU ignores.
    marks: u64,
    features: EptFeatures,
}

impl Target {
    fn hpa(&self, piece: Range) -> u64 {
        self.hpa + (piece.start - self.range.start)
    }

    /// Whether one entry at `level` can map this piece.
    fn fits(&self, piece: Range, level: u8) -> bool {
        let allowed = match level {
            1 => true,
            2 => self.features.large_2m,
            3 => self.features.large_1g,
            _ => false,
        };
        allowed && piece.is_whole(level) && self.hpa(piece).is_multiple_of(span(level))
    }

    /// The entry that maps this piece.
    fn leaf(&self, piece: Range, level: u8) -> u64 {
        leaf(self.hpa(piece), level, self.permissions, self.memory_type) | self.marks
    }

    /// Tables that this piece needs below an entry at `level` that is absent or a larger page.
    fn tables(&self, piece: Range, level: u8) -> usize {
        if self.fits(piece, level) {
            return 0;
        }
        1 + piece
            .pieces(level - 1)
            .map(|part| self.tables(part, level - 1))
            .sum::<usize>()
    }
}

/// Tables that cutting this piece out of a page at `level` needs.
fn tables_to_cut(piece: Range, level: u8) -> usize {
    if piece.is_whole(level) {
        return 0;
    }
    1 + piece
        .pieces(level - 1)
        .map(|part| tables_to_cut(part, level - 1))
        .sum::<usize>()
}

impl Ept {
    fn target(
        &self,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<Target, EptError> {
        let range = Range::new(gpa, bytes)?;
        check_target(range, hpa, permissions)?;
        Ok(Target {
            range,
            hpa: hpa.get(),
            permissions,
            memory_type,
            marks: 0,
            features: self.features,
        })
    }

    /// Maps a range that is not mapped, with the largest pages that fit. The flush owes no invalidation: CPUs cache nothing of
    /// what is absent.
    ///
    /// # Errors
    /// [`EptError::AlreadyMapped`] with the first page that is, or another [`EptError`]; every translation is then what it was.
    pub fn map<S: FrameStore>(
        &self,
        store: &S,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<Flush, EptError> {
        let target = self.target(gpa, hpa, bytes, permissions, memory_type)?;
        self.map_by(store, &target)
    }

    fn map_by<S: FrameStore>(&self, store: &S, target: &Target) -> Result<Flush, EptError> {
        let tables = plan_map(store, self.root, ROOT_LEVEL, target.range, target)?;
        let mut edit = Edit::new(store, tables)?;
        edit.map(self.root, ROOT_LEVEL, target.range, target)?;
        Ok(edit.finish())
    }

    /// As [`Ept::map`], by pages that a family's VMs do not hold and that are never copied: those that the hypervisor shows
    /// ([`super::share`]).
    ///
    /// # Errors
    /// As [`Ept::map`].
    pub fn map_apart<S: FrameStore>(
        &self,
        store: &S,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
        permissions: Permissions,
    ) -> Result<Flush, EptError> {
        let mut target = self.target(gpa, hpa, bytes, permissions, MemoryType::WriteBack)?;
        target.marks = EptEntry::NOT_COPIED.bits();
        self.map_by(store, &target)
    }

    /// Replaces what is behind a range, every page of which is mapped. Each page goes from old to new by one compare-exchange
    /// and is never absent in between. Where a larger page fits, the table below it is retired; where one is in the way, it is
    /// split.
    ///
    /// # Errors
    /// [`EptError::NotMapped`] with the first page that is not, or another [`EptError`]; every translation is then what it was.
    pub fn replace<S: FrameStore>(
        &self,
        store: &S,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<Flush, EptError> {
        let target = self.target(gpa, hpa, bytes, permissions, memory_type)?;
        self.replace_by(store, &target)
    }

    /// As [`Ept::replace`], by pages of write-back memory that VMs share on purpose and that may be read, written and executed: a
    /// write never copies them ([`super::share`]).
    ///
    /// # Errors
    /// As [`Ept::replace`].
    pub fn replace_with_region<S: FrameStore>(
        &self,
        store: &S,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
    ) -> Result<Flush, EptError> {
        let mut target = self.target(gpa, hpa, bytes, Permissions::all(), MemoryType::WriteBack)?;
        target.marks = EptEntry::NOT_COPIED.bits();
        self.replace_by(store, &target)
    }

    fn replace_by<S: FrameStore>(&self, store: &S, target: &Target) -> Result<Flush, EptError> {
        let tables = plan_replace(store, self.root, ROOT_LEVEL, target.range, target)?;
        let mut edit = Edit::new(store, tables)?;
        edit.replace(self.root, ROOT_LEVEL, target.range, target)?;
        Ok(edit.finish())
    }

    /// Takes a range away. Pages of it that are not mapped are no error. Larger pages at its edges are split. The frames that
    /// were behind it may be given to others only after the flush is complete.
    ///
    /// # Errors
    /// [`EptError`]; every translation is then what it was.
    pub fn unmap<S: FrameStore>(&self, store: &S, gpa: Gpa, bytes: u64) -> Result<Flush, EptError> {
        let range = Range::new(gpa, bytes)?;
        let tables = plan_unmap(store, self.root, ROOT_LEVEL, range);
        let mut edit = Edit::new(store, tables)?;
        edit.unmap(self.root, ROOT_LEVEL, range)?;
        Ok(edit.finish())
    }

    /// Makes 512 pages of the next smaller size of the large page that holds `gpa`; nothing to do if its page is a small one.
    /// The translation stays the same, but the flush asks for an invalidation: CPUs should not keep both sizes cached.
    ///
    /// # Errors
    /// [`EptError::NotMapped`], [`EptError::OutOfRange`], [`EptError::OutOfTables`]; nothing is changed then.
    pub fn split<S: FrameStore>(&self, store: &S, gpa: Gpa) -> Result<Flush, EptError> {
        if gpa.get() >> GPA_BITS != 0 {
            return Err(EptError::OutOfRange);
        }
        let mut table = self.root;
        for level in (2..=ROOT_LEVEL).rev() {
            let slot = index(gpa.get(), level);
            let entry = store.load(table, slot);
            if !is_present(entry) {
                return Err(EptError::NotMapped { gpa });
            }
            if is_leaf(entry, level) {
                let mut edit = Edit::new(store, 1)?;
                edit.split(table, slot, level)?;
                return Ok(edit.finish());
            }
            table = Hpa::new(address(entry));
        }
        if is_present(store.load(table, index(gpa.get(), 1))) {
            Ok(Flush::none())
        } else {
            Err(EptError::NotMapped { gpa })
        }
    }

    /// Makes one page of 2 MiB of 512 neighbours of 4 KiB with equal attributes, around `gpa`.
    ///
    /// # Errors
    /// [`EptError::NotMergeable`], also if the CPU has no such pages or there is one already.
    pub fn merge<S: FrameStore>(&self, store: &S, gpa: Gpa) -> Result<Flush, EptError> {
        const LEVEL: u8 = 2;
        if gpa.get() >> GPA_BITS != 0 {
            return Err(EptError::OutOfRange);
        }
        let mut table = self.root;
        for level in (LEVEL + 1..=ROOT_LEVEL).rev() {
            let entry = store.load(table, index(gpa.get(), level));
            if !is_present(entry) || is_leaf(entry, level) {
                return Err(EptError::NotMergeable);
            }
            table = Hpa::new(address(entry));
        }
        let slot = index(gpa.get(), LEVEL);
        let old = store.load(table, slot);
        if !self.features.large_2m || !is_present(old) || is_leaf(old, LEVEL) {
            return Err(EptError::NotMergeable);
        }
        let below = Hpa::new(address(old));
        let first = store.load(below, 0) & !HARDWARE_BITS;
        if !is_present(first) || !address(first).is_multiple_of(span(LEVEL)) {
            return Err(EptError::NotMergeable);
        }
        for page in 0..ENTRIES {
            if store.load(below, page) & !HARDWARE_BITS != first + page as u64 * span(1) {
                return Err(EptError::NotMergeable);
            }
        }
        // The CPU may set "dirty" in a small entry after it was read here and before every CPU has forgotten it. Dirty must
        // never be lost, while too much of it is harmless: the large page counts as written.
        let touched = if self.features.accessed_dirty {
            HARDWARE_BITS
        } else {
            0
        };
        let mut edit = Edit::new(store, 0)?;
        edit.exchange(table, slot, LEVEL, first | touched | EptEntry::LARGE.bits());
        Ok(edit.finish())
    }
}

/// First pass of `map`: checks that all is absent and counts the tables.
fn plan_map<S: FrameStore>(
    store: &S,
    table: Hpa,
    level: u8,
    range: Range,
    target: &Target,
) -> Result<usize, EptError> {
    let mut tables = 0;
    for piece in range.pieces(level) {
        let entry = store.load(table, index(piece.start, level));
        tables += if !is_present(entry) {
            target.tables(piece, level)
        } else if is_leaf(entry, level) {
            return Err(EptError::AlreadyMapped {
                gpa: Gpa::new(piece.start),
            });
        } else {
            plan_map(store, Hpa::new(address(entry)), level - 1, piece, target)?
        };
    }
    Ok(tables)
}

/// First pass of `replace`: checks that all is present and counts the tables.
fn plan_replace<S: FrameStore>(
    store: &S,
    table: Hpa,
    level: u8,
    range: Range,
    target: &Target,
) -> Result<usize, EptError> {
    let mut tables = 0;
    for piece in range.pieces(level) {
        let entry = store.load(table, index(piece.start, level));
        if !is_present(entry) {
            return Err(EptError::NotMapped {
                gpa: Gpa::new(piece.start),
            });
        }
        tables += if is_leaf(entry, level) {
            target.tables(piece, level)
        } else if level == 2 && target.fits(piece, level) {
            // Below what one entry will replace no part needs a table.
            let table = Hpa::new(address(entry));
            if let Some(slot) = absent(store, table, 0..ENTRIES) {
                let gpa = Gpa::new(piece.start + slot as u64 * span(1));
                return Err(EptError::NotMapped { gpa });
            }
            0
        } else {
            plan_replace(store, Hpa::new(address(entry)), level - 1, piece, target)?
        };
    }
    Ok(tables)
}

/// The first of these entries that is not present.
#[inline]
pub(super) fn absent<S: FrameStore>(
    store: &S,
    table: Hpa,
    mut slots: core::ops::Range<usize>,
) -> Option<usize> {
    slots.find(|slot| !is_present(store.load(table, *slot)))
}

/// First pass of `unmap`: counts the tables for pages that are cut.
fn plan_unmap<S: FrameStore>(store: &S, table: Hpa, level: u8, range: Range) -> usize {
    let mut tables = 0;
    for piece in range.pieces(level).filter(|piece| !piece.is_whole(level)) {
        let entry = store.load(table, index(piece.start, level));
        if is_present(entry) {
            tables += if is_leaf(entry, level) {
                tables_to_cut(piece, level)
            } else {
                plan_unmap(store, Hpa::new(address(entry)), level - 1, piece)
            };
        }
    }
    tables
}

/// The second pass of one operation: the tables it may use, and what it comes to owe. Its methods fail only if the first pass
/// set too few tables aside.
pub(super) struct Edit<'a, S: FrameStore> {
    pub(super) store: &'a S,
    pool: Pool<'a, S>,
    flush: Flush,
}

impl<'a, S: FrameStore> Edit<'a, S> {
    pub(super) fn new(store: &'a S, tables: usize) -> Result<Edit<'a, S>, EptError> {
        Ok(Edit {
            store,
            pool: Pool::reserve(store, tables)?,
            flush: Flush::none(),
        })
    }

    pub(super) fn finish(self) -> Flush {
        debug_assert!(
            self.pool.is_empty(),
            "more tables were set aside than needed"
        );
        self.flush
    }

    /// Ends an operation that goes no further: tables that were set aside go back. What was done so far stays.
    pub(super) fn abandon(self) -> Flush {
        self.flush
    }

    /// One of the tables that were set aside, all zeros.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub(super) fn take_table(&mut self) -> Result<Hpa, EptError> {
        self.pool.take()
    }

    /// Overwrites an entry, whatever accessed and dirty bits the CPU sets meanwhile. Tables that were below are retired.
    pub(super) fn exchange(&mut self, table: Hpa, slot: usize, level: u8, new: u64) {
        let mut old = self.store.load(table, slot);
        while let Err(now) = self.store.compare_exchange(table, slot, old, new) {
            debug_assert!((now ^ old) & !HARDWARE_BITS == 0, "two editors of one EPT");
            old = now;
        }
        if is_present(old) {
            self.flush.invalidate = true;
            if !is_leaf(old, level) {
                collect_tables(
                    self.store,
                    Hpa::new(address(old)),
                    level - 1,
                    &mut self.flush.retired,
                );
            }
        }
    }

    fn map(
        &mut self,
        table: Hpa,
        level: u8,
        range: Range,
        target: &Target,
    ) -> Result<(), EptError> {
        for piece in range.pieces(level) {
            let slot = index(piece.start, level);
            let entry = self.store.load(table, slot);
            if is_present(entry) {
                self.map(Hpa::new(address(entry)), level - 1, piece, target)?;
            } else if target.fits(piece, level) {
                self.exchange(table, slot, level, target.leaf(piece, level));
            } else {
                // Filled before it is linked.
                let below = self.pool.take()?;
                self.map(below, level - 1, piece, target)?;
                self.exchange(table, slot, level, link(below));
            }
        }
        Ok(())
    }

    fn replace(
        &mut self,
        table: Hpa,
        level: u8,
        range: Range,
        target: &Target,
    ) -> Result<(), EptError> {
        for piece in range.pieces(level) {
            let slot = index(piece.start, level);
            let entry = self.store.load(table, slot);
            if target.fits(piece, level) {
                let new = target.leaf(piece, level);
                // What is the same already stays, with the accessed and dirty bits it has.
                if entry & !HARDWARE_BITS != new {
                    self.exchange(table, slot, level, new);
                }
            } else {
                let below = if is_leaf(entry, level) {
                    self.split(table, slot, level)?
                } else {
                    Hpa::new(address(entry))
                };
                self.replace(below, level - 1, piece, target)?;
            }
        }
        Ok(())
    }

    fn unmap(&mut self, table: Hpa, level: u8, range: Range) -> Result<(), EptError> {
        for piece in range.pieces(level) {
            let slot = index(piece.start, level);
            let entry = self.store.load(table, slot);
            if !is_present(entry) {
                continue;
            }
            if piece.is_whole(level) {
                self.exchange(table, slot, level, 0);
            } else if is_leaf(entry, level) {
                let below = self.split(table, slot, level)?;
                self.unmap(below, level - 1, piece)?;
            } else {
                let below = Hpa::new(address(entry));
                self.unmap(below, level - 1, piece)?;
                if (0..ENTRIES).all(|slot| !is_present(self.store.load(below, slot))) {
                    self.exchange(table, slot, level, 0);
                }
            }
        }
        Ok(())
    }

    /// As `exchange` of a small page that is present, unless it is the same already: then it keeps the accessed and dirty bits that
    /// it has.
    #[inline]
    pub(super) fn exchange_page(&mut self, table: Hpa, slot: usize, new: u64) {
        let mut old = self.store.load(table, slot);
        if old & !HARDWARE_BITS == new {
            return;
        }
        self.flush.invalidate = true;
        while let Err(now) = self.store.compare_exchange(table, slot, old, new) {
            debug_assert!((now ^ old) & !HARDWARE_BITS == 0, "two editors of one EPT");
            old = now;
        }
    }

    /// Puts a table of smaller pages in the place of a large page, which translates alike at every moment.
    pub(super) fn split(&mut self, table: Hpa, slot: usize, level: u8) -> Result<Hpa, EptError> {
        self.split_with(table, slot, level, |_, _, _| {})
    }

    /// As [`Edit::split`], but the smaller pages are changed before anything leads to them: `change` gets the table, and the first of
    /// the entries that fill it. It may be called more than once.
    pub(super) fn split_with(
        &mut self,
        table: Hpa,
        slot: usize,
        level: u8,
        change: impl Fn(&S, Hpa, u64),
    ) -> Result<Hpa, EptError> {
        let below = self.pool.take()?;
        let mut old = self.store.load(table, slot);
        loop {
            // Bit 7 says "large" in a directory and is ignored in the last level: it is cleared there.
            let first = if level == 2 {
                old & !EptEntry::LARGE.bits()
            } else {
                old
            };
            self.store.fill_unlinked(below, first, span(level - 1));
            change(self.store, below, first);
            // The CPU may set accessed and dirty bits between the load and here: then the copies are made from the new value.
            match self.store.compare_exchange(table, slot, old, link(below)) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        self.flush.invalidate = true;
        Ok(below)
    }
}

/// Collects a table and all tables below it.
fn collect_tables<S: FrameStore>(store: &S, table: Hpa, level: u8, found: &mut Vec<Hpa>) {
    found.push(table);
    if level == 1 {
        return;
    }
    for slot in 0..ENTRIES {
        let entry = store.load(table, slot);
        if is_present(entry) && !is_leaf(entry, level) {
            collect_tables(store, Hpa::new(address(entry)), level - 1, found);
        }
    }
}

/// Frees a table and all tables below it.
pub(super) fn free_tables<S: FrameStore>(store: &S, table: Hpa, level: u8) {
    if level > 1 {
        for slot in 0..ENTRIES {
            let entry = store.load(table, slot);
            if is_present(entry) && !is_leaf(entry, level) {
                free_tables(store, Hpa::new(address(entry)), level - 1);
            }
        }
    }
    store.free_table(table);
}
