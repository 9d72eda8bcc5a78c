//! Many small replacements as one change: all of them or none, with one walk for each 2 MiB.
//!
//! As in [`super::edit`] a first pass only reads and counts, so that nothing in the second can fail.

use super::edit::Edit;
use super::range::{Range, check_target};
use super::{
    ENTRIES, Ept, EptError, Flush, FrameStore, GPA_BITS, HARDWARE_BITS, MemoryType, Permissions,
    ROOT_LEVEL, address, index, is_leaf, is_present, leaf, span,
};
use crate::{Gpa, Hpa};

/// A range of guest-physical pages and where they are to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The first page.
    pub gpa: Gpa,
    /// Where it leads; the others follow.
    pub hpa: Hpa,
    /// The length.
    pub bytes: u64,
}

/// The part of a replacement that lies in one 2 MiB piece.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    end: u64,
    hpa: u64,
}

const DIRECTORY: u8 = 2;
const PAGE: u64 = span(1);

impl Part {
    fn chunk(&self) -> u64 {
        self.start / span(DIRECTORY)
    }

    /// Whether one large page can map it.
    fn is_large(&self, ept: &Ept) -> bool {
        ept.features.large_2m
            && self.end - self.start == span(DIRECTORY)
            && self.hpa.is_multiple_of(span(DIRECTORY))
    }
}

/// Cuts replacements where 2 MiB pieces end.
fn parts(replacements: impl Iterator<Item = Replacement>) -> impl Iterator<Item = Part> {
    replacements.flat_map(|whole| {
        let (mut start, mut hpa) = (whole.gpa.get(), whole.hpa.get());
        let end = start + whole.bytes;
        core::iter::from_fn(move || {
            if start >= end {
                return None;
            }
            let boundary = (start / span(DIRECTORY) + 1) * span(DIRECTORY);
            let part = Part {
                start,
                end: boundary.min(end),
                hpa,
            };
            start = part.end;
            hpa += part.end - part.start;
            Some(part)
        })
    })
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
    /// As [`Ept::replace`] of each, in one change: all or nothing, and one obligation. Where a whole 2 MiB piece is replaced by what one
    /// large page can map, one does; larger pages are not made.
    ///
    /// # Errors
    /// [`EptError::Disordered`] unless each replacement begins behind the end of the one before it, and those of [`Ept::replace`]; every
    /// translation is then what it was.
    pub fn replace_each<S: FrameStore>(
        &self,
        store: &S,
        replacements: impl Iterator<Item = Replacement> + Clone,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<Flush, EptError> {
        check_each(replacements.clone(), permissions)?;
        let tables = self.count_tables(store, parts(replacements.clone()))?;
        let mut edit = Edit::new(store, tables)?;
        let attributes = leaf(0, 1, permissions, memory_type);
        let large_attributes = leaf(0, DIRECTORY, permissions, memory_type);
        let mut directory = (u64::MAX, self.root);
        let mut table = (u64::MAX, self.root);
        for part in parts(replacements) {
            let chunk = part.chunk();
            if table.0 != chunk {
                if directory.0 != chunk / ENTRIES as u64 {
                    directory = (
                        chunk / ENTRIES as u64,
                        self.directory(&mut edit, part.start)?,
                    );
                }
                let slot = index(part.start, DIRECTORY);
                let entry = store.load(directory.1, slot);
                if part.is_large(self) {
                    let new = part.hpa | large_attributes;
                    if entry & !HARDWARE_BITS != new {
                        edit.exchange(directory.1, slot, DIRECTORY, new);
                    }
                    continue;
                }
                let below = if is_leaf(entry, DIRECTORY) {
                    edit.split(directory.1, slot, DIRECTORY)?
                } else {
                    Hpa::new(address(entry))
                };
                table = (chunk, below);
            }
            let mut new = part.hpa | attributes;
            let first = index(part.start, 1);
            let pages = ((part.end - part.start) / PAGE) as usize;
            for slot in first..first + pages {
                edit.exchange_page(table.1, slot, new);
                new += PAGE;
            }
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

    /// Checks that all is present, and counts the tables that are needed.
    fn count_tables<S: FrameStore>(
        &self,
        store: &S,
        parts: impl Iterator<Item = Part>,
    ) -> Result<usize, EptError> {
        let mut tables = 0;
        let mut seen = (u64::MAX, Found::Large);
        // The GiB whose large page has been counted.
        let mut split_gib = u64::MAX;
        for part in parts {
            let chunk = part.chunk();
            if seen.0 != chunk {
                let (found, level) = self.find_piece(store, part.start)?;
                let gib = chunk / ENTRIES as u64;
                if level > DIRECTORY && split_gib != gib {
                    split_gib = gib;
                    tables += 1;
                }
                if matches!(found, Found::Large) && !part.is_large(self) {
                    tables += 1;
                }
                seen = (chunk, found);
            }
            if let Found::Table(table) = seen.1 {
                let first = index(part.start, 1);
                let pages = ((part.end - part.start) / PAGE) as usize;
                let absent =
                    (first..first + pages).find(|slot| !is_present(store.load(table, *slot)));
                if let Some(slot) = absent {
                    let gpa = Gpa::new(chunk * span(DIRECTORY) + slot as u64 * PAGE);
                    return Err(EptError::NotMapped { gpa });
                }
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

/// Checks what a caller names.
fn check_each(
    replacements: impl Iterator<Item = Replacement>,
    permissions: Permissions,
) -> Result<(), EptError> {
    let mut end = 0;
    for part in replacements {
        let (gpa, hpa, bytes) = (part.gpa.get(), part.hpa.get(), part.bytes);
        let is_plain = (gpa | hpa | bytes).is_multiple_of(PAGE)
            && bytes != 0
            && (gpa | hpa | bytes) >> (GPA_BITS - 1) == 0;
        if !is_plain {
            let range = Range::new(part.gpa, bytes)?;
            check_target(range, part.hpa, permissions)?;
        }
        if gpa < end {
            return Err(EptError::Disordered { gpa: part.gpa });
        }
        end = gpa + bytes;
    }
    if permissions.contains(Permissions::READ) {
        Ok(())
    } else {
        Err(EptError::BadPermissions)
    }
}
