//! A third VM that keeps the hypervisor busy while two others are measured: frames from one of its cards to the other, on a segment
//! of its own, as fast as it can, until ping has ended.

use nagaya_guests::frames;
use nagaya_rt::net::card::Card;
use nagaya_rt::net::{Options, Waiting};
use nagaya_rt::{group, println};

use crate::PING;

pub(crate) fn run() {
    let options = Options::raw(Waiting::Polled);
    let (Ok(mut from), Ok(mut to)) = (Card::open(0, &options), Card::open(1, &options)) else {
        panic!("interference needs two cards");
    };
    let address = to.address();
    let mut count = 0_u64;
    while group::is_alive(PING) {
        for _ in 0..8 {
            frames::send(&mut from, address, [count as u32, 0], 1400, |_| ());
            count += 1;
        }
        from.transmitter.flush();
        while frames::take(&mut to, |_| ()).is_some() {}
    }
    println!("sent {count} frames meanwhile");
}
