//! Virtio over PCI, without the legacy interface (4.1): a memory BAR, one of ports for notifications, MSI-X, no INTx.
//!
//! Each queue has a notification register in memory and one among the ports. A port costs a guest less: its exit says all of the
//! access, and nobody has to look at the instruction. The capability for it comes last, for drivers that take the first one of a
//! kind and know memory only, unless [`VirtioPci::prefer_ports`] says that there is a better driver.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::common::{Common, CommonState, Failure, QueuePart, StatusChange};
use super::{DeviceType, NO_VECTOR, Stopped};
use crate::pci::{
    Command, ConfigSpace, Effect, Identity, Message, Msix, MsixState, PciFunction, Width, msix,
    read_bytes,
};
use crate::queue::{Queue, QueueError};
use crate::state::{StateError, check};

/// The vendor of virtio devices (4.1.2).
const VENDOR: u16 = 0x1AF4;
/// Device IDs begin here (4.1.2).
const FIRST_DEVICE: u16 = 0x1040;
/// Capability ID of a vendor's own.
const VENDOR_CAPABILITY: u8 = 0x09;

/// The BAR of everything.
const BAR: u8 = 0;
/// The BAR of ports for notifications.
const PORT_BAR: u8 = 1;
/// Bytes of the BAR.
pub const BAR_BYTES: u32 = 0x4000;
/// Where in the BAR the notification registers begin.
pub const NOTIFY_OFFSET: u32 = layout::NOTIFY;

/// What is where in the BAR. Elsewhere reads are 0 and writes do nothing.
pub mod layout {
    /// Common configuration (4.1.4.3).
    pub const COMMON: u32 = 0x0000;
    /// Its bytes.
    pub const COMMON_BYTES: u32 = 0x40;
    /// Interrupt status (4.1.4.5).
    pub const ISR: u32 = 0x0100;
    /// Device-specific configuration (4.1.4.6).
    pub const DEVICE: u32 = 0x0200;
    /// The most it can have.
    pub const DEVICE_BYTES: u32 = 0x0100;
    /// Notifications (4.1.4.4), a page.
    pub const NOTIFY: u32 = 0x1000;
    /// Bytes between the registers of two queues.
    pub const NOTIFY_STEP: u32 = 4;
    /// The MSI-X table, a page.
    pub const TABLE: u32 = 0x2000;
    /// The MSI-X pending bits, a page.
    pub const PENDING: u32 = 0x3000;
    /// Bytes of a page.
    pub const PAGE: u32 = 0x1000;
}

/// The most queues and vectors that the pages of the BAR have room for.
const MAX_QUEUES: usize = 64;

/// Types of the capabilities (4.1.4).
mod capability {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const WINDOW: u8 = 5;
}

/// Offsets in a capability (4.1.4), and in the window's (4.1.4.9).
mod structure {
    pub(super) const BAR: u8 = 4;
    pub(super) const OFFSET: u8 = 8;
    pub(super) const LENGTH: u8 = 12;
    pub(super) const DATA: u8 = 16;
}

/// Offset of Message Control in the MSI-X capability.
const MESSAGE_CONTROL: u8 = 2;

/// Bits of the interrupt status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What a device is, for the transport.
#[derive(Clone, Debug)]
pub struct Profile<'a> {
    /// Its kind.
    pub device: DeviceType,
    /// PCI base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Features that it offers.
    pub features: u64,
    /// Pairs of a feature and what the driver has to take with it.
    pub needs: &'static [(u64, u64)],
    /// The largest size of each queue: powers of two. Queues after the 64th are left out.
    pub queue_sizes: &'a [u16],
    /// Device-specific configuration, read-only to the driver, at most 256 bytes.
    pub config: &'a [u8],
}

/// A virtio device's PCI function, with its queues. The device itself is whoever owns this.
#[derive(Clone, Debug)]
pub struct VirtioPci {
    config: ConfigSpace,
    msix: Msix,
    common: Common,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: u16,
    generation: u8,
    isr: u8,
    device_config: Vec<u8>,
    msix_at: u8,
    notify_at: [u8; 2],
    window_at: u8,
}

impl VirtioPci {
    /// The function of a device as it is after power-on.
    #[must_use]
    pub fn new(profile: &Profile<'_>) -> VirtioPci {
        let kind = profile.device as u16;
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind,
            // 1 or more: no legacy interface (4.1.2.1).
            revision: 1,
            class: profile.class,
            subsystem_vendor: VENDOR,
            // 0x40 or more: no transitional device (4.1.2.1).
            subsystem: 0x40 + kind,
        });
        let count = profile.queue_sizes.len().min(MAX_QUEUES);
        config.add_bar(BAR, BAR_BYTES);
        config.add_port_bar(PORT_BAR, notify_bytes(count as u32));
        let sizes = profile.queue_sizes.get(..count).unwrap_or_default();
        let device_config: Vec<u8> = profile
            .config
            .iter()
            .copied()
            .take(layout::DEVICE_BYTES as usize)
            .collect();
        // A vector for each queue and one for the configuration.
        let msix = Msix::new(count as u16 + 1);
        let msix_at = add_msix(&mut config, msix.entries());
        let (notify_at, window_at) =
            add_capabilities(&mut config, count as u32, device_config.len() as u32);
        VirtioPci {
            config,
            msix,
            common: Common::new(profile.features, profile.needs, sizes),
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            generation: 0,
            isr: 0,
            device_config,
            msix_at,
            notify_at,
            window_at,
        }
    }

    /// Puts the notifications by ports first, for a driver that takes the first that it finds and knows both, as Linux does. Before
    /// the guest runs.
    pub fn prefer_ports(&mut self) {
        let [first, second] = self.notify_at;
        for (at, bar, offset) in [(first, PORT_BAR, 0), (second, BAR, layout::NOTIFY)] {
            self.config.set(at + structure::BAR, &[bar]);
            self.config
                .set(at + structure::OFFSET, &offset.to_le_bytes());
        }
    }

    /// The features agreed on; 0 before that.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.common.features()
    }

    /// The device status register.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.common.status
    }

    /// Why the device asks for a reset, if it does.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.common.failure()
    }

    /// Whether queues may be served: the driver is ready, nothing is broken, and the function may use the guest's memory.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.common.is_running() && self.is_bus_master()
    }

    fn is_bus_master(&self) -> bool {
        self.config.command().contains(Command::BUS_MASTER)
    }

    /// A queue, if the device is running and the driver has enabled it.
    #[must_use]
    pub fn queue(&mut self, index: u16) -> Option<&mut Queue> {
        if !self.is_running() {
            return None;
        }
        let slot = self.common.queues.get_mut(usize::from(index))?;
        slot.queue.as_mut()
    }

    /// The interrupt of a queue: the message to send now, if MSI-X is used and not masked.
    #[must_use]
    pub fn interrupt_queue(&mut self, index: u16) -> Option<Message> {
        let vector = self.common.queues.get(usize::from(index))?.vector;
        self.interrupt(ISR_QUEUE, vector)
    }

    fn interrupt(&mut self, cause: u8, vector: u16) -> Option<Message> {
        if !self.msix.is_enabled() {
            // The guest looks at the register; there is no line to raise (4.1.4.5.1).
            self.isr |= cause;
            return None;
        }
        self.msix.fire(vector)
    }

    /// Stops the device until the driver resets it (2.1.2), and says so by a configuration interrupt.
    pub fn stop(&mut self, queue: u16, error: QueueError) -> Stopped {
        let failure = Failure { queue, error };
        self.common.fail(failure);
        Stopped {
            failure,
            message: self.config_interrupt(),
        }
    }

    fn config_interrupt(&mut self) -> Option<Message> {
        if self.common.status & super::status::DRIVER_OK == 0 {
            return None;
        }
        self.interrupt(ISR_CONFIG, self.config_vector)
    }

    /// Device-specific configuration.
    #[must_use]
    pub fn device_config(&self) -> &[u8] {
        &self.device_config
    }

    /// Changes device-specific configuration, with a new generation (2.5.1) and an interrupt. What is beyond the end is left out.
    #[must_use]
    pub fn set_device_config(&mut self, offset: usize, bytes: &[u8]) -> Option<Message> {
        for (place, byte) in self.device_config.iter_mut().skip(offset).zip(bytes) {
            *place = *byte;
        }
        self.generation = self.generation.wrapping_add(1);
        self.config_interrupt()
    }

    fn reset(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.config_vector = NO_VECTOR;
        self.isr = 0;
        self.msix.clear_pending();
    }

    /// The common configuration as it is in memory: `struct virtio_pci_common_cfg` (4.1.4.3).
    fn common_image(&self) -> [u8; layout::COMMON_BYTES as usize] {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let queue = self.common.queues.get(usize::from(self.queue_select));
        // A queue that does not exist has size 0 (4.1.4.3.1).
        let (config, vector, is_enabled) = queue.map_or_else(
            || (crate::queue::QueueConfig::default(), NO_VECTOR, false),
            |slot| (slot.config, slot.vector, slot.is_enabled),
        );
        let notify_offset = if queue.is_some() {
            self.queue_select
        } else {
            0
        };
        let device = half(self.common.offered(), self.device_feature_select);
        let driver = half(self.common.written_features(), self.driver_feature_select);
        let fields = [
            (self.device_feature_select.into(), 4),
            (device.into(), 4),
            (self.driver_feature_select.into(), 4),
            (driver.into(), 4),
            (self.config_vector.into(), 2),
            (self.common.queues.len() as u64, 2),
            (self.common.status.into(), 1),
            (self.generation.into(), 1),
            (self.queue_select.into(), 2),
            (config.size.into(), 2),
            (vector.into(), 2),
            (is_enabled.into(), 2),
            (notify_offset.into(), 2),
            (config.descriptors.get(), 8),
            (config.driver.get(), 8),
            (config.device.get(), 8),
        ];
        let raw = fields
            .into_iter()
            .flat_map(|(value, bytes): (u64, usize)| value.to_le_bytes().into_iter().take(bytes));
        let mut image = [0; layout::COMMON_BYTES as usize];
        for (place, byte) in image.iter_mut().zip(raw) {
            *place = byte;
        }
        image
    }

    /// A write of a whole field, or of half a 64-bit one. Others do nothing.
    fn write_common(&mut self, offset: u32, width: Width, value: u64) -> Effect {
        let index = self.queue_select;
        match (offset, width) {
            (0x00, Width::Dword) => self.device_feature_select = value as u32,
            (0x08, Width::Dword) => self.driver_feature_select = value as u32,
            (0x0C, Width::Dword) => self
                .common
                .write_features(self.driver_feature_select, value as u32),
            (0x10, Width::Word) => self.config_vector = self.existing_vector(value),
            (0x14, Width::Byte) => return self.write_status(value as u8),
            (0x16, Width::Word) => self.queue_select = value as u16,
            (0x18, Width::Word) => self.common.write_queue_size(index, value as u16),
            (0x1A, Width::Word) => {
                let vector = self.existing_vector(value);
                if let Some(slot) = self.common.queues.get_mut(usize::from(index)) {
                    slot.vector = vector;
                }
            }
            (0x1C, Width::Word) if value == 1 => self.common.enable_queue(index),
            (0x20..0x38, Width::Dword | Width::Qword) => {
                let part = match offset {
                    0x20..0x28 => QueuePart::Descriptors,
                    0x28..0x30 => QueuePart::Driver,
                    _ => QueuePart::Device,
                };
                let change: fn(u64, u64) -> u64 = match (offset % 8, width) {
                    (0, Width::Qword) => |_, value| value,
                    (0, _) => |old, value| old >> 32 << 32 | value,
                    (4, Width::Dword) => |old, value| value << 32 | (old & 0xFFFF_FFFF),
                    _ => return Effect::None,
                };
                self.common
                    .write_queue_address(index, part, |old| change(old, value));
            }
            _ => {}
        }
        Effect::None
    }

    /// A vector of the table, else none (4.1.5.1.2).
    fn existing_vector(&self, value: u64) -> u16 {
        if value < u64::from(self.msix.entries()) {
            value as u16
        } else {
            NO_VECTOR
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        match self.common.write_status(value) {
            StatusChange::None => Effect::None,
            StatusChange::Reset => {
                self.reset();
                Effect::Reset
            }
            StatusChange::Started if self.failure().is_some() => {
                Effect::from(self.config_interrupt())
            }
            StatusChange::Started => Effect::Started,
        }
    }

    /// A queue's register is the address that counts; the value would say the same.
    #[inline]
    fn queue_at(&mut self, offset: u32) -> Option<u16> {
        let index = (offset / layout::NOTIFY_STEP) as u16;
        let is_one = offset.is_multiple_of(layout::NOTIFY_STEP) && self.queue(index).is_some();
        is_one.then_some(index)
    }

    fn notify(&mut self, offset: u32) -> Effect {
        match self.queue_at(offset) {
            Some(queue) => Effect::Kick { queue },
            None => Effect::None,
        }
    }

    /// Where the driver points the window (4.1.4.9), if that is an access that exists.
    fn window(&self) -> Option<(u8, u32, Width)> {
        let bar = self
            .config
            .read(self.window_at + structure::BAR, Width::Byte) as u8;
        let offset = self.config.dword(self.window_at + structure::OFFSET);
        let length = self.config.dword(self.window_at + structure::LENGTH);
        let width = Width::of(length as usize).filter(|width| *width != Width::Qword)?;
        let is_aligned = offset.is_multiple_of(length);
        (is_aligned && offset < self.config.bar_bytes(bar)).then_some((bar, offset, width))
    }

    /// Message Control as it counts: what may not be sent waits as behind a mask.
    fn message_control(&self) -> u16 {
        let control = self
            .config
            .read(self.msix_at + MESSAGE_CONTROL, Width::Word);
        if self.is_bus_master() {
            control as u16
        } else {
            control as u16 | msix::CONTROL_MASK_ALL
        }
    }

    /// Whether an access to configuration space meets the window's data.
    fn meets_window(&self, offset: u8, width: Width) -> bool {
        let start = usize::from(self.window_at) + usize::from(structure::DATA);
        let offset = usize::from(offset);
        offset < start + 4 && offset + width.bytes() > start
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        if self.meets_window(offset, width)
            && let Some((bar, at, width)) = self.window()
        {
            let value = self.bar_read(bar, at, width) as u32;
            let data = self.window_at + structure::DATA;
            self.config.set(data, &value.to_le_bytes());
        }
        self.config.read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> Effect {
        let control = self.message_control();
        self.config.write(offset, width, value);
        let new_control = self.message_control();
        if control != new_control {
            let messages = self.msix.set_control(new_control);
            if !messages.is_empty() {
                return Effect::Messages(messages);
            }
        }
        if self.meets_window(offset, width)
            && let Some((bar, at, width)) = self.window()
        {
            let value = self.config.dword(self.window_at + structure::DATA);
            return self.bar_write(bar, at, width, u64::from(value) & width.ones());
        }
        Effect::None
    }

    fn bar_read(&mut self, bar: u8, offset: u32, width: Width) -> u64 {
        let end = u64::from(offset) + width.bytes() as u64;
        if end > u64::from(self.config.bar_bytes(bar)) {
            return width.ones();
        }
        match offset {
            _ if bar == PORT_BAR => 0,
            layout::COMMON..layout::ISR => {
                read_bytes(&self.common_image(), offset as usize, width, 0)
            }
            // Reading it clears it (4.1.4.5.1).
            layout::ISR => u64::from(core::mem::take(&mut self.isr)),
            layout::DEVICE..layout::NOTIFY => {
                let at = (offset - layout::DEVICE) as usize;
                read_bytes(&self.device_config, at, width, 0)
            }
            layout::TABLE..layout::PENDING => self.msix.read_table(offset - layout::TABLE, width),
            layout::PENDING.. => self.msix.read_pending(offset - layout::PENDING, width),
            _ => 0,
        }
    }

    #[inline]
    fn bar_write(&mut self, bar: u8, offset: u32, width: Width, value: u64) -> Effect {
        // First what is written most.
        if bar == BAR && (layout::NOTIFY..layout::TABLE).contains(&offset) {
            return self.notify(offset - layout::NOTIFY);
        }
        if bar == PORT_BAR {
            return self.notify(offset);
        }
        self.write_register(bar, offset, width, value)
    }

    #[inline]
    fn notified(&mut self, bar: u8, offset: u32) -> Option<u16> {
        if bar == PORT_BAR {
            self.queue_at(offset)
        } else {
            None
        }
    }
}

impl VirtioPci {
    /// A write elsewhere than to the notifications.
    #[inline(never)]
    fn write_register(&mut self, bar: u8, offset: u32, width: Width, value: u64) -> Effect {
        let end = u64::from(offset) + width.bytes() as u64;
        if bar != BAR || end > u64::from(BAR_BYTES) {
            return Effect::None;
        }
        match offset {
            layout::COMMON..layout::ISR => self.write_common(offset, width, value),
            layout::TABLE..layout::PENDING => {
                let at = offset - layout::TABLE;
                Effect::from(self.msix.write_table(at, width, value))
            }
            _ => Effect::None,
        }
    }
}

/// Appends the MSI-X capability; returns its offset.
fn add_msix(config: &mut ConfigSpace, entries: u16) -> u8 {
    let bar = u32::from(BAR);
    let control = (entries - 1).to_le_bytes();
    let table = (layout::TABLE | bar).to_le_bytes();
    let pending = (layout::PENDING | bar).to_le_bytes();
    let body: Vec<u8> = control.into_iter().chain(table).chain(pending).collect();
    let writable = (msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL).to_le_bytes();
    config
        .add_capability(msix::CAPABILITY, &body, &writable)
        .unwrap_or(0)
}

/// Appends the virtio capabilities (4.1.4); returns the offsets of those for notifications and of the window's.
fn add_capabilities(config: &mut ConfigSpace, queues: u32, config_bytes: u32) -> ([u8; 2], u8) {
    use layout::{COMMON, COMMON_BYTES, DEVICE, ISR, NOTIFY, NOTIFY_STEP};
    let mut add_at = |bar: u8, kind: u8, offset: u32, bytes: u32, more: &[u8], writable: &[u8]| {
        let length = 16 + more.len() as u8;
        // cap_len, cfg_type, bar, id, two bytes of padding, offset, length: `struct virtio_pci_cap` after its link.
        let head = [length, kind, bar, 0, 0, 0];
        let body: Vec<u8> = head
            .into_iter()
            .chain(offset.to_le_bytes())
            .chain(bytes.to_le_bytes())
            .chain(more.iter().copied())
            .collect();
        config.add_capability(VENDOR_CAPABILITY, &body, writable)
    };
    let mut add = |kind: u8, offset: u32, bytes: u32| add_at(BAR, kind, offset, bytes, &[], &[]);
    add(capability::COMMON, COMMON, COMMON_BYTES);
    add(capability::ISR, ISR, 1);
    if config_bytes > 0 {
        add(capability::DEVICE, DEVICE, config_bytes);
    }
    let (step, bytes) = (NOTIFY_STEP.to_le_bytes(), notify_bytes(queues));
    let notify_at = [(BAR, NOTIFY), (PORT_BAR, 0)].map(|(bar, offset)| {
        add_at(bar, capability::NOTIFY, offset, bytes, &step, &[]).unwrap_or(0)
    });
    let mut writable = [0; 18];
    for (index, bits) in writable.iter_mut().enumerate() {
        // bar, offset, length and data: not the IDs and the padding.
        if index == 2 || index >= 6 {
            *bits = 0xFF;
        }
    }
    let window_at = add_at(BAR, capability::WINDOW, 0, 0, &[0; 4], &writable).unwrap_or(0);
    (notify_at, window_at)
}

/// Bytes of the notification registers of so many queues.
fn notify_bytes(queues: u32) -> u32 {
    queues.max(1) * layout::NOTIFY_STEP
}

/// A virtio device's PCI function as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    prefers_ports: bool,
    config: Vec<u8>,
    msix: MsixState,
    common: CommonState,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: u16,
    generation: u8,
    isr: u8,
}

impl VirtioPci {
    /// What it is, but for the device-specific configuration: the device knows that.
    #[must_use]
    pub fn save(&self) -> VirtioPciState {
        let VirtioPci {
            config,
            msix,
            common,
            device_feature_select,
            driver_feature_select,
            queue_select,
            config_vector,
            generation,
            isr,
            device_config: _,
            // Where capabilities are follows from the device.
            msix_at: _,
            notify_at: [first_notify, _],
            window_at: _,
        } = self;
        let first_bar = config.read(first_notify + structure::BAR, Width::Byte);
        VirtioPciState {
            prefers_ports: first_bar == u32::from(PORT_BAR),
            config: config.save(),
            msix: msix.save(),
            common: common.save(),
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            queue_select: *queue_select,
            config_vector: *config_vector,
            generation: *generation,
            isr: *isr,
        }
    }

    /// Goes on from there; itself it is the function of the same device as after power-on, with the device-specific configuration
    /// as it is to be.
    ///
    /// # Errors
    /// [`StateError`]: it is of another device, or no device gets there.
    pub fn restore(mut self, state: &VirtioPciState) -> Result<VirtioPci, StateError> {
        let VirtioPciState {
            prefers_ports,
            config,
            msix,
            common,
            device_feature_select,
            driver_feature_select,
            queue_select,
            config_vector,
            generation,
            isr,
        } = state;
        if *prefers_ports {
            self.prefer_ports();
        }
        let vectors = self.msix.entries();
        check(
            *config_vector < vectors || *config_vector == NO_VECTOR,
            "config_vector",
            *config_vector,
            "one of the table, or none",
        )?;
        check(
            isr & !(ISR_QUEUE | ISR_CONFIG) == 0,
            "isr",
            *isr,
            "of two bits",
        )?;
        let within = |name: &'static str| move |error: StateError| error.within(name);
        let common = self.common.restore(vectors, common);
        Ok(VirtioPci {
            config: self.config.restore(config).map_err(within("config"))?,
            msix: Msix::restore(vectors, msix).map_err(within("msix"))?,
            common: common.map_err(within("common"))?,
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            queue_select: *queue_select,
            config_vector: *config_vector,
            generation: *generation,
            isr: *isr,
            device_config: self.device_config,
            msix_at: self.msix_at,
            notify_at: self.notify_at,
            window_at: self.window_at,
        })
    }
}
