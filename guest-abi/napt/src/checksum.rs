//! Internet checksums, changed with what they cover (RFC 1624, equation 3) or summed up (RFC 1071).

/// Bytes of IPv4 addresses and ports that take the place of others: an even number on either side.
pub(crate) fn changed(checksum: u16, before: &[u8], after: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 { sum(bytes) };
    let complement = |sum: u32| u32::from(!fold(sum));
    !fold(u32::from(!checksum) + complement(words(before)) + u32::from(fold(words(after))))
}

/// The checksum of these bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The checksum of a TCP or UDP segment, over the pseudo header, too. 0 if it is right as it stands.
#[must_use]
pub fn segment_checksum(source: [u8; 4], target: [u8; 4], protocol: u8, segment: &[u8]) -> u16 {
    let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
    let total = sum(&source) + sum(&target) + u32::from(protocol) + length + sum(segment);
    !fold(total)
}

/// Packets have at most 65,535 bytes: no sum of their words overflows.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}
