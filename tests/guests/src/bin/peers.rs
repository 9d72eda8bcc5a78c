//! What member 0 sees of member 1, which ends or hangs with the lock held and three words in the ring.
//!
//! Command line of both: `how=exit|triple-fault|write-group-page|panic|stuck`, for `exit` with `code=` (0), for `stuck` with `ms=` (50).
#![cfg_attr(target_os = "none", no_std, no_main)]

use nagaya_guests::check;
use nagaya_guests::meeting::{LONG_MS, Meeting, SLOT_COUNT, long};
use nagaya_rt::probe::ReadOnlyPage;
use nagaya_rt::sync::{
    BarrierError, Consumer, GroupPeers, LockError, Patience, PeerDied, Producer, RingError,
};
use nagaya_rt::{Errno, MemberState, args, group, hypercall, probe, time, traps};

nagaya_rt::entry!(main);

const DIED: PeerDied = PeerDied {
    member: 1,
    incarnation: 1,
};

fn main() -> Result<(), Errno> {
    let meeting = Meeting::join()?;
    match (meeting.me, args::get("how").unwrap_or("")) {
        (0, "stuck") => watch_stuck(&meeting),
        (0, how) => watch_end(&meeting, how),
        (_, how) => hold_and(&meeting, how),
    }
    check::finish();
}

/// Member 1.
fn hold_and(meeting: &Meeting, how: &str) {
    let guard = meeting
        .lock()
        .lock(meeting.me, &GroupPeers)
        .expect("nobody has it");
    let (header, slots) = meeting.ring();
    let mut producer = Producer::new(header, slots, 0);
    for word in 0..3 {
        assert_eq!(producer.try_push(word), Ok(true));
    }
    meeting.set_stage(1);
    match how {
        "exit" => hypercall::exit(args::number("code", 0) as i64),
        "triple-fault" => probe::triple_fault(),
        "write-group-page" => {
            probe::write_read_only(ReadOnlyPage::Group);
            panic!("the group page was written to");
        }
        "panic" => panic!("as the test wants"),
        "stuck" => {
            traps::disable_interrupts();
            time::spin_ms(args::number("ms", 50));
            drop(guard);
            // The lock is free before member 1 is gone, so that member 0 must not see a death.
            meeting.await_stage(2, 0);
        }
        other => panic!(
            "how={other} on the command line: want exit, triple-fault, write-group-page, panic or stuck"
        ),
    }
}

/// Member 0, while member 1 lives and hangs.
fn watch_stuck(meeting: &Meeting) {
    meeting.await_member(1);
    meeting.await_stage(1, 1);
    let briefly = time::ms_to_ticks(1);
    let held = meeting.lock().try_lock_for(0, &GroupPeers, briefly);
    check::holds(
        "stuck-holder-times-out",
        matches!(held, Err(LockError::TimedOut)),
    );
    let missing = meeting
        .barrier()
        .wait(0, 0b11, &GroupPeers, Patience::Ticks(briefly));
    check::holds(
        "stuck-peer-misses-the-barrier",
        matches!(missing, Err(BarrierError::TimedOut(_))),
    );
    let (header, slots) = meeting.ring();
    let mut consumer = Consumer::new(header, slots, 1);
    let words = [(); 3].map(|()| consumer.try_pop());
    check::equal(
        "stuck-peers-words",
        words,
        [Ok(Some(0)), Ok(Some(1)), Ok(Some(2))],
    );
    let none = consumer.pop(&GroupPeers, Patience::Ticks(briefly));
    check::equal("stuck-peers-ring-times-out", none, Err(RingError::TimedOut));
    check::holds(
        "lock-of-a-slow-holder",
        meeting.lock().lock(0, &GroupPeers).is_ok(),
    );
    meeting.set_stage(2);
}

/// Member 0, when member 1 ends.
fn watch_end(meeting: &Meeting, how: &str) {
    meeting.await_member(1);
    // Not by `await_stage`: member 1 may be gone before it is looked for.
    let deadline = time::Deadline::after_ms(LONG_MS);
    while group::is_alive(1) && !deadline.has_passed() {
        // Woken by the change, or looks again.
        let _ = hypercall::wait(1_000_000);
    }
    let promised = match (how, args::number("code", 0) as i64) {
        ("exit", code) => (MemberState::Exited, code),
        ("panic", _) => (MemberState::Exited, nagaya_rt::EXIT_PANIC),
        _ => (MemberState::Died, group::member_exit_code(1)),
    };
    check::equal(
        "state-of-the-dead",
        (group::member_state(1), group::member_exit_code(1)),
        promised,
    );
    check::equal(
        "doorbell-to-the-dead",
        hypercall::doorbell(1),
        Err(Errno::NoPeer),
    );

    let (header, slots) = meeting.ring();
    let mut consumer = Consumer::new(header, slots, 1);
    let words = [(); 3].map(|()| consumer.pop(&GroupPeers, long()));
    check::equal("last-words", words, [Ok(0), Ok(1), Ok(2)]);
    check::equal(
        "ring-of-the-dead",
        consumer.pop(&GroupPeers, long()),
        Err(RingError::PeerDied(DIED)),
    );
    let mut producer = Producer::new(header, slots, 1);
    let filled =
        (0..2 * SLOT_COUNT as u64).try_for_each(|word| producer.push(word, &GroupPeers, long()));
    check::equal(
        "full-ring-of-the-dead",
        filled,
        Err(RingError::PeerDied(DIED)),
    );
    let met = meeting.barrier().wait(0, 0b11, &GroupPeers, long());
    check::equal(
        "barrier-with-the-dead",
        met,
        Err(BarrierError::PeerDied(DIED)),
    );
    match meeting.lock().lock(0, &GroupPeers) {
        Err(LockError::OwnerDied(recovery)) => {
            check::equal("lock-of-the-dead", recovery.died(), DIED);
            drop(recovery.recovered());
        }
        other => check::equal("lock-of-the-dead", other.is_ok(), false),
    }
    check::holds(
        "lock-is-whole-again",
        meeting.lock().lock(0, &GroupPeers).is_ok(),
    );
}
