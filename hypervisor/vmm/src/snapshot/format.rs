//! The file: a header, records, an end. All numbers are little-endian.
//!
//! | bytes of the header | what |
//! |---|---|
//! | 0 to 7 | `NAGAYAVM` |
//! | 8, 9 | format, [`FORMAT`] |
//! | 10, 11 | bytes of the header, 64 |
//! | 12 to 15 | version of the contract with guests, as `guest_abi::ABI_VERSION` |
//! | 16 to 47 | CPU features needed, the words of [`CpuFeatures`] |
//! | 48 to 55 | bits of XCR0 needed |
//! | 56 to 59 | 0 |
//! | 60 to 63 | CRC-32 of bytes 0 to 59 |
//!
//! | bytes of a record | what |
//! |---|---|
//! | 0, 1 | its number; 0 is the end |
//! | 2, 3 | version of its body |
//! | 4, 5 | bit 0: it is needed, and a reader that does not know it refuses the file |
//! | 6, 7 | 0 |
//! | 8 to 11 | bytes of the body, at most [`MAX_BODY_BYTES`] |
//! | 12 to 15 | CRC-32 of bytes 0 to 11 and the body |
//!
//! The body of the end is the count of the records before it (4 bytes) and the CRC-32 over all bytes before it (4 bytes): a record that is
//! lost as a whole is noticed. CRC-32 is that of ISO 3309 (`zlib`). A reader needs the memory of one record, and reads from the start to the
//! end.

use alloc::vec::Vec;

use crc::{CRC_32_ISO_HDLC, Crc};

use super::error::SnapshotError;
use super::features::CpuFeatures;

/// The format.
pub const FORMAT: u16 = 1;
/// What a snapshot begins with.
pub const MAGIC: [u8; 8] = *b"NAGAYAVM";
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a record before its body.
pub const RECORD_HEAD_BYTES: usize = 16;
/// The longest body.
pub const MAX_BODY_BYTES: usize = 1 << 20;

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// The record that ends a snapshot.
const END: u16 = 0;
const END_BYTES: usize = 8;
/// A record's flag.
const NEEDED: u16 = 1;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version of the contract that the guest knows.
    pub abi: u32,
    /// The CPU features that the guest has been shown.
    pub features: CpuFeatures,
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it begins, in bytes from the start.
    pub at: u64,
    /// Its number.
    pub kind: u16,
    /// Version of its body.
    pub version: u16,
    /// Who does not know it refuses the snapshot.
    pub is_needed: bool,
    /// Its body.
    pub body: &'a [u8],
}

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    records: u32,
}

impl Writer {
    /// One with a header and nothing else.
    #[must_use]
    pub fn new(header: &Header) -> Writer {
        let Header { abi, features } = header;
        let CpuFeatures { words, xcr0 } = features;
        let mut bytes = Vec::from(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend((HEADER_BYTES as u16).to_le_bytes());
        bytes.extend(abi.to_le_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(xcr0.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(CRC.checksum(&bytes).to_le_bytes());
        Writer { bytes, records: 0 }
    }

    /// Appends a record. `false`, and nothing has been appended, if its body is longer than [`MAX_BODY_BYTES`].
    #[must_use]
    pub fn record(&mut self, kind: u16, version: u16, is_needed: bool, body: &[u8]) -> bool {
        let length = u32::try_from(body.len()).ok();
        let Some(length) = length.filter(|length| *length as usize <= MAX_BODY_BYTES) else {
            return false;
        };
        let start = self.bytes.len();
        let flags = if is_needed { NEEDED } else { 0 };
        for half in [kind, version, flags, 0] {
            self.bytes.extend(half.to_le_bytes());
        }
        self.bytes.extend(length.to_le_bytes());
        let mut digest = CRC.digest();
        digest.update(self.bytes.get(start..).unwrap_or_default());
        digest.update(body);
        self.bytes.extend(digest.finalize().to_le_bytes());
        self.bytes.extend(body);
        self.records = self.records.saturating_add(1);
        true
    }

    /// Ends it.
    #[must_use]
    pub fn end(mut self) -> Vec<u8> {
        let mut body = Vec::from(self.records.to_le_bytes());
        body.extend(CRC.checksum(&self.bytes).to_le_bytes());
        // It is 8 bytes long.
        let _ = self.record(END, 1, true, &body);
        self.bytes
    }
}

/// A snapshot that is being read: its records one after the other, each checked.
#[derive(Debug)]
pub struct Reader<'a> {
    all: &'a [u8],
    at: usize,
    records: u32,
    header: Header,
    has_ended: bool,
}

fn take<'a>(
    all: &'a [u8],
    at: &mut usize,
    bytes: usize,
    what: &'static str,
) -> Result<&'a [u8], SnapshotError> {
    let taken = all.get(*at..).and_then(|rest| rest.get(..bytes));
    let taken = taken.ok_or(SnapshotError::Truncated {
        at: all.len() as u64,
        what,
    })?;
    *at += bytes;
    Ok(taken)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().map_or(0, u32::from_le_bytes)
}

impl<'a> Reader<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`SnapshotError`]: it is none of this format.
    pub fn new(all: &'a [u8]) -> Result<Reader<'a>, SnapshotError> {
        let start = all.get(..MAGIC.len().min(all.len())).unwrap_or_default();
        if start.is_empty() || !MAGIC.starts_with(start) {
            return Err(SnapshotError::NoSnapshot);
        }
        let mut at = 0;
        let header = take(all, &mut at, HEADER_BYTES, "the header")?;
        // Before the checksum: another format may have another header.
        let format = u16_at(header, 8);
        if format != FORMAT {
            return Err(SnapshotError::Format {
                found: format,
                known: FORMAT,
            });
        }
        let (sealed, checksum) = header.split_at(HEADER_BYTES - 4);
        if CRC.checksum(sealed) != u32_at(checksum, 0) {
            return Err(SnapshotError::HeaderChecksum);
        }
        if usize::from(u16_at(header, 10)) != HEADER_BYTES || u32_at(header, 56) != 0 {
            return Err(SnapshotError::Reserved { at: 10 });
        }
        let xcr0 = u64::from(u32_at(header, 48)) | u64::from(u32_at(header, 52)) << 32;
        let header = Header {
            abi: u32_at(header, 12),
            features: CpuFeatures {
                words: core::array::from_fn(|word| u32_at(header, 16 + word * 4)),
                xcr0,
            },
        };
        Ok(Reader {
            all,
            at,
            records: 0,
            header,
            has_ended: false,
        })
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next record; `None` after the end, which has been checked then.
    ///
    /// # Errors
    /// [`SnapshotError`]: it is cut off or damaged, or there is something behind the end.
    pub fn next_record(&mut self) -> Result<Option<Record<'a>>, SnapshotError> {
        if self.has_ended {
            return Ok(None);
        }
        let start = self.at;
        let at = start as u64;
        let head = take(self.all, &mut self.at, RECORD_HEAD_BYTES, "a record's head")?;
        let (kind, length) = (u16_at(head, 0), u32_at(head, 8));
        if length as usize > MAX_BODY_BYTES {
            return Err(SnapshotError::TooLong { at, bytes: length });
        }
        let body = take(self.all, &mut self.at, length as usize, "a record")?;
        let (sealed, checksum) = head.split_at(RECORD_HEAD_BYTES - 4);
        let mut digest = CRC.digest();
        digest.update(sealed);
        digest.update(body);
        if digest.finalize() != u32_at(checksum, 0) {
            return Err(SnapshotError::Checksum { at, kind });
        }
        let flags = u16_at(head, 4);
        if flags & !NEEDED != 0 || u16_at(head, 6) != 0 {
            return Err(SnapshotError::Reserved { at: at + 4 });
        }
        if kind == END {
            self.check_end(start, body)?;
            return Ok(None);
        }
        self.records = self.records.saturating_add(1);
        Ok(Some(Record {
            at,
            kind,
            version: u16_at(head, 2),
            is_needed: flags & NEEDED != 0,
            body,
        }))
    }

    fn check_end(&mut self, start: usize, body: &[u8]) -> Result<(), SnapshotError> {
        let before = self.all.get(..start).unwrap_or_default();
        let is_right = body.len() == END_BYTES
            && u32_at(body, 0) == self.records
            && u32_at(body, 4) == CRC.checksum(before);
        if !is_right {
            return Err(SnapshotError::End);
        }
        self.has_ended = true;
        match self.all.len() - self.at {
            0 => Ok(()),
            bytes => Err(SnapshotError::Rest {
                bytes: bytes as u64,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const HEADER: Header = Header {
        abi: 0x1_0002,
        features: CpuFeatures {
            words: [1, 2, 3, 4, 5, 6, 7, 8],
            xcr0: 7 << 32 | 3,
        },
    };

    fn file() -> Vec<u8> {
        let mut writer = Writer::new(&HEADER);
        assert!(writer.record(7, 1, true, b"seven"));
        assert!(writer.record(9, 2, false, &[]));
        writer.end()
    }

    fn read(bytes: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, SnapshotError> {
        let mut reader = Reader::new(bytes)?;
        let mut found = Vec::new();
        while let Some(record) = reader.next_record()? {
            found.push((record.kind, record.body.to_vec()));
        }
        Ok(found)
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = file();
        let reader = Reader::new(&bytes).expect("is one");
        assert_eq!(*reader.header(), HEADER);
        let expected = vec![(7, b"seven".to_vec()), (9, Vec::new())];
        assert_eq!(read(&bytes), Ok(expected));
        // By another program: python3, zlib.crc32 of the first 60 bytes.
        assert_eq!(&bytes[..8], b"NAGAYAVM");
        assert_eq!(bytes.len(), 64 + 16 + 5 + 16 + 16 + 8);
    }

    #[test]
    fn no_byte_can_be_another_and_none_can_be_missing() {
        let bytes = file();
        for at in 0..bytes.len() {
            assert!(read(&bytes[..at]).is_err(), "cut off at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(read(&changed).is_err(), "changed at {at}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(read(&longer), Err(SnapshotError::Rest { bytes: 1 }));
    }

    #[test]
    fn a_record_that_is_lost_as_a_whole_is_missed() {
        let mut bytes = file();
        bytes.drain(64..64 + 16 + 5);
        assert_eq!(read(&bytes), Err(SnapshotError::End));
        assert_eq!(
            read(b"NAGA"),
            Err(SnapshotError::Truncated {
                at: 4,
                what: "the header"
            })
        );
        assert_eq!(read(b""), Err(SnapshotError::NoSnapshot));
        assert_eq!(read(b"\x7FELF"), Err(SnapshotError::NoSnapshot));
    }

    #[test]
    fn a_body_that_is_too_long_is_not_written_and_not_believed() {
        let mut writer = Writer::new(&HEADER);
        assert!(!writer.record(1, 1, true, &vec![0; MAX_BODY_BYTES + 1]));
        let mut bytes = writer.end();
        bytes[64 + 8..64 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        let too_long = SnapshotError::TooLong {
            at: 64,
            bytes: u32::MAX,
        };
        assert_eq!(read(&bytes), Err(too_long));
    }
}
