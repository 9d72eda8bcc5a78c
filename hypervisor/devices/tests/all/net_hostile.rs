//! virtio-net with drivers that break the rules: they lose their own card and nothing else.

use nagaya_devices::net::{Offloads, RECEIVE, TRANSMIT, feature};
use nagaya_devices::queue::QueueError;
use nagaya_devices::switch::{DropReason, PortId};
use nagaya_devices::test_support::Buffer;
use nagaya_devices::test_support::guest::{device_status, message_of};
use nagaya_devices::virtio::status;
use proptest::prelude::*;

use crate::lan::{ALL, Guest, LIMIT, Lan, frame};

fn lan() -> Lan {
    let new = |number| Guest::new(number, ALL, Offloads::ChecksumAndSegmentation, None);
    Lan::new((0..3).map(new).collect())
}

/// The guest's card has stopped for this reason and said so.
fn assert_stopped(lan: &mut Lan, number: usize, queue: u16) -> QueueError {
    let guest = &mut lan.guests[number];
    assert!(device_status(&mut guest.net) & status::NEEDS_RESET != 0);
    assert_eq!(guest.messages.pop(), Some(message_of(2)));
    let failure = guest.net.pci().failure().expect("has failed");
    assert_eq!(failure.queue, queue);
    failure.error
}

/// Two other guests go on, and the broken one comes back by a reset.
fn assert_others_go_on(lan: &mut Lan, broken: usize) {
    let (one, two) = ((broken + 1) % 3, (broken + 2) % 3);
    lan.guests[two].post(2048, &[2048]);
    lan.guests[one].send(&frame(one, two, 100));
    lan.kick(one, LIMIT);
    assert!(lan.guests[two].receive().is_some());
    lan.guests[broken].restart(ALL);
    lan.guests[two].post(2048, &[2048]);
    lan.guests[broken].send(&frame(broken, two, 100));
    lan.kick(broken, LIMIT);
    assert!(lan.guests[two].receive().is_some());
}

#[test]
fn a_chain_without_room_for_the_header_stops_the_sender() {
    let mut lan = lan();
    let guest = &mut lan.guests[0];
    let buffer = Buffer {
        start: 0x10000,
        bytes: 11,
    };
    guest.tx.add(&guest.ram, &[buffer], &[]).expect("free");
    guest.tx.publish(&guest.ram);
    lan.kick(0, LIMIT);
    let error = assert_stopped(&mut lan, 0, TRANSMIT);
    let least = 12;
    assert_eq!(error, QueueError::ChainBytes { bytes: 11, least });
    assert_others_go_on(&mut lan, 0);
}

#[test]
fn buffers_in_the_wrong_direction_stop_their_card() {
    let mut lan = lan();
    let buffer = Buffer {
        start: 0x10000,
        bytes: 2048,
    };
    let guest = &mut lan.guests[0];
    guest
        .tx
        .add(&guest.ram, &[buffer], &[buffer])
        .expect("free");
    guest.tx.publish(&guest.ram);
    lan.kick(0, LIMIT);
    assert_eq!(assert_stopped(&mut lan, 0, TRANSMIT), QueueError::Direction);
    assert_others_go_on(&mut lan, 0);
    let guest = &mut lan.guests[1];
    guest
        .rx
        .add(&guest.ram, &[buffer], &[buffer])
        .expect("free");
    guest.rx.publish(&guest.ram);
    lan.guests[0].send(&frame(0, 1, 60));
    lan.kick(0, LIMIT);
    assert_eq!(assert_stopped(&mut lan, 1, RECEIVE), QueueError::Direction);
    assert_others_go_on(&mut lan, 1);
}

#[test]
fn receive_buffers_too_small_for_a_header_stop_the_receiver() {
    let mut lan = lan();
    lan.guests[1].post(11, &[11]);
    lan.guests[0].send(&frame(0, 1, 60));
    lan.kick(0, LIMIT);
    let error = assert_stopped(&mut lan, 1, RECEIVE);
    let least = 12;
    assert_eq!(error, QueueError::ChainBytes { bytes: 11, least });
    assert_others_go_on(&mut lan, 1);
}

#[test]
fn a_hole_stops_the_guest_whose_it_is() {
    // The sender's, behind the header.
    let mut lan = lan();
    lan.guests[1].post(2048, &[2048]);
    lan.guests[0].send(&frame(0, 1, 1000));
    lan.guests[0].ram.make_hole(0x10100..0x10101);
    lan.kick(0, LIMIT);
    assert!(matches!(
        assert_stopped(&mut lan, 0, TRANSMIT),
        QueueError::Ram(_)
    ));
    assert_eq!(lan.guests[1].receive(), None);
    lan.guests[2].send(&frame(2, 1, 60));
    lan.kick(2, LIMIT);
    assert!(lan.guests[1].receive().is_some(), "the buffer was not lost");
    // The receiver's.
    let mut lan = self::lan();
    lan.guests[1].post(2048, &[2048]);
    lan.guests[0].send(&frame(0, 1, 1000));
    lan.guests[1].ram.make_read_only(0x40100..0x40101);
    lan.kick(0, LIMIT);
    assert!(matches!(
        assert_stopped(&mut lan, 1, RECEIVE),
        QueueError::Ram(_)
    ));
    assert!(lan.guests[0].take_sent());
    let sender_status = device_status(&mut lan.guests[0].net);
    assert_eq!(sender_status & status::NEEDS_RESET, 0);
}

#[test]
fn headers_that_make_no_sense_lose_their_frame_only() {
    let header = |flags, gso, size: u16, start: u16, offset: u16| {
        let [g0, g1] = size.to_le_bytes();
        let [s0, s1] = start.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        [flags, gso, 0, 0, g0, g1, s0, s1, o0, o1, 0, 0]
    };
    for (head, features) in [
        // The checksum outside the frame.
        (header(1, 0, 0, 90, 9), ALL),
        (header(1, 0, 0, 0xFFFF, 0xFFFF), ALL),
        // Into the Ethernet header: over the source address, and where it would begin there.
        (header(1, 0, 0, 0, 6), ALL),
        (header(1, 0, 0, 13, 16), ALL),
        // Segmentation without a checksum, of no bytes, of an unknown kind.
        (header(0, 1, 1448, 34, 16), ALL),
        (header(1, 1, 0, 34, 16), ALL),
        (header(1, 3, 1448, 34, 6), ALL),
        (header(1, 0x81, 1448, 34, 16), ALL),
        (header(1, 0xFF, 1448, 34, 16), ALL),
        // Not agreed on.
        (
            header(1, 0, 0, 34, 16),
            !feature::CSUM & !feature::SEGMENTATION,
        ),
        (header(1, 1, 1448, 34, 16), !feature::HOST_TSO4),
        (header(1, 4, 1448, 34, 16), !feature::HOST_TSO6),
    ] {
        let mut lan = lan();
        lan.guests[0].restart(features);
        lan.guests[1].post(2048, &[2048]);
        lan.guests[0].send_with(head, &frame(0, 1, 100), &[4096]);
        lan.guests[0].send_with([0; 12], &frame(0, 1, 99), &[4096]);
        lan.kick(0, LIMIT);
        let received = lan.guests[1].receive().expect("the second arrives");
        assert_eq!(received.bytes.len(), 99, "{head:?}");
        assert_eq!(lan.guests[0].net.stats().bad_headers, 1);
        for _ in 0..2 {
            assert!(lan.guests[0].take_sent());
        }
    }
}

#[test]
fn flags_that_nobody_knows_are_not_passed_on() {
    let mut lan = lan();
    lan.guests[1].post(2048, &[2048]);
    let head = [0xFE, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    lan.guests[0].send_with(head, &frame(0, 1, 100), &[4096]);
    lan.kick(0, LIMIT);
    let received = lan.guests[1].receive().expect("has arrived");
    assert_eq!(received.header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn buffers_in_countless_pieces_lose_the_frame_and_bound_the_work() {
    let mut lan = lan();
    let guest = &mut lan.guests[1];
    // 40 chains of 64 pieces of a byte.
    for chain in 0..40 {
        let pieces: Vec<Buffer> = (0..64)
            .map(|piece| Buffer {
                start: 0x40000 + chain * 256 + piece * 2,
                bytes: 1,
            })
            .collect();
        let table = 0x80000 + chain * 1024;
        guest
            .rx
            .add_indirect(&guest.ram, table, &[], &pieces)
            .expect("free");
    }
    guest.rx.publish(&guest.ram);
    lan.guests[0].send(&frame(0, 1, 2000));
    lan.kick(0, LIMIT);
    let guest = &mut lan.guests[1];
    assert_eq!(guest.rx.take(&guest.ram), None);
    assert_eq!(guest.ram.take_copied_bytes(), 0);
    let loads: usize = guest.ram.take_loads().values().sum();
    assert!(loads < 20 * 1200, "{loads} bytes were looked at");
    let port = PortId::new(1).expect("few");
    let counters = lan.switch.counters(port).expect("is there");
    assert_eq!(counters.drops(DropReason::Scattered), 1);
    // As many pieces as are allowed.
    lan.guests[0].send(&frame(0, 1, 1012));
    lan.kick(0, LIMIT);
    assert_eq!(lan.guests[1].net.stats().received_bytes, 1012);
}

/// Sends a frame whose headers change each time that they have been read.
fn send_changing(seed: u64, lengths: &[u32], receiver_pieces: &[u32]) -> Lan {
    let mut lan = lan();
    lan.guests[1].post(2048, receiver_pieces);
    lan.guests[0].send_with([0; 12], &frame(0, 1, 1000), lengths);
    // Both headers, however they are cut.
    lan.guests[0].ram.make_restless(0x10000..0x10080, seed);
    lan.kick(0, LIMIT);
    lan
}

#[test]
fn what_was_checked_is_what_arrives_however_the_sender_rewrites_it() {
    for seed in 0..50 {
        for lengths in [
            &[4096][..],
            &[12, 4096],
            &[20, 4096],
            &[26, 4096],
            &[9, 4, 90],
        ] {
            for receiver_pieces in [&[2048][..], &[12, 2048], &[21, 128]] {
                let mut lan = send_changing(seed, lengths, receiver_pieces);
                let received = lan.guests[1].receive().expect("has arrived");
                assert_eq!(received.bytes.len(), 1000);
                assert_eq!(received.bytes[..14], frame(0, 1, 1000)[..14]);
                assert_eq!(received.header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            }
        }
    }
}

#[test]
fn no_driver_gets_more_storage_by_the_pieces_of_its_buffers() {
    let mut lan = lan();
    let before = lan.guests[1].net.storage_bytes();
    for round in 0..30_u64 {
        let guest = &mut lan.guests[1];
        // Chains of 1 to 64 pieces, another length in each place of the ring with each round.
        for chain in 0..15 {
            let pieces: Vec<Buffer> = (0..1 + (chain * 7 + round * 13) % 64)
                .map(|piece| Buffer {
                    start: 0x40000 + chain * 1024 + piece * 16,
                    bytes: 14,
                })
                .collect();
            let table = 0x80000 + chain * 1024;
            let added = guest.rx.add_indirect(&guest.ram, table, &[], &pieces);
            added.expect("free");
        }
        guest.rx.publish(&guest.ram);
        for _ in 0..4 {
            lan.guests[0].send(&frame(0, 1, 1400));
        }
        lan.kick(0, LIMIT);
        while lan.guests[0].take_sent() {}
        assert_eq!(lan.guests[1].net.storage_bytes(), before);
        lan.guests[1].restart(ALL);
    }
    assert!(lan.guests[1].net.stats().received_frames > 0);
    assert!(before < 32 << 10, "{before}");
}

#[test]
fn runts_and_foreign_sources_go_nowhere() {
    let mut lan = lan();
    lan.guests[1].post(2048, &[2048]);
    lan.guests[0].send(&frame(0, 1, 13));
    lan.guests[0].send(&frame(2, 1, 60));
    lan.kick(0, LIMIT);
    assert_eq!(lan.guests[1].receive(), None);
    let port = PortId::new(0).expect("few");
    let counters = lan.switch.counters(port).expect("is there");
    assert_eq!(counters.drops(DropReason::Length), 1);
    assert_eq!(counters.drops(DropReason::Source), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The first guest's memory is garbage that changes all the time. It may lose its card; the others exchange frames.
    #[test]
    fn a_guest_of_garbage_harms_nobody(
        seed: u64,
        garbage in proptest::collection::vec(any::<u8>(), 0x400),
        kicks in 1..20_usize,
    ) {
        let mut lan = lan();
        for number in 1..3 {
            for _ in 0..4 {
                lan.guests[number].post(2048, &[512]);
            }
        }
        lan.guests[0].ram.poke(0x1000, &garbage.repeat(20));
        lan.guests[0].ram.make_restless(0x1000..0x6000, seed);
        for _ in 0..kicks {
            lan.kick(0, LIMIT);
            lan.guests[1].send(&frame(1, 0, 200));
            lan.kick(1, LIMIT);
        }
        lan.guests[2].restart(ALL);
        lan.guests[2].post(2048, &[2048]);
        lan.guests[1].restart(ALL);
        lan.guests[1].send(&frame(1, 2, 300));
        prop_assert!(!lan.kick(1, LIMIT));
        prop_assert_eq!(lan.guests[2].receive().expect("has arrived").bytes, frame(1, 2, 300));
    }
}
