//! An IPv4 packet in place: where its parts are, and how they are changed together with their checksums.
//!
//! Sources: RFC 791 (IPv4), 768 (UDP), 9293 (TCP), 792 (ICMP).

use crate::checksum::{changed, checksum};
use crate::{Drop, Endpoint, Protocol};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const SOURCE: usize = 12;
const TARGET: usize = 16;
const HEADER_CHECKSUM: usize = 10;
/// Bytes of a packet's own that an ICMP error quotes at least.
const QUOTED: usize = 8;

/// TCP's flags.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Target,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of a flow between two endpoints. `flags` are TCP's.
    Flow { protocol: Protocol, flags: u8 },
    /// An ICMP error about a packet of a flow, whose ends are those of the packet that it quotes, which is so many bytes behind the start.
    Error { protocol: Protocol, quoted: usize },
}

/// What of a packet decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) kind: Kind,
    /// Its first byte behind the header.
    pub(crate) payload: usize,
    /// Ends of the flow: of the packet itself, or of the one that it quotes.
    pub(crate) source: Endpoint,
    pub(crate) target: Endpoint,
}

fn byte(packet: &[u8], at: usize) -> Result<u8, Drop> {
    packet.get(at).copied().ok_or(Drop::Malformed)
}

fn word(packet: &[u8], at: usize) -> Result<u16, Drop> {
    match packet.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(bytes) => Ok(u16::from_be_bytes(*bytes)),
        None => Err(Drop::Malformed),
    }
}

fn address(packet: &[u8], at: usize) -> Result<[u8; 4], Drop> {
    packet
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(Drop::Malformed)
}

/// The header of a packet, whole or quoted: its length and its protocol.
fn header(packet: &[u8]) -> Result<(usize, u8), Drop> {
    let first = byte(packet, 0)?;
    let length = usize::from(first & 0xF) * 4;
    if first >> 4 != 4 || length < 20 || packet.len() < length {
        return Err(Drop::Malformed);
    }
    // More fragments, or an offset: whose they are nobody can say without keeping them.
    if word(packet, 6)? & 0x3FFF != 0 {
        return Err(Drop::Fragment);
    }
    Ok((length, byte(packet, 9)?))
}

/// The ports of a flow's packet that begins there; of an echo the one number stands for both.
fn ports(packet: &[u8], at: usize, protocol: u8) -> Result<(Protocol, u16, u16), Drop> {
    match protocol {
        TCP => Ok((Protocol::Tcp, word(packet, at)?, word(packet, at + 2)?)),
        UDP => Ok((Protocol::Udp, word(packet, at)?, word(packet, at + 2)?)),
        // Echo and echo reply.
        ICMP if matches!(byte(packet, at)?, 0 | 8) && byte(packet, at + 1)? == 0 => {
            let id = word(packet, at + 4)?;
            Ok((Protocol::Echo, id, id))
        }
        _ => Err(Drop::Unsupported),
    }
}

/// Looks at a packet without changing it.
pub(crate) fn parse(packet: &[u8]) -> Result<Parsed, Drop> {
    let (payload, protocol) = header(packet)?;
    let total = usize::from(word(packet, 2)?);
    // What Ethernet pads behind the end is nobody's business, and is not to be translated as if it were.
    if total != packet.len() || checksum(packet.get(..payload).unwrap_or_default()) != 0 {
        return Err(Drop::Malformed);
    }
    if protocol == ICMP && matches!(byte(packet, payload)?, 3 | 11 | 12) {
        return parse_error(packet, payload);
    }
    let (protocol, from, to) = ports(packet, payload, protocol)?;
    let flags = match protocol {
        Protocol::Tcp => {
            let length = usize::from(byte(packet, payload + 12)? >> 4) * 4;
            if length < 20 || payload + length > packet.len() {
                return Err(Drop::Malformed);
            }
            byte(packet, payload + 13)?
        }
        Protocol::Udp => {
            if usize::from(word(packet, payload + 4)?) != packet.len() - payload {
                return Err(Drop::Malformed);
            }
            0
        }
        Protocol::Echo => {
            byte(packet, payload + QUOTED - 1)?;
            0
        }
    };
    Ok(Parsed {
        kind: Kind::Flow { protocol, flags },
        payload,
        source: Endpoint::new(address(packet, SOURCE)?, from),
        target: Endpoint::new(address(packet, TARGET)?, to),
    })
}

fn parse_error(packet: &[u8], payload: usize) -> Result<Parsed, Drop> {
    let icmp = packet.get(payload..).unwrap_or_default();
    if icmp.len() < 8 || checksum(icmp) != 0 {
        return Err(Drop::Malformed);
    }
    let quoted = payload + 8;
    let inner = packet.get(quoted..).unwrap_or_default();
    let (length, protocol) = header(inner)?;
    if inner.len() < length + QUOTED {
        return Err(Drop::Malformed);
    }
    let (protocol, from, to) = ports(inner, length, protocol)?;
    Ok(Parsed {
        kind: Kind::Error { protocol, quoted },
        payload,
        source: Endpoint::new(address(inner, SOURCE)?, from),
        target: Endpoint::new(address(inner, TARGET)?, to),
    })
}

/// Writes bytes and changes the checksum at another place for it. A checksum that is not there is left alone.
fn put(packet: &mut [u8], at: usize, new: &[u8], sum_at: Option<usize>) {
    let Some(place) = packet.get_mut(at..at + new.len()) else {
        return;
    };
    let mut old = [0; 4];
    let old = old.get_mut(..new.len()).unwrap_or_default();
    old.copy_from_slice(place);
    place.copy_from_slice(new);
    if let Some(sum_at) = sum_at {
        adjust(packet, sum_at, old, new);
    }
}

fn adjust(packet: &mut [u8], sum_at: usize, old: &[u8], new: &[u8]) {
    if let Some(place) = packet.get_mut(sum_at..sum_at + 2) {
        let before = u16::from_be_bytes([place[0], place[1]]);
        place.copy_from_slice(&changed(before, old, new).to_be_bytes());
    }
}

/// Where the checksum of a flow's packet is, if it has one.
fn sum_of(packet: &[u8], at: usize, protocol: Protocol) -> Option<usize> {
    let sum = match protocol {
        Protocol::Tcp => at + 16,
        Protocol::Udp => at + 6,
        Protocol::Echo => at + 2,
    };
    let value = packet.get(sum..sum + 2)?;
    // UDP without a checksum has 0 there.
    (protocol != Protocol::Udp || value != [0, 0]).then_some(sum)
}

/// Sets one end of a packet whose header begins at `start`.
fn set_end(packet: &mut [u8], start: usize, protocol: Protocol, end: End, new: Endpoint) {
    let length = packet
        .get(start)
        .map_or(20, |first| usize::from(first & 0xF) * 4);
    let at = start + length;
    let sum = sum_of(packet, at, protocol);
    let (address_at, port_at) = match (end, protocol) {
        (End::Source, Protocol::Echo) => (SOURCE, at + 4),
        (End::Target, Protocol::Echo) => (TARGET, at + 4),
        (End::Source, _) => (SOURCE, at),
        (End::Target, _) => (TARGET, at + 2),
    };
    let old = address(packet, start + address_at).unwrap_or_default();
    put(
        packet,
        start + address_at,
        &new.address,
        Some(start + HEADER_CHECKSUM),
    );
    // The pseudo header's; ICMP has none.
    if let Some(sum) = sum.filter(|_| protocol != Protocol::Echo) {
        adjust(packet, sum, &old, &new.address);
    }
    put(packet, port_at, &new.port.to_be_bytes(), sum);
    if protocol == Protocol::Udp
        && let Some(place) = sum.and_then(|sum| packet.get_mut(sum..sum + 2))
        && *place == [0, 0]
    {
        // 0 would say that there is none.
        place.copy_from_slice(&[0xFF, 0xFF]);
    }
}

impl Parsed {
    /// Sets an end of a flow's packet. Of an error: that end of the quoted packet, and the error's own opposite end, which is the same host.
    pub(crate) fn set(&self, packet: &mut [u8], end: End, new: Endpoint) {
        match self.kind {
            Kind::Flow { protocol, .. } => set_end(packet, 0, protocol, end, new),
            Kind::Error { protocol, quoted } => {
                set_end(packet, quoted, protocol, end, new);
                let own = match end {
                    End::Source => TARGET,
                    End::Target => SOURCE,
                };
                put(packet, own, &new.address, Some(HEADER_CHECKSUM));
                let sum_at = self.payload + 2;
                if let Some(place) = packet.get_mut(sum_at..sum_at + 2) {
                    place.copy_from_slice(&[0, 0]);
                }
                // Of a few quoted bytes: summed up anew, since several things in them have changed.
                let sum = checksum(packet.get(self.payload..).unwrap_or_default());
                put(packet, sum_at, &sum.to_be_bytes(), None);
            }
        }
    }
}
