//! A store of EPT tables that forgets nothing.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::RefCell;

use crate::{FrameStore, Hpa};

/// What hardware makes of a guest-physical address. Decoded here from the manual's tables ("Format of an EPT ..."), on purpose
/// without the code that is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// An EPT violation: nothing is mapped.
    Absent,
    /// A page.
    Page {
        /// Host-physical address of the byte.
        hpa: u64,
        /// Read, write and execute as bits 0 to 2.
        permissions: u64,
        /// Bits 5:3 of the leaf.
        memory_type: u64,
    },
    /// An EPT misconfiguration: never right.
    Misconfigured {
        /// Level of the entry.
        level: u8,
        /// The entry.
        entry: u64,
    },
}

/// Where a walk is, and what the entries so far allow.
#[derive(Clone, Copy)]
struct Walked {
    level: u8,
    permissions: u64,
}

#[derive(Debug)]
struct Table {
    allocated_at: usize,
    freed_at: Option<usize>,
    /// For each entry its values, each with the time from which on it stood there. Time counts events of the store.
    entries: Vec<Vec<(usize, u64)>>,
}

impl Table {
    fn latest(&self, index: usize) -> u64 {
        self.entries[index].last().map_or(0, |(_, value)| *value)
    }

    /// The values of an entry in a stretch of time, each with its first moment in it.
    fn values(&self, index: usize, from: usize, to: usize) -> Vec<(usize, u64)> {
        let history = core::iter::once((0, 0))
            .chain(self.entries[index].iter().copied())
            .collect::<Vec<_>>();
        let mut seen = Vec::new();
        for (position, (since, value)) in history.iter().enumerate() {
            let until = history
                .get(position + 1)
                .map_or(usize::MAX, |(next, _)| *next);
            if *since <= to && until > from {
                seen.push(((*since).max(from), *value));
            }
        }
        seen
    }
}

#[derive(Debug, Default)]
struct Inner {
    tables: BTreeMap<u64, Table>,
    now: usize,
    live: usize,
    allocations_left: Option<usize>,
    touching: bool,
    /// Tables that an entry has pointed to, and the first table of all: those that a CPU may touch.
    linked: BTreeSet<u64>,
}

/// A [`FrameStore`] that keeps its whole history, runs out of frames when told to, and never gives a frame out twice: any use
/// of a freed table panics.
#[derive(Debug, Default)]
pub struct HistoryStore {
    inner: RefCell<Inner>,
}

/// Address of the first table. Tables are 4 KiB apart.
const FIRST_TABLE: u64 = 0x7000_0000_0000;
const ENTRIES: usize = 512;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const ACCESSED: u64 = 1 << 8;
const ACCESSED_DIRTY: u64 = 3 << 8;

impl HistoryStore {
    /// An empty store with frames without end.
    #[must_use]
    pub fn new() -> HistoryStore {
        HistoryStore::default()
    }

    /// A store whose entries a CPU touches at the worst moment: just before each first compare-exchange of a present entry,
    /// accessed and dirty are set, so that the exchange fails once.
    #[must_use]
    pub fn touching() -> HistoryStore {
        let store = HistoryStore::default();
        store.inner.borrow_mut().touching = true;
        store
    }

    /// From now on `count` allocations succeed and all others fail; `None`: none fails.
    pub fn allow_allocations(&self, count: Option<usize>) {
        self.inner.borrow_mut().allocations_left = count;
    }

    /// Tables that are allocated and not freed.
    #[must_use]
    pub fn live_tables(&self) -> usize {
        self.inner.borrow().live
    }

    /// The number of events (allocations, frees, stores) so far.
    #[must_use]
    pub fn now(&self) -> usize {
        self.inner.borrow().now
    }

    /// What a CPU sees at this moment, with nothing cached.
    ///
    /// # Panics
    /// If the walk leads out of the live tables.
    #[must_use]
    pub fn view(&self, eptp: u64, gpa: u64) -> View {
        let now = self.now();
        let views = self.possible_views(eptp, gpa, now, now);
        assert_eq!(views.len(), 1, "one moment shows one view");
        views.first().copied().unwrap_or(View::Absent)
    }

    /// Everything that a CPU can have seen at `gpa` between two moments (both included), for all interleavings: it reads the
    /// entry of each level at any time not before that of the level above.
    ///
    /// # Panics
    /// If a walk can reach a table that is not allocated at the time.
    #[must_use]
    pub fn possible_views(&self, eptp: u64, gpa: u64, from: usize, to: usize) -> BTreeSet<View> {
        assert_eq!(eptp & 0x3F, 3 << 3 | 6, "EPTP: 4 levels, write-back");
        let mut views = BTreeSet::new();
        let all = Walked {
            level: 4,
            permissions: 7,
        };
        self.walk_all(eptp & ADDRESS, all, gpa, (from, to), &mut views);
        views
    }

    fn walk_all(
        &self,
        table: u64,
        Walked { level, permissions }: Walked,
        gpa: u64,
        (from, to): (usize, usize),
        views: &mut BTreeSet<View>,
    ) {
        let inner = self.inner.borrow();
        let frame = inner
            .tables
            .get(&table)
            .unwrap_or_else(|| panic!("the walk leads to {table:#x}, no table"));
        assert!(
            frame.allocated_at <= from && frame.freed_at.is_none_or(|freed| freed > to),
            "the walk of {gpa:#x} leads at level {level} to the table {table:#x} outside its life: {} {:?}, not {from} to {to}",
            frame.allocated_at,
            frame.freed_at
        );
        let shift = 12 + 9 * (u32::from(level) - 1);
        for (since, entry) in frame.values((gpa >> shift) as usize % ENTRIES, from, to) {
            let large = entry >> 7 & 1 == 1;
            let own = entry & 7;
            let bad = Some(View::Misconfigured { level, entry });
            let view = if own == 0 {
                // Software could use the other bits; ours leaves them 0.
                if entry == 0 { Some(View::Absent) } else { bad }
            } else if own & 1 == 0 || entry >> 52 != 0 {
                bad
            } else if level == 1 || (large && level < 4) {
                let size = 1_u64 << shift;
                let memory_type = entry >> 3 & 7;
                if entry & ADDRESS & (size - 1) != 0 || !matches!(memory_type, 0 | 1 | 4 | 5 | 6) {
                    bad
                } else {
                    let hpa = (entry & ADDRESS) | (gpa & (size - 1));
                    Some(View::Page {
                        hpa,
                        permissions: permissions & own,
                        memory_type,
                    })
                }
            } else if large || entry & 0x78 != 0 || own & 5 != 5 {
                // A link that takes another permission away than that to write is legal, but not how these tables are meant to be.
                bad
            } else {
                let below = Walked {
                    level: level - 1,
                    permissions: permissions & own,
                };
                self.walk_all(entry & ADDRESS, below, gpa, (since, to), views);
                None
            };
            views.extend(view);
        }
    }

    /// Counts the tables that can be reached from the root, and checks that none is linked twice and none but the root is empty.
    ///
    /// # Panics
    /// If that does not hold.
    #[must_use]
    pub fn reachable_tables(&self, eptp: u64) -> usize {
        let mut found = BTreeSet::new();
        self.reach(eptp & ADDRESS, 4, &mut found);
        found.len()
    }

    fn reach(&self, table: u64, level: u8, found: &mut BTreeSet<u64>) {
        assert!(found.insert(table), "the table {table:#x} is linked twice");
        let mut used = 0;
        for index in 0..ENTRIES {
            let entry = self.load(Hpa::new(table), index);
            used += usize::from(entry != 0);
            if entry != 0 && level > 1 && entry >> 7 & 1 == 0 {
                self.reach(entry & ADDRESS, level - 1, found);
            }
        }
        assert!(
            used > 0 || level == 4,
            "the table {table:#x} of level {level} is empty"
        );
    }
}

impl Inner {
    fn live_table(&self, table: Hpa) -> &Table {
        match self.tables.get(&table.get()) {
            Some(found) if found.freed_at.is_none() => found,
            Some(_) => panic!("the table {table} is used after it was freed"),
            None => panic!("{table} is not a table"),
        }
    }

    fn store(&mut self, table: Hpa, index: usize, value: u64) {
        self.now += 1;
        if let Some(found) = self.tables.get_mut(&table.get()) {
            found.entries[index].push((self.now, value));
        }
        if value & 5 == 5 && value & 0xB8 == 0 {
            self.linked.insert(value & ADDRESS);
        }
    }
}

impl FrameStore for HistoryStore {
    fn load(&self, table: Hpa, index: usize) -> u64 {
        self.inner.borrow().live_table(table).latest(index)
    }

    fn compare_exchange(
        &self,
        table: Hpa,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let mut inner = self.inner.borrow_mut();
        let mut found = inner.live_table(table).latest(index);
        if inner.touching && found & 7 != 0 && inner.linked.contains(&table.get()) {
            // "Large", or a memory type: what links never have.
            let is_leaf = found & 0xB8 != 0;
            found |= if is_leaf { ACCESSED_DIRTY } else { ACCESSED };
            if found != inner.live_table(table).latest(index) {
                inner.store(table, index, found);
            }
        }
        if found != current {
            return Err(found);
        }
        inner.store(table, index, new);
        Ok(found)
    }

    fn allocate_table(&self) -> Option<Hpa> {
        let mut inner = self.inner.borrow_mut();
        if let Some(left) = &mut inner.allocations_left {
            *left = left.checked_sub(1)?;
        }
        inner.now += 1;
        inner.live += 1;
        let table = FIRST_TABLE + inner.tables.len() as u64 * 4096;
        let entries = (0..ENTRIES).map(|_| Vec::new()).collect();
        let allocated_at = inner.now;
        if inner.tables.is_empty() {
            inner.linked.insert(table);
        }
        inner.tables.insert(
            table,
            Table {
                allocated_at,
                freed_at: None,
                entries,
            },
        );
        Some(Hpa::new(table))
    }

    fn free_table(&self, table: Hpa) {
        let mut inner = self.inner.borrow_mut();
        let _: &Table = inner.live_table(table);
        inner.now += 1;
        inner.live -= 1;
        let now = inner.now;
        if let Some(found) = inner.tables.get_mut(&table.get()) {
            found.freed_at = Some(now);
        }
    }
}
