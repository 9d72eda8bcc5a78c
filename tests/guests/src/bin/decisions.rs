//! What decisions of the scheduler cost, in ticks between two RDTSC.
//!
//! Command line: by itself or beside others that do the same it gives way `rounds=` times (2000), and sends a row if `name=` names it;
//! `role=meter` rings the other members of its group, which run this guest with `role=peer` and halt: one at a time, with the time
//! until the call is back and until the peer runs, and all of them, by a call for each and by one call for all.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_guests::REGION_VA;
use nagaya_guests::stats::{self, Samples};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::time::{pause, ticks};
use nagaya_rt::{Errno, args, group, hypercall};

nagaya_rt::entry!(main);

/// By then a peer that has been woken has halted again: several times what it takes.
const HALT_TICKS: u64 = 40_000;
/// In the region: how often each member has been woken, and when last, each on a line of its own.
const WOKEN: u64 = 0;
const STAMP: u64 = 4096;
const END: u64 = 8192;
const LINE: u64 = 64;

fn main() -> Result<(), Errno> {
    match args::get("role") {
        Some("peer") => peer(&SharedRegion::map_at(REGION_VA)?),
        Some("meter") => meter(&SharedRegion::map_at(REGION_VA)?),
        _ => {
            give_way();
            Ok(())
        }
    }
}

fn rounds() -> u64 {
    args::number("rounds", 2000)
}

/// Gives way again and again, and calls for nothing as often if `null=` names a row, for comparison: with several CPUs at work the machine's time goes on
/// while one of them is between guest and hypervisor.
fn give_way() {
    let name = args::get("name");
    calls(name, || {
        let _ = hypercall::yield_now();
    });
    calls(name.and(args::get("null")), || {
        let _ = black_box(hypercall::version());
    });
    // Others still count on it.
    for _ in 0..rounds() * 4 {
        let _ = hypercall::yield_now();
    }
}

/// The first rounds fill caches, and let the others come.
fn calls(name: Option<&str>, call: impl Fn()) {
    let mut samples = Samples::with_capacity(rounds() as usize);
    let exits = group::exits();
    for round in 0..rounds() * 2 {
        let start = ticks();
        call();
        if round >= rounds() {
            samples.push(ticks() - start);
        }
    }
    let Some(name) = name else {
        return;
    };
    stats::print_heading();
    stats::report(
        name,
        0,
        rounds() * 2,
        &samples.summary(),
        &stats::exits_since(&exits),
    );
}

fn cell(region: &SharedRegion, offset: u64) -> &AtomicU64 {
    region
        .u64(offset)
        .expect("the cells lie on the region's first pages")
}

fn woken(region: &SharedRegion, member: u32) -> u64 {
    cell(region, WOKEN + LINE * u64::from(member)).load(Ordering::Acquire)
}

/// A way of ringing members, each of which has to halt before.
struct Row {
    name: &'static str,
    members: core::ops::RangeInclusive<u32>,
    /// Until the call is back, rather than until the peers run.
    is_of_sender: bool,
    ring: fn(core::ops::RangeInclusive<u32>),
}

fn one_by_one(members: core::ops::RangeInclusive<u32>) {
    for member in members {
        let _ = hypercall::doorbell(member);
    }
}

fn together(members: core::ops::RangeInclusive<u32>) {
    let mask = members.fold(0, |mask, member| mask | 1 << member);
    let _ = hypercall::doorbell_mask_many(mask);
}

fn meter(region: &SharedRegion) -> Result<(), Errno> {
    let others = (group::members().len() as u32).saturating_sub(1);
    for member in 1..=others {
        while woken(region, member) == 0 {
            pause();
        }
    }
    stats::print_heading();
    let row = |name, last, is_of_sender, ring| Row {
        name,
        members: 1..=last,
        is_of_sender,
        ring,
    };
    for row in [
        row("doorbell-halted-sender", 1, true, one_by_one as fn(_)),
        row("doorbell-halted-one-way", 1, false, one_by_one),
        row("doorbells-one-by-one-sender", others, true, one_by_one),
        row("doorbells-one-by-one-last", others, false, one_by_one),
        row("doorbells-together-sender", others, true, together),
        row("doorbells-together-last", others, false, together),
    ] {
        measure(region, &row);
    }
    cell(region, END).store(1, Ordering::Release);
    one_by_one(1..=others);
    Ok(())
}

fn measure(region: &SharedRegion, row: &Row) {
    let rounds = rounds() / 10;
    let mut samples = Samples::with_capacity(rounds as usize);
    let exits = group::exits();
    for _ in 0..rounds {
        let start = ticks();
        while ticks() - start < HALT_TICKS {
            pause();
        }
        let before: u64 = row
            .members
            .clone()
            .map(|member| woken(region, member))
            .sum();
        let wanted = before + row.members.clone().count() as u64;
        let start = ticks();
        (row.ring)(row.members.clone());
        let back = ticks();
        while row
            .members
            .clone()
            .map(|member| woken(region, member))
            .sum::<u64>()
            < wanted
        {
            pause();
        }
        let last = row
            .members
            .clone()
            .map(|member| cell(region, STAMP + LINE * u64::from(member)).load(Ordering::Acquire))
            .max();
        samples.push(if row.is_of_sender {
            back - start
        } else {
            last.unwrap_or(back).saturating_sub(start)
        });
    }
    stats::report(
        row.name,
        0,
        rounds,
        &samples.summary(),
        &stats::exits_since(&exits),
    );
}

fn peer(region: &SharedRegion) -> Result<(), Errno> {
    let me = LINE * u64::from(group::my_index().unwrap_or(0));
    let count = cell(region, WOKEN + me);
    while cell(region, END).load(Ordering::Acquire) == 0 {
        count.fetch_add(1, Ordering::AcqRel);
        // For as long as it takes.
        let _ = hypercall::wait(u64::MAX);
        cell(region, STAMP + me).store(ticks(), Ordering::Release);
    }
    Ok(())
}
