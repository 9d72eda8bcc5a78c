//! The device's side of a split virtqueue.
//!
//! A [`Queue`] is a cursor over three rings in guest memory: the driver offers chains of descriptors in the available ring
//! ([`Queue::pop`]), the device gives them back in the used ring ([`Queue::complete`], then [`Queue::publish`]), and both tell
//! each other whether they want to be notified. Ring fields are the guest's: each is loaded once, then checked.
//!
//! After an error the queue is not to be used; the device asks for a reset.
//!
//! Source: virtio 1.2, 2.7 "Split Virtqueues".

mod chain;
mod error;
pub mod scatter;

use nagaya_mem::Gpa;
use serde::{Deserialize, Serialize};

use crate::GuestRam;
use crate::state::{StateError, check};
use chain::Source;
pub use chain::{Chain, ChainHeader, ChainState, Chains, Segment};
pub use error::QueueError;

/// The most entries that a split virtqueue can have (2.7).
pub const SPEC_MAX_SIZE: u16 = 32768;

/// Bytes of a descriptor (2.7.5).
pub const DESCRIPTOR_BYTES: u64 = 16;
/// Bytes of an element of the used ring (2.7.8).
const USED_ELEMENT_BYTES: u64 = 8;
/// Offset of `idx` in either ring, after `flags`.
const INDEX: u64 = 2;
/// Offset of the entries in either ring.
const ENTRIES: u64 = 4;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`, a hint of the driver.
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`, a hint of the device.
const NO_NOTIFY: u16 = 1;

/// Where a queue is and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueConfig {
    /// Entries: a power of two.
    pub size: u16,
    /// The descriptor table, a multiple of 16.
    pub descriptors: Gpa,
    /// The driver area: the available ring, a multiple of 2.
    pub driver: Gpa,
    /// The device area: the used ring, a multiple of 4.
    pub device: Gpa,
}

/// Features that change the rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingFeatures {
    /// `VIRTIO_F_RING_EVENT_IDX`: notifications are asked for by index.
    pub event_index: bool,
    /// `VIRTIO_F_INDIRECT_DESC`: a descriptor may stand for a table of descriptors.
    pub indirect: bool,
}

/// A queue that the driver has enabled.
#[derive(Clone, Debug)]
pub struct Queue {
    config: QueueConfig,
    features: RingFeatures,
    /// Tells chains of this queue from those of the queue before a reset.
    epoch: u32,
    /// The next entry of the available ring, counted on.
    next_available: u16,
    /// The driver's index as last loaded: entries before it may be taken without looking again.
    seen_available: u16,
    /// The next entry of the used ring, counted on.
    next_used: u16,
    /// Our index as the driver knows it.
    published_used: u16,
    /// Our index when we last decided about an interrupt.
    decided_used: u16,
    /// Chains taken and not given back.
    in_flight: u16,
}

impl Queue {
    /// A queue at its start. `epoch` is another number for each queue that the driver sets up in the same place.
    ///
    /// # Errors
    /// [`QueueError::Config`] if the size is no power of two, or a part is not aligned or goes beyond the last address. Whether
    /// there is RAM shows when the queue is used.
    pub fn new(
        config: QueueConfig,
        features: RingFeatures,
        epoch: u32,
    ) -> Result<Queue, QueueError> {
        let size = u64::from(config.size);
        // Both rings end in a word for the event index.
        let ends = [
            (config.descriptors, size * DESCRIPTOR_BYTES),
            (config.driver, ENTRIES + size * 2 + 2),
            (config.device, ENTRIES + size * USED_ELEMENT_BYTES + 2),
        ];
        let is_valid = config.size.is_power_of_two()
            && config.size <= SPEC_MAX_SIZE
            && config.descriptors.is_aligned(16)
            && config.driver.is_aligned(2)
            && config.device.is_aligned(4)
            && ends
                .iter()
                .all(|(start, bytes)| start.checked_add(*bytes).is_some());
        if !is_valid {
            return Err(QueueError::Config(config));
        }
        Ok(Queue {
            config,
            features,
            epoch,
            next_available: 0,
            seen_available: 0,
            next_used: 0,
            published_used: 0,
            decided_used: 0,
            in_flight: 0,
        })
    }

    /// Where the queue is.
    #[must_use]
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    /// Chains that were taken and not given back.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Whether the chain was taken from this queue, not from the one before a reset.
    #[must_use]
    pub fn owns(&self, chain: &ChainHeader) -> bool {
        chain.epoch() == self.epoch
    }

    /// Takes the next chain that the driver offers into `chain`, whose storage is used again. `false`: there is none.
    ///
    /// # Errors
    /// What the driver broke.
    #[inline]
    pub fn pop<R: GuestRam>(&mut self, ram: &R, chain: &mut Chain) -> Result<bool, QueueError> {
        let Some(head) = self.offered(ram)? else {
            return Ok(false);
        };
        chain.load(ram, &self.source(), head)?;
        self.took();
        Ok(true)
    }

    /// As [`Queue::pop`], behind the chains that have been taken already. `false` also if `chains` has no room for the longest
    /// chain that there can be.
    ///
    /// # Errors
    /// What the driver broke.
    #[inline]
    pub fn pop_next<R: GuestRam>(
        &mut self,
        ram: &R,
        chains: &mut Chains,
    ) -> Result<bool, QueueError> {
        if !chains.has_room_for(self.config.size.into()) {
            return Ok(false);
        }
        let Some(head) = self.offered(ram)? else {
            return Ok(false);
        };
        chains.load(ram, &self.source(), head)?;
        self.took();
        Ok(true)
    }

    /// The head of the next chain.
    #[inline]
    fn offered<R: GuestRam>(&mut self, ram: &R) -> Result<Option<u16>, QueueError> {
        if self.seen_available == self.next_available && self.waiting(ram)? == 0 {
            return Ok(None);
        }
        if self.in_flight >= self.config.size {
            return Err(QueueError::TooManyInFlight);
        }
        let slot = u64::from(self.next_available % self.config.size);
        let head = ram.load_u16(part(self.config.driver, ENTRIES + slot * 2))?;
        Ok(Some(head))
    }

    #[inline]
    fn took(&mut self) {
        self.next_available = self.next_available.wrapping_add(1);
        self.in_flight = self.in_flight.saturating_add(1);
    }

    fn source(&self) -> Source<'_> {
        Source {
            queue: &self.config,
            may_be_indirect: self.features.indirect,
            epoch: self.epoch,
        }
    }

    /// Makes the last `count` chains that were taken, none of them given back, be offered again.
    pub fn undo_pop(&mut self, count: u16) {
        let count = count.min(self.in_flight);
        self.next_available = self.next_available.wrapping_sub(count);
        self.in_flight -= count;
    }

    /// Chains that are offered and not taken. Looks at the ring.
    #[inline]
    fn waiting<R: GuestRam>(&mut self, ram: &R) -> Result<u16, QueueError> {
        // Acquire: entries and descriptors are loaded after the index that announces them (2.7.13).
        let index = ram.load_u16(part(self.config.driver, INDEX))?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.config.size {
            return Err(QueueError::AvailableIndex {
                index,
                next: self.next_available,
            });
        }
        self.seen_available = index;
        Ok(waiting)
    }

    /// Gives a chain back with `written` bytes in its device-writable part. The driver sees it after [`Queue::publish`]. A chain
    /// from before a reset is let go.
    ///
    /// # Errors
    /// [`QueueError::Written`] if that part is smaller; the used ring is no RAM.
    #[inline]
    pub fn complete<R: GuestRam>(
        &mut self,
        ram: &R,
        chain: &ChainHeader,
        written: u32,
    ) -> Result<(), QueueError> {
        if !self.owns(chain) {
            return Ok(());
        }
        if written > chain.writable_bytes() {
            return Err(QueueError::Written {
                bytes: written,
                room: chain.writable_bytes(),
            });
        }
        let slot = u64::from(self.next_used % self.config.size);
        let [h0, h1] = chain.head().to_le_bytes();
        let [w0, w1, w2, w3] = written.to_le_bytes();
        ram.write(
            part(self.config.device, ENTRIES + slot * USED_ELEMENT_BYTES),
            &[h0, h1, 0, 0, w0, w1, w2, w3],
        )?;
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(())
    }

    /// Shows the driver all chains given back so far. Chains that belong together (one frame in several buffers) are given back
    /// first and shown at once.
    ///
    /// # Errors
    /// The used ring is no RAM.
    #[inline]
    pub fn publish<R: GuestRam>(&mut self, ram: &R) -> Result<(), QueueError> {
        if self.published_used != self.next_used {
            ram.store_u16(part(self.config.device, INDEX), self.next_used)?;
            self.published_used = self.next_used;
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was published since the last call (2.7.7).
    ///
    /// # Errors
    /// The available ring is no RAM.
    #[inline]
    pub fn take_interrupt<R: GuestRam>(&mut self, ram: &R) -> Result<bool, QueueError> {
        let (new, old) = (self.published_used, self.decided_used);
        if new == old {
            return Ok(false);
        }
        self.decided_used = new;
        // The driver stores its wish, then looks at our index; we did the reverse. So one of us sees the other's news.
        ram.fence();
        if self.features.event_index {
            let at = ENTRIES + u64::from(self.config.size) * 2;
            let event = ram.load_u16(part(self.config.driver, at))?;
            Ok(crosses(event, old, new))
        } else {
            let flags = ram.load_u16(self.config.driver)?;
            Ok(flags & NO_INTERRUPT == 0)
        }
    }

    /// Asks the driver not to notify, while we look at the ring anyway. With event indices there is nothing to say: the one
    /// that we asked for last has passed.
    ///
    /// # Errors
    /// The used ring is no RAM.
    #[inline]
    pub fn suppress_notifications<R: GuestRam>(&mut self, ram: &R) -> Result<(), QueueError> {
        if !self.features.event_index {
            ram.store_u16(self.config.device, NO_NOTIFY)?;
        }
        Ok(())
    }

    /// Asks the driver to notify of the next chain after those offered so far: these are too few. `true`: it has offered more
    /// meanwhile, perhaps without a notification.
    ///
    /// # Errors
    /// The rings are no RAM, or the driver's index is wrong.
    pub fn ask_for_more<R: GuestRam>(&mut self, ram: &R) -> Result<bool, QueueError> {
        let before = self.seen_available;
        self.ask_for_notification(ram, before)?;
        self.waiting(ram)?;
        Ok(self.seen_available != before)
    }

    /// Asks the driver to notify of the next chain. `true`: it has offered one meanwhile, perhaps without a notification, so
    /// look again.
    ///
    /// # Errors
    /// The rings are no RAM, or the driver's index is wrong.
    #[inline]
    pub fn resume_notifications<R: GuestRam>(&mut self, ram: &R) -> Result<bool, QueueError> {
        self.ask_for_notification(ram, self.next_available)?;
        Ok(self.waiting(ram)? > 0)
    }

    #[inline]
    fn ask_for_notification<R: GuestRam>(&self, ram: &R, event: u16) -> Result<(), QueueError> {
        if self.features.event_index {
            let at = ENTRIES + u64::from(self.config.size) * USED_ELEMENT_BYTES;
            ram.store_u16(part(self.config.device, at), event)?;
        } else {
            ram.store_u16(self.config.device, 0)?;
        }
        // The driver offers a chain, then looks at our wish; we do the reverse.
        ram.fence();
        Ok(())
    }
}

/// A place in a part of a queue. No part goes beyond the last address: [`Queue::new`] has looked.
#[inline]
const fn part(start: Gpa, bytes: u64) -> Gpa {
    Gpa::new(start.get().wrapping_add(bytes))
}

/// Whether an index that goes from `old` to `new` passes `event`: the one who asked wants to know of the entry after it (2.7.7.1, 2.7.10.1).
const fn crosses(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The cursors of a queue as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    next_available: u16,
    seen_available: u16,
    next_used: u16,
    published_used: u16,
    decided_used: u16,
    in_flight: u16,
}

impl Queue {
    /// What it is besides what it is made with.
    #[must_use]
    pub fn save(&self) -> QueueState {
        let Queue {
            // Who has set it up knows these.
            config: _,
            features: _,
            epoch: _,
            next_available,
            seen_available,
            next_used,
            published_used,
            decided_used,
            in_flight,
        } = self;
        QueueState {
            next_available: *next_available,
            seen_available: *seen_available,
            next_used: *next_used,
            published_used: *published_used,
            decided_used: *decided_used,
            in_flight: *in_flight,
        }
    }

    /// The queue with those cursors; itself it is at its start.
    ///
    /// # Errors
    /// [`StateError`]: more chains are offered or taken than it has entries.
    pub fn restore(self, state: &QueueState) -> Result<Queue, StateError> {
        let QueueState {
            next_available,
            seen_available,
            next_used,
            published_used,
            decided_used,
            in_flight,
        } = *state;
        let size = self.config.size;
        check(
            in_flight <= size,
            "in_flight",
            in_flight,
            "at most the queue's size",
        )?;
        // As many are offered as it has entries; as many again may have been put back.
        let offered = seen_available.wrapping_sub(next_available);
        check(
            u32::from(offered) <= 2 * u32::from(size),
            "seen_available",
            seen_available,
            "at most twice the queue's size after next_available",
        )?;
        Ok(Queue {
            next_available,
            seen_available,
            next_used,
            published_used,
            decided_used,
            in_flight,
            ..self
        })
    }
}
