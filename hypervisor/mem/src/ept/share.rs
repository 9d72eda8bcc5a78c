//! Memory that VMs of one family share: sub-trees of tables with several holders, copied on the first write.
//!
//! [`Ept::fork`] gives a child the parent's tables below the third level and takes the permission to write away from both links:
//! its cost depends on the number of GiB, not on the pages. Reads never fault. The first write below such a link copies what is
//! on the way to the page, one table of each level, and then the page of 4 KiB ([`Ept::make_writable`]); what has no other
//! holder any more becomes writable again without a copy.
//!
//! What holds at every moment, for hardware that walks and for software that holds the family's lock:
//! 1. A link with the permission to write leads to a table that has one holder.
//! 2. A leaf with that permission is a page that has one holder, or one that is never copied ([`EptEntry::NOT_COPIED`]: the
//!    region of a group, which its members share on purpose).
//! 3. A hold is let go only after the flush: no CPU can still read a page through it that another holder may now write.
//!
//! Pages of 1 GiB are cut into those of 2 MiB by the first fork; a page of 2 MiB is cut when one of its holders writes to it.
//!
//! Concurrency: one editor at a time in the whole family (the caller's lock). Hardware walks at any time.

mod cover;

use alloc::vec::Vec;

use x86_defs::ept::EptEntry;

use super::edit::Edit;
use super::{
    ENTRIES, Ept, EptError, Flush, FrameStore, GPA_BITS, ROOT_LEVEL, address, index, is_leaf,
    is_present, link, span,
};
use crate::{Gpa, Hpa, PageSize};

/// Where shared pages live, and who holds them. Tables and pages that were just allocated have one holder.
pub trait ShareStore: FrameStore {
    /// How many hold this table or page of 4 KiB, at least 1.
    fn holders(&self, frame: Hpa) -> u32;

    /// One more holds this table or page.
    ///
    /// # Errors
    /// [`EptError::TooManyHolders`]; nothing is changed then.
    fn hold(&self, frame: Hpa) -> Result<(), EptError>;

    /// One fewer holds this table or page. True if that was the last: the caller frees it.
    fn let_go(&self, frame: Hpa) -> bool;

    /// How many of the 512 pages of a block of 2 MiB have several holders.
    fn shared_pages(&self, block: Hpa) -> u64;

    /// One more holds this block of 2 MiB.
    ///
    /// # Errors
    /// [`EptError::TooManyHolders`]; nothing is changed then.
    fn hold_block(&self, block: Hpa) -> Result<(), EptError>;

    /// From now on each page of this block is counted for itself.
    fn divide_block(&self, block: Hpa);

    /// One fewer holds this block of 2 MiB; its pages that nobody holds any more are freed.
    fn let_go_block(&self, block: Hpa);

    /// Takes a page of 4 KiB of the family's, with any content. `None` if there is none.
    fn allocate_page(&self) -> Option<Hpa>;

    /// Copies 4 KiB.
    fn copy_page(&self, from: Hpa, to: Hpa);

    /// Gives a page of 4 KiB back.
    fn free_page(&self, page: Hpa);
}

/// What [`Ept::make_writable`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Nothing is mapped there.
    Absent,
    /// It could be written already: another CPU was faster.
    Already,
    /// Nobody else held it any more.
    Reclaimed,
    /// The page has been copied.
    Copied,
}

/// A hold that ends with the flush.
#[derive(Clone, Copy, Debug)]
enum Hold {
    Table(Hpa, u8),
    Page(Hpa),
}

/// What is owed after a change in a family: first CPUs invalidate what they cached for this VM, then holds end.
#[must_use = "CPUs may still use old translations, and holds of tables and pages wait to be let go"]
#[derive(Debug, Default)]
pub struct SharedFlush {
    flush: Flush,
    holds: Vec<Hold>,
}

impl SharedFlush {
    /// Whether CPUs must invalidate what they cached for this VM.
    #[must_use]
    pub fn needs_invalidation(&self) -> bool {
        self.flush.needs_invalidation()
    }

    /// Declares that every CPU that may have cached old translations of this VM has invalidated them since, and ends what waited
    /// for that.
    pub fn complete<S: ShareStore>(mut self, store: &S) {
        core::mem::take(&mut self.flush).complete(store);
        for hold in self.holds.drain(..) {
            match hold {
                Hold::Page(page) => let_go_page(store, page),
                Hold::Table(table, level) => {
                    let mut release = Release::of(store, table, level);
                    while !release.step(store, usize::MAX) {}
                }
            }
        }
    }
}

impl Drop for SharedFlush {
    fn drop(&mut self) {
        #[cfg(any(test, feature = "test-support"))]
        if std::thread::panicking() {
            return;
        }
        debug_assert!(
            self.holds.is_empty(),
            "a flush with holds was dropped instead of completed"
        );
    }
}

/// Pages of a VM by who else holds them, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Held by this VM alone.
    pub private_bytes: u64,
    /// Held by others, too.
    pub shared_bytes: u64,
}

const WRITE: u64 = EptEntry::WRITE.bits();
const NOT_COPIED: u64 = EptEntry::NOT_COPIED.bits();
/// Level of the tables whose entries are shared: each covers 1 GiB.
const SHARED_BELOW: u8 = 3;

const fn is_writable(entry: u64) -> bool {
    entry & WRITE != 0
}

const fn is_copied(entry: u64) -> bool {
    entry & NOT_COPIED == 0
}

/// Changes an entry, whatever accessed and dirty bits the CPU sets meanwhile; answers what it was.
fn update<S: FrameStore>(store: &S, table: Hpa, slot: usize, change: impl Fn(u64) -> u64) -> u64 {
    let mut old = store.load(table, slot);
    loop {
        match store.compare_exchange(table, slot, old, change(old)) {
            Ok(_) => return old,
            Err(now) => old = now,
        }
    }
}

/// Fills an entry of a table that no CPU can reach yet.
fn fill<S: FrameStore>(store: &S, table: Hpa, slot: usize, entry: u64) {
    update(store, table, slot, |_| entry);
}

fn let_go_page<S: ShareStore>(store: &S, page: Hpa) {
    if store.let_go(page) {
        store.free_page(page);
    }
}

/// A sub-tree's entries, with the address of the first byte behind each: `(table, slot, entry, guest-physical address)`.
fn slots<S: FrameStore>(
    store: &S,
    table: Hpa,
    level: u8,
    from: u64,
) -> impl Iterator<Item = (usize, u64, u64)> {
    (0..ENTRIES).filter_map(move |slot| {
        let entry = store.load(table, slot);
        is_present(entry).then(|| (slot, entry, from + slot as u64 * span(level)))
    })
}

impl Ept {
    /// Tables for a child that shares all memory with this VM, but for what lies in a GiB that `is_private` names by its first
    /// address: that is absent in the child. Both VMs can then read, and neither write, before it has said
    /// [`Ept::make_writable`]. What the parent's CPUs have cached must be gone before either runs on.
    ///
    /// # Errors
    /// [`EptError::OutOfTables`], [`EptError::TooManyHolders`]: there is no child, and each page of the parent's is what it was. The
    /// flush is owed in both cases.
    pub fn fork<S: ShareStore>(
        &self,
        store: &S,
        is_private: impl Fn(Gpa) -> bool,
    ) -> (Result<Ept, EptError>, SharedFlush) {
        let mut owed = SharedFlush::default();
        let forked = self.try_fork(store, is_private, &mut owed.flush);
        (forked, owed)
    }

    fn try_fork<S: ShareStore>(
        &self,
        store: &S,
        is_private: impl Fn(Gpa) -> bool,
        flush: &mut Flush,
    ) -> Result<Ept, EptError> {
        // What is shared: tables of the third level, and in each the entries.
        let mut shared: Vec<(usize, Hpa, Vec<usize>)> = Vec::new();
        let mut large = 0;
        for (root_slot, entry, gpa) in slots(store, self.root, ROOT_LEVEL, 0) {
            let table = Hpa::new(address(entry));
            let entries: Vec<_> = slots(store, table, SHARED_BELOW, gpa)
                .filter(|(_, _, gpa)| !is_private(Gpa::new(*gpa)))
                .collect();
            large += entries
                .iter()
                .filter(|(_, entry, _)| is_leaf(*entry, SHARED_BELOW))
                .count();
            if !entries.is_empty() {
                shared.push((
                    root_slot,
                    table,
                    entries.iter().map(|(slot, ..)| *slot).collect(),
                ));
            }
        }
        let mut edit = Edit::new(store, 1 + shared.len() + large)?;
        // First what can fail: a hold for each, taken back if one cannot be had.
        let mut held: Vec<Hpa> = Vec::new();
        for (_, table, slots) in &shared {
            for slot in slots {
                if is_leaf(store.load(*table, *slot), SHARED_BELOW) {
                    edit.split(*table, *slot, SHARED_BELOW)?;
                }
                let below = Hpa::new(address(store.load(*table, *slot)));
                if let Err(error) = store.hold(below) {
                    for table in held {
                        let was_last = store.let_go(table);
                        debug_assert!(!was_last, "the parent holds it");
                    }
                    *flush = edit.abandon();
                    return Err(error);
                }
                held.push(below);
            }
        }
        let root = edit.take_table()?;
        for (root_slot, table, slots) in &shared {
            let childs = edit.take_table()?;
            for slot in slots {
                let old = update(store, *table, *slot, |entry| entry & !WRITE);
                fill(store, childs, *slot, link(Hpa::new(address(old))) & !WRITE);
            }
            fill(store, root, *root_slot, link(childs));
        }
        *flush = edit.finish();
        flush.invalidate = true;
        Ok(Ept {
            root,
            features: self.features,
        })
    }

    /// Lets this VM write to the page of 4 KiB that holds `gpa`, or to the larger one if all of that is its own: copies what others
    /// hold, too. Every other page keeps its content, for every VM.
    ///
    /// # Errors
    /// [`EptError::OutOfTables`], [`EptError::OutOfPages`], [`EptError::TooManyHolders`], [`EptError::OutOfRange`]; each page is then
    /// what it was. The flush is owed in both cases, by this VM's CPUs only.
    pub fn make_writable<S: ShareStore>(
        &self,
        store: &S,
        gpa: Gpa,
    ) -> (Result<Write, EptError>, SharedFlush) {
        let mut owed = SharedFlush::default();
        if gpa.get() >> GPA_BITS != 0 {
            return (Err(EptError::OutOfRange), owed);
        }
        let done = self.write_on_path(store, gpa.get(), &mut owed);
        (done, owed)
    }

    fn write_on_path<S: ShareStore>(
        &self,
        store: &S,
        gpa: u64,
        owed: &mut SharedFlush,
    ) -> Result<Write, EptError> {
        let mut table = self.root;
        let mut level = ROOT_LEVEL;
        let mut widened = false;
        loop {
            let slot = index(gpa, level);
            let entry = store.load(table, slot);
            if !is_present(entry) {
                return Ok(Write::Absent);
            }
            if is_leaf(entry, level) {
                if is_writable(entry) {
                    return Ok(if widened {
                        Write::Reclaimed
                    } else {
                        Write::Already
                    });
                }
                if level > 1 && !self.own_large(store, table, slot, level, owed)? {
                    // It is a table of small pages now.
                    continue;
                }
                if level > 1 {
                    return Ok(Write::Reclaimed);
                }
                return self.own_page(store, table, slot, owed);
            }
            let below = Hpa::new(address(entry));
            if store.holders(below) > 1 {
                table = copy_table(store, table, slot, level, owed)?;
                widened = true;
            } else {
                if !is_writable(entry) {
                    update(store, table, slot, |entry| entry | WRITE);
                    widened = true;
                }
                table = below;
            }
            level -= 1;
        }
    }

    /// Makes a large page writable if all of it is this VM's alone; else cuts it and says `false`.
    fn own_large<S: ShareStore>(
        &self,
        store: &S,
        table: Hpa,
        slot: usize,
        level: u8,
        owed: &mut SharedFlush,
    ) -> Result<bool, EptError> {
        let block = Hpa::new(address(store.load(table, slot)));
        if level == 2 && store.shared_pages(block) == 0 {
            update(store, table, slot, |entry| entry | WRITE);
            return Ok(true);
        }
        let mut edit = Edit::new(store, 1)?;
        edit.split(table, slot, level)?;
        if level == 2 {
            store.divide_block(block);
        }
        owed.flush.absorb(edit.finish());
        Ok(false)
    }

    /// Makes a page of 4 KiB writable: itself if nobody else holds it, else a copy.
    fn own_page<S: ShareStore>(
        &self,
        store: &S,
        table: Hpa,
        slot: usize,
        owed: &mut SharedFlush,
    ) -> Result<Write, EptError> {
        let old = Hpa::new(address(store.load(table, slot)));
        if store.holders(old) == 1 {
            update(store, table, slot, |entry| entry | WRITE);
            return Ok(Write::Reclaimed);
        }
        let new = store.allocate_page().ok_or(EptError::OutOfPages)?;
        store.copy_page(old, new);
        update(store, table, slot, |entry| {
            entry & !EptEntry::ADDRESS.bits() | new.get() | WRITE
        });
        owed.flush.invalidate = true;
        owed.holds.push(Hold::Page(old));
        Ok(Write::Copied)
    }

    /// What this VM holds alone, and what others hold, too. Pages that are never copied are not counted.
    #[must_use]
    pub fn usage<S: ShareStore>(&self, store: &S) -> Usage {
        let mut usage = Usage::default();
        count(store, self.root, ROOT_LEVEL, false, &mut usage);
        usage
    }

    /// Begins to let go of everything that these tables hold, their root included. The handle must not be used afterwards, as with
    /// [`Ept::destroy`]. No CPU may use the tables any more, and none may have anything cached of them.
    #[must_use = "tables and pages stay held until the work is done"]
    pub fn release<S: ShareStore>(&mut self, store: &S) -> Release {
        Release::of(store, self.root, ROOT_LEVEL)
    }
}

/// Puts a table of this VM's own in the place of one with several holders; what is below has one more holder then, and can be
/// written by none of them.
fn copy_table<S: ShareStore>(
    store: &S,
    table: Hpa,
    slot: usize,
    level: u8,
    owed: &mut SharedFlush,
) -> Result<Hpa, EptError> {
    let old = Hpa::new(address(store.load(table, slot)));
    let below = level - 1;
    let new = store.allocate_table().ok_or(EptError::OutOfTables)?;
    for (index, entry, _) in slots(store, old, below, 0) {
        if let Err(error) = hold(store, entry, below) {
            for (_, entry, _) in
                slots(store, old, below, 0).take_while(|(found, ..)| *found < index)
            {
                let_go(store, entry, below);
            }
            store.free_table(new);
            return Err(error);
        }
        let kept = if is_leaf(entry, below) && !is_copied(entry) {
            entry
        } else {
            // No holder reaches it by a link with that permission: nothing is cached that a flush would have to take away.
            update(store, old, index, |entry| entry & !WRITE) & !WRITE
        };
        fill(store, new, index, kept);
    }
    update(store, table, slot, |_| link(new));
    owed.flush.invalidate = true;
    owed.holds.push(Hold::Table(old, below));
    Ok(new)
}

/// One more holds what this entry leads to.
fn hold<S: ShareStore>(store: &S, entry: u64, level: u8) -> Result<(), EptError> {
    let target = Hpa::new(address(entry));
    if !is_leaf(entry, level) || level == 1 && is_copied(entry) {
        store.hold(target)
    } else if is_copied(entry) {
        debug_assert!(level == 2, "a fork has cut pages of 1 GiB");
        store.hold_block(target)
    } else {
        Ok(())
    }
}

/// The reverse of [`hold`], while others hold it, too.
fn let_go<S: ShareStore>(store: &S, entry: u64, level: u8) {
    let target = Hpa::new(address(entry));
    if !is_leaf(entry, level) || level == 1 && is_copied(entry) {
        let was_last = store.let_go(target);
        debug_assert!(!was_last, "somebody else holds it");
    } else if is_copied(entry) {
        store.let_go_block(target);
    }
}

fn count<S: ShareStore>(store: &S, table: Hpa, level: u8, is_shared: bool, usage: &mut Usage) {
    for (_, entry, _) in slots(store, table, level, 0) {
        let target = Hpa::new(address(entry));
        if !is_leaf(entry, level) {
            let is_shared = is_shared || store.holders(target) > 1;
            count(store, target, level - 1, is_shared, usage);
            continue;
        }
        if !is_copied(entry) {
            continue;
        }
        let page = PageSize::Size4K.bytes();
        let shared = match level {
            _ if is_shared => span(level),
            1 => page * u64::from(store.holders(target) > 1),
            2 => store.shared_pages(target) * page,
            _ => 0,
        };
        usage.shared_bytes += shared;
        usage.private_bytes += span(level) - shared;
    }
}

/// Letting go of a sub-tree, in pieces.
#[must_use = "tables and pages stay held until the work is done"]
#[derive(Debug)]
pub struct Release {
    /// Tables that nobody holds any more, each with its level and its next entry.
    stack: Vec<(Hpa, u8, usize)>,
}

impl Release {
    /// Lets go of a table; if that was the last hold, of all that it leads to, by [`Release::step`].
    fn of<S: ShareStore>(store: &S, table: Hpa, level: u8) -> Release {
        let mut release = Release { stack: Vec::new() };
        release.enter(store, table, level);
        release
    }

    fn enter<S: ShareStore>(&mut self, store: &S, table: Hpa, level: u8) {
        if store.let_go(table) {
            self.stack.push((table, level, 0));
        }
    }

    /// Looks at so many entries at most. True when all is done.
    #[must_use]
    pub fn step<S: ShareStore>(&mut self, store: &S, mut entries: usize) -> bool {
        while let Some((table, level, slot)) = self.stack.last_mut() {
            if entries == 0 {
                return false;
            }
            let (table, level) = (*table, *level);
            if *slot == ENTRIES {
                self.stack.pop();
                store.free_table(table);
                continue;
            }
            let entry = store.load(table, *slot);
            *slot += 1;
            entries -= 1;
            if !is_present(entry) {
                continue;
            }
            let target = Hpa::new(address(entry));
            if !is_leaf(entry, level) {
                self.enter(store, target, level - 1);
            } else if is_copied(entry) {
                let_go_leaf(store, target, level);
            }
        }
        true
    }
}

fn let_go_leaf<S: ShareStore>(store: &S, target: Hpa, level: u8) {
    let block = PageSize::Size2M.bytes();
    match level {
        1 => let_go_page(store, target),
        2 => store.let_go_block(target),
        _ => {
            for index in 0..ENTRIES as u64 {
                store.let_go_block(Hpa::new(target.get() + index * block));
            }
        }
    }
}
