//! A card as a device of `smoltcp`.

use alloc::vec::Vec;
use core::num::NonZeroUsize;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::net::Waiting;
use crate::net::card::{Card, Received, Transmitter};
use crate::net::offload::{self, ETHERNET_BYTES};

/// Bytes of the largest segment, its Ethernet header included: the length in its IPv4 header still says it.
const SEGMENT_BYTES: usize = 65_535;

pub(super) struct Port {
    pub(super) card: Card,
    pub(super) waiting: Waiting,
    /// For frames in several buffers.
    room: Vec<u8>,
}

impl Port {
    pub(super) fn new(card: Card) -> Port {
        Port {
            waiting: card.waiting(),
            card,
            room: Vec::new(),
        }
    }
}

impl Device for Port {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Sending<'_>)> {
        if !self.card.transmitter.has_room() {
            self.card.transmitter.flush();
            return None;
        }
        let leaves_open = self.card.leaves_checksums_open();
        let sending = Sending {
            leaves_open,
            transmitter: &mut self.card.transmitter,
            meta: PacketMeta::default(),
        };
        let incoming = Incoming {
            frame: self.card.receiver.take()?,
            room: &mut self.room,
            leaves_open,
        };
        Some((incoming, sending))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        if !self.card.transmitter.has_room() {
            self.card.transmitter.flush();
            return None;
        }
        Some(Sending {
            leaves_open: self.card.leaves_checksums_open(),
            transmitter: &mut self.card.transmitter,
            meta: PacketMeta::default(),
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.card.mtu()) + ETHERNET_BYTES;
        if self.card.leaves_checksums_open() {
            // What comes is checked by `Incoming` where it must be.
            capabilities.checksum.tcp = Checksum::None;
            capabilities.checksum.udp = Checksum::None;
        }
        if self.card.has_large_segments() {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(SEGMENT_BYTES);
        }
        capabilities
    }
}

pub(super) struct Incoming<'a> {
    frame: Received<'a>,
    room: &'a mut Vec<u8>,
    leaves_open: bool,
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, taker: F) -> R {
        let frame = self.frame.in_one(self.room);
        let is_good =
            !self.leaves_open || self.frame.header().is_vouched_for() || offload::is_intact(frame);
        // An empty frame is what the stack drops first.
        taker(if is_good { frame } else { &[] })
    }
}

pub(super) struct Sending<'a> {
    transmitter: &'a mut Transmitter,
    leaves_open: bool,
    meta: PacketMeta,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, filler: F) -> R {
        let Some(mut outgoing) = self.transmitter.buffer() else {
            // A token is given when there is room, and used once.
            return filler(&mut alloc::vec![0; bytes]);
        };
        let frame = &mut outgoing.frame()[..bytes];
        let result = filler(frame);
        let header = if self.leaves_open {
            let segment = self.meta.segmentation_offload_size.map(|bytes| bytes.get());
            offload::leave_open(frame, segment)
        } else {
            offload::Header::default()
        };
        outgoing.send(bytes, header);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}
