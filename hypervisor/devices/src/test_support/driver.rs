//! The driver's side of a split virtqueue, as a well-behaved guest has it, with raw access for ill-behaved ones.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use nagaya_mem::Gpa;

use crate::queue::{QueueConfig, RingFeatures};

/// RAM as its guest sees it.
pub trait GuestView {
    /// Copies out. Panics outside RAM.
    fn peek(&self, from: u64, bytes: usize) -> Vec<u8>;
    /// Copies in. Panics outside RAM.
    fn poke(&self, to: u64, bytes: &[u8]);
    /// Loads a little-endian word by one access (acquire).
    fn peek_u16(&self, from: u64) -> u16;
    /// Stores a little-endian word by one access (release).
    fn poke_u16(&self, to: u64, value: u16);
    /// Orders a store before a later load.
    fn fence(&self) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }
}

/// Where the parts of a queue are, one after the other from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What the device is told.
    pub config: QueueConfig,
    /// The first address after them.
    pub end: u64,
}

impl Layout {
    /// A queue of `size` entries from `start`, a multiple of 16.
    #[must_use]
    pub fn at(start: u64, size: u16) -> Layout {
        let entries = u64::from(size);
        let driver = start + entries * 16;
        let device = (driver + 6 + entries * 2).next_multiple_of(4);
        let end = (device + 6 + entries * 8).next_multiple_of(16);
        Layout {
            config: QueueConfig {
                size,
                descriptors: Gpa::new(start),
                driver: Gpa::new(driver),
                device: Gpa::new(device),
            },
            end,
        }
    }
}

/// A buffer that the driver offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its address.
    pub start: u64,
    /// Its length.
    pub bytes: u32,
}

/// A descriptor with any contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Raw {
    /// `addr`.
    pub start: u64,
    /// `len`.
    pub bytes: u32,
    /// `flags`.
    pub flags: u16,
    /// `next`.
    pub next: u16,
}

impl Raw {
    /// The descriptor as it is in memory.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedElement {
    /// Index of its first descriptor, as [`DriverQueue::add`] returned it.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub written: u32,
}

#[derive(Debug)]
struct Pending {
    descriptors: Vec<u16>,
    room: u32,
}

/// A driver's side of a queue. Panics at a device that gives back what it was not given.
#[derive(Debug)]
pub struct DriverQueue {
    layout: Layout,
    features: RingFeatures,
    free: Vec<u16>,
    pending: BTreeMap<u16, Pending>,
    /// Our index, counted on, and as the device knows it.
    next_available: u16,
    published_available: u16,
    next_used: u16,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

impl DriverQueue {
    /// Sets a queue up: all zeros, nothing offered.
    #[must_use]
    pub fn new(ram: &impl GuestView, layout: Layout, features: RingFeatures) -> DriverQueue {
        let start = layout.config.descriptors.get();
        ram.poke(start, &alloc::vec![0; (layout.end - start) as usize]);
        DriverQueue {
            layout,
            features,
            free: (0..layout.config.size).rev().collect(),
            pending: BTreeMap::new(),
            next_available: 0,
            published_available: 0,
            next_used: 0,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Chains that the device has not given back.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Writes one descriptor of the queue's table, whatever it says.
    pub fn set_descriptor(&self, ram: &impl GuestView, index: u16, raw: Raw) {
        let table = self.layout.config.descriptors.get();
        ram.poke(table + u64::from(index) * 16, &raw.to_bytes());
    }

    /// Puts a head into the available ring, whatever it is. Not shown to the device yet.
    pub fn offer(&mut self, ram: &impl GuestView, head: u16) {
        let slot = u64::from(self.next_available % self.layout.config.size);
        let ring = self.layout.config.driver.get();
        ram.poke_u16(ring + 4 + slot * 2, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    fn raws(readable: &[Buffer], writable: &[Buffer], names: impl Fn(usize) -> u16) -> Vec<Raw> {
        let count = readable.len() + writable.len();
        let flags = core::iter::repeat_n(0, readable.len()).chain(core::iter::repeat(WRITE));
        readable
            .iter()
            .chain(writable)
            .zip(flags)
            .enumerate()
            .map(|(index, (buffer, flags))| {
                let is_last = index + 1 == count;
                Raw {
                    start: buffer.start,
                    bytes: buffer.bytes,
                    flags: if is_last { flags } else { flags | NEXT },
                    next: if is_last { 0 } else { names(index + 1) },
                }
            })
            .collect()
    }

    /// Puts a chain into the ring, not shown to the device yet; `None` if there are too few descriptors. Panics at a chain of
    /// nothing.
    pub fn add(
        &mut self,
        ram: &impl GuestView,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> Option<u16> {
        let count = readable.len() + writable.len();
        assert!(count > 0, "a chain has a buffer");
        let left = self.free.len().checked_sub(count)?;
        let mut descriptors = self.free.split_off(left);
        descriptors.reverse();
        let raws = Self::raws(readable, writable, |index| descriptors[index]);
        for (index, raw) in descriptors.iter().zip(raws) {
            self.set_descriptor(ram, *index, raw);
        }
        Some(self.enter(ram, descriptors, writable))
    }

    /// As [`DriverQueue::add`], with one descriptor for a table at `table`.
    pub fn add_indirect(
        &mut self,
        ram: &impl GuestView,
        table: u64,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> Option<u16> {
        assert!(self.features.indirect, "indirect is not negotiated");
        let raws = Self::raws(readable, writable, |index| index as u16);
        assert!(!raws.is_empty(), "a chain has a buffer");
        let descriptor = self.free.pop()?;
        for (index, raw) in raws.iter().enumerate() {
            ram.poke(table + index as u64 * 16, &raw.to_bytes());
        }
        let raw = Raw {
            start: table,
            bytes: raws.len() as u32 * 16,
            flags: INDIRECT,
            next: 0,
        };
        self.set_descriptor(ram, descriptor, raw);
        Some(self.enter(ram, alloc::vec![descriptor], writable))
    }

    fn enter(&mut self, ram: &impl GuestView, descriptors: Vec<u16>, writable: &[Buffer]) -> u16 {
        let head = descriptors[0];
        let room = writable.iter().map(|buffer| buffer.bytes).sum();
        self.offer(ram, head);
        self.pending.insert(head, Pending { descriptors, room });
        head
    }

    /// Shows the device what was added. `true`: the device wants a notification.
    pub fn publish(&mut self, ram: &impl GuestView) -> bool {
        let (old, new) = (self.published_available, self.next_available);
        let QueueConfig {
            size,
            driver,
            device,
            ..
        } = self.layout.config;
        ram.poke_u16(driver.get() + 2, new);
        // The device tells its wish, then looks at our index; we do the reverse.
        ram.fence();
        self.published_available = new;
        if self.features.event_index {
            let event = ram.peek_u16(device.get() + 4 + u64::from(size) * 8);
            old != new && new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            old != new && ram.peek_u16(device.get()) & 1 == 0
        }
    }

    /// Asks for an interrupt with the next chain that comes back, or for none.
    pub fn want_interrupt(&self, ram: &impl GuestView, wanted: bool) {
        let QueueConfig { size, driver, .. } = self.layout.config;
        if self.features.event_index {
            // The event behind us comes only after a turn of 65536.
            let event = if wanted {
                self.next_used
            } else {
                self.next_used.wrapping_sub(1)
            };
            let at = driver.get() + 4 + u64::from(size) * 2;
            ram.poke_u16(at, event);
        } else {
            ram.poke_u16(driver.get(), u16::from(!wanted));
        }
        // Who wants an interrupt looks at the ring once more after this.
        ram.fence();
    }

    /// Takes the next chain that came back.
    pub fn take(&mut self, ram: &impl GuestView) -> Option<UsedElement> {
        let QueueConfig { size, device, .. } = self.layout.config;
        let index = ram.peek_u16(device.get() + 2);
        let waiting = index.wrapping_sub(self.next_used);
        assert!(waiting <= size, "the device gave back more than a ring");
        if waiting == 0 {
            return None;
        }
        let slot = u64::from(self.next_used % size);
        let raw = ram.peek(device.get() + 4 + slot * 8, 8);
        let head = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        let written = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]);
        let head = u16::try_from(head).expect("the used element names a descriptor");
        let pending = self.pending.remove(&head).expect("the chain was offered");
        assert!(
            written <= pending.room,
            "{written} bytes written into {} bytes",
            pending.room
        );
        self.free.extend(pending.descriptors.iter().rev());
        self.next_used = self.next_used.wrapping_add(1);
        Some(UsedElement { head, written })
    }
}

#[cfg(test)]
mod tests {
    use super::super::TestRam;
    use super::*;

    fn driver() -> (TestRam, DriverQueue) {
        let ram = TestRam::new(0x4000);
        let driver = DriverQueue::new(&ram, Layout::at(0, 4), RingFeatures::default());
        (ram, driver)
    }

    fn give_back(ram: &TestRam, driver: &DriverQueue, head: u32, written: u32) {
        let ring = driver.layout().config.device.get();
        ram.poke(ring + 4, &head.to_le_bytes());
        ram.poke(ring + 8, &written.to_le_bytes());
        ram.poke(ring + 2, &1_u16.to_le_bytes());
    }

    const BUFFER: Buffer = Buffer {
        start: 0x1000,
        bytes: 16,
    };

    #[test]
    fn descriptors_are_free_again_when_the_chain_came_back() {
        let (ram, mut driver) = driver();
        let head = driver.add(&ram, &[BUFFER; 2], &[BUFFER; 2]).expect("free");
        assert_eq!(driver.add(&ram, &[BUFFER], &[]), None);
        give_back(&ram, &driver, u32::from(head), 32);
        let used = driver.take(&ram).expect("came back");
        assert_eq!((used.written, driver.free()), (32, 4));
        assert!(driver.add(&ram, &[BUFFER], &[]).is_some());
    }

    #[test]
    #[should_panic(expected = "the chain was offered")]
    fn a_chain_that_was_not_offered_is_noticed() {
        let (ram, mut driver) = driver();
        give_back(&ram, &driver, 2, 0);
        driver.take(&ram);
    }

    #[test]
    #[should_panic(expected = "33 bytes written into 32 bytes")]
    fn more_written_than_there_was_room_is_noticed() {
        let (ram, mut driver) = driver();
        let head = driver.add(&ram, &[], &[BUFFER; 2]).expect("free");
        give_back(&ram, &driver, u32::from(head), 33);
        driver.take(&ram);
    }
}
