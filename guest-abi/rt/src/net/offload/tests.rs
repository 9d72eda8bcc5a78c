use std::vec::Vec;

use super::*;

/// A frame of that protocol from 10.0.0.1 to 10.0.0.2, its transport header and data as given.
fn frame(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut frame = std::vec![0; 14];
    frame[12] = 8;
    let total = (20 + transport.len()) as u16;
    frame.extend([
        0x45,
        0,
        (total >> 8) as u8,
        total as u8,
        0,
        0,
        0x40,
        0,
        64,
        protocol,
        0,
        0,
    ]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(transport);
    frame
}

fn tcp(data: usize) -> Vec<u8> {
    let mut header = std::vec![0; 20];
    header[12] = 5 << 4;
    header.extend((0..data).map(|index| index as u8));
    frame(TCP, &header)
}

/// Does what the header asks of the device for the checksum (5.1.6.2).
fn complete(frame: &mut [u8], header: Header) {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    let sum = !fold(sum(&frame[start..]));
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_checksum_left_open_and_then_computed_is_right() {
    // Odd lengths, too.
    for data in [0, 1, 2, 37, 1460] {
        let mut frame = tcp(data);
        assert!(!is_intact(&frame));
        let header = leave_open(&mut frame, None);
        assert!(header.is_vouched_for() && !header.is_segment());
        complete(&mut frame, header);
        assert!(is_intact(&frame));
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert!(!is_intact(&frame));
    }
}

#[test]
fn a_known_checksum_is_found_right() {
    // UDP from port 1 to port 2 with the data "ab", computed by hand:
    // 0a00+0001+0a00+0002 + 0011 + 000a + 0001+0002+000a + 6162 = 758d, complement 8a72.
    let good = frame(UDP, &[0, 1, 0, 2, 0, 10, 0x8A, 0x72, b'a', b'b']);
    assert!(is_intact(&good));
    let without = frame(UDP, &[0, 1, 0, 2, 0, 10, 0, 0, b'a', b'b']);
    assert!(is_intact(&without));
}

#[test]
fn a_long_segment_says_how_it_is_to_be_divided() {
    let mut frame = tcp(4000);
    let header = leave_open(&mut frame, Some(1460));
    let bytes = header.to_bytes();
    // NEEDS_CSUM, TCPV4, 54 bytes of headers, segments of 1460, checksum at 34 + 16.
    assert_eq!(bytes, [1, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0, 0, 0]);
    assert_eq!(Header::from_bytes(bytes), header);
}

#[test]
fn other_frames_are_left_alone() {
    let fragment = {
        let mut frame = tcp(8);
        frame[20] = 0x20;
        frame
    };
    let mut too_long = tcp(8);
    too_long[17] += 1;
    let mut options = tcp(0);
    options[14] = 0x4F;
    let mut arp = tcp(8);
    arp[13] = 6;
    for frame in [
        fragment,
        too_long,
        options,
        arp,
        frame(1, &[8; 16]),
        Vec::new(),
    ] {
        let mut changed = frame.clone();
        assert_eq!(leave_open(&mut changed, Some(100)), Header::default());
        assert_eq!(changed, frame);
        assert!(is_intact(&frame));
    }
}
