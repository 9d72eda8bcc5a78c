//! What a frame costs the hypervisor, in ticks: from before the kick to its return, to the receiver's buffers, and to its
//! interrupt handler.
//!
//! Two VMs of one group on two CPUs, `role=meter` and `role=peer`, each with a card; the region carries the peer's times. Command
//! line: `rounds=` (200). A time begins before the driver publishes the frame and ends with the instruction after the kick, or
//! with the peer's first look at its clock. The rows tell apart what a kick is made of by leaving parts out: nothing to send, a
//! frame that the switch drops, one that the peer polls for, one that interrupts it while it runs, one that wakes it.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_guests::REGION_VA;
use nagaya_guests::stats::{self, Samples};
use nagaya_rt::abi::ExitKind;
use nagaya_rt::net::Waiting;
use nagaya_rt::net::card::{Card, Mac, Options};
use nagaya_rt::net::offload::{self, Header};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::time::{pause, spin_ms, ticks};
use nagaya_rt::{Errno, args, group, traps};

nagaya_rt::entry!(main);

/// Offsets in the region: how the peer is to wait, that it does so, frames that it took, when it saw the last, its address.
const WANTED: u64 = 0;
const READY: u64 = 64;
const TAKEN: u64 = 128;
const SEEN_AT: u64 = 192;
const ADDRESS: u64 = 256;

/// How the peer waits; values of [`WANTED`].
#[derive(Clone, Copy, PartialEq)]
enum How {
    Polling = 1,
    Running = 2,
    Halted = 3,
}

const END: u64 = 4;
/// By then a peer has halted: several times what it takes.
const HALT_TICKS: u64 = 20_000;
/// The transmit queue (virtio 1.2, 5.1.2) and the receive queue.
const TRANSMIT: u16 = 1;
const RECEIVE: u16 = 0;
/// An EtherType for experiments (IEEE 802).
const KIND: [u8; 2] = [0x88, 0xB5];
/// Frames with Ethernet header. The last is a TCP segment, 65,482 bytes of data.
const SIZES: [usize; 3] = [64, 1514, 65_536 - 8];

/// When the peer's handler was called last, 0 if not since it was looked at.
static INTERRUPTED_AT: AtomicU64 = AtomicU64::new(0);

fn main() -> Result<(), Errno> {
    let region = SharedRegion::map_at(REGION_VA)?;
    let card = match Card::open(0, &Options::stack(Waiting::Interrupt)) {
        Ok(card) => card,
        Err(error) => panic!("no card: {error}"),
    };
    match args::get("role") {
        Some("peer") => peer(&region, card),
        _ => meter(&region, card),
    }
    Ok(())
}

fn cell(region: &SharedRegion, offset: u64) -> &AtomicU64 {
    region
        .u64(offset)
        .expect("the cells lie on the region's first page")
}

/// Fills a frame and puts it into the ring; the device is not told.
fn prepare(card: &mut Card, to: Mac, bytes: usize) {
    let own = card.address();
    let is_segment = bytes > 1514;
    let Some(mut out) = card.transmitter.buffer() else {
        panic!("no send buffer");
    };
    let frame = &mut out.frame()[..bytes];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&own);
    frame[12..14].copy_from_slice(&KIND);
    let header = if is_segment {
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..34].copy_from_slice(&[
            0x45, 0, 0xFF, 0xF2, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        frame[46] = 0x50;
        offload::leave_open(frame, Some(1460))
    } else {
        Header::default()
    };
    out.send(bytes, header);
}

struct Rows {
    kick: Samples,
    seen: Samples,
    exits: [u64; ExitKind::COUNT],
    rounds: u64,
}

fn measure(rounds: u64, mut round: impl FnMut() -> (u64, u64)) -> Rows {
    for _ in 0..10 {
        round();
    }
    let before = group::exits();
    let mut kick = Samples::with_capacity(rounds as usize);
    let mut seen = Samples::with_capacity(rounds as usize);
    for _ in 0..rounds {
        let (kicked, arrived) = round();
        kick.push(kicked);
        seen.push(arrived);
    }
    Rows {
        kick,
        seen,
        exits: stats::exits_since(&before),
        rounds,
    }
}

fn report(name: &str, bytes: usize, rows: &Rows, samples: &Samples) {
    stats::report(
        name,
        bytes as u64,
        rows.rounds,
        &samples.summary(),
        &rows.exits,
    );
}

fn meter(region: &SharedRegion, mut card: Card) {
    let rounds = args::number("rounds", 200);
    stats::print_heading();
    let bell = card.device().doorbell(TRANSMIT);
    let empty = measure(rounds, || {
        let start = ticks();
        bell.ring();
        (ticks() - start, 0)
    });
    report("kick-nothing", 0, &empty, &empty.kick);
    let own = card.address();
    let dropped = measure(rounds, || {
        prepare(&mut card, own, 64);
        let start = ticks();
        card.transmitter.flush();
        (ticks() - start, 0)
    });
    report("kick-dropped", 64, &dropped, &dropped.kick);

    for how in [How::Polling, How::Running, How::Halted] {
        cell(region, WANTED).store(how as u64, Ordering::Release);
        while cell(region, READY).load(Ordering::Acquire) != how as u64 {
            pause();
        }
        spin_ms(1);
        let [a, b, c, d, e, f, ..] = cell(region, ADDRESS).load(Ordering::Acquire).to_le_bytes();
        let (kick, seen) = match how {
            How::Polling => ("kick-polled", "to-buffer"),
            How::Running => ("kick-running", "to-handler"),
            How::Halted => ("kick-halted", "to-handler-halted"),
        };
        for bytes in SIZES {
            let rows = measure(rounds, || {
                prepare(&mut card, [a, b, c, d, e, f], bytes);
                if how == How::Halted {
                    let start = ticks();
                    while ticks() - start < HALT_TICKS {
                        pause();
                    }
                }
                let before = cell(region, TAKEN).load(Ordering::Acquire);
                let start = ticks();
                card.transmitter.flush();
                let end = ticks();
                while cell(region, TAKEN).load(Ordering::Acquire) == before {
                    assert!(group::is_alive(1), "the peer has ended");
                    pause();
                }
                let seen_at = cell(region, SEEN_AT).load(Ordering::Acquire);
                (end - start, seen_at.saturating_sub(start))
            });
            report(kick, bytes, &rows, &rows.kick);
            report(seen, bytes, &rows, &rows.seen);
        }
    }
    cell(region, WANTED).store(END, Ordering::Release);
    prepare(&mut card, [0xFF; 6], 64);
    card.transmitter.flush();
}

fn peer(region: &SharedRegion, mut card: Card) {
    // The frame's interrupt is to be told from the others, and its time is that of its handler.
    let stamp = || INTERRUPTED_AT.store(ticks(), Ordering::Release);
    if let Err(error) = card.device().enable_interrupt(1, stamp) {
        panic!("no interrupt: {error}");
    }
    card.device().route(RECEIVE, 1);
    let [a, b, c, d, e, f] = card.address();
    let address = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    cell(region, ADDRESS).store(address, Ordering::Release);
    let mut how = 0;
    loop {
        let wanted = cell(region, WANTED).load(Ordering::Acquire);
        if wanted == END {
            return;
        }
        if wanted != how {
            how = wanted;
            cell(region, READY).store(how, Ordering::Release);
        }
        if how == 0 {
            assert!(group::is_alive(0), "the meter has ended");
            pause();
            continue;
        }
        let seen_at = wait(&mut card, how, || {
            cell(region, WANTED).load(Ordering::Acquire) != how
        });
        // What the last one of a way of waiting leaves behind is nobody's.
        if card.receiver.take().is_some() {
            cell(region, SEEN_AT).store(seen_at, Ordering::Release);
            cell(region, TAKEN).fetch_add(1, Ordering::Release);
        }
    }
}

/// Waits for a frame, or for something else to do while it is awake; when the frame was seen.
fn wait(card: &mut Card, how: u64, mut is_over: impl FnMut() -> bool) -> u64 {
    if how == How::Polling as u64 {
        while !card.receiver.has_frame() && !is_over() {
            pause();
        }
        return ticks();
    }
    INTERRUPTED_AT.store(0, Ordering::Release);
    traps::disable_interrupts();
    if card.receiver.want_interrupt() {
        traps::enable_interrupts();
        return ticks();
    }
    if how == How::Halted as u64 {
        traps::halt_for_interrupt();
    } else {
        traps::enable_interrupts();
        while INTERRUPTED_AT.load(Ordering::Acquire) == 0 && !is_over() {
            pause();
        }
    }
    card.receiver.want_no_interrupt();
    traps::enable_interrupts();
    INTERRUPTED_AT.load(Ordering::Acquire)
}
