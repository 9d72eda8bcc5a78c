//! Virtio devices and the way a guest reaches them.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, OASIS Committee Specification 01; clauses are given as numbers.

mod common;
mod device;
mod pci;

pub use common::Failure;
pub use device::VirtioFunction;
pub use pci::{BAR_BYTES, NOTIFY_OFFSET, Profile, VirtioPci, VirtioPciState, layout};

/// Kinds of devices (5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceType {
    /// A network card (5.1).
    Net = 1,
    /// A disk (5.2).
    Block = 2,
    /// A console (5.3).
    Console = 3,
    /// A source of entropy (5.4).
    Entropy = 4,
}

/// Bits of the device status (2.1).
pub mod status {
    /// The guest has found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device has met an error and waits for a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Feature bits of all kinds of devices (6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: u64 = 1 << 32;
    /// What every device here offers.
    pub const COMMON: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// A device has met an error and serves nothing until its driver resets it.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The error, for the log.
    pub failure: Failure,
    /// The interrupt that says so, to be sent.
    pub message: Option<crate::pci::Message>,
}

/// "No vector" in the registers that map events to MSI-X vectors (4.1.4.3).
pub const NO_VECTOR: u16 = 0xFFFF;
