//! virtio-rng and virtio-console.

use nagaya_devices::console::{self, Console};
use nagaya_devices::entropy::{Entropy, Served};
use nagaya_devices::function::Function;
use nagaya_devices::pci::{PciBus, PciFunction, Width};
use nagaya_devices::queue::{QueueError, RingFeatures};
use nagaya_devices::test_support::guest::{self, message_of};
use nagaya_devices::test_support::{Buffer, DriverQueue, Layout, TestRam};
use nagaya_devices::virtio::{feature, status};
use proptest::prelude::*;

const RING: RingFeatures = RingFeatures {
    event_index: true,
    indirect: true,
};

fn layouts() -> [Layout; 2] {
    [Layout::at(0x1000, 16), Layout::at(0x2000, 16)]
}

fn buffer(index: u64, bytes: u32) -> Buffer {
    Buffer {
        start: 0x4000 + index * 0x100,
        bytes,
    }
}

fn entropy() -> (TestRam, DriverQueue, Entropy) {
    let ram = TestRam::new(0x10000);
    let mut device = Entropy::new();
    guest::start(&mut device, feature::COMMON, &layouts()[..1]);
    let driver = DriverQueue::new(&ram, layouts()[0], RING);
    (ram, driver, device)
}

fn console() -> (TestRam, [DriverQueue; 2], Console) {
    let ram = TestRam::new(0x10000);
    let mut device = Console::new();
    guest::start(&mut device, feature::COMMON, &layouts());
    let drivers = layouts().map(|layout| DriverQueue::new(&ram, layout, RING));
    (ram, drivers, device)
}

#[test]
fn requests_are_filled_as_far_as_there_are_random_bytes() {
    let (ram, mut driver, mut device) = entropy();
    driver
        .add(&ram, &[], &[buffer(0, 3), buffer(1, 2)])
        .expect("free");
    driver.add(&ram, &[], &[buffer(2, 8)]).expect("free");
    driver.publish(&ram);
    let served = device.serve(&ram, b"abcdefg").expect("runs");
    let message = Some(message_of(0));
    let expected = Served {
        bytes: 7,
        message,
        more: true,
    };
    assert_eq!(served, expected);
    assert_eq!(ram.peek(0x4000, 3), b"abc");
    assert_eq!(ram.peek(0x4100, 3), b"de\0");
    assert_eq!(ram.peek(0x4200, 3), b"fg\0");
    let written: Vec<u32> = std::iter::from_fn(|| driver.take(&ram))
        .map(|used| used.written)
        .collect();
    assert_eq!(written, [5, 2]);
    let served = device.serve(&ram, b"xyz").expect("runs");
    assert_eq!(
        (served.bytes, served.message, served.more),
        (0, None, false)
    );
    driver.add(&ram, &[], &[buffer(0, 4)]).expect("free");
    assert!(driver.publish(&ram), "a kick is wanted");
}

#[test]
fn a_request_that_is_no_request_stops_the_device() {
    let (ram, mut driver, mut device) = entropy();
    driver.add(&ram, &[buffer(0, 4)], &[]).expect("free");
    driver.publish(&ram);
    let stopped = device.serve(&ram, b"abc").expect_err("stops");
    assert_eq!(stopped.failure.error, QueueError::Direction);
    assert_eq!(stopped.message, Some(message_of(1)));
    assert!(guest::device_status(&mut device) & status::NEEDS_RESET != 0);
    let served = device.serve(&ram, b"abc").expect("does nothing");
    assert_eq!(served.bytes, 0);
}

#[test]
fn output_comes_in_order_and_a_chain_may_take_several_buffers() {
    let (ram, [_, mut driver], mut device) = console();
    ram.poke(0x4000, b"hello");
    ram.poke(0x4100, b", world");
    driver.add(&ram, &[buffer(0, 5)], &[]).expect("free");
    driver.add(&ram, &[buffer(1, 7)], &[]).expect("free");
    driver.publish(&ram);
    let mut all: Vec<u8> = Vec::new();
    let mut taken = Vec::new();
    loop {
        let mut room = [0; 4];
        let moved = device.take_output(&ram, &mut room).expect("runs");
        all.extend(&room[..moved.bytes]);
        taken.push(std::iter::from_fn(|| driver.take(&ram)).count());
        if !moved.more {
            break;
        }
    }
    assert_eq!(all, b"hello, world");
    assert_eq!(taken, [0, 1, 1]);
    let mut nothing = [];
    driver.add(&ram, &[buffer(0, 5)], &[]).expect("free");
    driver.publish(&ram);
    let moved = device.take_output(&ram, &mut nothing).expect("runs");
    assert_eq!((moved.bytes, moved.more), (0, true));
}

#[test]
fn half_an_output_is_let_go_at_a_reset() {
    let (ram, [_, mut driver], mut device) = console();
    ram.poke(0x4000, b"before");
    driver.add(&ram, &[buffer(0, 6)], &[]).expect("free");
    driver.publish(&ram);
    let mut room = [0; 3];
    assert!(device.take_output(&ram, &mut room).expect("runs").more);
    guest::start(&mut device, feature::COMMON, &layouts());
    let mut driver = DriverQueue::new(&ram, layouts()[1], RING);
    ram.poke(0x4000, b"after!");
    driver.add(&ram, &[buffer(0, 6)], &[]).expect("free");
    driver.publish(&ram);
    let mut room = [0; 10];
    let moved = device.take_output(&ram, &mut room).expect("runs");
    assert_eq!(&room[..moved.bytes], b"after!");
}

#[test]
fn input_fills_what_the_guest_offers_and_asks_for_more() {
    let (ram, [mut driver, _], mut device) = console();
    driver.add(&ram, &[], &[buffer(0, 4)]).expect("free");
    driver.publish(&ram);
    let moved = device.give_input(&ram, b"ls -la\n").expect("runs");
    assert_eq!((moved.bytes, moved.message), (4, Some(message_of(0))));
    assert_eq!(driver.take(&ram).expect("came").written, 4);
    assert_eq!(ram.peek(0x4000, 4), b"ls -");
    driver.add(&ram, &[], &[buffer(0, 100)]).expect("free");
    assert!(driver.publish(&ram), "a kick is wanted");
    let moved = device.give_input(&ram, b"la\n").expect("runs");
    assert_eq!(moved.bytes, 3);
    driver.add(&ram, &[buffer(0, 1)], &[]).expect("free");
    driver.publish(&ram);
    let stopped = device.give_input(&ram, b"x").expect_err("stops");
    assert_eq!(stopped.failure.queue, console::RECEIVE);
}

#[test]
fn functions_of_all_kinds_share_a_bus() {
    let mut bus: PciBus<Function> = PciBus::new();
    for (slot, function) in [
        (1, Function::Entropy(Entropy::new())),
        (2, Function::Console(Console::new())),
    ] {
        assert!(bus.insert(slot, function).is_ok());
    }
    assert!(bus.place_bars(0xC000_0000..0xC001_0000, 0xC000..0xD000));
    let ids: Vec<u32> = bus
        .functions_mut()
        .map(|(_, function)| function.config_read(0, Width::Dword))
        .collect();
    assert_eq!(ids, [0x1044_1AF4, 0x1043_1AF4]);
}

proptest! {
    /// Whatever is written comes out, cut anyhow on both sides, and though the device is saved and restored in the middle of a chain.
    #[test]
    fn output_is_what_was_written(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 1..30),
        rooms in proptest::collection::vec(1..300_usize, 1..5),
        saves: bool,
    ) {
        let (ram, [_, mut driver], mut device) = console();
        let mut all: Vec<u8> = Vec::new();
        let mut rooms = rooms.into_iter().cycle();
        for (number, piece) in (0..).zip(&pieces) {
            let at = buffer(number % 16, piece.len() as u32);
            ram.poke(at.start, piece);
            driver.add(&ram, &[at], &[]).expect("free");
            prop_assert!(driver.publish(&ram));
            loop {
                let mut room = vec![0; rooms.next().expect("endless")];
                let moved = device.take_output(&ram, &mut room).expect("runs");
                all.extend(&room[..moved.bytes]);
                if saves {
                    let state = device.save();
                    device = Console::restore(&state).expect("was saved by one of ours");
                    prop_assert_eq!(device.save(), state);
                }
                if !moved.more {
                    break;
                }
            }
            prop_assert!(driver.take(&ram).is_some());
        }
        prop_assert_eq!(all, pieces.concat());
    }
}
