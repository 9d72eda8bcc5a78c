//! Segments that are apart, rings that are broken on purpose, and the smaller devices.

use core::sync::atomic::Ordering;

use nagaya_guests::frames;
use nagaya_guests::{REGION_VA, check};
use nagaya_rt::net::card::{BROADCAST, Breakage, Card, Mac};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::time::{Deadline, spin_ms};
use nagaya_rt::{println, virtio};

use super::{open, options};

/// The stranger's address, as in its scenario.
const STRANGER: Mac = [2, 0, 0, 0, 0, 0x33];
const FRAMES: u32 = 100;

fn region() -> SharedRegion {
    match SharedRegion::map_at(REGION_VA) {
        Ok(region) => region,
        Err(errno) => panic!("no shared region: {errno}"),
    }
}

/// Waits until that many have come to this point, counted in a cell of the region.
fn gather(region: &SharedRegion, offset: u64, count: u64) {
    let cell = region.u64(offset).expect("a cell of the region");
    cell.fetch_add(1, Ordering::AcqRel);
    let patience = Deadline::after_ms(20_000);
    while cell.load(Ordering::Acquire) < count && !patience.has_passed() {
        nagaya_rt::time::pause();
    }
    check::equal("all-are-here", cell.load(Ordering::Acquire), count);
}

/// Tells everybody, and the stranger by its address.
pub(super) fn talker() {
    let (mut card, region) = (open(), region());
    gather(&region, 0, 3);
    for number in 0..FRAMES {
        for to in [BROADCAST, STRANGER] {
            frames::send(&mut card, to, [number, 0], 100, |_| ());
        }
        card.transmitter.flush();
        spin_ms(1);
    }
    gather(&region, 64, 3);
}

fn heard(card: &mut Card) -> u32 {
    let mut count = 0;
    while card.receiver.take().is_some() {
        count += 1;
    }
    count
}

/// Hears the talker: what is broadcast, and what the switch sends everywhere since it does not know the address.
pub(super) fn listener() {
    let (mut card, region) = (open(), region());
    gather(&region, 0, 3);
    gather(&region, 64, 3);
    check::equal("hears-all", heard(&mut card), 2 * FRAMES);
}

/// Is on another segment.
pub(super) fn stranger() {
    let (mut card, region) = (open(), region());
    check::equal("address", card.address(), STRANGER);
    gather(&region, 0, 3);
    gather(&region, 64, 3);
    check::equal("hears-nothing", heard(&mut card), 0);
}

/// Breaks its card's rings in every way, each of which must stop that card only, and starts it again.
pub(super) fn hostile() {
    let mut card = open();
    for how in Breakage::ALL {
        check::holds("works-before", !card.device().needs_reset());
        card.transmitter.break_ring(how);
        let patience = Deadline::after_ms(500);
        while !card.device().needs_reset() && !patience.has_passed() {
            nagaya_rt::time::pause();
        }
        println!("{how:?}");
        check::holds("stops", card.device().needs_reset());
        card = match card.restart(&options()) {
            Ok(card) => card,
            Err(error) => panic!("the card does not come back after {how:?}: {error}"),
        };
        frames::send(&mut card, BROADCAST, [0, 99], 0, |_| ());
        card.transmitter.flush();
        spin_ms(2);
        check::holds("sends-again", card.transmitter.is_idle());
    }
}

/// The source of entropy and the console.
pub(super) fn gadgets() {
    let kinds: alloc::vec::Vec<_> = virtio::devices().iter().map(|(_, kind)| *kind).collect();
    println!("on the bus: {kinds:?}");
    match virtio::entropy() {
        Ok(mut source) => {
            let mut keys = [[0; 32]; 2];
            for key in &mut keys {
                let count = source.request_entropy(key);
                check::equal("entropy", count.ok(), Some(32));
            }
            check::holds(
                "not-the-same-twice",
                keys[0] != keys[1] && keys[0] != [0; 32],
            );
        }
        Err(error) => println!("FAIL entropy: {error}"),
    }
    match virtio::console() {
        Ok(mut console) => {
            let text = b"said through virtio-console\n";
            let sent = text.iter().try_for_each(|byte| console.send(*byte));
            check::holds("console", sent.is_ok());
        }
        Err(error) => println!("FAIL console: {error}"),
    }
}
