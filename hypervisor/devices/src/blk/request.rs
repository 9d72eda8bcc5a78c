//! One request: loaded once, checked, carried out in as many steps as its owner allows, answered.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{BlockConfig, BlockStats, BlockStore, ID_BYTES, MAX_RANGES, SECTOR_BYTES, StoreError};
use crate::GuestRam;
use crate::queue::scatter::Cursor;
use crate::queue::{Chain, QueueError};
use crate::state::{StateError, check};

/// Bytes of the header: type, reserved, sector (5.2.6).
const HEADER_BYTES: u32 = 16;
/// Bytes of a range: sector, sectors, flags.
const RANGE_BYTES: u32 = 16;

/// Types.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A range's flag: its place may be given back. Others are reserved.
const RANGE_UNMAP: u32 = 1 << 0;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub(super) enum Status {
    /// `VIRTIO_BLK_S_OK`.
    Done = 0,
    /// `VIRTIO_BLK_S_IOERR`.
    Failed = 1,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unknown = 2,
}

/// Bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Range {
    at: u64,
    bytes: u64,
}

/// What is to be done. Ranges are within the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Work {
    Read(Range),
    Write(Range),
    Flush,
    Id([u8; ID_BYTES]),
    Discard(Vec<Range>),
    Zero(Vec<Range>),
    /// Nothing: it is refused.
    Refused(Status),
}

/// A request and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    work: Work,
    /// Bytes done.
    done: u64,
    /// Bytes at the start of the device-writable part that the guest has been given.
    given: u32,
}

impl Request {
    /// Loads and checks a request. What is asked for may be refused.
    ///
    /// # Errors
    /// The chain has no room for a header or for a status, or is no RAM.
    pub(super) fn load<R: GuestRam>(
        ram: &R,
        chain: &Chain,
        config: &BlockConfig,
    ) -> Result<Request, QueueError> {
        let least = |bytes: u32, least: u32| {
            if bytes < least {
                Err(QueueError::ChainBytes { bytes, least })
            } else {
                Ok(bytes - least)
            }
        };
        let readable = least(chain.readable_bytes(), HEADER_BYTES)?;
        let writable = least(chain.writable_bytes(), 1)?;
        let mut header = [0; HEADER_BYTES as usize];
        let mut cursor = Cursor::new(chain.readable());
        cursor.read(ram, &mut header)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let data = |bytes: u32| {
            let range = range(sector, bytes.into(), config)?;
            bytes.is_multiple_of(SECTOR_BYTES as u32).then_some(range)
        };
        let failed = Work::Refused(Status::Failed);
        let work = match u32::from_le_bytes([t0, t1, t2, t3]) {
            IN if readable == 0 => data(writable).map_or(failed, Work::Read),
            OUT if writable == 0 && !config.read_only => data(readable).map_or(failed, Work::Write),
            IN | OUT => failed,
            FLUSH => Work::Flush,
            GET_ID => Work::Id(config.id),
            kind @ (DISCARD | WRITE_ZEROES) if !config.read_only => {
                let flags = if kind == DISCARD { 0 } else { RANGE_UNMAP };
                match load_ranges(ram, &mut cursor, readable, flags, config)? {
                    Ok(ranges) if kind == DISCARD => Work::Discard(ranges),
                    Ok(ranges) => Work::Zero(ranges),
                    Err(status) => Work::Refused(status),
                }
            }
            _ => Work::Refused(Status::Unknown),
        };
        Ok(Request {
            work,
            done: 0,
            given: 0,
        })
    }

    /// Bytes done.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// Goes on for at most so many bytes. `None`: it is not at its end.
    ///
    /// # Errors
    /// A buffer is no RAM, or may not be written.
    pub(super) fn run<R: GuestRam>(
        &mut self,
        ram: &R,
        chain: &Chain,
        store: &mut impl BlockStore,
        most: u64,
    ) -> Result<Option<Status>, QueueError> {
        let end = self.done.saturating_add(most);
        let result = match &self.work {
            Work::Refused(status) => return Ok(Some(*status)),
            Work::Flush => store.flush(),
            Work::Id(id) => {
                let room = chain.writable_bytes().saturating_sub(1) as usize;
                let id = id.get(..room).unwrap_or(id);
                self.given = Cursor::new(chain.writable()).write(ram, id)? as u32;
                Ok(())
            }
            Work::Read(range) => {
                let range = *range;
                let mut cursor = Cursor::new(chain.writable());
                cursor.skip(self.given);
                self.each(range, end, |at, most| {
                    let piece = store.read(at, most)?;
                    let piece = piece.get(..most).unwrap_or(piece);
                    Ok(cursor.write(ram, piece))
                })?
                .inspect(|()| self.given = self.done as u32)
            }
            Work::Write(range) => {
                let range = *range;
                let mut cursor = Cursor::new(chain.readable());
                // A chain's bytes are no more than 32 bits can say.
                cursor.skip(HEADER_BYTES + self.done as u32);
                self.each(range, end, |at, most| {
                    let piece = store.write(at, most)?;
                    let most = most.min(piece.len());
                    let (piece, _) = piece.split_at_mut(most);
                    Ok(cursor.read(ram, piece))
                })?
            }
            Work::Discard(ranges) => over(ranges, &mut self.done, end, |range| {
                store.discard(range.at, range.bytes)
            }),
            Work::Zero(ranges) => over(ranges, &mut self.done, end, |range| {
                store.zero(range.at, range.bytes)
            }),
        };
        Ok(match result {
            Err(StoreError { .. }) => Some(Status::Failed),
            Ok(()) => (self.done >= self.bytes()).then_some(Status::Done),
        })
    }

    /// Bytes that are to be done in all.
    fn bytes(&self) -> u64 {
        match &self.work {
            Work::Read(range) | Work::Write(range) => range.bytes,
            Work::Discard(ranges) | Work::Zero(ranges) => total(ranges),
            Work::Flush | Work::Id(_) | Work::Refused(_) => 0,
        }
    }

    /// Goes over a range from where it is up to `end`, piece by piece; `copy` says how much it did of each.
    fn each(
        &mut self,
        range: Range,
        end: u64,
        mut copy: impl FnMut(u64, usize) -> Result<Result<usize, crate::RamError>, StoreError>,
    ) -> Result<Result<(), StoreError>, QueueError> {
        let end = end.min(range.bytes);
        while self.done < end {
            let at = range.at + self.done;
            let most = usize::try_from(end - self.done).unwrap_or(usize::MAX);
            match copy(at, most) {
                // A store that has nothing to say has failed: there would be no end.
                Ok(Ok(0)) => return Ok(Err(StoreError { at })),
                Ok(Ok(copied)) => self.done += copied as u64,
                Ok(Err(error)) => return Err(error.into()),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// Writes the status into the last byte. Returns what the used element says: bytes from the first one on without a gap.
    ///
    /// # Errors
    /// That byte is no RAM.
    pub(super) fn answer<R: GuestRam>(
        &self,
        ram: &R,
        chain: &Chain,
        status: Status,
    ) -> Result<u32, QueueError> {
        let data = chain.writable_bytes().saturating_sub(1);
        let mut cursor = Cursor::new(chain.writable());
        cursor.skip(data);
        cursor.write(ram, &[status as u8])?;
        Ok(if self.given == data {
            data + 1
        } else {
            self.given
        })
    }

    /// Counts it as ended.
    pub(super) fn count(&self, stats: &mut BlockStats, status: Status) {
        let add = |count: &mut u64, more: u64| *count = count.wrapping_add(more);
        add(&mut stats.requests, 1);
        add(&mut stats.failed, (status != Status::Done).into());
        match self.work {
            Work::Read(_) => add(&mut stats.read_bytes, self.done),
            Work::Write(_) => add(&mut stats.written_bytes, self.done),
            _ => {}
        }
    }
}

impl Request {
    /// Whether a request that has been begun gets there, with that chain on that disk.
    pub(super) fn check(&self, chain: &Chain, config: &BlockConfig) -> Result<(), StateError> {
        let (readable, writable) = (chain.readable_bytes(), chain.writable_bytes());
        check(
            readable >= HEADER_BYTES && writable > 0,
            "chain",
            readable,
            "a header's bytes, and one to answer in",
        )?;
        let is_on_disk = |range: &Range| {
            let end = range.at.checked_add(range.bytes);
            end.is_some_and(|end| end <= config.sectors.saturating_mul(SECTOR_BYTES))
        };
        let (ranges, data) = match &self.work {
            Work::Read(range) => (core::slice::from_ref(range), Some(writable - 1)),
            Work::Write(range) => (core::slice::from_ref(range), Some(readable - HEADER_BYTES)),
            Work::Discard(ranges) | Work::Zero(ranges) => (ranges.as_slice(), None),
            Work::Flush | Work::Id(_) | Work::Refused(_) => ([].as_slice(), None),
        };
        check(
            ranges.len() <= MAX_RANGES as usize,
            "work.ranges",
            ranges.len() as u64,
            "at most 16",
        )?;
        for range in ranges {
            check(is_on_disk(range), "work.at", range.at, "on the disk")?;
        }
        let writes = matches!(self.work, Work::Write(_) | Work::Discard(_) | Work::Zero(_));
        check(
            !(writes && config.read_only),
            "work",
            writes,
            "no write to a disk that can only be read",
        )?;
        // 16 ranges of at most 2^50 bytes.
        let bytes = self.bytes();
        check(
            data.is_none_or(|data| u64::from(data) == bytes),
            "work.bytes",
            bytes,
            "as many as the chain has for them",
        )?;
        check(
            self.done <= bytes,
            "done",
            self.done,
            "at most what is to be done",
        )?;
        check(
            self.given < writable,
            "given",
            self.given,
            "less than the chain's writable bytes",
        )
    }
}

/// Bytes from a sector on, if the disk has them.
fn range(sector: u64, bytes: u64, config: &BlockConfig) -> Option<Range> {
    let at = sector.checked_mul(SECTOR_BYTES)?;
    let size = config.sectors.saturating_mul(SECTOR_BYTES);
    let end = at.checked_add(bytes)?;
    (end <= size).then_some(Range { at, bytes })
}

fn total(ranges: &[Range]) -> u64 {
    // 16 of at most 2^41 bytes.
    ranges.iter().map(|range| range.bytes).sum()
}

/// Goes over ranges from where `done` is up to `end`, counted in their bytes.
fn over(
    ranges: &[Range],
    done: &mut u64,
    end: u64,
    mut act: impl FnMut(Range) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut before = 0_u64;
    for range in ranges {
        // This one's bytes are counted from `before` on.
        let skipped = done.saturating_sub(before).min(range.bytes);
        let bytes = (range.bytes - skipped).min(end - *done);
        if bytes > 0 {
            *done += bytes;
            act(Range {
                at: range.at + skipped,
                bytes,
            })?;
        }
        before += range.bytes;
    }
    Ok(())
}

/// Loads `struct virtio_blk_discard_write_zeroes` as often as there is one. All are checked before anything is done.
fn load_ranges<'a, R: GuestRam>(
    ram: &R,
    cursor: &mut Cursor<impl Iterator<Item = &'a crate::queue::Segment>>,
    bytes: u32,
    allowed_flags: u32,
    config: &BlockConfig,
) -> Result<Result<Vec<Range>, Status>, QueueError> {
    let count = bytes / RANGE_BYTES;
    if count == 0 || count > MAX_RANGES || !bytes.is_multiple_of(RANGE_BYTES) {
        return Ok(Err(Status::Failed));
    }
    let mut ranges = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let mut raw = [0; RANGE_BYTES as usize];
        cursor.read(ram, &mut raw)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = raw;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        if u32::from_le_bytes(flags) & !allowed_flags != 0 {
            return Ok(Err(Status::Unknown));
        }
        match range(sector, u64::from(sectors) * SECTOR_BYTES, config) {
            Some(range) => ranges.push(range),
            None => return Ok(Err(Status::Failed)),
        }
    }
    Ok(Ok(ranges))
}
