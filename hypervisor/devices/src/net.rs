//! virtio-net: a network card whose frames go to the cards of other guests.
//!
//! The sender's owner takes frames ([`Net::next_frame`]), asks the switch where each goes, gives it to each receiver
//! ([`Net::deliver`]), which copies it from the sender's buffers into its own, once, and then tells the sender that it is done
//! ([`Net::finish_frame`]). A taken frame is plain data: the sender need not be locked while the receivers work.
//!
//! A checksum that the sender left open and a TCP segment larger than a packet are passed on as they are to receivers that
//! agreed to that. For one that did not, the checksum is computed; the segment is dropped.
//!
//! Source: virtio 1.2, 5.1 "Network Device".

mod offload;
mod receive;

use serde::{Deserialize, Serialize};

use crate::pci::{Effect, Message};
use crate::queue::scatter::Cursor;
use crate::queue::{Chain, Chains, QueueError};
use crate::state::StateError;
use crate::switch::{FrameHeader, HEADER_BYTES, MacAddress};
use crate::virtio::{
    self, DeviceType, Profile, Stopped, VirtioFunction, VirtioPci, VirtioPciState,
};
use crate::{GuestRam, RamError};
pub use offload::{Checksum, Offload, Segmentation};
pub use receive::Delivery;

/// Feature bits (5.1.3).
pub mod feature {
    /// `VIRTIO_NET_F_CSUM`: frames may come with an open checksum.
    pub const CSUM: u64 = 1 << 0;
    /// `VIRTIO_NET_F_GUEST_CSUM`: the driver takes such frames.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// `VIRTIO_NET_F_MTU`.
    pub const MTU: u64 = 1 << 3;
    /// `VIRTIO_NET_F_MAC`.
    pub const MAC: u64 = 1 << 5;
    /// `VIRTIO_NET_F_GUEST_TSO4`: the driver takes large TCP segments over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// `VIRTIO_NET_F_GUEST_TSO6`: and over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// `VIRTIO_NET_F_HOST_TSO4`: large TCP segments over IPv4 may come.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// `VIRTIO_NET_F_HOST_TSO6`: and over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// `VIRTIO_NET_F_MRG_RXBUF`: a frame may be in several chains.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `VIRTIO_NET_F_STATUS`.
    pub const STATUS: u64 = 1 << 16;

    /// Open checksums, both ways.
    pub const CHECKSUM: u64 = CSUM | GUEST_CSUM;
    /// Large segments, both ways.
    pub const SEGMENTATION: u64 = GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;
}

/// What needs what (5.1.3.1).
const NEEDS: &[(u64, u64)] = &[
    (feature::GUEST_TSO4, feature::GUEST_CSUM),
    (feature::GUEST_TSO6, feature::GUEST_CSUM),
    (feature::HOST_TSO4, feature::CSUM),
    (feature::HOST_TSO6, feature::CSUM),
];

/// The queue of frames to the guest (5.1.2).
pub const RECEIVE: u16 = 0;
/// The queue of frames from the guest.
pub const TRANSMIT: u16 = 1;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Bytes of `struct virtio_net_hdr` with `num_buffers`, before each frame (5.1.6).
pub const NET_HEADER_BYTES: u32 = 12;

/// `VIRTIO_NET_S_LINK_UP` (5.1.4).
const LINK_UP: u16 = 1;
/// Offsets in `struct virtio_net_config`.
const CONFIG_STATUS: usize = 6;

/// Which offloads a card offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Offloads {
    /// None: every frame is a packet as it would be on a wire.
    None,
    /// Open checksums.
    Checksum,
    /// Open checksums and large TCP segments. All cards of a segment should take them: see [`Delivery::Dropped`].
    ChecksumAndSegmentation,
}

/// What a card is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Its address.
    pub address: MacAddress,
    /// The largest packet without its Ethernet header, in bytes, if the driver is to be told.
    pub mtu: Option<u16>,
    /// Its offloads.
    pub offloads: Offloads,
}

/// What a card counts. Counts turn over at 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStats {
    /// Frames taken from the guest.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames of the guest whose header made no sense; they went nowhere.
    pub bad_headers: u64,
    /// Frames given to the guest.
    pub received_frames: u64,
    /// Their bytes: each was copied once.
    pub received_bytes: u64,
    /// Pieces that they were copied in.
    pub copies: u64,
    /// Checksums that had to be computed for this receiver.
    pub checksums: u64,
    /// Bursts begun.
    pub bursts: u64,
    /// Interrupts sent, for either queue.
    pub interrupts: u64,
}

/// How much of a sender's work is done at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BurstLimit {
    /// Frames.
    pub frames: u32,
    /// Bytes; the frame that reaches it is the last.
    pub bytes: u32,
}

/// What [`Net::next_frame`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A frame.
    Frame,
    /// No more frames.
    Empty,
    /// The limit of the burst is reached.
    Limit,
}

/// How a burst ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BurstEnd {
    /// The sender's interrupt, to be sent.
    pub message: Option<Message>,
    /// There are, or may be, more frames and no kick will come for them: begin another burst soon.
    pub more: bool,
}

/// A frame taken from a sender, still in its buffers but for its start.
#[derive(Clone, Debug)]
pub struct TxFrame {
    chain: Chain,
    /// The Ethernet header as it was read: what was decided on is what receivers get, whatever the sender writes meanwhile.
    start: [u8; HEADER_BYTES as usize],
    header: FrameHeader,
    offload: Offload,
}

impl Default for TxFrame {
    fn default() -> Self {
        Self::new()
    }
}

impl TxFrame {
    /// No frame, to be filled by [`Net::next_frame`].
    #[must_use]
    pub fn new() -> TxFrame {
        TxFrame {
            chain: Chain::new(),
            start: [0; HEADER_BYTES as usize],
            header: FrameHeader::parse([0; HEADER_BYTES as usize], 0),
            offload: Offload::default(),
        }
    }

    /// What the switch has to know.
    #[must_use]
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// What was left open.
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.offload
    }
}

/// A network card.
#[derive(Debug)]
pub struct Net {
    pci: VirtioPci,
    config: NetConfig,
    is_up: bool,
    stats: NetStats,
    burst: BurstLimit,
    is_drained: bool,
    /// The driver has been asked not to kick for new receive buffers.
    is_receive_quiet: bool,
    /// Storage for the receiving chains of one frame.
    chains: Chains,
}

impl Net {
    /// A card with its link up.
    #[must_use]
    pub fn new(config: NetConfig) -> Net {
        let mut features =
            virtio::feature::COMMON | feature::MAC | feature::STATUS | feature::MRG_RXBUF;
        match config.offloads {
            Offloads::None => {}
            Offloads::Checksum => features |= feature::CHECKSUM,
            Offloads::ChecksumAndSegmentation => {
                features |= feature::CHECKSUM | feature::SEGMENTATION;
            }
        }
        if config.mtu.is_some() {
            features |= feature::MTU;
        }
        // struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu.
        let MacAddress([a, b, c, d, e, f]) = config.address;
        let [s0, s1] = LINK_UP.to_le_bytes();
        let [m0, m1] = config.mtu.unwrap_or(0).to_le_bytes();
        let pci = VirtioPci::new(&Profile {
            device: DeviceType::Net,
            // Network controller, Ethernet.
            class: [2, 0, 0],
            features,
            needs: NEEDS,
            queue_sizes: &[QUEUE_SIZE, QUEUE_SIZE],
            config: &[a, b, c, d, e, f, s0, s1, 1, 0, m0, m1],
        });
        Net {
            pci,
            config,
            is_up: true,
            stats: NetStats::default(),
            burst: BurstLimit {
                frames: 0,
                bytes: 0,
            },
            is_drained: true,
            is_receive_quiet: false,
            chains: receive::storage(),
        }
    }

    /// The PCI function: status, failure, features.
    #[must_use]
    pub fn pci(&self) -> &VirtioPci {
        &self.pci
    }

    /// What it is like.
    #[must_use]
    pub fn config(&self) -> &NetConfig {
        &self.config
    }

    /// What it counted.
    #[must_use]
    pub fn stats(&self) -> NetStats {
        self.stats
    }

    /// Bytes of heap for receiving chains. No driver makes it more.
    #[must_use]
    pub fn storage_bytes(&self) -> usize {
        self.chains.storage_bytes()
    }

    /// Plugs the cable in or out. The interrupt is to be sent.
    #[must_use]
    pub fn set_link(&mut self, is_up: bool) -> Option<Message> {
        if self.is_up == is_up {
            return None;
        }
        self.is_up = is_up;
        let status = if is_up { LINK_UP } else { 0 };
        self.pci
            .set_device_config(CONFIG_STATUS, &status.to_le_bytes())
    }

    /// Stops the device for what its driver did to a queue.
    pub fn stop(&mut self, queue: u16, error: QueueError) -> Stopped {
        self.pci.stop(queue, error)
    }

    /// Begins a burst of frames from the guest, after a kick or because of [`BurstEnd::more`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn begin_burst<R: GuestRam>(&mut self, ram: &R, limit: BurstLimit) -> Result<(), Stopped> {
        self.burst = limit;
        self.is_drained = false;
        self.stats.bursts = self.stats.bursts.wrapping_add(1);
        let Some(queue) = self.pci.queue(TRANSMIT) else {
            return Ok(());
        };
        let done = queue.suppress_notifications(ram);
        done.map_err(|error| self.stop(TRANSMIT, error))
    }

    /// Takes the next frame of the burst. Frames with senseless headers are counted and passed over.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn next_frame<R: GuestRam>(
        &mut self,
        ram: &R,
        frame: &mut TxFrame,
    ) -> Result<Next, Stopped> {
        loop {
            if self.burst.frames == 0 || self.burst.bytes == 0 {
                return Ok(Next::Limit);
            }
            match self.take_frame(ram, frame) {
                Ok(Some(true)) => {
                    self.stats.sent_frames = self.stats.sent_frames.wrapping_add(1);
                    let bytes = frame.header.bytes;
                    self.stats.sent_bytes = self.stats.sent_bytes.wrapping_add(bytes.into());
                    return Ok(Next::Frame);
                }
                Ok(Some(false)) => {
                    self.stats.bad_headers = self.stats.bad_headers.wrapping_add(1);
                    self.finish_frame(ram, frame)?;
                }
                Ok(None) => {
                    self.is_drained = true;
                    return Ok(Next::Empty);
                }
                Err(error) => return Err(self.stop(TRANSMIT, error)),
            }
        }
    }

    /// Takes a frame, with whether its header makes sense.
    fn take_frame<R: GuestRam>(
        &mut self,
        ram: &R,
        frame: &mut TxFrame,
    ) -> Result<Option<bool>, QueueError> {
        let features = self.pci.features();
        let Some(queue) = self.pci.queue(TRANSMIT) else {
            return Ok(None);
        };
        if !queue.pop(ram, &mut frame.chain)? {
            return Ok(None);
        }
        if frame.chain.writable_bytes() > 0 {
            return Err(QueueError::Direction);
        }
        let total = frame.chain.readable_bytes();
        let bytes = total
            .checked_sub(NET_HEADER_BYTES)
            .ok_or(QueueError::ChainBytes {
                bytes: total,
                least: NET_HEADER_BYTES,
            })?;
        self.burst.frames = self.burst.frames.saturating_sub(1);
        self.burst.bytes = self.burst.bytes.saturating_sub(total);
        // Both headers at once. A frame too short for its own has zeros there; the switch looks at the length first.
        let mut headers = [0; (NET_HEADER_BYTES + HEADER_BYTES) as usize];
        match frame.chain.readable() {
            [first, ..] if first.bytes as usize >= headers.len() => {
                ram.read(first.start, &mut headers)?;
            }
            pieces => {
                Cursor::new(pieces).read(ram, &mut headers)?;
            }
        }
        let (Some(head), Some(start)) = (headers.first_chunk(), headers.last_chunk()) else {
            return Ok(Some(false));
        };
        frame.start = *start;
        frame.header = FrameHeader::parse(*start, bytes);
        match Offload::parse(*head, features, bytes) {
            Some(offload) => {
                frame.offload = offload;
                Ok(Some(true))
            }
            None => Ok(Some(false)),
        }
    }

    /// Makes the burst end earlier, for copies beyond the first: a frame to all costs the sender what it costs the hypervisor.
    pub fn charge(&mut self, bytes: u32) {
        self.burst.bytes = self.burst.bytes.saturating_sub(bytes);
    }

    /// Gives a frame's buffers back to the sender. Frames from before a reset are let go.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn finish_frame<R: GuestRam>(&mut self, ram: &R, frame: &TxFrame) -> Result<(), Stopped> {
        let Some(queue) = self.pci.queue(TRANSMIT) else {
            return Ok(());
        };
        let done = queue.complete(ram, &frame.chain, 0);
        done.map_err(|error| self.stop(TRANSMIT, error))
    }

    /// Leaves the frame that was taken last for a later burst: its receiver has no buffers, and it shall not be dropped. The
    /// receiver's driver kicks [`RECEIVE`] when it has some.
    pub fn put_back(&mut self, frame: &TxFrame) {
        if let Some(queue) = self.pci.queue(TRANSMIT)
            && queue.owns(&frame.chain)
        {
            queue.undo_pop(1);
            self.stats.sent_frames = self.stats.sent_frames.wrapping_sub(1);
            let bytes = u64::from(frame.header.bytes);
            self.stats.sent_bytes = self.stats.sent_bytes.wrapping_sub(bytes);
        }
    }

    /// The interrupt of a queue if it is wanted, counted.
    fn interrupt(&mut self, is_wanted: bool, queue: u16) -> Option<Message> {
        let message = is_wanted.then(|| self.pci.interrupt_queue(queue)).flatten();
        if message.is_some() {
            self.stats.interrupts = self.stats.interrupts.wrapping_add(1);
        }
        message
    }

    /// Ends a burst: shows the guest what is done, and asks for a kick if nothing is left.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn end_burst<R: GuestRam>(&mut self, ram: &R) -> Result<BurstEnd, Stopped> {
        let is_drained = self.is_drained;
        let Some(queue) = self.pci.queue(TRANSMIT) else {
            return Ok(BurstEnd {
                message: None,
                more: false,
            });
        };
        let mut end = || {
            queue.publish(ram)?;
            let more = if is_drained {
                queue.resume_notifications(ram)?
            } else {
                true
            };
            Ok((queue.take_interrupt(ram)?, more))
        };
        match end() {
            Ok((is_wanted, more)) => Ok(BurstEnd {
                message: self.interrupt(is_wanted, TRANSMIT),
                more,
            }),
            Err(error) => Err(self.stop(TRANSMIT, error)),
        }
    }
}

impl VirtioFunction for Net {
    fn transport(&self) -> &VirtioPci {
        &self.pci
    }

    fn transport_mut(&mut self) -> &mut VirtioPci {
        &mut self.pci
    }

    fn after(&mut self, effect: Effect) -> Effect {
        if matches!(effect, Effect::Reset) {
            self.is_receive_quiet = false;
        }
        effect
    }
}

/// Sums 16-bit words of a frame in its sender's buffers: from byte `start` of the frame, `bytes` long. One's complement (RFC
/// 1071), folded, not inverted.
fn sum_words<R: GuestRam>(
    ram: &R,
    frame: &TxFrame,
    start: u32,
    bytes: u32,
) -> Result<u16, RamError> {
    let mut cursor = Cursor::new(frame.chain.readable());
    cursor.skip(NET_HEADER_BYTES.saturating_add(start));
    let mut sum = 0_u64;
    let mut left = bytes as usize;
    // Even, so that words do not fall between two reads.
    let mut buffer = [0; 512];
    while left > 0 {
        let count = left.min(buffer.len());
        let (now, _) = buffer.split_at_mut(count);
        if cursor.read(ram, now)? < count {
            break;
        }
        let (words, odd) = now.as_chunks::<2>();
        sum += words
            .iter()
            .map(|word| u64::from(u16::from_be_bytes(*word)))
            .sum::<u64>();
        sum += odd.iter().map(|byte| u64::from(*byte) << 8).sum::<u64>();
        left -= count;
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    Ok(sum as u16)
}

/// A network card as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// What it is like. Another address makes it another card, whose driver may have read the old one.
    pub config: NetConfig,
    pci: VirtioPciState,
    is_up: bool,
    stats: NetStats,
    burst: BurstLimit,
    is_drained: bool,
    is_receive_quiet: bool,
}

impl Net {
    /// What it is. A frame that was taken is first given back or put back.
    #[must_use]
    pub fn save(&self) -> NetState {
        let Net {
            pci,
            config,
            is_up,
            stats,
            burst,
            is_drained,
            is_receive_quiet,
            // Storage: each delivery begins with none.
            chains: _,
        } = self;
        NetState {
            config: *config,
            pci: pci.save(),
            is_up: *is_up,
            stats: *stats,
            burst: *burst,
            is_drained: *is_drained,
            is_receive_quiet: *is_receive_quiet,
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: none of ours gets there.
    pub fn restore(state: &NetState) -> Result<Net, StateError> {
        let NetState {
            config,
            pci,
            is_up,
            stats,
            burst,
            is_drained,
            is_receive_quiet,
        } = state;
        let mut made = Net::new(*config);
        // Nobody listens to it yet.
        let _ = made.set_link(*is_up);
        let pci = made.pci.restore(pci);
        Ok(Net {
            pci: pci.map_err(|error| error.within("pci"))?,
            config: *config,
            is_up: *is_up,
            stats: *stats,
            burst: *burst,
            is_drained: *is_drained,
            is_receive_quiet: *is_receive_quiet,
            chains: made.chains,
        })
    }
}
