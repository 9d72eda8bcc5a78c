//! The heap: a first-fit free list over the lower part of the free RAM.
//!
//! Concurrency: one spin lock. Interrupt handlers must not allocate: they could wait for the vCPU they interrupted.

use core::ops::Range;

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: linked_list_allocator::LockedHeap = linked_list_allocator::LockedHeap::empty();

/// Gives the heap its RAM.
#[cfg(target_os = "none")]
pub(crate) fn init(ram: &Range<u64>) {
    let bytes = (ram.end - ram.start) as usize;
    // SAFETY: the range is free RAM above the image (`frames::plan`), mapped one to one, used by nothing else, and this
    // runs once (`start`).
    unsafe { HEAP.lock().init(ram.start as *mut u8, bytes) };
}

/// A host has its own heap.
#[cfg(not(target_os = "none"))]
pub(crate) fn init(_ram: &Range<u64>) {}
