//! What a sender left open, in the header before its frame (5.1.6.2).

use super::{NET_HEADER_BYTES, feature};
use crate::switch::HEADER_BYTES;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_NONE`.
const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCPV6: u8 = 4;

/// An open checksum: the bytes from `start` to the end are to be summed, and the result goes `offset` bytes after `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Bytes from the start of the frame.
    pub start: u16,
    /// Bytes from there.
    pub offset: u16,
}

/// A TCP segment that is to become packets of at most `bytes` of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Whether it is over IPv6, else IPv4.
    pub is_ipv6: bool,
    /// Bytes of data in each packet.
    pub bytes: u16,
    /// Bytes of headers, as the sender says: a hint.
    pub header_bytes: u16,
}

/// All that was left open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum.
    pub checksum: Option<Checksum>,
    /// The cutting into packets; only with a checksum.
    pub segmentation: Option<Segmentation>,
}

impl Offload {
    /// Reads a sender's header. `None` if it asks for what was not agreed on, or points outside the frame
    /// or into its Ethernet header.
    pub(super) fn parse(
        head: [u8; NET_HEADER_BYTES as usize],
        features: u64,
        frame_bytes: u32,
    ) -> Option<Offload> {
        let has = |bit: u64| features & bit != 0;
        let [flags, gso, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = head;
        let checksum = if flags & NEEDS_CSUM == 0 {
            None
        } else {
            let start = u16::from_le_bytes([s0, s1]);
            let offset = u16::from_le_bytes([o0, o1]);
            let end = u32::from(start) + u32::from(offset) + 2;
            // A checksum over the Ethernet header could be put into it, and the source address has been checked already.
            let is_behind_header = u32::from(start) >= HEADER_BYTES;
            if !has(feature::CSUM) || !is_behind_header || end > frame_bytes {
                return None;
            }
            Some(Checksum { start, offset })
        };
        let is_ipv6 = match gso {
            GSO_NONE => {
                return Some(Offload {
                    checksum,
                    segmentation: None,
                });
            }
            GSO_TCPV4 if has(feature::HOST_TSO4) => false,
            GSO_TCPV6 if has(feature::HOST_TSO6) => true,
            _ => return None,
        };
        let bytes = u16::from_le_bytes([g0, g1]);
        if checksum.is_none() || bytes == 0 {
            return None;
        }
        let most = u16::try_from(frame_bytes).unwrap_or(u16::MAX);
        Some(Offload {
            checksum,
            segmentation: Some(Segmentation {
                is_ipv6,
                bytes,
                header_bytes: u16::from_le_bytes([h0, h1]).min(most),
            }),
        })
    }

    /// The header for a receiver.
    pub(super) fn to_header(self, buffers: u16) -> [u8; NET_HEADER_BYTES as usize] {
        let (gso, header, size) = match self.segmentation {
            None => (GSO_NONE, 0, 0),
            Some(cut) if cut.is_ipv6 => (GSO_TCPV6, cut.header_bytes, cut.bytes),
            Some(cut) => (GSO_TCPV4, cut.header_bytes, cut.bytes),
        };
        let (flags, start, offset) = match self.checksum {
            None => (0, 0, 0),
            Some(sum) => (NEEDS_CSUM, sum.start, sum.offset),
        };
        let [h0, h1] = header.to_le_bytes();
        let [g0, g1] = size.to_le_bytes();
        let [s0, s1] = start.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        let [n0, n1] = buffers.to_le_bytes();
        [flags, gso, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }
}
