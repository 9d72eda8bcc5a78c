//! What `map_shared` promises, one case for each `case=` on the command line (or several with commas). Every case starts and
//! ends with the region unmapped.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering;

use nagaya_guests::{REGION_VA, check};
use nagaya_rt::abi::hypercall::{FORGET_DOORBELLS, FORGET_REGION, FORGET_VCPU};
use nagaya_rt::own::OwnRange;
use nagaya_rt::region::SharedRegion;
use nagaya_rt::{Errno, args, group, hypercall};

nagaya_rt::entry!(main);

const PAGES: u64 = 1025;
const BYTES: u64 = PAGES * 4096;

fn main() {
    for case in args::get("case").unwrap_or("").split(',') {
        match case {
            "happy" => happy(),
            "unaligned" => refused(case, REGION_VA + 8, Errno::Inval),
            "noncanonical" => noncanonical(),
            "unmapped" => refused(case, 0x70_0000_0000, Errno::Fault),
            "readonly" => readonly(),
            "partly" => partly(),
            "alias" => alias(),
            "twice" => twice(),
            "other-address" => other_address(),
            "nonmember" => nonmember(),
            "own-data-back" => own_data_back(),
            "remap" => remap(),
            "device" => device(),
            "upper-half" => upper_half(),
            "small-pages" => small_pages(),
            "unmap-wrong" => unmap_wrong(),
            "malformed-while-mapped" => malformed_while_mapped(),
            "other-pages" => other_pages(),
            "one-other-page" => one_other_page(),
            "bad-tables-while-mapped" => bad_tables_while_mapped(),
            "forget" => forget(),
            "forget-doorbells" => forget_doorbells(),
            "lives" => lives(),
            "scarce" => scarce(),
            other => panic!("case={other} on the command line is none of this guest's"),
        }
    }
    check::finish();
}

/// Own RAM behind `va`, its first word `mark`.
fn back(va: u64, mark: u64) -> OwnRange {
    let range = OwnRange::map(va, PAGES).expect("RAM for a region");
    range.cell(0).store(mark, Ordering::Relaxed);
    range
}

fn refused(case: &str, va: u64, errno: Errno) {
    check::equal(case, hypercall::map_shared(va), Err(errno));
}

fn happy() {
    let region = SharedRegion::map_at(REGION_VA);
    check::holds("happy", region.is_ok());
    if let Ok(region) = region {
        let last = region.bytes() - 8;
        check::equal(
            "region-is-zeroed",
            region.u64(last).map(|cell| cell.load(Ordering::Relaxed)),
            Some(0),
        );
        if let Some(cell) = region.u64(last) {
            cell.store(5, Ordering::Relaxed);
        }
        check::equal(
            "last-word",
            region.u64(last).map(|cell| cell.swap(0, Ordering::Relaxed)),
            Some(5),
        );
        check::equal("beyond-the-end", region.u64(last + 8).is_none(), true);
        check::equal(
            "group-knows",
            hypercall::group_info().map(|info| info.region_va),
            Ok(REGION_VA),
        );
        check::equal("unmap", region.unmap(), Ok(()));
        check::equal(
            "address-is-free-again",
            hypercall::group_info().map(|info| info.region_va),
            Ok(0),
        );
    }
}

/// While the hypervisor has no frames for tables, at each of them in turn: `ENOMEM`, and everything is as it was.
fn scarce() {
    const MOST: u64 = 64;
    // Scattered, so that it takes tables of 4 KiB pages everywhere.
    let own = OwnRange::map_scattered(REGION_VA, PAGES).expect("RAM for a scattered region");
    own.cell(0).store(77, Ordering::Relaxed);
    own.cell(BYTES - 8).store(78, Ordering::Relaxed);
    let (mut refused, mut changed) = (0, 0);
    let mut answer = hypercall::map_shared(REGION_VA);
    while answer == Err(Errno::NoMem) && refused < MOST {
        refused += 1;
        let words = [0, BYTES - 8].map(|at| own.cell(at).load(Ordering::Relaxed));
        let address = hypercall::group_info().map(|info| info.region_va);
        let unmapped = hypercall::unmap_shared(REGION_VA);
        if (words, address) != ([77, 78], Ok(0)) || unmapped.is_ok() {
            changed += 1;
        }
        own.cell(0).store(77, Ordering::Relaxed);
        answer = hypercall::map_shared(REGION_VA);
    }
    check::holds("scarce-fails", refused > 1);
    check::equal("scarce-changes-nothing", changed, 0);
    let seen = own.cell(0).load(Ordering::Relaxed);
    check::equal("scarce-maps", (answer.map(drop), seen), (Ok(()), 0));
    check::holds("scarce-unmaps", hypercall::unmap_shared(REGION_VA).is_ok());
    check::equal("scarce-own-again", own.cell(0).load(Ordering::Relaxed), 77);
}

fn noncanonical() {
    refused("noncanonical", 0x0000_8000_0000_0000, Errno::Inval);
    // The range would cross into the hole.
    refused("into-the-hole", 0x0000_7FFF_FFFF_F000, Errno::Inval);
    refused("past-the-last", 0xFFFF_FFFF_FFFF_F000, Errno::Inval);
}

fn readonly() {
    let own = back(REGION_VA, 11);
    own.make_read_only(700).expect("RAM for page tables");
    refused("readonly", REGION_VA, Errno::Fault);
    check::equal(
        "readonly-nothing-changed",
        own.cell(0).load(Ordering::Relaxed),
        11,
    );
}

fn partly() {
    let own = back(REGION_VA, 22);
    own.cell(BYTES - 4096).store(33, Ordering::Relaxed);
    own.unmap_page(1000).expect("RAM for page tables");
    refused("partly", REGION_VA, Errno::Fault);
    check::equal(
        "partly-first-unchanged",
        own.cell(0).load(Ordering::Relaxed),
        22,
    );
    check::equal(
        "partly-last-unchanged",
        own.cell(BYTES - 4096).load(Ordering::Relaxed),
        33,
    );
    check::equal(
        "partly-not-mapped",
        hypercall::unmap_shared(REGION_VA),
        Err(Errno::Inval),
    );
}

fn alias() {
    let own = back(REGION_VA, 44);
    own.alias(9, 0).expect("RAM for page tables");
    refused("alias", REGION_VA, Errno::Fault);
}

fn twice() {
    if let Ok(region) = SharedRegion::map_at(REGION_VA) {
        check::equal("twice", hypercall::map_shared(REGION_VA), Ok(()));
        check::equal("twice-unmap-once", region.unmap(), Ok(()));
        check::equal(
            "twice-unmap-again",
            hypercall::unmap_shared(REGION_VA),
            Err(Errno::Inval),
        );
    }
}

fn other_address() {
    if let Ok(region) = SharedRegion::map_at(REGION_VA) {
        let _own = back(REGION_VA + (1 << 30), 1);
        refused("other-address", REGION_VA + (1 << 30), Errno::AddrInUse);
        check::equal("other-address-unmap", region.unmap(), Ok(()));
    }
}

fn nonmember() {
    let own = back(REGION_VA, 55);
    refused("nonmember", REGION_VA, Errno::Perm);
    check::equal(
        "nonmember-info",
        hypercall::group_info().err(),
        Some(Errno::Perm),
    );
    check::equal(
        "nonmember-doorbell",
        hypercall::doorbell(0),
        Err(Errno::Perm),
    );
    check::equal("nonmember-index", group::my_index(), None);
    check::equal(
        "nonmember-unchanged",
        own.cell(0).load(Ordering::Relaxed),
        55,
    );
}

fn own_data_back() {
    let own = back(REGION_VA, 66);
    own.cell(BYTES - 8).store(67, Ordering::Relaxed);
    check::equal("own-data-map", hypercall::map_shared(REGION_VA), Ok(()));
    check::equal("own-data-hidden", own.cell(0).load(Ordering::Relaxed), 0);
    check::equal("own-data-unmap", hypercall::unmap_shared(REGION_VA), Ok(()));
    check::equal("own-data-back", own.cell(0).load(Ordering::Relaxed), 66);
    check::equal(
        "own-data-back-last",
        own.cell(BYTES - 8).load(Ordering::Relaxed),
        67,
    );
}

fn remap() {
    if let Ok(region) = SharedRegion::map_at(REGION_VA)
        && let Some(cell) = region.u64(64)
    {
        cell.store(77, Ordering::Relaxed);
        check::equal("remap-unmap", region.unmap(), Ok(()));
    }
    // Nobody has it mapped: another address may be fixed now, and the data is still there.
    match SharedRegion::map_at(REGION_VA + (2 << 30)) {
        Ok(region) => {
            check::equal(
                "remap",
                region.u64(64).map(|cell| cell.swap(0, Ordering::Relaxed)),
                Some(77),
            );
            check::equal("remap-unmap-2", region.unmap(), Ok(()));
        }
        Err(errno) => check::equal("remap", Err(errno), Ok(())),
    }
}

fn device() {
    // The identity map shows the group page at its own address: not plain RAM.
    refused(
        "device",
        nagaya_rt::abi::boot::GROUP_PAGE_GPA - 1000 * 4096,
        Errno::Fault,
    );
}

fn upper_half() {
    let va = 0xFFFF_9000_0000_0000;
    match SharedRegion::map_at(va) {
        Ok(region) => {
            check::equal(
                "upper-half",
                hypercall::group_info().map(|info| info.region_va),
                Ok(va),
            );
            check::equal("upper-half-unmap", region.unmap(), Ok(()));
        }
        Err(errno) => check::equal("upper-half", Err(errno), Ok(())),
    }
}

/// Backed page by page from scattered RAM, so that the hypervisor cannot use large pages.
fn small_pages() {
    let own = OwnRange::map_scattered(REGION_VA, PAGES).expect("RAM for a scattered region");
    own.physical_cell(4096).store(88, Ordering::Relaxed);
    own.cell(512 * 4096).store(89, Ordering::Relaxed);
    check::equal("small-pages", hypercall::map_shared(REGION_VA), Ok(()));
    own.cell(512 * 4096).store(90, Ordering::Relaxed);
    check::equal(
        "small-pages-between-untouched",
        own.physical_cell(4096).load(Ordering::Relaxed),
        88,
    );
    check::equal(
        "small-pages-unmap",
        hypercall::unmap_shared(REGION_VA),
        Ok(()),
    );
    check::equal(
        "small-pages-back",
        own.cell(512 * 4096).load(Ordering::Relaxed),
        89,
    );
    check::equal(
        "small-pages-map-again",
        hypercall::map_shared(REGION_VA),
        Ok(()),
    );
    check::equal(
        "small-pages-kept",
        own.cell(512 * 4096).swap(0, Ordering::Relaxed),
        90,
    );
    check::equal(
        "small-pages-unmap-2",
        hypercall::unmap_shared(REGION_VA),
        Ok(()),
    );
}

fn unmap_wrong() {
    if let Ok(region) = SharedRegion::map_at(REGION_VA) {
        check::equal(
            "unmap-wrong",
            hypercall::unmap_shared(REGION_VA + 4096),
            Err(Errno::Inval),
        );
        check::equal("unmap-right", region.unmap(), Ok(()));
    }
}

/// What can be right nowhere is that for every member, whoever has fixed the address.
fn malformed_while_mapped() {
    if let Ok(region) = SharedRegion::map_at(REGION_VA) {
        refused("unaligned-while-mapped", REGION_VA + 8, Errno::Inval);
        refused(
            "noncanonical-while-mapped",
            0x0000_7FFF_FFFF_F000,
            Errno::Inval,
        );
        check::equal("malformed-unmap", region.unmap(), Ok(()));
    }
}

/// The word at the beginning of page `page`.
fn word(range: &OwnRange, page: u64) -> u64 {
    range.cell(page * 4096).load(Ordering::Relaxed)
}

/// That of the physical page behind it, as the one-to-one mapping shows it.
fn physical_word(range: &OwnRange, page: u64) -> u64 {
    range.physical_cell(page * 4096).load(Ordering::Relaxed)
}

/// As a second kernel would: other pages stand behind the address by now, and the region is mapped there again.
fn other_pages() {
    let first = back(REGION_VA, 100);
    let second = back(REGION_VA + (1 << 30), 200);
    let last = PAGES - 1;
    second.cell(last * 4096).store(201, Ordering::Relaxed);
    check::equal("other-pages-map", hypercall::map_shared(REGION_VA), Ok(()));
    first.cell(0).store(7, Ordering::Relaxed);
    first.cell(last * 4096).store(8, Ordering::Relaxed);
    for page in 0..PAGES {
        first
            .show(page, &second, page)
            .expect("RAM for page tables");
    }
    check::equal("other-pages-are-own", word(&first, 0), 200);
    check::equal("region-is-where-it-was", physical_word(&first, 0), 7);
    check::equal(
        "other-pages-map-again",
        hypercall::map_shared(REGION_VA),
        Ok(()),
    );
    let region = (word(&first, 0), word(&first, last));
    check::equal("region-has-moved", region, (7, 8));
    check::equal("first-pages-are-back", physical_word(&first, 0), 100);
    check::equal(
        "again-is-the-same",
        hypercall::map_shared(REGION_VA),
        Ok(()),
    );
    first.cell(0).store(0, Ordering::Relaxed);
    first.cell(last * 4096).store(0, Ordering::Relaxed);
    check::equal(
        "other-pages-unmap",
        hypercall::unmap_shared(REGION_VA),
        Ok(()),
    );
    let own = (word(&first, 0), word(&first, last));
    check::equal("other-pages-are-back", own, (200, 201));
    check::equal("first-pages-stay", physical_word(&first, 0), 100);
}

fn one_other_page() {
    let first = back(REGION_VA, 300);
    let second = back(REGION_VA + (1 << 30), 400);
    first.cell(9 * 4096).store(309, Ordering::Relaxed);
    second.cell(5 * 4096).store(405, Ordering::Relaxed);
    check::equal("one-page-map", hypercall::map_shared(REGION_VA), Ok(()));
    first.cell(9 * 4096).store(11, Ordering::Relaxed);
    first.show(9, &second, 5).expect("RAM for page tables");
    check::equal("one-page-is-own", word(&first, 9), 405);
    check::equal(
        "one-page-map-again",
        hypercall::map_shared(REGION_VA),
        Ok(()),
    );
    check::equal("one-page-has-moved", word(&first, 9), 11);
    check::equal("one-page-is-back", physical_word(&first, 9), 309);
    first.cell(9 * 4096).store(0, Ordering::Relaxed);
    check::equal("one-page-unmap", hypercall::unmap_shared(REGION_VA), Ok(()));
    check::equal(
        "one-page-own",
        (word(&first, 0), word(&first, 9)),
        (300, 405),
    );
}

/// A second call that is refused changes nothing: the region stays, and can be given back.
fn bad_tables_while_mapped() {
    let own = back(REGION_VA, 500);
    check::equal("bad-tables-map", hypercall::map_shared(REGION_VA), Ok(()));
    own.unmap_page(800).expect("RAM for page tables");
    refused("bad-tables-again", REGION_VA, Errno::Fault);
    check::equal("bad-tables-region-stays", word(&own, 0), 0);
    check::equal(
        "bad-tables-unmap",
        hypercall::unmap_shared(REGION_VA),
        Ok(()),
    );
    check::equal("bad-tables-own", word(&own, 0), 500);
}

fn forget() {
    let own = back(REGION_VA, 600);
    check::equal("forget-nothing", hypercall::forget(FORGET_REGION), Ok(()));
    check::equal("forget-map", hypercall::map_shared(REGION_VA), Ok(()));
    check::equal("forget-hidden", word(&own, 0), 0);
    let all = FORGET_REGION | FORGET_DOORBELLS | FORGET_VCPU;
    check::equal("forget-all", hypercall::forget(all), Ok(()));
    check::equal("forget-own", word(&own, 0), 600);
    check::equal(
        "forget-address",
        hypercall::group_info().map(|info| info.region_va),
        Ok(0),
    );
    check::equal(
        "forget-is-unmapped",
        hypercall::unmap_shared(REGION_VA),
        Err(Errno::Inval),
    );
    check::equal("forget-nonsense", hypercall::forget(8), Err(Errno::Inval));
}

fn forget_doorbells() {
    let me = group::my_index().unwrap_or(u32::MAX);
    let masked = hypercall::doorbell_mask(hypercall::Doorbells::Masked);
    check::equal("forget-mask", masked, Ok(()));
    check::equal("forget-masked", hypercall::doorbell(me), Err(Errno::Busy));
    check::equal(
        "forget-doorbells",
        hypercall::forget(FORGET_DOORBELLS),
        Ok(()),
    );
    check::equal("forget-open", hypercall::doorbell(me), Ok(()));
    check::equal("forget-keeps-events", hypercall::wait(0), Ok(1 << me));
}

/// A member can be named with its life.
fn lives() {
    let me = group::my_index().unwrap_or(u32::MAX);
    let life = group::incarnation(me);
    check::equal("ring-this-life", hypercall::doorbell_life(me, life), Ok(()));
    check::equal("rung", hypercall::wait(0), Ok(1 << me));
    let other = hypercall::doorbell_life(me, life + 1);
    check::equal("ring-another-life", other, Err(Errno::NoPeer));
    check::equal(
        "yield-to-this-life",
        hypercall::yield_to_life(me, life),
        Ok(()),
    );
    let other = hypercall::yield_to_life(me, life + 1);
    check::equal("yield-to-another-life", other, Err(Errno::NoPeer));
}
