//! The receiving half of a card.

use nagaya_mem::Gpa;

use super::{
    NET_HEADER_BYTES, Net, Offload, QUEUE_SIZE, RECEIVE, TRANSMIT, TxFrame, feature, sum_words,
};
use crate::pci::Message;
use crate::queue::scatter::{Copied, Cursor, copy};
use crate::queue::{Chains, Queue, QueueError, Segment};
use crate::switch::{DropReason, HEADER_BYTES};
use crate::virtio::Stopped;
use crate::{CopyError, GuestRam, RamError};

/// Bytes of a VLAN tag, which the MTU does not count.
const VLAN_TAG_BYTES: u32 = 4;
/// The most pieces in which a frame is copied: one of 64 KiB between buffers of a page and of 1,500 bytes has about 70.
pub(super) const MAX_PIECES: u32 = 1024;

/// What became of a frame at one receiver.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the receiver's buffers. [`Net::end_delivery`] follows after the last of a burst.
    Done,
    /// It is not, for this reason. With [`DropReason::NoBuffers`] the receiver's driver was asked for a kick, so that the frame
    /// may be put back and tried again then.
    Dropped(DropReason),
    /// The receiver's driver broke its queue.
    Stopped(Stopped),
    /// The sender's buffers are no RAM: it is to be stopped with this error, at [`TRANSMIT`].
    SenderBroken(QueueError),
}

/// Why a frame did not get into the buffers.
enum Failure {
    Drop(DropReason),
    Receiver(QueueError),
    Sender(RamError),
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Failure {
        Failure::Receiver(error)
    }
}

impl From<RamError> for Failure {
    fn from(error: RamError) -> Failure {
        Failure::Receiver(QueueError::Ram(error))
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Failure {
        match error {
            CopyError::Source(error) => Failure::Sender(error),
            CopyError::Target(error) => Failure::from(error),
        }
    }
}

/// Room for all chains of a queue. Before each is taken there are [`MAX_PIECES`] segments at most.
pub(super) fn storage() -> Chains {
    let queue = usize::from(QUEUE_SIZE);
    Chains::with_room(queue, MAX_PIECES as usize + queue)
}

impl Net {
    /// Puts a frame into this card's buffers, copied from the sender's.
    pub fn deliver<R: GuestRam>(&mut self, ram: &R, sender_ram: &R, frame: &TxFrame) -> Delivery {
        match self.try_deliver(ram, sender_ram, frame) {
            Ok(copied) => {
                let stats = &mut self.stats;
                stats.received_frames = stats.received_frames.wrapping_add(1);
                stats.received_bytes = stats.received_bytes.wrapping_add(copied.bytes.into());
                stats.copies = stats.copies.wrapping_add(copied.pieces.into());
                Delivery::Done
            }
            Err(Failure::Drop(reason)) => Delivery::Dropped(reason),
            Err(Failure::Receiver(error)) => Delivery::Stopped(self.stop(RECEIVE, error)),
            Err(Failure::Sender(error)) => Delivery::SenderBroken(QueueError::Ram(error)),
        }
    }

    fn try_deliver<R: GuestRam>(
        &mut self,
        ram: &R,
        sender_ram: &R,
        frame: &TxFrame,
    ) -> Result<Copied, Failure> {
        let features = self.pci.features();
        let offload = self.fitting(frame, features)?;
        let computed = match frame
            .offload
            .checksum
            .filter(|_| offload.checksum.is_none())
        {
            Some(open) => {
                let start = u32::from(open.start);
                let bytes = frame.header.bytes.saturating_sub(start);
                let sum = sum_words(sender_ram, frame, start, bytes).map_err(Failure::Sender)?;
                self.stats.checksums = self.stats.checksums.wrapping_add(1);
                // 0 would mean "none" to UDP; to one's complement, both are zero.
                let sum = if sum == 0xFFFF { sum } else { !sum };
                Some((start + u32::from(open.offset), sum))
            }
            None => None,
        };
        let queue = self.pci.queue(RECEIVE);
        let queue = queue.ok_or(Failure::Drop(DropReason::NotReady))?;
        let bytes = frame.header.bytes;
        let needed = bytes
            .checked_add(NET_HEADER_BYTES)
            .ok_or(Failure::Drop(DropReason::Length))?;
        let merges = features & feature::MRG_RXBUF != 0;
        let chains = &mut self.chains;
        match take_chains(queue, ram, chains, needed, merges) {
            Err(Failure::Drop(DropReason::NoBuffers)) => {
                self.is_receive_quiet = false;
                return Err(Failure::Drop(DropReason::NoBuffers));
            }
            taken => taken?,
        }
        let taken = chains.outlines().len() as u16;
        if !self.is_receive_quiet {
            queue.suppress_notifications(ram)?;
            self.is_receive_quiet = true;
        }
        let filled = fill(ram, sender_ram, frame, chains, offload, computed);
        match filled {
            Ok(copied) if copied.bytes == bytes => {
                let mut left = needed;
                for chain in chains.outlines() {
                    let written = chain.writable_bytes().min(left);
                    queue.complete(ram, chain, written)?;
                    left -= written;
                }
                queue.publish(ram)?;
                Ok(copied)
            }
            Ok(_) => {
                queue.undo_pop(taken);
                Err(Failure::Drop(DropReason::Scattered))
            }
            Err(failure) => {
                queue.undo_pop(taken);
                Err(failure)
            }
        }
    }

    /// What of the sender's offload this receiver gets, or why it cannot have the frame.
    fn fitting(&self, frame: &TxFrame, features: u64) -> Result<Offload, Failure> {
        if !self.is_up || !self.pci.is_running() {
            return Err(Failure::Drop(DropReason::NotReady));
        }
        let has = |bit: u64| features & bit != 0;
        match frame.offload.segmentation {
            None => {
                let most = self.config.mtu.filter(|_| has(feature::MTU)).map(u32::from);
                let most = most.map(|mtu| mtu + HEADER_BYTES + VLAN_TAG_BYTES);
                if most.is_some_and(|most| frame.header.bytes > most) {
                    return Err(Failure::Drop(DropReason::Length));
                }
            }
            Some(cut) => {
                let needed = if cut.is_ipv6 {
                    feature::GUEST_TSO6
                } else {
                    feature::GUEST_TSO4
                };
                if !has(needed) {
                    return Err(Failure::Drop(DropReason::Offload));
                }
            }
        }
        Ok(Offload {
            checksum: frame.offload.checksum.filter(|_| has(feature::GUEST_CSUM)),
            segmentation: frame.offload.segmentation,
        })
    }

    /// Ends a run of deliveries: the receiver's interrupt, to be sent.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn end_delivery<R: GuestRam>(&mut self, ram: &R) -> Result<Option<Message>, Stopped> {
        let Some(queue) = self.pci.queue(RECEIVE) else {
            return Ok(None);
        };
        match queue.take_interrupt(ram) {
            Ok(is_wanted) => Ok(self.interrupt(is_wanted, RECEIVE)),
            Err(error) => Err(self.stop(RECEIVE, error)),
        }
    }

    /// Stops this card as the sender of a frame that could not be read.
    pub fn stop_sender(&mut self, error: QueueError) -> Stopped {
        self.stop(TRANSMIT, error)
    }
}

/// Takes chains with room for `needed` bytes: one, or with mergeable buffers several. If there are too few, none is taken, and
/// the driver is asked for a kick.
fn take_chains<R: GuestRam>(
    queue: &mut Queue,
    ram: &R,
    chains: &mut Chains,
    needed: u32,
    merges: bool,
) -> Result<(), Failure> {
    let most = if merges { queue.config().size } else { 1 };
    // A second look, if the driver put more there while we asked it to.
    for _ in 0..2 {
        chains.clear();
        let (mut count, mut room) = (0, 0_u32);
        while room < needed && count < most {
            if !queue.pop_next(ram, chains)? {
                break;
            }
            count += 1;
            let Some(chain) = chains.outlines().last() else {
                break;
            };
            if chain.readable_bytes() > 0 {
                return Err(Failure::Receiver(QueueError::Direction));
            }
            // Each has room for a header at least (5.1.6.3.1).
            if chain.writable_bytes() < NET_HEADER_BYTES {
                return Err(Failure::Receiver(QueueError::ChainBytes {
                    bytes: chain.writable_bytes(),
                    least: NET_HEADER_BYTES,
                }));
            }
            room = room.saturating_add(chain.writable_bytes());
            if chains.segments().len() > MAX_PIECES as usize {
                queue.undo_pop(count);
                return Err(Failure::Drop(DropReason::Scattered));
            }
        }
        if room >= needed {
            return Ok(());
        }
        queue.undo_pop(count);
        if count == most {
            return Err(Failure::Drop(DropReason::Length));
        }
        if !queue.ask_for_more(ram)? {
            break;
        }
    }
    Err(Failure::Drop(DropReason::NoBuffers))
}

/// What comes first in a receiver's buffers, both headers, and is not copied: the receiver's virtio-net header, and the Ethernet
/// header that the switch saw.
const HEADERS_BYTES: u32 = NET_HEADER_BYTES + HEADER_BYTES;

fn headers(offload: Offload, buffers: u16, frame: &TxFrame) -> [u8; HEADERS_BYTES as usize] {
    let mut headers = [0; HEADERS_BYTES as usize];
    // By arrays of known lengths: byte for byte it took 500 ticks.
    if let Some((own, rest)) = headers.split_first_chunk_mut() {
        *own = offload.to_header(buffers);
        if let Some(ethernet) = rest.first_chunk_mut() {
            *ethernet = frame.start;
        }
    }
    headers
}

/// Writes headers and frame from one segment to one that is as long at least: what most frames are.
fn in_one_piece<R: GuestRam>(
    (sender_ram, from): (&R, Segment),
    (ram, to): (&R, Segment),
    headers: &[u8; HEADERS_BYTES as usize],
) -> Result<Copied, Failure> {
    ram.write(to.start, headers)?;
    let mut copied = Copied {
        bytes: from.bytes.saturating_sub(NET_HEADER_BYTES),
        pieces: 0,
    };
    let rest = from.bytes.saturating_sub(HEADERS_BYTES);
    if rest > 0 {
        // Segments do not go beyond the last address.
        let behind = |segment: Segment| Gpa::new(segment.start.get() + u64::from(HEADERS_BYTES));
        sender_ram.copy_to(behind(from), ram, behind(to), rest)?;
        copied.pieces = 1;
    }
    Ok(copied)
}

/// Writes headers and frame over the chains, and a computed checksum into its place.
fn fill<R: GuestRam>(
    ram: &R,
    sender_ram: &R,
    frame: &TxFrame,
    chains: &Chains,
    offload: Offload,
    computed: Option<(u32, u16)>,
) -> Result<Copied, Failure> {
    // All of them are writable: `take_chains` has looked.
    let (segments, count) = (chains.segments(), chains.outlines().len());
    let headers = headers(offload, count as u16, frame);
    let copied = match (frame.chain.readable(), segments) {
        ([from], [to, ..])
            if count == 1 && from.bytes >= HEADERS_BYTES && to.bytes >= from.bytes =>
        {
            in_one_piece((sender_ram, *from), (ram, *to), &headers)?
        }
        _ => {
            let bytes = frame.header.bytes;
            // The switch drops what is shorter than its header.
            let start = bytes.min(HEADER_BYTES);
            let known = headers.get(..(NET_HEADER_BYTES + start) as usize);
            let mut to = Cursor::new(segments);
            to.write(ram, known.unwrap_or(&headers))?;
            let mut from = Cursor::new(frame.chain.readable());
            from.skip(HEADERS_BYTES);
            let (from, to) = ((sender_ram, &mut from), (ram, &mut to));
            let rest = copy(from, to, bytes - start, MAX_PIECES)?;
            Copied {
                bytes: start + rest.bytes,
                ..rest
            }
        }
    };
    if let Some((at, sum)) = computed {
        let mut place = Cursor::new(segments);
        place.skip(NET_HEADER_BYTES + at);
        place.write(ram, &sum.to_be_bytes())?;
    }
    Ok(copied)
}
