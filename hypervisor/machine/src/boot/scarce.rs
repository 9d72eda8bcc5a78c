//! The self-test `out-of-memory`: whatever is made at boot is first made with every allocation of frames refused in its turn, and with
//! too little of the heap. That has to be an error each time, of which nothing is left.
//!
//! Concurrency: runs on the boot CPU before the first VM.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use nagaya_mem::Counts;

use crate::host::{memory, scarcity};
use crate::objects::registry;

/// What is to be the same after an attempt that failed.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    frames: Counts,
    vms: usize,
    groups: bool,
}

impl Held {
    fn now() -> Held {
        Held {
            frames: memory::frames().counts(),
            vms: registry::all().len(),
            groups: registry::next_group(0).is_some(),
        }
    }
}

/// Takes so much of the heap that only the reserve is left, in pieces, as it has holes.
fn fill_heap() -> Vec<Vec<u8>> {
    const PIECE_BYTES: usize = 64 << 10;
    let mut held = Vec::with_capacity(1024);
    while memory::heap_left() > memory::HEAP_RESERVE && held.len() < held.capacity() {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(PIECE_BYTES).is_err() {
            break;
        }
        held.push(piece);
    }
    held
}

/// Makes something in the end.
///
/// # Errors
/// That it was made with too little memory, or that something was left of an attempt; or why it cannot be made.
pub fn make<T>(name: &str, make: impl Fn() -> Result<T, String>) -> Result<T, String> {
    let before = Held::now();
    let unchanged = |reason: &str| {
        let after = Held::now();
        if after == before {
            Ok(())
        } else {
            Err(format!(
                "self-test: {reason:?} left {after:?} of {before:?}"
            ))
        }
    };
    let held = fill_heap();
    match make() {
        Ok(_) => return Err("self-test: it was made although the heap is nearly full".into()),
        Err(reason) if !reason.contains("heap") => return Err(reason),
        Err(reason) => unchanged(&reason)?,
    }
    drop(held);
    for granted in 0.. {
        // Twice: tables that grow once stay grown.
        let mut heap_after_first = None;
        for _ in 0..2 {
            scarcity::grant(granted);
            let made = make();
            match (made, scarcity::end()) {
                (made, 0) => {
                    log::info!(
                        "self-test: {name} was refused memory at each of {granted} allocations, and nothing was left of it"
                    );
                    return made;
                }
                (Ok(_), _) => {
                    return Err(format!(
                        "self-test: it was made with {granted} allocations although one more was refused"
                    ));
                }
                (Err(reason), _) => unchanged(&reason)?,
            }
            let heap = memory::heap_left();
            let lost = heap_after_first.map_or(0, |first: usize| first.saturating_sub(heap));
            if lost != 0 {
                return Err(format!(
                    "self-test: {lost} bytes of the heap were left of an attempt with {granted} allocations"
                ));
            }
            heap_after_first = Some(heap);
        }
    }
    Err("self-test: it never ended".into())
}
