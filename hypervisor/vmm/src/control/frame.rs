//! Frames: how a body finds its way over a line that may lose, damage or invent bytes.
//!
//! A frame is a header, a body and a checksum, encoded by COBS (Cheshire and Baker, "Consistent Overhead Byte Stuffing",
//! IEEE/ACM Transactions on Networking 7(2), 1999) so that it contains no zero byte, with a zero before and behind it. Whatever
//! happened on the line, a receiver is in step again with the next zero.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic, `Ng` |
//! | 2 | 1 | version of this protocol, [`VERSION`] |
//! | 3 | 1 | kind: 0 request, 1 answer, 2 notice |
//! | 4 | 4 | little endian: the id of the request, or of the request answered; of a notice, its number in the session |
//! | 8 | 2 | bytes of the body, little endian |
//! | 10 | n | body |
//! | 10 + n | 4 | CRC-32 (ISO-HDLC) of all before it, little endian |

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crc::{CRC_32_ISO_HDLC, Crc};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version of the protocol: of the frame and of every body.
pub const VERSION: u8 = 4;
/// The first two bytes of a frame.
pub const MAGIC: [u8; 2] = *b"Ng";
const HEADER_BYTES: usize = 10;
const CHECKSUM_BYTES: usize = 4;
/// Longest frame before COBS: room for an order to create a VM with the longest command line (4096 bytes).
pub const MAX_FRAME_BYTES: usize = 4608;
/// Longest body.
pub const MAX_BODY_BYTES: usize = MAX_FRAME_BYTES - HEADER_BYTES - CHECKSUM_BYTES;
const MAX_ENCODED_BYTES: usize = cobs::max_encoding_length(MAX_FRAME_BYTES);
/// Longest frame on the wire: after COBS, with the zeros around it.
pub const MAX_WIRE_BYTES: usize = MAX_ENCODED_BYTES + 2;

const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

const _: () = assert!(MAX_BODY_BYTES <= u16::MAX as usize);

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`super::Request`], from the client.
    Request,
    /// An [`super::Answer`], from the server.
    Answer,
    /// A [`super::Notice`], from the server, unasked.
    Notice,
}

impl Kind {
    const fn to_byte(self) -> u8 {
        match self {
            Kind::Request => 0,
            Kind::Answer => 1,
            Kind::Notice => 2,
        }
    }

    const fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            0 => Some(Kind::Request),
            1 => Some(Kind::Answer),
            2 => Some(Kind::Notice),
            _ => None,
        }
    }
}

/// A frame whose checksum is right. Its body is as yet unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The sender's version. The body of another version must not be read.
    pub version: u8,
    /// What it carries.
    pub kind: Kind,
    /// The request it is or answers; of a notice, its number in the session, from 0.
    pub id: u32,
    /// The body.
    pub body: &'a [u8],
}

/// Why the bytes between two zeros were no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// More bytes than a frame has.
    TooLong,
    /// Not COBS.
    NotCobs,
    /// Fewer bytes than header and checksum.
    TooShort,
    /// Another magic.
    Magic,
    /// The checksum is wrong.
    Checksum,
    /// The length in the header is not the body's.
    Length,
    /// A kind that does not exist.
    Kind,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FrameError::TooLong => "more bytes than a frame has",
            FrameError::NotCobs => "not COBS",
            FrameError::TooShort => "too short for a frame",
            FrameError::Magic => "not a frame of this protocol",
            FrameError::Checksum => "wrong checksum",
            FrameError::Length => "wrong length",
            FrameError::Kind => "unknown kind of frame",
        })
    }
}

impl core::error::Error for FrameError {}

/// A body that fits no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Bytes it has; the most is [`MAX_BODY_BYTES`].
    pub bytes: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a message of {} bytes does not fit a frame, which takes {MAX_BODY_BYTES}",
            self.bytes
        )
    }
}

impl core::error::Error for TooLarge {}

/// Appends a frame with this body to `output`.
///
/// # Errors
/// [`TooLarge`] if the body does not fit; nothing is appended then.
pub fn encode<T: Serialize>(
    kind: Kind,
    id: u32,
    body: &T,
    output: &mut Vec<u8>,
) -> Result<(), TooLarge> {
    encode_as(VERSION, kind, id, body, output)
}

pub(super) fn encode_as<T: Serialize>(
    version: u8,
    kind: Kind,
    id: u32,
    body: &T,
    output: &mut Vec<u8>,
) -> Result<(), TooLarge> {
    let bytes = encoded_len(body);
    let length = u16::try_from(bytes)
        .ok()
        .filter(|_| bytes <= MAX_BODY_BYTES)
        .ok_or(TooLarge { bytes })?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + bytes + CHECKSUM_BYTES);
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&[version, kind.to_byte()]);
    frame.extend_from_slice(&id.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    let mut frame = postcard::to_extend(body, frame).map_err(|_| TooLarge { bytes })?;
    frame.extend_from_slice(&CHECKSUM.checksum(&frame).to_le_bytes());
    // The first zero ends whatever noise is on the line.
    output.push(0);
    output.extend_from_slice(&cobs::encode_vec(&frame));
    output.push(0);
    Ok(())
}

/// The checksum of some bytes.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    CHECKSUM.checksum(bytes)
}

/// Bytes of a value as a body; `usize::MAX` if it cannot be one.
pub(super) fn encoded_len<T: Serialize>(body: &T) -> usize {
    postcard::experimental::serialized_size(body).unwrap_or(usize::MAX)
}

/// Reads a body; `None` if it is not one, or if bytes are left over.
#[must_use]
pub fn body_of<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// Finds frames in a stream of bytes. It has one buffer of fixed size and never fails for good.
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    length: usize,
    too_long: bool,
    rejected: u64,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder that has seen nothing.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder {
            buffer: vec![0; MAX_ENCODED_BYTES].into_boxed_slice(),
            length: 0,
            too_long: false,
            rejected: 0,
        }
    }

    /// Pieces between two zeros that were no frames, since the start.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Takes one byte; gives the frame, or what was no frame, that it ends.
    pub fn push(&mut self, byte: u8) -> Option<Result<Frame<'_>, FrameError>> {
        if byte != 0 {
            match self.buffer.get_mut(self.length) {
                Some(slot) => {
                    *slot = byte;
                    self.length += 1;
                }
                None => self.too_long = true,
            }
            return None;
        }
        let length = core::mem::take(&mut self.length);
        let too_long = core::mem::take(&mut self.too_long);
        if length == 0 {
            return None;
        }
        let piece = self.buffer.get_mut(..length).unwrap_or_default();
        let frame = if too_long {
            Err(FrameError::TooLong)
        } else {
            parse(piece)
        };
        if frame.is_err() {
            self.rejected = self.rejected.saturating_add(1);
        }
        Some(frame)
    }
}

fn parse(piece: &mut [u8]) -> Result<Frame<'_>, FrameError> {
    let length = cobs::decode_in_place(piece).map_err(|_| FrameError::NotCobs)?;
    let frame: &[u8] = piece.get(..length).ok_or(FrameError::NotCobs)?;
    let (covered, checksum) = frame
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or(FrameError::TooShort)?;
    let (header, body) = covered
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(FrameError::TooShort)?;
    let [m0, m1, version, kind, i0, i1, i2, i3, l0, l1] = *header;
    if [m0, m1] != MAGIC {
        return Err(FrameError::Magic);
    }
    if CHECKSUM.checksum(covered) != u32::from_le_bytes(*checksum) {
        return Err(FrameError::Checksum);
    }
    if usize::from(u16::from_le_bytes([l0, l1])) != body.len() {
        return Err(FrameError::Length);
    }
    Ok(Frame {
        version,
        kind: Kind::from_byte(kind).ok_or(FrameError::Kind)?,
        id: u32::from_le_bytes([i0, i1, i2, i3]),
        body,
    })
}
