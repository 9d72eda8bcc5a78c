//! Ranges of guest-physical addresses, cut the way the levels of the tables cut them.

use super::{EptError, GPA_BITS, HPA_BITS, Permissions, span};
use crate::{Gpa, Hpa, PageSize};

/// A range of guest-physical addresses: not empty, page-aligned, below 2^48.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    /// Checks a range that a caller names.
    pub(super) fn new(gpa: Gpa, bytes: u64) -> Result<Range, EptError> {
        let page = PageSize::Size4K.bytes();
        if bytes == 0 {
            return Err(EptError::Empty);
        }
        if !gpa.is_aligned(page) || !bytes.is_multiple_of(page) {
            return Err(EptError::Misaligned);
        }
        let end = gpa.get().checked_add(bytes).ok_or(EptError::OutOfRange)?;
        if end > 1 << GPA_BITS {
            return Err(EptError::OutOfRange);
        }
        Ok(Range {
            start: gpa.get(),
            end,
        })
    }

    /// The parts of the range that lie behind one entry each of tables at `level`, in rising order.
    pub(super) fn pieces(self, level: u8) -> impl Iterator<Item = Range> {
        let mut start = self.start;
        core::iter::from_fn(move || {
            if start >= self.end {
                return None;
            }
            let boundary = (start / span(level) + 1) * span(level);
            let piece = Range {
                start,
                end: boundary.min(self.end),
            };
            start = piece.end;
            Some(piece)
        })
    }

    /// Whether this piece is all that an entry at `level` covers.
    pub(super) fn is_whole(self, level: u8) -> bool {
        self.end - self.start == span(level)
    }
}

/// Checks the other side of a mapping of `range`.
pub(super) fn check_target(
    range: Range,
    hpa: Hpa,
    permissions: Permissions,
) -> Result<(), EptError> {
    if !hpa.is_aligned(PageSize::Size4K.bytes()) {
        return Err(EptError::Misaligned);
    }
    if hpa
        .checked_add(range.end - range.start)
        .is_none_or(|end| end.get() > 1 << HPA_BITS)
    {
        return Err(EptError::OutOfRange);
    }
    // Write without read is a misconfiguration; execute alone is one on CPUs without that capability, and of no use here.
    if !permissions.contains(Permissions::READ) {
        return Err(EptError::BadPermissions);
    }
    Ok(())
}
