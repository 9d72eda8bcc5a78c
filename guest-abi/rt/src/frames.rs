//! Guest-physical memory beyond the image: a heap below, frames above.
//!
//! Concurrency: one spin lock around the allocator.

use core::ops::Range;

use guest_abi::{BootInfo, PAGE_BYTES};
use spin::Mutex;

/// Bytes of a large page.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Most RAM the heap gets.
const MAX_HEAP_BYTES: u64 = 16 << 20;
/// How many blocks can wait to be used again.
const FREE_SLOTS: usize = 32;

/// How the RAM above the image is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Guest-physical range of the heap.
    pub(crate) heap: Range<u64>,
    /// Guest-physical range of the frames.
    pub(crate) frames: Range<u64>,
}

/// Divides the RAM above the image: a quarter, at most 16 MiB, to the heap, the rest to frames.
pub(crate) fn plan(info: &BootInfo) -> Plan {
    let start = info.image_end_gpa.next_multiple_of(PAGE_BYTES);
    let end = info.memory_bytes.max(start) & !(PAGE_BYTES - 1);
    let heap_bytes = ((end.saturating_sub(start)) / 4).min(MAX_HEAP_BYTES) & !(PAGE_BYTES - 1);
    let middle = start + heap_bytes;
    Plan {
        heap: start..middle,
        frames: middle..end.max(middle),
    }
}

/// A run of whole pages of this VM's own RAM.
///
/// Whoever holds one may use the memory; it is not `Clone`. Dropping one leaks it, [`release`] gives it back.
#[derive(Debug, PartialEq, Eq)]
pub struct Frames {
    gpa: u64,
    pages: u64,
}

impl Frames {
    /// Guest-physical address, which is also a virtual address it is mapped at.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Number of 4 KiB pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }
}

/// A bump allocator from the top of RAM downwards, with a short list of released blocks that are given out again whole.
struct Allocator {
    free: Range<u64>,
    released: [Option<Frames>; FREE_SLOTS],
}

impl Allocator {
    const fn new() -> Allocator {
        Allocator {
            free: 0..0,
            released: [const { None }; FREE_SLOTS],
        }
    }

    fn allocate(&mut self, pages: u64, align: u64) -> Option<Frames> {
        let fits = |block: &Option<Frames>| {
            block
                .as_ref()
                .is_some_and(|block| block.pages == pages && block.gpa.is_multiple_of(align))
        };
        if let Some(slot) = self.released.iter_mut().find(|slot| fits(slot)) {
            return slot.take();
        }
        let bytes = pages.checked_mul(PAGE_BYTES)?;
        let gpa = self.free.end.checked_sub(bytes)? & !(align - 1);
        if gpa < self.free.start {
            return None;
        }
        // What alignment leaves above the block is kept for small requests while there is a slot for it.
        let rest = Frames {
            gpa: gpa + bytes,
            pages: (self.free.end - gpa - bytes) / PAGE_BYTES,
        };
        self.free.end = gpa;
        if rest.pages > 0 {
            self.split(rest);
        }
        Some(Frames { gpa, pages })
    }

    /// Keeps the first pages of a remainder as single pages: page tables are what is asked for most.
    fn split(&mut self, rest: Frames) {
        for index in 0..rest.pages.min(FREE_SLOTS as u64 / 2) {
            self.release(Frames {
                gpa: rest.gpa + index * PAGE_BYTES,
                pages: 1,
            });
        }
    }

    fn release(&mut self, frames: Frames) {
        if let Some(slot) = self.released.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(frames);
        }
    }
}

static ALLOCATOR: Mutex<Allocator> = Mutex::new(Allocator::new());

/// Gives the allocator its RAM.
pub(crate) fn init(ram: Range<u64>) {
    ALLOCATOR.lock().free = ram;
}

/// Takes `pages` contiguous pages whose address is a multiple of `align` bytes (a power of two, at least 4096). Their contents
/// are whatever was there. `None` if no such run is left.
#[must_use]
pub fn allocate(pages: u64, align: u64) -> Option<Frames> {
    debug_assert!(align.is_power_of_two() && align >= PAGE_BYTES);
    ALLOCATOR.lock().allocate(pages, align)
}

/// Gives frames back. If there are too many small runs to remember they are lost; a guest lives short.
pub fn release(frames: Frames) {
    ALLOCATOR.lock().release(frames);
}

/// Gives frames back by their address.
///
/// # Safety
/// They must come from one call of [`allocate`] with that many pages, and nobody may use them any more.
#[cfg(feature = "net")]
pub(crate) unsafe fn release_at(gpa: u64, pages: u64) {
    release(Frames { gpa, pages });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(free: Range<u64>) -> Allocator {
        Allocator {
            free,
            ..Allocator::new()
        }
    }

    #[test]
    fn runs_are_aligned_disjoint_and_inside_ram() {
        let ram = 0x30_1000..0x200_0000;
        let mut allocator = allocator(ram.clone());
        let mut taken = alloc::vec::Vec::new();
        for (pages, align) in [
            (1, 4096),
            (1025, LARGE_PAGE_BYTES),
            (1, 4096),
            (3, 4096),
            (512, LARGE_PAGE_BYTES),
        ] {
            taken.push((
                allocator.allocate(pages, align).expect("there is room"),
                align,
            ));
        }
        for (index, (frames, align)) in taken.iter().enumerate() {
            assert_eq!(frames.gpa % align, 0);
            let end = frames.gpa + frames.pages * PAGE_BYTES;
            assert!(frames.gpa >= ram.start && end <= ram.end);
            for (other, _) in &taken[..index] {
                assert!(end <= other.gpa || frames.gpa >= other.gpa + other.pages * PAGE_BYTES);
            }
        }
    }

    #[test]
    fn too_large_a_run_is_refused_and_takes_nothing() {
        let mut allocator = allocator(0x1000..0x5000);
        assert_eq!(allocator.allocate(5, 4096), None);
        assert_eq!(allocator.allocate(u64::MAX, 4096), None);
        assert!(allocator.allocate(4, 4096).is_some());
        assert_eq!(allocator.allocate(1, 4096), None);
    }

    #[test]
    fn a_released_run_is_given_out_again() {
        let mut allocator = allocator(0x1000..0x5000);
        let first = allocator.allocate(4, 4096).expect("there is room");
        let gpa = first.gpa;
        allocator.release(first);
        assert_eq!(
            allocator.allocate(4, 4096).map(|frames| frames.gpa),
            Some(gpa)
        );
    }
}
