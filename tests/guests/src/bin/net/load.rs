//! Load that goes on while a card is reset or a peer dies.

use nagaya_guests::check;
use nagaya_guests::frames;
use nagaya_guests::stream::Stream;
use nagaya_rt::net::card::{Card, Mac};
use nagaya_rt::time::Deadline;
use nagaya_rt::{args, group, hypercall, println};

use super::{meet, options};

const LOAD: u32 = 1;
const STOP: u32 = 2;
const BYTES: usize = 400;

fn burst(card: &mut Card, to: Mac, first: u32) {
    for number in first..first + 16 {
        frames::send(card, to, [number, LOAD], BYTES, |room| {
            Stream::new(number).fill(room)
        });
    }
    card.transmitter.flush();
}

/// Sends without a pause until it is told to stop.
pub(super) fn load() {
    let (mut card, peer) = meet();
    let deadline = Deadline::after_ms(60_000);
    let (mut number, mut came, mut stopped) = (0, 0_u64, false);
    while !stopped && !deadline.has_passed() {
        burst(&mut card, peer, number);
        number = number.wrapping_add(16);
        while let Some(kind) = frames::take(&mut card, |frame| frame.numbers[1]) {
            stopped |= kind == STOP;
            came += u64::from(kind == LOAD);
        }
    }
    println!("sent {number} frames, got {came}");
    check::holds("is-told-to-stop", stopped);
    check::holds("works-still", !card.device().needs_reset());
}

/// Resets its card again and again under load from both sides.
pub(super) fn reset() {
    let (mut card, peer) = meet();
    let resets = args::number("resets", 10);
    for round in 0..resets {
        let deadline = Deadline::after_ms(10_000);
        let (mut seen, mut wrong) = (0, 0_u32);
        while seen < 50 {
            let good = frames::await_frame(&mut card, deadline, |frame| {
                let [number, kind] = frame.numbers;
                let data = frame.data.get(..BYTES).unwrap_or_default();
                kind == LOAD && Stream::new(number).check(data).is_ok() && data.len() == BYTES
            });
            match good {
                Some(true) => seen += 1,
                // Greetings may still come in the first round.
                Some(false) => wrong += u32::from(round > 0),
                None => break,
            }
        }
        check::equal("frames-come", (seen, wrong), (50, 0));
        // Some are on their way when the card is reset.
        burst(&mut card, peer, 0);
        card = match card.restart(&options()) {
            Ok(card) => card,
            Err(error) => panic!("the card does not come back: {error}"),
        };
    }
    // A stop may be lost: the other's buffers are full.
    for _ in 0..20 {
        frames::send(&mut card, peer, [0, STOP], 0, |_| ());
        card.transmitter.flush();
        nagaya_rt::time::spin_ms(2);
    }
    check::holds("works-still", !card.device().needs_reset());
}

/// Ends in the middle of the load.
pub(super) fn victim() {
    let (mut card, peer) = meet();
    for _ in 0..100 {
        let _ = frames::await_frame(&mut card, Deadline::after_ms(5_000), |_| ());
    }
    burst(&mut card, peer, 0);
    nagaya_rt::console::flush();
    hypercall::exit(7)
}

/// Sends on while its peer dies, and afterwards.
pub(super) fn survivor() {
    let (mut card, peer) = meet();
    let other = args::number("other", 0) as u32;
    let deadline = Deadline::after_ms(30_000);
    let mut number = 0;
    while group::is_alive(other) && !deadline.has_passed() {
        burst(&mut card, peer, number);
        number += 16;
        while frames::take(&mut card, |_| ()).is_some() {}
    }
    check::holds("the-peer-dies", !group::is_alive(other));
    for _ in 0..32 {
        burst(&mut card, peer, number);
    }
    let patience = Deadline::after_ms(2_000);
    while !card.transmitter.is_idle() && !patience.has_passed() {
        nagaya_rt::time::pause();
    }
    check::holds("buffers-come-back", card.transmitter.is_idle());
    check::holds(
        "works-still",
        !card.device().needs_reset() && card.is_link_up(),
    );
}
