//! VMs as processes: what `fork` answers, that memory is copied and never seen by siblings, generations, ends, bounds.
//!
//! `case=` on the command line says which part. Children report by their exit codes; the first VM checks them.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_guests::{REGION_VA, check};
use nagaya_rt::abi::{ChildEnd, MemberState};
use nagaya_rt::process::{self, Child, Fork};
use nagaya_rt::{Errno, args, group, hypercall, own::OwnRange, smp, time};

nagaya_rt::entry!(main);

const PAGE: usize = 4096;

fn main() -> Result<(), Errno> {
    match args::get("case") {
        Some("family") => family()?,
        Some("group") => in_group()?,
        Some("bounds") => bounds()?,
        Some("vcpus") => vcpus()?,
        Some("honest") => time::spin_ms(args::number("ms", 10)),
        Some("storm") => storm()?,
        _ => refused(),
    }
    check::finish();
}

/// In the child runs `work`, whose answer is its exit code; the parent has the child.
fn child(work: impl FnOnce() -> i64) -> Result<Child, Errno> {
    match process::fork()? {
        Fork::Parent(child) => Ok(child),
        Fork::Child => process::exit(work()),
    }
}

/// A VM without rights.
fn refused() {
    check::equal(
        "fork-without-right",
        process::fork().err(),
        Some(Errno::Perm),
    );
    check::equal("no-parent", process::parent_id(), None);
    check::equal("no-children", process::children(), Ok(Vec::new()));
    check::equal(
        "nobody-to-wait-for",
        process::wait_any(),
        Err(Errno::NoPeer),
    );
    let kill = hypercall::raw(0x112, [1, 0, 0, 0, 0]);
    check::equal("kill-without-right", kill, Errno::Perm.to_rax());
}

/// Marks every page, or counts those that do not have the mark.
fn mark(memory: &mut [u8], mark: u8) {
    memory
        .iter_mut()
        .step_by(PAGE)
        .for_each(|byte| *byte = mark);
}

fn unmarked(memory: &[u8], mark: u8) -> i64 {
    let marked = memory.iter().step_by(PAGE).filter(|byte| **byte == mark);
    (memory.len().div_ceil(PAGE) - marked.count()) as i64
}

fn family() -> Result<(), Errno> {
    let me = process::id();
    let seen_at = time::ticks();
    let one = child(|| i64::from(process::parent_id() == Some(me) && process::id() != me))?;
    check::holds("a-child-is-another", one.id() != me);
    check::equal("children", process::children(), Ok(vec![one.id()]));
    check::equal(
        "child-knows-its-parent",
        one.wait().map(|status| status.code()),
        Ok(Some(1)),
    );
    check::equal("told-once", one.wait(), Err(Errno::NoPeer));
    check::equal("none-is-left", process::children(), Ok(Vec::new()));
    let clock = child(|| i64::from(time::ticks() > seen_at))?;
    check::equal(
        "the-same-clock",
        clock.wait().map(|status| status.code()),
        Ok(Some(1)),
    );

    // What the compiler keeps in registers over the call is the same in the child.
    let start = time::ticks();
    match hypercall::raw(0x110, [1, 0, 0, 0, 0]) {
        0 => process::exit(time::ticks().wrapping_sub(start) as i64),
        number => check::holds("raw-fork", number > 0),
    }
    let code = process::wait_any()?.1.code().unwrap_or(-1);
    check::holds("the-same-registers", (1..1 << 32).contains(&code));

    // Siblings and the parent each write all of the same memory.
    let mut memory = vec![7_u8; 2 << 20];
    let mut children = Vec::new();
    for number in 1..=3_u8 {
        children.push(child(|| {
            let before = unmarked(&memory, 7);
            mark(&mut memory, 100 + number);
            time::spin_ms(1);
            before + unmarked(&memory, 100 + number)
        })?);
        check::equal("fork-leaves-memory", unmarked(&memory, 7), 0);
    }
    mark(&mut memory, 9);
    for child in children {
        check::equal(
            "siblings-see-no-writes",
            child.wait().map(|status| status.code()),
            Ok(Some(0)),
        );
    }
    check::equal("parent-sees-no-writes", unmarked(&memory, 9), 0);
    mark(&mut memory, 10);
    check::equal(
        "reclaimed-pages-keep-their-content",
        unmarked(&memory, 10),
        0,
    );

    // Three generations, and more on the stack.
    let depth = child(|| generation(3, &mut memory))?;
    check::equal(
        "generations",
        depth.wait().map(|status| status.code()),
        Ok(Some(3)),
    );

    let spinner = child(|| -> i64 {
        loop {
            time::pause();
        }
    })?;
    time::spin_ms(1);
    check::equal("it-runs", spinner.try_wait(), Ok(None));
    check::equal("wait-times-out", spinner.wait_ms(1), Err(Errno::TimedOut));
    check::equal("kill", spinner.kill(), Ok(()));
    check::equal(
        "killed",
        spinner.wait().map(|status| status.end()),
        Ok(ChildEnd::Killed),
    );
    check::equal("kill-the-dead", spinner.kill(), Err(Errno::NoPeer));
    let stranger = hypercall::raw(0x112, [me.into(), 0, 0, 0, 0]);
    check::equal("kill-no-descendant", stranger, Errno::NoPeer.to_rax());

    let beyond = child(|| -> i64 { nagaya_rt::probe::triple_fault() })?;
    check::equal(
        "fault",
        beyond.wait().map(|status| status.end()),
        Ok(ChildEnd::Fault),
    );

    let rounds = args::number("rounds", 100);
    let mut good = 0;
    for round in 0..rounds {
        let child = child(|| {
            mark(&mut memory[..8 * PAGE], round as u8);
            round as i64
        })?;
        good += u64::from(child.wait()?.code() == Some(round as i64));
    }
    check::equal("rounds", good, rounds);
    check::equal(
        "bad-count",
        hypercall::raw(0x110, [2, 0, 0, 0, 0]),
        Errno::Inval.to_rax(),
    );
    let bad = hypercall::raw(0x111, [u64::MAX, 0, 0x0000_8000_0000_0000, 0, 0]);
    check::equal("bad-buffer", bad, Errno::Inval.to_rax());
    Ok(())
}

fn generation(left: i64, memory: &mut [u8]) -> i64 {
    if left == 0 {
        return 0;
    }
    mark(memory, left as u8);
    let Ok(next) = child(|| generation(left - 1, memory)) else {
        return -100;
    };
    let below = next.wait().ok().and_then(|status| status.code());
    let is_whole = unmarked(memory, left as u8) == 0;
    below.filter(|_| is_whole).map_or(-100, |below| below + 1)
}

const TURN: u64 = 0;
const DONE: u64 = 8;
/// What the region covers.
const OWN: u64 = 16;

/// In a group: the region stays shared and where it is.
fn in_group() -> Result<(), Errno> {
    let own = OwnRange::map(REGION_VA, group::region_pages())?;
    own.cell(OWN).store(55, Ordering::Relaxed);
    hypercall::map_shared(REGION_VA)?;
    let cell = |offset| own.cell(offset);
    let me = group::my_index();
    check::equal("first-index", me, Some(0));
    let late = child(|| {
        let index = group::my_index().unwrap_or(u32::MAX);
        cell(TURN).store(u64::from(index), Ordering::Release);
        while cell(DONE).load(Ordering::Acquire) == 0 {
            time::pause();
        }
        let bell = hypercall::doorbell(0).is_ok();
        // What the region covers is the child's own as well.
        let unmapped = hypercall::unmap_shared(REGION_VA).is_ok();
        i64::from(bell && unmapped && own.cell(OWN).load(Ordering::Relaxed) == 55)
    })?;
    let deadline = time::Deadline::after_ms(5_000);
    while cell(TURN).load(Ordering::Acquire) == 0 && !deadline.has_passed() {
        time::pause();
    }
    check::equal(
        "child-has-an-index-of-its-own",
        cell(TURN).load(Ordering::Acquire),
        1,
    );
    check::equal(
        "child-is-a-member",
        group::member_state(1),
        MemberState::Running,
    );
    check::holds(
        "child-has-the-region",
        group::members()
            .iter()
            .any(|member| member.index == 1 && member.mapped),
    );
    cell(DONE).store(1, Ordering::Release);
    check::equal(
        "child-in-the-group",
        late.wait().map(|status| status.code()),
        Ok(Some(1)),
    );
    let events = hypercall::wait(1_000_000_000).unwrap_or(0);
    check::holds("doorbell-of-a-child", events & 1 << 1 != 0);
    check::equal(
        "parent-keeps-the-region",
        cell(DONE).load(Ordering::Acquire),
        1,
    );
    check::equal("unmap", hypercall::unmap_shared(REGION_VA), Ok(()));
    check::equal(
        "own-memory-comes-back",
        own.cell(OWN).load(Ordering::Relaxed),
        55,
    );

    // The parent of one that lives on ends first: it belongs to nobody then, and goes on.
    hypercall::map_shared(REGION_VA)?;
    cell(DONE).store(0, Ordering::Release);
    let short = child(|| {
        let orphan = child(|| {
            while process::parent_id().is_some() {
                time::pause();
            }
            cell(DONE).store(77, Ordering::Release);
            0
        });
        i64::from(orphan.is_ok())
    })?;
    check::equal(
        "parent-ends-first",
        short.wait().map(|status| status.code()),
        Ok(Some(1)),
    );
    let deadline = time::Deadline::after_ms(5_000);
    while cell(DONE).load(Ordering::Acquire) != 77 && !deadline.has_passed() {
        time::pause();
    }
    check::equal("orphan-goes-on", cell(DONE).load(Ordering::Acquire), 77);
    Ok(())
}

/// With room for a few children and 1 MiB of copies.
fn bounds() -> Result<(), Errno> {
    let mut memory = vec![1_u8; 2 << 20];
    let wait = || -> i64 {
        loop {
            time::pause();
        }
    };
    let idle = [child(wait)?, child(wait)?];
    check::equal("as-many-as-may", process::fork().err(), Some(Errno::Again));
    for child in idle {
        child.kill()?;
        child.wait()?;
    }
    // More than there is room for: it is paused, and can be ended.
    let greedy = child(|| {
        // Until its parent has what it needs, see below.
        time::spin_ms(50);
        unmarked(&memory, 2) - {
            mark(&mut memory, 2);
            unmarked(&memory, 2)
        }
    })?;
    // What the parent writes from here on it has a copy of before there are none left: a line has been printed.
    check::equal("greedy-lives", greedy.try_wait(), Ok(None));
    check::equal(
        "paused-without-memory",
        greedy.wait_ms(300),
        Err(Errno::TimedOut),
    );
    check::equal("parent-goes-on", unmarked(&memory, 1), 0);
    greedy.kill()?;
    check::equal(
        "paused-and-killed",
        greedy.wait().map(|status| status.end()),
        Ok(ChildEnd::Killed),
    );
    // Two that together have no room: the second waits for the first.
    let half = 160 * PAGE;
    let first = child(|| {
        mark(&mut memory[..half], 3);
        time::spin_ms(400);
        unmarked(&memory[..half], 3)
    })?;
    // It has written by then, and lives.
    check::equal("first-lives", first.wait_ms(200), Err(Errno::TimedOut));
    let second = child(|| {
        mark(&mut memory[..half], 4);
        unmarked(&memory[..half], 4)
    })?;
    check::equal(
        "first-had-memory",
        first.wait().map(|status| status.code()),
        Ok(Some(0)),
    );
    check::equal(
        "second-has-it-then",
        second.wait_ms(5_000).map(|status| status.code()),
        Ok(Some(0)),
    );
    Ok(())
}

/// Two vCPUs: both go on in the child.
fn vcpus() -> Result<(), Errno> {
    let counts: &'static [AtomicU64; 2] = Box::leak(Box::new([const { AtomicU64::new(0) }; 2]));
    smp::start_vcpu(1, move || {
        while counts[1].load(Ordering::Acquire) == 0 {
            counts[0].fetch_add(1, Ordering::AcqRel);
        }
    })?;
    let goes_on = || {
        let deadline = time::Deadline::after_ms(2_000);
        let now = counts[0].load(Ordering::Acquire);
        while counts[0].load(Ordering::Acquire) == now && !deadline.has_passed() {
            time::pause();
        }
        counts[0].load(Ordering::Acquire) != now
    };
    check::holds("second-vcpu-counts", goes_on());
    for _ in 0..5 {
        let both = child(|| {
            let counted = goes_on();
            counts[1].store(1, Ordering::Release);
            let deadline = time::Deadline::after_ms(2_000);
            while smp::finished() == 0 && !deadline.has_passed() {
                time::pause();
            }
            i64::from(counted && smp::finished() == 1)
        })?;
        check::equal(
            "both-vcpus-go-on-in-the-child",
            both.wait().map(|status| status.code()),
            Ok(Some(1)),
        );
        check::holds("second-vcpu-goes-on-in-the-parent", goes_on());
    }
    counts[1].store(1, Ordering::Release);
    let deadline = time::Deadline::after_ms(2_000);
    while smp::finished() == 0 && !deadline.has_passed() {
        time::pause();
    }
    check::equal("second-vcpu-ends", smp::finished(), 1);
    Ok(())
}

/// Forks without end, each child as well, as long as its command line says.
fn storm() -> Result<(), Errno> {
    let deadline = time::Deadline::after_ms(args::number("ms", 10));
    while !deadline.has_passed() {
        if let Ok(Fork::Parent(_)) | Err(_) = process::fork() {
            let _ = process::wait_any();
        }
    }
    Ok(())
}
