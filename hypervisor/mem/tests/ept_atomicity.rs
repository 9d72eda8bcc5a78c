//! Every page of whole operations, at every moment: the old or the new translation, never a third thing, never absent in
//! between. The history-keeping store enumerates all walks that hardware can make, with or without cached upper levels.

mod common;

use std::collections::BTreeSet;

use common::{ALL_FEATURES, Checked, GIB, MIB2, NO_FEATURES, Op, PAGE, every_page};
use nagaya_mem::test_support::{HistoryStore, View};
use nagaya_mem::{EptError, EptFeatures, Gpa, PageSize};

/// The group's region, in pages.
const REGION: u64 = if cfg!(miri) { 515 } else { 1025 };
const REGION_HPA: u64 = 2 * GIB;

/// An EPT with these operations done and settled, in both kinds of store.
fn prepared(features: EptFeatures, before: &[Op]) -> [Checked; 2] {
    [HistoryStore::new(), HistoryStore::touching()].map(|store| {
        let mut checked = Checked::new(store, features);
        for op in before {
            let (start, end) = op.range();
            checked
                .step(op, &BTreeSet::from([start, end - 1]))
                .expect("the preparation works");
            checked.settle();
        }
        checked
    })
}

/// Does one operation and looks at each page of its range.
fn watched(features: EptFeatures, before: &[Op], op: Op) {
    for mut checked in prepared(features, before) {
        let (start, end) = op.range();
        checked
            .step(&op, &every_page(start, end))
            .expect("the operation works");
        checked.finish();
    }
}

#[test]
fn a_mapped_region_appears_page_by_page_and_never_wrongly() {
    for features in [ALL_FEATURES, NO_FEATURES] {
        watched(
            features,
            &[],
            Op::map(GIB - MIB2, REGION_HPA, REGION * PAGE),
        );
        watched(
            features,
            &[Op::map(0, GIB, PAGE)],
            Op::map(3 * PAGE, REGION_HPA, REGION * PAGE),
        );
    }
}

#[test]
fn pages_replaced_by_the_region_are_never_absent() {
    let ram = Op::map(0, GIB, 4 * MIB2);
    let scattered = [Op::map(0, GIB + PAGE, 4 * MIB2)];
    for features in [ALL_FEATURES, NO_FEATURES] {
        // Large pages by large pages and a split one; large pages by small ones; small pages by large ones.
        watched(
            features,
            &[ram],
            Op::replace(MIB2, REGION_HPA, REGION * PAGE),
        );
        watched(
            features,
            &[ram],
            Op::replace(MIB2 + 5 * PAGE, REGION_HPA, REGION * PAGE),
        );
        watched(
            features,
            &scattered,
            Op::replace(MIB2, REGION_HPA, REGION * PAGE),
        );
    }
}

#[test]
fn the_own_pages_come_back_without_a_gap() {
    let there = [
        Op::map(0, GIB, 4 * MIB2),
        Op::replace(MIB2 + 5 * PAGE, REGION_HPA, REGION * PAGE),
    ];
    watched(
        ALL_FEATURES,
        &there,
        Op::replace(MIB2 + 5 * PAGE, GIB + MIB2 + 5 * PAGE, REGION * PAGE),
    );
    watched(ALL_FEATURES, &there, Op::replace(0, GIB, 4 * MIB2));
}

#[test]
fn a_gigabyte_page_is_replaced_in_part_without_a_gap() {
    let large = [Op::map(0, GIB, GIB)];
    watched(
        ALL_FEATURES,
        &large,
        Op::replace(MIB2, REGION_HPA, REGION * PAGE),
    );
    watched(
        ALL_FEATURES,
        &large,
        Op::replace(3 * PAGE, REGION_HPA, REGION * PAGE),
    );
}

#[test]
fn an_unmapped_range_goes_page_by_page_and_its_neighbours_stay() {
    let ram = [Op::map(0, GIB, 4 * MIB2)];
    watched(
        ALL_FEATURES,
        &ram,
        Op::unmap(MIB2 - 2 * PAGE, REGION * PAGE),
    );
    watched(
        ALL_FEATURES,
        &[Op::map(0, GIB, GIB)],
        Op::unmap(MIB2 + PAGE, REGION * PAGE),
    );
}

#[test]
fn split_and_merge_keep_every_translation_at_every_moment() {
    for mut checked in prepared(ALL_FEATURES, &[Op::map(0, GIB, GIB)]) {
        let probes = every_page(MIB2, 2 * MIB2);
        let size = |checked: &Checked| {
            checked
                .ept
                .translate(&checked.store, Gpa::new(MIB2))
                .map(|found| found.size)
                .expect("it is mapped")
        };
        // 1 GiB, 2 MiB, 4 KiB, and back to 2 MiB.
        for expected in [PageSize::Size2M, PageSize::Size4K, PageSize::Size4K] {
            checked
                .step(&Op::Split { gpa: MIB2 }, &probes)
                .expect("it is mapped");
            assert_eq!(size(&checked), expected);
        }
        checked
            .step(
                &Op::Merge {
                    gpa: MIB2 + 7 * PAGE,
                },
                &probes,
            )
            .expect("512 alike");
        assert_eq!(size(&checked), PageSize::Size2M);
        checked.finish();
    }
}

#[test]
fn what_is_not_alike_is_not_merged() {
    let small = [Op::map(0, GIB, 2 * MIB2), Op::Split { gpa: 0 }];
    let spoilers = [
        Op::unmap(511 * PAGE, PAGE),
        Op::replace(200 * PAGE, 3 * GIB, PAGE),
        Op::Replace {
            gpa: PAGE,
            hpa: GIB + PAGE,
            bytes: PAGE,
            permissions: nagaya_mem::Permissions::READ,
            memory_type: common::WB,
        },
    ];
    for spoiler in spoilers {
        for mut checked in prepared(ALL_FEATURES, &small) {
            let probes = every_page(0, MIB2);
            checked.step(&spoiler, &probes).expect("it is mapped");
            assert_eq!(
                checked.step(&Op::Merge { gpa: 0 }, &probes),
                Err(EptError::NotMergeable),
                "{spoiler:?}"
            );
            checked.finish();
        }
    }
    // Alike and neighbours, but not where a large page could begin; and a CPU without large pages.
    for (features, before) in [
        (ALL_FEATURES, Op::map(0, GIB + PAGE, MIB2)),
        (NO_FEATURES, Op::map(0, GIB, MIB2)),
    ] {
        for mut checked in prepared(features, &[before]) {
            let merged = checked.step(&Op::Merge { gpa: 0 }, &every_page(0, MIB2));
            assert_eq!(merged, Err(EptError::NotMergeable));
            checked.finish();
        }
    }
}

const DIRTY: u64 = 1 << 9;

/// The leaf of `gpa`, raw, in the live tables.
fn leaf(checked: &Checked, gpa: u64) -> u64 {
    use nagaya_mem::FrameStore;
    let mut table = checked.ept.root();
    for level in (1..=4).rev() {
        let entry = checked
            .store
            .load(table, (gpa >> (12 + 9 * (level - 1))) as usize % 512);
        if level == 1 || entry >> 7 & 1 == 1 {
            return entry;
        }
        table = nagaya_mem::Hpa::new(entry & 0x000F_FFFF_FFFF_F000);
    }
    unreachable!("level 1 ends the walk");
}

#[test]
fn a_page_that_was_written_stays_dirty_through_split_and_merge() {
    let mut checked = Checked::new(HistoryStore::touching(), ALL_FEATURES);
    checked
        .step(&Op::map(0, GIB, MIB2), &every_page(0, PAGE))
        .expect("nothing is mapped");
    assert_eq!(leaf(&checked, 0) & DIRTY, 0);
    // The CPU writes between the load of the entry and the exchange.
    checked
        .step(&Op::Split { gpa: 0 }, &every_page(0, PAGE))
        .expect("it is mapped");
    for page in 0..512 {
        assert_ne!(leaf(&checked, page * PAGE) & DIRTY, 0, "page {page}");
    }
    checked
        .step(&Op::Merge { gpa: 0 }, &every_page(0, PAGE))
        .expect("512 alike");
    assert_ne!(leaf(&checked, 0) & DIRTY, 0);
    checked.finish();
}

#[test]
fn a_cpu_with_stale_upper_levels_sees_old_or_new_until_the_flush_is_complete() {
    for mut checked in prepared(ALL_FEATURES, &[Op::map(0, GIB + PAGE, 2 * MIB2)]) {
        let from = checked.store.now();
        let old = checked.model.clone();
        let nothing = BTreeSet::new();
        // The table of small pages is retired; then much else happens while nobody has invalidated.
        checked
            .step(&Op::replace(0, REGION_HPA, MIB2), &nothing)
            .expect("it is mapped");
        checked
            .step(&Op::map(8 * MIB2, GIB, REGION * PAGE), &nothing)
            .expect("it is free");
        checked
            .step(&Op::unmap(8 * MIB2, REGION * PAGE), &nothing)
            .expect("it is mapped");
        checked
            .step(&Op::map(4 * MIB2, GIB + PAGE, 2 * MIB2), &nothing)
            .expect("it is free");
        for gpa in every_page(0, MIB2 - PAGE) {
            let seen =
                checked
                    .store
                    .possible_views(checked.ept.eptp(), gpa, from, checked.store.now());
            let allowed: BTreeSet<View> = [old.view(gpa), checked.model.view(gpa)].into();
            assert_eq!(seen, allowed, "{gpa:#x}");
        }
        checked.finish();
    }
}
