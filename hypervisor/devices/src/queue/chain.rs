//! A chain of descriptors, loaded and checked.

use alloc::vec::Vec;
use core::ops::Deref;

use nagaya_mem::Gpa;
use serde::{Deserialize, Serialize};

use super::{DESCRIPTOR_BYTES, QueueConfig, QueueError, SPEC_MAX_SIZE};
use crate::ram::offset;
use crate::state::{StateError, check};
use crate::{GuestRam, RamError};

/// `VIRTQ_DESC_F_NEXT`.
const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: device-writable.
const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
const INDIRECT: u16 = 4;

/// A piece of guest memory. Whether it is RAM shows when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its first address.
    pub start: Gpa,
    /// Its length, not 0; the end does not go beyond the last address.
    pub bytes: u32,
}

/// What a chain is besides its segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHeader {
    head: u16,
    epoch: u32,
    readable_bytes: u32,
    writable_bytes: u32,
}

impl ChainHeader {
    /// Index of the first descriptor: what the driver knows the chain by.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Which setting up of the queue it came from.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Bytes of the device-readable segments.
    #[must_use]
    pub fn readable_bytes(&self) -> u32 {
        self.readable_bytes
    }

    /// Bytes of the device-writable segments.
    #[must_use]
    pub fn writable_bytes(&self) -> u32 {
        self.writable_bytes
    }
}

/// A chain as its descriptors were when it was taken: what the driver does to them later has no effect.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    outline: ChainHeader,
    segments: Vec<Segment>,
    /// How many of the segments are device-readable; they come first.
    readable: usize,
}

impl Deref for Chain {
    type Target = ChainHeader;

    fn deref(&self) -> &ChainHeader {
        &self.outline
    }
}

/// Chains that are taken for one purpose, their segments one behind the other. The storage is there from the start: a driver
/// that offers chains of countless pieces cannot make it grow.
#[derive(Debug)]
pub struct Chains {
    outlines: Vec<ChainHeader>,
    segments: Vec<Segment>,
}

impl Chains {
    /// Room for so many chains, which have so many segments together.
    #[must_use]
    pub fn with_room(chains: usize, segments: usize) -> Chains {
        Chains {
            outlines: Vec::with_capacity(chains),
            segments: Vec::with_capacity(segments),
        }
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        self.outlines.clear();
        self.segments.clear();
    }

    /// The chains in their order.
    #[must_use]
    pub fn outlines(&self) -> &[ChainHeader] {
        &self.outlines
    }

    /// All their segments.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes of heap that it has.
    #[must_use]
    pub fn storage_bytes(&self) -> usize {
        self.outlines.capacity() * size_of::<ChainHeader>()
            + self.segments.capacity() * size_of::<Segment>()
    }

    /// Whether a chain of so many segments would find room, too.
    pub(super) fn has_room_for(&self, segments: usize) -> bool {
        self.outlines.len() < self.outlines.capacity()
            && self.segments.len() + segments <= self.segments.capacity()
    }

    pub(super) fn load<R: GuestRam>(
        &mut self,
        ram: &R,
        source: &Source<'_>,
        head: u16,
    ) -> Result<(), QueueError> {
        let mut loader = Loader::new(source, head, &mut self.segments);
        loader.load(ram)?;
        self.outlines.push(loader.outline);
        Ok(())
    }
}

/// A descriptor as it was loaded.
struct Descriptor {
    start: Gpa,
    bytes: u32,
    flags: u16,
    next: u16,
}

/// A table of descriptors: the queue's own or an indirect one.
struct Table {
    start: Gpa,
    entries: u32,
}

impl Table {
    fn load<R: GuestRam>(&self, ram: &R, index: u16) -> Result<Descriptor, RamError> {
        let mut raw = [0; DESCRIPTOR_BYTES as usize];
        let at = offset(self.start, u64::from(index) * DESCRIPTOR_BYTES)?;
        ram.read(at, &mut raw)?;
        // struct virtq_desc: le64 addr, le32 len, le16 flags, le16 next.
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = raw;
        Ok(Descriptor {
            start: Gpa::new(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7])),
            bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

impl Chain {
    /// A chain of nothing, to be filled by [`super::Queue::pop`].
    #[must_use]
    pub fn new() -> Chain {
        Chain::default()
    }

    /// The device-readable segments.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// The device-writable segments.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    pub(super) fn load<R: GuestRam>(
        &mut self,
        ram: &R,
        source: &Source<'_>,
        head: u16,
    ) -> Result<(), QueueError> {
        self.segments.clear();
        let mut loader = Loader::new(source, head, &mut self.segments);
        let loaded = loader.load(ram);
        (self.outline, self.readable) = (loader.outline, loader.readable);
        loaded
    }
}

/// Where chains come from.
pub(super) struct Source<'a> {
    pub(super) queue: &'a QueueConfig,
    pub(super) may_be_indirect: bool,
    pub(super) epoch: u32,
}

/// A chain that is being loaded, its segments to the end of a list.
struct Loader<'a> {
    source: &'a Source<'a>,
    outline: ChainHeader,
    segments: &'a mut Vec<Segment>,
    /// Where its own segments begin.
    first: usize,
    readable: usize,
}

impl<'a> Loader<'a> {
    fn new(source: &'a Source<'a>, head: u16, segments: &'a mut Vec<Segment>) -> Loader<'a> {
        Loader {
            source,
            outline: ChainHeader {
                head,
                epoch: source.epoch,
                ..ChainHeader::default()
            },
            first: segments.len(),
            segments,
            readable: 0,
        }
    }

    fn count(&self) -> usize {
        self.segments.len() - self.first
    }

    /// Loads the chain: mostly a single descriptor.
    #[inline]
    fn load<R: GuestRam>(&mut self, ram: &R) -> Result<(), QueueError> {
        let queue = self.source.queue;
        let table = Table {
            start: queue.descriptors,
            entries: u32::from(queue.size),
        };
        let index = self.outline.head;
        if index >= queue.size {
            return Err(QueueError::Head { index });
        }
        let descriptor = table.load(ram, index)?;
        if descriptor.flags & (NEXT | INDIRECT) == 0 {
            return self.add(&descriptor);
        }
        self.follow(ram, table, descriptor)
    }

    /// Loads a longer chain from its first descriptor on. At most as many buffers as the queue has entries, directly and by an
    /// indirect table together, so that a loop ends, too.
    #[inline(never)]
    fn follow<R: GuestRam>(
        &mut self,
        ram: &R,
        mut table: Table,
        mut descriptor: Descriptor,
    ) -> Result<(), QueueError> {
        let Source {
            queue,
            may_be_indirect,
            ..
        } = *self.source;
        let mut in_indirect = false;
        loop {
            if descriptor.flags & INDIRECT != 0 {
                if !may_be_indirect {
                    return Err(QueueError::IndirectNotNegotiated);
                }
                if in_indirect {
                    return Err(QueueError::NestedIndirect);
                }
                if descriptor.flags & NEXT != 0 {
                    return Err(QueueError::IndirectWithNext);
                }
                // The device ignores WRITE here (2.7.5.3.2).
                table = indirect_table(&descriptor)?;
                in_indirect = true;
                descriptor = table.load(ram, 0)?;
                continue;
            }
            if self.count() >= usize::from(queue.size) {
                return Err(QueueError::TooManyDescriptors);
            }
            self.add(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            let index = descriptor.next;
            if u32::from(index) >= table.entries {
                return Err(QueueError::Next {
                    index,
                    entries: table.entries,
                });
            }
            descriptor = table.load(ram, index)?;
        }
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), QueueError> {
        let Descriptor { start, bytes, .. } = *descriptor;
        let is_writable = descriptor.flags & WRITE != 0;
        if bytes == 0 {
            return Err(QueueError::EmptyBuffer { start });
        }
        if start.checked_add(u64::from(bytes)).is_none() {
            return Err(QueueError::BufferRange { start, bytes });
        }
        if !is_writable && self.readable < self.count() {
            return Err(QueueError::ReadableAfterWritable { start });
        }
        let outline = &mut self.outline;
        let total = outline
            .readable_bytes
            .checked_add(outline.writable_bytes)
            .and_then(|total| total.checked_add(bytes));
        if total.is_none() {
            return Err(QueueError::TooManyBytes);
        }
        self.segments.push(Segment { start, bytes });
        if is_writable {
            outline.writable_bytes += bytes;
        } else {
            self.readable += 1;
            outline.readable_bytes += bytes;
        }
        Ok(())
    }
}

fn indirect_table(descriptor: &Descriptor) -> Result<Table, QueueError> {
    let Descriptor { start, bytes, .. } = *descriptor;
    let entry = DESCRIPTOR_BYTES as u32;
    if bytes == 0 || bytes % entry != 0 {
        return Err(QueueError::IndirectBytes { bytes });
    }
    if start.checked_add(u64::from(bytes)).is_none() {
        return Err(QueueError::BufferRange { start, bytes });
    }
    Ok(Table {
        start,
        entries: bytes / entry,
    })
}

/// A chain that has been taken and not given back, as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainState {
    header: ChainHeader,
    segments: Vec<Segment>,
    readable: u32,
}

impl Chain {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> ChainState {
        let Chain {
            outline,
            segments,
            readable,
        } = self;
        ChainState {
            header: *outline,
            segments: segments.clone(),
            readable: *readable as u32,
        }
    }

    /// The same chain.
    ///
    /// # Errors
    /// [`StateError`]: a piece is empty or goes beyond the last address, or they are not as many bytes as it says.
    pub fn restore(state: &ChainState) -> Result<Chain, StateError> {
        let ChainState {
            header,
            segments,
            readable,
        } = state;
        let count = segments.len();
        check(
            count <= usize::from(SPEC_MAX_SIZE),
            "segments",
            count as u64,
            "at most 32768",
        )?;
        check(
            *readable as usize <= count,
            "readable",
            *readable,
            "at most as many as there are segments",
        )?;
        for (index, Segment { start, bytes }) in segments.iter().enumerate() {
            let is_whole = *bytes > 0 && start.checked_add(u64::from(*bytes)).is_some();
            check(is_whole, "bytes", *bytes, "1 to the last address")
                .map_err(|error| error.within(format_args!("segments[{index}]")))?;
        }
        let chain = Chain {
            outline: *header,
            segments: segments.clone(),
            readable: *readable as usize,
        };
        // At most 2^15 of less than 2^32 bytes.
        let sum = |part: &[Segment]| part.iter().map(|piece| u64::from(piece.bytes)).sum::<u64>();
        for (name, found, part) in [
            ("readable_bytes", header.readable_bytes, chain.readable()),
            ("writable_bytes", header.writable_bytes, chain.writable()),
        ] {
            check(
                u64::from(found) == sum(part),
                name,
                found,
                "the bytes of those segments",
            )?;
        }
        let total = u64::from(header.readable_bytes) + u64::from(header.writable_bytes);
        check(
            u32::try_from(total).is_ok(),
            "header",
            total,
            "less than 2^32 bytes together",
        )?;
        Ok(chain)
    }
}
