//! The part of a guest that finds a virtio function and sets it up (virtio 1.2, 3.1.1).

use alloc::vec::Vec;

use super::Layout;
use crate::pci::{Effect, Message, PciFunction, Width};
use crate::virtio::{layout, status};

/// Registers of the common configuration (4.1.4.3) by their offsets.
pub mod register {
    /// `device_feature_select`.
    pub const DEVICE_FEATURE_SELECT: u32 = 0x00;
    /// `device_feature`.
    pub const DEVICE_FEATURE: u32 = 0x04;
    /// `driver_feature_select`.
    pub const DRIVER_FEATURE_SELECT: u32 = 0x08;
    /// `driver_feature`.
    pub const DRIVER_FEATURE: u32 = 0x0C;
    /// `config_msix_vector`.
    pub const CONFIG_VECTOR: u32 = 0x10;
    /// `num_queues`.
    pub const QUEUES: u32 = 0x12;
    /// `device_status`.
    pub const STATUS: u32 = 0x14;
    /// `config_generation`.
    pub const GENERATION: u32 = 0x15;
    /// `queue_select`.
    pub const QUEUE_SELECT: u32 = 0x16;
    /// `queue_size`.
    pub const QUEUE_SIZE: u32 = 0x18;
    /// `queue_msix_vector`.
    pub const QUEUE_VECTOR: u32 = 0x1A;
    /// `queue_enable`.
    pub const QUEUE_ENABLE: u32 = 0x1C;
    /// `queue_notify_off`.
    pub const QUEUE_NOTIFY: u32 = 0x1E;
    /// `queue_desc`.
    pub const QUEUE_DESCRIPTORS: u32 = 0x20;
    /// `queue_driver`.
    pub const QUEUE_DRIVER: u32 = 0x28;
    /// `queue_device`.
    pub const QUEUE_DEVICE: u32 = 0x30;
}

/// Reads from the only BAR.
pub fn read(function: &mut impl PciFunction, offset: u32, width: Width) -> u64 {
    function.bar_read(0, offset, width)
}

/// Writes to the only BAR.
pub fn write(function: &mut impl PciFunction, offset: u32, width: Width, value: u64) -> Effect {
    function.bar_write(0, offset, width, value)
}

/// Writes where nothing is to follow. Panics if something does.
pub fn write_quietly(function: &mut impl PciFunction, offset: u32, width: Width, value: u64) {
    assert_eq!(write(function, offset, width, value), Effect::None);
}

/// The device status.
pub fn device_status(function: &mut impl PciFunction) -> u8 {
    read(function, register::STATUS, Width::Byte) as u8
}

/// Writes the device status.
pub fn set_status(function: &mut impl PciFunction, value: u8) -> Effect {
    write(function, register::STATUS, Width::Byte, value.into())
}

/// The features that the device offers.
pub fn offered(function: &mut impl PciFunction) -> u64 {
    (0..2).fold(0, |bits, half| {
        write_quietly(
            function,
            register::DEVICE_FEATURE_SELECT,
            Width::Dword,
            half,
        );
        bits | read(function, register::DEVICE_FEATURE, Width::Dword) << (half * 32)
    })
}

/// Resets the device and agrees on features. Returns the status, without FEATURES_OK if the device refused.
pub fn negotiate(function: &mut impl PciFunction, features: u64) -> u8 {
    assert_eq!(set_status(function, 0), Effect::Reset);
    let found = status::ACKNOWLEDGE | status::DRIVER;
    assert_eq!(set_status(function, found), Effect::None);
    for half in 0..2 {
        write_quietly(
            function,
            register::DRIVER_FEATURE_SELECT,
            Width::Dword,
            half,
        );
        let bits = features >> (half * 32) & 0xFFFF_FFFF;
        write_quietly(function, register::DRIVER_FEATURE, Width::Dword, bits);
    }
    assert_eq!(
        set_status(function, found | status::FEATURES_OK),
        Effect::None
    );
    device_status(function)
}

/// Sets up a queue with an MSI-X vector and enables it.
pub fn enable_queue(function: &mut impl PciFunction, index: u16, at: Layout, vector: u16) {
    let config = at.config;
    let mut set = |offset, width, value| write_quietly(function, offset, width, value);
    set(register::QUEUE_SELECT, Width::Word, index.into());
    set(register::QUEUE_SIZE, Width::Word, config.size.into());
    set(register::QUEUE_VECTOR, Width::Word, vector.into());
    for (offset, address) in [
        (register::QUEUE_DESCRIPTORS, config.descriptors),
        (register::QUEUE_DRIVER, config.driver),
        (register::QUEUE_DEVICE, config.device),
    ] {
        let (low, high) = (address.get() & 0xFFFF_FFFF, address.get() >> 32);
        set(offset, Width::Dword, low);
        set(offset + 4, Width::Dword, high);
    }
    set(register::QUEUE_ENABLE, Width::Word, 1);
}

/// The message that [`enable_msix`] gives to a vector.
#[must_use]
pub fn message_of(vector: u16) -> Message {
    Message {
        address: 0xFEE0_0000,
        data: 0x40 + u32::from(vector),
    }
}

/// The offset of a capability with this ID.
pub fn find_capability(function: &mut impl PciFunction, id: u8) -> Option<u8> {
    capabilities(function)
        .into_iter()
        .find(|(found, _)| *found == id)
        .map(|(_, offset)| offset)
}

/// All capabilities: IDs and offsets. Panics at a list that does not end.
pub fn capabilities(function: &mut impl PciFunction) -> Vec<(u8, u8)> {
    let mut found = Vec::new();
    let mut offset = function.config_read(0x34, Width::Byte) as u8;
    while offset != 0 {
        assert!(offset >= 0x40 && offset.is_multiple_of(4) && found.len() < 48);
        found.push((function.config_read(offset, Width::Byte) as u8, offset));
        offset = function.config_read(offset + 1, Width::Byte) as u8;
    }
    found
}

/// Fills the first `vectors` entries of the MSI-X table with [`message_of`], lifts their masks, and uses MSI-X and the bus.
pub fn enable_msix(function: &mut impl PciFunction, vectors: u16) {
    for vector in 0..vectors {
        let entry = layout::TABLE + u32::from(vector) * 16;
        let message = message_of(vector);
        write_quietly(function, entry, Width::Dword, message.address);
        write_quietly(function, entry + 4, Width::Dword, message.address >> 32);
        write_quietly(function, entry + 8, Width::Dword, message.data.into());
        write_quietly(function, entry + 12, Width::Dword, 0);
    }
    let at = find_capability(function, crate::pci::msix::CAPABILITY).expect("has MSI-X");
    let enable = crate::pci::msix::CONTROL_ENABLE.into();
    assert_eq!(
        function.config_write(at + 2, Width::Word, enable),
        Effect::None
    );
    // Memory and bus mastering.
    assert_eq!(function.config_write(0x04, Width::Word, 6), Effect::None);
}

/// The whole way from reset to DRIVER_OK: queue n at `layouts[n]` with vector n, the configuration with the vector after them.
pub fn start(function: &mut impl PciFunction, features: u64, layouts: &[Layout]) {
    let vectors = layouts.len() as u16 + 1;
    enable_msix(function, vectors);
    let ready = negotiate(function, features);
    assert!(
        ready & status::FEATURES_OK != 0,
        "{features:#x} are refused"
    );
    let last = u64::from(vectors - 1);
    write_quietly(function, register::CONFIG_VECTOR, Width::Word, last);
    for (at, index) in layouts.iter().zip(0..) {
        enable_queue(function, index, *at, index);
    }
    assert_eq!(
        set_status(function, ready | status::DRIVER_OK),
        Effect::Started
    );
}
