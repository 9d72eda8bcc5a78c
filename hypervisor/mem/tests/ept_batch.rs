//! Many replacements as one change: what single ones would do, all of them or none, and never a third thing meanwhile.

mod common;

use common::{ALL_FEATURES, GIB, MIB2, NO_FEATURES, Op, PAGE, RWX, WB};
use nagaya_mem::test_support::{HistoryStore, View};
use nagaya_mem::{Ept, EptError, EptFeatures, Flush, Gpa, Hpa, Replacement};
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

fn replace_each(ept: &Ept, store: &HistoryStore, parts: &[Replacement]) -> Result<Flush, EptError> {
    ept.replace_each(store, parts.iter().copied(), RWX, WB)
}

fn part(gpa: u64, hpa: u64, bytes: u64) -> Replacement {
    Replacement {
        gpa: Gpa::new(gpa),
        hpa: Hpa::new(hpa),
        bytes,
    }
}

fn views(ept: &Ept, store: &HistoryStore, bytes: u64) -> Vec<View> {
    (0..bytes)
        .step_by(PAGE as usize)
        .map(|gpa| store.view(ept.eptp(), gpa))
        .collect()
}

/// Random ranges in ascending order: of a page or some, or of whole large pages with a target that fits or does not.
fn ranges() -> impl Strategy<Value = Vec<Replacement>> {
    let one = (0..700_u64, 1..300_u64, 0..64_u64, any::<bool>());
    proptest::collection::vec(one, 1..12).prop_map(|ranges| {
        let mut at = 0;
        let mut parts = Vec::new();
        for (gap, pages, target, is_large) in ranges {
            let (start, pages, hpa) = if is_large {
                let start = (at + gap * PAGE).next_multiple_of(MIB2);
                (start, 512, REGION + target * MIB2 + (target & 1) * PAGE)
            } else {
                (at + gap * PAGE, pages, REGION + target * 300 * PAGE)
            };
            if start + pages * PAGE > RAM {
                break;
            }
            parts.push(part(start, hpa, pages * PAGE));
            at = start + pages * PAGE;
        }
        parts
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 24 }, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_does_what_its_parts_would(parts in ranges(), again in ranges(), is_large in any::<bool>()) {
        let features = if is_large { ALL_FEATURES } else { NO_FEATURES };
        for store in [HistoryStore::new(), HistoryStore::touching()] {
            let single = HistoryStore::new();
            let (mut ept, mut model) = (ram(&store, features, RAM), ram(&single, features, RAM));
            for parts in [&parts, &again] {
                let before = views(&ept, &store, RAM);
                let from = store.now();
                let flush = replace_each(&ept, &store, parts).expect("all of it is mapped");
                let to = store.now();
                for part in parts {
                    let (gpa, hpa) = (part.gpa.get(), part.hpa.get());
                    let flush = Op::replace(gpa, hpa, part.bytes).apply(&model, &single);
                    flush.expect("mapped").complete(&single);
                }
                let after = views(&model, &single, RAM);
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
            model.destroy(&single);
            prop_assert_eq!(store.live_tables(), 0);
        }
    }

    #[test]
    fn without_tables_nothing_is_changed(parts in ranges(), allowed in 0..4_usize) {
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
fn a_page_of_a_gib_is_split_once_for_all_parts() {
    let store = HistoryStore::new();
    let mut ept = ram(&store, ALL_FEATURES, 2 * GIB);
    let parts = [
        part(PAGE, REGION, PAGE),
        part(3 * PAGE, REGION + PAGE, PAGE),
        part(MIB2, REGION + MIB2, MIB2),
        part(2 * MIB2 + PAGE, REGION + 5 * PAGE, MIB2),
        part(GIB - PAGE, REGION + 9 * PAGE, 2 * PAGE),
    ];
    let before = store.live_tables();
    let flush = replace_each(&ept, &store, &parts).expect("mapped");
    // Two directories; tables for the first, third, fourth and last piece of 2 MiB, and the first of the second GiB.
    assert_eq!(store.live_tables(), before + 2 + 5);
    flush.complete(&store);
    for part in parts {
        for offset in (0..part.bytes).step_by(PAGE as usize) {
            let found = ept.translate(&store, Gpa::new(part.gpa.get() + offset));
            assert_eq!(
                found.map(|found| found.hpa.get()),
                Some(part.hpa.get() + offset)
            );
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
    let refused = |parts: &[Replacement]| replace_each(&ept, &store, parts).map(drop);
    let gpa = Gpa::new;
    assert_eq!(
        refused(&[part(0, REGION, PAGE), part(MIB2, REGION, 8 * PAGE)]),
        Err(EptError::NotMapped { gpa: gpa(hole) })
    );
    assert_eq!(
        refused(&[part(0, REGION, PAGE), part(RAM, REGION, PAGE)]),
        Err(EptError::NotMapped { gpa: gpa(RAM) })
    );
    assert_eq!(
        refused(&[part(PAGE, REGION, 2 * PAGE), part(2 * PAGE, REGION, PAGE)]),
        Err(EptError::Disordered { gpa: gpa(2 * PAGE) })
    );
    assert_eq!(refused(&[part(5, REGION, PAGE)]), Err(EptError::Misaligned));
    assert_eq!(refused(&[part(0, REGION, 0)]), Err(EptError::Empty));
    assert_eq!(
        refused(&[part(1 << 48, REGION, PAGE)]),
        Err(EptError::OutOfRange)
    );
    assert_eq!(store.now(), now, "nothing was stored");
    ept.destroy(&store);
}
