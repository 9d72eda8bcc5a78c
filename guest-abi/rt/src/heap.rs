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

/// Takes contiguous zeroed RAM for a mapping: `bytes`, rounded up to pages, at a multiple of `align` (a power of two, at least
/// 4096). Its guest-physical address, or `None` if no such run is left. It is never given back.
#[must_use]
pub fn take_frames(bytes: u64, align: u64) -> Option<u64> {
    let frames = crate::frames::allocate(bytes.div_ceil(guest_abi::PAGE_BYTES), align)?;
    let start: *mut u8 = core::ptr::with_exposed_provenance_mut(frames.gpa() as usize);
    // SAFETY: the frames are the caller's alone from now on, and RAM is mapped one to one.
    unsafe { start.write_bytes(0, (frames.pages() * guest_abi::PAGE_BYTES) as usize) };
    Some(frames.gpa())
}
