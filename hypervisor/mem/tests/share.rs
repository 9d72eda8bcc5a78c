//! A family of VMs against a model in which each has all of its memory to itself: whatever is forked, written and ended in
//! whatever order, each VM reads what it would read then, hardware that walks at any moment sees it so, and nothing is left over.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{ALL_FEATURES, GIB, MIB2, NO_FEATURES, PAGE, RWX, WB};
use nagaya_mem::share::{ShareStore, SharedFlush, Usage, Write};
use nagaya_mem::test_support::{FamilyStore, HistoryStore, View};
use nagaya_mem::{Ept, EptError, EptFeatures, Gpa, Hpa};

/// Where the first VM's RAM is in the machine.
const RAM_HPA: u64 = 2 * GIB;
/// Where copies are made.
const COPIES: u64 = 4 * GIB;
const TOP: u64 = 5 * GIB;
/// A GiB of which each VM has its own: where devices would be.
const PRIVATE: u64 = 3 * GIB;

type Store = FamilyStore<HistoryStore>;

/// A page as some CPU may still have it cached: where, and what was in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Stale {
    vm: u32,
    gpa: u64,
    hpa: u64,
    content: u64,
}

/// A change whose flush is still owed: what the VM's CPUs may have cached since it began.
struct Pending {
    flush: SharedFlush,
    stale: BTreeSet<Stale>,
}

struct Family {
    store: Store,
    vms: BTreeMap<u32, (Ept, BTreeMap<u64, u64>)>,
    /// The moment from which each has tables.
    since: BTreeMap<u32, usize>,
    pending: Vec<Pending>,
    born: u32,
    written: u64,
}

fn root(store: HistoryStore, features: EptFeatures, bytes: u64) -> Family {
    let store = FamilyStore::new(store, COPIES, TOP);
    let ept = Ept::new(&store, features).expect("there are tables");
    let map = |gpa, hpa, bytes| {
        ept.map(&store, Gpa::new(gpa), Hpa::new(hpa), bytes, RWX, WB)
            .expect("nothing is there")
            .complete(&store);
    };
    store.take(RAM_HPA, bytes);
    map(0, RAM_HPA, bytes);
    let memory = (0..bytes)
        .step_by(PAGE as usize)
        .map(|gpa| (gpa, (RAM_HPA + gpa) / PAGE))
        .collect();
    Family {
        store,
        vms: BTreeMap::from([(0, (ept, memory))]),
        since: BTreeMap::new(),
        pending: Vec::new(),
        born: 1,
        written: 1 << 40,
    }
}

impl Family {
    fn views(&self, vm: u32, gpa: u64, from: usize) -> BTreeSet<View> {
        let (ept, _) = &self.vms[&vm];
        let now = self.store.tables.now();
        let from = from.max(self.since.get(&vm).copied().unwrap_or(0));
        self.store.tables.possible_views(ept.eptp(), gpa, from, now)
    }

    /// What CPUs of a VM can have cached of these pages since a moment, each with what is in it.
    fn cached(&self, vm: u32, pages: &BTreeSet<u64>, from: usize) -> BTreeSet<Stale> {
        let mut found = BTreeSet::new();
        for gpa in pages {
            for view in self.views(vm, *gpa, from) {
                if let View::Page { hpa, .. } = view {
                    let content = self.store.content(hpa).expect("it is somebody's page");
                    found.insert(Stale {
                        vm,
                        gpa: *gpa,
                        hpa,
                        content,
                    });
                }
            }
        }
        found
    }

    /// Looks at these pages of every VM, at every moment since `from`.
    fn check(&self, pages: &BTreeSet<u64>, from: usize) {
        let mut writable = BTreeMap::new();
        let mut readable: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for (vm, (_, memory)) in &self.vms {
            for gpa in pages {
                let views = self.views(*vm, *gpa, from);
                for view in views {
                    let View::Page {
                        hpa, permissions, ..
                    } = view
                    else {
                        panic!("VM {vm} sees {view:?} at {gpa:#x}");
                    };
                    assert_eq!(
                        self.store.content(hpa),
                        memory.get(gpa).copied(),
                        "VM {vm} reads {gpa:#x}"
                    );
                    readable.entry(hpa).or_default().insert(*vm);
                    if permissions & 2 != 0 {
                        writable.insert(hpa, *vm);
                    }
                }
            }
        }
        for stale in self.pending.iter().flat_map(|pending| &pending.stale) {
            assert_eq!(
                self.store.content(stale.hpa),
                Some(stale.content),
                "{stale:?} was changed before the flush"
            );
            readable.entry(stale.hpa).or_default().insert(stale.vm);
        }
        for (hpa, writer) in writable {
            let readers = &readable[&hpa];
            assert_eq!(
                readers,
                &BTreeSet::from([writer]),
                "VM {writer} may write {hpa:#x}, which others see"
            );
        }
    }

    /// A write by a guest: each fault is answered until the page can be written. The flush of the fault that gave it is left to be
    /// done later; until then other CPUs of the VM may still read the old page.
    fn write(&mut self, vm: u32, gpa: u64) -> Result<(), EptError> {
        let pages = BTreeSet::from([gpa, gpa ^ PAGE, gpa ^ MIB2]);
        let from = self.store.tables.now();
        let (ept, _) = &self.vms[&vm];
        let (done, flush) = ept.make_writable(&self.store, Gpa::new(gpa + 8));
        if done.is_ok() {
            let translation = ept
                .translate(&self.store, Gpa::new(gpa))
                .expect("it is mapped");
            assert_eq!(translation.permissions, RWX);
        }
        let mut stale = self.cached(vm, &pages, from);
        self.check(&pages, from);
        let outcome = match done {
            Ok(Write::Absent) => panic!("RAM is there"),
            Ok(_) => {
                let (ept, memory) = self.vms.get_mut(&vm).expect("it lives");
                let at = ept
                    .translate(&self.store, Gpa::new(gpa))
                    .expect("it is mapped")
                    .hpa
                    .get();
                self.written += 1;
                self.store.write(at, self.written);
                memory.insert(gpa, self.written);
                // The page that was written is the VM's own, before and after.
                stale.retain(|seen| seen.hpa != at);
                Ok(())
            }
            Err(error) => Err(error),
        };
        for pending in &mut self.pending {
            pending.stale.retain(|seen| {
                !(seen.vm == vm && seen.gpa == gpa && self.store.holders(Hpa::new(seen.hpa)) == 1)
            });
        }
        self.pending.push(Pending { flush, stale });
        self.check(&pages, self.store.tables.now());
        outcome
    }

    fn fork(&mut self, parent: u32) -> Result<u32, EptError> {
        let (ept, memory) = &self.vms[&parent];
        let (child, flush) = ept.fork(&self.store, |gpa| gpa.get() == PRIVATE);
        // The parent is quiet until its CPUs have forgotten what they had.
        flush.complete(&self.store);
        let child = child?;
        let memory = memory.clone();
        self.vms.insert(self.born, (child, memory));
        self.since.insert(self.born, self.store.tables.now());
        self.born += 1;
        Ok(self.born - 1)
    }

    fn settle(&mut self) {
        for pending in self.pending.drain(..) {
            pending.flush.complete(&self.store);
        }
    }

    fn end(&mut self, vm: u32, step: usize) {
        // Its CPUs have left it: what was owed to them is done.
        self.settle();
        let (mut ept, _) = self.vms.remove(&vm).expect("it lives");
        let mut release = ept.release(&self.store);
        while !release.step(&self.store, step) {}
    }

    fn finish(mut self) {
        while let Some(vm) = self.vms.keys().next().copied() {
            self.end(vm, usize::MAX);
        }
        assert_eq!(self.store.live_pages(), 0, "pages are left");
        assert_eq!(self.store.tables.live_tables(), 0, "tables are left");
    }

    fn usage(&self, vm: u32) -> Usage {
        self.vms[&vm].0.usage(&self.store)
    }
}

/// A small generator of numbers, so that runs repeat.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn stores() -> [HistoryStore; 2] {
    [HistoryStore::new(), HistoryStore::touching()]
}

#[test]
fn the_first_write_copies_one_page_and_the_last_holder_copies_none() {
    for store in stores() {
        let mut family = root(store, ALL_FEATURES, 4 * MIB2);
        let child = family.fork(0).expect("there is memory");
        let all = 4 * MIB2;
        let shared = |usage: Usage| (usage.private_bytes, usage.shared_bytes);
        assert_eq!(shared(family.usage(0)), (0, all));
        assert_eq!(shared(family.usage(child)), (0, all));
        family
            .write(child, MIB2 + 5 * PAGE)
            .expect("there is memory");
        family.settle();
        assert_eq!(family.store.live_pages() as u64, all / PAGE + 1);
        assert_eq!(shared(family.usage(child)), (PAGE, all - PAGE));
        // The parent is alone on that page now: none is copied.
        family.write(0, MIB2 + 5 * PAGE).expect("there is memory");
        assert_eq!(family.store.live_pages() as u64, all / PAGE + 1);
        assert_eq!(shared(family.usage(0)), (PAGE, all - PAGE));
        family.end(child, 100);
        assert_eq!(shared(family.usage(0)), (all, 0));
        family.write(0, 0).expect("nothing is needed");
        family.finish();
    }
}

#[test]
fn a_fork_costs_the_same_whatever_the_memory() {
    let events = |bytes| {
        let mut family = root(HistoryStore::new(), ALL_FEATURES, bytes);
        let before = family.store.tables.now();
        let _ = family.fork(0).expect("there is memory");
        let events = family.store.tables.now() - before;
        family.finish();
        events
    };
    assert_eq!(events(2 * MIB2), events(128 * MIB2));
}

#[test]
fn the_parent_may_end_first_and_each_page_stays_until_its_last_holder_ends() {
    let mut family = root(HistoryStore::new(), ALL_FEATURES, 2 * MIB2);
    let child = family.fork(0).expect("there is memory");
    let grandchild = family.fork(child).expect("there is memory");
    family.write(child, 0).expect("there is memory");
    family.end(0, 7);
    family.write(grandchild, PAGE).expect("there is memory");
    family.end(child, 7);
    let pages = BTreeSet::from([0, PAGE, MIB2]);
    family.check(&pages, family.store.tables.now());
    assert_eq!(family.usage(grandchild).shared_bytes, 0);
    assert_eq!(family.store.live_pages() as u64, 2 * MIB2 / PAGE);
    family.finish();
}

#[test]
fn what_is_never_copied_stays_shared_and_writable() {
    let mut family = root(HistoryStore::new(), NO_FEATURES, 2 * MIB2);
    let at = Gpa::new(MIB2 + 3 * PAGE);
    let region = Hpa::new(GIB);
    family.store.take(GIB, PAGE);
    let (ept, memory) = family.vms.get_mut(&0).expect("it lives");
    ept.replace_with_region(&family.store, at, region, PAGE)
        .expect("it is mapped")
        .complete(&family.store);
    memory.remove(&at.get());
    let child = family.fork(0).expect("there is memory");
    for vm in [0, child] {
        let (done, flush) = family.vms[&vm].0.make_writable(&family.store, at);
        assert_eq!(done, Ok(Write::Reclaimed));
        flush.complete(&family.store);
        let seen = family.vms[&vm].0.translate(&family.store, at);
        assert_eq!(
            seen.map(|seen| (seen.hpa, seen.permissions)),
            Some((region, RWX))
        );
    }
    family.end(0, usize::MAX);
    family.end(child, usize::MAX);
    // The region is its group's; the page that lay there before is kept by whoever put the region over it.
    assert_eq!(family.store.live_pages(), 2);
    assert_eq!(family.store.tables.live_tables(), 0);
}

#[test]
fn without_memory_nothing_changes_and_nothing_is_lost() {
    for large in [true, false] {
        let features = if large { ALL_FEATURES } else { NO_FEATURES };
        // A fork takes two tables, a write at most three and a page.
        for allowed in 0..6 {
            let mut family = root(HistoryStore::new(), features, 2 * MIB2);
            let pages = BTreeSet::from([0, PAGE, MIB2]);
            family.store.tables.allow_allocations(Some(allowed));
            let forked = family.fork(0);
            assert_eq!(forked.is_ok(), allowed >= 2);
            family.check(&pages, family.store.tables.now());
            if let Ok(child) = forked {
                let written = family.write(child, PAGE);
                // Two for the fork, two on the way to the page.
                assert_eq!(written.is_ok(), allowed >= 4, "{allowed}");
                family.store.tables.allow_allocations(None);
                family.store.allow_pages(Some(0));
                if written.is_err() {
                    assert_eq!(family.write(child, PAGE), Err(EptError::OutOfPages));
                }
                family.store.allow_pages(None);
                family.write(child, PAGE).expect("there is memory again");
            }
            family.store.tables.allow_allocations(None);
            family.finish();
        }
    }
}

#[test]
fn a_gigabyte_page_is_cut_by_the_fork_and_stays_what_it_was() {
    let mut family = root(HistoryStore::new(), ALL_FEATURES, GIB);
    let pages = BTreeSet::from([0, PAGE, GIB - PAGE]);
    let from = family.store.tables.now();
    let child = family.fork(0).expect("there is memory");
    for gpa in &pages {
        // Small or large, with or without the permission to write: always the same page.
        for view in family.views(0, *gpa, from) {
            assert!(matches!(view, View::Page { hpa, .. } if hpa == RAM_HPA + gpa));
        }
    }
    family.check(&pages, family.store.tables.now());
    family.write(child, GIB - PAGE).expect("there is memory");
    family.write(0, 0).expect("there is memory");
    family.finish();
}

/// Random forks, writes and ends; flushes are owed for a while.
fn random(seed: u64, steps: usize, touching: bool) {
    let store = if touching {
        HistoryStore::touching()
    } else {
        HistoryStore::new()
    };
    let mut numbers = Numbers(seed);
    let features = if seed.is_multiple_of(3) {
        NO_FEATURES
    } else {
        ALL_FEATURES
    };
    let mut family = root(store, features, 4 * MIB2);
    for _ in 0..steps {
        let count = family.vms.len() as u64;
        let Some(vm) = family
            .vms
            .keys()
            .nth(numbers.below(count) as usize)
            .copied()
        else {
            break;
        };
        match numbers.below(20) {
            0 if count < 8 => {
                family.settle();
                let _ = family.fork(vm).expect("there is memory");
            }
            1 if count > 1 => family.end(vm, 1 + numbers.below(600) as usize),
            2 => family.settle(),
            _ => {
                // Few pages, so that VMs meet on them.
                let gpa = numbers.below(3) * MIB2 + numbers.below(4) * PAGE;
                family.write(vm, gpa).expect("there is memory");
            }
        }
    }
    family.finish();
}

#[test]
fn random_families_never_see_each_others_writes() {
    let (seeds, steps) = if cfg!(miri) { (2, 20) } else { (60, 150) };
    for seed in 0..seeds {
        random(seed, steps, seed % 2 == 0);
    }
}
