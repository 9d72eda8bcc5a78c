//! Guests with network cards on a switch, and the loop that `machine` runs for them.

use nagaya_devices::net::{
    BurstLimit, Delivery, NET_HEADER_BYTES, Net, NetConfig, Next, Offloads, RECEIVE, TRANSMIT,
    TxFrame, feature,
};
use nagaya_devices::pci::Message;
use nagaya_devices::queue::RingFeatures;
use nagaya_devices::switch::{
    MacAddress, PortConfig, PortId, SourceCheck, Switch, SwitchConfig, Verdict,
};
use nagaya_devices::test_support::{Buffer, DriverQueue, Layout, TestRam, guest};
use nagaya_devices::virtio;

/// All that both sides offer and know.
pub(crate) const ALL: u64 = u64::MAX;

const QUEUE_SIZE: u16 = 64;
const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x3000;
const TABLE: u64 = 0x5000;
const TX_BUFFERS: u64 = 0x10000;
const RX_BUFFERS: u64 = 0x40000;
const RAM_BYTES: usize = 0xC0000;

pub(crate) const LIMIT: BurstLimit = BurstLimit {
    frames: 64,
    bytes: 1 << 20,
};

/// A frame as a guest received it: the virtio-net header and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) header: [u8; NET_HEADER_BYTES as usize],
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Guest {
    pub(crate) ram: TestRam,
    pub(crate) net: Net,
    pub(crate) rx: DriverQueue,
    pub(crate) tx: DriverQueue,
    /// Posted buffers in the order of their chains: head, start, bytes.
    posted: Vec<(u16, Vec<Buffer>)>,
    next_buffer: u64,
    next_sent: u64,
    pub(crate) messages: Vec<Message>,
}

pub(crate) struct Lan {
    pub(crate) switch: Switch,
    pub(crate) guests: Vec<Guest>,
    pub(crate) now: u64,
    /// Cards are saved and restored whenever a burst begins, and each receiver after each frame.
    pub(crate) saves: bool,
}

pub(crate) fn address(number: usize) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number as u8])
}

fn port(number: usize) -> PortId {
    PortId::new(number as u8).expect("few")
}

/// A frame between two guests with contents that tell.
pub(crate) fn frame(from: usize, to: usize, bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(address(to).0);
    frame.extend(address(from).0);
    frame.extend([0x88, 0xB5]);
    let rest = bytes.saturating_sub(frame.len());
    frame.extend((0..rest).map(|index| (index * 7 + index / 251 + from) as u8));
    frame.truncate(bytes);
    frame
}

/// The bytes cut into pieces of these lengths, the last one again and again.
fn cut(start: u64, bytes: u32, lengths: &[u32]) -> Vec<Buffer> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut lengths = lengths
        .iter()
        .chain(std::iter::repeat(lengths.last().expect("some")));
    while at < bytes {
        let length = (*lengths.next().expect("endless")).min(bytes - at);
        // A gap after each, so that they are not one by chance.
        let gap = pieces.len() as u64 * 3;
        pieces.push(Buffer {
            start: start + u64::from(at) + gap,
            bytes: length,
        });
        at += length;
    }
    pieces
}

impl Guest {
    pub(crate) fn new(number: usize, features: u64, offloads: Offloads, mtu: Option<u16>) -> Guest {
        let mut net = Net::new(NetConfig {
            address: address(number),
            mtu,
            offloads,
        });
        let ram = TestRam::new(RAM_BYTES);
        let (rx, tx) = Self::start(&ram, &mut net, features);
        Guest {
            ram,
            net,
            rx,
            tx,
            posted: Vec::new(),
            next_buffer: RX_BUFFERS,
            next_sent: TX_BUFFERS,
            messages: Vec::new(),
        }
    }

    fn start(ram: &TestRam, net: &mut Net, features: u64) -> (DriverQueue, DriverQueue) {
        let mut features = guest::offered(net) & features | virtio::feature::VERSION_1;
        // A driver takes nothing without what it needs.
        if features & feature::CSUM == 0 {
            features &= !(feature::HOST_TSO4 | feature::HOST_TSO6);
        }
        if features & feature::GUEST_CSUM == 0 {
            features &= !(feature::GUEST_TSO4 | feature::GUEST_TSO6);
        }
        let layouts = [
            Layout::at(RX_RING, QUEUE_SIZE),
            Layout::at(TX_RING, QUEUE_SIZE),
        ];
        let ring = RingFeatures {
            event_index: features & virtio::feature::EVENT_IDX != 0,
            indirect: features & virtio::feature::INDIRECT_DESC != 0,
        };
        let queues = layouts.map(|layout| DriverQueue::new(ram, layout, ring));
        guest::start(net, features, &layouts);
        let [rx, tx] = queues;
        (rx, tx)
    }

    pub(crate) fn save_and_restore(&mut self) {
        let state = self.net.save();
        self.net = Net::restore(&state).expect("was saved by one of ours");
        assert_eq!(self.net.save(), state);
    }

    /// Resets the card and sets it up again.
    pub(crate) fn restart(&mut self, features: u64) {
        let (rx, tx) = Self::start(&self.ram, &mut self.net, features);
        (self.rx, self.tx) = (rx, tx);
        self.posted.clear();
        self.next_buffer = RX_BUFFERS;
    }

    /// Offers a buffer for frames of this many bytes, in pieces. Returns whether a kick is wanted.
    pub(crate) fn post(&mut self, bytes: u32, lengths: &[u32]) -> bool {
        let mut pieces = cut(self.next_buffer, bytes, lengths);
        pieces.truncate(16);
        let end = pieces
            .last()
            .map_or(0, |last| last.start + u64::from(last.bytes));
        self.next_buffer = if end > 0xA0000 { RX_BUFFERS } else { end + 5 };
        let head = self
            .rx
            .add(&self.ram, &[], &pieces)
            .expect("descriptors are free");
        self.posted.push((head, pieces));
        self.rx.publish(&self.ram)
    }

    /// Queues a frame with this header for sending, in pieces. Returns whether a kick is wanted.
    pub(crate) fn send_with(&mut self, header: [u8; 12], frame: &[u8], lengths: &[u32]) -> bool {
        let all: Vec<u8> = header.into_iter().chain(frame.iter().copied()).collect();
        let pieces = cut(self.next_sent, all.len() as u32, lengths);
        let end = pieces
            .last()
            .map_or(0, |last| last.start + u64::from(last.bytes));
        self.next_sent = if end > 0x28000 { TX_BUFFERS } else { end };
        let mut at = 0;
        for piece in &pieces {
            let next = at + piece.bytes as usize;
            self.ram.poke(piece.start, &all[at..next]);
            at = next;
        }
        // There is one table.
        if pieces.len() > 8 && self.tx.pending() == 0 {
            self.tx.add_indirect(&self.ram, TABLE, &pieces, &[])
        } else {
            self.tx.add(&self.ram, &pieces, &[])
        }
        .expect("descriptors are free");
        self.tx.publish(&self.ram)
    }

    pub(crate) fn send(&mut self, frame: &[u8]) -> bool {
        self.send_with([0; 12], frame, &[12, 1500])
    }

    /// Whether another frame's buffers came back.
    pub(crate) fn take_sent(&mut self) -> bool {
        self.tx.take(&self.ram).is_some()
    }

    /// Takes the next frame, out of as many buffers as it has.
    pub(crate) fn receive(&mut self) -> Option<Received> {
        let mut all = Vec::new();
        let mut left = 1;
        while left > 0 {
            let used = self.rx.take(&self.ram)?;
            let at = self.posted.iter().position(|(head, _)| *head == used.head);
            let (_, pieces) = self.posted.remove(at.expect("was posted"));
            let mut bytes = Vec::new();
            for piece in pieces {
                bytes.extend(self.ram.peek(piece.start, piece.bytes as usize));
            }
            bytes.truncate(used.written as usize);
            if all.is_empty() {
                left = u16::from_le_bytes([bytes[10], bytes[11]]);
            }
            all.extend(bytes);
            left -= 1;
        }
        let bytes = all.split_off(NET_HEADER_BYTES as usize);
        Some(Received {
            header: all.try_into().expect("12 bytes"),
            bytes,
        })
    }
}

impl Lan {
    /// Guests on one segment.
    pub(crate) fn new(guests: Vec<Guest>) -> Lan {
        let mut switch = Switch::new(SwitchConfig {
            max_addresses_per_port: 16,
            age_ticks: 1 << 30,
            max_frame_bytes: 65_550,
        });
        for number in 0..guests.len() {
            let config = PortConfig {
                segment: 0,
                address: address(number),
                source_check: SourceCheck::OwnOnly,
                rate: None,
            };
            switch.add_port(port(number), config, 0).expect("is new");
        }
        Lan {
            switch,
            guests,
            now: 0,
            saves: false,
        }
    }

    /// What `machine` does at a kick of a transmit queue. Returns whether more is to be done later.
    pub(crate) fn kick(&mut self, sender: usize, limit: BurstLimit) -> bool {
        match self.burst(sender, limit) {
            Ok(more) => more,
            Err(stopped) => {
                self.guests[sender].messages.extend(stopped.message);
                false
            }
        }
    }

    fn burst(&mut self, sender: usize, limit: BurstLimit) -> Result<bool, virtio::Stopped> {
        let mut touched = vec![false; self.guests.len()];
        if self.saves {
            self.guests.iter_mut().for_each(Guest::save_and_restore);
        }
        let mut frame = TxFrame::new();
        let Guest { net, ram, .. } = &mut self.guests[sender];
        net.begin_burst(ram, limit)?;
        loop {
            let Guest { net, ram, .. } = &mut self.guests[sender];
            if net.next_frame(ram, &mut frame)? != Next::Frame {
                break;
            }
            if let Verdict::Forward(ports) =
                self.switch.plan(port(sender), frame.header(), self.now)
            {
                for (index, egress) in ports.iter().enumerate() {
                    if index > 0 {
                        let net = &mut self.guests[sender].net;
                        net.charge(frame.header().bytes);
                    }
                    let number = usize::from(egress.number());
                    let (one, two) = two_of(&mut self.guests, sender, number);
                    match two.net.deliver(&two.ram, &one.ram, &frame) {
                        Delivery::Done => {
                            touched[number] = true;
                            self.switch.count_sent(egress, frame.header().bytes);
                        }
                        Delivery::Dropped(reason) => self.switch.count_drop(egress, reason),
                        Delivery::Stopped(stopped) => two.messages.extend(stopped.message),
                        Delivery::SenderBroken(error) => return Err(one.net.stop_sender(error)),
                    }
                }
            }
            let Guest { net, ram, .. } = &mut self.guests[sender];
            net.finish_frame(ram, &frame)?;
            if self.saves {
                self.guests.iter_mut().for_each(Guest::save_and_restore);
            }
        }
        for (guest, _) in self.guests.iter_mut().zip(touched).filter(|(_, is)| *is) {
            match guest.net.end_delivery(&guest.ram) {
                Ok(message) => guest.messages.extend(message),
                Err(stopped) => guest.messages.extend(stopped.message),
            }
        }
        let Guest {
            net, ram, messages, ..
        } = &mut self.guests[sender];
        let end = net.end_burst(ram)?;
        messages.extend(end.message);
        Ok(end.more)
    }
}

fn two_of(guests: &mut [Guest], one: usize, two: usize) -> (&mut Guest, &mut Guest) {
    let [one, two] = guests.get_disjoint_mut([one, two]).expect("not to itself");
    (one, two)
}

pub(crate) const RX_VECTOR: u16 = RECEIVE;
pub(crate) const TX_VECTOR: u16 = TRANSMIT;
