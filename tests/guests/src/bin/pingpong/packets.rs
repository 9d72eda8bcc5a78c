//! Messages cut into packets: raw frames or UDP datagrams. Each packet has the turn and its number in the message. Since neither
//! kind is promised to arrive, no more of them are under way than the receiver has room for: after each half window it says so.

use core::sync::atomic::Ordering;

use nagaya_guests::frames;
use nagaya_guests::stream::Stream;
use nagaya_rt::net::card::{BROADCAST, Card, Mac};
use nagaya_rt::net::{Error, Stack, UdpId, Waiting, stack};
use nagaya_rt::sync::PeerDied;

use crate::measure::{Message, Transport};
use crate::shared::{ADDRESSES, Side};
use crate::{PING, card};

/// Packets that may be under way.
const WINDOW: u32 = 128;
/// The number of a packet that says that half a window has come.
const MORE: u32 = u32::MAX;
/// Longest wait for a packet, in milliseconds. One that does not come by then is lost.
const PATIENCE_MS: u64 = 20_000;

/// A way for packets.
pub(crate) trait Way {
    /// Bytes of a packet's data, a multiple of 4.
    fn most_data(&self) -> usize;
    /// Puts a packet into the queue.
    fn put(&mut self, numbers: [u32; 2], bytes: usize, fill: impl FnOnce(&mut [u8]));
    /// Lets the queue go.
    fn flush(&mut self);
    /// Waits for a packet.
    fn take<R>(&mut self, taker: impl FnOnce([u32; 2], &[u8]) -> R) -> R;
    /// The card.
    fn card(&mut self) -> &mut Card;
}

/// Messages over a way for packets.
pub(crate) struct Packets<W> {
    way: W,
}

impl<W: Way> Packets<W> {
    pub(crate) fn new(way: W) -> Packets<W> {
        Packets { way }
    }
}

impl<W: Way> Transport for Packets<W> {
    fn send(&mut self, message: &Message, before_notice: impl FnOnce()) -> Result<(), PeerDied> {
        let mut stream = Stream::new(message.seed);
        let (total, most) = (message.bytes as usize, self.way.most_data());
        let turn = message.turn as u32;
        let (mut number, mut allowed) = (0, WINDOW);
        let mut before_notice = Some(before_notice);
        while stream.at() < total {
            let bytes = most.min(total - stream.at());
            self.way
                .put([turn, number], bytes, |room| stream.fill(room));
            number += 1;
            let is_last = stream.at() == total;
            if is_last || number == allowed || number.is_multiple_of(WINDOW / 4) {
                if let Some(tell) = before_notice.take() {
                    tell();
                }
                self.way.flush();
            }
            while !is_last && number == allowed {
                let numbers = self.way.take(|numbers, _| numbers);
                assert!(
                    numbers == [turn, MORE],
                    "{numbers:?} instead of leave to go on"
                );
                allowed += WINDOW / 2;
            }
        }
        // Leave that came for packets that there were not.
        while allowed + WINDOW / 2 < number + WINDOW {
            let numbers = self.way.take(|numbers, _| numbers);
            assert!(
                numbers == [turn, MORE],
                "{numbers:?} instead of leave to go on"
            );
            allowed += WINDOW / 2;
        }
        Ok(())
    }

    fn receive(&mut self, message: &Message, on_notice: impl FnOnce()) -> Result<(), PeerDied> {
        let mut stream = Stream::new(message.seed);
        let (total, most) = (message.bytes as usize, self.way.most_data());
        let turn = message.turn as u32;
        let mut number = 0;
        let mut on_notice = Some(on_notice);
        while stream.at() < total {
            let bytes = most.min(total - stream.at());
            self.way.take(|numbers, data| {
                if let Some(tell) = on_notice.take() {
                    tell();
                }
                assert!(
                    numbers == [turn, number],
                    "{numbers:?} instead of {:?}",
                    [turn, number]
                );
                let data = data
                    .get(..bytes)
                    .expect("a packet is as long as it was sent");
                if let Err(int) = stream.check(data) {
                    panic!("int {int} of turn {turn} is wrong");
                }
            });
            number += 1;
            if number.is_multiple_of(WINDOW / 2) && stream.at() < total {
                self.way.put([turn, MORE], 0, |_| ());
                self.way.flush();
            }
        }
        Ok(())
    }

    fn copied(&mut self) -> [u64; 2] {
        let arrived = self.way.card().receiver.arrived();
        [arrived.buffers, arrived.bytes]
    }
}

/// Raw Ethernet frames.
pub(crate) struct RawFrames {
    card: Card,
    peer: Mac,
}

impl RawFrames {
    /// Opens the card and learns the peer's address from the region.
    pub(crate) fn open(side: &Side<'_>, waiting: Waiting) -> Result<RawFrames, PeerDied> {
        let card = card(waiting);
        let mut own = [0; 8];
        own[..6].copy_from_slice(&card.address());
        let cell = |role: u32| side.cell(ADDRESSES + u64::from(role) * 8);
        cell(side.role).store(u64::from_le_bytes(own), Ordering::Relaxed);
        side.meet()?;
        let theirs = cell(1 - side.role).load(Ordering::Relaxed).to_le_bytes();
        let mut peer = BROADCAST;
        peer.copy_from_slice(&theirs[..6]);
        Ok(RawFrames { card, peer })
    }
}

impl Way for RawFrames {
    fn most_data(&self) -> usize {
        frames::most_data(&self.card) & !3
    }

    fn put(&mut self, numbers: [u32; 2], bytes: usize, fill: impl FnOnce(&mut [u8])) {
        frames::send(&mut self.card, self.peer, numbers, bytes, fill);
    }

    fn flush(&mut self) {
        self.card.transmitter.flush();
    }

    fn take<R>(&mut self, taker: impl FnOnce([u32; 2], &[u8]) -> R) -> R {
        // Most often it is here already, or comes without a look at the clock.
        let mut taker = Some(taker);
        loop {
            let took = frames::take(&mut self.card, |frame| {
                taker.take().map(|taker| taker(frame.numbers, frame.data))
            });
            if let Some(Some(result)) = took {
                return result;
            }
            self.card.wait();
        }
    }

    fn card(&mut self) -> &mut Card {
        &mut self.card
    }
}

/// UDP datagrams.
pub(crate) struct Datagrams {
    stack: Stack,
    socket: UdpId,
    peer: stack::Peer,
}

/// Bytes of the numbers in a datagram.
const NUMBERS: usize = 8;
const PORT: u16 = 7777;

impl Datagrams {
    pub(crate) fn open(side: &Side<'_>, mut stack: Stack) -> Result<Datagrams, PeerDied> {
        stack.patience_ms = PATIENCE_MS;
        let opened = stack.udp(PORT);
        let (Ok(socket), Ok(peer)) = (opened, stack::peer()) else {
            panic!("no socket, or no peer= on the command line");
        };
        side.meet()?;
        let mut own = Datagrams {
            stack,
            socket,
            peer: (peer, PORT).into(),
        };
        // Addresses are asked for now, not in the first round.
        if side.role == PING {
            own.put([0, 0], 0, |_| ());
            own.flush();
            own.take(|_, _| ());
        } else {
            own.take(|_, _| ());
            own.put([0, 0], 0, |_| ());
            own.flush();
        }
        side.meet()?;
        Ok(own)
    }
}

impl Way for Datagrams {
    fn most_data(&self) -> usize {
        (self.stack.longest_datagram() - NUMBERS) & !3
    }

    fn put(&mut self, numbers: [u32; 2], bytes: usize, fill: impl FnOnce(&mut [u8])) {
        let mut fill = Some(fill);
        loop {
            let put = self
                .stack
                .queue_datagram(self.socket, self.peer, NUMBERS + bytes, |room| {
                    let (head, data) = room.split_at_mut(NUMBERS);
                    head[..4].copy_from_slice(&numbers[0].to_le_bytes());
                    head[4..].copy_from_slice(&numbers[1].to_le_bytes());
                    if let Some(fill) = fill.take() {
                        fill(data);
                    }
                });
            match put {
                Ok(true) => return,
                Ok(false) => self.flush(),
                Err(error) => panic!("a datagram of {bytes} bytes: {error}"),
            }
        }
    }

    fn flush(&mut self) {
        self.stack.work();
    }

    fn take<R>(&mut self, taker: impl FnOnce([u32; 2], &[u8]) -> R) -> R {
        let took = self.stack.receive_from(self.socket, |_, bytes| {
            let number = |at: usize| {
                let bytes = bytes
                    .get(at..at + 4)
                    .and_then(|bytes| bytes.try_into().ok());
                u32::from_le_bytes(bytes.unwrap_or_default())
            };
            taker(
                [number(0), number(4)],
                bytes.get(NUMBERS..).unwrap_or_default(),
            )
        });
        match took {
            Ok(result) => result,
            Err(Error::TimedOut) => panic!("a datagram is lost"),
            Err(error) => panic!("no datagram: {error}"),
        }
    }

    fn card(&mut self) -> &mut Card {
        self.stack.card()
    }
}
