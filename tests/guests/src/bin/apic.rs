//! The local APIC as a guest finds it: timer, priorities, interrupts from one vCPU to another (x2APIC, and xAPIC by its page).
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nagaya_guests::check;
use nagaya_rt::abi::ExitKind;
use nagaya_rt::abi::cpuid::{FEATURE_EOI_WORD, LEAF_VERSION, MSR_EOI_WORD};
use nagaya_rt::{args, group, hypercall, println, probe, smp, time, traps};

nagaya_rt::entry!(main);

const APIC_BASE: u32 = 0x1B;
const TSC_DEADLINE: u32 = 0x6E0;
const ID: u32 = 0x802;
const TASK_PRIORITY: u32 = 0x808;
const EOI: u32 = 0x80B;
const SPURIOUS: u32 = 0x80F;
const IN_SERVICE: u32 = 0x810;
const COMMAND: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const INITIAL_COUNT: u32 = 0x838;
const CURRENT_COUNT: u32 = 0x839;
const DIVIDE: u32 = 0x83E;
const SELF_IPI: u32 = 0x83F;

const TIMER: u8 = 0x40;
const LOW: u8 = 0x51;
const HIGH: u8 = 0x71;
const IPI: u8 = 0x61;

/// Interrupts of a vector, and when the last came.
static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
static SEEN_AT: AtomicU64 = AtomicU64::new(0);
/// Vectors in the order in which they came, a byte each.
static ORDER: AtomicU64 = AtomicU64::new(0);
static READY: AtomicU64 = AtomicU64::new(0);
/// The word by which interrupts are ended, and what the last handlers found in it, four bits each.
static WORD: AtomicU32 = AtomicU32::new(0);
static WORDS: AtomicU64 = AtomicU64::new(0);

fn write(register: u32, value: u64) {
    if let Err(caught) = probe::write_msr(register, value) {
        println!("FAIL write of MSR {register:#x}: {caught:?}");
    }
}

fn read(register: u32) -> u64 {
    probe::read_msr(register).unwrap_or(u64::MAX)
}

fn count(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].load(Ordering::SeqCst)
}

fn interrupted(frame: &mut traps::Frame) {
    SEEN_AT.store(time::ticks(), Ordering::SeqCst);
    let vector = frame.vector & 0xFF;
    COUNTS[vector as usize].fetch_add(1, Ordering::SeqCst);
    let order = ORDER.load(Ordering::SeqCst);
    ORDER.store(order << 8 | vector, Ordering::SeqCst);
    // As the word's contract has it; without a word it is always 0.
    let said = WORD.fetch_and(!1, Ordering::SeqCst) & 1;
    WORDS.store(
        WORDS.load(Ordering::SeqCst) << 4 | u64::from(said),
        Ordering::SeqCst,
    );
    if said == 0 {
        write(EOI, 0);
    }
}

/// x2APIC mode, enabled by software.
fn enable() {
    write(APIC_BASE, read(APIC_BASE) | 1 << 10);
    write(SPURIOUS, 0x1FF);
}

fn main() {
    for vector in [TIMER, LOW, HIGH, IPI] {
        traps::set_handler(vector, interrupted);
    }
    check::equal("apic-base", read(APIC_BASE), 0xFEE0_0900);
    check::holds(
        "x2apic-needs-its-mode",
        probe::read_msr(ID).is_err() && probe::write_msr(EOI, 0).is_err(),
    );
    enable();
    check::equal("id", read(ID), 0);
    timer();
    priorities();
    eoi_word();
    if args::number("vcpus", 1) > 1 {
        ipis();
    }
    check::finish()
}

/// Waits for one more interrupt of the timer, spinning, halting or exiting all the time: when it came.
fn await_timer(deadline: u64, how: &str) -> u64 {
    let before = count(TIMER);
    write(TSC_DEADLINE, deadline);
    let end = deadline + time::ms_to_ticks(50);
    while count(TIMER) == before && time::ticks() < end {
        match how {
            "halting" => {
                traps::disable_interrupts();
                if count(TIMER) == before {
                    traps::halt_for_interrupt();
                }
            }
            "exiting" => {
                let _ = hypercall::version();
            }
            _ => time::pause(),
        }
    }
    SEEN_AT.load(Ordering::SeqCst)
}

fn timer() {
    write(LVT_TIMER, u64::from(TIMER) | 2 << 17);
    traps::enable_interrupts();
    for how in ["spinning", "halting", "exiting"] {
        let mut worst = 0;
        let mut early = false;
        for step in 0..20 {
            let deadline = time::ticks() + 3_000 + step * 1_371;
            let seen = await_timer(deadline, how);
            early |= seen < deadline;
            worst = worst.max(seen.saturating_sub(deadline));
        }
        println!("timer, {how}: at most {worst} ticks late");
        check::holds("timer-not-early", !early);
        // One that halts has to be woken first.
        let bound = if how == "halting" { 8_000 } else { 2_000 };
        check::holds("timer-not-late", worst < bound);
    }
    check::equal("timer-count", count(TIMER), 60);
    check::equal("deadline-is-over", read(TSC_DEADLINE), 0);
    // A time that has passed comes at once.
    let seen = await_timer(time::ticks() - 1, "spinning");
    check::holds("passed-deadline", seen != 0 && count(TIMER) == 61);

    // Periodic, by counts of 4 ticks.
    write(LVT_TIMER, u64::from(TIMER) | 1 << 17);
    write(DIVIDE, 1);
    let (start, before) = (time::ticks(), count(TIMER));
    let period = time::ms_to_ticks(1);
    write(INITIAL_COUNT, period / 4);
    check::holds("current-count", read(CURRENT_COUNT) <= period / 4);
    while time::ticks() - start < period * 10 + period / 2 {
        time::pause();
    }
    write(INITIAL_COUNT, 0);
    check::equal("periodic", count(TIMER) - before, 10);
    check::equal("stopped", read(CURRENT_COUNT), 0);
    traps::disable_interrupts();
}

fn priorities() {
    ORDER.store(0, Ordering::SeqCst);
    write(SELF_IPI, u64::from(LOW));
    write(SELF_IPI, u64::from(HIGH));
    traps::enable_interrupts();
    time::pause();
    traps::disable_interrupts();
    let expected = u64::from(HIGH) << 8 | u64::from(LOW);
    check::equal("higher-first", ORDER.load(Ordering::SeqCst), expected);
    write(TASK_PRIORITY, 0x60);
    check::equal("cr8-is-tpr", probe::state::task_priority(), 6);
    traps::enable_interrupts();
    write(SELF_IPI, u64::from(LOW));
    time::spin_ms(1);
    check::equal("held-back", count(LOW), 1);
    probe::state::set_task_priority(0);
    time::pause();
    check::equal("let-in", count(LOW), 2);
    traps::disable_interrupts();
    check::equal("all-ended", read(IN_SERVICE + 2), 0);
}

/// What handlers find in the word when these come at once.
fn words(vectors: &[u8]) -> u64 {
    WORDS.store(0, Ordering::SeqCst);
    ORDER.store(0, Ordering::SeqCst);
    for vector in vectors {
        write(SELF_IPI, u64::from(*vector));
    }
    traps::enable_interrupts();
    time::pause();
    traps::disable_interrupts();
    WORDS.load(Ordering::SeqCst)
}

fn eoi_word() {
    let word = (&raw const WORD).expose_provenance() as u64;
    let is_there = time::cpuid(LEAF_VERSION)[1] & FEATURE_EOI_WORD != 0;
    if !is_there {
        let refused = probe::write_msr(MSR_EOI_WORD, word | 1).is_err();
        check::holds("no-word", refused && probe::read_msr(MSR_EOI_WORD).is_err());
        // The CPU has in its page what never changes: ID, version, LDR.
        let exits = || group::exits()[ExitKind::MsrRead as usize];
        let before = exits();
        let found = [ID, ID + 1, ID + 11].map(read);
        check::equal("constants-without-exit", exits() - before, 0);
        check::holds("constants", found == [0, 0x5_0014, 1]);
        return;
    }
    check::equal("word-is-off", read(MSR_EOI_WORD), 0);
    for wrong in [word | 3, 1 << 40 | 1] {
        check::holds(
            "word-bounds",
            probe::write_msr(MSR_EOI_WORD, wrong).is_err(),
        );
    }
    write(MSR_EOI_WORD, word | 1);
    check::equal("word-is-on", read(MSR_EOI_WORD), word | 1);
    let written = || group::exits()[ExitKind::MsrWrite as usize];
    let before = written();
    check::equal("one-by-word", words(&[LOW]), 1);
    // The message that caused it.
    check::equal("no-exit-for-its-end", written() - before, 1);
    check::equal("word-is-taken-back", WORD.load(Ordering::SeqCst), 0);
    check::equal("ended", read(IN_SERVICE + 2), 0);
    // The lower one waits for the end of the higher one, which therefore has to be told.
    check::equal("first-is-told", words(&[LOW, HIGH]), 0x01);
    let expected = u64::from(HIGH) << 8 | u64::from(LOW);
    check::equal("word-keeps-order", ORDER.load(Ordering::SeqCst), expected);
    check::equal("all-ended-by-word", read(IN_SERVICE + 2), 0);
    write(MSR_EOI_WORD, 0);
    check::equal("off-again", words(&[LOW]), 0);
}

fn ipis() {
    let started = smp::start_vcpu(1, || {
        enable();
        READY.store(1, Ordering::SeqCst);
        let end = time::Deadline::after_ms(2_000);
        while READY.load(Ordering::SeqCst) == 1 && !end.has_passed() {
            traps::halt_for_interrupt();
            traps::disable_interrupts();
        }
    });
    check::equal("second-vcpu", started, Ok(()));
    let start = time::Deadline::after_ms(2_000);
    while READY.load(Ordering::SeqCst) == 0 && !start.has_passed() {
        time::pause();
    }
    let mut total = 0;
    const ROUNDS: u64 = 50;
    for round in 0..ROUNDS {
        // Time for it to halt.
        time::spin_ms(1);
        if round == ROUNDS - 1 {
            READY.store(2, Ordering::SeqCst);
        }
        let sent = time::ticks();
        write(COMMAND, 1 << 32 | 1 << 14 | u64::from(IPI));
        let patience = time::Deadline::after_ms(100);
        while count(IPI) <= round && !patience.has_passed() {
            time::pause();
        }
        total += SEEN_AT.load(Ordering::SeqCst).saturating_sub(sent);
    }
    println!("IPI to a halted vCPU: {} ticks", total / ROUNDS);
    check::equal("ipi", count(IPI), ROUNDS);
    let end = time::Deadline::after_ms(1_000);
    while smp::finished() == 0 && !end.has_passed() {
        time::pause();
    }
    check::equal("second-finished", smp::finished(), 1);
}
