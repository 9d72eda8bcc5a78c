//! What changes owe, what they cost, and what is refused.

mod common;

use std::collections::BTreeSet;

use common::{ALL_FEATURES, Checked, GIB, MIB2, NO_FEATURES, Op, PAGE, RWX, WB};
use nagaya_mem::test_support::HistoryStore;
use nagaya_mem::{Ept, EptError, Flush, FrameStore, Gpa, Hpa, MemoryType, PageSize, Permissions};

fn with(before: &[Op]) -> Checked {
    let mut checked = Checked::new(HistoryStore::new(), ALL_FEATURES);
    for op in before {
        checked
            .step(op, &BTreeSet::new())
            .expect("the preparation works");
        checked.settle();
    }
    checked
}

fn apply(checked: &Checked, op: Op) -> Flush {
    op.apply(&checked.ept, &checked.store)
        .expect("the operation works")
}

#[test]
fn mapping_an_absent_range_owes_nothing_even_where_pages_were_before() {
    let checked = with(&[Op::map(0, GIB, MIB2 + PAGE), Op::unmap(0, MIB2 + PAGE)]);
    let flush = apply(&checked, Op::map(0, GIB, MIB2));
    assert!(!flush.needs_invalidation());
    assert_eq!(
        checked
            .ept
            .translate(&checked.store, Gpa::new(0))
            .map(|found| found.size),
        Some(PageSize::Size2M)
    );
}

#[test]
fn unmapping_an_absent_range_allocates_nothing_stores_nothing_and_owes_nothing() {
    let checked = with(&[Op::map(0, GIB, PAGE), Op::map(2 * MIB2, GIB, MIB2)]);
    let before = checked.store.now();
    for (gpa, bytes) in [
        (PAGE, 2 * MIB2 - PAGE),
        (512 * GIB, 512 * GIB),
        (3 * MIB2, GIB),
    ] {
        assert!(!apply(&checked, Op::unmap(gpa, bytes)).needs_invalidation());
    }
    assert_eq!(checked.store.now(), before);
}

#[test]
fn changes_that_need_an_invalidation_say_so() {
    let small = [Op::map(0, GIB, 2 * MIB2), Op::Split { gpa: 0 }];
    for op in [
        Op::unmap(0, PAGE),
        Op::unmap(0, 4 * MIB2),
        Op::replace(0, 2 * GIB, PAGE),
        Op::replace(0, 2 * GIB, MIB2),
        Op::Split { gpa: MIB2 },
        Op::Merge { gpa: 0 },
    ] {
        let checked = with(&small);
        let flush = apply(&checked, op);
        assert!(flush.needs_invalidation(), "{op:?}");
        flush.complete(&checked.store);
    }
}

#[test]
fn replacing_pages_by_themselves_owes_nothing() {
    let checked = with(&[Op::map(0, GIB, 2 * MIB2)]);
    let before = checked.store.now();
    assert!(!apply(&checked, Op::replace(0, GIB, 2 * MIB2)).needs_invalidation());
    assert_eq!(checked.store.now(), before);
}

#[test]
fn both_obligations_survive_being_combined() {
    let checked = with(&[
        Op::map(0, GIB, 2 * MIB2),
        Op::Split { gpa: 0 },
        Op::Split { gpa: MIB2 },
    ]);
    let tables = checked.store.live_tables();
    let silent = apply(&checked, Op::map(4 * MIB2, GIB, MIB2));
    let flush = silent
        .combine(apply(&checked, Op::Merge { gpa: 0 }))
        .combine(apply(&checked, Op::Merge { gpa: MIB2 }));
    assert!(flush.needs_invalidation());
    assert_eq!(checked.store.live_tables(), tables, "retired tables wait");
    flush.complete(&checked.store);
    assert_eq!(checked.store.live_tables(), tables - 2);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "dropped instead of completed")]
fn forgetting_a_flush_with_retired_tables_is_noticed() {
    let checked = with(&[Op::map(0, GIB, MIB2), Op::Split { gpa: 0 }]);
    drop(apply(&checked, Op::Merge { gpa: 0 }));
}

#[test]
fn mapping_three_gigabytes_stores_one_entry_for_each_page() {
    let checked = with(&[]);
    let before = checked.store.now();
    // Off by 2 MiB, so that no page of 1 GiB fits.
    apply(&checked, Op::map(0, GIB + MIB2, 3 * GIB)).complete(&checked.store);
    let events = checked.store.now() - before;
    assert!(events <= 1536 + 16, "{events} events");
    assert_eq!(
        checked.store.live_tables(),
        1 + 1 + 3,
        "the root, a PDPT and three directories"
    );
}

#[test]
fn an_aligned_region_of_1025_pages_costs_one_table() {
    let checked = with(&[Op::map(0, GIB, 8 * MIB2)]);
    let (before, tables) = (checked.store.now(), checked.store.live_tables());
    apply(&checked, Op::replace(2 * MIB2, 2 * GIB, 1025 * PAGE)).complete(&checked.store);
    assert_eq!(
        checked.store.live_tables(),
        tables + 1,
        "only the last page needs a table"
    );
    let events = checked.store.now() - before;
    assert!(
        events <= 512 + 8,
        "{events} events: one table is filled, three translations change"
    );
    let size = |gpa: u64| {
        checked
            .ept
            .translate(&checked.store, Gpa::new(gpa))
            .map(|found| found.size)
    };
    assert_eq!(size(2 * MIB2), Some(PageSize::Size2M));
    assert_eq!(size(3 * MIB2), Some(PageSize::Size2M));
    assert_eq!(size(4 * MIB2), Some(PageSize::Size4K));
}

#[test]
fn pages_are_as_large_as_the_cpu_and_both_addresses_allow() {
    let size = |features, gpa: u64, hpa: u64, bytes: u64| {
        let store = HistoryStore::new();
        let ept = Ept::new(&store, features).expect("frames");
        let flush = ept
            .map(&store, Gpa::new(gpa), Hpa::new(hpa), bytes, RWX, WB)
            .expect("free");
        flush.complete(&store);
        ept.translate(&store, Gpa::new(gpa)).map(|found| found.size)
    };
    assert_eq!(
        size(ALL_FEATURES, GIB, 2 * GIB, GIB),
        Some(PageSize::Size1G)
    );
    assert_eq!(
        size(ALL_FEATURES, GIB, 2 * GIB + MIB2, MIB2),
        Some(PageSize::Size2M)
    );
    assert_eq!(
        size(ALL_FEATURES, GIB, 2 * GIB, GIB - PAGE),
        Some(PageSize::Size2M)
    );
    assert_eq!(
        size(ALL_FEATURES, MIB2, GIB + PAGE, MIB2),
        Some(PageSize::Size4K)
    );
    assert_eq!(
        size(NO_FEATURES, GIB, 2 * GIB, 4 * MIB2),
        Some(PageSize::Size4K)
    );
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let checked = with(&[Op::map(0, GIB, 2 * MIB2)]);
    let before = checked.store.now();
    let top = 1 << 48;
    let map = |gpa, hpa, bytes, permissions| {
        checked
            .ept
            .map(
                &checked.store,
                Gpa::new(gpa),
                Hpa::new(hpa),
                bytes,
                permissions,
                MemoryType::WriteBack,
            )
            .map(|_| ())
    };
    assert_eq!(map(GIB, GIB, 0, RWX), Err(EptError::Empty));
    assert_eq!(map(GIB + 1, GIB, PAGE, RWX), Err(EptError::Misaligned));
    assert_eq!(map(GIB, GIB + 8, PAGE, RWX), Err(EptError::Misaligned));
    assert_eq!(map(GIB, GIB, PAGE + 1, RWX), Err(EptError::Misaligned));
    assert_eq!(map(top, GIB, PAGE, RWX), Err(EptError::OutOfRange));
    assert_eq!(
        map(top - PAGE, GIB, 2 * PAGE, RWX),
        Err(EptError::OutOfRange)
    );
    assert_eq!(
        map(u64::MAX - 0xFFF, GIB, 2 * PAGE, RWX),
        Err(EptError::OutOfRange)
    );
    assert_eq!(map(GIB, 1 << 52, PAGE, RWX), Err(EptError::OutOfRange));
    assert_eq!(
        map(GIB, u64::MAX - 0xFFF, PAGE, RWX),
        Err(EptError::OutOfRange)
    );
    for permissions in [
        Permissions::empty(),
        Permissions::WRITE,
        Permissions::WRITE | Permissions::EXECUTE,
    ] {
        assert_eq!(
            map(GIB, GIB, PAGE, permissions),
            Err(EptError::BadPermissions),
            "{permissions:?}"
        );
    }
    for gpa in [top, u64::MAX] {
        assert_eq!(checked.ept.translate(&checked.store, Gpa::new(gpa)), None);
        for op in [Op::Split { gpa }, Op::Merge { gpa }] {
            let answer = op.apply(&checked.ept, &checked.store).map(|_| ());
            assert_eq!(answer, Err(EptError::OutOfRange), "{op:?}");
        }
    }
    assert_eq!(checked.store.now(), before);
}

#[test]
fn no_frame_for_the_root_is_an_error() {
    let store = HistoryStore::new();
    store.allow_allocations(Some(0));
    assert_eq!(
        Ept::new(&store, ALL_FEATURES).map(|_| ()),
        Err(EptError::OutOfTables)
    );
}

#[test]
fn the_pointer_asks_for_accessed_and_dirty_bits_only_where_the_cpu_has_them() {
    let store = HistoryStore::new();
    for (features, expected) in [(ALL_FEATURES, 0x5E), (NO_FEATURES, 0x1E)] {
        let ept = Ept::new(&store, features).expect("frames");
        assert_eq!(ept.eptp(), ept.root().get() | expected);
    }
}

#[test]
#[should_panic(expected = "used after it was freed")]
fn the_double_notices_a_use_of_a_freed_table() {
    let store = HistoryStore::new();
    let table = store.allocate_table().expect("frames");
    store.free_table(table);
    store.load(table, 0);
}
