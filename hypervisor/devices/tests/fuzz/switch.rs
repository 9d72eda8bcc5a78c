//! The switch: ports that come and go, frames with any addresses.

use std::collections::BTreeMap;

use nagaya_devices::switch::{
    FrameHeader, MacAddress, PortConfig, PortId, Rate, SourceCheck, Switch, SwitchConfig, Verdict,
};

use crate::{Input, Seen};

const MAX_ADDRESSES: usize = 2;

/// A few addresses, so that they meet: given ones, others, groups, link-local ones.
fn address(byte: u8) -> MacAddress {
    match byte >> 6 {
        0 => MacAddress([2, 0, 0, 0, 0, byte & 7]),
        1 => MacAddress([2, 0, 0, 0, 1, byte & 15]),
        2 => MacAddress([0x01, 0x80, 0xC2, 0, 0, byte & 31]),
        _ => MacAddress::BROADCAST,
    }
}

fn target(input: &mut Input<'_>, seen: &mut Seen) {
    let mut switch = Switch::new(SwitchConfig {
        max_addresses_per_port: MAX_ADDRESSES,
        age_ticks: 1000,
        max_frame_bytes: 2000,
    });
    let mut segments = BTreeMap::new();
    let mut now = 0_u64;
    while !input.is_empty() {
        match input.byte() % 6 {
            0 => {
                let id = PortId::new(input.byte() % 64).expect("below 64");
                let (shape, own) = (input.byte(), address(input.byte()));
                let config = PortConfig {
                    segment: u16::from(shape & 3),
                    address: own,
                    source_check: if shape & 4 != 0 {
                        SourceCheck::OwnOnly
                    } else {
                        SourceCheck::Any
                    },
                    rate: (shape & 8 != 0).then_some(Rate {
                        bytes: 100,
                        per_ticks: 10,
                        burst_bytes: 1000,
                    }),
                };
                let added = switch.add_port(id, config, now);
                if added.is_ok() {
                    assert_eq!(segments.insert(id, config.segment), None);
                }
                seen.note(&added);
            }
            1 => {
                let id = PortId::new(input.byte() % 64).expect("below 64");
                let was_there = segments.remove(&id).is_some();
                assert_eq!(switch.remove_port(id).is_some(), was_there);
            }
            2 => now = now.saturating_add(input.number::<2>()),
            _ => {
                let ingress = PortId::new(input.byte() % 64).expect("below 64");
                let frame = FrameHeader {
                    destination: address(input.byte()),
                    source: address(input.byte()),
                    bytes: input.number::<2>() as u32,
                };
                let verdict = switch.plan(ingress, &frame, now);
                if let Verdict::Forward(ports) = verdict {
                    assert!(!ports.is_empty() && !ports.contains(ingress));
                    let segment = segments[&ingress];
                    assert!(ports.iter().all(|port| segments[&port] == segment));
                }
                seen.note(&match verdict {
                    Verdict::Forward(ports) => Ok(ports.iter().count() > 1),
                    Verdict::Drop(reason) => Err(reason),
                });
            }
        }
        assert!(switch.learned() <= segments.len() * MAX_ADDRESSES);
    }
}

#[test]
fn no_input_breaks_the_switch() {
    crate::run("switch", target);
}
