//! The walk of a guest's page tables: what it finds, and every kind of bad entry.

use nagaya_mem::test_support::GuestTables;
use nagaya_mem::{Gpa, Gva, PageSize, PagingState, Walk, WalkFault, walk, walk_block};
use proptest::prelude::*;

const PAGING: PagingState = PagingState {
    cr0: 1 << 31 | 1,
    cr3: PML4,
    cr4: 1 << 5,
    // LMA, LME and NXE.
    efer: 1 << 11 | 1 << 10 | 1 << 8,
};
const PML4: u64 = 0x1000;
/// The tables of levels 4 to 1.
const TABLES: [u64; 4] = [PML4, 0x2000, 0x3000, 0x4000];
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const LARGE_PAT: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;
const ALL: u64 = PRESENT | WRITABLE | USER;
/// An address with another index at each level.
const GVA: Gva = Gva::new(0x0000_0403_0080_5678);
const INDEXES: [u64; 4] = [8, 12, 4, 5];
const PAGE: u64 = 0x0765_4000;

/// Tables that map `GVA` by a page of level `leaf` at `target`; `change` gets the entries of levels 4 down to `leaf`.
fn tables(leaf: usize, target: u64, change: impl FnOnce(&mut [u64])) -> GuestTables {
    let mut entries: Vec<u64> = TABLES[1..=4 - leaf]
        .iter()
        .map(|table| table | ALL)
        .collect();
    entries.push(target | ALL | if leaf > 1 { LARGE } else { 0 });
    change(&mut entries);
    let mut memory = GuestTables::new();
    for ((table, index), entry) in TABLES.into_iter().zip(INDEXES).zip(entries) {
        memory.set(table, index, entry);
    }
    memory
}

fn small(change: impl FnOnce(&mut [u64])) -> Result<Walk, WalkFault> {
    walk(&PAGING, &tables(1, PAGE, change), GVA)
}

#[test]
fn a_page_of_each_size_is_found_with_its_offset() {
    for (leaf, target, size) in [
        (1, PAGE, PageSize::Size4K),
        (2, 0x0760_0000, PageSize::Size2M),
        (3, 0x4000_0000, PageSize::Size1G),
    ] {
        let found = walk(&PAGING, &tables(leaf, target, |_| ()), GVA);
        let gpa = Gpa::new(target + GVA.get() % size.bytes());
        assert_eq!(
            found,
            Ok(Walk {
                gpa,
                size,
                writable: true,
                user: true,
                executable: true
            })
        );
    }
}

#[test]
fn an_entry_that_is_not_present_ends_the_walk_at_its_level() {
    for position in 0..4 {
        // All other bits of such an entry belong to the guest's software.
        for entry in [0, !PRESENT] {
            let fault = small(|entries| entries[position] = entry);
            assert_eq!(
                fault,
                Err(WalkFault::NotPresent {
                    level: 4 - position as u8
                })
            );
        }
    }
}

#[test]
fn one_level_is_enough_to_take_a_permission_away() {
    for position in 0..4 {
        for (bit, name) in [(WRITABLE, "write"), (USER, "user"), (NO_EXECUTE, "execute")] {
            let found = small(|entries| entries[position] ^= bit).expect("it is mapped");
            assert_eq!(found.writable, bit != WRITABLE, "{name} at {position}");
            assert_eq!(found.user, bit != USER, "{name} at {position}");
            assert_eq!(found.executable, bit != NO_EXECUTE, "{name} at {position}");
        }
    }
}

#[test]
fn write_protection_counts_although_the_supervisor_could_ignore_it() {
    let memory = tables(1, PAGE, |entries| entries[3] &= !WRITABLE);
    for write_protect in [0, 1 << 16] {
        let paging = PagingState {
            cr0: PAGING.cr0 | write_protect,
            ..PAGING
        };
        assert!(walk(&paging, &memory, GVA).is_ok_and(|found| !found.writable));
    }
}

#[test]
fn no_execute_is_a_reserved_bit_while_it_is_off() {
    let paging = PagingState {
        efer: PAGING.efer & !(1 << 11),
        ..PAGING
    };
    for position in 0..4 {
        let memory = tables(1, PAGE, |entries| entries[position] |= NO_EXECUTE);
        assert_eq!(
            walk(&paging, &memory, GVA),
            Err(WalkFault::Reserved {
                level: 4 - position as u8
            })
        );
    }
    assert!(walk(&paging, &tables(1, PAGE, |_| ()), GVA).is_ok_and(|found| found.executable));
}

#[test]
fn a_large_page_in_the_root_is_reserved() {
    assert_eq!(
        small(|entries| entries[0] |= LARGE),
        Err(WalkFault::Reserved { level: 4 })
    );
}

#[test]
fn misaligned_large_pages_are_reserved_but_their_pat_bit_is_not() {
    for (leaf, target, bits) in [(2, 0x0760_0000, 13..21), (3, 0x4000_0000, 13..30)] {
        for bit in bits {
            let memory = tables(leaf, target | 1 << bit, |_| ());
            let fault = Err(WalkFault::Reserved { level: leaf as u8 });
            assert_eq!(
                walk(&PAGING, &memory, GVA),
                fault,
                "bit {bit} at level {leaf}"
            );
        }
        let found = walk(&PAGING, &tables(leaf, target | LARGE_PAT, |_| ()), GVA)
            .expect("PAT is no address bit");
        assert_eq!(found.gpa.get(), target + GVA.get() % found.size.bytes());
    }
}

#[test]
fn bit_7_of_a_small_page_is_its_pat_bit() {
    assert!(small(|entries| entries[3] |= LARGE).is_ok_and(|found| found.size == PageSize::Size4K));
}

#[test]
fn software_and_protection_key_bits_are_no_address_bits() {
    let found = small(|entries| {
        entries
            .iter_mut()
            .for_each(|entry| *entry |= 0x7FF << 52 | 7 << 9)
    });
    assert_eq!(found.map(|found| found.gpa), Ok(Gpa::new(PAGE + 0x678)));
}

#[test]
fn a_table_outside_ram_is_an_error_that_names_the_entry() {
    for position in 0..3 {
        let far = 0xF_FFFF_FFFF_F000;
        let entry = Gpa::new(far + INDEXES[position + 1] * 8);
        let fault = Err(WalkFault::Unreadable {
            level: 3 - position as u8,
            entry,
        });
        assert_eq!(small(|entries| entries[position] = far | ALL), fault);
    }
    let paging = PagingState {
        cr3: 0x9000,
        ..PAGING
    };
    let fault = WalkFault::Unreadable {
        level: 4,
        entry: Gpa::new(0x9000 + INDEXES[0] * 8),
    };
    assert_eq!(walk(&paging, &tables(1, PAGE, |_| ()), GVA), Err(fault));
}

#[test]
fn flags_and_the_process_context_in_cr3_are_no_address_bits() {
    let paging = PagingState {
        cr3: PML4 | 0xFFF | 1 << 63,
        ..PAGING
    };
    assert!(walk(&paging, &tables(1, PAGE, |_| ()), GVA).is_ok());
}

#[test]
fn a_non_canonical_address_is_refused_before_anything_is_read() {
    for gva in [0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63] {
        assert_eq!(
            walk(&PAGING, &GuestTables::new(), Gva::new(gva)),
            Err(WalkFault::NotCanonical)
        );
    }
}

#[test]
fn other_paging_modes_are_unsupported_and_not_misread() {
    let memory = tables(1, PAGE, |_| ());
    for (name, paging) in [
        ("no paging", PagingState { cr0: 1, ..PAGING }),
        (
            "PAE outside long mode",
            PagingState {
                efer: PAGING.efer & !(1 << 10),
                ..PAGING
            },
        ),
        (
            "32-bit",
            PagingState {
                cr4: 0,
                efer: 0,
                ..PAGING
            },
        ),
        (
            "5-level",
            PagingState {
                cr4: PAGING.cr4 | 1 << 12,
                ..PAGING
            },
        ),
    ] {
        assert_eq!(
            walk(&paging, &memory, GVA),
            Err(WalkFault::Unsupported),
            "{name}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 16 } else { 2000 }, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Four levels at most, whatever the guest wrote: tables that point at themselves, nonsense, anything.
    #[test]
    fn no_tables_make_the_walk_run_away(
        entries in proptest::array::uniform4(prop_oneof![any::<u64>(), (0..5_u64).prop_map(|table| table << 12 | ALL)]),
        gva in any::<u64>(), nx in any::<bool>(),
    ) {
        struct Loops([u64; 4], std::cell::Cell<u32>);
        impl nagaya_mem::GuestRead for Loops {
            fn read_u64(&self, gpa: Gpa) -> Option<u64> {
                self.1.set(self.1.get() + 1);
                self.0.get((gpa.get() >> 12) as usize).copied()
            }
        }
        let memory = Loops(entries, std::cell::Cell::new(0));
        let paging = PagingState { efer: if nx { PAGING.efer } else { 1 << 10 }, cr3: 0x1000, ..PAGING };
        if let Ok(found) = walk(&paging, &memory, Gva::new(gva)) {
            prop_assert!(found.gpa.get() < 1 << 52);
            prop_assert_eq!(found.gpa.get() % found.size.bytes(), gva % found.size.bytes());
        }
        prop_assert!(memory.1.get() <= 4);
    }
}

/// Everything that `walk_block` tells, page by page, and the fault that it ends with.
fn by_blocks(
    paging: &PagingState,
    tables: &GuestTables,
    va: u64,
    pages: u64,
) -> (Vec<(u64, bool)>, Option<WalkFault>) {
    let mut found = Vec::new();
    let mut done = 0;
    while done < pages {
        let at = Gva::new(va + done * 4096);
        let told = |gpa: Gpa, pages, writable| {
            found.extend((0..pages).map(|page| (gpa.get() + page * 4096, writable)));
        };
        match walk_block(paging, tables, at, pages - done, told) {
            Ok(more) => done += more,
            Err(fault) => return (found, Some(fault)),
        }
    }
    (found, None)
}

#[test]
fn a_walk_by_blocks_finds_what_single_walks_find_up_to_the_first_fault() {
    // Small pages, then a large one, then small ones again, of which one is read-only and one absent.
    let mut tables = GuestTables::new();
    for table in [0x1000, 0x2000, 0x3000] {
        tables.page(table);
    }
    tables.set(0x1000, 0, 0x2000 | 3);
    tables.set(0x2000, 1, 0x3000 | 3);
    for (directory, table) in [(0, 0x10000), (2, 0x11000)] {
        tables.set(0x3000, directory, table | 3);
        for slot in 0..512 {
            let rights = if slot == 300 { 1 } else { 3 };
            tables.set(
                table,
                slot,
                (0x80_0000 + (slot ^ 1) * 4096 + directory) & !0xFFF | rights,
            );
        }
    }
    tables.set(0x3000, 1, 0x40_0000 | 0x83);
    tables.set(0x11000, 400, 0);
    let paging = PagingState {
        cr3: 0x1000,
        ..PAGING
    };
    for (first, pages) in [(0, 1500), (3, 61), (100, 900), (511, 514), (1024, 400)] {
        let va = (1 << 30) + first * 4096;
        let mut single = Vec::new();
        let mut fault = None;
        for page in 0..pages {
            match walk(&paging, &tables, Gva::new(va + page * 4096)) {
                Ok(page) => single.push((page.gpa.get(), page.writable)),
                Err(found) => {
                    fault = Some(found);
                    break;
                }
            }
        }
        assert_eq!(
            by_blocks(&paging, &tables, va, pages),
            (single, fault),
            "{first}+{pages}"
        );
    }
    let compat = PagingState { efer: 0, ..paging };
    let refused = walk_block(&compat, &tables, Gva::new(1 << 30), 1, |_, _, _| {});
    assert_eq!(refused, Err(WalkFault::Unsupported));
}
