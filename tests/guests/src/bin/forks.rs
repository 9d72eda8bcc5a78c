//! What forks cost, in ticks, for `cargo xtask bench fork`.
//!
//! Command line: `mib=` names the rows of forks by the VM's memory; `all` adds the rows that do not depend on it.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::format;
use alloc::vec;
use core::hint::black_box;

use nagaya_guests::stats::{self, Samples};
use nagaya_rt::process::{self, Child, Fork};
use nagaya_rt::time::ticks;
use nagaya_rt::{Errno, args, group};

nagaya_rt::entry!(main);

const PAGE: usize = 4096;
/// Forks that are measured, after as many that are not.
const FORKS: usize = 50;
const ROUNDS: u64 = 200;
/// Pages that are written to for the rows of copies.
const PAGES: usize = 256;
const CHILDREN: usize = 100;
/// Words that the work of `first-run` goes over, again and again: 64 KiB, about a million instructions.
const WORDS: usize = 8192;
const PASSES: u64 = 40;

fn main() -> Result<(), Errno> {
    stats::print_heading();
    forks(args::number("mib", 0))?;
    if args::args().has("all") {
        copies()?;
        rounds()?;
        children()?;
        first_run()?;
    }
    Ok(())
}

/// In the child runs `work`, whose answer is its exit code; the parent has the child.
fn child(work: impl FnOnce() -> i64) -> Result<Child, Errno> {
    match process::fork()? {
        Fork::Parent(child) => Ok(child),
        Fork::Child => process::exit(work()),
    }
}

fn row(name: &str, rounds: u64, samples: &Samples) {
    stats::report(
        name,
        0,
        rounds,
        &samples.summary(),
        &[0; nagaya_rt::ExitKind::COUNT],
    );
}

/// Until the parent goes on, and until the child does, while the parent waits for it.
fn forks(mib: u64) -> Result<(), Errno> {
    let mut parent = Samples::with_capacity(FORKS);
    let mut born = Samples::with_capacity(FORKS);
    for round in 0..FORKS * 2 {
        let start = ticks();
        let child = match nagaya_rt::hypercall::raw(0x110, [1, 0, 0, 0, 0]) {
            0 => {
                let now = ticks();
                process::exit(now.wrapping_sub(start) as i64)
            }
            child => child,
        };
        let back = ticks() - start;
        let (number, status) = process::wait_any()?;
        assert_eq!(i64::from(number), child, "another child has ended");
        if round >= FORKS {
            parent.push(back);
            born.push(status.code().unwrap_or(0) as u64);
        }
    }
    row(&format!("fork-parent-{mib}-mib"), FORKS as u64, &parent);
    row(&format!("fork-child-{mib}-mib"), FORKS as u64, &born);
    Ok(())
}

/// The first write to a page that others hold, too, and to one that nobody else holds any more.
fn copies() -> Result<(), Errno> {
    let mut memory = vec![1_u8; PAGES * PAGE];
    let mut write = |name: &str, value: u8| {
        let mut samples = Samples::with_capacity(PAGES);
        let exits = group::exits();
        for page in memory.chunks_mut(PAGE) {
            let start = ticks();
            if let Some(byte) = page.first_mut() {
                *byte = black_box(value);
            }
            samples.push(ticks() - start);
        }
        let exits = stats::exits_since(&exits);
        stats::report(name, 0, PAGES as u64, &samples.summary(), &exits);
    };
    let idle = child(|| -> i64 {
        loop {
            let _ = nagaya_rt::hypercall::wait(1 << 40);
        }
    })?;
    write("cow-4k", 2);
    idle.kill()?;
    idle.wait()?;
    let short = child(|| 0)?;
    short.wait()?;
    write("cow-last", 3);
    Ok(())
}

/// Fork, exit, wait.
fn rounds() -> Result<(), Errno> {
    let mut samples = Samples::with_capacity(ROUNDS as usize);
    let exits = group::exits();
    for _ in 0..ROUNDS {
        let start = ticks();
        child(|| 0)?.wait()?;
        samples.push(ticks() - start);
    }
    let exits = stats::exits_since(&exits);
    stats::report("fork-exit-wait", 0, ROUNDS, &samples.summary(), &exits);
    Ok(())
}

/// Many children at a time, each of which answers: ticks for each, the last one's answer included.
fn children() -> Result<(), Errno> {
    let start = ticks();
    for number in 0..CHILDREN {
        let _ = child(|| number as i64)?;
    }
    let mut sum = 0;
    for _ in 0..CHILDREN {
        sum += process::wait_any()?.1.code().unwrap_or(-1);
    }
    assert_eq!(sum as usize, CHILDREN * (CHILDREN - 1) / 2, "all answer");
    let mut samples = Samples::with_capacity(1);
    samples.push((ticks() - start) / CHILDREN as u64);
    row("children-100", CHILDREN as u64, &samples);
    Ok(())
}

/// The same work in a parent that shares nothing and in a child that shares all.
fn first_run() -> Result<(), Errno> {
    let mut words = vec![1_u64; WORDS];
    let mut work = || {
        let start = ticks();
        for pass in 0..PASSES {
            for word in &mut words {
                *word = black_box(*word).wrapping_add(pass);
            }
        }
        ticks() - start
    };
    let _ = work();
    let mut samples = Samples::with_capacity(1);
    samples.push(work());
    row("first-run-parent", 1, &samples);
    let born = child(|| work() as i64)?.wait()?;
    let mut samples = Samples::with_capacity(1);
    samples.push(born.code().unwrap_or(0) as u64);
    row("first-run-child", 1, &samples);
    Ok(())
}
