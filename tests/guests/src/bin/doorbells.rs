//! Doorbells and waiting, one case by `case=` on the command line.
//!
//! `answers` (members 0 and 1; with `throttled` where the group allows few): delivered, masked, absent, self, throttled.
//! `interrupt` (members 0 and 1): they come as interrupts to a running and to a halted member, and
//! a halt tells which it were. `timeouts` (any one member): poll and 1 ms.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_guests::check;
use nagaya_guests::meeting::{LONG_MS, Meeting};
use nagaya_rt::abi::ExitKind;
use nagaya_rt::hypercall::{self, Doorbells};
use nagaya_rt::{Errno, args, group, time, traps};

nagaya_rt::entry!(main);

static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
const VECTOR: u8 = 0x50;

fn main() -> Result<(), Errno> {
    let meeting = Meeting::join()?;
    match (args::get("case").unwrap_or(""), meeting.me) {
        ("answers", 0) => ask(&meeting),
        ("answers", _) => answer(&meeting)?,
        ("interrupt", 0) => be_interrupted(&meeting)?,
        ("interrupt", _) => interrupt(&meeting)?,
        ("timeouts", _) => timeouts(),
        (other, _) => panic!("case={other} on the command line is none of this guest's"),
    }
    check::finish();
}

fn ask(meeting: &Meeting) {
    meeting.await_member(1);
    meeting.await_stage(1, 1);
    check::equal("masked", hypercall::doorbell(1), Err(Errno::Busy));
    meeting.set_stage(2);
    meeting.await_stage(3, 1);
    check::equal("delivered", hypercall::doorbell(1), Ok(()));
    meeting.await_stage(4, 1);
    check::equal("absent", hypercall::doorbell(7), Err(Errno::NoPeer));
    check::holds("no-such-index", hypercall::doorbell(99).is_err());
    check::equal("self", hypercall::doorbell(0), Ok(()));
    check::equal(
        "self-is-told",
        hypercall::wait(0).map(|rang| rang & 1),
        Ok(1),
    );
    // This one, the other, and one that is not there.
    check::equal(
        "many",
        hypercall::doorbell_mask_many(0b1000_0011),
        Ok(0b1000_0000),
    );
    check::equal(
        "many-are-told",
        hypercall::wait(0).map(|rang| rang & 1),
        Ok(1),
    );
    check::equal(
        "many-beyond-members",
        hypercall::doorbell_mask_many(1 << 63),
        Err(Errno::Inval),
    );
    if args::get("throttled").is_some() {
        let refused = (0..1000)
            .filter(|_| hypercall::doorbell(1) == Err(Errno::Again))
            .count();
        check::holds("throttled", refused > 0);
        time::spin_ms(args::number("recover_ms", 100));
        check::equal("throttled-for-a-while-only", hypercall::doorbell(1), Ok(()));
    }
    meeting.set_stage(5);
}

fn answer(meeting: &Meeting) -> Result<(), Errno> {
    hypercall::doorbell_mask(Doorbells::Masked)?;
    meeting.set_stage(1);
    meeting.await_stage(2, 0);
    hypercall::doorbell_mask(Doorbells::Open)?;
    meeting.set_stage(3);
    // A change of the group may be told first.
    let mut rang = 0;
    while rang & 1 == 0 {
        rang = hypercall::wait(LONG_MS * 1_000_000)?;
    }
    check::equal("rung-while-waiting", rang & 1, 1);
    meeting.set_stage(4);
    meeting.await_stage(5, 0);
    Ok(())
}

fn be_interrupted(meeting: &Meeting) -> Result<(), Errno> {
    traps::set_handler(VECTOR, |_| {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    });
    meeting.await_member(1);
    meeting.await_stage(1, 1);
    // Changes of the group would come as interrupts, too.
    while hypercall::wait(0).is_ok() {}
    hypercall::doorbell_vector(u64::from(VECTOR))?;
    traps::enable_interrupts();
    meeting.set_stage(2);
    let deadline = time::Deadline::after_ms(LONG_MS);
    while INTERRUPTS.load(Ordering::Relaxed) == 0 && !deadline.has_passed() {
        time::pause();
    }
    check::equal(
        "interrupt-while-running",
        INTERRUPTS.load(Ordering::Relaxed),
        1,
    );
    // Kept out, it waits; the halt that lets it in ends at once.
    traps::disable_interrupts();
    meeting.set_stage(3);
    meeting.await_stage(4, 1);
    check::equal("interrupt-kept-out", INTERRUPTS.load(Ordering::Relaxed), 1);
    traps::halt_for_interrupt();
    check::equal("interrupt-let-in", INTERRUPTS.load(Ordering::Relaxed), 2);
    traps::disable_interrupts();
    meeting.set_stage(5);
    let deadline = time::Deadline::after_ms(LONG_MS);
    hypercall::set_deadline(deadline.tsc())?;
    // A doorbell that `wait` has not told of ends a halt, too; and a halt may end for other reasons.
    while INTERRUPTS.load(Ordering::Relaxed) == 2 && !deadline.has_passed() {
        let _ = hypercall::wait(0);
        traps::disable_interrupts();
        if INTERRUPTS.load(Ordering::Relaxed) == 2 {
            traps::halt_for_interrupt();
        }
    }
    check::equal(
        "interrupt-while-halted",
        INTERRUPTS.load(Ordering::Relaxed),
        3,
    );
    // A halt that tells what ended it: no call is needed to learn, and nothing is left for one.
    while hypercall::wait(0).is_ok() {}
    hypercall::halt_events(true)?;
    hypercall::set_deadline(time::Deadline::after_ms(LONG_MS).tsc())?;
    traps::disable_interrupts();
    meeting.set_stage(6);
    let exits = group::exits()[ExitKind::Hypercall as usize];
    while INTERRUPTS.load(Ordering::Relaxed) == 3 && !deadline.has_passed() {
        traps::halt_for_interrupt();
        traps::disable_interrupts();
    }
    // The other may have ended since, which is an event, too.
    let told = group::halt_events() & 0b11;
    let calls = group::exits()[ExitKind::Hypercall as usize] - exits;
    let left = hypercall::wait(0).map_or(0, |events| events & 0b11);
    check::equal("halt-tells-its-events", told, 0b10);
    check::equal("halt-needs-no-call", calls, 0);
    check::equal("halt-took-them", left, 0);
    hypercall::halt_events(false)
}

fn interrupt(meeting: &Meeting) -> Result<(), Errno> {
    meeting.set_stage(1);
    meeting.await_stage(2, 0);
    hypercall::doorbell(0)?;
    meeting.await_stage(3, 0);
    hypercall::doorbell(0)?;
    meeting.set_stage(4);
    meeting.await_stage(5, 0);
    // Long enough for the other to halt.
    time::spin_ms(2);
    hypercall::doorbell(0)?;
    meeting.await_stage(6, 0);
    time::spin_ms(2);
    hypercall::doorbell_mask_many(1).map(drop)
}

fn timeouts() {
    // What came before (members joining) is none of this case's.
    while hypercall::wait(0).is_ok() {}
    check::equal("poll", hypercall::wait(0), Err(Errno::TimedOut));
    let start = time::ticks();
    check::equal(
        "one-millisecond",
        hypercall::wait(1_000_000),
        Err(Errno::TimedOut),
    );
    let passed = time::ticks() - start;
    check::holds("not-early", passed >= time::ms_to_ticks(1));
    check::holds("not-late", passed < time::ms_to_ticks(10));
}
