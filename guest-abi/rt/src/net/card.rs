//! A virtio-net card for raw frames: written into its send buffers and read from its receive buffers in place, with mergeable
//! receive buffers, event indices, and open checksums and large segments where agreed.
//!
//! `virtio-drivers` has a card, too. It does not take mergeable buffers or any offload, interrupts and kicks for each frame, and
//! takes three accesses of the device for a kick; its PCI transport and set-up are what is used here.
//!
//! Concurrency: one owner (`&mut`).
//!
//! Source: virtio 1.2, 5.1 "Network Device".

mod buffers;
mod hostile;

use virtio_drivers::transport::{DeviceStatus, Transport};

pub use self::buffers::{Arrived, Outgoing, Received, Receiver, Transmitter};
pub use self::hostile::Breakage;
use super::Waiting;
use crate::interrupts;
use crate::time::Deadline;
use crate::virtio::{self, Error, Function, Kind};

/// Feature bits (5.1.3, 6).
mod feature {
    pub(super) const CHECKSUM: u64 = 1 << 0;
    pub(super) const GUEST_CHECKSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const ADDRESS: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const MERGEABLE: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const EVENT_INDEX: u64 = 1 << 29;
    pub(super) const VERSION_1: u64 = 1 << 32;

    pub(super) const OFFLOADS: u64 = CHECKSUM | GUEST_CHECKSUM | GUEST_TSO4 | HOST_TSO4;
    /// Without these this driver does not work.
    pub(super) const NEEDED: u64 = ADDRESS | MERGEABLE | VERSION_1;
}

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Offsets in the device's configuration (5.1.4).
const CONFIG_STATUS: usize = 6;
const CONFIG_MTU: usize = 10;
const LINK_UP: u16 = 1;

/// The MTU of an Ethernet that does not say it.
pub const DEFAULT_MTU: u16 = 1500;

/// An Ethernet address.
pub type Mac = [u8; 6];
/// The Ethernet address of everybody.
pub const BROADCAST: Mac = [0xFF; 6];

/// How a card is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Receive buffers, a power of two; the ring has as many entries.
    pub receive_buffers: u16,
    /// Bytes of each. A longer frame takes several.
    pub receive_bytes: u32,
    /// Send buffers, a power of two.
    pub transmit_buffers: u16,
    /// Agree on open checksums and large segments if the device offers them.
    pub offloads: bool,
    /// Bytes of a send buffer if large segments are agreed on; else a frame of the MTU fits.
    pub segment_bytes: u32,
    /// How the owner will wait.
    pub waiting: Waiting,
}

impl Options {
    /// For frames as they are, without offloads.
    #[must_use]
    pub const fn raw(waiting: Waiting) -> Options {
        Options {
            receive_buffers: 256,
            receive_bytes: 2048,
            transmit_buffers: 256,
            offloads: false,
            segment_bytes: 0,
            waiting,
        }
    }

    /// For a TCP/IP stack: with offloads; a large segment takes sixteen receive buffers.
    #[must_use]
    pub const fn stack(waiting: Waiting) -> Options {
        Options {
            receive_buffers: 256,
            receive_bytes: 4096,
            transmit_buffers: 64,
            offloads: true,
            segment_bytes: 65_536,
            waiting,
        }
    }
}

/// An open card.
#[derive(Debug)]
pub struct Card {
    // First: dropped first, which resets the device before its memory goes.
    device: Function,
    /// Frames that come.
    pub receiver: Receiver,
    /// Frames that go.
    pub transmitter: Transmitter,
    address: Mac,
    mtu: u16,
    features: u64,
    /// The guest's vector for either queue, in interrupt mode.
    vector: Option<u8>,
}

impl Card {
    /// Opens the `index`th card (from 0).
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(index: usize, options: &Options) -> Result<Card, Error> {
        Card::start(virtio::open(Kind::Network, index)?, options, None)
    }

    /// Sets a card up that is a function already, with a vector that it had before or none.
    fn start(mut device: Function, options: &Options, vector: Option<u8>) -> Result<Card, Error> {
        device.reset();
        device.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let offered = device.read_device_features();
        let mut wanted = feature::NEEDED | feature::STATUS | feature::MTU | feature::EVENT_INDEX;
        if options.offloads {
            wanted |= feature::OFFLOADS;
        }
        let features = offered & wanted;
        if features & feature::NEEDED != feature::NEEDED {
            return Err(Error::Unfit);
        }
        device.write_driver_features(features);
        let agreed = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        device.set_status(agreed);
        if !device.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(Error::Unfit);
        }

        let (low, high) = device.read_consistent(|| {
            let low = device.read_config_space::<u32>(0)?;
            Ok((low, device.read_config_space::<u16>(4)?))
        })?;
        let [a, b, c, d] = low.to_le_bytes();
        let [e, f] = high.to_le_bytes();
        let mtu = if features & feature::MTU != 0 {
            device.read_config_space::<u16>(CONFIG_MTU)?
        } else {
            DEFAULT_MTU
        };

        let vector = match options.waiting {
            Waiting::Polled => None,
            Waiting::Interrupt => {
                let vector = match vector {
                    Some(vector) => vector,
                    None => device.enable_interrupt(0, || ())?,
                };
                // Both queues by one vector: whoever is woken looks at both.
                device.route(RECEIVE, 0);
                device.route(TRANSMIT, 0);
                Some(vector)
            }
        };
        let has_event_index = features & feature::EVENT_INDEX != 0;
        let transmit_bytes = if features & feature::HOST_TSO4 != 0 {
            options.segment_bytes
        } else {
            0
        };
        let mut receiver = Receiver::new(
            &mut device,
            RECEIVE,
            options.receive_buffers,
            options.receive_bytes,
            has_event_index,
        )?;
        let transmitter = Transmitter::new(
            &mut device,
            TRANSMIT,
            options.transmit_buffers,
            transmit_bytes.max(u32::from(mtu)),
            has_event_index,
        )?;
        device.set_status(agreed | DeviceStatus::DRIVER_OK);
        receiver.start();
        Ok(Card {
            device,
            receiver,
            transmitter,
            address: [a, b, c, d, e, f],
            mtu,
            features,
            vector,
        })
    }

    /// Resets the device and sets it up anew; frames on their way are lost.
    ///
    /// # Errors
    /// [`Error`].
    pub fn restart(mut self, options: &Options) -> Result<Card, Error> {
        self.device.reset();
        let Card {
            device,
            receiver,
            transmitter,
            vector,
            ..
        } = self;
        // The device has let go of them.
        drop((receiver, transmitter));
        Card::start(device, options, vector)
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Mac {
        self.address
    }

    /// The longest packet, without its Ethernet header, that is not a large segment.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether checksums may be left open, both ways.
    #[must_use]
    pub fn leaves_checksums_open(&self) -> bool {
        let both = feature::CHECKSUM | feature::GUEST_CHECKSUM;
        self.features & both == both
    }

    /// Whether large TCP segments may be sent and come.
    #[must_use]
    pub fn has_large_segments(&self) -> bool {
        let both = feature::HOST_TSO4 | feature::GUEST_TSO4;
        self.features & both == both
    }

    /// Whether the cable is plugged in.
    #[must_use]
    pub fn is_link_up(&self) -> bool {
        if self.features & feature::STATUS == 0 {
            return true;
        }
        self.device
            .read_config_space::<u16>(CONFIG_STATUS)
            .is_ok_and(|status| status & LINK_UP != 0)
    }

    /// The device itself.
    #[must_use]
    pub fn device(&mut self) -> &mut Function {
        &mut self.device
    }

    /// Interrupts taken from the card.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        self.vector.map_or(0, interrupts::count)
    }

    /// How it waits.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        match self.vector {
            Some(_) => Waiting::Interrupt,
            None => Waiting::Polled,
        }
    }

    /// Waits until a frame has come. In interrupt mode the vCPU halts; anything else that interrupts it ends no wait.
    pub fn wait(&mut self) {
        match self.vector {
            None => {
                while !self.receiver.has_frame() {
                    crate::time::pause();
                }
            }
            Some(_) => {
                interrupts::wait_until(|| self.receiver.want_interrupt());
                self.receiver.want_no_interrupt();
            }
        }
    }

    /// As [`Card::wait`], to a deadline. Whether a frame has come.
    pub fn wait_or(&mut self, deadline: Deadline) -> bool {
        let came = match self.vector {
            None => loop {
                if self.receiver.has_frame() {
                    break true;
                }
                if deadline.has_passed() {
                    break false;
                }
                crate::time::pause();
            },
            Some(_) => interrupts::wait_until_or(deadline, || self.receiver.want_interrupt()),
        };
        self.receiver.want_no_interrupt();
        came
    }

    /// Waits until there is a send buffer.
    pub fn wait_for_room(&mut self) {
        self.transmitter.flush();
        match self.vector {
            None => {
                while !self.transmitter.has_room() {
                    crate::time::pause();
                }
            }
            Some(_) => interrupts::wait_until(|| self.transmitter.want_interrupt()),
        }
    }
}
