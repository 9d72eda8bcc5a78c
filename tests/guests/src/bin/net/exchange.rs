//! Questions and answers of random sizes, each of which is checked.

use nagaya_guests::check;
use nagaya_guests::frames::{self, Frame};
use nagaya_guests::stream::Stream;
use nagaya_rt::net::card::{Card, Mac};
use nagaya_rt::time::{Deadline, spin_ms};
use nagaya_rt::{ExitKind, args, group, println};

use super::{meet, random};

/// Questions that are on their way at most.
const WINDOW: u32 = 64;
/// The second number of frames.
const QUESTION: u32 = 1;
const ANSWER: u32 = 2;
const END: u32 = 3;
/// A question whose answer takes longer than any kick.
const HARD_QUESTION: u32 = 4;
/// How long.
const THINKING_MS: u64 = 2;

fn send(card: &mut Card, to: Mac, number: u32, kind: u32) {
    let bytes = size(frames::most_data(card), [number, kind]);
    frames::send(card, to, [number, kind], bytes, |room| {
        Stream::new(random(number ^ kind << 30)).fill(room);
    });
}

/// Bytes of a frame's data. They are not in the frame, which is padded when it is short.
fn size(most: usize, [number, kind]: [u32; 2]) -> usize {
    random(number + kind * 0x0100_0000) as usize % (most + 1)
}

/// Whether a frame is what was to come.
fn is_right(frame: &Frame<'_>, bytes: usize) -> bool {
    let [number, kind] = frame.numbers;
    let data = frame.data.get(..bytes);
    data.is_some_and(|data| Stream::new(random(number ^ kind << 30)).check(data).is_ok())
}

/// What came: the frame's numbers, and whether it was right.
fn next(card: &mut Card, kinds: &[u32]) -> Option<([u32; 2], bool)> {
    let deadline = Deadline::after_ms(10_000);
    let most = frames::most_data(card);
    loop {
        let found = frames::await_frame(card, deadline, |frame| {
            let is_other = frames::is_greeting(&frame) || !kinds.contains(&frame.numbers[1]);
            let bytes = size(most, frame.numbers);
            (!is_other).then(|| (frame.numbers, is_right(&frame, bytes)))
        })?;
        if found.is_some() {
            return found;
        }
    }
}

/// Asks `count` questions, several at a time, and checks the answers.
pub(super) fn ask() {
    let (mut card, peer) = meet();
    let count = args::number("count", 5_000) as u32;
    let (mut asked, mut wrong, mut answered) = (0, 0_u32, 0);
    let start = nagaya_rt::time::ticks();
    let exits = group::exits();
    while answered < count {
        while asked < count && asked - answered < WINDOW {
            send(&mut card, peer, asked, QUESTION);
            asked += 1;
        }
        card.transmitter.flush();
        let Some(([number, _], is_right)) = next(&mut card, &[ANSWER]) else {
            println!("FAIL no answer to {answered} of {asked}");
            break;
        };
        wrong += u32::from(!is_right || number != answered);
        answered += 1;
    }
    let ticks = nagaya_rt::time::ticks() - start;
    let after = group::exits();
    println!(
        "{} ticks for each question with its answer",
        ticks / u64::from(count)
    );
    for (kind, (after, before)) in ExitKind::ALL.iter().zip(after.iter().zip(exits)) {
        if *after != before {
            println!("exits: {} {}", kind.name(), after - before);
        }
    }
    check::equal("answers", answered, count);
    check::equal("all-right", wrong, 0);
    if args::args().has("polled") {
        let halts = after[ExitKind::Halt as usize] - exits[ExitKind::Halt as usize];
        check::equal(
            "no-interrupt-while-polling",
            (card.interrupts(), halts),
            (0, 0),
        );
    } else {
        check::holds("woken-by-interrupts", is_woken(&mut card, peer, count));
    }
    end(&mut card, peer);
}

/// Whether an answer that is long in coming ends a sleep. With many questions under way there may be none: the next answer is there
/// before the last kick has ended.
fn is_woken(card: &mut Card, peer: Mac, number: u32) -> bool {
    let halts = || group::exits()[ExitKind::Halt as usize];
    let (halts_before, interrupts_before) = (halts(), card.interrupts());
    send(card, peer, number, HARD_QUESTION);
    card.transmitter.flush();
    let answer = next(card, &[ANSWER]);
    answer == Some(([number, ANSWER], true))
        && halts() > halts_before
        && card.interrupts() > interrupts_before
}

fn end(card: &mut Card, peer: Mac) {
    send(card, peer, 0, END);
    card.transmitter.flush();
    let patience = Deadline::after_ms(1_000);
    while !card.transmitter.is_idle() && !patience.has_passed() {
        nagaya_rt::time::pause();
    }
    check::holds("buffers-come-back", card.transmitter.is_idle());
}

/// Answers questions until it hears the end.
pub(super) fn answer() {
    let (mut card, peer) = meet();
    let mut wrong = 0_u32;
    loop {
        let Some(([number, kind], is_right)) = next(&mut card, &[QUESTION, HARD_QUESTION, END])
        else {
            check::holds("hears-the-end", false);
            return;
        };
        wrong += u32::from(!is_right);
        if kind == END {
            break;
        }
        if kind == HARD_QUESTION {
            spin_ms(THINKING_MS);
        }
        send(&mut card, peer, number, ANSWER);
        card.transmitter.flush();
    }
    check::equal("all-right", wrong, 0);
}

/// Holds the card's message back, by the entry's mask and by that of the whole function, while an answer comes.
pub(super) fn masks() {
    let (mut card, peer) = meet();
    for (round, whole) in [false, true, false].into_iter().enumerate() {
        let mask = |card: &mut Card, is_masked: bool| {
            if whole {
                card.device().mask_all(is_masked);
            } else {
                card.device().mask(0, is_masked);
            }
        };
        // Late greetings.
        while frames::take(&mut card, |_| ()).is_some() {}
        // An interrupt that has been sent already is taken now.
        nagaya_rt::traps::enable_interrupts();
        mask(&mut card, true);
        let _ = card.receiver.want_interrupt();
        spin_ms(1);
        let before = card.interrupts();
        send(&mut card, peer, round as u32, QUESTION);
        card.transmitter.flush();
        let patience = Deadline::after_ms(2_000);
        while !card.receiver.has_frame() && !patience.has_passed() {
            nagaya_rt::time::pause();
        }
        spin_ms(5);
        check::holds("answer-comes-masked", card.receiver.has_frame());
        check::equal("masked", card.interrupts() - before, 0);
        check::holds("pending", card.device().is_pending(0));
        mask(&mut card, false);
        spin_ms(5);
        check::equal("unmasked", card.interrupts() - before, 1);
        check::holds("not-pending", !card.device().is_pending(0));
        nagaya_rt::traps::disable_interrupts();
        let answer = next(&mut card, &[ANSWER]);
        check::equal("answer", answer, Some(([round as u32, ANSWER], true)));
    }
    end(&mut card, peer);
}
