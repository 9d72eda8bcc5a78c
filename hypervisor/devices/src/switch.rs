//! An Ethernet switch as a planner: it is told of a frame's header, the port it came in by and the time, and says by which ports
//! it goes out. It never sees the frame's contents.
//!
//! Ports are of one segment each; a frame never leaves its segment. Addresses are learned from frames, per segment, with a
//! bound for each port, and forgotten after a while. A frame to an address that is not known goes to
//! all other ports of the segment. The address that a port was given is known from the start and belongs to that port.
//!
//! Times are in ticks of one clock that does not go back.
//!
//! Source: IEEE 802.1Q-2018, 8.6 (forwarding), 8.7 (learning), 8.6.3 (reserved addresses).

mod counters;
mod table;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

pub use crate::rate::Rate;
pub use counters::{Counters, DropReason};
use serde::{Deserialize, Serialize};

use table::Table;

use crate::rate::Bucket;

/// Bytes of an Ethernet header: destination, source, type.
pub const HEADER_BYTES: u32 = 14;
/// The most ports of a switch.
pub const MAX_PORTS: u8 = 64;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// To all.
    pub const BROADCAST: MacAddress = MacAddress([0xFF; 6]);

    /// Whether it names a group, or all.
    #[must_use]
    pub const fn is_group(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0
    }

    /// Whether it is for the neighbour only, and no switch forwards it (802.1Q, table 8-1).
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xC2, 0x00, 0x00, 0x00..=0x0F])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the switch has to know of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Where it goes.
    pub destination: MacAddress,
    /// Where it comes from, as it says.
    pub source: MacAddress,
    /// Bytes of the frame from the destination on, without checksum.
    pub bytes: u32,
}

impl FrameHeader {
    /// The header of a frame of `bytes` that begins so.
    #[must_use]
    pub const fn parse(start: [u8; HEADER_BYTES as usize], bytes: u32) -> FrameHeader {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = start;
        FrameHeader {
            destination: MacAddress([a, b, c, d, e, f]),
            source: MacAddress([g, h, i, j, k, l]),
            bytes,
        }
    }
}

/// A port, 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(u8);

impl PortId {
    /// The port with this number, if there can be one.
    #[must_use]
    pub const fn new(number: u8) -> Option<PortId> {
        if number < MAX_PORTS {
            Some(PortId(number))
        } else {
            None
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// A set of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports(u64);

impl Ports {
    /// A set of one.
    #[must_use]
    pub const fn one(port: PortId) -> Ports {
        Ports(1 << port.0)
    }

    /// Whether the port is in it.
    #[must_use]
    pub const fn contains(self, port: PortId) -> bool {
        self.0 & 1 << port.0 != 0
    }

    /// Whether none is.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set with a port.
    #[must_use]
    pub const fn with(self, port: PortId) -> Ports {
        Ports(self.0 | 1 << port.0)
    }

    /// The set without a port.
    #[must_use]
    pub const fn without(self, port: PortId) -> Ports {
        Ports(self.0 & !(1 << port.0))
    }

    /// The ports in ascending order.
    pub fn iter(self) -> impl Iterator<Item = PortId> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let lowest = u8::try_from(left.trailing_zeros()).ok()?;
            let port = PortId::new(lowest)?;
            left &= left - 1;
            Some(port)
        })
    }
}

impl FromIterator<PortId> for Ports {
    fn from_iter<I: IntoIterator<Item = PortId>>(ports: I) -> Ports {
        ports
            .into_iter()
            .fold(Ports::default(), |set, port| Ports(set.0 | 1 << port.0))
    }
}

/// What the switch as a whole is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchConfig {
    /// The most addresses that it learns at one port. There is no other bound: ports have nothing in common that one of them
    /// could use up.
    pub max_addresses_per_port: usize,
    /// How long an address is known after its last frame.
    pub age_ticks: u64,
    /// The longest frame that is forwarded, in bytes with header, without checksum. Segmentation offload makes frames of up to
    /// 64 KiB and a header.
    pub max_frame_bytes: u32,
}

/// What to do with frames whose source is not the port's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceCheck {
    /// Let them pass and learn their addresses: the guest may be a bridge itself.
    Any,
    /// Drop them.
    OwnOnly,
}

/// What a port is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The segment that it is on.
    pub segment: u16,
    /// The address that it was given.
    pub address: MacAddress,
    /// What to do with other addresses.
    pub source_check: SourceCheck,
    /// How much may come in, `None` without a limit.
    pub rate: Option<Rate>,
}

/// What becomes of a frame.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes out by these ports: at least one, never the one it came in by.
    Forward(Ports),
    /// It goes nowhere, and has been counted.
    Drop(DropReason),
}

#[derive(Debug)]
struct Port {
    config: PortConfig,
    bucket: Option<Bucket>,
    counters: Counters,
}

/// An address on a segment, as one number: it is looked up for each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Station(u64);

impl Station {
    const fn new(segment: u16, address: MacAddress) -> Station {
        let MacAddress([a, b, c, d, e, f]) = address;
        let [s, t] = segment.to_be_bytes();
        Station(u64::from_be_bytes([s, t, a, b, c, d, e, f]))
    }
}

/// Why a port was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortError {
    /// There is a port of this number.
    Exists,
    /// The address names a group.
    GroupAddress,
    /// A port of the segment has the address.
    AddressTaken,
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    config: SwitchConfig,
    /// By their numbers; as long as the highest needs it.
    ports: Vec<Option<Port>>,
    /// The ports by the addresses that they were given.
    owners: BTreeMap<Station, PortId>,
    table: Table,
}

impl Switch {
    /// A switch without ports.
    #[must_use]
    pub fn new(config: SwitchConfig) -> Switch {
        Switch {
            config,
            ports: Vec::new(),
            owners: BTreeMap::new(),
            table: Table::new(&config),
        }
    }

    /// Adds a port.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn add_port(&mut self, id: PortId, config: PortConfig, now: u64) -> Result<(), PortError> {
        if config.address.is_group() {
            return Err(PortError::GroupAddress);
        }
        if self.port(id).is_some() {
            return Err(PortError::Exists);
        }
        if self.owner(config.segment, config.address).is_some() {
            return Err(PortError::AddressTaken);
        }
        let port = Port {
            bucket: config.rate.map(|rate| Bucket::full(rate, now)),
            config,
            counters: Counters::default(),
        };
        let index = usize::from(id.number());
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        if let Some(place) = self.ports.get_mut(index) {
            *place = Some(port);
        }
        let station = Station::new(config.segment, config.address);
        self.owners.insert(station, id);
        Ok(())
    }

    /// Removes a port and forgets what was learned of it. Returns its counters.
    pub fn remove_port(&mut self, id: PortId) -> Option<Counters> {
        self.table.forget_port(id);
        let Port {
            config, counters, ..
        } = self.ports.get_mut(usize::from(id.number()))?.take()?;
        let station = Station::new(config.segment, config.address);
        self.owners.remove(&station);
        Some(counters)
    }

    #[inline]
    fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(usize::from(id.number()))?.as_ref()
    }

    #[inline]
    fn port_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(id.number()))?.as_mut()
    }

    /// A port's counters.
    #[must_use]
    pub fn counters(&self, id: PortId) -> Option<&Counters> {
        self.port(id).map(|port| &port.counters)
    }

    /// How many addresses are learned and not yet taken out.
    #[must_use]
    pub fn learned(&self) -> usize {
        self.table.len()
    }

    /// The port that was given an address.
    fn owner(&self, segment: u16, address: MacAddress) -> Option<PortId> {
        self.owners.get(&Station::new(segment, address)).copied()
    }

    /// Says where a frame goes, learns from it, and counts it. A port that does not exist gets its frames dropped uncounted.
    pub fn plan(&mut self, ingress: PortId, frame: &FrameHeader, now: u64) -> Verdict {
        let verdict = match self.examine(ingress, frame, now) {
            Ok(ports) => Verdict::Forward(ports),
            Err(reason) => Verdict::Drop(reason),
        };
        if let Some(port) = self.port_mut(ingress) {
            match verdict {
                Verdict::Forward(_) => port.counters.count_received(frame.bytes),
                Verdict::Drop(reason) => port.counters.count_drop(reason),
            }
        }
        verdict
    }

    fn examine(
        &mut self,
        ingress: PortId,
        frame: &FrameHeader,
        now: u64,
    ) -> Result<Ports, DropReason> {
        let most = self.config.max_frame_bytes;
        let port = self.port_mut(ingress).ok_or(DropReason::NoPort)?;
        if !(HEADER_BYTES..=most).contains(&frame.bytes) {
            return Err(DropReason::Length);
        }
        let PortConfig {
            segment,
            address,
            source_check,
            ..
        } = port.config;
        let is_own = frame.source == address;
        if frame.source.is_group() || (!is_own && source_check == SourceCheck::OwnOnly) {
            return Err(DropReason::Source);
        }
        if let Some(bucket) = &mut port.bucket
            && !bucket.take(frame.bytes, now)
        {
            return Err(DropReason::Rate);
        }
        // An address that was given to a port is not learned anywhere.
        if !is_own && self.owner(segment, frame.source).is_none() {
            self.table.learn(segment, frame.source, ingress, now);
        }
        if frame.destination.is_link_local() {
            return Err(DropReason::LinkLocal);
        }
        let egress = if frame.destination.is_group() {
            None
        } else {
            let owner = self.owner(segment, frame.destination);
            owner.or_else(|| self.table.find(segment, frame.destination, now))
        };
        match egress {
            Some(egress) if egress == ingress => Err(DropReason::SamePort),
            Some(egress) => Ok(Ports::one(egress)),
            None => {
                let ids = (0..MAX_PORTS).filter_map(PortId::new);
                let all: Ports = ids
                    .zip(&self.ports)
                    .filter(|(id, port)| {
                        let is_there = port.as_ref();
                        is_there.is_some_and(|port| port.config.segment == segment)
                            && *id != ingress
                    })
                    .map(|(id, _)| id)
                    .collect();
                if all.is_empty() {
                    return Err(DropReason::NobodyElse);
                }
                Ok(all)
            }
        }
    }

    /// Takes a forwarded frame back, which has gone nowhere and will come in again: it is not counted, nor charged to its port's
    /// rate.
    pub fn take_back(&mut self, ingress: PortId, frame: &FrameHeader) {
        if let Some(port) = self.port_mut(ingress) {
            port.counters.uncount_received(frame.bytes);
            if let Some(bucket) = &mut port.bucket {
                bucket.put_back(frame.bytes);
            }
        }
    }

    /// Counts a frame that has gone out by a port.
    pub fn count_sent(&mut self, egress: PortId, bytes: u32) {
        if let Some(port) = self.port_mut(egress) {
            port.counters.count_sent(bytes);
        }
    }

    /// Counts a frame that should have gone out by a port and did not.
    pub fn count_drop(&mut self, egress: PortId, reason: DropReason) {
        if let Some(port) = self.port_mut(egress) {
            port.counters.count_drop(reason);
        }
    }
}
