//! Frames of physical memory and who owns each.
//!
//! One 16-bit word for each 4 KiB frame holds its owner. A frame is given back only by the owner that holds it, so that a
//! double free or a free of somebody else's frame is an error and changes nothing.
//!
//! Small allocations fill blocks of 2 MiB that are broken already, from the top of memory down; contiguous ones come from the
//! bottom. So whole blocks stay whole for guests. A count of free frames for each block and three hints make the usual search
//! a few steps long; only a search that must pass over fragments is linear, in blocks.
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
    /// A family of VMs that share pages, by number below [`MAX_OWNER_ID`]: [`crate::Holders`] says how many hold each.
    Family(u16),
}

/// Numbers of VMs, groups and families are below this.
pub const MAX_OWNER_ID: u16 = 1 << 14;

const FREE: u16 = 0;
const RESERVED: u16 = 1;
const HYPERVISOR: u16 = 2;
const VM: u16 = 1 << 14;
const GROUP: u16 = 2 << 14;
const FAMILY: u16 = 3 << 14;
const ID: u16 = MAX_OWNER_ID - 1;

impl Owner {
    /// The word that says so; `None` for a number that is too large.
    const fn pack(self) -> Option<u16> {
        match self {
            Owner::Free => Some(FREE),
            Owner::Reserved => Some(RESERVED),
            Owner::Hypervisor => Some(HYPERVISOR),
            Owner::Vm(id) if id < MAX_OWNER_ID => Some(VM | id),
            Owner::Group(id) if id < MAX_OWNER_ID => Some(GROUP | id),
            Owner::Family(id) if id < MAX_OWNER_ID => Some(FAMILY | id),
            Owner::Vm(_) | Owner::Group(_) | Owner::Family(_) => None,
        }
    }

    /// The word of an owner that can be given frames: a numbered one with a number in range, or the hypervisor.
    const fn pack_holder(self) -> Option<u16> {
        match self {
            Owner::Free | Owner::Reserved => None,
            Owner::Hypervisor | Owner::Vm(_) | Owner::Group(_) | Owner::Family(_) => self.pack(),
        }
    }

    const fn unpack(word: u16) -> Owner {
        match word & !ID {
            VM => Owner::Vm(word & ID),
            GROUP => Owner::Group(word & ID),
            FAMILY => Owner::Family(word & ID),
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
    /// All families'.
    pub family: u64,
}

impl Counts {
    fn of(&mut self, owner: Owner) -> &mut u64 {
        match owner {
            Owner::Free => &mut self.free,
            Owner::Reserved => &mut self.reserved,
            Owner::Hypervisor => &mut self.hypervisor,
            Owner::Vm(_) => &mut self.vm,
            Owner::Group(_) => &mut self.group,
            Owner::Family(_) => &mut self.family,
        }
    }
}

/// Frames in a block of 2 MiB.
const BLOCK: usize = 512;

/// Whether a search may break whole blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WholeBlocks {
    Use,
    Spare,
}

/// The table of owners.
#[derive(Debug)]
pub struct FrameTable<'a> {
    /// One word for each frame.
    owners: &'a mut [u16],
    /// For each block its number of free frames.
    free_in_block: &'a mut [u16],
    counts: Counts,
    hints: Hints,
}

/// Where searches start. Each is a bound that may be loose and is tightened by the search that finds it so.
#[derive(Debug)]
struct Hints {
    /// No block from here on has a free frame.
    free_below: usize,
    /// No block from here on is broken: has some free frames, but not all.
    broken_below: usize,
    /// No block below this is whole: all free.
    whole_from: usize,
    /// In the block of this frame none below it is free.
    small_from: usize,
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
        let hints = Hints {
            free_below: 0,
            broken_below: 0,
            whole_from: blocks,
            small_from: 0,
        };
        FrameTable {
            owners,
            free_in_block,
            counts,
            hints,
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

    /// Changes the owner of a range that is known to be one owner's. `word` is what `to` packs to.
    fn hand_over(&mut self, range: core::ops::Range<usize>, from: Owner, to: Owner, word: u16) {
        let pages = range.len() as u64;
        *self.counts.of(from) -= pages;
        *self.counts.of(to) += pages;
        self.owners[range.clone()].fill(word);
        let mut index = range.start;
        while index < range.end {
            let block = index / BLOCK;
            let end = range.end.min((block + 1) * BLOCK);
            let count = (end - index) as u16;
            let free = &mut self.free_in_block[block];
            if from == Owner::Free {
                *free -= count;
            }
            if to == Owner::Free {
                *free += count;
                if self.hints.small_from / BLOCK == block {
                    self.hints.small_from = self.hints.small_from.min(index);
                }
            }
            match usize::from(*free) {
                0 => {}
                BLOCK => {
                    self.hints.whole_from = self.hints.whole_from.min(block);
                    self.hints.free_below = self.hints.free_below.max(block + 1);
                }
                _ => {
                    self.hints.broken_below = self.hints.broken_below.max(block + 1);
                    self.hints.free_below = self.hints.free_below.max(block + 1);
                }
            }
            index = end;
        }
    }

    /// Checks that `owner` holds the whole range.
    fn check(&self, range: core::ops::Range<usize>, owner: Owner) -> Result<(), FrameError> {
        let word = owner.pack();
        match self.owners[range.clone()]
            .iter()
            .position(|held| Some(*held) != word)
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
        let limit = self.owners.len() as u64;
        let mut index = start.get().div_ceil(size).min(limit) as usize;
        let end = (start.get() / size).saturating_add(pages).min(limit) as usize;
        while let Some(rest) = self.owners.get(index..end)
            && let Some(skipped) = rest.iter().position(|word| *word == RESERVED)
        {
            let run = rest[skipped..]
                .iter()
                .take_while(|word| **word == RESERVED)
                .count();
            let first = index + skipped;
            index = first + run;
            self.hand_over(first..index, Owner::Reserved, Owner::Free, FREE);
        }
    }

    /// Takes one frame of 4 KiB, or an aligned piece of 2 MiB or 1 GiB.
    ///
    /// # Errors
    /// [`OutOfFrames`], also for an owner that cannot hold frames (`Free`, `Reserved`, a number that is too large).
    pub fn allocate(&mut self, size: PageSize, owner: Owner) -> Result<Hpa, OutOfFrames> {
        if size != PageSize::Size4K {
            return self.allocate_contiguous(
                size.bytes() / PageSize::Size4K.bytes(),
                size.bytes(),
                owner,
            );
        }
        let out = OutOfFrames { pages: 1 };
        let word = owner.pack_holder().ok_or(out)?;
        // Broken blocks first, so that whole ones stay whole.
        let block = self
            .highest_broken()
            .or_else(|| self.highest_free())
            .ok_or(out)?;
        let first = block * BLOCK;
        let from = if self.hints.small_from / BLOCK == block {
            self.hints.small_from
        } else {
            first
        };
        let offset = self.owners[from..first + BLOCK]
            .iter()
            .position(|word| *word == FREE)
            .ok_or(out)?;
        let index = from + offset;
        self.hand_over(index..index + 1, Owner::Free, owner, word);
        // The next is found without a look at those before it.
        self.hints.small_from = index;
        Ok(Hpa::new(index as u64 * PageSize::Size4K.bytes()))
    }

    fn highest_broken(&mut self) -> Option<usize> {
        let found = self.free_in_block[..self.hints.broken_below]
            .iter()
            .rposition(|free| *free != 0 && usize::from(*free) != BLOCK);
        self.hints.broken_below = found.map_or(0, |block| block + 1);
        found
    }

    fn highest_free(&mut self) -> Option<usize> {
        let found = self.free_in_block[..self.hints.free_below]
            .iter()
            .rposition(|free| *free != 0);
        self.hints.free_below = found.map_or(0, |block| block + 1);
        found
    }

    fn lowest_whole(&mut self) -> Option<usize> {
        let from = self.hints.whole_from;
        let found = self.free_in_block[from..]
            .iter()
            .position(|free| usize::from(*free) == BLOCK)
            .map(|offset| from + offset);
        self.hints.whole_from = found.unwrap_or(self.free_in_block.len());
        found
    }

    /// Takes `pages` contiguous frames whose first is a multiple of `align_bytes`, a power of two of at least 4 KiB. The lowest
    /// such place is taken; a piece smaller than a block goes where it breaks no whole block, if there is such a place.
    ///
    /// # Errors
    /// [`OutOfFrames`], also for 0 pages, an impossible alignment or an owner that cannot hold frames.
    pub fn allocate_contiguous(
        &mut self,
        pages: u64,
        align_bytes: u64,
        owner: Owner,
    ) -> Result<Hpa, OutOfFrames> {
        let out = OutOfFrames { pages };
        let size = PageSize::Size4K.bytes();
        let word = owner.pack_holder().ok_or(out)?;
        if pages == 0
            || pages > self.counts.free
            || !align_bytes.is_power_of_two()
            || align_bytes < size
        {
            return Err(out);
        }
        let step = usize::try_from(align_bytes / size).map_err(|_| out)?;
        let count = usize::try_from(pages).map_err(|_| out)?;
        let first = if count < BLOCK {
            self.search(0, count, step, WholeBlocks::Spare)
                .or_else(|| self.search(0, count, step, WholeBlocks::Use))
        } else if step >= BLOCK {
            // The first frame must be that of a whole block.
            self.lowest_whole()
                .and_then(|block| self.search(block * BLOCK, count, step, WholeBlocks::Use))
        } else {
            self.search(0, count, step, WholeBlocks::Use)
        };
        let first = first.ok_or(out)?;
        self.hand_over(first..first + count, Owner::Free, owner, word);
        Ok(Hpa::new(first as u64 * size))
    }

    /// The lowest run of free frames at or above `from` with that length and alignment.
    fn search(&self, from: usize, count: usize, step: usize, whole: WholeBlocks) -> Option<usize> {
        let mut first = from.checked_next_multiple_of(step)?;
        while first.checked_add(count)? <= self.owners.len() {
            match self.last_obstacle(first..first + count, whole) {
                None => return Some(first),
                // Nothing that contains the obstacle will do: go on behind it.
                Some(obstacle) => first = (obstacle + 1).checked_next_multiple_of(step)?,
            }
        }
        None
    }

    /// The last frame of the range that cannot be taken. Blocks that are free or taken as a whole are judged by their counts.
    fn last_obstacle(&self, range: core::ops::Range<usize>, whole: WholeBlocks) -> Option<usize> {
        let mut end = range.end;
        while end > range.start {
            let block = (end - 1) / BLOCK;
            let start = range.start.max(block * BLOCK);
            let obstacle = match usize::from(self.free_in_block[block]) {
                // The last frame of the block, though it lie behind the range: a search may skip the rest.
                0 => Some((block + 1) * BLOCK - 1),
                BLOCK if whole == WholeBlocks::Spare => Some((block + 1) * BLOCK - 1),
                BLOCK => None,
                _ => self.owners[start..end]
                    .iter()
                    .rposition(|word| *word != FREE)
                    .map(|offset| start + offset),
            };
            if obstacle.is_some() {
                return obstacle;
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
        if owner.pack_holder().is_none() {
            return Err(FrameError::NotOwner {
                frame: start,
                held_by: self.owner(start),
            });
        }
        self.check(range.clone(), owner)?;
        self.hand_over(range, owner, Owner::Free, FREE);
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
