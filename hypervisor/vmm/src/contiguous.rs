//! The two longest stretches of a VM's RAM that lie in one piece on the host: mostly all of it, below and above its group's region.
//! An address in them is found by a comparison and an addition.

use core::ops::Range;

use nagaya_mem::Hpa;

use crate::layout::Layout;

/// Guest-physical addresses that follow each other on the host, too.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u64,
    bytes: u64,
    /// Where the first one is.
    at: u64,
}

/// The longest of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContiguousRanges([Span; 2]);

impl ContiguousRanges {
    /// Of RAM that is made of chunks of one size where the layout says, without what the hole covers.
    #[must_use]
    pub fn new(
        chunks: &[Hpa],
        chunk_bytes: u64,
        layout: Layout,
        hole: &Range<u64>,
    ) -> ContiguousRanges {
        let mut longest = [Span::default(); 2];
        let mut current = Span::default();
        let starts = (0..)
            .step_by(chunk_bytes as usize)
            .map(|offset| layout.gpa_of(offset));
        for (start, chunk) in starts.zip(chunks) {
            let end = start + chunk_bytes;
            for part in [
                start..end.min(hole.start.max(start)),
                start.max(hole.end.min(end))..end,
            ] {
                if part.is_empty() {
                    continue;
                }
                let at = chunk.get() + (part.start - start);
                let follows =
                    current.start + current.bytes == part.start && current.at + current.bytes == at;
                if !follows {
                    keep(&mut longest, current);
                    current = Span {
                        start: part.start,
                        bytes: 0,
                        at,
                    };
                }
                current.bytes += part.end - part.start;
            }
        }
        keep(&mut longest, current);
        ContiguousRanges(longest)
    }

    /// Where a range is on the host, if it is in one of them. One of no bytes may be at the end.
    #[inline]
    #[must_use]
    pub fn find(&self, gpa: u64, bytes: u64) -> Option<Hpa> {
        let [first, second] = &self.0;
        match first.find(gpa, bytes) {
            None => second.find(gpa, bytes),
            found => found,
        }
    }
}

impl Span {
    #[inline]
    fn find(&self, gpa: u64, bytes: u64) -> Option<Hpa> {
        // An address before it comes out behind every end.
        let inside = gpa.wrapping_sub(self.start);
        let end = inside.checked_add(bytes)?;
        (end <= self.bytes).then(|| Hpa::new(self.at + inside))
    }
}

/// Puts it among the longest if it is longer than one of them.
fn keep(longest: &mut [Span; 2], new: Span) {
    let [first, second] = longest;
    if new.bytes > first.bytes {
        *second = core::mem::replace(first, new);
    } else if new.bytes > second.bytes {
        *second = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const CHUNK: u64 = 0x100;
    const NONE: Range<u64> = 0..0;
    /// As large a VM's as there can be.
    const PLAIN: Layout = Layout::new(256 << 30, u64::MAX);

    fn chunks(at: &[u64]) -> Vec<Hpa> {
        at.iter().map(|at| Hpa::new(*at)).collect()
    }

    #[test]
    fn what_is_in_one_piece_is_found_whole() {
        let spans = ContiguousRanges::new(&chunks(&[0x1000, 0x1100, 0x1200]), CHUNK, PLAIN, &NONE);
        assert_eq!(spans.find(0, 0x300), Some(Hpa::new(0x1000)));
        assert_eq!(spans.find(0xFF, 2), Some(Hpa::new(0x10FF)));
        assert_eq!(spans.find(0x2FF, 1), Some(Hpa::new(0x12FF)));
        for (gpa, bytes) in [
            (0, 0x301),
            (0x2FF, 2),
            (0x300, 1),
            (0x301, 0),
            (u64::MAX, 1),
        ] {
            assert_eq!(spans.find(gpa, bytes), None, "{gpa:#x} {bytes}");
        }
        assert_eq!(
            ContiguousRanges::new(&[], CHUNK, PLAIN, &NONE).find(0, 1),
            None
        );
    }

    #[test]
    fn the_hole_is_in_none_and_both_sides_are() {
        let spans = ContiguousRanges::new(
            &chunks(&[0x1000, 0x1100, 0x1200]),
            CHUNK,
            PLAIN,
            &(0x80..0x180),
        );
        assert_eq!(spans.find(0x7F, 1), Some(Hpa::new(0x107F)));
        assert_eq!(spans.find(0x7F, 2), None);
        assert_eq!(spans.find(0x17F, 2), None);
        assert_eq!(spans.find(0x180, 0x180), Some(Hpa::new(0x1180)));
    }

    #[test]
    fn the_longest_are_kept_in_any_order() {
        // Two chunks, one, three.
        let all = chunks(&[0x1000, 0x1100, 0x5000, 0x3000, 0x3100, 0x3200]);
        let spans = ContiguousRanges::new(&all, CHUNK, PLAIN, &NONE);
        assert_eq!(spans.find(0, 0x200), Some(Hpa::new(0x1000)));
        assert_eq!(
            spans.find(0x200, 1),
            None,
            "left to whoever looks at chunks"
        );
        assert_eq!(spans.find(0x300, 0x300), Some(Hpa::new(0x3000)));
    }

    #[test]
    fn what_lies_on_both_sides_of_the_devices_is_not_one_piece() {
        const LARGE: u64 = 1 << 30;
        let all = chunks(&[LARGE, 2 * LARGE, 3 * LARGE, 4 * LARGE, 5 * LARGE]);
        let spans = ContiguousRanges::new(&all, LARGE, PLAIN, &NONE);
        assert_eq!(spans.find(3 * LARGE - 8, 8), Some(Hpa::new(4 * LARGE - 8)));
        assert_eq!(spans.find(3 * LARGE - 8, 9), None);
        assert_eq!(spans.find(3 * LARGE, 1), None);
        assert_eq!(spans.find(4 * LARGE - 1, 2), None);
        let above = 2 * LARGE;
        assert_eq!(spans.find(4 * LARGE, above), Some(Hpa::new(4 * LARGE)));
    }

    proptest! {
        /// Each byte of what is found is where its chunk says, and not in the hole.
        #[test]
        fn what_is_found_is_where_the_chunks_say(
            at in prop::collection::vec(0..6_u64, 0..8),
            hole in 0..0x900_u64,
            hole_bytes in 0..0x400_u64,
            gpa in 0..0x900_u64,
            bytes in 0..0x300_u64,
        ) {
            // Few places, so that chunks often follow each other.
            let all: Vec<Hpa> = at.iter().map(|at| Hpa::new(at * CHUNK)).collect();
            let hole = hole..hole + hole_bytes;
            let spans = ContiguousRanges::new(&all, CHUNK, PLAIN, &hole);
            if let Some(found) = spans.find(gpa, bytes) {
                for offset in 0..bytes {
                    let gpa = gpa + offset;
                    prop_assert!(!hole.contains(&gpa));
                    let chunk = all[(gpa / CHUNK) as usize].get();
                    prop_assert_eq!(found.get() + offset, chunk + gpa % CHUNK);
                }
            }
        }
    }
}
