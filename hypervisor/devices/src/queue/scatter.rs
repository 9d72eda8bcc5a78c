//! Bytes spread over segments: read, written, and copied from one guest's segments to another's.

use nagaya_mem::Gpa;

use super::Segment;
use crate::{CopyError, GuestRam, RamError};

/// A place in a list of segments.
#[derive(Clone, Debug)]
pub struct Cursor<I> {
    rest: I,
    current: Option<Segment>,
}

impl<'a, I: Iterator<Item = &'a Segment>> Cursor<I> {
    /// The start of the segments.
    pub fn new(segments: impl IntoIterator<IntoIter = I>) -> Cursor<I> {
        let mut rest = segments.into_iter();
        let current = rest.next().copied();
        Cursor { rest, current }
    }

    /// The next piece of at most `max` bytes in one segment, not yet taken.
    fn peek(&self, max: u32) -> Option<(Gpa, u32)> {
        let segment = self.current?;
        Some((segment.start, segment.bytes.min(max)))
    }

    /// Takes bytes of the current segment, not more than it has.
    fn advance(&mut self, bytes: u32) {
        let Some(segment) = self.current else { return };
        // A segment does not go beyond the last address, so neither does its rest.
        let left = segment.bytes.saturating_sub(bytes);
        self.current = match segment.start.checked_add(bytes.into()) {
            Some(start) if left > 0 => Some(Segment { start, bytes: left }),
            _ => self.rest.next().copied(),
        };
    }

    /// Goes `bytes` on, or to the end.
    pub fn skip(&mut self, bytes: u32) {
        let mut left = bytes;
        while left > 0
            && let Some((_, piece)) = self.peek(left)
        {
            self.advance(piece);
            left -= piece;
        }
    }

    /// Reads up to the length of the buffer and goes on behind it. Returns how many bytes there were.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn read<R: GuestRam>(&mut self, ram: &R, buffer: &mut [u8]) -> Result<usize, RamError> {
        let mut done = 0;
        while let Some(place) = buffer.get_mut(done..).filter(|place| !place.is_empty())
            && let Some((start, piece)) = self.peek(length(place))
        {
            let (now, _) = place.split_at_mut(piece as usize);
            ram.read(start, now)?;
            self.advance(piece);
            done += piece as usize;
        }
        Ok(done)
    }

    /// Writes what there is room for and goes on behind it. Returns how many bytes.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn write<R: GuestRam>(&mut self, ram: &R, bytes: &[u8]) -> Result<usize, RamError> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty())
            && let Some((start, piece)) = self.peek(length(rest))
        {
            let (now, _) = rest.split_at(piece as usize);
            ram.write(start, now)?;
            self.advance(piece);
            done += piece as usize;
        }
        Ok(done)
    }
}

/// A length as descriptors say it.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// What a copy came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Bytes.
    pub bytes: u32,
    /// How many pieces they were in.
    pub pieces: u32,
}

/// Copies up to `bytes` from one guest to another, each byte once, in at most `max_pieces` pieces. Both cursors go on behind
/// what was copied.
///
/// # Errors
/// [`CopyError`].
pub fn copy<'a, 'b, R, I, J>(
    from: (&R, &mut Cursor<I>),
    to: (&R, &mut Cursor<J>),
    bytes: u32,
    max_pieces: u32,
) -> Result<Copied, CopyError>
where
    R: GuestRam,
    I: Iterator<Item = &'a Segment>,
    J: Iterator<Item = &'b Segment>,
{
    let ((from_ram, from), (to_ram, to)) = (from, to);
    let mut done = Copied {
        bytes: 0,
        pieces: 0,
    };
    while done.bytes < bytes
        && done.pieces < max_pieces
        && let Some((source, most)) = from.peek(bytes - done.bytes)
        && let Some((target, piece)) = to.peek(most)
    {
        from_ram.copy_to(source, to_ram, target, piece)?;
        from.advance(piece);
        to.advance(piece);
        done.bytes += piece;
        done.pieces += 1;
    }
    Ok(done)
}
