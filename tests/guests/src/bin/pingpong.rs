//! The main job: two guests pass ints back and forth through the shared region, polling or waiting for doorbells.
//!
//! Command line: `role=ping|pong`, `bytes=` (default 32768: 8192 ints; or a list with commas), `rounds=` (1000),
//! `warmup=` (10), `modes=polled,doorbell`. `ping` writes all ints and publishes the round's number; `pong` reads and checks every one, writes its own back
//! into the same place; `ping` checks. Before that `ping` builds a linked list of raw pointers, which `pong` walks unchanged.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use core::sync::atomic::{AtomicU32, Ordering};

use nagaya_guests::REGION_VA;
use nagaya_guests::stats::{self, Samples};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::{GroupPeers, PeerDied, Peers, spin_until};
use nagaya_rt::time::ticks;
use nagaya_rt::{ExitKind, args, group, hypercall, is_bare, println, traps};

nagaya_rt::entry!(main);

const PING: u32 = 0;
const PONG: u32 = 1;
/// Cells on the region's last page, which the largest transfer leaves free; each on a cache line of its own.
const CONTROL: u64 = 1024 * 4096;
const PING_TURN: u64 = CONTROL;
const PONG_TURN: u64 = CONTROL + 64;
const LIST_HEAD: u64 = CONTROL + 128;
const PONG_EXITS: u64 = CONTROL + 256;
/// Nodes of the linked list: two words each, scattered over the region.
const NODES: u64 = 1000;

/// All peers of a bare loop live: they are loops of the same run.
struct Alive;

impl Peers for Alive {
    fn is_alive(&self, member: u32) -> bool {
        is_bare() || GroupPeers.is_alive(member)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Polled,
    Doorbell,
}

struct Side<'a> {
    region: &'a SharedRegion,
    peer: u32,
    mode: Mode,
    mine: u64,
    theirs: u64,
}

impl Side<'_> {
    /// Tells the peer that turn `turn` of mine is complete.
    fn publish(&self, turn: u64) {
        cell(self.region, self.mine).store(turn, Ordering::Release);
        if self.mode == Mode::Doorbell {
            ring(self.peer);
        }
    }

    /// Waits until turn `turn` of the peer is complete.
    fn await_turn(&self, turn: u64) -> Result<(), PeerDied> {
        let flag = cell(self.region, self.theirs);
        let ready = || (flag.load(Ordering::Acquire) >= turn).then_some(());
        if self.mode == Mode::Polled {
            return spin_until(&Alive, self.peer, ready);
        }
        loop {
            if ready().is_some() {
                return Ok(());
            }
            if !Alive.is_alive(self.peer) {
                return Err(PeerDied { member: self.peer });
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
            nagaya_rt::Errno::Again => core::hint::spin_loop(),
            other => panic!("doorbell to {peer}: {other}"),
        }
    }
}

fn cell(region: &SharedRegion, offset: u64) -> &core::sync::atomic::AtomicU64 {
    region
        .u64(offset)
        .expect("control cells lie inside the region")
}

fn fill(ints: &[AtomicU32], seed: u32) {
    for (index, int) in ints.iter().enumerate() {
        int.store(seed.wrapping_add(index as u32), Ordering::Relaxed);
    }
}

fn check(ints: &[AtomicU32], seed: u32) {
    for (index, int) in ints.iter().enumerate() {
        let (found, promised) = (int.load(Ordering::Relaxed), seed.wrapping_add(index as u32));
        assert!(
            found == promised,
            "int {index} is {found:#x}, not {promised:#x}"
        );
    }
}

fn seed(turn: u64, role: u32) -> u32 {
    (turn as u32).wrapping_mul(0x9E37_79B1) ^ (role << 31)
}

fn build_list(region: &SharedRegion) {
    let mut next = 0;
    for node in (0..NODES).rev() {
        // 4 KiB and a bit apart: every node lies on another page.
        let offset = node * (4096 + 16);
        cell(region, offset).store(next, Ordering::Relaxed);
        cell(region, offset + 8).store(node * node + 7, Ordering::Relaxed);
        next = region.address() + offset;
    }
    cell(region, LIST_HEAD).store(next, Ordering::Relaxed);
}

fn walk_list(region: &SharedRegion) -> u64 {
    let mut at = cell(region, LIST_HEAD).load(Ordering::Relaxed);
    let mut node = 0;
    while at != 0 {
        let next = region
            .at(at)
            .expect("a pointer of the list leads out of the region")
            .load(Ordering::Relaxed);
        let value = region.at(at + 8).expect("as above").load(Ordering::Relaxed);
        assert!(value == node * node + 7, "node {node} holds {value}");
        node += 1;
        at = next;
    }
    node
}

fn main() {
    let (role, peer) = match args::get("role") {
        Some("ping") => (PING, PONG),
        Some("pong") => (PONG, PING),
        other => panic!("role={other:?} on the command line: want ping or pong"),
    };
    let region = match SharedRegion::map_at(REGION_VA) {
        Ok(region) => region,
        Err(errno) => panic!("map_shared({REGION_VA:#x}): {errno}"),
    };
    println!(
        "{} bytes of shared memory at {:#x}",
        region.bytes(),
        region.address()
    );
    let mut turn = 0;
    if let Err(died) = run(&region, role, peer, &mut turn) {
        panic!("member {} died at turn {turn}", died.member);
    }
}

fn run(region: &SharedRegion, role: u32, peer: u32, turn: &mut u64) -> Result<(), PeerDied> {
    let (mine, theirs) = if role == PING {
        (PING_TURN, PONG_TURN)
    } else {
        (PONG_TURN, PING_TURN)
    };
    let mut side = Side {
        region,
        peer,
        mode: Mode::Polled,
        mine,
        theirs,
    };
    *turn += 1;
    if role == PING {
        // The peer may still be booting: it is not absent, and the flag waits for it.
        build_list(region);
        side.publish(*turn);
        side.await_turn(*turn)?;
    } else {
        side.await_turn(*turn)?;
        println!(
            "walked the list of {} nodes that ping built",
            walk_list(region)
        );
        side.publish(*turn);
    }
    if role == PING {
        stats::print_heading();
    }
    for mode in args::get("modes").unwrap_or("polled,doorbell").split(',') {
        let (mode, name) = match mode {
            "polled" if is_bare() => (Mode::Polled, "floor-polled"),
            "polled" => (Mode::Polled, "shared-polled"),
            "doorbell" => (Mode::Doorbell, "shared-doorbell"),
            other => panic!("modes={other} on the command line: want polled or doorbell"),
        };
        side.mode = mode;
        for bytes in args::get("bytes").unwrap_or("32768").split(',') {
            let bytes: u64 = bytes.parse().unwrap_or(0);
            assert!(
                (4..=CONTROL).contains(&bytes) && bytes.is_multiple_of(4),
                "bytes={bytes}: want a multiple of 4 up to {CONTROL}"
            );
            measure(&side, role, name, bytes, turn)?;
        }
    }
    Ok(())
}

fn measure(
    side: &Side<'_>,
    role: u32,
    name: &str,
    bytes: u64,
    turn: &mut u64,
) -> Result<(), PeerDied> {
    let (warmup, rounds) = (args::number("warmup", 10), args::number("rounds", 1000));
    // Large transfers repeat exactly; fewer of them tell as much.
    let rounds = if bytes > 1 << 17 {
        (rounds / 20).max(1)
    } else {
        rounds
    };
    let ints = side
        .region
        .u32s(0, (bytes / 4) as usize)
        .expect("the transfer fits into the region");
    let mut samples = Samples::with_capacity(rounds as usize);
    let mut exits_before = [0; ExitKind::COUNT];
    for round in 0..warmup + rounds {
        if round == warmup {
            exits_before = group::exits();
        }
        *turn += 1;
        if role == PING {
            let start = ticks();
            fill(ints, seed(*turn, PING));
            side.publish(*turn);
            side.await_turn(*turn)?;
            check(ints, seed(*turn, PONG));
            let end = ticks();
            if round >= warmup {
                samples.push(end - start);
            }
        } else {
            side.await_turn(*turn)?;
            check(ints, seed(*turn, PING));
            fill(ints, seed(*turn, PONG));
            side.publish(*turn);
        }
    }
    let mut exits = stats::exits_since(&exits_before);
    // Both sides' exits count: pong leaves its own in the region.
    *turn += 1;
    let cells = side
        .region
        .u64s(PONG_EXITS, ExitKind::COUNT)
        .expect("inside the region");
    let polled = Side {
        mode: Mode::Polled,
        ..*side
    };
    if role == PONG {
        for (cell, count) in cells.iter().zip(exits) {
            cell.store(count, Ordering::Relaxed);
        }
        polled.publish(*turn);
        return polled.await_turn(*turn);
    }
    polled.await_turn(*turn)?;
    for (sum, cell) in exits.iter_mut().zip(cells) {
        *sum += cell.load(Ordering::Relaxed);
    }
    let summary = samples.summary();
    stats::report(name, bytes, rounds, &summary, &exits);
    polled.publish(*turn);
    Ok(())
}
