//! What leaving the guest and coming back costs, in ticks between two RDTSC around one operation.
//!
//! Command line: `rounds=` (2000). Alone it measures everything but doorbells; with `role=meter` in a group it measures these by
//! ringing member 1, which runs this guest with `role=peer`. A doorbell's round trip lasts from before the call to the moment at which the peer's
//! answer, stored by its interrupt handler, is seen in the region. The row `empty-rdtsc` is the cost of measuring itself.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::x86_64::__cpuid;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_guests::REGION_VA;
use nagaya_guests::stats::{self, Samples};
use nagaya_rt::apic::{Apic, Target};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::{GroupPeers, PeerDied, spin_until};
use nagaya_rt::time::{pause, spin_ms, ticks};
use nagaya_rt::{Errno, args, group, hypercall, interrupts, println, probe, traps};

nagaya_rt::entry!(main);

const METER: u32 = 0;
const PEER: u32 = 1;
const DOORBELL_VECTOR: u8 = 0x40;
const ABSENT_PORT: u16 = 0x5658;
const IA32_APIC_BASE: u32 = 0x1B;
/// Where no device is.
const ABSENT_MEMORY: u64 = 0xF123_4000;
/// A deadline that does not come while it is measured how one is written.
const FAR_TICKS: u64 = 1 << 40;
/// Offsets in the region: what the peer is to do, that it does so, and how many doorbells it has taken.
const WANTED: u64 = 0;
const READY: u64 = 64;
const TAKEN: u64 = 128;
/// By then a peer has halted: several times what it takes.
const HALT_TICKS: u64 = 20_000;
/// Values of `WANTED`.
const RUN: u64 = 1;
const HALT: u64 = 2;
const END: u64 = 3;

/// Interrupts that came to this VM: doorbells, or its APIC's own.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

fn main() -> Result<(), Errno> {
    match args::get("role") {
        Some("peer") => peer(&SharedRegion::map_at(REGION_VA)?),
        Some("meter") => {
            let region = SharedRegion::map_at(REGION_VA)?;
            stats::print_heading();
            match doorbells(&region) {
                Ok(()) => Ok(()),
                Err(died) => panic!("member {} died", died.member),
            }
        }
        _ => {
            stats::print_heading();
            alone();
            Ok(())
        }
    }
}

fn measure(name: &str, operation: impl FnMut()) {
    measure_after(name, || {}, operation);
}

/// As [`measure`], with something before each operation that is not measured.
fn measure_after(name: &str, mut prepare: impl FnMut(), mut operation: impl FnMut()) {
    let rounds = args::number("rounds", 2000);
    let mut samples = Samples::with_capacity(rounds as usize);
    // The first rounds fill caches and TLB.
    for _ in 0..10 {
        prepare();
        operation();
    }
    let before = group::exits();
    for _ in 0..rounds {
        prepare();
        let start = ticks();
        operation();
        let end = ticks();
        samples.push(end - start);
    }
    stats::report(
        name,
        0,
        rounds,
        &samples.summary(),
        &stats::exits_since(&before),
    );
}

fn alone() {
    measure("empty-rdtsc", || {});
    measure("null-hypercall", || {
        let _ = black_box(hypercall::version());
    });
    measure("unknown-hypercall", || {
        let _ = black_box(hypercall::raw(0xFFFF, [0; 5]));
    });
    measure("cpuid", || {
        let _ = black_box(__cpuid(1));
    });
    measure("rdmsr", || {
        let _ = black_box(probe::read_known_msr(IA32_APIC_BASE));
    });
    match probe::write_msr(probe::IA32_BIOS_SIGN_ID, 0) {
        Ok(()) => measure("wrmsr", probe::clear_bios_sign_id),
        // Then what is measured is the exit and the #GP together.
        Err(_) => measure("wrmsr", || {
            let _ = black_box(probe::write_msr(probe::IA32_BIOS_SIGN_ID, 0));
        }),
    }
    measure("port-in", || {
        let _ = black_box(probe::port_read_u8(ABSENT_PORT));
    });
    measure("port-out", || probe::port_write_u8(ABSENT_PORT, 0));
    let elements = [0; 64];
    measure("rep-outs-64", || {
        probe::port_write_string(ABSENT_PORT, &elements);
    });
    measure("memory-read-nobody", || {
        let _ = black_box(probe::memory::read_u32(ABSENT_MEMORY));
    });
    with_apic();
}

/// What a kernel does to its local APIC, reached by MSRs.
fn with_apic() {
    let count = || {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    };
    let (Some(apic), Some(vector)) = (Apic::enable(), interrupts::take_vector(count)) else {
        println!("FAIL there is no local APIC, or no vector is left");
        return;
    };
    let far = ticks() + FAR_TICKS;
    if !apic.deadline(vector, far) {
        println!("FAIL the local APIC has no deadline");
        return;
    }
    let mut deadline = far;
    measure("deadline-write", || {
        deadline += 1;
        apic.move_deadline(deadline);
    });
    apic.stop_timer();
    traps::enable_interrupts();
    let wait = |before: u64| while INTERRUPTS.load(Ordering::Relaxed) == before {};
    // From the write to behind the handler, which ends the interrupt.
    measure("self-ipi", || {
        let before = INTERRUPTS.load(Ordering::Relaxed);
        apic.send(Target::Own, vector);
        wait(before);
    });
    if apic.deadline(vector, 0) {
        // One that is due when it is written.
        measure("deadline-interrupt", || {
            let before = INTERRUPTS.load(Ordering::Relaxed);
            apic.move_deadline(1);
            wait(before);
        });
    }
    traps::disable_interrupts();
    apic.stop_timer();
}

fn cell(region: &SharedRegion, offset: u64) -> &AtomicU64 {
    region
        .u64(offset)
        .expect("the cells lie on the region's first page")
}

fn doorbells(region: &SharedRegion) -> Result<(), PeerDied> {
    for (wanted, name) in [(RUN, "doorbell-running"), (HALT, "doorbell-halted")] {
        let (ready, taken) = (cell(region, READY), cell(region, TAKEN));
        cell(region, WANTED).store(wanted, Ordering::Release);
        // A peer that halts looks again at what is wanted after a doorbell only.
        spin_until(&GroupPeers, PEER, || {
            (ready.load(Ordering::Acquire) == wanted).then_some(())
        })?;
        spin_ms(1);
        let mut failed = None;
        // The peer has to take the last doorbell's events and to halt before it can be woken.
        let until_it_halts = || {
            if wanted == HALT {
                let start = ticks();
                while ticks() - start < HALT_TICKS {
                    pause();
                }
            }
        };
        measure_after(name, until_it_halts, || {
            let before = taken.load(Ordering::Acquire);
            if ring() {
                let answer = || (taken.load(Ordering::Acquire) != before).then_some(());
                failed = failed.or(spin_until(&GroupPeers, PEER, answer).err());
            }
        });
        if let Some(died) = failed {
            return Err(died);
        }
        cell(region, WANTED).store(END, Ordering::Release);
        ring();
    }
    Ok(())
}

/// Whether the doorbell was delivered: not when the peer has died.
fn ring() -> bool {
    loop {
        match hypercall::doorbell(PEER) {
            Ok(()) => return true,
            Err(Errno::Again) => pause(),
            Err(_) => return false,
        }
    }
}

fn peer(region: &SharedRegion) -> Result<(), Errno> {
    traps::set_handler(DOORBELL_VECTOR, |_| {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    });
    hypercall::doorbell_vector(u64::from(DOORBELL_VECTOR))?;
    for wanted in [RUN, HALT] {
        while cell(region, WANTED).load(Ordering::Acquire) != wanted {
            assert!(group::is_alive(METER), "the meter has ended");
            pause();
        }
        cell(region, READY).store(wanted, Ordering::Release);
        let mut seen = INTERRUPTS.load(Ordering::Relaxed);
        traps::enable_interrupts();
        while cell(region, WANTED).load(Ordering::Acquire) == wanted {
            if wanted == HALT {
                // A doorbell that `wait` has not told of would end the halt at once.
                let _ = hypercall::wait(0);
                traps::disable_interrupts();
                if INTERRUPTS.load(Ordering::Relaxed) == seen {
                    traps::halt_for_interrupt();
                }
                traps::enable_interrupts();
            }
            let now = INTERRUPTS.load(Ordering::Relaxed);
            if now != seen {
                seen = now;
                cell(region, TAKEN).fetch_add(1, Ordering::Release);
            }
            pause();
        }
        traps::disable_interrupts();
    }
    Ok(())
}
