//! Which guest-physical memory is taken, while a VM is loaded.

use alloc::vec::Vec;
use core::ops::Range;

use crate::platform::{ACPI_END_GPA, ACPI_GPA, MP_TABLES_GPA, TABLES_END_GPA};

/// The pieces of memory that are taken, by address; no two overlap.
#[derive(Clone, Debug)]
pub(super) struct Space {
    taken: Vec<Range<u64>>,
}

impl Space {
    /// A VM's RAM, of which nothing is taken but the tables of its firmware. An image may lie on the rest of what a PC's firmware
    /// has: linkers put a file's headers below the kernel, where nobody needs them.
    pub(super) fn new(memory_bytes: u64) -> Space {
        Space {
            taken: Vec::from([
                ACPI_GPA..ACPI_END_GPA,
                MP_TABLES_GPA..TABLES_END_GPA,
                memory_bytes..u64::MAX,
            ]),
        }
    }

    /// The first taken piece that these addresses meet.
    fn meets(&self, range: &Range<u64>) -> Option<&Range<u64>> {
        self.taken
            .iter()
            .find(|taken| taken.start < range.end && range.start < taken.end)
    }

    /// Takes these addresses; `None` if that is not all free RAM. An empty range is always free.
    pub(super) fn take(&mut self, range: Range<u64>) -> Option<()> {
        if range.start > range.end || self.meets(&range).is_some() {
            return None;
        }
        if !range.is_empty() {
            let at = self
                .taken
                .partition_point(|taken| taken.start < range.start);
            self.taken.insert(at, range);
        }
        Some(())
    }

    /// Takes the lowest free `bytes` in a window, aligned to a power of two.
    pub(super) fn lowest(&mut self, window: Range<u64>, bytes: u64, align: u64) -> Option<u64> {
        let mut start = window.start.checked_next_multiple_of(align)?;
        loop {
            let range = start..start.checked_add(bytes)?;
            if range.end > window.end {
                return None;
            }
            match self.meets(&range) {
                Some(taken) => start = taken.end.checked_next_multiple_of(align)?,
                None => {
                    self.take(range)?;
                    return Some(start);
                }
            }
        }
    }

    /// Takes the highest free `bytes` in a window, aligned to a power of two.
    pub(super) fn highest(&mut self, window: Range<u64>, bytes: u64, align: u64) -> Option<u64> {
        let mut end = window.end;
        loop {
            let start = end.checked_sub(bytes)?;
            let start = start.checked_sub(start.checked_rem(align)?)?;
            if start < window.start {
                return None;
            }
            let range = start..start.checked_add(bytes)?;
            match self.meets(&range) {
                Some(taken) => end = taken.start,
                None => {
                    self.take(range)?;
                    return Some(start);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMORY: u64 = 16 << 20;

    #[test]
    fn tables_and_what_lies_beyond_ram_are_taken_from_the_start() {
        for range in [
            0xD_FFFF..0xE_0001,
            0xE_1FFF..0xE_2000,
            0xF_0000..0xF_0001,
            0xF_03FF..0xF_0401,
            MEMORY - 1..MEMORY + 1,
            u64::MAX - 1..u64::MAX,
        ] {
            assert_eq!(Space::new(MEMORY).take(range.clone()), None, "{range:x?}");
        }
        for range in [0..0xE_0000, 0xE_2000..0xF_0000, 0xF_0400..MEMORY] {
            assert_eq!(
                Space::new(MEMORY).take(range.clone()),
                Some(()),
                "{range:x?}"
            );
        }
    }

    #[test]
    fn places_are_found_around_what_is_taken() {
        let mut space = Space::new(MEMORY);
        space.take(0x10_1000..0x10_2000).expect("is free");
        let all = 0..u64::MAX;
        assert_eq!(
            space.lowest(0x10_0000..MEMORY, 0x1001, 0x1000),
            Some(0x10_2000)
        );
        assert_eq!(
            space.lowest(0x10_0000..MEMORY, 0x1000, 0x1000),
            Some(0x10_0000)
        );
        assert_eq!(
            space.highest(all.clone(), 0x1001, 0x1000),
            Some(MEMORY - 0x2000)
        );
        assert_eq!(
            space.highest(all.clone(), 0xFFF, 0x1000),
            None.or(Some(MEMORY - 0x3000))
        );
        assert_eq!(space.lowest(all, MEMORY, 1), None);
    }

    proptest! {
        #[test]
        fn what_is_handed_out_is_ram_aligned_inside_its_window_and_never_twice(
            wishes in prop::collection::vec((any::<bool>(), 0..0x20_0000_u64, 0..0x180_0000_u64, 1..0x10_0000_u64, 0..13_u32), 0..60),
        ) {
            let mut space = Space::new(MEMORY);
            let mut had: Vec<Range<u64>> = Vec::new();
            for (low, start, end, bytes, shift) in wishes {
                let (window, align) = (start..end, 1 << shift);
                let found = if low {
                    space.lowest(window.clone(), bytes, align)
                } else {
                    space.highest(window.clone(), bytes, align)
                };
                let Some(at) = found else { continue };
                let range = at..at + bytes;
                prop_assert!(at % align == 0 && window.start <= at && range.end <= window.end);
                prop_assert!(range.end <= MEMORY);
                for tables in [ACPI_GPA..ACPI_END_GPA, MP_TABLES_GPA..TABLES_END_GPA] {
                    prop_assert!(range.is_empty() || range.end <= tables.start || tables.end <= range.start);
                }
                for other in &had {
                    prop_assert!(other.end <= range.start || range.end <= other.start);
                }
                had.push(range);
            }
        }
    }
}
