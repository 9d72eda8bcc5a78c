//! The driver's side of a split virtqueue, without allocation after its start, with event indices.
//!
//! The crate `virtio-drivers` has one, too, and its rng and console drivers use it. Its limits are why network cards have this
//! one: with event indices it compares the index with the event by `>=`, so that a device cannot ask for fewer kicks and a kick is
//! lost when the index turns over within a batch; it asks for an interrupt after each element it takes, so that a polling guest
//! is interrupted; and it puts no fence between the index and the event.
//!
//! Concurrency: one owner (`&mut`); the device runs beside it, hence atomics for the indices.
//!
//! Source: virtio 1.2, 2.7 "Split Virtqueues".

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering, fence};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`, `VIRTQ_USED_F_NO_NOTIFY`.
const QUIET: u16 = 1;

/// Offset of the index in either ring, and of the entries.
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// A piece of memory that is handed to the device, by its guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub gpa: u64,
    /// Bytes.
    pub bytes: u32,
    /// Whether the device writes it; else it reads it.
    pub is_written: bool,
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its number, as [`Ring::add`] gave it.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub bytes: u32,
}

/// Where the parts of a ring are, from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Offset of the available ring; the descriptors are at 0.
    pub driver: usize,
    /// Offset of the used ring.
    pub device: usize,
    /// Bytes of all.
    pub bytes: usize,
}

impl Layout {
    /// The layout of a ring with that many entries.
    #[must_use]
    pub const fn of(size: u16) -> Layout {
        let entries = size as usize;
        let driver = entries * 16;
        let device = (driver + ENTRIES + entries * 2 + 2).next_multiple_of(64);
        Layout {
            driver,
            device,
            bytes: device + ENTRIES + entries * 8 + 2,
        }
    }
}

/// Whether a side that asked to be told once `event` is passed wants to hear that the index went from `old` to `new` (2.7.10).
#[must_use]
pub const fn is_due(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// A ring in memory of this guest.
#[derive(Debug)]
pub struct Ring {
    start: *mut u8,
    layout: Layout,
    size: u16,
    has_event_index: bool,
    /// Chain of free descriptors, through `links`.
    free: u16,
    free_count: u16,
    links: Vec<u16>,
    /// Descriptors of the chain that begins here; 0 if none does.
    lengths: Vec<u16>,
    /// Our index, and the one up to which the device has been told.
    available: u16,
    told: u16,
    /// The next element of the used ring.
    next_used: u16,
}

// SAFETY: the memory is the ring's own (`Ring::new`), on whichever vCPU it is used.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring of `size` entries (a power of two up to 2^15) that begins at `start`.
    ///
    /// # Safety
    /// From `start`, a multiple of 64, [`Layout::bytes`] zeroed bytes are nobody's but the ring's and its device's for as long as
    /// the ring is used.
    #[must_use]
    pub unsafe fn new(start: *mut u8, size: u16, has_event_index: bool) -> Ring {
        debug_assert!(size.is_power_of_two() && size <= 1 << 15);
        let mut ring = Ring {
            start,
            layout: Layout::of(size),
            size,
            has_event_index,
            free: 0,
            free_count: size,
            links: (1..=size).collect(),
            lengths: alloc::vec![0; usize::from(size)],
            available: 0,
            told: 0,
            next_used: 0,
        };
        ring.want_no_interrupt();
        ring
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn room(&self) -> u16 {
        self.free_count
    }

    fn word(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset.is_multiple_of(2) && offset + 2 <= self.layout.bytes);
        // SAFETY: inside the ring's memory (`new`; offsets are made of the layout and indices below `size`), aligned, and
        // written by the device with atomic stores only.
        unsafe { &*self.start.add(offset).cast::<AtomicU16>() }
    }

    fn entry(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    fn describe(&mut self, index: u16, piece: Piece, next: Option<u16>) {
        let flags =
            if piece.is_written { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
        let rest =
            u64::from(piece.bytes) | u64::from(flags) << 32 | u64::from(next.unwrap_or(0)) << 48;
        // SAFETY: descriptor `index` is below `size`, so inside the ring's memory and aligned; it is free, so the device does
        // not read it now.
        unsafe {
            let descriptor = self.start.cast::<u64>().add(usize::from(index) * 2);
            descriptor.write_volatile(piece.gpa);
            descriptor.add(1).write_volatile(rest);
        }
    }

    /// Puts a chain of pieces into the ring; the device sees it with the next [`Ring::publish`]. Its number, or `None` if there
    /// are not enough free descriptors, or no pieces.
    ///
    /// # Safety
    /// The pieces must be memory that the device may access until the chain has come back ([`Ring::pop`]).
    pub unsafe fn add(&mut self, pieces: &[Piece]) -> Option<u16> {
        let count = u16::try_from(pieces.len()).ok()?;
        if count == 0 || count > self.free_count {
            return None;
        }
        let head = self.free;
        let mut at = head;
        for (number, piece) in pieces.iter().enumerate() {
            let next = self.links.get(usize::from(at)).copied()?;
            let is_last = number + 1 == pieces.len();
            self.describe(at, *piece, (!is_last).then_some(next));
            at = next;
        }
        self.free = at;
        self.free_count -= count;
        if let Some(length) = self.lengths.get_mut(usize::from(head)) {
            *length = count;
        }
        let slot = self.layout.driver + ENTRIES + self.entry(self.available) * 2;
        self.word(slot).store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        Some(head)
    }

    /// Shows the device what was added since the last time. Whether it wants to be kicked for it.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        if self.available == self.told {
            return false;
        }
        let index = self.word(self.layout.driver + INDEX);
        index.store(self.available, Ordering::Release);
        // The device stores its wish and then looks at the index; we the other way round (2.7.21).
        fence(Ordering::SeqCst);
        let old = core::mem::replace(&mut self.told, self.available);
        if self.has_event_index {
            let event = self.layout.device + ENTRIES + usize::from(self.size) * 8;
            is_due(self.word(event).load(Ordering::Relaxed), old, self.told)
        } else {
            self.word(self.layout.device).load(Ordering::Relaxed) & QUIET == 0
        }
    }

    /// Shows the device an entry as no driver would: `head`, an index that is `ahead` of ours, and perhaps descriptor 0 with an
    /// address, a length and flags, followed by itself. The ring is of no use afterwards.
    ///
    /// The descriptor must not let the device write to RAM, which is asserted.
    pub(crate) fn offer_raw(&mut self, head: u16, ahead: u16, raw: Option<(u64, u32, u16)>) {
        if let Some((gpa, bytes, flags)) = raw {
            assert!(flags & WRITE == 0 || gpa > u64::from(u32::MAX));
            let rest = u64::from(bytes) | u64::from(flags) << 32;
            // SAFETY: descriptor 0 of the ring's own memory.
            unsafe {
                self.start.cast::<u64>().write_volatile(gpa);
                self.start.cast::<u64>().add(1).write_volatile(rest);
            }
        }
        let slot = self.layout.driver + ENTRIES + self.entry(self.available) * 2;
        self.word(slot).store(head, Ordering::Relaxed);
        let index = self.available.wrapping_add(ahead);
        self.word(self.layout.driver + INDEX)
            .store(index, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Whether a chain has come back.
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.word(self.layout.device + INDEX)
            .load(Ordering::Acquire)
            != self.next_used
    }

    /// Takes the next chain that has come back.
    ///
    /// # Panics
    /// If the device gives back what it was not given: nothing of the ring can be believed then.
    pub fn pop(&mut self) -> Option<Used> {
        if !self.has_used() {
            return None;
        }
        let at = self.layout.device + ENTRIES + self.entry(self.next_used) * 8;
        // SAFETY: an element of the used ring, inside the ring's memory and aligned to 4; the index that was loaded before says
        // that the device has finished writing it.
        let (head, bytes) = unsafe {
            let element = self.start.add(at).cast::<u32>();
            (element.read_volatile(), element.add(1).read_volatile())
        };
        self.next_used = self.next_used.wrapping_add(1);
        let length = self
            .lengths
            .get_mut(head as usize)
            .map_or(0, core::mem::take);
        assert!(
            length != 0,
            "the device returns chain {head}, which it does not have"
        );
        let head = head as u16;
        let mut last = head;
        for _ in 1..length {
            last = self.links[usize::from(last)];
        }
        self.links[usize::from(last)] = self.free;
        self.free = head;
        self.free_count += length;
        Some(Used { head, bytes })
    }

    /// Asks for an interrupt when `after` more chains have come back (at least 1). Whether there is something already, for which
    /// none will come: look before you sleep.
    #[must_use]
    pub fn want_interrupt(&mut self, after: u16) -> bool {
        let event = self.next_used.wrapping_add(after.max(1) - 1);
        self.set_event(event, 0);
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks for none; a device may not listen.
    pub fn want_no_interrupt(&mut self) {
        // As far away as an index can be.
        self.set_event(self.next_used.wrapping_add(1 << 15), QUIET);
    }

    fn set_event(&mut self, event: u16, flags: u16) {
        if self.has_event_index {
            let at = self.layout.driver + ENTRIES + usize::from(self.size) * 2;
            self.word(at).store(event, Ordering::Relaxed);
        } else {
            self.word(self.layout.driver)
                .store(flags, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
