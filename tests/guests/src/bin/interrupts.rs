//! The runtime's local APIC: timers that keep their time, waiting by HLT, interrupts from one vCPU to the other. Command line:
//! `memory` for the APIC's registers by memory; `wait` only waits for events while an interrupt comes; `off` only has one
//! wait while interrupts are off; `past` has doorbells come past an APIC that is not enabled.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nagaya_guests::check;
use nagaya_rt::abi::ExitKind;
use nagaya_rt::apic::{Apic, Target};
use nagaya_rt::time::{Deadline, ticks};
use nagaya_rt::{Errno, args, group, hypercall, interrupts, println, smp};

nagaya_rt::entry!(main);

/// When the last interrupt came.
static CAME: AtomicU64 = AtomicU64::new(0);
/// The APIC ID of the second vCPU, plus one.
static SECOND: AtomicU64 = AtomicU64::new(0);

fn note_time() {
    CAME.store(ticks(), Ordering::Release);
}

fn enable() -> Apic {
    let apic = if args::args().has("memory") {
        Apic::enable_by_memory()
    } else {
        Apic::enable()
    };
    apic.expect("CPUID says that there is a local APIC")
}

fn main() {
    if args::args().has("past") {
        past();
        check::finish()
    }
    let apic = enable();
    check::equal("mode", apic.is_x2apic(), !args::args().has("memory"));
    let vector = interrupts::take_vector(note_time).expect("a vector is free");
    if args::args().has("wait") {
        wait_for_events(apic, vector);
    } else if args::args().has("off") {
        off(apic);
    } else {
        timers(apic, vector);
        between(apic, vector);
    }
    check::finish()
}

/// An interrupt is no event: it neither ends the wait nor gets lost.
fn wait_for_events(apic: Apic, vector: u8) {
    let home = apic.id();
    let started = smp::start_vcpu(1, move || {
        let apic = enable();
        nagaya_rt::time::spin_ms(200);
        apic.send(Target::One(home), vector);
    });
    check::equal("second-vcpu", started, Ok(()));
    let before = interrupts::count(vector);
    let start = ticks();
    let waited = hypercall::wait(8_000_000_000);
    let took = nagaya_rt::time::ticks_to_ns(ticks() - start);
    check::equal("no-event", waited, Err(Errno::TimedOut));
    check::holds("waited", took >= 8_000_000_000);
    let came = interrupts::wait_until_or(Deadline::after_ms(100), || {
        interrupts::count(vector) != before
    });
    check::holds("interrupt-comes-after", came);
}

/// Interrupts are off on the first vCPU.
static IS_OFF: AtomicBool = AtomicBool::new(false);
/// Interrupts that came while they were.
static WRONG: AtomicU64 = AtomicU64::new(0);

fn note_wrong() {
    if IS_OFF.load(Ordering::SeqCst) {
        WRONG.fetch_add(1, Ordering::SeqCst);
    }
}

/// An interrupt that waits until it is let in comes no sooner because others arrive.
fn off(apic: Apic) {
    const ROUNDS: u64 = 100;
    let waiting = interrupts::take_vector(note_wrong).expect("a vector is free");
    let arriving = interrupts::take_vector(note_wrong).expect("a vector is free");
    let home = apic.id();
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    let started = smp::start_vcpu(1, move || {
        let apic = enable();
        while !IS_OVER.load(Ordering::Acquire) {
            apic.send(Target::One(home), arriving);
            let pause = Deadline::after(1_500);
            while !pause.has_passed() {}
        }
    });
    check::equal("second-vcpu", started, Ok(()));
    for _ in 0..ROUNDS {
        let before = interrupts::count(waiting);
        let none = interrupts::without(|| {
            IS_OFF.store(true, Ordering::SeqCst);
            apic.send(Target::One(home), waiting);
            // The instruction after STI is no place for an interrupt. A CPU that changes by it what it listens to shows here.
            interrupts::blink();
            let patience = Deadline::after(6_000);
            while !patience.has_passed() {}
            IS_OFF.store(false, Ordering::SeqCst);
            interrupts::count(waiting) == before
        });
        let came = interrupts::wait_until_or(Deadline::after_ms(1_000), || {
            interrupts::count(waiting) != before
        });
        if !none || !came {
            check::holds("none-while-off", none);
            check::holds("comes-then", came);
            break;
        }
    }
    IS_OVER.store(true, Ordering::Release);
    check::equal("wrong", WRONG.load(Ordering::SeqCst), 0);
    check::holds("arrived", interrupts::count(arriving) >= ROUNDS);
}

/// A doorbell comes past the APIC of a vCPU that has not enabled it, while another one has: its end is nobody's business.
fn past() {
    let vector = interrupts::take_vector(note_time).expect("a vector is free");
    let started = smp::start_vcpu(1, || {
        let _ = enable();
    });
    check::equal("second-vcpu", started, Ok(()));
    let patience = Deadline::after_ms(1_000);
    while smp::finished() == 0 && !patience.has_passed() {
        nagaya_rt::time::pause();
    }
    let own = group::my_index().expect("this VM is in a group");
    check::equal("vector", hypercall::doorbell_vector(vector.into()), Ok(()));
    for round in 1..=3 {
        check::equal("ring", hypercall::doorbell(own), Ok(()));
        let came = interrupts::wait_until_or(Deadline::after_ms(100), || {
            interrupts::count(vector) == round
        });
        check::holds("comes-past", came);
        let _ = hypercall::wait(0);
    }
}

/// Waits for the next interrupt with that vector; when it came, or 0.
fn next(vector: u8) -> u64 {
    let before = interrupts::count(vector);
    let came = interrupts::wait_until_or(Deadline::after_ms(1_000), || {
        interrupts::count(vector) != before
    });
    if came {
        CAME.load(Ordering::Acquire)
    } else {
        0
    }
}

fn timers(apic: Apic, vector: u8) {
    let counts = apic.ticks_of_counts();
    println!("{counts} ticks are 65536 counts");
    let mut worst = 0;
    for span in [5_000, 20_000, 100_000, 400_000] {
        let start = ticks();
        apic.one_shot(vector, span);
        let took = next(vector).saturating_sub(start);
        println!("one-shot of {span} ticks took {took}");
        worst = worst.max(took.abs_diff(span));
    }
    // Setting it takes exits, and so does waking.
    check::holds("one-shot", worst < 12_000);

    let period = 50_000;
    apic.periodic(vector, period);
    let first = next(vector);
    let mut last = first;
    for _ in 0..20 {
        last = next(vector);
    }
    apic.stop_timer();
    let mean = last.saturating_sub(first) / 20;
    println!("a period of {period} ticks took {mean} on average");
    check::holds(
        "periodic",
        first != 0 && mean.abs_diff(period) < period / 50,
    );
    let stopped = interrupts::count(vector);
    nagaya_rt::time::spin_ms(20);
    check::equal("stopped", interrupts::count(vector), stopped);

    let at = ticks() + 60_000;
    check::holds("deadline-is-there", apic.deadline(vector, at));
    let came = next(vector);
    println!("a deadline was met {} ticks late", came.saturating_sub(at));
    check::holds("deadline", came >= at && came - at < 10_000);
}

/// The second vCPU answers each interrupt with one.
fn between(apic: Apic, vector: u8) {
    const ROUNDS: u64 = 100;
    let call = interrupts::take_vector(|| ()).expect("a vector is free");
    let home = apic.id();
    let started = smp::start_vcpu(1, move || {
        let apic = enable();
        SECOND.store(u64::from(apic.id()) + 1, Ordering::Release);
        for round in 1..=ROUNDS {
            interrupts::wait_until(|| interrupts::count(call) >= round);
            apic.send(Target::One(home), vector);
        }
    });
    check::equal("second-vcpu", started, Ok(()));
    let patience = Deadline::after_ms(2_000);
    while SECOND.load(Ordering::Acquire) == 0 && !patience.has_passed() {
        nagaya_rt::time::pause();
    }
    let second = SECOND.load(Ordering::Acquire).saturating_sub(1) as u32;
    check::holds("ids-differ", second != home);
    let (start, before) = (ticks(), interrupts::count(vector));
    let exits_before = group::exits();
    for round in 1..=ROUNDS {
        // One of each kind that reaches only the other.
        let target = if round % 2 == 0 {
            Target::Others
        } else {
            Target::One(second)
        };
        apic.send(target, call);
        let answered = interrupts::wait_until_or(Deadline::after_ms(1_000), || {
            interrupts::count(vector) >= before + round
        });
        if !answered {
            break;
        }
    }
    println!(
        "a round trip by interrupts took {} ticks",
        (ticks() - start) / ROUNDS
    );
    let exits = group::exits();
    let of = |kind: ExitKind| exits[kind as usize] - exits_before[kind as usize];
    let writes = of(ExitKind::MsrWrite) + of(ExitKind::MemoryViolation);
    println!(
        "{ROUNDS} round trips took this vCPU {writes} exits by its APIC's registers, {} by HLT, {} to be let in, {} to be called",
        of(ExitKind::Halt),
        of(ExitKind::InterruptWindow),
        of(ExitKind::ExternalInterrupt),
    );
    // The message, which takes two by memory, and the interrupt's end if that exits.
    let message = if args::args().has("memory") { 2 } else { 1 };
    if args::args().has("ends-are-free") {
        check::equal("message-only", writes, message * ROUNDS);
    } else {
        check::equal("message-and-end", writes, (message + 1) * ROUNDS);
    }
    check::equal("answers", interrupts::count(vector) - before, ROUNDS);
    check::equal("calls", interrupts::count(call), ROUNDS);
}
