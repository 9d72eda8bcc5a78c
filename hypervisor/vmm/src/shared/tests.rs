use super::*;
use nagaya_mem::EptFeatures;
use nagaya_mem::test_support::{GuestTables, HistoryStore};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;
use x86_defs::cr::{Cr0, Cr4};
use x86_defs::msr::{EFER_LMA, EFER_NXE};

const MIB: u64 = 1 << 20;
const PAGES: u64 = 1025;
const RAM_BYTES: u64 = 32 * MIB;
const LAYOUT: Layout = Layout::new(RAM_BYTES, u64::MAX);
const VA: u64 = 0x4000_0000;
const REGION: Hpa = Hpa::new(0x8000_0000);
const FEATURES: EptFeatures = EptFeatures {
    large_2m: true,
    large_1g: true,
    accessed_dirty: false,
};
const PAGING: PagingState = PagingState {
    cr0: Cr0::PE.union(Cr0::PG).bits(),
    cr3: 0x1000,
    cr4: Cr4::PAE.bits(),
    efer: EFER_LMA | EFER_NXE,
};
/// Present, writable.
const PW: u64 = 0b11;

/// Guest page tables at guest-physical 0x1000 (root), 0x2000, 0x3000, then page tables from 0x10000, one for each 2 MiB.
struct Guest {
    tables: GuestTables,
}

impl Guest {
    /// `VA` onwards maps page by page to `page(i)`, the raw entry of page `i`.
    fn new(page: impl Fn(u64) -> u64) -> Guest {
        let mut tables = GuestTables::new();
        for table in [0x1000, 0x2000, 0x3000] {
            tables.page(table);
        }
        tables.set(0x1000, 0, 0x2000 | PW);
        tables.set(0x2000, VA >> 30, 0x3000 | PW);
        for directory in 0..3_u64 {
            let table = 0x10000 + directory * 0x1000;
            tables.page(table);
            tables.set(0x3000, directory, table | PW);
            for slot in 0..512 {
                tables.set(table, slot, page(directory * 512 + slot));
            }
        }
        Guest { tables }
    }

    fn plan(&self, va: u64, pages: u64) -> Result<Plan, Errno> {
        self.plan_in(LAYOUT, va, pages)
    }

    fn plan_in(&self, layout: Layout, va: u64, pages: u64) -> Result<Plan, Errno> {
        plan(&PAGING, &self.tables, layout, Gva::new(va), pages)
    }
}

/// Maps page `i` to the `i`-th page from 8 MiB.
fn straight(page: u64) -> u64 {
    (8 * MIB + page * 4096) | PW
}

/// A VM whose 2 MiB pieces lie scattered in host memory.
fn vm(store: &HistoryStore) -> (Ept, Backing) {
    let chunks = (0..RAM_BYTES / (2 * MIB))
        .map(|chunk| Hpa::new(0x1000_0000 + (chunk * 7 % 16) * 2 * MIB))
        .collect();
    let backing = Backing::new(chunks, LAYOUT);
    let ept = Ept::new(store, FEATURES).expect("a root");
    backing
        .map_all(&ept, store)
        .expect("RAM maps")
        .complete(store);
    (ept, backing)
}

fn translations(ept: &Ept, store: &HistoryStore) -> Vec<Option<Hpa>> {
    (0..RAM_BYTES / 4096)
        .map(|page| {
            ept.translate(store, Gpa::new(page * 4096))
                .map(|found| found.hpa)
        })
        .collect()
}

#[test]
fn a_contiguous_range_is_one_run_a_piece_and_two_large_pages() {
    let found = Guest::new(straight).plan(VA, PAGES).expect("all is well");
    let run = |mib, first_page, pages| Run {
        gpa: Gpa::new(mib * MIB),
        first_page,
        pages,
    };
    assert_eq!(
        found.runs,
        vec![run(8, 0, 512), run(10, 512, 512), run(12, 1024, 1)]
    );
    let store = HistoryStore::new();
    let (mut ept, backing) = vm(&store);
    let (done, flush) = backing.install(&ept, &store, &found, REGION);
    assert_eq!(done, Ok(()));
    flush.expect("something changed").complete(&store);
    for (gpa, size) in [
        (8 * MIB, PageSize::Size2M),
        (10 * MIB, PageSize::Size2M),
        (12 * MIB, PageSize::Size4K),
    ] {
        let translation = ept.translate(&store, Gpa::new(gpa)).expect("mapped");
        assert_eq!(translation.hpa.get(), REGION.get() + gpa - 8 * MIB);
        assert_eq!(translation.size, size);
    }
    ept.destroy(&store);
}

#[test]
fn ram_above_the_devices_is_backed_and_gives_way_to_the_region() {
    const ABOVE: u64 = 4 << 30;
    let layout = Layout::new(RAM_BYTES, 16 * MIB);
    let store = HistoryStore::new();
    // Neighbours on the host, of which two are none to the guest.
    let chunks = (0..16).map(|chunk| Hpa::new(0x1000_0000 + chunk * 2 * MIB));
    let backing = Backing::new(chunks.collect(), layout);
    let mut ept = Ept::new(&store, FEATURES).expect("a root");
    let mapped = backing.map_all(&ept, &store).expect("RAM maps");
    mapped.complete(&store);
    let at = |ept: &Ept, gpa| {
        ept.translate(&store, Gpa::new(gpa))
            .map(|found| found.hpa.get())
    };
    for (gpa, hpa) in [
        (16 * MIB - 4096, Some(0x1100_0000 - 4096)),
        (16 * MIB, None),
        (ABOVE - 4096, None),
        (ABOVE, Some(0x1100_0000)),
        (ABOVE + 16 * MIB - 4096, Some(0x1200_0000 - 4096)),
        (ABOVE + 16 * MIB, None),
    ] {
        assert_eq!(at(&ept, gpa), hpa, "{gpa:#x}");
        let own = backing.own_frame(Gpa::new(gpa)).map(|frame| frame.get());
        assert_eq!(own, hpa, "{gpa:#x}");
    }
    let guest = Guest::new(|page| (ABOVE + 2 * MIB + page * 4096) | PW);
    assert_eq!(guest.plan(VA, PAGES), Err(Errno::Fault), "no RAM there");
    let found = guest.plan_in(layout, VA, PAGES).expect("all is well");
    let (done, flush) = backing.install(&ept, &store, &found, REGION);
    assert_eq!(done, Ok(()));
    flush.expect("something changed").complete(&store);
    assert_eq!(at(&ept, ABOVE + 2 * MIB), Some(REGION.get()));
    ept.destroy(&store);
}

#[test]
fn unaligned_and_crossing_ranges_are_einval() {
    let guest = Guest::new(straight);
    assert_eq!(guest.plan(VA + 8, PAGES), Err(Errno::Inval));
    assert_eq!(guest.plan(0x0000_8000_0000_0000, 1), Err(Errno::Inval));
    assert_eq!(guest.plan(0x0000_7FFF_FFFF_F000, 2), Err(Errno::Inval));
    assert_eq!(guest.plan(0xFFFF_FFFF_FFFF_F000, 2), Err(Errno::Inval));
    assert_eq!(guest.plan(VA, u64::MAX / 4096 + 1), Err(Errno::Inval));
}

#[test]
fn one_bad_page_anywhere_refuses_the_range() {
    for bad in [0, 1, 511, 512, 777, PAGES - 1] {
        let with =
            |entry: u64| Guest::new(move |page| if page == bad { entry } else { straight(page) });
        let (absent, read_only) = (0, straight(bad) & !2);
        let beyond_ram = RAM_BYTES | PW;
        let twin = straight(if bad == 0 { 1 } else { 0 });
        for entry in [absent, read_only, beyond_ram, twin] {
            assert_eq!(
                with(entry).plan(VA, PAGES),
                Err(Errno::Fault),
                "page {bad}, entry {entry:#x}"
            );
        }
    }
    // Just behind the range nothing matters.
    assert!(
        Guest::new(|page| if page == PAGES { 0 } else { straight(page) })
            .plan(VA, PAGES)
            .is_ok()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 4 }, ..ProptestConfig::default() })]

    /// However the guest scatters its pages: the region stands behind each in order, all else is untouched, and afterwards
    /// everything is what it was, with large pages again.
    #[test]
    fn installing_and_restoring_is_the_identity(
        order in Just((0..1200_u64).collect::<Vec<_>>()).prop_shuffle(),
        shuffled in any::<bool>(),
        start in 0..512_u64,
    ) {
        let place = |page: u64| if shuffled { order[page as usize % 1200] } else { page + start };
        let guest = Guest::new(|page| (4 * MIB + place(page) * 4096) | PW);
        let found = guest.plan(VA, PAGES).expect("all pages are fine");
        let store = HistoryStore::new();
        let (mut ept, backing) = vm(&store);
        let before = translations(&ept, &store);
        let (done, flush) = backing.install(&ept, &store, &found, REGION);
        prop_assert_eq!(done, Ok(()));
        if let Some(flush) = flush { flush.complete(&store); }
        let mut promised = before.clone();
        for page in 0..PAGES {
            promised[(MIB * 4 / 4096 + place(page)) as usize] = Some(Hpa::new(REGION.get() + page * 4096));
        }
        prop_assert!(translations(&ept, &store) == promised);
        if let Some(flush) = backing.restore(&ept, &store, &found) { flush.complete(&store); }
        prop_assert!(translations(&ept, &store) == before);
        let small = (0..RAM_BYTES / (2 * MIB))
            .filter(|chunk| ept.translate(&store, Gpa::new(chunk * 2 * MIB)).map(|t| t.size) == Some(PageSize::Size4K))
            .count();
        prop_assert_eq!(small, 0, "small pages are merged again");
        ept.destroy(&store);
        prop_assert_eq!(store.live_tables(), 0, "no table is leaked");
    }

    /// Without frames for tables at any step: `ENOMEM`, and every translation is what it was.
    #[test]
    fn out_of_tables_changes_nothing(allowed in 0..5_usize, stride in 1..3_u64) {
        let guest = Guest::new(|page| (4 * MIB + page * stride * 4096) | PW);
        let found = guest.plan(VA, PAGES).expect("all pages are fine");
        let store = HistoryStore::new();
        let (mut ept, backing) = vm(&store);
        let before = translations(&ept, &store);
        store.allow_allocations(Some(allowed));
        let (done, flush) = backing.install(&ept, &store, &found, REGION);
        if let Some(flush) = flush { flush.complete(&store); }
        store.allow_allocations(None);
        if done.is_err() {
            prop_assert_eq!(done, Err(Errno::NoMem));
            prop_assert!(translations(&ept, &store) == before);
        } else {
            prop_assert!(translations(&ept, &store) != before);
        }
        ept.destroy(&store);
        prop_assert_eq!(store.live_tables(), 0);
    }
}

/// What [`Planner`] finds by steps of that many pages, and how many it took.
fn by_steps(guest: &Guest, most: u64) -> (Result<Plan, Errno>, u64) {
    let mut planner = match Planner::new(LAYOUT, Gva::new(VA), PAGES) {
        Ok(planner) => planner,
        Err(errno) => return (Err(errno), 0),
    };
    for steps in 1.. {
        match planner.step(&PAGING, &guest.tables, most) {
            Ok(Progress::More) => {}
            Ok(Progress::Done(plan)) => return (Ok(plan), steps),
            Err(errno) => return (Err(errno), steps),
        }
    }
    unreachable!("a plan has an end")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 8 }, ..ProptestConfig::default() })]

    /// In pieces of any size a range is planned, installed and given back as in one.
    #[test]
    fn pieces_of_any_size_do_the_same(
        order in Just((0..1200_u64).collect::<Vec<_>>()).prop_shuffle(),
        shuffled in any::<bool>(),
        most in 1..300_u64,
    ) {
        let guest = Guest::new(|page| {
            let place = if shuffled { order[page as usize % 1200] } else { page * 2 };
            (4 * MIB + place * 4096) | PW
        });
        let whole = guest.plan(VA, PAGES).expect("all pages are fine");
        prop_assert!(whole.runs.is_sorted_by_key(|run| run.gpa));
        let (found, steps) = by_steps(&guest, most);
        prop_assert_eq!(found.as_ref(), Ok(&whole));
        prop_assert!(steps >= PAGES / most);

        let store = HistoryStore::new();
        let (mut ept, backing) = vm(&store);
        let before = translations(&ept, &store);
        let settle = |flush: Option<Flush>| if let Some(flush) = flush { flush.complete(&store) };
        let mut next = 0;
        while next < whole.runs.len() {
            let (now, flush) = backing
                .install_from(&ept, &store, &whole, REGION, next, most)
                .expect("there are frames");
            prop_assert!(now > next, "each piece brings it on");
            next = now;
            settle(flush);
        }
        let promised = translations(&ept, &store);
        let mut next = 0;
        while next < whole.runs.len() {
            let (now, flush) = backing.restore_from(&ept, &store, &whole, next, most);
            prop_assert!(now > next, "each piece brings it on");
            next = now;
            settle(flush);
        }
        prop_assert!(translations(&ept, &store) == before);
        let (done, flush) = backing.install(&ept, &store, &whole, REGION);
        prop_assert_eq!(done, Ok(()));
        settle(flush);
        prop_assert!(translations(&ept, &store) == promised);
        settle(backing.restore(&ept, &store, &whole));
        ept.destroy(&store);
        prop_assert_eq!(store.live_tables(), 0);
    }
}

/// What "mapped already" means.
#[test]
fn plans_are_equal_if_the_same_pages_stand_behind_the_same_address() {
    let scattered = |page: u64| (4 * MIB + (page ^ 1) * 4096) | PW;
    let plan = |guest: Guest| guest.plan(VA, PAGES).expect("all is well");
    assert_eq!(plan(Guest::new(scattered)), plan(Guest::new(scattered)));
    assert_ne!(plan(Guest::new(scattered)), plan(Guest::new(straight)));
    // The same pages in another order.
    let swapped = |page: u64| scattered(if page < 2 { page ^ 1 } else { page });
    assert_ne!(plan(Guest::new(scattered)), plan(Guest::new(swapped)));
    // A large page and small ones are the same pages.
    let mut large = Guest::new(straight);
    large.tables.set(0x3000, 0, (8 * MIB) | PW | (1 << 7));
    assert_eq!(plan(large), plan(Guest::new(straight)));
}
