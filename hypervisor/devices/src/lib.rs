//! Devices that guests see: a PCI bus, virtio devices, the Ethernet switch between them, APICs.
//!
//! A device is plain data. It is given an access or an event, with the time and the guest's memory where it needs them, and
//! returns what follows as data: a message to send, a queue to serve, an interrupt to make. It holds no pointer to another
//! device, calls nobody back, takes no lock and is in no registry; who owns it decides about all these (docs/DEVICES.md).
//!
//! Everything that comes from a guest (registers, ring fields, descriptors, frames) is read once, then checked. A guest that
//! breaks a rule loses that device until it resets it, and nothing else.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "test-support"))]
extern crate std;

pub mod apic;
pub mod blk;
pub mod console;
pub mod entropy;
pub mod function;
pub mod ioapic;
pub mod net;
pub mod pc;
pub mod pci;
pub mod queue;
pub mod ram;
pub mod rate;
pub mod state;
pub mod switch;
#[cfg(feature = "test-support")]
pub mod test_support;
pub mod uart;
pub mod virtio;

pub use ram::{CopyError, GuestRam, RamError};
