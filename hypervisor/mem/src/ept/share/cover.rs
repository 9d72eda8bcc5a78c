//! A group's region over pages of a VM that belongs to a family.
//!
//! What the region covers stays the VM's: it moves to a second tree of tables, which no hardware walks, and comes back from there.
//! A hold moves with its entry, so that nothing is counted anew; and since that tree is a VM's memory like the first, a fork shares
//! it in the same way ([`Ept::fork`] of both), and both end by [`Ept::release`].
//!
//! Two passes: the first makes every table on the way the VM's own and can fail; the second exchanges entries and cannot.

use x86_defs::ept::EptEntry;

use super::{ShareStore, SharedFlush, WRITE, copy_table, fill, is_copied, is_writable, update};
use crate::ept::edit::Edit;
use crate::ept::{
    ENTRIES, Ept, EptError, GPA_BITS, HARDWARE_BITS, MemoryType, Permissions, ROOT_LEVEL, Run,
    address, index, is_leaf, is_present, leaf, link, span,
};
use crate::{Gpa, Hpa};

/// What an absent table on the way to a page means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// There is no page.
    IsAnError,
    /// It is made.
    IsMade,
}

impl Ept {
    /// Puts the region that begins at `base` behind these runs, by small pages, and what stood there into `covered`. All or nothing.
    ///
    /// # Errors
    /// [`EptError::NotMapped`], [`EptError::OutOfTables`], [`EptError::TooManyHolders`], [`EptError::Misaligned`],
    /// [`EptError::OutOfRange`]; every page is then what it was. The flush is owed in both cases.
    pub fn cover<S: ShareStore>(
        &self,
        store: &S,
        covered: &Ept,
        runs: &[Run],
        base: Hpa,
    ) -> (Result<(), EptError>, SharedFlush) {
        let mut owed = SharedFlush::default();
        let prepared = prepare(store, self, covered, runs, &mut owed);
        let prepared = prepared.and_then(|()| match base.is_aligned(span(1)) {
            true => Ok(()),
            false => Err(EptError::Misaligned),
        });
        if prepared.is_ok() {
            for run in runs {
                let (shown, kept) = (self.last_table(store, run), covered.last_table(store, run));
                for page in 0..run.pages {
                    let slot = slot_of(run, page);
                    let frame = base.get() + (run.first_page + page) * span(1);
                    let region = leaf(frame, 1, Permissions::all(), MemoryType::WriteBack)
                        | EptEntry::NOT_COPIED.bits();
                    // First where it is kept, so that it is never nowhere.
                    fill(store, kept, slot, store.load(shown, slot) & !HARDWARE_BITS);
                    update(store, shown, slot, |_| region);
                }
                owed.flush.invalidate = true;
            }
        }
        (prepared, owed)
    }

    /// Puts back what [`Ept::cover`] has moved to `covered`. All or nothing.
    ///
    /// # Errors
    /// As [`Ept::cover`].
    pub fn uncover<S: ShareStore>(
        &self,
        store: &S,
        covered: &Ept,
        runs: &[Run],
    ) -> (Result<(), EptError>, SharedFlush) {
        let mut owed = SharedFlush::default();
        let mut prepared = prepare(store, self, covered, runs, &mut owed);
        for run in runs.iter().filter(|_| prepared.is_ok()) {
            let kept = covered.last_table(store, run);
            let absent = (0..run.pages).find(|page| {
                let entry = store.load(kept, slot_of(run, *page));
                !is_present(entry)
            });
            if let Some(page) = absent {
                let gpa = Gpa::new(run.gpa.get() + page * span(1));
                prepared = Err(EptError::NotMapped { gpa });
                break;
            }
        }
        if prepared.is_ok() {
            for run in runs {
                let (shown, kept) = (self.last_table(store, run), covered.last_table(store, run));
                for page in 0..run.pages {
                    let slot = slot_of(run, page);
                    let own = store.load(kept, slot);
                    update(store, shown, slot, |_| own);
                    fill(store, kept, slot, 0);
                }
                owed.flush.invalidate = true;
            }
        }
        (prepared, owed)
    }

    /// The table of small pages around a run. After [`Ept::own_path`] only.
    fn last_table<S: ShareStore>(&self, store: &S, run: &Run) -> Hpa {
        (2..=ROOT_LEVEL).rev().fold(self.root, |table, level| {
            Hpa::new(address(store.load(table, index(run.gpa.get(), level))))
        })
    }

    /// Makes every table on the way to the small page at `gpa` this VM's own; larger pages are cut. Each page stays what it was. The
    /// last table.
    fn own_path<S: ShareStore>(
        &self,
        store: &S,
        gpa: u64,
        absent: Absent,
        owed: &mut SharedFlush,
    ) -> Result<Hpa, EptError> {
        let mut table = self.root;
        for level in (2..=ROOT_LEVEL).rev() {
            let slot = index(gpa, level);
            let entry = store.load(table, slot);
            let below = Hpa::new(address(entry));
            table = if !is_present(entry) {
                if absent == Absent::IsAnError {
                    return Err(EptError::NotMapped { gpa: Gpa::new(gpa) });
                }
                let new = store.allocate_table().ok_or(EptError::OutOfTables)?;
                fill(store, table, slot, link(new));
                new
            } else if is_leaf(entry, level) {
                let mut edit = Edit::new(store, 1)?;
                let smaller = edit.split(table, slot, level)?;
                if level == 2 && is_copied(entry) {
                    store.divide_block(below);
                }
                owed.flush.absorb(edit.finish());
                smaller
            } else if store.holders(below) > 1 {
                copy_table(store, table, slot, level, owed)?
            } else {
                if !is_writable(entry) {
                    update(store, table, slot, |entry| entry | WRITE);
                }
                below
            };
        }
        Ok(table)
    }
}

/// The first pass of both directions.
fn prepare<S: ShareStore>(
    store: &S,
    shown: &Ept,
    covered: &Ept,
    runs: &[Run],
    owed: &mut SharedFlush,
) -> Result<(), EptError> {
    for run in runs {
        let gpa = run.gpa.get();
        if !gpa.is_multiple_of(span(1)) {
            return Err(EptError::Misaligned);
        }
        let room = (ENTRIES - index(gpa, 1)) as u64;
        if gpa >> GPA_BITS != 0 || run.pages > room {
            return Err(EptError::OutOfRange);
        }
        let table = shown.own_path(store, gpa, Absent::IsAnError, owed)?;
        for page in 0..run.pages {
            if !is_present(store.load(table, slot_of(run, page))) {
                let gpa = Gpa::new(gpa + page * span(1));
                return Err(EptError::NotMapped { gpa });
            }
        }
        covered.own_path(store, gpa, Absent::IsMade, owed)?;
    }
    Ok(())
}

/// The entry of a run's page in its table of small pages.
fn slot_of(run: &Run, page: u64) -> usize {
    index(run.gpa.get(), 1) + page as usize
}
