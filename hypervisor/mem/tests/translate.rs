//! Translations in the modes before 64-bit mode, and the faults of data accesses.

use nagaya_mem::test_support::GuestTables;
use nagaya_mem::{
    Access, AccessFault, Gpa, GuestRead, PageSize, PagingState, Walk, WalkFault, access,
    access_and_mark, translate,
};

const OFF: PagingState = PagingState {
    cr0: 1,
    cr3: 0x1000,
    cr4: 0,
    efer: 0,
};
const TWO_LEVELS: PagingState = PagingState {
    cr0: 1 << 31 | 1 << 16 | 1,
    // PSE.
    cr4: 1 << 4,
    ..OFF
};
const PAE: PagingState = PagingState {
    // PAE; NXE.
    cr4: 1 << 5,
    efer: 1 << 11,
    cr3: 0x1020,
    ..TWO_LEVELS
};
const ALL: u64 = 7;
const LARGE: u64 = 1 << 7;
const READ: Access = Access {
    writes: false,
    is_user: false,
    is_smap_off: false,
};

/// Sets an entry of 32 bits, whose neighbour is `other`.
fn set_half(memory: &mut GuestTables, table: u64, index: u64, entry: u64, other: u64) {
    let word = if index.is_multiple_of(2) {
        entry | other << 32
    } else {
        entry << 32 | other
    };
    memory.set(table, index / 2, word);
}

#[test]
fn without_paging_an_address_is_its_own() {
    let found = translate(&OFF, &GuestTables::new(), 0x1_FEE0_0030).map(|found| found.gpa);
    assert_eq!(found, Ok(Gpa::new(0xFEE0_0030)));
    let write = Access {
        writes: true,
        is_user: true,
        ..READ
    };
    assert_eq!(
        access(&OFF, &GuestTables::new(), 0x1234, write),
        Ok(Gpa::new(0x1234))
    );
}

#[test]
fn two_levels_of_narrow_entries_are_walked() {
    for index in [4, 5] {
        let linear = index << 22 | 7 << 12 | 0x678;
        let mut memory = GuestTables::new();
        set_half(&mut memory, 0x1000, index, 0x2000 | ALL, 0);
        set_half(&mut memory, 0x2000, 7, 0x9876_5000 | 3, 0x1111);
        let found = translate(&TWO_LEVELS, &memory, linear);
        let expected = Walk {
            gpa: Gpa::new(0x9876_5678),
            size: PageSize::Size4K,
            writable: true,
            user: false,
            executable: true,
        };
        assert_eq!(found, Ok(expected));
        assert_eq!(
            translate(&TWO_LEVELS, &memory, linear + (1 << 12)),
            Err(WalkFault::NotPresent { level: 1 })
        );
        assert_eq!(
            translate(&TWO_LEVELS, &memory, linear ^ 1 << 22),
            Err(WalkFault::NotPresent { level: 2 })
        );
    }
}

#[test]
fn a_large_page_of_two_levels_has_22_bits_and_more_above_32() {
    let mut memory = GuestTables::new();
    // Bits 39:32 are 0x12.
    let entry = 0xFEC0_0000 | 0x12 << 13 | LARGE | ALL;
    set_half(&mut memory, 0x1000, 8, entry, 0);
    set_half(&mut memory, 0x1000, 10, entry | 1 << 21, 0);
    let linear = 8 << 22 | 0x3F_FFFF;
    let found = translate(&TWO_LEVELS, &memory, linear).map(|found| found.gpa);
    assert_eq!(found, Ok(Gpa::new(0x12_FEFF_FFFF)));
    assert_eq!(
        translate(&TWO_LEVELS, &memory, 10 << 22),
        Err(WalkFault::Reserved { level: 2 })
    );
    // Without PSE it leads to a table.
    let plain = PagingState {
        cr4: 0,
        ..TWO_LEVELS
    };
    assert!(matches!(
        translate(&plain, &memory, linear),
        Err(WalkFault::Unreadable { level: 1, .. } | WalkFault::NotPresent { level: 1 })
    ));
}

#[test]
fn pae_begins_with_one_of_four_entries() {
    let mut memory = GuestTables::new();
    // The table of four begins at 0x1020.
    memory.set(0x1000, 4 + 3, 0x2001);
    memory.set(0x2000, 5, 0x3000 | ALL);
    memory.set(0x2000, 6, 0x1_2340_0000 | LARGE | ALL | 1 << 63);
    memory.set(0x3000, 9, 0x1_0000_5000 | 1);
    let linear = 3 << 30 | 5 << 21 | 9 << 12 | 0x10;
    let found = translate(&PAE, &memory, linear).expect("is mapped");
    assert_eq!(found.gpa, Gpa::new(0x1_0000_5010));
    assert!(!found.writable && !found.user && found.executable);
    let large = translate(&PAE, &memory, 3 << 30 | 6 << 21 | 0x12345).expect("is mapped");
    assert_eq!(large.gpa, Gpa::new(0x1_2341_2345));
    assert_eq!(large.size, PageSize::Size2M);
    assert!(!large.executable);
    assert_eq!(
        translate(&PAE, &memory, 2 << 30),
        Err(WalkFault::NotPresent { level: 3 })
    );
}

#[test]
fn faults_say_what_a_cpu_says() {
    let mut memory = GuestTables::new();
    set_half(&mut memory, 0x1000, 0, 0x2000 | ALL, 0);
    // A supervisor's page that is read-only, with a user's beside it.
    set_half(&mut memory, 0x2000, 0, 0x5001, 0x6007);
    let write = Access {
        writes: true,
        ..READ
    };
    let user = Access {
        is_user: true,
        ..READ
    };
    let fault = |paging: &PagingState, linear, kind| {
        access(paging, &memory, linear, kind).expect_err("is refused")
    };
    assert_eq!(
        access(&TWO_LEVELS, &memory, 0x10, READ),
        Ok(Gpa::new(0x5010))
    );
    assert_eq!(fault(&TWO_LEVELS, 0x10, write), AccessFault::Page(3));
    assert_eq!(fault(&TWO_LEVELS, 0x10, user), AccessFault::Page(5));
    assert_eq!(fault(&TWO_LEVELS, 0x2000, user), AccessFault::Page(4));
    assert_eq!(fault(&TWO_LEVELS, 0x2000, write), AccessFault::Page(2));
    let unprotected = PagingState {
        cr0: TWO_LEVELS.cr0 & !(1 << 16),
        ..TWO_LEVELS
    };
    assert!(access(&unprotected, &memory, 0x10, write).is_ok());
    let smap = PagingState {
        cr4: TWO_LEVELS.cr4 | 1 << 21,
        ..TWO_LEVELS
    };
    assert_eq!(fault(&smap, 0x1000, READ), AccessFault::Page(1));
    let explicit = Access {
        is_smap_off: true,
        ..READ
    };
    assert!(access(&smap, &memory, 0x1000, explicit).is_ok());
    assert!(access(&smap, &memory, 0x1000, user).is_ok());
}

const WRITE: Access = Access {
    writes: true,
    ..READ
};

fn word(memory: &GuestTables, at: u64) -> u64 {
    memory.read_u64(Gpa::new(at)).unwrap_or(0)
}

#[test]
fn a_carried_out_access_marks_the_way_to_its_page_as_a_cpu_does() {
    const MARKS: u64 = 0x60;
    // 32-bit paging: entry 1 of the directory, entry 2 of the table, which share words with others.
    let mut memory = GuestTables::new();
    set_half(&mut memory, 0x1000, 1, 0x2000 | ALL, 0);
    set_half(&mut memory, 0x2000, 2, 0x7000 | ALL, 0x8000 | ALL);
    let linear = 1 << 22 | 2 << 12 | 0x10;
    let found = access_and_mark(&TWO_LEVELS, &memory, linear, READ);
    assert_eq!(found, Ok(Gpa::new(0x7010)));
    assert_eq!(word(&memory, 0x1000), (0x2000 | ALL | 0x20) << 32);
    assert_eq!(
        word(&memory, 0x2008),
        (0x8000 | ALL) << 32 | 0x7000 | ALL | 0x20
    );
    let _ = access_and_mark(&TWO_LEVELS, &memory, linear, WRITE);
    assert_eq!(
        word(&memory, 0x2008),
        (0x8000 | ALL) << 32 | 0x7000 | ALL | MARKS
    );
    assert_eq!(
        word(&memory, 0x1000),
        (0x2000 | ALL | 0x20) << 32,
        "a table is not dirty"
    );

    // PAE paging: none of the first four entries has such bits; a large page has.
    let mut memory = GuestTables::new();
    memory.set(0x1000, 4, 0x2000 | 1);
    memory.set(0x2000, 3, 0x60_0000 | ALL | LARGE);
    let found = access_and_mark(&PAE, &memory, 3 << 21 | 5, WRITE);
    assert_eq!(found, Ok(Gpa::new(0x60_0005)));
    assert_eq!(word(&memory, 0x1020), 0x2000 | 1);
    assert_eq!(word(&memory, 0x2018), 0x60_0000 | ALL | LARGE | MARKS);

    // What is refused marks nothing.
    let mut memory = GuestTables::new();
    set_half(&mut memory, 0x1000, 0, 0x2000 | ALL, 0);
    set_half(&mut memory, 0x2000, 0, 0x7000 | 1, 0);
    let found = access_and_mark(&TWO_LEVELS, &memory, 0, WRITE);
    assert_eq!(found, Err(AccessFault::Page(3)));
    assert_eq!(word(&memory, 0x1000), 0x2000 | ALL);
    assert_eq!(word(&memory, 0x2000), 0x7000 | 1);
}
