//! virtio-net between guests that keep the rules.

use nagaya_devices::net::{BurstLimit, Offloads, feature};
use nagaya_devices::pci::{Effect, PciFunction, Width};
use nagaya_devices::switch::{DropReason, PortId};
use nagaya_devices::test_support::guest::{self, message_of};
use nagaya_devices::virtio::{self, layout};
use proptest::prelude::*;

use crate::lan::{ALL, Guest, LIMIT, Lan, RX_VECTOR, TX_VECTOR, address, frame};

const FULL: Offloads = Offloads::ChecksumAndSegmentation;

fn lan(features: &[u64]) -> Lan {
    let guests = features.iter().enumerate();
    Lan::new(
        guests
            .map(|(number, features)| Guest::new(number, *features, FULL, None))
            .collect(),
    )
}

fn drops(lan: &Lan, number: u8, reason: DropReason) -> u64 {
    let port = PortId::new(number).expect("few");
    lan.switch.counters(port).expect("is there").drops(reason)
}

/// A header with an open checksum, and with a segmentation if `gso` is not 0.
fn open_header(start: u16, offset: u16, gso: u8, size: u16) -> [u8; 12] {
    let [s0, s1] = start.to_le_bytes();
    let [o0, o1] = offset.to_le_bytes();
    let [g0, g1] = size.to_le_bytes();
    [1, gso, 54, 0, g0, g1, s0, s1, o0, o1, 0, 0]
}

#[test]
fn the_card_says_what_it_is() {
    let mut guest = Guest::new(7, ALL, FULL, Some(1500));
    let net = &mut guest.net;
    assert_eq!(net.config_read(0x08, Width::Dword), 0x0200_0001);
    let offered = guest::offered(net);
    let expected = virtio::feature::COMMON
        | feature::CHECKSUM
        | feature::SEGMENTATION
        | feature::MTU
        | feature::MAC
        | feature::MRG_RXBUF
        | feature::STATUS;
    assert_eq!(offered, expected);
    let config: Vec<u8> = (0..12)
        .map(|at| guest::read(net, layout::DEVICE + at, Width::Byte) as u8)
        .collect();
    assert_eq!(config[..6], address(7).0);
    assert_eq!(config[6..], [1, 0, 1, 0, 0xDC, 0x05]);
    let mut plain = Guest::new(7, ALL, Offloads::None, None);
    let left_out = feature::CHECKSUM | feature::SEGMENTATION | feature::MTU;
    assert_eq!(guest::offered(&mut plain.net), expected & !left_out);
}

#[test]
fn a_frame_arrives_whole_is_copied_once_and_interrupts_both() {
    let mut lan = lan(&[ALL, ALL]);
    lan.guests[1].post(2048, &[2048]);
    lan.guests[1].ram.take_written_bytes();
    let sent = frame(0, 1, 1514);
    assert!(lan.guests[0].send(&sent), "the device waits for a kick");
    assert!(!lan.kick(0, LIMIT));
    let received = lan.guests[1].receive().expect("has arrived");
    assert_eq!(received.bytes, sent);
    assert_eq!(received.header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(lan.guests[1].ram.take_copied_bytes(), 1500);
    // Headers 12 and 14, used element 8, used index 2: nothing else went through the hypervisor's own hands.
    assert_eq!(lan.guests[1].ram.take_written_bytes(), 36);
    assert_eq!(lan.guests[1].messages, [message_of(RX_VECTOR)]);
    assert_eq!(lan.guests[0].messages, [message_of(TX_VECTOR)]);
    assert!(lan.guests[0].take_sent());
    let (sender, receiver) = (lan.guests[0].net.stats(), lan.guests[1].net.stats());
    assert_eq!((sender.sent_frames, sender.sent_bytes), (1, 1514));
    assert_eq!(
        (receiver.received_frames, receiver.received_bytes),
        (1, 1514)
    );
    assert_eq!(receiver.checksums, 0);
}

#[test]
fn a_burst_makes_one_interrupt_at_each_end() {
    let mut lan = lan(&[ALL, ALL]);
    for _ in 0..16 {
        lan.guests[1].post(2048, &[2048]);
        lan.guests[0].send(&frame(0, 1, 100));
    }
    assert!(!lan.kick(0, LIMIT));
    assert_eq!(lan.guests[0].messages.len(), 1);
    assert_eq!(lan.guests[1].messages.len(), 1);
    for _ in 0..16 {
        assert!(lan.guests[1].receive().is_some());
    }
}

#[test]
fn a_broadcast_arrives_at_all_others() {
    let mut lan = lan(&[ALL, ALL, ALL]);
    let mut sent = frame(0, 1, 60);
    sent[..6].fill(0xFF);
    for number in [1, 2] {
        lan.guests[number].post(2048, &[100, 2048]);
    }
    lan.guests[0].send(&sent);
    lan.kick(0, LIMIT);
    for number in [1, 2] {
        let received = lan.guests[number].receive().expect("has arrived");
        assert_eq!(received.bytes, sent);
    }
}

#[test]
fn a_large_segment_is_passed_on_as_it_is_over_several_buffers() {
    let mut lan = lan(&[ALL, ALL]);
    for _ in 0..44 {
        lan.guests[1].post(1536, &[1536]);
    }
    let sent = frame(0, 1, 65_226);
    let header = open_header(34, 16, 1, 1448);
    lan.guests[0].send_with(header, &sent, &[12, 4096]);
    lan.kick(0, LIMIT);
    let received = lan.guests[1].receive().expect("has arrived");
    assert!(received.bytes == sent, "contents differ");
    let mut expected = header;
    // ceil((65226 + 12) / 1536) buffers.
    expected[10] = 43;
    assert_eq!(received.header, expected);
    assert_eq!(lan.guests[1].ram.take_copied_bytes(), 65_226 - 14);
    assert_eq!(lan.guests[1].net.stats().checksums, 0);
}

#[test]
fn a_receiver_that_wants_whole_checksums_gets_them_computed() {
    let mut lan = lan(&[
        ALL,
        !feature::GUEST_CSUM & !feature::GUEST_TSO4 & !feature::GUEST_TSO6,
    ]);
    // An odd number of bytes after the start, over pieces of odd lengths; the field holds the sum so far, as drivers leave it.
    let mut sent = frame(0, 1, 77);
    sent[40..42].copy_from_slice(&[0x12, 0x34]);
    let sum: u32 = sent[34..]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    let expected = !((folded & 0xFFFF) + (folded >> 16)) as u16;
    lan.guests[1].post(2048, &[53, 2048]);
    lan.guests[0].send_with(open_header(34, 6, 0, 0), &sent, &[12, 37, 11]);
    lan.kick(0, LIMIT);
    let received = lan.guests[1].receive().expect("has arrived");
    sent[40..42].copy_from_slice(&expected.to_be_bytes());
    assert_eq!(received.bytes, sent);
    assert_eq!(received.header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(lan.guests[1].net.stats().checksums, 1);
}

#[test]
fn a_checksum_that_would_be_zero_is_written_as_all_ones() {
    let mut lan = lan(&[ALL, 0]);
    let mut sent = frame(0, 1, 36);
    sent[34..36].copy_from_slice(&[0xFF, 0xFF]);
    lan.guests[1].post(1600, &[1600]);
    lan.guests[0].send_with(open_header(34, 0, 0, 0), &sent, &[4096]);
    lan.kick(0, LIMIT);
    let received = lan.guests[1].receive().expect("has arrived");
    assert_eq!(received.bytes[34..], [0xFF, 0xFF]);
}

#[test]
fn a_large_segment_is_dropped_at_a_receiver_that_did_not_agree_to_it() {
    for (gso, missing) in [(1, feature::GUEST_TSO4), (4, feature::GUEST_TSO6)] {
        let mut lan = lan(&[ALL, !missing]);
        lan.guests[1].post(4096, &[4096]);
        lan.guests[0].send_with(open_header(34, 16, gso, 1448), &frame(0, 1, 3000), &[4096]);
        lan.kick(0, LIMIT);
        assert_eq!(lan.guests[1].receive(), None);
        assert_eq!(drops(&lan, 1, DropReason::Offload), 1);
        let other = 5 - gso;
        lan.guests[0].send_with(
            open_header(34, 16, other, 1448),
            &frame(0, 1, 3000),
            &[4096],
        );
        lan.kick(0, LIMIT);
        assert!(lan.guests[1].receive().is_some());
    }
}

#[test]
fn without_mergeable_buffers_a_frame_takes_one_buffer_or_is_dropped() {
    let mut lan = lan(&[ALL, !feature::MRG_RXBUF]);
    for _ in 0..3 {
        lan.guests[1].post(1000, &[1000]);
    }
    lan.guests[0].send(&frame(0, 1, 989));
    lan.guests[0].send(&frame(0, 1, 988));
    lan.kick(0, LIMIT);
    assert_eq!(drops(&lan, 1, DropReason::Length), 1);
    let received = lan.guests[1].receive().expect("has arrived");
    assert_eq!(received.bytes.len(), 988);
    assert_eq!(received.header[10], 1);
    assert_eq!(lan.guests[1].rx.pending(), 2, "the buffer was not lost");
}

#[test]
fn without_buffers_frames_are_dropped_and_the_receiver_is_asked_for_a_kick() {
    for features in [ALL, !virtio::feature::EVENT_IDX] {
        let mut lan = lan(&[ALL, features]);
        lan.guests[1].post(100, &[100]);
        lan.guests[0].send(&frame(0, 1, 500));
        lan.kick(0, LIMIT);
        assert_eq!(drops(&lan, 1, DropReason::NoBuffers), 1);
        assert!(lan.guests[1].post(2048, &[2048]), "the kick is wanted");
        lan.guests[0].send(&frame(0, 1, 500));
        lan.kick(0, LIMIT);
        let received = lan.guests[1].receive().expect("has arrived");
        assert_eq!((received.bytes.len(), received.header[10]), (500, 2));
    }
}

#[test]
fn buffers_are_refilled_without_kicks_as_long_as_there_are_enough() {
    for features in [ALL, !virtio::feature::EVENT_IDX] {
        let mut lan = lan(&[ALL, features]);
        // The first kick cannot be avoided.
        assert!(lan.guests[1].post(2048, &[2048]));
        for _ in 0..3 {
            lan.guests[0].send(&frame(0, 1, 500));
            lan.kick(0, LIMIT);
            assert!(lan.guests[1].receive().is_some());
            assert!(!lan.guests[1].post(2048, &[2048]), "no kick is wanted");
        }
        // The driver asked for one by index, or for all by its flags.
        let wanted = if features == ALL { 1 } else { 3 };
        assert_eq!(lan.guests[1].net.stats().interrupts, wanted);
        assert_eq!(lan.guests[0].net.stats().bursts, 3);
    }
}

#[test]
fn a_frame_that_was_put_back_is_taken_again() {
    let mut guest = Guest::new(0, ALL, FULL, None);
    guest.send(&frame(0, 1, 60));
    let mut taken = nagaya_devices::net::TxFrame::new();
    for _ in 0..3 {
        guest.net.begin_burst(&guest.ram, LIMIT).expect("runs");
        let next = guest.net.next_frame(&guest.ram, &mut taken);
        assert_eq!(next, Ok(nagaya_devices::net::Next::Frame));
        guest.net.put_back(&taken);
        assert_eq!(guest.net.stats().sent_frames, 0);
        let end = guest.net.end_burst(&guest.ram).expect("runs");
        assert_eq!((end.more, end.message), (true, None));
    }
}

#[test]
fn a_burst_ends_at_its_limit_and_the_rest_comes_later() {
    let mut lan = lan(&[ALL, ALL]);
    for _ in 0..10 {
        lan.guests[1].post(2048, &[2048]);
        lan.guests[0].send(&frame(0, 1, 988));
    }
    let of_frames = BurstLimit {
        frames: 4,
        bytes: 1 << 20,
    };
    let count = |lan: &mut Lan| std::iter::from_fn(|| lan.guests[1].receive()).count();
    assert!(lan.kick(0, of_frames));
    assert_eq!(count(&mut lan), 4);
    let of_bytes = BurstLimit {
        frames: 100,
        bytes: 2001,
    };
    assert!(lan.kick(0, of_bytes));
    assert_eq!(count(&mut lan), 3);
    assert!(!lan.kick(0, of_frames));
    assert_eq!(count(&mut lan), 3);
}

#[test]
fn copies_to_many_are_charged_to_the_sender() {
    let mut lan = lan(&[ALL, ALL, ALL, ALL]);
    for number in 1..4 {
        for _ in 0..4 {
            lan.guests[number].post(2048, &[2048]);
        }
    }
    let mut sent = frame(0, 1, 988);
    sent[..6].fill(0xFF);
    for _ in 0..4 {
        lan.guests[0].send(&sent);
    }
    // Taking a frame costs 1000 bytes, each copy after the first 988.
    let limit = BurstLimit {
        frames: 100,
        bytes: 5000,
    };
    assert!(lan.kick(0, limit));
    let count = |lan: &mut Lan| std::iter::from_fn(|| lan.guests[1].receive()).count();
    assert_eq!(count(&mut lan), 2);
}

#[test]
fn a_cable_that_is_out_is_told_and_nothing_arrives() {
    let mut lan = lan(&[ALL, ALL]);
    lan.guests[1].post(2048, &[2048]);
    let config_vector = message_of(2);
    assert_eq!(lan.guests[1].net.set_link(false), Some(config_vector));
    assert_eq!(lan.guests[1].net.set_link(false), None);
    let status = guest::read(&mut lan.guests[1].net, layout::DEVICE + 6, Width::Word);
    assert_eq!(status, 0);
    lan.guests[0].send(&frame(0, 1, 60));
    lan.kick(0, LIMIT);
    assert_eq!(drops(&lan, 1, DropReason::NotReady), 1);
    assert_eq!(lan.guests[1].net.set_link(true), Some(config_vector));
    lan.guests[0].send(&frame(0, 1, 60));
    lan.kick(0, LIMIT);
    assert!(lan.guests[1].receive().is_some());
}

#[test]
fn a_receiver_with_an_mtu_gets_no_longer_packets() {
    let guests = [None, Some(1500)].into_iter().enumerate();
    let mut lan = Lan::new(
        guests
            .map(|(number, mtu)| Guest::new(number, ALL, FULL, mtu))
            .collect(),
    );
    for _ in 0..3 {
        lan.guests[1].post(4096, &[4096]);
    }
    for bytes in [1518, 1519] {
        lan.guests[0].send(&frame(0, 1, bytes));
    }
    // A large segment is no packet yet.
    lan.guests[0].send_with(open_header(34, 16, 1, 1448), &frame(0, 1, 3000), &[4096]);
    lan.kick(0, LIMIT);
    let lengths: Vec<usize> = std::iter::from_fn(|| lan.guests[1].receive())
        .map(|received| received.bytes.len())
        .collect();
    assert_eq!(lengths, [1518, 3000]);
    assert_eq!(drops(&lan, 1, DropReason::Length), 1);
}

#[test]
fn a_reset_while_a_frame_is_taken_lets_it_go() {
    let mut lan = lan(&[ALL, ALL]);
    lan.guests[1].post(2048, &[2048]);
    lan.guests[0].send(&frame(0, 1, 60));
    let mut taken = nagaya_devices::net::TxFrame::new();
    let sender = &mut lan.guests[0];
    sender.net.begin_burst(&sender.ram, LIMIT).expect("runs");
    assert!(sender.net.next_frame(&sender.ram, &mut taken).is_ok());
    assert_eq!(guest::set_status(&mut sender.net, 0), Effect::Reset);
    assert_eq!(sender.net.finish_frame(&sender.ram, &taken), Ok(()));
    sender.restart(ALL);
    assert_eq!(sender.net.finish_frame(&sender.ram, &taken), Ok(()));
    sender.net.put_back(&taken);
    assert_eq!(sender.tx.take(&sender.ram), None);
    sender.send(&frame(0, 1, 61));
    lan.kick(0, LIMIT);
    assert_eq!(
        lan.guests[1].receive().expect("has arrived").bytes.len(),
        61
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Frames of any length in any pieces arrive in order, whole, each byte copied once, whatever the receiver agreed to, and though
    /// the cards are saved and restored meanwhile.
    #[test]
    fn frames_arrive_in_order_and_whole(
        frames in proptest::collection::vec(
            (14..6000_usize, proptest::collection::vec(1..3000_u32, 1..6)),
            1..12,
        ),
        buffers in proptest::collection::vec(12..2500_u32, 1..4),
        pieces in proptest::collection::vec(200..3000_u32, 1..4),
        sender_features: u64,
        receiver_features: u64,
        saves: bool,
    ) {
        let receiver_features = receiver_features | feature::MRG_RXBUF;
        let mut lan = lan(&[sender_features, receiver_features]);
        lan.saves = saves;
        let mut buffers = buffers.iter().cycle();
        for (bytes, lengths) in frames {
            // Room enough, and a little more.
            let mut room = 0;
            while room < bytes + 12 {
                let buffer = *buffers.next().expect("endless");
                if lan.guests[1].rx.free() < 16 {
                    break;
                }
                lan.guests[1].post(buffer.max(200), &pieces);
                room += buffer.max(200) as usize;
            }
            if room < bytes + 12 {
                continue;
            }
            let sent = frame(0, 1, bytes);
            let can_be_indirect = sender_features & virtio::feature::INDIRECT_DESC != 0;
            let lengths = if can_be_indirect { lengths } else { vec![4096] };
            let count = lengths.len() + (bytes + 12) / *lengths.last().expect("some") as usize;
            let lengths = if count > 60 { vec![4096] } else { lengths };
            lan.guests[1].ram.take_copied_bytes();
            lan.guests[0].send_with([0; 12], &sent, &lengths);
            prop_assert!(!lan.kick(0, LIMIT));
            let received = lan.guests[1].receive();
            prop_assert_eq!(received.expect("has arrived").bytes, sent);
            // The Ethernet header goes as it was read for the switch.
            prop_assert_eq!(lan.guests[1].ram.take_copied_bytes(), bytes as u64 - 14);
            prop_assert!(lan.guests[0].take_sent());
        }
    }
}
