//! EPT under sequences of operations: it agrees with a model of plain segments after every step, at every moment in between
//! hardware sees the old or the new translation, and no table leaks, also when frames run out at any point.

mod common;

use common::{ALL_FEATURES, Checked, GIB, MIB2, NO_FEATURES, Op, PAGE, around};
use nagaya_mem::test_support::HistoryStore;
use nagaya_mem::{EptError, EptFeatures, MemoryType, Permissions};
use proptest::prelude::*;

const CASES: u32 = if cfg!(miri) { 2 } else { 80 };

/// Places where the levels of the tables meet, so that short sequences overlap and cross.
fn gpa() -> impl Strategy<Value = u64> {
    let base = prop_oneof![
        4 => Just(0),
        4 => Just(GIB - 2 * MIB2),
        2 => Just(512 * GIB - MIB2),
        1 => Just((1 << 48) - 4 * MIB2),
    ];
    let blocks = 0..4_u64;
    let pages = prop_oneof![4 => Just(0_u64), 1 => Just(1), 1 => Just(511), 1 => 0..512_u64];
    (base, blocks, pages).prop_map(|(base, blocks, pages)| base + blocks * MIB2 + pages * PAGE)
}

fn hpa() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => (1..8_u64).prop_map(|block| GIB + block * MIB2),
        1 => (1..4_u64).prop_map(|block| block * GIB),
        1 => (0..2048_u64).prop_map(|page| 5 * GIB + page * PAGE),
    ]
}

fn bytes() -> impl Strategy<Value = u64> {
    let pages = prop_oneof![
        2 => 1..4_u64,
        1 => Just(511_u64),
        4 => Just(512_u64),
        2 => Just(1024_u64),
        3 => Just(1025_u64),
        1 => 1..1500_u64,
    ];
    pages.prop_map(|pages| pages * PAGE)
}

fn attributes() -> impl Strategy<Value = (Permissions, MemoryType)> {
    let permissions = prop_oneof![
        3 => Just(Permissions::all()),
        1 => Just(Permissions::READ),
        1 => Just(Permissions::READ | Permissions::WRITE),
    ];
    (
        permissions,
        prop_oneof![4 => Just(MemoryType::WriteBack), 1 => Just(MemoryType::Uncacheable)],
    )
}

fn op() -> impl Strategy<Value = Op> {
    let target = || (gpa(), hpa(), bytes(), attributes());
    prop_oneof![
        5 => target().prop_map(|(gpa, hpa, bytes, (permissions, memory_type))| Op::Map { gpa, hpa, bytes, permissions, memory_type }),
        4 => target().prop_map(|(gpa, hpa, bytes, (permissions, memory_type))| Op::Replace { gpa, hpa, bytes, permissions, memory_type }),
        3 => (gpa(), bytes()).prop_map(|(gpa, bytes)| Op::Unmap { gpa, bytes }),
        1 => gpa().prop_map(|gpa| Op::Split { gpa }),
        1 => gpa().prop_map(|gpa| Op::Merge { gpa }),
    ]
    // What reaches beyond 2^48 is a test of its own.
    .prop_filter("inside the address space", |op| op.range().1 <= 1 << 48)
}

/// Sequences that start with something mapped, so that replacing and splitting get work.
fn sequence() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), 1..12).prop_map(|mut ops| {
        ops.insert(0, Op::map(0, GIB, 8 * MIB2));
        ops.insert(
            1,
            Op::map(GIB - 2 * MIB2, 3 * GIB - 2 * MIB2, 4 * MIB2 + 3 * PAGE),
        );
        ops
    })
}

fn features() -> impl Strategy<Value = EptFeatures> {
    prop_oneof![
        3 => Just(ALL_FEATURES),
        1 => Just(NO_FEATURES),
        1 => Just(EptFeatures { large_2m: true, large_1g: false, accessed_dirty: true }),
    ]
}

fn store() -> impl Strategy<Value = bool> {
    any::<bool>()
}

fn make(touching: bool) -> HistoryStore {
    if touching {
        HistoryStore::touching()
    } else {
        HistoryStore::new()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_agrees_with_the_model_and_every_moment_is_old_or_new(
        ops in sequence(), features in features(), touching in store(), settle_every in 1..4_usize,
    ) {
        let mut checked = Checked::new(make(touching), features);
        for (number, op) in ops.iter().enumerate() {
            let (start, end) = op.range();
            let mut probes = around(start, end);
            probes.extend(checked.model.probes());
            let uniform = checked.model.is_uniform(start);
            let answer = checked.step(op, &probes);
            if let Op::Merge { .. } = op {
                prop_assert!(answer.is_err() || uniform, "merged what is not alike");
            }
            // Meanwhile retired tables wait; nobody may use their frames.
            if number % settle_every == 0 {
                checked.settle();
            }
        }
        checked.finish();
    }

    #[test]
    fn running_out_of_frames_at_any_allocation_changes_nothing_and_leaks_nothing(
        ops in sequence(), features in features(), touching in store(),
    ) {
        let mut checked = Checked::new(make(touching), features);
        for op in &ops {
            let (start, end) = op.range();
            let probes = around(start, end);
            for allowed in 0.. {
                let (from, tables) = (checked.store.now(), checked.store.live_tables());
                checked.store.allow_allocations(Some(allowed));
                let mut probe = checked.model.clone();
                if probe.apply(op).is_err() {
                    // Refused for another reason; the first property looks at that.
                    checked.store.allow_allocations(None);
                    prop_assert!(op.apply(&checked.ept, &checked.store).is_err());
                    break;
                }
                match op.apply(&checked.ept, &checked.store) {
                    Err(EptError::OutOfTables) => {
                        let to = checked.store.now();
                        prop_assert_eq!(checked.store.live_tables(), tables, "{:?} with {} frames leaks", op, allowed);
                        for gpa in &probes {
                            let seen = checked.store.possible_views(checked.ept.eptp(), *gpa, from, to);
                            prop_assert!(seen.iter().all(|view| *view == checked.model.view(*gpa)), "{:?} shows {:x?}", op, seen);
                        }
                    }
                    Err(EptError::NotMergeable) => break,
                    Err(other) => prop_assert!(false, "{:?} answers {:?}", op, other),
                    Ok(flush) => {
                        prop_assert_eq!(checked.store.live_tables(), tables + allowed, "{:?} sets aside what it needs", op);
                        checked.model = probe;
                        for gpa in &probes {
                            prop_assert_eq!(checked.store.view(checked.ept.eptp(), *gpa), checked.model.view(*gpa));
                        }
                        flush.complete(&checked.store);
                        break;
                    }
                }
            }
            checked.store.allow_allocations(None);
            checked.settle();
        }
        checked.finish();
    }
}
