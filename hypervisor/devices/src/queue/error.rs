//! What a driver can break in a queue.

use nagaya_mem::Gpa;
use serde::{Deserialize, Serialize};

use super::QueueConfig;
use crate::{CopyError, RamError};

/// A rule of the specification that the driver broke. The clauses are of virtio 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueError {
    /// Size, alignment or addresses (2.7).
    Config(QueueConfig),
    /// More chains are offered than there are descriptors (2.7.6).
    AvailableIndex {
        /// The driver's index.
        index: u16,
        /// The next that the device would take.
        next: u16,
    },
    /// As many chains are taken and not given back as there are descriptors, and another is offered.
    TooManyInFlight,
    /// The head is not in the table (2.7.6).
    Head {
        /// Its index.
        index: u16,
    },
    /// `next` is not in its table (2.7.5).
    Next {
        /// Its value.
        index: u16,
        /// Entries of the table.
        entries: u32,
    },
    /// More descriptors than the queue's size, or a loop (2.7.5.3.1).
    TooManyDescriptors,
    /// A device-readable descriptor after a device-writable one (2.7.4.2).
    ReadableAfterWritable {
        /// Its address.
        start: Gpa,
    },
    /// A descriptor of no bytes.
    EmptyBuffer {
        /// Its address.
        start: Gpa,
    },
    /// A buffer that goes beyond the last address.
    BufferRange {
        /// Its address.
        start: Gpa,
        /// Its length.
        bytes: u32,
    },
    /// All buffers together are longer than the length of a chain can say (2.7.5.2).
    TooManyBytes,
    /// An indirect descriptor without `VIRTIO_F_INDIRECT_DESC` (2.7.5.3.1).
    IndirectNotNegotiated,
    /// An indirect descriptor that has a `next`, too (2.7.5.3.1).
    IndirectWithNext,
    /// An indirect descriptor inside an indirect table (2.7.5.3.1).
    NestedIndirect,
    /// An indirect table of no descriptors, or of a part of one (2.7.5.3.1).
    IndirectBytes {
        /// Its length.
        bytes: u32,
    },
    /// Buffers in a direction that this queue has no use for.
    Direction,
    /// Fewer bytes than a chain of this queue has at least.
    ChainBytes {
        /// Its bytes.
        bytes: u32,
        /// The least.
        least: u32,
    },
    /// The device said it wrote more than there is room for: our own error, told and not obeyed.
    Written {
        /// What it said.
        bytes: u32,
        /// The room.
        room: u32,
    },
    /// A ring, a table or a buffer is no RAM, or may not be written.
    Ram(RamError),
}

impl From<RamError> for QueueError {
    fn from(error: RamError) -> QueueError {
        QueueError::Ram(error)
    }
}

impl From<CopyError> for QueueError {
    fn from(error: CopyError) -> QueueError {
        match error {
            CopyError::Source(error) | CopyError::Target(error) => QueueError::Ram(error),
        }
    }
}
