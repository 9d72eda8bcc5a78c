//! The main job: two guests pass ints back and forth, over shared memory and over virtio-net.
//!
//! Command line: `role=ping|pong`, `bytes=` (default 32768: 8192 ints; or a list with commas), `rounds=` (1000) of each of `runs=`
//! (1) runs, fewer for long messages (`budget=` bytes a run), `warmup=` (10), `modes=polled,doorbell` and with a card `raw-polled`,
//! `raw-interrupt`, `udp`, `tcp`; with `apart`, notification and transfer are told apart instead. `ping` writes all ints and tells
//! `pong`; `pong` reads and checks every one and writes its own back; `ping` checks. Before that `ping` builds a linked list of raw
//! pointers, which `pong` walks unchanged. `role=interfere` is a third VM that keeps the network busy meanwhile.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod interfere;
mod list;
mod measure;
mod packets;
mod shared;
mod tcp;

use nagaya_guests::{REGION_VA, stats};
use nagaya_rt::net::{Card, Options, Stack, Waiting};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::PeerDied;
use nagaya_rt::{args, is_bare, println};

use measure::Session;
use packets::{Datagrams, Packets, RawFrames};
use shared::{Shared, Side};
use tcp::Tcp;

nagaya_rt::entry!(main);

const PING: u32 = 0;
const PONG: u32 = 1;

fn main() {
    let (role, peer) = match args::get("role") {
        Some("ping") => (PING, PONG),
        Some("pong") => (PONG, PING),
        Some("interfere") => return interfere::run(),
        other => panic!("role={other:?} on the command line: want ping, pong or interfere"),
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
    let side = Side::new(&region, role, peer);
    if let Err(died) = run(&side) {
        panic!("member {} died at turn {}", died.member, side.turn());
    }
}

fn run(side: &Side<'_>) -> Result<(), PeerDied> {
    list::pass(side)?;
    if side.role == PING {
        stats::print_heading();
    }
    for mode in args::get("modes").unwrap_or("polled,doorbell").split(',') {
        match mode {
            "polled" if is_bare() => {
                Session::new(side, "floor-polled").all_sizes(&mut Shared::polled(side))?;
            }
            "polled" => Session::new(side, "shared-polled").all_sizes(&mut Shared::polled(side))?,
            "doorbell" => {
                Session::new(side, "shared-doorbell").all_sizes(&mut Shared::doorbell(side))?;
            }
            "raw-polled" => {
                let frames = RawFrames::open(side, Waiting::Polled)?;
                let session = Session::new(side, "virtio-net-raw-polled");
                session.all_sizes(&mut Packets::new(frames))?;
            }
            "raw-interrupt" => {
                let frames = RawFrames::open(side, Waiting::Interrupt)?;
                let session = Session::new(side, "virtio-net-raw-interrupt");
                session.all_sizes(&mut Packets::new(frames))?;
            }
            "udp" => {
                let datagrams = Datagrams::open(side, stack())?;
                Session::new(side, "virtio-net-udp").all_sizes(&mut Packets::new(datagrams))?;
            }
            "tcp" => {
                let mut tcp = Tcp::open(side, stack())?;
                Session::new(side, "virtio-net-tcp").all_sizes(&mut tcp)?;
            }
            other => panic!("modes={other} on the command line: there is no such transport"),
        }
    }
    Ok(())
}

fn card(waiting: Waiting) -> Card {
    match Card::open(0, &Options::raw(waiting)) {
        Ok(card) => card,
        Err(error) => panic!("no card: {error}"),
    }
}

fn stack() -> Stack {
    match Stack::from_args() {
        Ok(stack) => stack,
        Err(error) => panic!("no network: {error}"),
    }
}
