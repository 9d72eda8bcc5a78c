//! Many small replacements as one change: all of them or none, with one walk for each 2 MiB.
//!
//! As in [`super::edit`] a first pass only reads and counts, so that nothing in the second can fail.

use super::edit::{Edit, absent};
use super::{
    ENTRIES, Ept, EptError, Flush, FrameStore, GPA_BITS, HARDWARE_BITS, HPA_BITS, MemoryType,
    Permissions, ROOT_LEVEL, address, index, is_leaf, is_present, leaf, span,
};
use crate::{Gpa, Hpa};

/// Neighbouring pages inside one aligned 2 MiB piece of guest-physical memory, to be replaced by neighbours of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// First guest-physical page.
    pub gpa: Gpa,
    /// Index in the target of the page that goes there.
    pub first_page: u64,
    /// Number of pages, 1 to 512.
    pub pages: u64,
}

const DIRECTORY: u8 = 2;
const PAGE: u64 = span(1);

impl Run {
    fn start(&self) -> u64 {
        self.gpa.get()
    }

    /// One past its last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.gpa.get() + self.pages * PAGE
    }

    /// Which 2 MiB piece it lies in.
    #[inline]
    fn piece(&self) -> u64 {
        self.gpa.get() / span(DIRECTORY)
    }

    /// Where its first page leads, in a target that begins at `base`.
    #[inline]
    fn target(&self, base: Hpa) -> u64 {
        base.get() + self.first_page * PAGE
    }

    /// Whether one large page can map it.
    #[inline]
    fn is_large(&self, ept: &Ept, base: Hpa) -> bool {
        self.pages == ENTRIES as u64
            && ept.features.large_2m
            && self.target(base).is_multiple_of(span(DIRECTORY))
    }

    /// Puts `new` and what follows it into a table of small pages that nothing leads to yet; its first entry is `first`. What is the same
    /// already keeps its accessed and dirty bits.
    #[inline]
    fn put<S: FrameStore>(&self, store: &S, table: Hpa, first: u64, mut new: u64) {
        let mut old = (first & !HARDWARE_BITS) | (self.start() & (span(DIRECTORY) - PAGE));
        for slot in self.slots() {
            if old != new {
                store.store_unlinked(table, slot, new);
            }
            old += PAGE;
            new += PAGE;
        }
    }

    /// The entries of a table of small pages that it takes.
    #[inline]
    fn slots(&self) -> core::ops::Range<usize> {
        let first = index(self.gpa.get(), 1);
        first..first + self.pages as usize
    }
}

/// What the first pass finds behind a 2 MiB piece.
#[derive(Clone, Copy)]
enum Found {
    /// A large page, or a part of a still larger one.
    Large,
    /// A table of small pages.
    Table(Hpa),
}

impl Ept {
    /// As [`Ept::replace`] of each run by its pages of the target that begins at `base`, in one change: all or nothing, and one obligation.
    /// Where a whole 2 MiB piece is replaced by what one large page can map, one does; larger pages are not made.
    ///
    /// # Errors
    /// [`EptError::Disordered`] with the first run that does not begin behind the end of the one before it or that leaves its 2 MiB piece;
    /// those of [`Ept::replace`]. Every translation is then what it was.
    pub fn replace_each<S: FrameStore>(
        &self,
        store: &S,
        runs: &[Run],
        base: Hpa,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<Flush, EptError> {
        if !permissions.contains(Permissions::READ) {
            return Err(EptError::BadPermissions);
        }
        let tables = self.check_and_count(store, runs, base)?;
        let mut edit = Edit::new(store, tables)?;
        let small = leaf(0, 1, permissions, memory_type);
        let large = leaf(0, DIRECTORY, permissions, memory_type);
        let mut directory = (u64::MAX, self.root);
        let mut table = (u64::MAX, self.root);
        let mut rest = runs;
        while let [run, others @ ..] = rest {
            let piece = run.piece();
            if table.0 != piece {
                let gib = piece / ENTRIES as u64;
                if directory.0 != gib {
                    directory = (gib, self.directory(&mut edit, run.start())?);
                }
                let slot = index(run.start(), DIRECTORY);
                let entry = store.load(directory.1, slot);
                if run.is_large(self, base) {
                    let new = run.target(base) | large;
                    if entry & !HARDWARE_BITS != new {
                        edit.exchange(directory.1, slot, DIRECTORY, new);
                    }
                    rest = others;
                    continue;
                }
                if is_leaf(entry, DIRECTORY) {
                    let count = rest.partition_point(|other| other.piece() == piece);
                    let (inside, behind) = rest.split_at(count);
                    edit.split_with(directory.1, slot, DIRECTORY, |store, below, first| {
                        for run in inside {
                            run.put(store, below, first, run.target(base) | small);
                        }
                    })?;
                    rest = behind;
                    continue;
                }
                table = (piece, Hpa::new(address(entry)));
            }
            let mut new = run.target(base) | small;
            for slot in run.slots() {
                edit.exchange_page(table.1, slot, new);
                new += PAGE;
            }
            rest = others;
        }
        Ok(edit.finish())
    }

    /// The directory of the GiB around `gpa`, made of a page of 1 GiB if need be.
    fn directory<S: FrameStore>(&self, edit: &mut Edit<'_, S>, gpa: u64) -> Result<Hpa, EptError> {
        let mut table = self.root;
        for level in (DIRECTORY + 1..=ROOT_LEVEL).rev() {
            let slot = index(gpa, level);
            let entry = edit.store.load(table, slot);
            table = if is_leaf(entry, level) {
                edit.split(table, slot, level)?
            } else {
                Hpa::new(address(entry))
            };
        }
        Ok(table)
    }

    /// Checks what the caller names and that all of it is present; counts the tables that are needed.
    fn check_and_count<S: FrameStore>(
        &self,
        store: &S,
        runs: &[Run],
        base: Hpa,
    ) -> Result<usize, EptError> {
        if let Some(first) = runs.first()
            && !is_base(base)
        {
            return Err(fault_of(first, base));
        }
        let mut tables = 0;
        let mut end = 0;
        let mut seen = (u64::MAX, Found::Large);
        // The GiB whose large page has been counted.
        let mut split_gib = u64::MAX;
        for run in runs {
            check_run(run, base, end)?;
            end = run.end();
            let piece = run.piece();
            if seen.0 != piece {
                let (found, level) = self.find_piece(store, run.start())?;
                let gib = piece / ENTRIES as u64;
                if level > DIRECTORY && split_gib != gib {
                    split_gib = gib;
                    tables += 1;
                }
                if matches!(found, Found::Large) && !run.is_large(self, base) {
                    tables += 1;
                }
                seen = (piece, found);
            }
            if let Found::Table(table) = seen.1
                && let Some(slot) = absent(store, table, run.slots())
            {
                let gpa = Gpa::new(piece * span(DIRECTORY) + slot as u64 * PAGE);
                return Err(EptError::NotMapped { gpa });
            }
        }
        Ok(tables)
    }

    /// What is behind the 2 MiB piece around `gpa`, and at which level that was found.
    fn find_piece<S: FrameStore>(&self, store: &S, gpa: u64) -> Result<(Found, u8), EptError> {
        let mut table = self.root;
        let mut level = ROOT_LEVEL;
        loop {
            let entry = store.load(table, index(gpa, level));
            if !is_present(entry) {
                return Err(EptError::NotMapped { gpa: Gpa::new(gpa) });
            }
            if is_leaf(entry, level) {
                return Ok((Found::Large, level));
            }
            table = Hpa::new(address(entry));
            if level == DIRECTORY {
                return Ok((Found::Table(table), level));
            }
            level -= 1;
        }
    }
}

/// Checks a run that a caller names, behind what ends at `end`; the target's base has been checked.
#[inline(always)]
fn check_run(run: &Run, base: Hpa, end: u64) -> Result<(), EptError> {
    let start = run.start();
    // All of it at once: runs are sound, and of a scattered region there are many.
    let excess = (start % PAGE) | (start >> GPA_BITS) | (run.first_page >> (HPA_BITS - 13));
    if excess == 0 && run.pages.wrapping_sub(1) < room(start) && start >= end {
        Ok(())
    } else {
        Err(fault_of(run, base))
    }
}

/// Pages from there to the end of the 2 MiB piece.
#[inline(always)]
fn room(start: u64) -> u64 {
    ENTRIES as u64 - start / PAGE % ENTRIES as u64
}

fn is_base(base: Hpa) -> bool {
    base.is_aligned(PAGE) && base.get() >> (HPA_BITS - 1) == 0
}

/// What is wrong with a run, or with the target's base.
#[cold]
fn fault_of(run: &Run, base: Hpa) -> EptError {
    let start = run.start();
    if run.pages == 0 {
        EptError::Empty
    } else if !(start | base.get()).is_multiple_of(PAGE) {
        EptError::Misaligned
    } else if start >> GPA_BITS != 0 || run.first_page >> (HPA_BITS - 13) != 0 || !is_base(base) {
        EptError::OutOfRange
    } else {
        EptError::Disordered { gpa: run.gpa }
    }
}
