//! Several members of a group, or several groups, one case by `case=` on the command line; `members=` tells how many take part.
//!
//! `same-address`: all map and follow each other's pointers. `late-address`: member 1 asks for another address than member 0 has
//! fixed. `keeper` and `newcomer`: see there. `isolation`: keeps its `mark=` in every page of its group's region for `ms=` and sees no other. `list`: what the group page shows.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering;

use nagaya_guests::meeting::{FREE, Meeting, long};
use nagaya_guests::{REGION_VA, check};
use nagaya_rt::abi::unpack_name;
use nagaya_rt::own::OwnRange;
use nagaya_rt::sync::GroupPeers;
use nagaya_rt::{Errno, args, group, hypercall, time};

nagaya_rt::entry!(main);

fn main() -> Result<(), Errno> {
    let members = args::number("members", 2) as u32;
    match args::get("case").unwrap_or("") {
        "same-address" => same_address(members)?,
        "late-address" => late_address()?,
        "isolation" => isolation()?,
        "list" => list(members)?,
        "keeper" => keeper()?,
        "newcomer" => newcomer()?,
        other => panic!("case={other} on the command line is none of this guest's"),
    }
    check::finish();
}

fn meet(meeting: &Meeting, members: u32) {
    (0..members).for_each(|member| meeting.await_member(member));
    let met = meeting
        .barrier()
        .wait(meeting.me, (1 << members) - 1, &GroupPeers, long());
    assert!(met.is_ok(), "meeting of {members}: {met:?}");
}

fn same_address(members: u32) -> Result<(), Errno> {
    let meeting = Meeting::join()?;
    meet(&meeting, members);
    check::equal("group-address", group::region_va(), REGION_VA);
    // Each member leaves a value on a page of its own, and a pointer to it.
    let pointer = |member: u32| FREE + u64::from(member) * 8;
    let value = |member: u32| FREE * (u64::from(member) + 2);
    meeting
        .cell(value(meeting.me))
        .store(100 + u64::from(meeting.me), Ordering::Relaxed);
    meeting
        .cell(pointer(meeting.me))
        .store(REGION_VA + value(meeting.me), Ordering::Relaxed);
    meet(&meeting, members);
    for member in 0..members {
        let found = meeting
            .region
            .at(meeting.cell(pointer(member)).load(Ordering::Relaxed));
        let found = found.map(|cell| cell.load(Ordering::Relaxed));
        check::equal("pointer-of-a-peer", found, Some(100 + u64::from(member)));
    }
    meet(&meeting, members);
    Ok(())
}

fn late_address() -> Result<(), Errno> {
    if group::my_index() == Some(0) {
        let meeting = Meeting::join()?;
        meeting.set_stage(1);
        meeting.await_member(1);
        meeting.await_stage(2, 1);
        return Ok(());
    }
    let deadline = time::Deadline::after_ms(nagaya_guests::meeting::LONG_MS);
    while group::region_va() == 0 {
        assert!(!deadline.has_passed(), "member 0 has not mapped");
    }
    let elsewhere = REGION_VA + (1 << 30);
    let own = OwnRange::map(elsewhere, group::region_pages())?;
    own.cell(0).store(12, Ordering::Relaxed);
    check::equal(
        "other-address-of-a-peer",
        hypercall::map_shared(elsewhere),
        Err(Errno::AddrInUse),
    );
    check::equal(
        "other-address-unchanged",
        own.cell(0).load(Ordering::Relaxed),
        12,
    );
    let meeting = Meeting::join()?;
    meeting.await_stage(1, 0);
    meeting.set_stage(2);
    Ok(())
}

fn isolation() -> Result<(), Errno> {
    let meeting = Meeting::join()?;
    let mark = args::number("mark", 1);
    let pages = || {
        (0..meeting.region.bytes())
            .step_by(4096)
            .map(|offset| meeting.cell(offset))
    };
    check::holds(
        "fresh-region-is-zeroed",
        pages().all(|page| page.load(Ordering::Relaxed) == 0),
    );
    pages().for_each(|page| page.store(mark, Ordering::Relaxed));
    let deadline = time::Deadline::after_ms(args::number("ms", 20));
    let mut kept = true;
    while !deadline.has_passed() {
        kept &= pages().all(|page| page.load(Ordering::Relaxed) == mark);
    }
    check::holds("own-marks-only", kept);
    Ok(())
}

/// What the keeper leaves for those that come later, and where they answer.
const KEPT: u64 = 4242;
const ANSWERS: u64 = FREE + 8;

/// Keeps a value in the region until two newcomers, one after the other, have found it.
fn keeper() -> Result<(), Errno> {
    let meeting = Meeting::join()?;
    meeting.cell(FREE).store(KEPT, Ordering::Release);
    while meeting.cell(ANSWERS).load(Ordering::Acquire) < 2 {
        time::pause();
    }
    check::equal("kept", meeting.cell(FREE).load(Ordering::Relaxed), KEPT);
    Ok(())
}

/// Finds the keeper's value at the group's address. The first newcomer ends with the region mapped.
fn newcomer() -> Result<(), Errno> {
    let meeting = Meeting::join()?;
    check::equal("group-address", group::region_va(), REGION_VA);
    let deadline = time::Deadline::after_ms(nagaya_guests::meeting::LONG_MS);
    while meeting.cell(FREE).load(Ordering::Acquire) == 0 && !deadline.has_passed() {
        time::pause();
    }
    check::equal("kept", meeting.cell(FREE).load(Ordering::Relaxed), KEPT);
    check::equal("my-index", meeting.me, 1);
    check::equal(
        "answers",
        meeting.cell(ANSWERS).fetch_add(1, Ordering::AcqRel),
        args::number("last", 0),
    );
    Ok(())
}

fn list(members: u32) -> Result<(), Errno> {
    let meeting = Meeting::join()?;
    meet(&meeting, members);
    let found = group::members();
    check::equal("member-count", found.len(), members as usize);
    let me = found.iter().find(|member| member.index == meeting.me);
    check::equal(
        "my-name",
        me.map(|member| unpack_name(&member.name)),
        Some(nagaya_rt::vm_name()),
    );
    check::holds(
        "all-mapped",
        found
            .iter()
            .all(|member| member.mapped && member.state.is_alive()),
    );
    meet(&meeting, members);
    Ok(())
}
