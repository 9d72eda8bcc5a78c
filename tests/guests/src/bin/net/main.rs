//! The network's test guest. Command line: `role=` and what that needs; `polled` waits by looking instead of by HLT.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod alone;
mod exchange;
mod load;
mod stream;

use nagaya_guests::check;
use nagaya_guests::frames;
use nagaya_rt::args;
use nagaya_rt::net::card::Mac;
use nagaya_rt::net::{Card, Options, Waiting};

nagaya_rt::entry!(main);

fn main() {
    match args::get("role").unwrap_or("") {
        "ask" => exchange::ask(),
        "answer" => exchange::answer(),
        "masks" => exchange::masks(),
        "reset" => load::reset(),
        "load" => load::load(),
        "victim" => load::victim(),
        "survivor" => load::survivor(),
        "source" => stream::source(),
        "sink" => stream::sink(),
        "client" => stream::client(),
        "udp" => stream::udp(),
        "talker" => alone::talker(),
        "listener" => alone::listener(),
        "stranger" => alone::stranger(),
        "hostile" => alone::hostile(),
        "gadgets" => alone::gadgets(),
        other => panic!("role={other} on the command line: there is no such role"),
    }
    check::finish()
}

fn options() -> Options {
    Options::raw(if args::args().has("polled") {
        Waiting::Polled
    } else {
        Waiting::Interrupt
    })
}

fn open() -> Card {
    match Card::open(0, &options()) {
        Ok(card) => card,
        Err(error) => panic!("no card: {error}"),
    }
}

/// Opens the card and finds the peer.
fn meet() -> (Card, Mac) {
    let mut card = open();
    let peer = frames::meet(&mut card);
    check::holds("meets-its-peer", peer.is_some());
    (card, peer.unwrap_or_default())
}

/// A number that looks random, the same for the same `n`.
fn random(n: u32) -> u32 {
    let mut x = n.wrapping_mul(0x9E37_79B1) ^ 0x5DEE_CE66;
    for _ in 0..2 {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
    }
    x
}
