//! The changes: map, unmap, replace, split, merge.

use alloc::vec::Vec;

use x86_defs::ept::EptEntry;

use super::{
    ENTRIES, Ept, EptError, Flush, FrameStore, GPA_BITS, HARDWARE_BITS, HPA_BITS, MemoryType, Permissions, ROOT_LEVEL, address,
    index, is_leaf, is_present, leaf, link, span,
};
use crate::{Gpa, Hpa, PageSize};

/// Collects a table and all tables below it.
pub(super) fn collect_tables<S: FrameStore>(store: &S, table: Hpa, level: u8, found: &mut Vec<Hpa>) {
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

/// A checked range of guest-physical addresses.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    fn new(gpa: Gpa, bytes: u64) -> Result<Range, EptError> {
        let page = PageSize::Size4K.bytes();
        if bytes == 0 {
            return Err(EptError::Empty);
        }
        if !gpa.is_aligned(page) || bytes % page != 0 {
            return Err(EptError::Misaligned);
        }
        let end = gpa.get().checked_add(bytes).ok_or(EptError::OutOfRange)?;
        if end > 1 << GPA_BITS {
            return Err(EptError::OutOfRange);
        }
        Ok(Range { start: gpa.get(), end })
    }
}

/// What a range is to be mapped to.
#[derive(Clone, Copy)]
struct Target {
    range: Range,
    hpa: u64,
}

impl Target {
    fn new(gpa: Gpa, hpa: Hpa, bytes: u64, permissions: Permissions) -> Result<Target, EptError> {
        let range = Range::new(gpa, bytes)?;
        if !hpa.is_aligned(PageSize::Size4K.bytes()) {
            return Err(EptError::Misaligned);
        }
        if hpa.get().checked_add(bytes).is_none_or(|end| end > 1 << HPA_BITS) {
            return Err(EptError::OutOfRange);
        }
        if !permissions.contains(Permissions::READ) {
            return Err(EptError::BadPermissions);
        }
        Ok(Target { range, hpa: hpa.get() })
    }
}

impl Ept {
    /// The level of the largest page that fits at `gpa` and `hpa` with `left` bytes to go.
    fn best_level(&self, gpa: u64, hpa: u64, left: u64) -> u8 {
        let fits = |level: u8| (gpa | hpa) % span(level) == 0 && left >= span(level);
        if self.features.large_1g && fits(3) {
            3
        } else if self.features.large_2m && fits(2) {
            2
        } else {
            1
        }
    }

    /// Calls `action` for each page (address, level, host address) that `target` is cut into.
    fn for_each_piece(
        &self,
        target: &Target,
        mut action: impl FnMut(u64, u8, u64) -> Result<(), EptError>,
    ) -> Result<(), EptError> {
        let mut gpa = target.range.start;
        while gpa < target.range.end {
            let hpa = target.hpa + (gpa - target.range.start);
            let level = self.best_level(gpa, hpa, target.range.end - gpa);
            action(gpa, level, hpa)?;
            gpa += span(level);
        }
        Ok(())
    }

    /// The table at `level` on the way to `gpa`. Missing tables are made and linked; a larger page on the way is split.
    fn table_at<S: FrameStore>(&self, store: &S, gpa: u64, level: u8, flush: &mut Flush) -> Result<Hpa, EptError> {
        let mut table = self.root();
        let mut at = ROOT_LEVEL;
        while at > level {
            let slot = index(gpa, at);
            let entry = store.load(table, slot);
            table = if !is_present(entry) {
                let below = store.allocate_table().ok_or(EptError::OutOfTables)?;
                match store.compare_exchange(table, slot, entry, link(below)) {
                    Ok(_) => below,
                    Err(_) => unreachable_change(store, below)?,
                }
            } else if is_leaf(entry, at) {
                split(store, table, slot, at, flush)?
            } else {
                Hpa::new(address(entry))
            };
            at -= 1;
        }
        Ok(table)
    }

    /// Maps a range that is not mapped, with the largest pages that fit.
    ///
    /// # Errors
    /// [`EptError`]; every translation is then what it was.
    pub fn map<S: FrameStore>(
        &self,
        store: &S,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<Flush, EptError> {
        let target = Target::new(gpa, hpa, bytes, permissions)?;
        self.check_all(store, target.range, |entry| !is_present(entry), |gpa| EptError::AlreadyMapped { gpa })?;
        let mut flush = Flush::none();
        self.for_each_piece(&target, |gpa, level, _| self.table_at(store, gpa, level, &mut flush).map(drop))?;
        let done = self.for_each_piece(&target, |gpa, level, hpa| {
            let table = self.table_at(store, gpa, level, &mut flush)?;
            let slot = index(gpa, level);
            let new = leaf(hpa, level, permissions, memory_type);
            let mut old = store.load(table, slot);
            while let Err(now) = store.compare_exchange(table, slot, old, new) {
                old = now;
            }
            // A table may stand here that an earlier unmap left empty; nothing can be cached from it but the walk to it.
            retire(store, old, level, &mut flush);
            Ok(())
        });
        debug_assert!(done.is_ok(), "all tables were made before");
        Ok(flush)
    }

    /// Replaces what is behind a range, every page of which is mapped. Each page goes from old to new by one compare-exchange
    /// and is never absent in between.
    ///
    /// # Errors
    /// [`EptError`]; every translation is then what it was.
    pub fn replace<S: FrameStore>(
        &self,
        store: &S,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<Flush, EptError> {
        let target = Target::new(gpa, hpa, bytes, permissions)?;
        self.check_all(store, target.range, is_present, |gpa| EptError::NotMapped { gpa })?;
        let mut flush = Flush::none();
        let prepared = self.for_each_piece(&target, |gpa, level, _| self.table_at(store, gpa, level, &mut flush).map(drop));
        if let Err(error) = prepared {
            // Splits made so far changed no translation; that is all that a CPU could have cached of them.
            return Err(error);
        }
        let done = self.for_each_piece(&target, |gpa, level, hpa| {
            let table = self.table_at(store, gpa, level, &mut flush)?;
            let slot = index(gpa, level);
            let new = leaf(hpa, level, permissions, memory_type);
            let mut old = store.load(table, slot);
            while let Err(now) = store.compare_exchange(table, slot, old, new) {
                old = now;
            }
            retire(store, old, level, &mut flush);
            flush.invalidate = true;
            Ok(())
        });
        debug_assert!(done.is_ok(), "all tables were made before");
        Ok(flush)
    }

    /// Takes a range away. Pages of it that are not mapped are no error. Larger pages at its edges are split.
    ///
    /// # Errors
    /// [`EptError`]; every translation is then what it was.
    pub fn unmap<S: FrameStore>(&self, store: &S, gpa: Gpa, bytes: u64) -> Result<Flush, EptError> {
        let range = Range::new(gpa, bytes)?;
        let mut flush = Flush::none();
        for edge in [range.start, range.end] {
            self.split_at(store, edge, &mut flush)?;
        }
        unmap_below(store, self.root(), ROOT_LEVEL, 0, range, &mut flush);
        Ok(flush)
    }

    /// Splits the page that reaches across `edge`, if one does, until none does.
    fn split_at<S: FrameStore>(&self, store: &S, edge: u64, flush: &mut Flush) -> Result<(), EptError> {
        if edge >> GPA_BITS != 0 {
            return Ok(());
        }
        let mut table = self.root();
        for level in (2..=ROOT_LEVEL).rev() {
            let slot = index(edge, level);
            let entry = store.load(table, slot);
            if !is_present(entry) || edge % span(level) == 0 {
                return Ok(());
            }
            table = if is_leaf(entry, level) {
                split(store, table, slot, level, flush)?
            } else {
                Hpa::new(address(entry))
            };
        }
        Ok(())
    }

    /// Makes one page of 2 MiB of 512 neighbours of 4 KiB with equal attributes. Accessed and dirty bits are kept together.
    ///
    /// # Errors
    /// [`EptError::NotMergeable`], also if the CPU has no such pages or there is one already.
    pub fn merge<S: FrameStore>(&self, store: &S, gpa: Gpa) -> Result<Flush, EptError> {
        const LEVEL: u8 = 2;
        if gpa.get() >> GPA_BITS != 0 {
            return Err(EptError::OutOfRange);
        }
        let mut table = self.root();
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
        let first = store.load(below, 0);
        if !is_present(first) || address(first) % span(LEVEL) != 0 {
            return Err(EptError::NotMergeable);
        }
        let mut seen = 0;
        for page in 0..ENTRIES {
            let entry = store.load(below, page);
            seen |= entry & HARDWARE_BITS;
            if entry & !HARDWARE_BITS != (first & !HARDWARE_BITS) + page as u64 * span(1) {
                return Err(EptError::NotMergeable);
            }
        }
        let new = (first & !HARDWARE_BITS) | seen | EptEntry::LARGE.bits();
        // The CPU sets no bits in a link but "accessed", which is lost harmlessly.
        let mut current = old;
        while let Err(now) = store.compare_exchange(table, slot, current, new) {
            current = now;
        }
        let mut flush = Flush::none();
        flush.invalidate = true;
        flush.retired.push(below);
        Ok(flush)
    }

    /// Checks every page of a range, entry by entry.
    fn check_all<S: FrameStore>(
        &self,
        store: &S,
        range: Range,
        holds: impl Fn(u64) -> bool,
        error: impl Fn(Gpa) -> EptError,
    ) -> Result<(), EptError> {
        let mut gpa = range.start;
        while gpa < range.end {
            let (entry, level) = self.find(store, gpa);
            if !holds(entry) {
                return Err(error(Gpa::new(gpa)));
            }
            gpa = (gpa / span(level) + 1) * span(level);
        }
        Ok(())
    }
}

/// There is one editor at a time and the CPU changes no entry that is not present, so that this cannot happen; if it does, the
/// fresh table is not leaked.
fn unreachable_change<S: FrameStore>(store: &S, fresh: Hpa) -> Result<Hpa, EptError> {
    debug_assert!(false, "two editors of one EPT");
    store.free_table(fresh);
    Err(EptError::OutOfTables)
}

/// Puts a table of smaller pages in the place of a large page, which translates alike at every moment.
fn split<S: FrameStore>(store: &S, table: Hpa, slot: usize, level: u8, flush: &mut Flush) -> Result<Hpa, EptError> {
    let below = store.allocate_table().ok_or(EptError::OutOfTables)?;
    let mut old = store.load(table, slot);
    loop {
        let large = if level - 1 == 1 { EptEntry::LARGE.bits() } else { 0 };
        for page in 0..ENTRIES {
            let new = (old & !large) + page as u64 * span(level - 1);
            let current = store.load(below, page);
            let filled = store.compare_exchange(below, page, current, new);
            debug_assert!(filled.is_ok(), "a table that is not linked changes by itself");
        }
        // The CPU may set accessed and dirty bits between the load and here: then the copies are made again from the new value.
        match store.compare_exchange(table, slot, old, link(below)) {
            Ok(_) => break,
            Err(now) => old = now,
        }
    }
    flush.invalidate = true;
    Ok(below)
}

/// If `old`, an entry of a table at `level` that has been overwritten, was a link, all tables below it are retired.
fn retire<S: FrameStore>(store: &S, old: u64, level: u8, flush: &mut Flush) {
    if is_present(old) && !is_leaf(old, level) {
        collect_tables(store, Hpa::new(address(old)), level - 1, &mut flush.retired);
        flush.invalidate = true;
    }
}

fn unmap_below<S: FrameStore>(store: &S, table: Hpa, level: u8, base: u64, range: Range, flush: &mut Flush) {
    let first = range.start.saturating_sub(base) / span(level);
    for slot in first as usize..ENTRIES {
        let start = base + slot as u64 * span(level);
        if start >= range.end {
            return;
        }
        let mut entry = store.load(table, slot);
        if !is_present(entry) {
            continue;
        }
        if range.start <= start && start + span(level) <= range.end {
            while let Err(now) = store.compare_exchange(table, slot, entry, 0) {
                entry = now;
            }
            flush.invalidate = true;
            retire(store, entry, level, flush);
        } else if !is_leaf(entry, level) {
            unmap_below(store, Hpa::new(address(entry)), level - 1, start, range, flush);
        } else {
            debug_assert!(false, "a page that reaches across an edge was split before");
        }
    }
}
