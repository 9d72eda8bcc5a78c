//! What the scheduler's tests and benchmarks run: loads of a known size over a span of time that all VMs of the run share.
//!
//! Command line: `load=hog|barrier|lock|pi|bell|switch|quick|clock|yields|yielder|exiter|ringer`, `ms=` the span (default 500), `members=` of the group (4),
//! `work=` iterations of a step (400), `phase=` ticks by which the begin is shifted (0), `delay_us=` how much later this VM begins to work (0), `maps=` of pi (10), `burst_us=` of thieves.
//!
//! The span begins at the next multiple of 8 Mi ticks (`align=`, plus `phase`) that is far enough away for all VMs to have booted; until
//! then everybody waits without using a CPU. When it is over each VM sends a row with what it did: `steps`, `begin` and `ticks` of the
//! span, ticks `stolen` in it.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::format;
use core::hint::black_box;
use core::sync::atomic::Ordering;

use nagaya_guests::stats::Samples;
use nagaya_guests::{REGION_VA, check};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::{Barrier, GroupPeers, Patience};
use nagaya_rt::time::{ms_to_ticks, pause, ticks};
use nagaya_rt::{Errno, ExitKind, args, boot_info, group, hypercall, println};

nagaya_rt::entry!(main);

/// VMs that boot within that many ticks of each other begin together, unless a boundary falls in between.
const ALIGN: u64 = 8 << 20;
/// How long a VM has at least between its boot and the begin.
const BOOT: u64 = 2 << 20;

const BARRIER: u64 = 1024;
const NEXT_TICKET: u64 = 2048;
const NOW_SERVING: u64 = 2048 + 64;
/// The pi master's task: sequence number of the map, and the workers' answers.
const TASK: u64 = 2048 + 128;
const ANSWERS: u64 = 3072;
const RUNG: u64 = 3072 + 512;
const WOKEN: u64 = RUNG + 64;
const WOKEN_AT: u64 = WOKEN + 8;

struct Span {
    begin: u64,
    end: u64,
    /// What had been stolen before.
    stolen: u64,
}

impl Span {
    /// Agrees on a span with all other VMs by the clock alone, and waits for its begin.
    fn await_begin() -> Span {
        let phase = args::number("phase", 0);
        let align = args::number("align", ALIGN);
        let begin = (ticks() + BOOT - phase).next_multiple_of(align) + phase;
        let end = begin + ms_to_ticks(args::number("ms", 500));
        while ticks() < begin {
            let left = nagaya_rt::time::ticks_to_ns(begin - ticks());
            // Doorbells are not expected; a time-out is.
            let _ = hypercall::wait(left.max(1));
        }
        // VMs that are made at different times begin their slices at different times.
        let late = args::number("delay_us", 0) * 1000;
        if late > 0 {
            let _ = hypercall::wait(late);
        }
        let stolen = stolen();
        Span { begin, end, stolen }
    }

    fn is_over(&self) -> bool {
        ticks() >= self.end
    }

    fn left(&self) -> u64 {
        self.end.saturating_sub(ticks())
    }
}

/// A step's work: four or five instructions an iteration.
fn work(iterations: u64) -> u64 {
    let mut sum = 1_u64;
    for round in 0..iterations {
        sum = black_box(
            sum.wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(round),
        );
    }
    sum
}

fn stolen() -> u64 {
    nagaya_rt::group::stolen_ticks()
}

fn report(span: &Span, steps: u64) {
    report_with(span, steps, "");
}

/// `more` is further members of the row, each with a comma before it.
fn report_with(span: &Span, steps: u64, more: &str) {
    let exits = group::exits();
    let count = |kind: ExitKind| exits[kind as usize];
    let name = args::get("load").unwrap_or("hog");
    let member = group::my_index().map_or(-1, i64::from);
    let row = format!(
        "{{\"row\":{{\"name\":\"{name}\",\"member\":{member},\"steps\":{steps},\"begin\":{},\"ticks\":{},\"khz\":{},\"stolen\":{},\
         \"spins\":{},\"slices\":{}{more}}}}}",
        span.begin,
        span.end - span.begin,
        boot_info().tsc_khz,
        stolen() - span.stolen,
        count(ExitKind::Instruction),
        count(ExitKind::PreemptionTimer)
    );
    let sent = nagaya_rt::console::event(&row);
    assert!(sent.is_ok(), "the console refuses the row: {sent:?}");
    println!("{steps} steps");
}

fn main() -> Result<(), Errno> {
    let iterations = args::number("work", 400);
    match args::get("load").unwrap_or("hog") {
        "hog" => {
            // Interrupts are off, and nothing in the loop exits.
            let span = Span::await_begin();
            let mut steps = 0;
            while !span.is_over() {
                work(iterations);
                steps += 1;
            }
            report(&span, steps);
        }
        "barrier" => barrier(iterations)?,
        "lock" => lock(iterations)?,
        "pi" => pi(iterations)?,
        "bell" => bell()?,
        "switch" => {
            // As many yields as the time allows: each is a switch to another VM, if there is one.
            let span = Span::await_begin();
            let mut steps = 0;
            while !span.is_over() {
                hypercall::yield_now()?;
                steps += 1;
            }
            report(&span, steps);
        }
        "quick" => {
            let span = Span::await_begin();
            work(iterations);
            println!(
                "came to its end {} ticks after the begin",
                ticks() - span.begin
            );
            report(&span, 1);
        }
        "clock" => clock(),
        "yields" => yields(),
        // It gives way: whoever comes next gets a slice that has not begun yet.
        "yielder" => thief(iterations, hypercall::yield_now)?,
        // It exits, and the timer that ends the slice might begin anew.
        "exiter" => thief(iterations, || hypercall::version().map(drop))?,
        "ringer" => ringer(iterations)?,
        other => panic!("there is no load {other:?}"),
    }
    Ok(())
}

/// A step of work, a meeting of all members, and again.
fn barrier(iterations: u64) -> Result<(), Errno> {
    let region = SharedRegion::map_at(REGION_VA)?;
    let me = group::my_index().ok_or(Errno::Perm)?;
    let everybody = (1 << args::number("members", 4)) - 1;
    let barrier: &Barrier = region.cell(BARRIER).ok_or(Errno::Inval)?;
    let span = Span::await_begin();
    let mut steps = 0;
    while !span.is_over() {
        work(iterations);
        let met = barrier.wait(me, everybody, &GroupPeers, Patience::Ticks(span.left()));
        if met.is_err() || span.is_over() {
            // The time is over, or a member has seen so earlier.
            break;
        }
        steps += 1;
    }
    report(&span, steps);
    Ok(())
}

/// A ticket lock: who comes first is served first, so that one that holds no CPU when its turn comes keeps all others waiting.
fn lock(iterations: u64) -> Result<(), Errno> {
    let region = SharedRegion::map_at(REGION_VA)?;
    let next = region.u64(NEXT_TICKET).ok_or(Errno::Inval)?;
    let serving = region.u64(NOW_SERVING).ok_or(Errno::Inval)?;
    let span = Span::await_begin();
    let mut steps = 0;
    'span: while !span.is_over() {
        let ticket = next.fetch_add(1, Ordering::Relaxed);
        while serving.load(Ordering::Acquire) != ticket {
            if span.is_over() {
                break 'span;
            }
            pause();
        }
        work(iterations / 8);
        serving.store(ticket + 1, Ordering::Release);
        work(iterations);
        steps += 1;
    }
    report(&span, steps);
    Ok(())
}

/// Monte-Carlo pi: member 0 hands out `maps` tasks, one after the other, and awaits both workers' counts for each. From so many it
/// makes an estimate; a step is a map.
fn pi(samples: u64) -> Result<(), Errno> {
    let region = SharedRegion::map_at(REGION_VA)?;
    let me = group::my_index().ok_or(Errno::Perm)?;
    let workers = args::number("members", 3) - 1;
    let maps = args::number("maps", 10);
    let task = region.u64(TASK).ok_or(Errno::Inval)?;
    let answer = |worker: u64, part: u64| {
        region
            .u64(ANSWERS + worker * 64 + part * 8)
            .ok_or(Errno::Inval)
    };
    let span = Span::await_begin();
    let (mut turn, mut done, mut estimate) = (0, 0, None);
    'span: while !span.is_over() {
        if me == 0 {
            let mut hits = 0;
            for _ in 0..maps {
                turn += 1;
                task.store(turn, Ordering::Release);
                for worker in 1..=workers {
                    while answer(worker, 0)?.load(Ordering::Acquire) != turn {
                        if span.is_over() {
                            break 'span;
                        }
                        pause();
                    }
                    hits += answer(worker, 1)?.load(Ordering::Relaxed);
                }
                done += 1;
            }
            estimate = Some(4_000 * hits / (samples * maps * workers));
        } else {
            while task.load(Ordering::Acquire) == turn {
                if span.is_over() {
                    break 'span;
                }
                pause();
            }
            turn += 1;
            let hits = hits_in_circle(samples, turn << 8 | u64::from(me));
            answer(u64::from(me), 1)?.store(hits, Ordering::Relaxed);
            answer(u64::from(me), 0)?.store(turn, Ordering::Release);
        }
    }
    if let Some(estimate) = estimate {
        println!("pi is about {estimate} thousandths");
    }
    report(&span, if me == 0 { done } else { turn });
    Ok(())
}

/// Works as a hog does, but tries to get more than its share: after each `burst_us`, just before its slice ends, it does that.
fn thief(iterations: u64, act: fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let span = Span::await_begin();
    let mut steps = 0;
    while !span.is_over() {
        steps += burst(&span, iterations);
        act()?;
    }
    report(&span, steps);
    Ok(())
}

/// As [`thief`]: two members that work by turns for `burst_us`, and each wakes the other by a doorbell before it sleeps.
fn ringer(iterations: u64) -> Result<(), Errno> {
    let me = group::my_index().ok_or(Errno::Perm)?;
    let span = Span::await_begin();
    let mut steps = 0;
    while !span.is_over() {
        steps += burst(&span, iterations);
        if hypercall::doorbell(1 - me).is_err() {
            // It saw the end of the span first.
            break;
        }
        let left = nagaya_rt::time::ticks_to_ns(span.left());
        // A time-out is the end of the span.
        let _ = hypercall::wait(left.max(1));
    }
    let _ = hypercall::doorbell(1 - me);
    report(&span, steps);
    Ok(())
}

/// Steps that fit into `burst_us`.
fn burst(span: &Span, iterations: u64) -> u64 {
    let length = ms_to_ticks(args::number("burst_us", 1000)) / 1000;
    let start = ticks();
    let mut steps = 0;
    while ticks() - start < length && !span.is_over() {
        work(iterations);
        steps += 1;
    }
    steps
}

/// How long a doorbell takes to wake a member: 0 rings and takes the time, 1 waits and writes down when it woke.
fn bell() -> Result<(), Errno> {
    let region = SharedRegion::map_at(REGION_VA)?;
    let me = group::my_index().ok_or(Errno::Perm)?;
    let rung = region.u64(RUNG).ok_or(Errno::Inval)?;
    let woken = region.u64(WOKEN).ok_or(Errno::Inval)?;
    let woken_at = region.u64(WOKEN_AT).ok_or(Errno::Inval)?;
    let span = Span::await_begin();
    if me != 0 {
        let mut seen = 0;
        while !span.is_over() {
            let _ = hypercall::wait(20_000_000);
            let now = rung.load(Ordering::Acquire);
            if now != seen {
                seen = now;
                woken_at.store(ticks(), Ordering::Relaxed);
                woken.store(now, Ordering::Release);
            }
        }
        report(&span, seen);
        return Ok(());
    }
    let mut samples = Samples::with_capacity(4096);
    let mut steps = 0;
    'span: while !span.is_over() && steps < 4096 {
        // Long enough for the peer to halt; the times are not multiples of anything.
        let _ = hypercall::wait(7_300_000 + steps % 16 * 410_000);
        steps += 1;
        let start = ticks();
        rung.store(steps, Ordering::Release);
        hypercall::doorbell(1)?;
        while woken.load(Ordering::Acquire) != steps {
            if span.is_over() {
                break 'span;
            }
            pause();
        }
        samples.push(woken_at.load(Ordering::Relaxed).saturating_sub(start));
    }
    let summary = samples.summary();
    report_with(
        &span,
        steps,
        &format!(",\"p50\":{},\"p99\":{}", summary.p50, summary.p99),
    );
    Ok(())
}

/// Points of the unit square, on a grid of 2^16, that lie in the circle's quarter.
fn hits_in_circle(samples: u64, seed: u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut hits = 0;
    for _ in 0..samples {
        // xorshift64: as good as the job needs.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let (x, y) = (state & 0xFFFF, state >> 16 & 0xFFFF);
        hits += u64::from(x * x + y * y < 1 << 32);
    }
    hits
}

/// The clock does not go back, whichever CPU it is read on; stolen ticks only grow, and are less than what went by.
fn clock() {
    let span = Span::await_begin();
    let (mut last, mut last_stolen, mut steps) = (ticks(), stolen(), 0);
    let first_stolen = last_stolen;
    let (mut goes_on, mut grows) = (true, true);
    while !span.is_over() {
        let (now, now_stolen) = (ticks(), stolen());
        goes_on &= now >= last;
        grows &= now_stolen >= last_stolen;
        (last, last_stolen) = (now, now_stolen);
        steps += 1;
    }
    report(&span, steps);
    check::holds("clock-never-goes-back", goes_on);
    check::holds("stolen-never-shrinks", grows);
    check::holds(
        "stolen-is-less-than-the-time",
        last_stolen - first_stolen < last - span.begin,
    );
    check::finish();
}

/// What `yield_to` answers.
fn yields() {
    let span = Span::await_begin();
    match group::my_index() {
        None => check::equal(
            "yield-without-group",
            hypercall::yield_to(0),
            Err(Errno::Perm),
        ),
        Some(me) => {
            check::equal(
                "yield-to-nobody",
                hypercall::yield_to(31),
                Err(Errno::NoPeer),
            );
            check::equal(
                "yield-beyond-all",
                hypercall::yield_to(u32::MAX),
                Err(Errno::NoPeer),
            );
            check::equal("yield-to-peer", hypercall::yield_to(1 - me), Ok(()));
        }
    }
    while !span.is_over() {
        pause();
    }
    check::finish();
}
