//! Frames of physical memory and who owns each.
//!
//! One 16-bit word for each 4 KiB frame holds its owner. Allocation looks for free frames of the wanted size; a frame is given
//! back only by the owner that holds it, so that a double free or a free of somebody else's frame is an error and changes
//! nothing. Small allocations fill blocks of 2 MiB that are broken already, from the top of memory down, so that whole blocks
//! stay whole for guests.
//!
//! Concurrency: none of its own; the caller locks.

use crate::{Hpa, PageSize};

/// Who holds a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Nobody.
    Free,
    /// Not ours to give: firmware, devices, holes, the loader's and the hypervisor's image.
    Reserved,
    /// The hypervisor.
    Hypervisor,
    /// A VM, by number below [`MAX_OWNER_ID`].
    Vm(u16),
    /// A group, by number below [`MAX_OWNER_ID`].
    Group(u16),
}

/// Numbers of VMs and groups are below this.
pub const MAX_OWNER_ID: u16 = 1 << 14;

const FREE: u16 = 0;
const RESERVED: u16 = 1;
const HYPERVISOR: u16 = 2;
const VM: u16 = 1 << 14;
const GROUP: u16 = 2 << 14;
const ID: u16 = MAX_OWNER_ID - 1;

impl Owner {
    const fn pack(self) -> u16 {
        match self {
            Owner::Free => FREE,
            Owner::Reserved => RESERVED,
            Owner::Hypervisor => HYPERVISOR,
            Owner::Vm(id) => VM | (id & ID),
            Owner::Group(id) => GROUP | (id & ID),
        }
    }

    const fn unpack(word: u16) -> Owner {
        match word & !ID {
            VM => Owner::Vm(word & ID),
            GROUP => Owner::Group(word & ID),
            _ => match word {
                FREE => Owner::Free,
                HYPERVISOR => Owner::Hypervisor,
                _ => Owner::Reserved,
            },
        }
    }
}

/// There are no free frames of that size and alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames {
    /// How many contiguous frames were wanted.
    pub pages: u64,
}

/// A wrong claim about frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The range is empty, not page-aligned or beyond the table.
    BadRange {
        /// First frame.
        start: Hpa,
        /// Number of frames.
        pages: u64,
    },
    /// A frame of the range is held by somebody else.
    NotOwner {
        /// The frame.
        frame: Hpa,
        /// Who holds it.
        held_by: Owner,
    },
}

/// Frames by owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames in the table.
    pub total: u64,
    /// Free ones.
    pub free: u64,
    /// Reserved ones.
    pub reserved: u64,
    /// The hypervisor's.
    pub hypervisor: u64,
    /// All VMs'.
    pub vm: u64,
    /// All groups'.
    pub group: u64,
}

impl Counts {
    fn of(&mut self, owner: Owner) -> &mut u64 {
        match owner {
            Owner::Free => &mut self.free,
            Owner::Reserved => &mut self.reserved,
            Owner::Hypervisor => &mut self.hypervisor,
            Owner::Vm(_) => &mut self.vm,
            Owner::Group(_) => &mut self.group,
        }
    }
}

/// Frames in a block of 2 MiB.
const BLOCK: usize = 512;

/// The table of owners.
#[derive(Debug)]
pub struct FrameTable<'a> {
    /// One word for each frame, then one for each block: its number of free frames.
    owners: &'a mut [u16],
    free_in_block: &'a mut [u16],
    counts: Counts,
    /// Every block above this index has no free frame: where the search for small frames starts.
    highest_free_block: usize,
}

impl<'a> FrameTable<'a> {
    /// Words that a table for all memory below `top` needs.
    #[must_use]
    pub fn words_needed(top: Hpa) -> usize {
        let frames =
            usize::try_from(top.get().div_ceil(PageSize::Size4K.bytes())).unwrap_or(usize::MAX / 2);
        let frames = frames.next_multiple_of(BLOCK);
        frames + frames / BLOCK
    }

    /// A table in which every frame is reserved. `words` must have the length [`FrameTable::words_needed`] gives; a shorter one
    /// makes a table of fewer frames.
    #[must_use]
    pub fn new(words: &'a mut [u16]) -> FrameTable<'a> {
        let blocks = words.len() / (BLOCK + 1);
        let (owners, rest) = words.split_at_mut(blocks * BLOCK);
        let (free_in_block, _) = rest.split_at_mut(blocks);
        owners.fill(RESERVED);
        free_in_block.fill(0);
        let total = owners.len() as u64;
        let counts = Counts {
            total,
            reserved: total,
            ..Counts::default()
        };
        FrameTable {
            owners,
            free_in_block,
            counts,
            highest_free_block: 0,
        }
    }

    fn range(&self, start: Hpa, pages: u64) -> Result<core::ops::Range<usize>, FrameError> {
        let bad = FrameError::BadRange { start, pages };
        if pages == 0 || !start.is_aligned(PageSize::Size4K.bytes()) {
            return Err(bad);
        }
        let first = usize::try_from(start.get() / PageSize::Size4K.bytes()).map_err(|_| bad)?;
        let end = usize::try_from(pages)
            .ok()
            .and_then(|pages| first.checked_add(pages))
            .ok_or(bad)?;
        if end > self.owners.len() {
            Err(bad)
        } else {
            Ok(first..end)
        }
    }

    /// Changes the owner of a range that is known to be one owner's.
    fn hand_over(&mut self, range: core::ops::Range<usize>, from: Owner, to: Owner) {
        let pages = range.len() as u64;
        *self.counts.of(from) -= pages;
        *self.counts.of(to) += pages;
        let mut index = range.start;
        while index < range.end {
            let block = index / BLOCK;
            let end = range.end.min((block + 1) * BLOCK);
            self.owners[index..end].fill(to.pack());
            let count = (end - index) as u16;
            if from == Owner::Free {
                self.free_in_block[block] -= count;
            }
            if to == Owner::Free {
                self.free_in_block[block] += count;
                self.highest_free_block = self.highest_free_block.max(block);
            }
            index = end;
        }
    }

    fn check(&self, range: core::ops::Range<usize>, owner: Owner) -> Result<(), FrameError> {
        let word = owner.pack();
        match self.owners[range.clone()]
            .iter()
            .position(|held| *held != word)
        {
            None => Ok(()),
            Some(offset) => Err(FrameError::NotOwner {
                frame: Hpa::new((range.start + offset) as u64 * PageSize::Size4K.bytes()),
                held_by: Owner::unpack(self.owners[range.start + offset]),
            }),
        }
    }

    /// Makes reserved frames free: at boot, for what the memory map calls usable. Frames of the range that are not reserved, or
    /// lie beyond the table, stay as they are.
    pub fn release(&mut self, start: Hpa, pages: u64) {
        let size = PageSize::Size4K.bytes();
        let first = (start.get().div_ceil(size)).min(self.owners.len() as u64) as usize;
        let end = (start.get() / size)
            .saturating_add(pages)
            .min(self.owners.len() as u64) as usize;
        let mut index = first;
        while index < end {
            // Runs of reserved frames are handed over together: the memory map of a large machine has millions of frames.
            let run = self.owners[index..end]
                .iter()
                .position(|word| *word != RESERVED)
                .unwrap_or(end - index);
            if run == 0 {
                index += 1;
            } else {
                self.hand_over(index..index + run, Owner::Reserved, Owner::Free);
                index += run;
            }
        }
    }

    /// Takes one frame of 4 KiB, or an aligned piece of 2 MiB or 1 GiB.
    ///
    /// # Errors
    /// [`OutOfFrames`].
    pub fn allocate(&mut self, size: PageSize, owner: Owner) -> Result<Hpa, OutOfFrames> {
        if size != PageSize::Size4K {
            return self.allocate_contiguous(
                size.bytes() / PageSize::Size4K.bytes(),
                size.bytes(),
                owner,
            );
        }
        let out = OutOfFrames { pages: 1 };
        let searched = self
            .free_in_block
            .get(..=self.highest_free_block)
            .unwrap_or(&[]);
        // Broken blocks first, so that whole ones stay whole.
        let block = searched
            .iter()
            .rposition(|free| *free != 0 && usize::from(*free) != BLOCK)
            .or_else(|| searched.iter().rposition(|free| *free != 0));
        let Some(block) = block else {
            self.highest_free_block = 0;
            return Err(out);
        };
        let first = block * BLOCK;
        let offset = self.owners[first..first + BLOCK]
            .iter()
            .position(|word| *word == FREE)
            .ok_or(out)?;
        let index = first + offset;
        self.hand_over(index..index + 1, Owner::Free, owner);
        Ok(Hpa::new(index as u64 * PageSize::Size4K.bytes()))
    }

    /// Takes `pages` contiguous frames whose first is a multiple of `align_bytes`, a power of two of at least 4 KiB. The lowest
    /// such place is taken.
    ///
    /// # Errors
    /// [`OutOfFrames`], also for 0 pages or an impossible alignment.
    pub fn allocate_contiguous(
        &mut self,
        pages: u64,
        align_bytes: u64,
        owner: Owner,
    ) -> Result<Hpa, OutOfFrames> {
        let out = OutOfFrames { pages };
        let size = PageSize::Size4K.bytes();
        if pages == 0 || !align_bytes.is_power_of_two() || align_bytes < size {
            return Err(out);
        }
        let step = usize::try_from(align_bytes / size).map_err(|_| out)?;
        let count = usize::try_from(pages).map_err(|_| out)?;
        let mut first = 0_usize;
        while first
            .checked_add(count)
            .is_some_and(|end| end <= self.owners.len())
        {
            match self.first_taken(first..first + count) {
                None => {
                    self.hand_over(first..first + count, Owner::Free, owner);
                    return Ok(Hpa::new(first as u64 * size));
                }
                // Nothing that contains a taken frame will do: go on behind it.
                Some(taken) => first = (taken + 1).next_multiple_of(step),
            }
        }
        Err(out)
    }

    /// The last frame of the range that is not free, looking at whole blocks by their counts.
    fn first_taken(&self, range: core::ops::Range<usize>) -> Option<usize> {
        let mut end = range.end;
        while end > range.start {
            let block = (end - 1) / BLOCK;
            let start = range.start.max(block * BLOCK);
            let whole = start == block * BLOCK && end == (block + 1) * BLOCK;
            if !(whole && usize::from(self.free_in_block[block]) == BLOCK)
                && let Some(offset) = self.owners[start..end]
                    .iter()
                    .rposition(|word| *word != FREE)
            {
                return Some(start + offset);
            }
            end = start;
        }
        None
    }

    /// Gives frames back: all of them, or none if one is not held by `owner`.
    ///
    /// # Errors
    /// [`FrameError`]; nothing is changed then.
    pub fn free(&mut self, start: Hpa, pages: u64, owner: Owner) -> Result<(), FrameError> {
        let range = self.range(start, pages)?;
        if matches!(owner, Owner::Free | Owner::Reserved) {
            return Err(FrameError::NotOwner {
                frame: start,
                held_by: self.owner(start),
            });
        }
        self.check(range.clone(), owner)?;
        self.hand_over(range, owner, Owner::Free);
        Ok(())
    }

    /// Who holds the frame at that address; `Reserved` beyond the table.
    #[must_use]
    pub fn owner(&self, frame: Hpa) -> Owner {
        usize::try_from(frame.get() / PageSize::Size4K.bytes())
            .ok()
            .and_then(|index| self.owners.get(index))
            .map_or(Owner::Reserved, |word| Owner::unpack(*word))
    }

    /// Whether all frames of a range are held by `owner`.
    #[must_use]
    pub fn holds(&self, start: Hpa, pages: u64, owner: Owner) -> bool {
        self.range(start, pages)
            .and_then(|range| self.check(range, owner))
            .is_ok()
    }

    /// Frames by owner.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
