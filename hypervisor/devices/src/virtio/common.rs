//! What every virtio device has: features, status, queues and their set-up (2.1 to 2.6, 3.1), independent of the transport.

use alloc::vec::Vec;

use nagaya_mem::Gpa;
use serde::{Deserialize, Serialize};

use super::{NO_VECTOR, feature, status};
use crate::queue::{Queue, QueueConfig, QueueError, QueueState, RingFeatures};
use crate::state::{StateError, check};

/// Why a device asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The queue.
    pub queue: u16,
    /// What is wrong with it.
    pub error: QueueError,
}

/// One queue as the driver sets it up.
#[derive(Clone, Debug)]
pub(super) struct QueueSlot {
    max_size: u16,
    pub(super) config: QueueConfig,
    pub(super) vector: u16,
    pub(super) is_enabled: bool,
    /// From DRIVER_OK to the next reset.
    pub(super) queue: Option<Queue>,
}

impl QueueSlot {
    fn new(max_size: u16) -> QueueSlot {
        QueueSlot {
            max_size,
            config: QueueConfig {
                size: max_size,
                ..QueueConfig::default()
            },
            vector: NO_VECTOR,
            is_enabled: false,
            queue: None,
        }
    }
}

/// What a write to the status did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusChange {
    None,
    Reset,
    Started,
}

/// The common state of a device.
#[derive(Clone, Debug)]
pub(super) struct Common {
    offered: u64,
    /// Pairs of a feature and what it needs.
    needs: &'static [(u64, u64)],
    accepted: u64,
    pub(super) status: u8,
    pub(super) queues: Vec<QueueSlot>,
    epoch: u32,
    failure: Option<Failure>,
}

/// Bits of the status that a driver sets.
const DRIVER_BITS: u8 =
    status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;

impl Common {
    pub(super) fn new(offered: u64, needs: &'static [(u64, u64)], queue_sizes: &[u16]) -> Common {
        Common {
            offered,
            needs,
            accepted: 0,
            status: 0,
            queues: queue_sizes
                .iter()
                .map(|size| QueueSlot::new(*size))
                .collect(),
            epoch: 0,
            failure: None,
        }
    }

    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    /// What the driver has written, agreed on or not.
    pub(super) fn written_features(&self) -> u64 {
        self.accepted
    }

    /// The features agreed on, 0 before FEATURES_OK.
    pub(super) fn features(&self) -> u64 {
        if self.status & status::FEATURES_OK != 0 {
            self.accepted
        } else {
            0
        }
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Whether the driver is ready and the device has met no error.
    pub(super) fn is_running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED)
            == status::DRIVER_OK
    }

    /// Takes half of the driver's features. Not after FEATURES_OK (3.1.1).
    pub(super) fn write_features(&mut self, select: u32, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let low = self.accepted & 0xFFFF_FFFF;
        match select {
            0 => self.accepted = self.accepted >> 32 << 32 | u64::from(value),
            1 => self.accepted = u64::from(value) << 32 | low,
            _ => {}
        }
    }

    /// Only offered features, with what they need, and VERSION_1: there is no legacy interface (6.1).
    fn features_are_acceptable(&self) -> bool {
        let has = |bits: u64| self.accepted & bits == bits;
        self.accepted & !self.offered == 0
            && has(feature::VERSION_1)
            && self
                .needs
                .iter()
                .all(|(wanted, needed)| !has(*wanted) || has(*needed))
    }

    /// The driver writes the status (2.1, 3.1.1). Bits are only added; a bit whose time has not come is not set.
    pub(super) fn write_status(&mut self, value: u8) -> StatusChange {
        if value == 0 {
            self.reset();
            return StatusChange::Reset;
        }
        let mut new = self.status | (value & DRIVER_BITS);
        let gained = |new: u8, bit: u8| new & !self.status & bit != 0;
        let found = status::ACKNOWLEDGE | status::DRIVER;
        if gained(new, status::FEATURES_OK)
            && (new & found != found || !self.features_are_acceptable())
        {
            new &= !status::FEATURES_OK;
        }
        if gained(new, status::DRIVER_OK) && new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        let starts = gained(new, status::DRIVER_OK);
        self.status = new;
        if !starts {
            return StatusChange::None;
        }
        if let Err(failure) = self.start_queues() {
            self.fail(failure);
        }
        StatusChange::Started
    }

    fn ring_features(&self) -> RingFeatures {
        let features = self.features();
        RingFeatures {
            event_index: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
        }
    }

    fn start_queues(&mut self) -> Result<(), Failure> {
        let features = self.ring_features();
        let epoch = self.epoch;
        for (slot, index) in self.queues.iter_mut().zip(0..) {
            if slot.is_enabled {
                let queue = Queue::new(slot.config, features, epoch).map_err(|error| Failure {
                    queue: index,
                    error,
                })?;
                slot.queue = Some(queue);
            }
        }
        Ok(())
    }

    /// Asks for a reset. The queues are not touched any more.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.status |= status::NEEDS_RESET;
        self.failure.get_or_insert(failure);
        for slot in &mut self.queues {
            slot.queue = None;
        }
    }

    fn reset(&mut self) {
        self.accepted = 0;
        self.status = 0;
        self.failure = None;
        self.epoch = self.epoch.wrapping_add(1);
        for slot in &mut self.queues {
            *slot = QueueSlot::new(slot.max_size);
        }
    }

    /// The queue that may be set up: it exists, is not enabled, and the driver is not ready yet.
    fn settable(&mut self, index: u16) -> Option<&mut QueueSlot> {
        if self.status & status::DRIVER_OK != 0 {
            return None;
        }
        let slot = self.queues.get_mut(usize::from(index));
        slot.filter(|slot| !slot.is_enabled)
    }

    /// A size that is no power of two or too large does nothing: the driver reads back what holds.
    pub(super) fn write_queue_size(&mut self, index: u16, size: u16) {
        if let Some(slot) = self.settable(index)
            && size.is_power_of_two()
            && size <= slot.max_size
        {
            slot.config.size = size;
        }
    }

    /// Changes one of the three addresses of a queue.
    pub(super) fn write_queue_address(
        &mut self,
        index: u16,
        part: QueuePart,
        change: impl FnOnce(u64) -> u64,
    ) {
        if let Some(slot) = self.settable(index) {
            let address = match part {
                QueuePart::Descriptors => &mut slot.config.descriptors,
                QueuePart::Driver => &mut slot.config.driver,
                QueuePart::Device => &mut slot.config.device,
            };
            *address = Gpa::new(change(address.get()));
        }
    }

    /// Enables a queue. Only after the features are agreed on (3.1.1).
    pub(super) fn enable_queue(&mut self, index: u16) {
        let agreed = self.status & status::FEATURES_OK != 0;
        if let Some(slot) = self.settable(index).filter(|_| agreed) {
            slot.is_enabled = true;
        }
    }
}

/// The three parts of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueuePart {
    Descriptors,
    Driver,
    Device,
}

/// One queue's set-up as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueueSlotState {
    config: QueueConfig,
    vector: u16,
    is_enabled: bool,
    queue: Option<QueueState>,
}

/// Features, status and queues as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommonState {
    accepted: u64,
    status: u8,
    queues: Vec<QueueSlotState>,
    epoch: u32,
    failure: Option<Failure>,
}

impl Common {
    pub(super) fn save(&self) -> CommonState {
        let Common {
            // Of the device.
            offered: _,
            needs: _,
            accepted,
            status,
            queues,
            epoch,
            failure,
        } = self;
        CommonState {
            accepted: *accepted,
            status: *status,
            queues: queues.iter().map(QueueSlot::save).collect(),
            epoch: *epoch,
            failure: *failure,
        }
    }

    /// Goes on from there; itself it is as after a reset. `vectors`: how many there are.
    pub(super) fn restore(
        mut self,
        vectors: u16,
        state: &CommonState,
    ) -> Result<Common, StateError> {
        let CommonState {
            accepted,
            status,
            queues,
            epoch,
            failure,
        } = state;
        check(
            status & !(DRIVER_BITS | status::NEEDS_RESET) == 0,
            "status",
            *status,
            "without reserved bits",
        )?;
        (self.accepted, self.status) = (*accepted, *status);
        (self.epoch, self.failure) = (*epoch, *failure);
        let agreed = self.status & status::FEATURES_OK != 0;
        check(
            !agreed || self.features_are_acceptable(),
            "accepted",
            *accepted,
            "features that the device offers, with what they need",
        )?;
        check(
            queues.len() == self.queues.len(),
            "queues",
            queues.len() as u64,
            "as many as the device has",
        )?;
        let features = self.ring_features();
        for (index, (slot, state)) in self.queues.iter_mut().zip(queues).enumerate() {
            slot.restore(features, *epoch, vectors, state)
                .map_err(|error| error.within(format_args!("queues[{index}]")))?;
        }
        Ok(self)
    }
}

impl QueueSlot {
    fn save(&self) -> QueueSlotState {
        let QueueSlot {
            max_size: _,
            config,
            vector,
            is_enabled,
            queue,
        } = self;
        QueueSlotState {
            config: *config,
            vector: *vector,
            is_enabled: *is_enabled,
            queue: queue.as_ref().map(Queue::save),
        }
    }

    fn restore(
        &mut self,
        features: RingFeatures,
        epoch: u32,
        vectors: u16,
        state: &QueueSlotState,
    ) -> Result<(), StateError> {
        let QueueSlotState {
            config,
            vector,
            is_enabled,
            queue,
        } = state;
        check(
            config.size.is_power_of_two() && config.size <= self.max_size,
            "config.size",
            config.size,
            "a power of two, and at most the device's",
        )?;
        check(
            *vector < vectors || *vector == NO_VECTOR,
            "vector",
            *vector,
            "one of the table, or none",
        )?;
        let queue = match queue {
            Some(state) => {
                let start = config.descriptors.get();
                let made = Queue::new(*config, features, epoch).map_err(|_| {
                    StateError::new(
                        "config.descriptors",
                        start,
                        "a queue's, aligned, as the rings",
                    )
                })?;
                let restored = made.restore(state);
                Some(restored.map_err(|error| error.within("queue"))?)
            }
            None => None,
        };
        *self = QueueSlot {
            max_size: self.max_size,
            config: *config,
            vector: *vector,
            is_enabled: *is_enabled,
            queue,
        };
        Ok(())
    }
}
