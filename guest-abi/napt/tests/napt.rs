//! What the translator promises, packet by packet, and against a model that knows no tables, only what was said.

use std::collections::{BTreeMap, BTreeSet};

use nagaya_napt::{
    Config, ConfigError, Drop, Endpoint, Inside, Napt, Protocol, PublishError, Timeouts, Verdict,
    checksum, segment_checksum,
};
use proptest::prelude::*;

const OUTSIDE: [u8; 4] = [192, 0, 2, 1];
const REMOTE: [u8; 4] = [198, 51, 100, 7];
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const MINUTE: u64 = 60_000;

fn config(max_sessions: usize) -> Config {
    Config {
        address: OUTSIDE,
        ports: (40_000, 60_000),
        max_sessions,
        timeouts: Timeouts::default(),
        seed: 42,
    }
}

fn napt(max_sessions: usize) -> Napt {
    Napt::new(config(max_sessions)).expect("a configuration that can be")
}

fn address(vm: u16) -> [u8; 4] {
    [10, 0, 0, 10 + vm as u8]
}

/// A packet, with right checksums.
fn packet(protocol: Protocol, flags: u8, from: Endpoint, to: Endpoint, data: &[u8]) -> Vec<u8> {
    let (number, mut segment) = match protocol {
        Protocol::Tcp => {
            let mut segment = vec![0; 20];
            segment[12] = 5 << 4;
            segment[13] = flags;
            (6, segment)
        }
        Protocol::Udp => (17, vec![0; 8]),
        Protocol::Echo => (1, vec![8, 0, 0, 0, 0, 0, 0, 1]),
    };
    segment.extend(data);
    if protocol == Protocol::Echo {
        segment[4..6].copy_from_slice(&from.port.to_be_bytes());
        let sum = checksum(&segment);
        segment[2..4].copy_from_slice(&sum.to_be_bytes());
    } else {
        segment[..2].copy_from_slice(&from.port.to_be_bytes());
        segment[2..4].copy_from_slice(&to.port.to_be_bytes());
        let at = if protocol == Protocol::Tcp { 16 } else { 6 };
        if protocol == Protocol::Udp {
            let length = segment.len() as u16;
            segment[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let sum = segment_checksum(from.address, to.address, number, &segment);
        let sum = if protocol == Protocol::Udp && sum == 0 {
            0xFFFF
        } else {
            sum
        };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    ip(number, from.address, to.address, &segment)
}

fn ip(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend(from);
    packet.extend(to);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An ICMP error about a packet, which quotes its first bytes.
fn error(kind: u8, from: [u8; 4], to: [u8; 4], about: &[u8]) -> Vec<u8> {
    let mut icmp = vec![kind, 1, 0, 0, 0, 0, 0, 0];
    icmp.extend(&about[..about.len().min(28)]);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(1, from, to, &icmp)
}

/// The ends of a packet, after its checksums have been looked at.
fn ends(packet: &[u8]) -> (Endpoint, Endpoint) {
    assert_eq!(checksum(&packet[..20]), 0, "the header's checksum");
    let (from, to) = quoted_ends(packet);
    let segment = &packet[20..];
    match packet[9] {
        1 => assert_eq!(checksum(segment), 0, "ICMP's checksum"),
        17 if segment[6..8] == [0, 0] => {}
        protocol => assert_eq!(
            segment_checksum(from.address, to.address, protocol, segment),
            0,
            "the segment's checksum"
        ),
    }
    (from, to)
}

/// The ends of a packet of which only the beginning is there.
fn quoted_ends(packet: &[u8]) -> (Endpoint, Endpoint) {
    let four = |at: usize| -> [u8; 4] { packet[at..at + 4].try_into().expect("four") };
    let two = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let (from, to) = match packet[9] {
        1 => (two(24), two(24)),
        _ => (two(20), two(22)),
    };
    (Endpoint::new(four(12), from), Endpoint::new(four(16), to))
}

fn at(port: u16) -> Endpoint {
    Endpoint::new(REMOTE, port)
}

fn out(napt: &mut Napt, now: u64, vm: u16, port: u16, flags: u8) -> Result<Endpoint, Drop> {
    let from = Endpoint::new(address(vm), port);
    let mut bytes = packet(Protocol::Tcp, flags, from, at(80), b"");
    match napt.outbound(now, vm, &mut bytes) {
        Verdict::Outside => Ok(ends(&bytes).0),
        Verdict::Drop(why) => Err(why),
        other => panic!("{other:?}"),
    }
}

fn back(napt: &mut Napt, now: u64, to: Endpoint, flags: u8) -> Verdict {
    let mut bytes = packet(Protocol::Tcp, flags, at(80), to, b"");
    napt.inbound(now, &mut bytes)
}

#[test]
fn a_flow_goes_out_and_its_answer_comes_back_with_right_checksums() {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Echo] {
        let mut napt = napt(16);
        let from = Endpoint::new(address(1), 1234);
        let to = at(if protocol == Protocol::Echo { 1234 } else { 53 });
        let mut bytes = packet(protocol, SYN, from, to, b"odd");
        assert_eq!(napt.outbound(0, 1, &mut bytes), Verdict::Outside);
        let (mapped, target) = ends(&bytes);
        assert_eq!(mapped.address, OUTSIDE);
        assert_eq!(target.address, to.address);
        let answer_from = if protocol == Protocol::Echo {
            at(mapped.port)
        } else {
            to
        };
        let mut bytes = packet(protocol, SYN | ACK, answer_from, mapped, b"answer");
        assert_eq!(napt.inbound(1, &mut bytes), Verdict::Inside(1));
        assert_eq!(ends(&bytes).1, from);
        // Nobody else may answer.
        let stranger = Endpoint::new([203, 0, 113, 9], answer_from.port);
        let mut bytes = packet(protocol, SYN | ACK, stranger, mapped, b"");
        let refused = Verdict::Drop(Drop::NotExpected);
        assert_eq!(napt.inbound(1, &mut bytes), refused);
    }
}

#[test]
fn an_endpoint_has_one_port_for_all_its_peers_and_shares_it_with_nobody() {
    let mut napt = napt(64);
    let mut mapped = BTreeMap::new();
    for (vm, port, peer) in [(1, 5, 1), (1, 5, 2), (2, 5, 1), (1, 6, 1), (2, 5, 3)] {
        let from = Endpoint::new([10, 0, 0, 1], port);
        let mut bytes = packet(Protocol::Udp, 0, from, at(peer), b"");
        assert_eq!(napt.outbound(0, vm, &mut bytes), Verdict::Outside);
        let outside = ends(&bytes).0.port;
        assert_eq!(*mapped.entry((vm, port)).or_insert(outside), outside);
    }
    let different: BTreeSet<u16> = mapped.values().copied().collect();
    assert_eq!(different.len(), 3);
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut napt = napt(4);
    let mut bytes = packet(Protocol::Udp, 0, Endpoint::new(address(1), 9), at(9), b"x");
    bytes[26..28].copy_from_slice(&[0, 0]);
    assert_eq!(napt.outbound(0, 1, &mut bytes), Verdict::Outside);
    assert_eq!(bytes[26..28], [0, 0]);
}

#[test]
fn errors_come_back_to_whom_they_concern_and_change_no_timer() {
    let mut napt = napt(16);
    let from = Endpoint::new(address(1), 700);
    let mut bytes = packet(Protocol::Udp, 0, from, at(53), b"question");
    assert_eq!(napt.outbound(0, 1, &mut bytes), Verdict::Outside);
    let router = [203, 0, 113, 1];
    let mut told = error(3, router, OUTSIDE, &bytes);
    assert_eq!(napt.inbound(4 * MINUTE, &mut told), Verdict::Inside(1));
    assert_eq!(checksum(&told[..20]), 0);
    assert_eq!(checksum(&told[20..]), 0);
    assert_eq!(told[16..20], address(1));
    assert_eq!(quoted_ends(&told[28..]), (from, at(53)));
    assert_eq!(checksum(&told[28..48]), 0, "the quoted header's checksum");
    // One about a packet that nobody sent.
    let stranger = packet(Protocol::Udp, 0, Endpoint::new(OUTSIDE, 1), at(53), b"");
    let mut told = error(3, router, OUTSIDE, &stranger);
    let refused = Verdict::Drop(Drop::NotExpected);
    assert_eq!(napt.inbound(4 * MINUTE, &mut told), refused);
    // The VM's own error about an answer goes out as the outside address's.
    let (mapped, _) = ends(&bytes);
    let mut answer = packet(Protocol::Udp, 0, at(53), mapped, b"");
    assert_eq!(napt.inbound(4 * MINUTE, &mut answer), Verdict::Inside(1));
    let mut told = error(3, address(1), REMOTE, &answer);
    assert_eq!(napt.outbound(4 * MINUTE, 1, &mut told), Verdict::Outside);
    assert_eq!(told[12..16], OUTSIDE);
    assert_eq!(quoted_ends(&told[28..]), (at(53), mapped));
    // Another VM's about it does not.
    let mut told = error(3, address(1), REMOTE, &answer);
    assert_eq!(napt.outbound(4 * MINUTE, 2, &mut told), refused);
    // Neither the errors nor the answer kept it alive.
    assert_eq!(napt.expire(5 * MINUTE), 1);
}

#[test]
fn tcp_lasts_as_the_standards_say() {
    let hours = 124 * MINUTE;
    // Half open: 4 minutes, however often the SYN comes.
    let mut half = napt(4);
    out(&mut half, 0, 1, 5, SYN).expect("opens");
    out(&mut half, 3 * MINUTE, 1, 5, SYN).expect("again");
    assert_eq!(half.expire(4 * MINUTE), 1);
    // Open: two hours and four minutes from the last packet of either side.
    let mut open = napt(4);
    let mapped = out(&mut open, 0, 1, 5, SYN).expect("opens");
    assert_eq!(back(&mut open, 1, mapped, SYN | ACK), Verdict::Inside(1));
    assert_eq!(
        back(&mut open, 10 * MINUTE, mapped, ACK),
        Verdict::Inside(1)
    );
    assert_eq!(open.expire(hours), 0);
    // Closed by both: 4 minutes; one FIN alone changes nothing.
    out(&mut open, hours, 1, 5, FIN | ACK).expect("is open");
    assert_eq!(open.expire(hours + 5 * MINUTE), 0);
    assert_eq!(
        back(&mut open, hours + 6 * MINUTE, mapped, FIN | ACK),
        Verdict::Inside(1)
    );
    out(&mut open, hours + 7 * MINUTE, 1, 5, ACK).expect("the last acknowledgement");
    assert_eq!(open.expire(hours + 10 * MINUTE), 1);
    // Reset from outside, but the VM goes on: it was not believed.
    let mut reset = napt(4);
    let mapped = out(&mut reset, 0, 1, 5, SYN).expect("opens");
    assert_eq!(back(&mut reset, 1, mapped, SYN | ACK), Verdict::Inside(1));
    assert_eq!(back(&mut reset, 2, mapped, RST), Verdict::Inside(1));
    out(&mut reset, 3, 1, 5, ACK).expect("goes on");
    assert_eq!(reset.expire(5 * MINUTE), 0);
    // What was never opened goes nowhere.
    assert_eq!(out(&mut reset, 5 * MINUTE, 1, 6, ACK), Err(Drop::NotOpened));
    assert_eq!(
        out(&mut reset, 5 * MINUTE, 1, 6, SYN | RST),
        Err(Drop::NotOpened)
    );
}

#[test]
fn a_published_port_is_reached_by_anybody_until_it_is_not() {
    let mut napt = napt(16);
    let web = Inside {
        vm: 3,
        endpoint: Endpoint::new(address(3), 80),
    };
    let other = Inside { vm: 4, ..web };
    assert_eq!(napt.publish(Protocol::Tcp, 8080, web), Ok(()));
    assert_eq!(
        napt.publish(Protocol::Tcp, 8080, other),
        Err(PublishError::Taken(web))
    );
    assert_eq!(
        napt.publish(Protocol::Tcp, 8081, web),
        Err(PublishError::Published(8080))
    );
    assert_eq!(
        napt.publish(Protocol::Tcp, 40_000, other),
        Err(PublishError::Dynamic)
    );
    let door = Endpoint::new(OUTSIDE, 8080);
    assert_eq!(
        back(&mut napt, 0, door, ACK),
        Verdict::Drop(Drop::NotOpened)
    );
    assert_eq!(back(&mut napt, 0, door, SYN), Verdict::Inside(3));
    let mut answer = packet(Protocol::Tcp, SYN | ACK, web.endpoint, at(80), b"");
    assert_eq!(napt.outbound(1, 3, &mut answer), Verdict::Outside);
    assert_eq!(ends(&answer).0, door);
    assert!(napt.unpublish(Protocol::Tcp, 8080));
    assert!(!napt.unpublish(Protocol::Tcp, 8080));
    let refused = Verdict::Drop(Drop::NotExpected);
    assert_eq!(back(&mut napt, 2, door, ACK), refused);
    assert_eq!(back(&mut napt, 2, door, SYN), refused);
    assert_eq!(napt.sessions(), 0);
}

#[test]
fn a_vm_reaches_another_by_the_outside_address() {
    let mut napt = napt(16);
    let web = Inside {
        vm: 3,
        endpoint: Endpoint::new(address(3), 80),
    };
    assert_eq!(napt.publish(Protocol::Tcp, 8080, web), Ok(()));
    let door = Endpoint::new(OUTSIDE, 8080);
    let client = Endpoint::new(address(1), 5000);
    let mut syn = packet(Protocol::Tcp, SYN, client, door, b"");
    assert_eq!(napt.outbound(0, 1, &mut syn), Verdict::Inside(3));
    let (from, to) = ends(&syn);
    assert_eq!((from.address, to), (OUTSIDE, web.endpoint));
    let mut answer = packet(Protocol::Tcp, SYN | ACK, web.endpoint, from, b"");
    assert_eq!(napt.outbound(1, 3, &mut answer), Verdict::Inside(1));
    assert_eq!(ends(&answer), (door, client));
    // A port that is not there leaves nothing behind.
    let sessions = napt.sessions();
    let nowhere = Endpoint::new(OUTSIDE, 81);
    let mut syn = packet(Protocol::Tcp, SYN, client, nowhere, b"");
    let refused = Verdict::Drop(Drop::NotExpected);
    assert_eq!(napt.outbound(0, 1, &mut syn), refused);
    assert_eq!(napt.sessions(), sessions);
    // Nobody outside is the outside address.
    let mut spoofed = packet(Protocol::Tcp, SYN, Endpoint::new(OUTSIDE, 9), door, b"");
    let refused = Verdict::Drop(Drop::Spoofed);
    assert_eq!(napt.inbound(0, &mut spoofed), refused);
}

#[test]
fn fragments_and_what_is_malformed_go_nowhere_and_are_not_changed() {
    let good = packet(
        Protocol::Udp,
        0,
        Endpoint::new(address(1), 9),
        at(9),
        b"data",
    );
    let mut napt = napt(4);
    for (offset, flags) in [(6, 0x20), (7, 1), (6, 0x3F)] {
        let mut bytes = good.clone();
        bytes[offset] |= flags;
        bytes[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        let before = bytes.clone();
        let refused = Verdict::Drop(Drop::Fragment);
        assert_eq!(napt.outbound(0, 1, &mut bytes), refused);
        assert_eq!(bytes, before);
    }
    for length in 0..good.len() {
        let mut bytes = good[..length].to_vec();
        let refused = Verdict::Drop(Drop::Malformed);
        assert_eq!(napt.outbound(0, 1, &mut bytes), refused, "{length}");
    }
    assert_eq!(napt.sessions(), 0);
}

#[test]
fn who_floods_loses_its_own_and_others_keep_theirs() {
    let mut napt = napt(100);
    let mut quiet = vec![];
    for port in 0..20 {
        let mapped = out(&mut napt, 0, 2, 100 + port, SYN).expect("opens");
        assert_eq!(back(&mut napt, 0, mapped, SYN | ACK), Verdict::Inside(2));
        quiet.push(mapped);
    }
    for port in 0..10_000 {
        out(&mut napt, 1, 1, port, SYN).expect("has its share");
        assert!(napt.sessions() <= 100);
    }
    assert_eq!((napt.sessions_of(1), napt.sessions_of(2)), (80, 20));
    for mapped in quiet {
        assert_eq!(back(&mut napt, 2, mapped, ACK), Verdict::Inside(2));
    }
    // A third gets a share, too, at the expense of the flood; of one's own, what is open goes last.
    for port in 0..10 {
        out(&mut napt, 3, 3, port, SYN).expect("has its share");
    }
    assert_eq!((napt.sessions_of(1), napt.sessions_of(2)), (70, 20));
    napt.remove_vm(1);
    assert_eq!((napt.sessions(), napt.sessions_of(1)), (30, 0));
}

#[test]
fn what_cannot_be_configured_is_refused() {
    let few = Config {
        ports: (10, 19),
        ..config(11)
    };
    let refused = ConfigError::TooFewPorts {
        ports: 10,
        sessions: 11,
    };
    assert_eq!(Napt::new(few).err(), Some(refused));
    assert_eq!(Napt::new(config(0)).err(), Some(ConfigError::Zero));
}

/// What happens, in the model's words.
#[derive(Clone, Debug)]
enum Step {
    Out {
        vm: u16,
        port: u16,
        peer: u16,
        protocol: Protocol,
    },
    /// The answer to one of the packets that went out before.
    Answer {
        which: usize,
    },
    /// A packet to an outside port from a peer that may not have been spoken to.
    Stray {
        port: u16,
        peer: u16,
        protocol: Protocol,
    },
    Wait {
        ms: u64,
    },
    Gone {
        vm: u16,
    },
}

fn protocols() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Udp), Just(Protocol::Echo)]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4u16, 1..6u16, 1..4u16, protocols())
            .prop_map(|(vm, port, peer, protocol)| Step::Out { vm, port, peer, protocol }),
        4 => any::<usize>().prop_map(|which| Step::Answer { which }),
        2 => (40_000..60_000u16, 1..4u16, protocols())
            .prop_map(|(port, peer, protocol)| Step::Stray { port, peer, protocol }),
        1 => (0..6 * MINUTE).prop_map(|ms| Step::Wait { ms }),
        1 => (0..4u16).prop_map(|vm| Step::Gone { vm }),
    ]
}

/// A flow that was spoken to from inside.
#[derive(Clone, Debug)]
struct Flow {
    protocol: Protocol,
    inside: Inside,
    outside: u16,
    peer: Endpoint,
    expires_at: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The model is a list of what was said: it finds everything by looking at all of it.
    #[test]
    fn it_does_what_a_list_of_all_flows_would(all in prop::collection::vec(steps(), 1..120)) {
        let mut napt = napt(1000);
        let mut flows: Vec<Flow> = vec![];
        let mut now = 0;
        for step in all {
            flows.retain(|flow| flow.expires_at > now);
            match step {
                Step::Out { vm, port, peer, protocol } => {
                    let inside = Inside { vm, endpoint: Endpoint::new([10, 0, 0, 1], port) };
                    let peer = match protocol {
                        Protocol::Echo => Endpoint::new([198, 51, 100, peer as u8], port),
                        _ => at(peer),
                    };
                    let mut bytes = packet(protocol, 0, inside.endpoint, peer, b"abc");
                    prop_assert_eq!(napt.outbound(now, vm, &mut bytes), Verdict::Outside);
                    let (outside, _) = ends(&bytes);
                    for flow in flows.iter().filter(|flow| flow.protocol == protocol) {
                        prop_assert_eq!(flow.inside == inside, flow.outside == outside.port);
                    }
                    flows.retain(|flow| {
                        (flow.protocol, flow.inside, flow.peer) != (protocol, inside, peer)
                    });
                    let lasts = if protocol == Protocol::Echo { MINUTE } else { 5 * MINUTE };
                    let expires_at = now + lasts;
                    flows.push(Flow { protocol, inside, outside: outside.port, peer, expires_at });
                }
                Step::Answer { which } => {
                    let Some(flow) = flows.get(which % flows.len().max(1)) else { continue };
                    let to = Endpoint::new(OUTSIDE, flow.outside);
                    let from = match flow.protocol {
                        Protocol::Echo => Endpoint::new(flow.peer.address, flow.outside),
                        _ => flow.peer,
                    };
                    let mut bytes = packet(flow.protocol, 0, from, to, b"answer");
                    let verdict = napt.inbound(now, &mut bytes);
                    prop_assert_eq!(verdict, Verdict::Inside(flow.inside.vm));
                    prop_assert_eq!(ends(&bytes).1, flow.inside.endpoint);
                }
                Step::Stray { port, peer, protocol } => {
                    let from = match protocol {
                        Protocol::Echo => Endpoint::new([198, 51, 100, peer as u8], port),
                        _ => at(peer),
                    };
                    let wanted = flows.iter().find(|flow| {
                        let same_peer = match protocol {
                            Protocol::Echo => flow.peer.address == from.address,
                            _ => flow.peer == from,
                        };
                        flow.protocol == protocol && flow.outside == port && same_peer
                    });
                    let mut bytes = packet(protocol, 0, from, Endpoint::new(OUTSIDE, port), b"");
                    let verdict = napt.inbound(now, &mut bytes);
                    let expected = match wanted {
                        Some(flow) => Verdict::Inside(flow.inside.vm),
                        None => Verdict::Drop(Drop::NotExpected),
                    };
                    prop_assert_eq!(verdict, expected);
                }
                Step::Wait { ms } => {
                    now += ms;
                    let _ = napt.expire(now);
                    flows.retain(|flow| flow.expires_at > now);
                }
                Step::Gone { vm } => {
                    napt.remove_vm(vm);
                    flows.retain(|flow| flow.inside.vm != vm);
                }
            }
            prop_assert_eq!(napt.sessions(), flows.len());
        }
    }

    /// Whatever bytes come, nothing stops it, and it keeps within its bound.
    #[test]
    fn no_bytes_stop_it(
        packets in prop::collection::vec((any::<bool>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..90)), 1..40),
        header in any::<bool>(),
    ) {
        let mut napt = napt(8);
        for (is_out, vm, mut bytes) in packets {
            if header && bytes.len() >= 20 {
                // A header that is right, so that what is behind it is looked at.
                let length = bytes.len() as u16;
                bytes[0] = 0x45;
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[6..8].copy_from_slice(&[0, 0]);
                bytes[9] = [1, 6, 17, 1][usize::from(bytes[9] % 4)];
                bytes[10..12].copy_from_slice(&[0, 0]);
                let sum = checksum(&bytes[..20]);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let _ = if is_out {
                napt.outbound(0, vm, &mut bytes)
            } else {
                napt.inbound(0, &mut bytes)
            };
            prop_assert!(napt.sessions() <= 8);
        }
    }

    /// A bounded table with many VMs: none is ever pushed below its fair share by others.
    #[test]
    fn nobody_takes_from_a_fair_share(wanted in prop::collection::vec((0..5u16, any::<u16>()), 1..300)) {
        let mut napt = napt(20);
        for (vm, port) in wanted {
            let before: Vec<usize> = (0..5).map(|vm| napt.sessions_of(vm)).collect();
            let _ = out(&mut napt, 0, vm, port, SYN);
            for other in (0..5).filter(|other| *other != vm) {
                let after = napt.sessions_of(other);
                // 20 sessions for 5 VMs.
                prop_assert!(after == before[usize::from(other)] || after >= 4);
            }
            prop_assert!(napt.sessions() <= 20);
        }
    }
}
