//! The region: cells by which the two sides keep step, and the transport that needs nothing else.

use core::cell::Cell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nagaya_guests::stream::{check_cells, fill_cells};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::{GroupPeers, Life, PeerDied, Peers, spin_until};
use nagaya_rt::{Errno, hypercall, is_bare, traps};

use crate::PING;
use crate::measure::{Message, Transport};

/// Cells on the region's last page, which the largest transfer leaves free; each on a cache line of its own.
pub(crate) const CONTROL: u64 = 1024 * 4096;
const PING_TURN: u64 = CONTROL;
const PONG_TURN: u64 = CONTROL + 64;
pub(crate) const LIST_HEAD: u64 = CONTROL + 128;
/// What the other side is told of: exits and copies of pong, addresses, the moment of a notification.
pub(crate) const TOLD: u64 = CONTROL + 256;
pub(crate) const ADDRESSES: u64 = CONTROL + 512;
pub(crate) const NOTIFIED_AT: u64 = CONTROL + 640;

/// All peers of a bare loop live: they are loops of the same run.
pub(crate) struct Alive;

impl Peers for Alive {
    fn is_alive(&self, member: u32) -> bool {
        is_bare() || GroupPeers.is_alive(member)
    }

    /// Loops of one run have one life.
    fn incarnation(&self, member: u32) -> u64 {
        GroupPeers.incarnation(member)
    }
}

/// One of the two, with its flags in the region.
pub(crate) struct Side<'a> {
    pub(crate) region: &'a SharedRegion,
    pub(crate) role: u32,
    pub(crate) peer: u32,
    life: Life,
    mine: &'a AtomicU64,
    theirs: &'a AtomicU64,
    turn: Cell<u64>,
}

impl<'a> Side<'a> {
    pub(crate) fn new(region: &'a SharedRegion, role: u32, peer: u32) -> Side<'a> {
        let (mine, theirs) = if role == PING {
            (PING_TURN, PONG_TURN)
        } else {
            (PONG_TURN, PING_TURN)
        };
        Side {
            region,
            role,
            peer,
            life: Life::now(&Alive, peer),
            mine: cell(region, mine),
            theirs: cell(region, theirs),
            turn: Cell::new(0),
        }
    }

    /// The turn that is on. Both sides count alike.
    pub(crate) fn turn(&self) -> u64 {
        self.turn.get()
    }

    /// Begins the next turn; its number.
    pub(crate) fn next_turn(&self) -> u64 {
        self.turn.set(self.turn.get() + 1);
        self.turn.get()
    }

    pub(crate) fn cell(&self, offset: u64) -> &'a AtomicU64 {
        cell(self.region, offset)
    }

    /// Tells the peer that my part of the turn is complete.
    pub(crate) fn publish(&self, turn: u64) {
        self.mine.store(turn, Ordering::Release);
    }

    fn is_complete(&self, turn: u64) -> Option<()> {
        (self.theirs.load(Ordering::Acquire) >= turn).then_some(())
    }

    /// Waits until the peer's part of the turn is complete, without an exit.
    pub(crate) fn await_turn(&self, turn: u64) -> Result<(), PeerDied> {
        spin_until(&Alive, self.peer, || self.is_complete(turn))
    }

    /// Both sides have come here. One turn, outside what is measured.
    pub(crate) fn meet(&self) -> Result<(), PeerDied> {
        let turn = self.next_turn();
        self.publish(turn);
        self.await_turn(turn)
    }

    fn await_doorbell(&self, turn: u64) -> Result<(), PeerDied> {
        loop {
            if self.is_complete(turn).is_some() {
                return Ok(());
            }
            if !self.life.is_on(&Alive) {
                return Err(self.life.died());
            }
            // HLT ends at once if a doorbell is pending already, so that none is missed; `wait` clears what is pending.
            traps::halt();
            let _ = hypercall::wait(0);
        }
    }
}

fn ring(peer: u32) {
    while let Err(errno) = hypercall::doorbell(peer) {
        match errno {
            Errno::Again => core::hint::spin_loop(),
            other => panic!("doorbell to {peer}: {other}"),
        }
    }
}

fn cell(region: &SharedRegion, offset: u64) -> &AtomicU64 {
    region
        .u64(offset)
        .expect("control cells lie inside the region")
}

/// Messages in the region itself.
pub(crate) struct Shared<'a> {
    side: &'a Side<'a>,
    rings: bool,
}

impl<'a> Shared<'a> {
    pub(crate) fn polled(side: &'a Side<'a>) -> Shared<'a> {
        Shared { side, rings: false }
    }

    pub(crate) fn doorbell(side: &'a Side<'a>) -> Shared<'a> {
        Shared { side, rings: true }
    }

    fn ints(&self, message: &Message) -> &'a [AtomicU32] {
        let count = (message.bytes / 4) as usize;
        let ints = self.side.region.u32s(0, count);
        ints.expect("the transfer fits into the region")
    }
}

impl Transport for Shared<'_> {
    fn send(&mut self, message: &Message, before_notice: impl FnOnce()) -> Result<(), PeerDied> {
        fill_cells(self.ints(message), message.seed);
        before_notice();
        self.side.publish(message.turn);
        if self.rings {
            ring(self.side.peer);
        }
        Ok(())
    }

    fn receive(&mut self, message: &Message, on_notice: impl FnOnce()) -> Result<(), PeerDied> {
        if self.rings {
            self.side.await_doorbell(message.turn)?;
        } else {
            self.side.await_turn(message.turn)?;
        }
        on_notice();
        if let Err(int) = check_cells(self.ints(message), message.seed) {
            panic!("int {int} of turn {} is wrong", message.turn);
        }
        Ok(())
    }

    fn copied(&mut self) -> [u64; 2] {
        [0; 2]
    }
}
