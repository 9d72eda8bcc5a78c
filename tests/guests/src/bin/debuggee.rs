//! Counts for ever on two vCPUs, each with a counter of its own, until somebody from outside sets [`OVER`]. Then it ends well if each step was by
//! as much as it asked for.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_guests::check;
use nagaya_rt::{Errno, smp, time};

nagaya_rt::entry!(main);

/// Steps that each vCPU has made.
static COUNTER: AtomicU64 = AtomicU64::new(0);
static SECOND: AtomicU64 = AtomicU64::new(0);
/// Not 0: it is to end. Only a debugger writes it.
static OVER: AtomicU64 = AtomicU64::new(0);

#[inline(never)]
fn advance(by: u64) -> u64 {
    COUNTER.fetch_add(black_box(by), Ordering::SeqCst) + by
}

#[inline(never)]
fn advance_second(by: u64) -> u64 {
    SECOND.fetch_add(black_box(by), Ordering::SeqCst) + by
}

fn is_over() -> bool {
    // Else the compiler sees that nobody here writes it.
    black_box(&OVER).load(Ordering::SeqCst) != 0
}

fn main() -> Result<(), Errno> {
    let started = smp::start_vcpu(1, || {
        while !is_over() {
            black_box(advance_second(black_box(2)));
        }
    });
    check::equal("start", started, Ok(()));
    let mut expected = 0;
    while !is_over() {
        let now = advance(black_box(3));
        if now < expected + 3 {
            check::equal("counts", now, expected + 3);
        }
        expected = now;
    }
    // A debugger may move on a count, but nothing is lost.
    check::equal("remainder", COUNTER.load(Ordering::SeqCst), expected);
    while smp::finished() == 0 {
        time::pause();
    }
    check::finish();
}
