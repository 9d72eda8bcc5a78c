//! Rounds, runs and rows, the same for each transport.

use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use nagaya_guests::stats::{self, Row, Samples};
use nagaya_rt::sync::PeerDied;
use nagaya_rt::time::ticks;
use nagaya_rt::{ExitKind, args, group};

use crate::shared::{CONTROL, NOTIFIED_AT, Side, TOLD};
use crate::{PING, PONG};

/// What one side tells the other in a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    /// The round.
    pub(crate) turn: u64,
    /// Bytes of ints.
    pub(crate) bytes: u64,
    /// The first int; each is one more than the one before.
    pub(crate) seed: u32,
}

impl Message {
    fn of(turn: u64, role: u32, bytes: u64) -> Message {
        let seed = (turn as u32).wrapping_mul(0x9E37_79B1) ^ (role << 31);
        Message { turn, bytes, seed }
    }
}

/// A way for messages.
pub(crate) trait Transport {
    /// Writes all ints and tells the peer; `before_notice` is called just before it is told.
    fn send(&mut self, message: &Message, before_notice: impl FnOnce()) -> Result<(), PeerDied>;
    /// Waits for all ints and checks them; `on_notice` is called as soon as the peer's notice has come.
    fn receive(&mut self, message: &Message, on_notice: impl FnOnce()) -> Result<(), PeerDied>;
    /// Copies into this guest that the hypervisor has made so far, and their bytes.
    fn copied(&mut self) -> [u64; 2];
}

/// What is measured of one transport.
pub(crate) struct Session<'a> {
    side: &'a Side<'a>,
    name: &'static str,
}

/// Counts that both sides have, before and after.
struct Counts {
    exits: [u64; ExitKind::COUNT],
    copied: [u64; 2],
}

impl Counts {
    fn now(transport: &mut impl Transport) -> Counts {
        Counts {
            exits: group::exits(),
            copied: transport.copied(),
        }
    }

    fn since(&self, transport: &mut impl Transport) -> Counts {
        let mut copied = transport.copied();
        for (now, before) in copied.iter_mut().zip(self.copied) {
            *now -= before;
        }
        Counts {
            exits: stats::exits_since(&self.exits),
            copied,
        }
    }
}

impl<'a> Session<'a> {
    pub(crate) fn new(side: &'a Side<'a>, name: &'static str) -> Session<'a> {
        Session { side, name }
    }

    /// Measures each size on the command line.
    pub(crate) fn all_sizes(&self, transport: &mut impl Transport) -> Result<(), PeerDied> {
        for bytes in args::get("bytes").unwrap_or("32768").split(',') {
            let bytes: u64 = bytes.parse().unwrap_or(0);
            assert!(
                (4..=CONTROL).contains(&bytes) && bytes.is_multiple_of(4),
                "bytes={bytes}: want a multiple of 4 up to {CONTROL}"
            );
            if args::args().has("apart") {
                self.apart(transport, bytes)?;
            } else {
                self.measure(transport, bytes)?;
            }
        }
        self.side.meet()
    }

    fn rounds(bytes: u64) -> u64 {
        let most = args::number("budget", 50 << 20) / bytes;
        args::number("rounds", 1000).min(most).max(1)
    }

    fn measure(&self, transport: &mut impl Transport, bytes: u64) -> Result<(), PeerDied> {
        let rounds = Self::rounds(bytes);
        let runs = args::number("runs", 1).max(1);
        let warmup = args::number("warmup", 10).min(rounds);
        let total = rounds * runs;
        let mut samples = Samples::with_capacity(total as usize);
        let mut run_means = Vec::with_capacity(runs as usize);
        let mut before = Counts::now(transport);
        let mut sum = 0;
        for round in 0..warmup + total {
            if round == warmup {
                before = Counts::now(transport);
            }
            let turn = self.side.next_turn();
            let (question, answer) = (
                Message::of(turn, PING, bytes),
                Message::of(turn, PONG, bytes),
            );
            if self.side.role == PING {
                let start = ticks();
                transport.send(&question, || ())?;
                transport.receive(&answer, || ())?;
                let took = ticks() - start;
                if round >= warmup {
                    samples.push(took);
                    sum += took;
                    if (round - warmup + 1).is_multiple_of(rounds) {
                        run_means.push(sum / rounds);
                        sum = 0;
                    }
                }
            } else {
                transport.receive(&question, || ())?;
                transport.send(&answer, || ())?;
            }
        }
        let counts = self.both(before.since(transport))?;
        if self.side.role == PING {
            let row = Row {
                name: self.name,
                bytes,
                rounds: total,
                summary: samples.summary(),
                exits: &counts.exits,
                copied: counts.copied,
                run_means: &run_means,
            };
            row.report();
        }
        self.side.meet()
    }

    /// Counts of both sides: pong leaves its own in the region.
    fn both(&self, mut own: Counts) -> Result<Counts, PeerDied> {
        let cells = self
            .side
            .region
            .u64s(TOLD, ExitKind::COUNT + 2)
            .expect("inside the region");
        let (exits, copied) = cells.split_at(ExitKind::COUNT);
        let mine = own.exits.iter_mut().zip(exits);
        let all = mine.chain(own.copied.iter_mut().zip(copied));
        if self.side.role == PONG {
            for (count, cell) in all {
                cell.store(*count, Ordering::Relaxed);
            }
            self.side.meet()?;
        } else {
            self.side.meet()?;
            for (count, cell) in all {
                *count += cell.load(Ordering::Relaxed);
            }
        }
        Ok(own)
    }

    /// How long pong takes from ping's notice to seeing it, and from there to having checked all: two rows, without exits.
    fn apart(&self, transport: &mut impl Transport, bytes: u64) -> Result<(), PeerDied> {
        let rounds = Self::rounds(bytes);
        let warmup = args::number("warmup", 10).min(rounds);
        let mut notices = Samples::with_capacity(rounds as usize);
        let mut transfers = Samples::with_capacity(rounds as usize);
        let moment = self.side.cell(NOTIFIED_AT);
        for round in 0..warmup + rounds {
            let turn = self.side.next_turn();
            let (question, answer) = (
                Message::of(turn, PING, bytes),
                Message::of(turn, PONG, bytes),
            );
            if self.side.role == PING {
                transport.send(&question, || moment.store(ticks(), Ordering::Relaxed))?;
                transport.receive(&answer, || ())?;
            } else {
                let mut seen = 0;
                transport.receive(&question, || seen = ticks())?;
                let done = ticks();
                if round >= warmup {
                    notices.push(seen.saturating_sub(moment.load(Ordering::Relaxed)));
                    transfers.push(done - seen);
                }
                transport.send(&answer, || ())?;
            }
        }
        if self.side.role == PONG {
            for (part, samples) in [("notification", notices), ("transfer", transfers)] {
                let name = format!("{}/{part}", self.name);
                stats::report(
                    &name,
                    bytes,
                    rounds,
                    &samples.summary(),
                    &[0; ExitKind::COUNT],
                );
            }
        }
        self.side.meet()
    }
}
