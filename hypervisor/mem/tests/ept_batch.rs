//! Many replacements as one change: what single ones would do, all of them or none, and never a third thing meanwhile.

mod common;

use common::{ALL_FEATURES, GIB, MIB2, NO_FEATURES, Op, PAGE, RWX, WB};
use nagaya_mem::test_support::{HistoryStore, View};
use nagaya_mem::{Ept, EptError, EptFeatures, Flush, Gpa, Hpa, Run};
use proptest::prelude::*;

const RAM: u64 = 4 * MIB2;
const REGION: u64 = 3 * GIB;
/// The host's end of the RAM, in the same place of a large page.
const OWN: u64 = GIB;

/// RAM from 0 on, by the largest pages.
fn ram(store: &HistoryStore, features: EptFeatures, bytes: u64) -> Ept {
    let ept = Ept::new(store, features).expect("a root");
    let flush = Op::map(0, OWN, bytes).apply(&ept, store);
    flush.expect("RAM maps").complete(store);
    ept
}

fn replace_each(ept: &Ept, store: &HistoryStore, runs: &[Run]) -> Result<Flush, EptError> {
    ept.replace_each(store, runs, Hpa::new(REGION), RWX, WB)
}

fn run(gpa: u64, first_page: u64, pages: u64) -> Run {
    Run {
        gpa: Gpa::new(gpa),
        first_page,
        pages,
    }
}

/// What a run is one by one.
fn single(run: &Run) -> Op {
    let hpa = REGION + run.first_page * PAGE;
    Op::replace(run.gpa.get(), hpa, run.pages * PAGE)
}

fn views(ept: &Ept, store: &HistoryStore, bytes: u64) -> Vec<View> {
    (0..bytes)
        .step_by(PAGE as usize)
        .map(|gpa| store.view(ept.eptp(), gpa))
        .collect()
}

/// Random runs in ascending order: of a page or some, or of whole large pages with a target that fits or does not.
fn runs() -> impl Strategy<Value = Vec<Run>> {
    let one = (0..700_u64, 1..300_u64, 0..64_u64, any::<bool>());
    proptest::collection::vec(one, 1..12).prop_map(|ranges| {
        let mut at = 0;
        let mut runs = Vec::new();
        for (gap, pages, target, is_large) in ranges {
            let start = at + gap * PAGE;
            let next = if is_large {
                run(
                    start.next_multiple_of(MIB2),
                    target * 512 + (target & 1),
                    512,
                )
            } else {
                let left = (MIB2 - start % MIB2) / PAGE;
                run(start, target * 300, pages.min(left))
            };
            if next.end() > RAM {
                break;
            }
            at = next.end();
            runs.push(next);
        }
        runs
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 24 }, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_does_what_its_parts_would(parts in runs(), again in runs(), is_large in any::<bool>()) {
        let features = if is_large { ALL_FEATURES } else { NO_FEATURES };
        for store in [HistoryStore::new(), HistoryStore::touching()] {
            let other = HistoryStore::new();
            let (mut ept, mut model) = (ram(&store, features, RAM), ram(&other, features, RAM));
            for parts in [&parts, &again] {
                let before = views(&ept, &store, RAM);
                let from = store.now();
                let flush = replace_each(&ept, &store, parts).expect("all of it is mapped");
                let to = store.now();
                for part in parts {
                    let flush = single(part).apply(&model, &other);
                    flush.expect("mapped").complete(&other);
                }
                let after = views(&model, &other, RAM);
                prop_assert!(views(&ept, &store, RAM) == after);
                let changed = before != after;
                prop_assert!(flush.needs_invalidation() || !changed);
                for (page, (old, new)) in before.iter().zip(&after).enumerate().step_by(37) {
                    for view in store.possible_views(ept.eptp(), page as u64 * PAGE, from, to) {
                        prop_assert!(view == *old || view == *new);
                    }
                }
                flush.complete(&store);
                prop_assert_eq!(store.reachable_tables(ept.eptp()), store.live_tables());
            }
            ept.destroy(&store);
            model.destroy(&other);
            prop_assert_eq!(store.live_tables(), 0);
        }
    }

    #[test]
    fn without_tables_nothing_is_changed(parts in runs(), allowed in 0..4_usize) {
        let store = HistoryStore::new();
        let mut ept = ram(&store, ALL_FEATURES, RAM);
        let (before, tables) = (views(&ept, &store, RAM), store.live_tables());
        store.allow_allocations(Some(allowed));
        match replace_each(&ept, &store, &parts) {
            Ok(flush) => flush.complete(&store),
            Err(error) => {
                prop_assert_eq!(error, EptError::OutOfTables);
                prop_assert!(views(&ept, &store, RAM) == before);
                prop_assert_eq!(store.live_tables(), tables);
            }
        }
        store.allow_allocations(None);
        ept.destroy(&store);
    }
}

#[test]
fn a_page_of_a_gib_is_split_once_for_all_runs() {
    let store = HistoryStore::new();
    let mut ept = ram(&store, ALL_FEATURES, 2 * GIB);
    let runs = [
        run(PAGE, 0, 1),
        run(3 * PAGE, 1, 1),
        run(MIB2, 512, 512),
        run(2 * MIB2 + PAGE, 5, 511),
        run(GIB - PAGE, 9, 1),
        run(GIB, 10, 1),
    ];
    let before = store.live_tables();
    let flush = replace_each(&ept, &store, &runs).expect("mapped");
    // Two directories, and tables for all but the whole piece.
    assert_eq!(store.live_tables(), before + 2 + 4);
    flush.complete(&store);
    for run in runs {
        for page in 0..run.pages {
            let found = ept.translate(&store, Gpa::new(run.gpa.get() + page * PAGE));
            let promised = REGION + (run.first_page + page) * PAGE;
            assert_eq!(found.map(|found| found.hpa.get()), Some(promised));
        }
    }
    ept.destroy(&store);
}

#[test]
fn what_is_not_mapped_or_in_no_order_is_refused_before_anything_is_changed() {
    let store = HistoryStore::new();
    let mut ept = ram(&store, ALL_FEATURES, RAM);
    let hole = MIB2 + 7 * PAGE;
    let flush = Op::unmap(hole, PAGE).apply(&ept, &store);
    flush.expect("mapped").complete(&store);
    let now = store.now();
    let refused = |runs: &[Run]| replace_each(&ept, &store, runs).map(drop);
    let gpa = Gpa::new;
    let absent = |at| Err(EptError::NotMapped { gpa: gpa(at) });
    let disordered = |at| Err(EptError::Disordered { gpa: gpa(at) });
    assert_eq!(refused(&[run(0, 0, 1), run(MIB2, 0, 8)]), absent(hole));
    assert_eq!(refused(&[run(0, 0, 1), run(RAM, 0, 1)]), absent(RAM));
    assert_eq!(
        refused(&[run(PAGE, 0, 2), run(2 * PAGE, 0, 1)]),
        disordered(2 * PAGE)
    );
    assert_eq!(refused(&[run(MIB2 - PAGE, 0, 2)]), disordered(MIB2 - PAGE));
    assert_eq!(refused(&[run(0, 0, u64::MAX)]), disordered(0));
    assert_eq!(refused(&[run(5, 0, 1)]), Err(EptError::Misaligned));
    assert_eq!(refused(&[run(0, 0, 0)]), Err(EptError::Empty));
    assert_eq!(refused(&[run(1 << 48, 0, 1)]), Err(EptError::OutOfRange));
    assert_eq!(refused(&[run(0, u64::MAX, 1)]), Err(EptError::OutOfRange));
    assert_eq!(store.now(), now, "nothing was stored");
    ept.destroy(&store);
}
