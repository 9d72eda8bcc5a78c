//! The two queues of a card with their buffers.

use alloc::vec::Vec;

use virtio_drivers::transport::Transport;

use crate::net::offload::{ETHERNET_BYTES, HEADER_BYTES, Header};
use crate::virtio::ring::{Layout, Piece, Ring, Used};
use crate::virtio::{Doorbell, Error, Function, Memory};

/// A buffer begins this far into its place, so that what follows the headers of virtio (12) and Ethernet (14) is aligned to 4.
const LEAD: usize = 2;

/// The most buffers a frame is read from.
const MAX_PARTS: usize = 64;

/// A ring with one buffer for each of its entries.
#[derive(Debug)]
struct Buffers {
    ring: Ring,
    bell: Doorbell,
    /// Distance of two buffers, and bytes of one.
    step: usize,
    bytes: usize,
    memory: Memory,
    /// Held while the device may use it.
    _ring_memory: Memory,
    /// The buffer of each chain in the ring.
    owner: Vec<u16>,
}

impl Buffers {
    fn new(
        device: &mut Function,
        queue: u16,
        count: u16,
        bytes: usize,
        has_event_index: bool,
    ) -> Result<Buffers, Error> {
        if !count.is_power_of_two() || u32::from(count) > device.max_queue_size(queue) {
            return Err(Error::Unfit);
        }
        let layout = Layout::of(count);
        let ring_memory = Memory::take(layout.bytes)?;
        let start = ring_memory.start();
        let gpa = start.expose_provenance() as u64;
        // SAFETY: zeroed pages of the ring's own, kept as long as the ring.
        let ring = unsafe { Ring::new(start, count, has_event_index) };
        device.queue_set(
            queue,
            count.into(),
            gpa,
            gpa + layout.driver as u64,
            gpa + layout.device as u64,
        );
        let step = (LEAD + bytes).next_multiple_of(64);
        Ok(Buffers {
            ring,
            bell: device.doorbell(queue),
            step,
            bytes,
            memory: Memory::take(step * usize::from(count))?,
            _ring_memory: ring_memory,
            owner: alloc::vec![0; usize::from(count)],
        })
    }

    fn start(&self, buffer: u16) -> *mut u8 {
        debug_assert!(buffer < self.ring.size());
        // SAFETY: inside the memory: it has a place for each entry of the ring.
        unsafe {
            self.memory
                .start()
                .add(usize::from(buffer) * self.step + LEAD)
        }
    }

    /// Hands `bytes` of a buffer to the device.
    fn hand_over(&mut self, buffer: u16, bytes: usize, is_written: bool) {
        let piece = Piece {
            gpa: self.start(buffer).expose_provenance() as u64,
            bytes: bytes.min(self.bytes) as u32,
            is_written,
        };
        // SAFETY: the buffer is memory of ours; no slice of it is formed until it has come back.
        let head = unsafe { self.ring.add(&[piece]) };
        // There are as many entries as buffers, and each buffer is in the ring at most once.
        let head = head.expect("the ring has an entry for each buffer");
        self.owner[usize::from(head)] = buffer;
    }

    fn take_back(&mut self) -> Option<(u16, Used)> {
        let used = self.ring.pop()?;
        Some((self.owner[usize::from(used.head)], used))
    }

    fn tell(&mut self) {
        if self.ring.publish() {
            self.bell.ring();
        }
    }
}

/// What has come: all of it was copied into buffers of this guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Frames.
    pub frames: u64,
    /// Buffers they were in.
    pub buffers: u64,
    /// Bytes, without virtio's headers.
    pub bytes: u64,
}

/// The queue of frames that come.
#[derive(Debug)]
pub struct Receiver {
    buffers: Buffers,
    arrived: Arrived,
}

impl Receiver {
    pub(super) fn new(
        device: &mut Function,
        queue: u16,
        count: u16,
        bytes: u32,
        has_event_index: bool,
    ) -> Result<Receiver, Error> {
        let bytes = (bytes as usize).max(HEADER_BYTES + ETHERNET_BYTES + LEAD) - LEAD;
        Ok(Receiver {
            buffers: Buffers::new(device, queue, count, bytes, has_event_index)?,
            arrived: Arrived::default(),
        })
    }

    /// What has been taken since the card was set up.
    #[must_use]
    pub fn arrived(&self) -> Arrived {
        self.arrived
    }

    /// Offers all buffers.
    pub(super) fn start(&mut self) {
        for buffer in 0..self.buffers.ring.size() {
            self.buffers.hand_over(buffer, usize::MAX, true);
        }
        self.buffers.tell();
    }

    /// Whether a frame has come.
    #[must_use]
    pub fn has_frame(&self) -> bool {
        self.buffers.ring.has_used()
    }

    /// Asks for an interrupt with the next frame; whether one is here already, for which none will come.
    #[must_use]
    pub fn want_interrupt(&mut self) -> bool {
        self.buffers.ring.want_interrupt(1)
    }

    /// Asks for no interrupts.
    pub fn want_no_interrupt(&mut self) {
        self.buffers.ring.want_no_interrupt();
    }

    /// Takes the next frame out of the ring; its buffers go back when it is dropped.
    pub fn take(&mut self) -> Option<Received<'_>> {
        let (first, used) = self.buffers.take_back()?;
        let mut parts = [(0, 0); MAX_PARTS];
        parts[0] = (first, used.bytes);
        let mut frame = Received {
            receiver: self,
            header: Header::default(),
            parts,
            count: 1,
        };
        let start = frame.receiver.buffers.start(first);
        // SAFETY: the device has given the buffer back, which is at least as long as a header.
        let header = unsafe { start.cast::<[u8; HEADER_BYTES]>().read() };
        frame.header = Header::from_bytes(header);
        // The device shows all buffers of a frame at once (5.1.6.4).
        for _ in 1..frame.header.buffers {
            let (buffer, used) = frame.receiver.buffers.take_back()?;
            if let Some(part) = frame.parts.get_mut(frame.count) {
                *part = (buffer, used.bytes);
                frame.count += 1;
            } else {
                frame.receiver.buffers.hand_over(buffer, usize::MAX, true);
            }
        }
        let bytes = frame.bytes() as u64;
        let buffers = frame.count as u64;
        let arrived = &mut frame.receiver.arrived;
        arrived.frames += 1;
        arrived.buffers += buffers;
        arrived.bytes += bytes;
        Some(frame)
    }
}

/// A frame that came, in its buffers.
#[derive(Debug)]
pub struct Received<'a> {
    receiver: &'a mut Receiver,
    header: Header,
    /// Buffers and the bytes in them.
    parts: [(u16, u32); MAX_PARTS],
    count: usize,
}

impl Received<'_> {
    /// The virtio-net header.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header
    }

    /// The frame in pieces, Ethernet header first. What follows that header is aligned to 4 in the first piece; further pieces
    /// begin 2 bytes after a multiple of 64.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let buffers = &self.receiver.buffers;
        self.parts[..self.count]
            .iter()
            .enumerate()
            .map(move |(number, (buffer, bytes))| {
                let skipped = if number == 0 { HEADER_BYTES } else { 0 };
                let bytes = (*bytes as usize).min(buffers.bytes).saturating_sub(skipped);
                // SAFETY: inside a buffer that the device has given back and that is ours as long as `self`.
                unsafe { core::slice::from_raw_parts(buffers.start(*buffer).add(skipped), bytes) }
            })
    }

    /// The whole frame, if it is in one buffer.
    #[must_use]
    pub fn whole(&self) -> Option<&[u8]> {
        if self.count == 1 {
            self.pieces().next()
        } else {
            None
        }
    }

    /// Bytes of the frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }

    /// The frame in one piece: in place if it is, else copied into `room`.
    #[must_use]
    pub fn in_one<'b>(&'b self, room: &'b mut Vec<u8>) -> &'b [u8] {
        if let Some(whole) = self.whole() {
            return whole;
        }
        room.clear();
        for piece in self.pieces() {
            room.extend_from_slice(piece);
        }
        room
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        let buffers = &mut self.receiver.buffers;
        for (buffer, _) in &self.parts[..self.count] {
            buffers.hand_over(*buffer, usize::MAX, true);
        }
        buffers.tell();
    }
}

/// The queue of frames that go.
#[derive(Debug)]
pub struct Transmitter {
    buffers: Buffers,
    free: Vec<u16>,
}

impl Transmitter {
    pub(super) fn new(
        device: &mut Function,
        queue: u16,
        count: u16,
        packet_bytes: u32,
        has_event_index: bool,
    ) -> Result<Transmitter, Error> {
        let bytes = HEADER_BYTES + ETHERNET_BYTES + packet_bytes as usize;
        Ok(Transmitter {
            buffers: Buffers::new(device, queue, count, bytes, has_event_index)?,
            free: (0..count).collect(),
        })
    }

    fn reclaim(&mut self) {
        while let Some((buffer, _)) = self.buffers.take_back() {
            self.free.push(buffer);
        }
    }

    /// The ring and its bell, to be broken.
    pub(super) fn parts(&mut self) -> (&mut Ring, Doorbell) {
        (&mut self.buffers.ring, self.buffers.bell)
    }

    /// Whether a buffer is free.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.buffers.ring.has_used()
    }

    /// Whether the device has given all buffers back.
    #[must_use]
    pub fn is_idle(&mut self) -> bool {
        self.reclaim();
        self.free.len() == usize::from(self.buffers.ring.size())
    }

    /// Asks for an interrupt when a good part of the buffers is back; whether there is one already.
    #[must_use]
    pub(super) fn want_interrupt(&mut self) -> bool {
        let half = self.buffers.ring.size() / 2;
        let _ = self.buffers.ring.want_interrupt(half);
        self.has_room()
    }

    /// A free buffer; `None` if the device has them all.
    pub fn buffer(&mut self) -> Option<Outgoing<'_>> {
        if self.free.is_empty() {
            self.reclaim();
            self.buffers.ring.want_no_interrupt();
        }
        let buffer = self.free.pop()?;
        Some(Outgoing {
            transmitter: self,
            buffer: Some(buffer),
        })
    }

    /// Shows the device the frames that were sent since the last time, and kicks it if it wants that.
    pub fn flush(&mut self) {
        self.buffers.tell();
    }
}

/// A send buffer to be filled. Dropped without [`Outgoing::send`], it is free again.
#[derive(Debug)]
pub struct Outgoing<'a> {
    transmitter: &'a mut Transmitter,
    buffer: Option<u16>,
}

impl Outgoing<'_> {
    /// Room for a frame, Ethernet header first; what follows that header is aligned to 4. Whatever was there is still there.
    pub fn frame(&mut self) -> &mut [u8] {
        let Some(buffer) = self.buffer else {
            return &mut [];
        };
        let buffers = &self.transmitter.buffers;
        let bytes = buffers.bytes - HEADER_BYTES;
        // SAFETY: inside a buffer that is not in the ring and that is ours as long as `self` is borrowed.
        unsafe { core::slice::from_raw_parts_mut(buffers.start(buffer).add(HEADER_BYTES), bytes) }
    }

    /// Puts the first `bytes` of the frame into the ring. The device sees it with [`Transmitter::flush`].
    pub fn send(mut self, bytes: usize, header: Header) {
        let Some(buffer) = self.buffer.take() else {
            return;
        };
        let buffers = &mut self.transmitter.buffers;
        // SAFETY: as above; a buffer is longer than a header.
        unsafe {
            buffers
                .start(buffer)
                .cast::<[u8; HEADER_BYTES]>()
                .write(header.to_bytes());
        }
        buffers.hand_over(buffer, HEADER_BYTES + bytes, false);
    }
}

impl Drop for Outgoing<'_> {
    fn drop(&mut self) {
        self.transmitter.free.extend(self.buffer);
    }
}
