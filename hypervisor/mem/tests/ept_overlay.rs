//! An overlay shows what it is told to show, everything else as the VM has it, and changes nothing of the VM's.

mod common;

use std::collections::BTreeSet;

use common::{ALL_FEATURES, Checked, GIB, MIB2, Op, PAGE, RWX};
use nagaya_mem::test_support::{HistoryStore, View};
use nagaya_mem::{EptError, FrameStore, Gpa, Hpa, Overlay, Permissions};

const READ_EXECUTE: Permissions = Permissions::READ.union(Permissions::EXECUTE);

/// 2 MiB and three pages of RAM from 0 on, and a page above 4 GiB.
fn vm() -> Checked {
    let mut checked = Checked::new(HistoryStore::new(), ALL_FEATURES);
    for op in [
        Op::map(0, GIB, MIB2 + 3 * PAGE),
        Op::map(4 * GIB, 2 * GIB, PAGE),
    ] {
        checked
            .step(&op, &BTreeSet::new())
            .expect("the preparation works");
        checked.settle();
    }
    checked
}

fn page(hpa: u64, permissions: Permissions) -> View {
    View::Page {
        hpa,
        permissions: permissions.bits(),
        memory_type: 6,
    }
}

#[test]
fn what_is_shown_is_seen_and_all_else_is_as_the_vm_has_it() {
    let vm = vm();
    let (tables, base) = (vm.store.live_tables(), vm.ept.eptp());
    // Beside RAM in its last table, where no table of the lowest level is, and where there is none at all.
    let places = [MIB2 + 3 * PAGE, 2 * MIB2, 3 * GIB + 7 * PAGE, 600 * GIB];
    let mut overlay = Overlay::new(&vm.store, &vm.ept).expect("frames");
    for (index, place) in places.into_iter().enumerate() {
        let hpa = 7 * GIB + index as u64 * PAGE;
        assert_eq!(
            overlay.show(&vm.store, Gpa::new(place), Hpa::new(hpa), READ_EXECUTE),
            Ok(())
        );
        assert!(overlay.shows(Gpa::new(place)));
    }
    for (index, place) in places.into_iter().enumerate() {
        let hpa = 7 * GIB + index as u64 * PAGE;
        assert_eq!(
            vm.store.view(overlay.eptp(), place),
            page(hpa, READ_EXECUTE)
        );
        assert_eq!(vm.store.view(base, place), View::Absent);
        for beside in [place - PAGE, place + PAGE] {
            let expected = vm.store.view(base, beside);
            assert_eq!(
                vm.store.view(overlay.eptp(), beside),
                expected,
                "{beside:#x}"
            );
        }
    }
    for ram in [0, MIB2 - PAGE, MIB2, MIB2 + 2 * PAGE, 4 * GIB] {
        assert_eq!(vm.store.view(overlay.eptp(), ram), vm.store.view(base, ram));
    }
    // The same page with more rights, and another frame.
    let first = Gpa::new(places[0]);
    let tables_now = vm.store.live_tables();
    assert_eq!(
        overlay.show(&vm.store, first, Hpa::new(9 * GIB), RWX),
        Ok(())
    );
    assert_eq!(
        vm.store.view(overlay.eptp(), first.get()),
        page(9 * GIB, RWX)
    );
    assert_eq!(vm.store.live_tables(), tables_now);
    overlay.destroy(&vm.store);
    assert_eq!(vm.store.live_tables(), tables);
    assert_eq!(vm.store.view(base, 0), page(GIB, RWX));
}

#[test]
fn pages_of_the_vm_and_bad_addresses_are_refused() {
    let vm = vm();
    let mut overlay = Overlay::new(&vm.store, &vm.ept).expect("frames");
    let mut show = |gpa: u64, hpa: u64, permissions| {
        overlay.show(&vm.store, Gpa::new(gpa), Hpa::new(hpa), permissions)
    };
    for ram in [0, MIB2 - PAGE, MIB2, 4 * GIB] {
        let gpa = Gpa::new(ram);
        assert_eq!(show(ram, GIB, RWX), Err(EptError::AlreadyMapped { gpa }));
    }
    assert_eq!(show(GIB + 1, GIB, RWX), Err(EptError::Misaligned));
    assert_eq!(show(GIB, GIB + 8, RWX), Err(EptError::Misaligned));
    assert_eq!(show(1 << 48, GIB, RWX), Err(EptError::OutOfRange));
    assert_eq!(
        show(GIB, GIB, Permissions::WRITE),
        Err(EptError::BadPermissions)
    );
    assert!(!overlay.shows(Gpa::new(GIB)));
    overlay.destroy(&vm.store);
}

#[test]
fn without_frames_nothing_is_shown_and_nothing_is_lost() {
    let vm = vm();
    let tables = vm.store.live_tables();
    for frames in 0..4 {
        vm.store.allow_allocations(Some(frames));
        let Ok(mut overlay) = Overlay::new(&vm.store, &vm.ept) else {
            assert_eq!(frames, 0);
            continue;
        };
        let shown = overlay.show(&vm.store, Gpa::new(600 * GIB), Hpa::new(GIB), RWX);
        assert_eq!(shown, Err(EptError::OutOfTables), "{frames}");
        assert_eq!(vm.store.view(overlay.eptp(), 600 * GIB), View::Absent);
        assert_eq!(vm.store.view(overlay.eptp(), 0), page(GIB, RWX));
        overlay.destroy(&vm.store);
        assert_eq!(vm.store.live_tables(), tables);
    }
    vm.store.allow_allocations(None);
}

/// A VM that shares tables with another may not write through the link to them: neither may an overlay.
#[test]
fn rights_that_a_link_withholds_are_withheld() {
    let vm = vm();
    let address = |entry: u64| Hpa::new(entry & 0x000F_FFFF_FFFF_F000);
    let level_3 = address(vm.store.load(vm.ept.root(), 0));
    let link = vm.store.load(level_3, 0);
    let withheld = vm.store.compare_exchange(level_3, 0, link, link & !2);
    assert!(withheld.is_ok());
    let mut overlay = Overlay::new(&vm.store, &vm.ept).expect("frames");
    let place = Gpa::new(MIB2 + 3 * PAGE);
    assert_eq!(
        overlay.show(&vm.store, place, Hpa::new(7 * GIB), RWX),
        Ok(())
    );
    let seen = vm.store.view(overlay.eptp(), place.get());
    assert_eq!(seen, page(7 * GIB, RWX));
    for ram in [MIB2, MIB2 + 2 * PAGE] {
        let seen = vm.store.view(overlay.eptp(), ram);
        assert_eq!(seen, page(GIB + ram, READ_EXECUTE));
    }
    overlay.destroy(&vm.store);
}

/// What the CPU marks in the VM's own tables through the overlay stays there.
#[test]
fn tables_without_a_shown_page_are_the_vms_own() {
    let vm = vm();
    let mut overlay = Overlay::new(&vm.store, &vm.ept).expect("frames");
    let shown = overlay.show(&vm.store, Gpa::new(3 * GIB), Hpa::new(7 * GIB), RWX);
    assert_eq!(shown, Ok(()));
    // RAM's lowest table is reached by both roots: what is changed there is seen through both.
    let (root, level_4) = (vm.ept.root(), 0);
    let address = |entry: u64| Hpa::new(entry & 0x000F_FFFF_FFFF_F000);
    let level_3 = address(vm.store.load(root, level_4));
    let level_2 = address(vm.store.load(level_3, 0));
    let entry = vm.store.load(level_2, 0);
    assert!(
        vm.store
            .compare_exchange(level_2, 0, entry, entry | 1 << 8)
            .is_ok()
    );
    let through = Hpa::new(overlay.eptp() & 0x000F_FFFF_FFFF_F000);
    let private = address(vm.store.load(through, 0));
    assert_ne!(private, level_3);
    assert_eq!(address(vm.store.load(private, 0)), level_2);
    overlay.destroy(&vm.store);
}
