//! PCI as guests see it: one bus behind a host bridge, reached by the ports 0xCF8 and 0xCFC; functions with BARs and MSI-X.
//! There are no INTx and no bridges to further buses.
//!
//! Source: PCI Local Bus Specification 3.0 (configuration space: chapter 6; the ports: 3.2.2.3.2; MSI-X: 6.8.2).

pub mod bus;
pub mod config;
pub mod msix;

use alloc::vec::Vec;

pub use bus::{BusState, PciBus, Place};
pub use config::{Command, ConfigSpace, Identity};
pub use msix::{Message, Msix, MsixState};

/// How many bytes an access has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
    /// 8 bytes: memory only.
    Qword,
}

impl Width {
    /// All of them.
    pub const ALL: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

    /// The width of so many bytes, if there is one.
    #[must_use]
    pub const fn of(bytes: usize) -> Option<Width> {
        match bytes {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Dword),
            8 => Some(Width::Qword),
            _ => None,
        }
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Width::Byte => 1,
            Width::Word => 2,
            Width::Dword => 4,
            Width::Qword => 8,
        }
    }

    /// All bits of an access: also what a read gives where nobody answers.
    #[must_use]
    pub const fn ones(self) -> u64 {
        match self {
            Width::Qword => u64::MAX,
            narrower => (1 << (narrower.bytes() * 8)) - 1,
        }
    }
}

/// Reads little-endian bytes of `image`; beyond its end they are `filler`.
pub(crate) fn read_bytes(image: &[u8], offset: usize, width: Width, filler: u8) -> u64 {
    let mut raw = [0; 8];
    for (index, byte) in raw.iter_mut().take(width.bytes()).enumerate() {
        let at = offset.saturating_add(index);
        *byte = image.get(at).copied().unwrap_or(filler);
    }
    u64::from_le_bytes(raw)
}

/// What follows from an access to a function. Whoever made the access acts on it.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    #[default]
    None,
    /// The driver has reset the device: chains and frames taken from it are void.
    Reset,
    /// The driver is ready (DRIVER_OK).
    Started,
    /// The driver has notified a queue.
    Kick {
        /// Its index.
        queue: u16,
    },
    /// Interrupts to send.
    Messages(Vec<Message>),
}

impl From<Option<Message>> for Effect {
    fn from(message: Option<Message>) -> Effect {
        match message {
            Some(message) => Effect::Messages(Vec::from([message])),
            None => Effect::None,
        }
    }
}

/// A PCI function with a single function number.
///
/// Reads take `&mut self`: some registers change when they are read.
pub trait PciFunction {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, for whoever places BARs before the guest runs.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Reads from configuration space. Bytes beyond its end are ones.
    fn config_read(&mut self, offset: u8, width: Width) -> u32;

    /// Writes to configuration space.
    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> Effect;

    /// Reads at an offset of a BAR.
    fn bar_read(&mut self, bar: u8, offset: u32, width: Width) -> u64;

    /// Writes at an offset of a BAR.
    fn bar_write(&mut self, bar: u8, offset: u32, width: Width, value: u64) -> Effect;

    /// Writes at an offset of an I/O BAR, where there is nothing but notifications: the queue that is meant, if there is one.
    fn notified(&mut self, bar: u8, offset: u32) -> Option<u16>;
}
