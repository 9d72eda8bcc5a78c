//! What is left open in a frame for whoever is last able to do it: checksums and the division of large TCP segments. Between VMs
//! nobody does it.
//!
//! Source: virtio 1.2, 5.1.6 "Device Operation"; RFC 791, 768, 9293, 1071.

/// Bytes of `struct virtio_net_hdr` with `num_buffers`.
pub const HEADER_BYTES: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_IS_VALID: u8 = 2;
const SEGMENTS_TCP4: u8 = 1;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A virtio-net header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    segmentation: u8,
    header_bytes: u16,
    segment_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
    /// Buffers that the frame is in; the device says it.
    pub buffers: u16,
}

impl Header {
    /// As it is in memory.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [self.flags, self.segmentation, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [
            self.header_bytes,
            self.segment_bytes,
            self.checksum_start,
            self.checksum_offset,
            self.buffers,
        ];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From memory.
    #[must_use]
    pub fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Header {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Header {
            flags: bytes[0],
            segmentation: bytes[1],
            header_bytes: word(2),
            segment_bytes: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
            buffers: word(10),
        }
    }

    /// Whether the receiver need not check the checksum: it is open, or the device vouches for it.
    #[must_use]
    pub fn is_vouched_for(&self) -> bool {
        self.flags & (NEEDS_CHECKSUM | DATA_IS_VALID) != 0
    }

    /// Whether the frame is a large segment.
    #[must_use]
    pub fn is_segment(&self) -> bool {
        self.segmentation != 0
    }
}

/// Where the parts of a frame of TCP or UDP over IPv4 are.
struct Parts {
    protocol: u8,
    /// Offset of the TCP or UDP header.
    transport: usize,
    /// Offset of the checksum in it.
    checksum: usize,
    /// One past the packet.
    end: usize,
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    let bytes = frame.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn parts(frame: &[u8]) -> Option<Parts> {
    let ip = ETHERNET_BYTES;
    let version = *frame.get(ip)?;
    let is_whole = word(frame, ip + 6)? & 0x3FFF == 0;
    if word(frame, 12)? != 0x0800 || version >> 4 != 4 || !is_whole {
        return None;
    }
    let transport = ip + usize::from(version & 15) * 4;
    let end = ip + usize::from(word(frame, ip + 2)?);
    let protocol = *frame.get(ip + 9)?;
    let (checksum, least) = match protocol {
        TCP => (16, 20),
        UDP => (6, 8),
        _ => return None,
    };
    (transport >= ip + 20 && end <= frame.len() && transport + least <= end).then_some(Parts {
        protocol,
        transport,
        checksum,
        end,
    })
}

/// The sum of big-endian words, not folded; a last odd byte is the upper half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let mut pairs = bytes.chunks_exact(2);
    let whole: u64 = pairs
        .by_ref()
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]))
        .sum();
    whole
        + pairs
            .remainder()
            .first()
            .map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// Addresses, protocol and length, as TCP's and UDP's checksums have them.
fn pseudo_header(frame: &[u8], parts: &Parts) -> u64 {
    let addresses = frame
        .get(ETHERNET_BYTES + 12..ETHERNET_BYTES + 20)
        .map_or(0, sum);
    addresses + u64::from(parts.protocol) + (parts.end - parts.transport) as u64
}

/// Leaves the checksum of a frame of TCP or UDP open, and its division into segments with that many bytes of data, if it is TCP
/// and wants one: what the device is to be told. Other frames are left alone.
#[must_use]
pub fn leave_open(frame: &mut [u8], segment_bytes: Option<u16>) -> Header {
    let Some(parts) = parts(frame) else {
        return Header::default();
    };
    let at = parts.transport + parts.checksum;
    let open = fold(pseudo_header(frame, &parts));
    frame[at..at + 2].copy_from_slice(&open.to_be_bytes());
    let mut header = Header {
        flags: NEEDS_CHECKSUM,
        checksum_start: parts.transport as u16,
        checksum_offset: parts.checksum as u16,
        ..Header::default()
    };
    if let Some(bytes) = segment_bytes.filter(|_| parts.protocol == TCP) {
        let headers = parts.transport + usize::from(frame[parts.transport + 12] >> 4) * 4;
        header.segmentation = SEGMENTS_TCP4;
        header.header_bytes = headers as u16;
        header.segment_bytes = bytes;
    }
    header
}

/// Whether the checksum of a frame of TCP or UDP is right; frames of other kinds, and UDP without one, pass.
#[must_use]
pub fn is_intact(frame: &[u8]) -> bool {
    let Some(parts) = parts(frame) else {
        return true;
    };
    let field = word(frame, parts.transport + parts.checksum);
    if parts.protocol == UDP && field == Some(0) {
        return true;
    }
    let body = frame.get(parts.transport..parts.end).map_or(0, sum);
    fold(pseudo_header(frame, &parts) + body) == 0xFFFF
}

#[cfg(test)]
mod tests;
