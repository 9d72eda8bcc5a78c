//! Network address and port translation (NAPT): VMs with private addresses behind one address outside.
//!
//! A packet goes in, is changed in place with its checksums, and a [`Verdict`] says where it goes. No clock, no device, no allocation that
//! packets could grow without bound: the caller brings milliseconds and moves bytes.
//!
//! - *Mapping* is endpoint-independent: an inside endpoint has one port outside for all its peers (RFC 4787 REQ-1, RFC 5382 REQ-1).
//! - *Filtering* is address- and port-dependent: only who was spoken to may answer (RFC 4787 REQ-8 allows it), but for published ports.
//! - *Hairpinning*: a VM reaches another by the outside address, and is seen there with its outside endpoint (RFC 4787 REQ-9).
//! - *Errors* of ICMP about a flow are translated with what they quote, and change no timer (RFC 5508).
//! - *Fragments* are dropped: nobody can send the second half of a packet past the rules, or have halves kept here.
//! - *Fairness*: a full table makes room at the expense of the VM that has the most sessions. One that has no more than its share loses
//!   none.
//!
//! Concurrency: none; one owner.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod checksum;
mod packet;
mod table;
mod timeout;

use alloc::collections::BTreeMap;

pub use checksum::{checksum, segment_checksum};
use packet::{End, Kind, Parsed, parse};
use table::{Key, Session, Table};
pub use timeout::Timeouts;
use timeout::{Direction, State};

/// What ports and sessions are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo: its identifier stands for a port.
    Echo,
}

/// An IPv4 address with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address.
    pub address: [u8; 4],
    /// Port, or the identifier of an echo.
    pub port: u16,
}

impl Endpoint {
    /// That endpoint.
    #[must_use]
    pub const fn new(address: [u8; 4], port: u16) -> Endpoint {
        Endpoint { address, port }
    }
}

/// An endpoint of a VM's. VMs on different segments may have the same addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inside {
    /// The VM's number.
    pub vm: u16,
    /// Address and port.
    pub endpoint: Endpoint,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes outside.
    Outside,
    /// It goes to this VM.
    Inside(u16),
    /// It goes nowhere. The packet may have been changed.
    Drop(Drop),
}

/// Why a packet goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drop {
    /// It is shorter than it says, or its checksum is wrong.
    Malformed,
    /// It is a fragment.
    Fragment,
    /// It is neither TCP, UDP, an echo, nor an error about one.
    Unsupported,
    /// Nobody inside has asked for it, and the port is not published.
    NotExpected,
    /// TCP of a connection that was not opened here.
    NotOpened,
    /// Its source is the outside address, or it has no VM's.
    Spoofed,
    /// There is neither a port nor a session left.
    Exhausted,
}

/// Why a port cannot be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// It is published for this endpoint.
    Taken(Inside),
    /// The endpoint is published by this port.
    Published(u16),
    /// It is one of those that are given to flows: choose one outside of the range.
    Dynamic,
}

/// What is set at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address outside.
    pub address: [u8; 4],
    /// First and last of the ports that flows get, of each protocol.
    pub ports: (u16, u16),
    /// Most sessions at one time.
    pub max_sessions: usize,
    /// When sessions end that nothing is heard of.
    pub timeouts: Timeouts,
    /// What ports are drawn from (RFC 6056: they should not be guessed); not 0.
    pub seed: u64,
}

/// Why a configuration cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// So many ports for so many sessions: each session may need one of its own.
    TooFewPorts {
        /// Ports.
        ports: usize,
        /// Sessions.
        sessions: usize,
    },
    /// No sessions, or a seed of 0.
    Zero,
}

/// The translator.
#[derive(Clone, Debug)]
pub struct Napt {
    config: Config,
    table: Table,
    published: BTreeMap<(Protocol, u16), Inside>,
    random: u64,
}

impl Napt {
    /// A translator without sessions.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: Config) -> Result<Napt, ConfigError> {
        let (first, last) = config.ports;
        let ports = usize::from(last).saturating_sub(usize::from(first)) + 1;
        if config.max_sessions == 0 || config.seed == 0 {
            return Err(ConfigError::Zero);
        }
        if last < first || ports < config.max_sessions {
            return Err(ConfigError::TooFewPorts {
                ports,
                sessions: config.max_sessions,
            });
        }
        Ok(Napt {
            random: config.seed,
            table: Table::default(),
            published: BTreeMap::new(),
            config,
        })
    }

    /// Sessions now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.table.len()
    }

    /// Sessions of one VM.
    #[must_use]
    pub fn sessions_of(&self, vm: u16) -> usize {
        self.table.len_of(vm)
    }

    /// Lets anybody outside reach an endpoint by that port.
    ///
    /// # Errors
    /// [`PublishError`]; nothing has changed.
    pub fn publish(
        &mut self,
        protocol: Protocol,
        port: u16,
        inside: Inside,
    ) -> Result<(), PublishError> {
        if let Some(taken) = self.published.get(&(protocol, port)) {
            return Err(PublishError::Taken(*taken));
        }
        if let Some(port) = self.published_port(protocol, inside) {
            return Err(PublishError::Published(port));
        }
        if (self.config.ports.0..=self.config.ports.1).contains(&port) {
            return Err(PublishError::Dynamic);
        }
        // What it has said so far came from another port: that goes on no more.
        self.table.remove_inside(protocol, inside);
        self.published.insert((protocol, port), inside);
        Ok(())
    }

    /// Ends that; connections that came by it end with it. False if the port was not published.
    #[must_use]
    pub fn unpublish(&mut self, protocol: Protocol, port: u16) -> bool {
        let found = self.published.remove(&(protocol, port));
        if let Some(inside) = found {
            self.table.remove_inside(protocol, inside);
        }
        found.is_some()
    }

    /// A VM has gone: its sessions and what was published for it go with it.
    pub fn remove_vm(&mut self, vm: u16) {
        self.table.remove_vm(vm);
        self.published.retain(|_, inside| inside.vm != vm);
    }

    /// Ends what nothing has been heard of for too long; gives how many sessions.
    pub fn expire(&mut self, now_ms: u64) -> usize {
        self.table.expire(now_ms)
    }

    /// A packet of a VM's.
    pub fn outbound(&mut self, now_ms: u64, vm: u16, packet: &mut [u8]) -> Verdict {
        let parsed = match parse(packet) {
            Ok(parsed) => parsed,
            Err(why) => return Verdict::Drop(why),
        };
        let _ = self.expire(now_ms);
        let result = match parsed.kind {
            Kind::Flow { protocol, flags } => {
                self.flow_out(now_ms, vm, &parsed, protocol, flags, packet)
            }
            Kind::Error { protocol, .. } => self.error_out(vm, &parsed, protocol, packet),
        };
        result.unwrap_or_else(Verdict::Drop)
    }

    /// A packet from outside.
    pub fn inbound(&mut self, now_ms: u64, packet: &mut [u8]) -> Verdict {
        let parsed = match parse(packet) {
            Ok(parsed) => parsed,
            Err(why) => return Verdict::Drop(why),
        };
        let _ = self.expire(now_ms);
        let result = match parsed.kind {
            Kind::Flow { .. } if parsed.source.address == self.config.address => Err(Drop::Spoofed),
            Kind::Flow { protocol, flags } => self
                .flow_in(now_ms, &parsed, protocol, flags, parsed.source)
                .map(|inside| {
                    parsed.set(packet, End::Target, inside.endpoint);
                    Verdict::Inside(inside.vm)
                }),
            Kind::Error { protocol, .. } => self.error_in(&parsed, protocol, packet),
        };
        result.unwrap_or_else(Verdict::Drop)
    }

    fn flow_out(
        &mut self,
        now_ms: u64,
        vm: u16,
        parsed: &Parsed,
        protocol: Protocol,
        flags: u8,
        packet: &mut [u8],
    ) -> Result<Verdict, Drop> {
        if parsed.source.address == self.config.address {
            return Err(Drop::Spoofed);
        }
        let endpoint = parsed.source;
        let inside = Inside { vm, endpoint };
        let remote = match protocol {
            // An echo has one number: its peer has none of its own.
            Protocol::Echo => Endpoint::new(parsed.target.address, 0),
            _ => parsed.target,
        };
        let is_hairpin = remote.address == self.config.address;
        let mapped = self
            .published_port(protocol, inside)
            .or_else(|| self.table.port_of(protocol, inside));
        let known = mapped
            .map(|port| Key {
                protocol,
                port,
                remote,
            })
            .filter(|key| self.table.get(key).is_some());
        let key = match known {
            Some(key) => key,
            None => {
                if protocol == Protocol::Tcp && !timeout::opens(flags) {
                    return Err(Drop::NotOpened);
                }
                self.make_room(vm)?;
                // Making room may have taken the port away.
                let mapped = self
                    .published_port(protocol, inside)
                    .or_else(|| self.table.port_of(protocol, inside));
                let port = match mapped {
                    Some(port) => port,
                    None => self.free_port(protocol)?,
                };
                Key {
                    protocol,
                    port,
                    remote,
                }
            }
        };
        let from = Endpoint::new(self.config.address, key.port);
        // Before anything is noted: one that cannot arrive leaves nothing behind.
        let target = if is_hairpin {
            let to = match protocol {
                Protocol::Echo => return Err(Drop::NotExpected),
                _ => parsed.target,
            };
            self.note(now_ms, key, inside, Direction::Out, flags);
            let arrived = Parsed {
                target: to,
                ..*parsed
            };
            match self.flow_in(now_ms, &arrived, protocol, flags, from) {
                Ok(target) => Some(target),
                Err(why) => {
                    if known.is_none() {
                        self.table.remove(&key);
                    }
                    return Err(why);
                }
            }
        } else {
            self.note(now_ms, key, inside, Direction::Out, flags);
            None
        };
        parsed.set(packet, End::Source, from);
        Ok(match target {
            Some(target) => {
                parsed.set(packet, End::Target, target.endpoint);
                Verdict::Inside(target.vm)
            }
            None => Verdict::Outside,
        })
    }

    /// Finds whom a flow's packet is for that came from `remote`, and notes it.
    fn flow_in(
        &mut self,
        now_ms: u64,
        parsed: &Parsed,
        protocol: Protocol,
        flags: u8,
        remote: Endpoint,
    ) -> Result<Inside, Drop> {
        if parsed.target.address != self.config.address {
            return Err(Drop::NotExpected);
        }
        let remote = match protocol {
            Protocol::Echo => Endpoint::new(remote.address, 0),
            _ => remote,
        };
        let key = Key {
            protocol,
            port: parsed.target.port,
            remote,
        };
        let known = self.table.get(&key).map(|session| session.inside);
        let inside = match known {
            Some(inside) => inside,
            None => {
                let published = self.published.get(&(protocol, key.port)).copied();
                let inside = published.ok_or(Drop::NotExpected)?;
                if protocol == Protocol::Tcp && !timeout::opens(flags) {
                    return Err(Drop::NotOpened);
                }
                self.make_room(inside.vm)?;
                inside
            }
        };
        self.note(now_ms, key, inside, Direction::In, flags);
        Ok(inside)
    }

    /// An error from outside about a packet that went there.
    fn error_in(
        &mut self,
        parsed: &Parsed,
        protocol: Protocol,
        packet: &mut [u8],
    ) -> Result<Verdict, Drop> {
        if parsed.source.address != self.config.address {
            return Err(Drop::NotExpected);
        }
        let inside = self.quoted(protocol, parsed.source.port, parsed.target)?;
        parsed.set(packet, End::Source, inside.endpoint);
        Ok(Verdict::Inside(inside.vm))
    }

    /// An error of a VM's about a packet that came to it.
    fn error_out(
        &mut self,
        vm: u16,
        parsed: &Parsed,
        protocol: Protocol,
        packet: &mut [u8],
    ) -> Result<Verdict, Drop> {
        let endpoint = parsed.target;
        let inside = Inside { vm, endpoint };
        let port = self
            .published_port(protocol, inside)
            .or_else(|| self.table.port_of(protocol, inside))
            .ok_or(Drop::NotExpected)?;
        if self.quoted(protocol, port, parsed.source)? != inside {
            return Err(Drop::NotExpected);
        }
        if parsed.source.address == self.config.address {
            // About a hairpinned one: it is seldom, and its sender learns of it by a timeout.
            return Err(Drop::Unsupported);
        }
        let outside = Endpoint::new(self.config.address, port);
        parsed.set(packet, End::Target, outside);
        Ok(Verdict::Outside)
    }

    /// Whose session an error quotes.
    fn quoted(&self, protocol: Protocol, port: u16, remote: Endpoint) -> Result<Inside, Drop> {
        let remote = match protocol {
            Protocol::Echo => Endpoint::new(remote.address, 0),
            _ => remote,
        };
        let key = Key {
            protocol,
            port,
            remote,
        };
        let session = self.table.get(&key).ok_or(Drop::NotExpected)?;
        Ok(session.inside)
    }

    fn published_port(&self, protocol: Protocol, inside: Inside) -> Option<u16> {
        self.published
            .range((protocol, 0)..=(protocol, u16::MAX))
            .find(|(_, published)| **published == inside)
            .map(|((_, port), _)| *port)
    }

    fn note(&mut self, now_ms: u64, key: Key, inside: Inside, direction: Direction, flags: u8) {
        let before = self.table.get(&key).map(|session| session.state);
        let state = State::after(before, key.protocol, direction, flags);
        let refreshes = state.is_refreshed_by(direction) || before != Some(state);
        let expires_at = match self.table.get(&key) {
            Some(session) if !refreshes => session.expires_at,
            _ => now_ms.saturating_add(self.config.timeouts.of(state)),
        };
        self.table.put(
            key,
            Session {
                inside,
                state,
                expires_at,
            },
        );
    }

    /// Makes room for one session of that VM's.
    fn make_room(&mut self, vm: u16) -> Result<(), Drop> {
        if self.table.len() < self.config.max_sessions {
            return Ok(());
        }
        let largest = self.table.largest(vm).ok_or(Drop::Exhausted)?;
        let victim = self.table.least_wanted(largest).ok_or(Drop::Exhausted)?;
        self.table.remove(&victim);
        Ok(())
    }

    /// A port that no flow has: the first free one from a random place on.
    fn free_port(&mut self, protocol: Protocol) -> Result<u16, Drop> {
        let (first, last) = self.config.ports;
        // xorshift64 (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let count = u64::from(last - first) + 1;
        let start = first + (self.random % count) as u16;
        self.table
            .free_port(protocol, start, last)
            .or_else(|| self.table.free_port(protocol, first, last))
            .ok_or(Drop::Exhausted)
    }
}
