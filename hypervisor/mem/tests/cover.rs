//! A group's region over memory that a family shares: what it covers comes back as it was, for each VM by itself, and nobody's
//! region moves when a sibling's does.

mod common;

use std::collections::BTreeMap;

use common::{ALL_FEATURES, GIB, MIB2, NO_FEATURES, PAGE, RWX, WB};
use nagaya_mem::share::SharedFlush;
use nagaya_mem::test_support::{FamilyStore, HistoryStore, View};
use nagaya_mem::{Ept, EptError, EptFeatures, Gpa, Hpa, Run};

const RAM_HPA: u64 = 2 * GIB;
const REGION: u64 = GIB;
const COPIES: u64 = 4 * GIB;
const PAGES: u64 = 2 * MIB2 / PAGE;

type Store = FamilyStore<HistoryStore>;

struct Vm {
    ept: Ept,
    covered: Ept,
    is_covered: bool,
    memory: BTreeMap<u64, u64>,
}

struct Family {
    store: Store,
    vms: Vec<Vm>,
    written: u64,
}

/// Five pages in two pieces, scattered, of a region in another order.
fn runs() -> [Run; 3] {
    let run = |page: u64, first_page, pages| Run {
        gpa: Gpa::new(page * PAGE),
        first_page,
        pages,
    };
    [run(3, 2, 2), run(9, 0, 1), run(512, 4, 2)]
}

fn covers(page: u64) -> Option<u64> {
    runs().iter().find_map(|run| {
        let inside = page.checked_sub(run.gpa.get() / PAGE)?;
        (inside < run.pages).then(|| run.first_page + inside)
    })
}

impl Family {
    fn new(features: EptFeatures) -> Family {
        let store = FamilyStore::new(HistoryStore::new(), COPIES, 5 * GIB);
        let ept = Ept::new(&store, features).expect("there are tables");
        let covered = Ept::new(&store, features).expect("there are tables");
        store.take(RAM_HPA, PAGES * PAGE);
        store.take(REGION, 8 * PAGE);
        ept.map(
            &store,
            Gpa::new(0),
            Hpa::new(RAM_HPA),
            PAGES * PAGE,
            RWX,
            WB,
        )
        .expect("nothing is there")
        .complete(&store);
        let memory = (0..PAGES)
            .map(|page| (page, RAM_HPA / PAGE + page))
            .collect();
        Family {
            store,
            vms: vec![Vm {
                ept,
                covered,
                is_covered: false,
                memory,
            }],
            written: 1 << 40,
        }
    }

    fn done<T>(&self, (result, flush): (Result<T, EptError>, SharedFlush)) -> Result<T, EptError> {
        flush.complete(&self.store);
        result
    }

    fn toggle(&mut self, vm: usize) -> Result<(), EptError> {
        let Vm {
            ept,
            covered,
            is_covered,
            ..
        } = &self.vms[vm];
        let from = self.store.tables.now();
        let changed = if *is_covered {
            ept.uncover(&self.store, covered, &runs())
        } else {
            ept.cover(&self.store, covered, &runs(), Hpa::new(REGION))
        };
        for page in 0..16 {
            // Hardware that walked meanwhile saw the region or the VM's own page, and never nothing.
            let now = self.store.tables.now();
            for view in self
                .store
                .tables
                .possible_views(ept.eptp(), page * PAGE, from, now)
            {
                let View::Page { hpa, .. } = view else {
                    panic!("page {page} is {view:?}");
                };
                let is_region = covers(page).is_some_and(|index| hpa == REGION + index * PAGE);
                assert!(
                    is_region || self.store.content(hpa) == self.vms[vm].memory.get(&page).copied()
                );
            }
        }
        self.done(changed)?;
        self.vms[vm].is_covered ^= true;
        Ok(())
    }

    fn fork(&mut self, vm: usize) -> Result<(), EptError> {
        let parent = &self.vms[vm];
        let ept = self.done(parent.ept.fork(&self.store, |_| false))?;
        let covered = match self.done(parent.covered.fork(&self.store, |_| false)) {
            Ok(covered) => covered,
            Err(error) => {
                self.release(ept);
                return Err(error);
            }
        };
        let child = Vm {
            ept,
            covered,
            is_covered: parent.is_covered,
            memory: parent.memory.clone(),
        };
        self.vms.push(child);
        Ok(())
    }

    fn release(&self, mut ept: Ept) {
        let mut release = ept.release(&self.store);
        while !release.step(&self.store, 5) {}
    }

    fn write(&mut self, vm: usize, page: u64) -> Result<(), EptError> {
        let at = Gpa::new(page * PAGE);
        self.done(self.vms[vm].ept.make_writable(&self.store, at))?;
        let vm = &mut self.vms[vm];
        let hpa = vm.ept.translate(&self.store, at).expect("it is there").hpa;
        self.written += 1;
        self.store.write(hpa.get(), self.written);
        if !(vm.is_covered && covers(page).is_some()) {
            vm.memory.insert(page, self.written);
        }
        Ok(())
    }

    fn check(&self) {
        for vm in &self.vms {
            for page in (0..16).chain(510..516) {
                let seen = vm.ept.translate(&self.store, Gpa::new(page * PAGE));
                let hpa = seen.expect("RAM is there").hpa.get();
                match covers(page).filter(|_| vm.is_covered) {
                    Some(index) => assert_eq!(hpa, REGION + index * PAGE),
                    None => assert_eq!(
                        self.store.content(hpa),
                        vm.memory.get(&page).copied(),
                        "page {page}"
                    ),
                }
            }
        }
    }

    fn end(&mut self, vm: usize) {
        let Vm { ept, covered, .. } = self.vms.swap_remove(vm);
        self.release(ept);
        self.release(covered);
    }

    fn finish(mut self) {
        while !self.vms.is_empty() {
            self.end(0);
        }
        // The region is its group's.
        assert_eq!(self.store.live_pages(), 8);
        assert_eq!(self.store.tables.live_tables(), 0);
    }
}

#[test]
fn what_the_region_covers_comes_back_as_each_vm_left_it() {
    let mut state = 7_u64;
    let mut below = |bound: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let rounds = if cfg!(miri) { 1 } else { 40 };
    for round in 0..rounds {
        let features = if round % 2 == 0 {
            ALL_FEATURES
        } else {
            NO_FEATURES
        };
        let mut family = Family::new(features);
        for _ in 0..60 {
            let count = family.vms.len() as u64;
            let vm = below(count) as usize;
            match below(12) {
                0 if count < 6 => family.fork(vm),
                1 | 2 => family.toggle(vm),
                3 if count > 1 => {
                    family.end(vm);
                    Ok(())
                }
                _ => family.write(vm, [0, 3, 4, 9, 511, 512, 513, 514][below(8) as usize]),
            }
            .expect("there is memory");
            family.check();
        }
        family.finish();
    }
}

#[test]
fn without_tables_the_region_is_mapped_or_unmapped_whole_or_not_at_all() {
    for allowed in 0..14 {
        let mut family = Family::new(ALL_FEATURES);
        family.fork(0).expect("there is memory");
        family.store.tables.allow_allocations(Some(allowed));
        let first = family.toggle(1);
        family.check();
        let forked = family.fork(1);
        let second = family.toggle(1);
        family.check();
        if allowed == 0 {
            assert_eq!(
                (first, second),
                (Err(EptError::OutOfTables), Err(EptError::OutOfTables))
            );
            assert_eq!(forked, Err(EptError::OutOfTables));
        }
        family.store.tables.allow_allocations(None);
        let was = family.vms[1].is_covered;
        family.toggle(1).expect("there is memory again");
        assert_ne!(family.vms[1].is_covered, was);
        family.check();
        family.finish();
    }
}

#[test]
fn what_is_not_there_and_what_is_crooked_is_refused() {
    let family = Family::new(ALL_FEATURES);
    let vm = &family.vms[0];
    let run = |gpa: u64, pages| {
        [Run {
            gpa: Gpa::new(gpa),
            first_page: 0,
            pages,
        }]
    };
    for (runs, error) in [
        (run(PAGE / 2, 1), EptError::Misaligned),
        (run(1 << 48, 1), EptError::OutOfRange),
        (run(511 * PAGE, 2), EptError::OutOfRange),
        (
            run(PAGES * PAGE, 1),
            EptError::NotMapped {
                gpa: Gpa::new(PAGES * PAGE),
            },
        ),
    ] {
        let covered = vm
            .ept
            .cover(&family.store, &vm.covered, &runs, Hpa::new(REGION));
        assert_eq!(family.done(covered), Err(error));
        // Nothing is covered there.
        let uncovered = vm.ept.uncover(&family.store, &vm.covered, &runs);
        assert_eq!(family.done(uncovered), Err(error));
    }
    let odd = Hpa::new(REGION + 8);
    let covered = vm.ept.cover(&family.store, &vm.covered, &run(0, 1), odd);
    assert_eq!(family.done(covered), Err(EptError::Misaligned));
    let uncovered = vm.ept.uncover(&family.store, &vm.covered, &run(0, 1));
    assert_eq!(
        family.done(uncovered),
        Err(EptError::NotMapped { gpa: Gpa::new(0) })
    );
    family.check();
    family.finish();
}
