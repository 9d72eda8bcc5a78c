//! The switch, against rules and against a model.

use nagaya_devices::switch::{
    DropReason, FrameHeader, MacAddress, PortConfig, PortError, PortId, Ports, Rate, SourceCheck,
    Switch, SwitchConfig, Verdict,
};
use proptest::prelude::*;

const CONFIG: SwitchConfig = SwitchConfig {
    max_addresses_per_port: 4,
    age_ticks: 1000,
    max_frame_bytes: 65_550,
};

fn port(number: u8) -> PortId {
    PortId::new(number).expect("below 64")
}

fn given(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

fn other(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 1, number])
}

fn frame(source: MacAddress, destination: MacAddress) -> FrameHeader {
    FrameHeader {
        destination,
        source,
        bytes: 64,
    }
}

fn ports(numbers: &[u8]) -> Verdict {
    Verdict::Forward(numbers.iter().map(|number| port(*number)).collect())
}

/// Port n has address n; the segments are as listed.
fn switch(segments: &[u16], source_check: SourceCheck) -> Switch {
    let mut switch = Switch::new(CONFIG);
    for (number, segment) in (0..).zip(segments) {
        let config = PortConfig {
            segment: *segment,
            address: given(number),
            source_check,
            rate: None,
        };
        switch.add_port(port(number), config, 0).expect("is new");
    }
    switch
}

#[test]
fn a_frame_to_a_given_address_goes_to_its_port_only() {
    let mut switch = switch(&[1, 1, 1], SourceCheck::OwnOnly);
    let found = switch.plan(port(0), &frame(given(0), given(2)), 0);
    assert_eq!(found, ports(&[2]));
    assert_eq!(switch.learned(), 0, "given addresses need no learning");
}

#[test]
fn unknown_and_group_addresses_go_to_all_others_of_the_segment() {
    let mut switch = switch(&[1, 1, 2, 1], SourceCheck::Any);
    for to in [
        other(9),
        MacAddress::BROADCAST,
        MacAddress([1, 0, 0x5E, 0, 0, 1]),
    ] {
        assert_eq!(
            switch.plan(port(0), &frame(given(0), to), 0),
            ports(&[1, 3])
        );
    }
    let alone = switch.plan(port(2), &frame(given(2), MacAddress::BROADCAST), 0);
    assert_eq!(alone, Verdict::Drop(DropReason::NobodyElse));
}

#[test]
fn addresses_of_another_segment_are_not_known() {
    let mut switch = switch(&[1, 2, 1, 2], SourceCheck::Any);
    let _ = switch.plan(port(1), &frame(other(1), given(3)), 0);
    for to in [given(1), other(1)] {
        assert_eq!(switch.plan(port(0), &frame(given(0), to), 0), ports(&[2]));
    }
}

#[test]
fn an_address_is_learned_moves_with_its_frames_and_is_forgotten_with_time_or_its_port() {
    let mut switch = switch(&[1, 1, 1], SourceCheck::Any);
    let to = |switch: &mut Switch, now| switch.plan(port(0), &frame(given(0), other(1)), now);
    assert_eq!(to(&mut switch, 0), ports(&[1, 2]));
    let _ = switch.plan(port(1), &frame(other(1), given(0)), 10);
    assert_eq!(to(&mut switch, 1010), ports(&[1]));
    assert_eq!(to(&mut switch, 1011), ports(&[1, 2]), "too old");
    let _ = switch.plan(port(2), &frame(other(1), given(0)), 1100);
    assert_eq!(to(&mut switch, 1100), ports(&[2]));
    switch.remove_port(port(2)).expect("is there");
    assert_eq!(to(&mut switch, 1100), ports(&[1]));
    assert_eq!(switch.learned(), 0);
}

#[test]
fn a_given_address_cannot_be_taken_by_saying_it() {
    let mut switch = switch(&[1, 1, 1], SourceCheck::Any);
    let _ = switch.plan(port(2), &frame(given(1), MacAddress::BROADCAST), 0);
    let found = switch.plan(port(0), &frame(given(0), given(1)), 0);
    assert_eq!(found, ports(&[1]));
    assert_eq!(switch.learned(), 0, "nor is it kept for later");
}

#[test]
fn foreign_sources_are_dropped_where_configured_and_groups_everywhere() {
    for (check, foreign) in [
        (SourceCheck::OwnOnly, Verdict::Drop(DropReason::Source)),
        (SourceCheck::Any, ports(&[1])),
    ] {
        let mut switch = switch(&[1, 1], check);
        let found = switch.plan(port(0), &frame(other(0), given(1)), 0);
        assert_eq!(found, foreign);
        let group = MacAddress([3, 0, 0, 0, 0, 0]);
        let found = switch.plan(port(0), &frame(group, given(1)), 0);
        assert_eq!(found, Verdict::Drop(DropReason::Source));
    }
}

#[test]
fn frames_back_to_where_they_came_from_and_for_the_switch_itself_are_dropped() {
    let mut switch = switch(&[1, 1], SourceCheck::Any);
    let _ = switch.plan(port(0), &frame(other(0), given(1)), 0);
    for (to, reason) in [
        (other(0), DropReason::SamePort),
        (given(0), DropReason::SamePort),
        (
            MacAddress([1, 0x80, 0xC2, 0, 0, 0xE]),
            DropReason::LinkLocal,
        ),
    ] {
        let found = switch.plan(port(0), &frame(given(0), to), 0);
        assert_eq!(found, Verdict::Drop(reason));
    }
    let passes = MacAddress([1, 0x80, 0xC2, 0, 0, 0x10]);
    assert_eq!(
        switch.plan(port(0), &frame(given(0), passes), 0),
        ports(&[1])
    );
}

#[test]
fn lengths_are_bounded() {
    let mut switch = switch(&[1, 1], SourceCheck::OwnOnly);
    for (bytes, passes) in [
        (0, false),
        (13, false),
        (14, true),
        (65_550, true),
        (65_551, false),
    ] {
        let frame = FrameHeader {
            bytes,
            ..frame(given(0), given(1))
        };
        let expected = if passes {
            ports(&[1])
        } else {
            Verdict::Drop(DropReason::Length)
        };
        assert_eq!(switch.plan(port(0), &frame, 0), expected);
    }
}

#[test]
fn one_port_cannot_fill_the_table_and_old_addresses_make_room() {
    let mut switch = switch(&[1, 1, 1, 1], SourceCheck::Any);
    let say = |switch: &mut Switch, at: u8, numbers: core::ops::Range<u8>, now| {
        for number in numbers {
            let _ = switch.plan(port(at), &frame(other(number), given(3)), now);
        }
    };
    say(&mut switch, 0, 0..100, 0);
    assert_eq!(switch.learned(), 4);
    let found = switch.plan(port(3), &frame(given(3), other(4)), 0);
    assert_eq!(found, ports(&[0, 1, 2]), "not learned, so to all");
    say(&mut switch, 1, 100..200, 0);
    say(&mut switch, 2, 200..203, 0);
    assert_eq!(switch.learned(), 4 + 4 + 3);
    say(&mut switch, 1, 200..203, 2000);
    assert_eq!(switch.learned(), 3);
}

#[test]
fn a_rate_lets_a_burst_pass_and_then_so_much_per_time() {
    let mut switch = Switch::new(CONFIG);
    for number in [0, 1] {
        let config = PortConfig {
            segment: 0,
            address: given(number),
            source_check: SourceCheck::Any,
            // 64 bytes in 3 ticks.
            rate: Some(Rate {
                bytes: 64,
                per_ticks: 3,
                burst_bytes: 640,
            }),
        };
        switch.add_port(port(number), config, 0).expect("is new");
    }
    let mut passed = |now| {
        let mut count = 0;
        while switch.plan(port(0), &frame(given(0), given(1)), now) == ports(&[1]) {
            count += 1;
        }
        count
    };
    assert_eq!(passed(0), 10);
    assert_eq!(passed(2), 0);
    assert_eq!(passed(3), 1);
    let in_the_long_run: u32 = (4..=3003).map(&mut passed).sum();
    assert_eq!(in_the_long_run, 1000, "nothing is lost to rounding");
    assert_eq!(passed(u64::MAX), 10);
    assert_eq!(passed(0), 0, "a clock that goes back gives nothing");
}

#[test]
fn a_frame_that_is_taken_back_is_neither_counted_nor_charged() {
    let mut switch = switch(&[1], SourceCheck::Any);
    let config = PortConfig {
        segment: 1,
        address: given(1),
        source_check: SourceCheck::Any,
        rate: Some(Rate {
            bytes: 1,
            per_ticks: 1_000_000,
            burst_bytes: 100,
        }),
    };
    switch.add_port(port(1), config, 0).expect("is new");
    let sent = frame(given(1), given(0));
    for _ in 0..3 {
        // 64 bytes of 100: twice would be too much.
        assert_eq!(switch.plan(port(1), &sent, 0), ports(&[0]));
        switch.take_back(port(1), &sent);
    }
    let counters = switch.counters(port(1)).expect("is there");
    assert_eq!((counters.received_frames, counters.received_bytes), (0, 0));
    assert_eq!(switch.plan(port(1), &sent, 0), ports(&[0]));
    assert_eq!(
        switch.plan(port(1), &sent, 0),
        Verdict::Drop(DropReason::Rate)
    );
}

#[test]
fn sets_of_ports_give_what_was_put_in_in_order() {
    let set = Ports::one(port(63)).with(port(0)).with(port(5));
    assert!(set.iter().eq([port(0), port(5), port(63)]));
    assert!(set.without(port(5)).iter().eq([port(0), port(63)]));
    assert_eq!(Ports::default().iter().count(), 0);
}

#[test]
fn ports_are_added_once_with_an_address_of_their_own() {
    let mut switch = switch(&[1, 1], SourceCheck::Any);
    let config = |segment, address| PortConfig {
        segment,
        address,
        source_check: SourceCheck::Any,
        rate: None,
    };
    let mut add =
        |number, segment, address| switch.add_port(port(number), config(segment, address), 0);
    assert_eq!(add(0, 1, given(9)), Err(PortError::Exists));
    assert_eq!(add(9, 1, given(0)), Err(PortError::AddressTaken));
    assert_eq!(
        add(9, 1, MacAddress::BROADCAST),
        Err(PortError::GroupAddress)
    );
    assert_eq!(add(9, 2, given(0)), Ok(()), "another segment");
    assert_eq!(PortId::new(64), None);
}

#[test]
fn everything_is_counted_at_its_port() {
    let mut switch = switch(&[1, 1], SourceCheck::OwnOnly);
    let _ = switch.plan(port(0), &frame(given(0), given(1)), 0);
    switch.count_sent(port(1), 64);
    let _ = switch.plan(port(0), &frame(given(0), given(1)), 0);
    switch.count_drop(port(1), DropReason::NoBuffers);
    let _ = switch.plan(port(0), &frame(given(1), given(1)), 0);
    let sender = switch.counters(port(0)).expect("is there");
    assert_eq!((sender.received_frames, sender.received_bytes), (2, 128));
    let receiver = switch.counters(port(1)).expect("is there");
    assert_eq!((receiver.sent_frames, receiver.sent_bytes), (1, 64));
    let drops = |counters: &nagaya_devices::switch::Counters| {
        DropReason::ALL
            .into_iter()
            .filter(|reason| counters.drops(*reason) > 0)
            .map(DropReason::name)
            .collect::<Vec<_>>()
    };
    assert_eq!(drops(sender), ["source"]);
    assert_eq!(drops(receiver), ["no-buffers"]);
    let nobody = switch.plan(port(9), &frame(given(9), given(1)), 0);
    assert_eq!(nobody, Verdict::Drop(DropReason::NoPort));
}

/// What the switch does, written down without any thought of speed.
#[derive(Default)]
struct Model {
    /// Port, segment, whether foreign sources pass.
    ports: Vec<(u8, u16, bool)>,
    /// Segment, address, port, time: the latest last.
    seen: Vec<(u16, MacAddress, u8, u64)>,
}

impl Model {
    fn plan(&mut self, at: u8, frame: &FrameHeader, now: u64) -> Result<Vec<u8>, DropReason> {
        let (_, segment, passes) = *self
            .ports
            .iter()
            .find(|(number, ..)| *number == at)
            .ok_or(DropReason::NoPort)?;
        if frame.source.0[0] & 1 == 1 || (!passes && frame.source != given(at)) {
            return Err(DropReason::Source);
        }
        let mates: Vec<u8> = self
            .ports
            .iter()
            .filter(|(_, other, _)| *other == segment)
            .map(|(number, ..)| *number)
            .collect();
        if !mates.iter().any(|mate| given(*mate) == frame.source) {
            self.seen
                .retain(|(s, a, ..)| (*s, *a) != (segment, frame.source));
            self.seen.push((segment, frame.source, at, now));
        }
        let given_to = mates.iter().find(|mate| given(**mate) == frame.destination);
        let seen_at = self.seen.iter().rev().find(|(s, a, _, time)| {
            (*s, *a) == (segment, frame.destination) && now - time <= CONFIG.age_ticks
        });
        let receiver = given_to.copied().or(seen_at.map(|(_, _, port, _)| *port));
        match receiver.filter(|_| frame.destination.0[0] & 1 == 0) {
            Some(receiver) if receiver == at => Err(DropReason::SamePort),
            Some(receiver) => Ok(vec![receiver]),
            None => {
                let others: Vec<u8> = mates.into_iter().filter(|mate| *mate != at).collect();
                if others.is_empty() {
                    Err(DropReason::NobodyElse)
                } else {
                    Ok(others)
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, u16, bool),
    Remove(u8),
    Frame(u8, MacAddress, MacAddress),
    Wait(u64),
}

fn address() -> impl Strategy<Value = MacAddress> {
    prop_oneof![
        4 => (0..6_u8).prop_map(given),
        4 => (0..4_u8).prop_map(other),
        1 => Just(MacAddress::BROADCAST),
        1 => Just(MacAddress([3, 1, 1, 1, 1, 1])),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..6_u8, 0..3_u16, any::<bool>()).prop_map(|(n, s, p)| Step::Add(n, s, p)),
        1 => (0..6_u8).prop_map(Step::Remove),
        10 => (0..6_u8, address(), address()).prop_map(|(n, s, d)| Step::Frame(n, s, d)),
        2 => (0..700_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// With a table that has room for all, the switch does as the model; and no frame ever leaves its segment.
    #[test]
    fn the_switch_does_as_the_model(steps in proptest::collection::vec(step(), 1..150)) {
        let mut switch = Switch::new(SwitchConfig { max_addresses_per_port: 100, ..CONFIG });
        let mut model = Model::default();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Add(number, segment, passes) => {
                    let source_check = if passes { SourceCheck::Any } else { SourceCheck::OwnOnly };
                    let config = PortConfig { segment, address: given(number), source_check, rate: None };
                    let added = switch.add_port(port(number), config, now).is_ok();
                    prop_assert_eq!(added, model.ports.iter().all(|(other, ..)| *other != number));
                    if added {
                        model.ports.push((number, segment, passes));
                        model.ports.sort_unstable();
                    }
                }
                Step::Remove(number) => {
                    let removed = switch.remove_port(port(number)).is_some();
                    prop_assert_eq!(removed, model.ports.iter().any(|(other, ..)| *other == number));
                    model.ports.retain(|(other, ..)| *other != number);
                    model.seen.retain(|(_, _, at, _)| *at != number);
                }
                Step::Frame(at, source, destination) => {
                    let found = switch.plan(port(at), &frame(source, destination), now);
                    let expected = match model.plan(at, &frame(source, destination), now) {
                        Ok(to) => ports(&to),
                        Err(reason) => Verdict::Drop(reason),
                    };
                    prop_assert_eq!(found, expected);
                    if let Verdict::Forward(out) = found {
                        let segment = |number: u8| model.ports.iter().find(|(n, ..)| *n == number).map(|p| p.1);
                        prop_assert!(!out.contains(port(at)) && out != Ports::default());
                        prop_assert!(out.iter().all(|to| segment(to.number()) == segment(at)));
                    }
                }
                Step::Wait(ticks) => now += ticks,
            }
        }
    }

    /// However many ports say however many addresses: a port's own first ones are always known, and the table has its bound.
    #[test]
    fn no_ports_keep_another_from_being_known(
        frames in proptest::collection::vec((1..64_u8, any::<u8>(), 0..30_u64), 0..600),
        own in 1..=4_u8,
    ) {
        let mut switch = switch(&[0; 64], SourceCheck::Any);
        let mine = |number: u8| MacAddress([2, 0, 0, 0, 2, number]);
        let mut now = 0;
        // All others fill what they can, then go on as they like.
        let flood = (1..64).flat_map(|at| (0..20).map(move |number| (at, number, 0)));
        for (count, (at, source, wait)) in flood.chain(frames).enumerate() {
            now += wait;
            let theirs = MacAddress([2, 0, 0, 1, at, source]);
            let _ = switch.plan(port(at), &frame(theirs, MacAddress::BROADCAST), now);
            if count % 50 == 0 {
                for number in 0..own {
                    let _ = switch.plan(port(0), &frame(mine(number), MacAddress::BROADCAST), now);
                }
                for number in 0..own {
                    let found = switch.plan(port(at), &frame(given(at), mine(number)), now);
                    prop_assert_eq!(found, ports(&[0]));
                }
            }
            prop_assert!(switch.learned() <= 64 * CONFIG.max_addresses_per_port);
        }
    }
}
