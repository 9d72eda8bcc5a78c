//! Raw Ethernet frames of the test guests: an EtherType for local experiments (IEEE 802, 0x88B5), two numbers, and data.

use nagaya_rt::net::card::{BROADCAST, Card, Mac};
use nagaya_rt::net::offload::Header;
use nagaya_rt::time::Deadline;

const ETHER_TYPE: [u8; 2] = [0x88, 0xB5];
/// Bytes before the data: Ethernet's header and two numbers. The data is aligned to 4 in the card's buffers.
pub const HEADER_BYTES: usize = 22;
/// The shortest frame that Ethernet knows, without its check sequence.
const LEAST_BYTES: usize = 60;

/// Numbers of the first word of a greeting and of its answer.
const HELLO: u32 = 0x4845_4C4F;
const WELCOME: u32 = 0x5745_4C43;

/// A frame as it came.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The sender.
    pub from: Mac,
    /// The two numbers.
    pub numbers: [u32; 2],
    /// What follows, with padding if it is short.
    pub data: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads a frame of ours; `None` for other people's.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Frame<'a>> {
        if bytes.get(12..14)? != ETHER_TYPE {
            return None;
        }
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Frame {
            from: bytes.get(6..12)?.try_into().ok()?,
            numbers: [number(14)?, number(18)?],
            data: bytes.get(HEADER_BYTES..)?,
        })
    }
}

/// Bytes of data that fit into a frame of this card.
#[must_use]
pub fn most_data(card: &Card) -> usize {
    usize::from(card.mtu()) + 14 - HEADER_BYTES
}

/// Queues a frame with `bytes` of data, which `fill` writes; it waits for a buffer. Goes with the next flush.
pub fn send(
    card: &mut Card,
    to: Mac,
    numbers: [u32; 2],
    bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let from = card.address();
    if !card.transmitter.has_room() {
        card.wait_for_room();
    }
    let Some(mut outgoing) = card.transmitter.buffer() else {
        panic!("a send buffer that was there is gone");
    };
    let frame = outgoing.frame();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&ETHER_TYPE);
    frame[14..18].copy_from_slice(&numbers[0].to_le_bytes());
    frame[18..22].copy_from_slice(&numbers[1].to_le_bytes());
    fill(&mut frame[HEADER_BYTES..HEADER_BYTES + bytes]);
    outgoing.send((HEADER_BYTES + bytes).max(LEAST_BYTES), Header::default());
}

/// Takes the next frame of ours that is here.
pub fn take<R>(card: &mut Card, taker: impl FnOnce(Frame<'_>) -> R) -> Option<R> {
    while let Some(received) = card.receiver.take() {
        if let Some(frame) = received.whole().and_then(Frame::parse) {
            return Some(taker(frame));
        }
    }
    None
}

/// Waits for a frame of ours up to the deadline.
pub fn await_frame<R>(
    card: &mut Card,
    deadline: Deadline,
    taker: impl FnOnce(Frame<'_>) -> R,
) -> Option<R> {
    let mut taker = Some(taker);
    loop {
        if let Some(result) = take(card, |frame| taker.take().map(|taker| taker(frame))) {
            return result;
        }
        if !card.wait_or(deadline) {
            return None;
        }
    }
}

/// Finds the one other guest on the segment that greets: its address. Both sides call it.
#[must_use]
pub fn meet(card: &mut Card) -> Option<Mac> {
    let end = Deadline::after_ms(20_000);
    let (mut peer, mut is_known) = (None, false);
    // Done when we know the peer and it has told that it knows us.
    while !end.has_passed() {
        let word = if peer.is_some() { WELCOME } else { HELLO };
        send(card, BROADCAST, [word, 0], 0, |_| ());
        card.transmitter.flush();
        if let (Some(peer), true) = (peer, is_known) {
            return Some(peer);
        }
        let came = await_frame(card, Deadline::after_ms(20), |frame| {
            (frame.from, frame.numbers[0])
        });
        if let Some((from, word @ (HELLO | WELCOME))) = came {
            peer = Some(from);
            is_known |= word == WELCOME;
        }
    }
    None
}

/// Whether a frame is part of a greeting, of which some may still come afterwards.
#[must_use]
pub fn is_greeting(frame: &Frame<'_>) -> bool {
    matches!(frame.numbers[0], HELLO | WELCOME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_peoples_frames_and_cut_ones_are_none_of_ours() {
        let mut bytes = [0; 64];
        assert!(Frame::parse(&bytes).is_none());
        bytes[12..14].copy_from_slice(&ETHER_TYPE);
        bytes[14..22].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0]);
        let frame = Frame::parse(&bytes).expect("one of ours");
        assert_eq!((frame.numbers, frame.data.len()), ([1, 2], 42));
        for cut in 0..HEADER_BYTES {
            assert!(Frame::parse(&bytes[..cut]).is_none());
        }
    }
}
