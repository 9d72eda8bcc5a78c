//! A member that is reset while another waits for it, by every kind of wait: the waiter must be told that the life it waited for has ended,
//! although whoever looks finds the member alive.
//!
//! Member 1 leads one life for each kind of wait: it shows that it is there, gives member 0 time to begin, and resets itself by INIT. Its last
//! life ends well.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering;

use nagaya_guests::check;
use nagaya_guests::meeting::{FREE, LONG_MS, Meeting, SLOT_COUNT};
use nagaya_rt::sync::{
    BarrierError, Consumer, GroupPeers, Life, LockError, Patience, PeerDied, Producer, QueueError,
    QueueHeader, QueueSlot, Receiver, RingError, Sender, WaitError, spin_for,
};
use nagaya_rt::{Errno, apic, group, hypercall, time};

nagaya_rt::entry!(main);

/// How many lives have begun.
const LIVES: u64 = FREE;
/// The life that member 0 is about to wait for.
const READY: u64 = FREE + 8;
/// Never set.
const FLAG: u64 = FREE + 16;
const QUEUE: u64 = FREE + 64;
const QUEUE_SLOTS: u64 = FREE + 128;
const QUEUE_LENGTH: usize = 4;

/// A kind of wait, as member 0 does it. What it answers of its peer's death.
type Wait = fn(&Meeting) -> Result<PeerDied, &'static str>;

const WAITS: [(&str, Wait); 7] = [
    ("flag", flag),
    ("empty-ring", empty_ring),
    ("full-ring", full_ring),
    ("barrier", barrier),
    ("lock", lock),
    ("empty-queue", empty_queue),
    ("full-queue", full_queue),
];

fn main() -> Result<(), Errno> {
    let meeting = Meeting::join()?;
    if meeting.me == 0 {
        watch(&meeting);
    } else {
        live(&meeting)?;
    }
    check::finish();
}

/// Member 1.
fn live(meeting: &Meeting) -> Result<(), Errno> {
    let life = meeting.cell(LIVES).load(Ordering::Acquire) + 1;
    check::equal("incarnation-of-this-life", group::incarnation(1), life);
    let what = WAITS.get(life as usize - 1).map(|(what, _)| *what);
    if what == Some("lock") {
        core::mem::forget(meeting.lock().lock(1, &GroupPeers));
    }
    meeting.cell(LIVES).store(life, Ordering::Release);
    if what.is_none() {
        return Ok(());
    }
    let deadline = time::Deadline::after_ms(LONG_MS);
    while meeting.cell(READY).load(Ordering::Acquire) != life {
        assert!(!deadline.has_passed(), "member 0 does not begin to wait");
        time::pause();
    }
    // On one CPU the other one runs meanwhile.
    while hypercall::wait(2_000_000) != Err(Errno::TimedOut) {}
    apic::reset_vm()
}

/// Member 0.
fn watch(meeting: &Meeting) {
    meeting.await_member(1);
    for (life, (what, wait)) in (1..).zip(WAITS) {
        await_life(meeting, life);
        meeting.cell(READY).store(life, Ordering::Release);
        let died = PeerDied {
            member: 1,
            incarnation: life,
        };
        check::equal(what, wait(meeting), Ok(died));
    }
    // If this one ended before, the last life would take its index.
    await_life(meeting, WAITS.len() as u64 + 1);
}

fn await_life(meeting: &Meeting, life: u64) {
    let deadline = time::Deadline::after_ms(LONG_MS);
    while meeting.cell(LIVES).load(Ordering::Acquire) != life {
        assert!(!deadline.has_passed(), "life {life} does not begin");
        time::pause();
    }
}

fn flag(meeting: &Meeting) -> Result<PeerDied, &'static str> {
    let ready = || (meeting.cell(FLAG).load(Ordering::Acquire) != 0).then_some(());
    match spin_for(&GroupPeers, 1, Patience::Endless, ready) {
        Err(WaitError::PeerDied(died)) => Ok(died),
        _ => Err("another end of the wait for a flag"),
    }
}

fn empty_ring(meeting: &Meeting) -> Result<PeerDied, &'static str> {
    let (header, slots) = meeting.ring();
    match Consumer::new(header, slots, 1).pop(&GroupPeers, Patience::Endless) {
        Err(RingError::PeerDied(died)) => Ok(died),
        _ => Err("another end of the wait for a value"),
    }
}

fn full_ring(meeting: &Meeting) -> Result<PeerDied, &'static str> {
    let (header, slots) = meeting.ring();
    let mut producer = Producer::new(header, slots, 1);
    for value in 0..SLOT_COUNT as u64 {
        if producer
            .push(value, &GroupPeers, Patience::Endless)
            .is_err()
        {
            return Err("there is room at first");
        }
    }
    match producer.push(0, &GroupPeers, Patience::Endless) {
        Err(RingError::PeerDied(died)) => Ok(died),
        _ => Err("another end of the wait for room"),
    }
}

fn barrier(meeting: &Meeting) -> Result<PeerDied, &'static str> {
    let met = meeting
        .barrier()
        .wait(0, 0b11, &GroupPeers, Patience::Endless);
    match met {
        Err(BarrierError::PeerDied(died)) => Ok(died),
        _ => Err("another end of the wait at the barrier"),
    }
}

fn lock(meeting: &Meeting) -> Result<PeerDied, &'static str> {
    match meeting.lock().lock(0, &GroupPeers) {
        Err(LockError::OwnerDied(recovery)) => {
            let died = recovery.died();
            drop(recovery.recovered());
            Ok(died)
        }
        _ => Err("another end of the wait for the lock"),
    }
}

fn queue(meeting: &Meeting) -> (&QueueHeader, &[QueueSlot]) {
    let region = &meeting.region;
    let header = region.cell(QUEUE).expect("inside the region");
    let slots = region.slice(QUEUE_SLOTS, QUEUE_LENGTH);
    (header, slots.expect("inside the region"))
}

fn empty_queue(meeting: &Meeting) -> Result<PeerDied, &'static str> {
    let (_, slots) = queue(meeting);
    let mut receiver = Receiver::new(slots, 0b10, &GroupPeers).ok_or("four slots")?;
    let Err(QueueError::PeerDied(died)) = receiver.receive(&GroupPeers, Patience::Endless) else {
        return Err("another end of the wait for a value");
    };
    // There was one producer.
    match receiver.receive(&GroupPeers, Patience::Endless) {
        Err(QueueError::NobodyLeft) => Ok(died),
        _ => Err("another end of the wait for nobody"),
    }
}

fn full_queue(meeting: &Meeting) -> Result<PeerDied, &'static str> {
    let (header, slots) = queue(meeting);
    let sender = Sender::new(header, slots, 0, 1, &GroupPeers).ok_or("four slots")?;
    for value in 0..QUEUE_LENGTH as u64 {
        if sender.send(value, &GroupPeers, Patience::Endless).is_err() {
            return Err("there is room at first");
        }
    }
    let life = Life::now(&GroupPeers, 1);
    match sender.send(0, &GroupPeers, Patience::Endless) {
        Err(QueueError::PeerDied(died)) if died == life.died() => Ok(died),
        _ => Err("another end of the wait for room"),
    }
}
