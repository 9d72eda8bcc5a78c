//! How many tables or VMs hold a frame that a family of VMs shares.
//!
//! One 16-bit word for each 4 KiB frame counts the holders *beyond the first*, so that memory that nobody shares needs no
//! bookkeeping at all. A block of 2 MiB that is mapped by large pages only is counted in the word of its first frame; when one
//! holder divides it, the count is written out to all 512 frames, and from then on each stands for itself ([`Holders::divide`]).
//!
//! Concurrency: none of its own; the caller locks.

use crate::{Hpa, PageSize};

/// Frames in a block of 2 MiB.
const BLOCK: usize = 512;
const PAGE_BYTES: u64 = PageSize::Size4K.bytes();

/// A frame cannot have another holder: the frame, which has 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyHolders(pub Hpa);

/// Holders of frames.
#[derive(Debug)]
pub struct Holders<'a> {
    /// For each frame its holders beyond the first. In a block that is not divided only the first frame's word counts.
    further: &'a mut [u16],
    /// For each block whether its frames are counted one by one: 0 or 1.
    divided: &'a mut [u16],
}

impl<'a> Holders<'a> {
    /// Words that counts of all memory below `top` need.
    #[must_use]
    pub fn words_needed(top: Hpa) -> usize {
        let frames = usize::try_from(top.get().div_ceil(PAGE_BYTES)).unwrap_or(usize::MAX / 2);
        let frames = frames.next_multiple_of(BLOCK);
        frames + frames / BLOCK
    }

    /// Counts of frames that have one holder each, or none. `words` must have the length [`Holders::words_needed`] gives; a
    /// shorter one counts fewer frames.
    #[must_use]
    pub fn new(words: &'a mut [u16]) -> Holders<'a> {
        words.fill(0);
        let blocks = words.len() / (BLOCK + 1);
        let (further, rest) = words.split_at_mut(blocks * BLOCK);
        let (divided, _) = rest.split_at_mut(blocks);
        Holders { further, divided }
    }

    fn frame(&self, frame: Hpa) -> Option<usize> {
        let index = usize::try_from(frame.get() / PAGE_BYTES).ok()?;
        (index < self.further.len()).then_some(index)
    }

    /// How many hold this frame, at least 1. In a block that is not divided: its first frame only.
    #[must_use]
    pub fn count(&self, frame: Hpa) -> u32 {
        let further = self.frame(frame).and_then(|index| self.further.get(index));
        1 + u32::from(further.copied().unwrap_or(0))
    }

    /// One more holds this frame.
    ///
    /// # Errors
    /// [`TooManyHolders`], also for a frame beyond the table; nothing is changed then.
    pub fn add(&mut self, frame: Hpa) -> Result<(), TooManyHolders> {
        let full = TooManyHolders(frame);
        let index = self.frame(frame).ok_or(full)?;
        let word = self.further.get_mut(index).ok_or(full)?;
        *word = word.checked_add(1).ok_or(full)?;
        Ok(())
    }

    /// One fewer holds this frame. True if that was the last: the frame is nobody's now.
    #[must_use]
    pub fn remove(&mut self, frame: Hpa) -> bool {
        let word = self
            .frame(frame)
            .and_then(|index| self.further.get_mut(index));
        match word {
            Some(word) if *word > 0 => {
                *word -= 1;
                false
            }
            _ => true,
        }
    }

    /// Whether the frames of this block are counted one by one.
    #[must_use]
    pub fn is_divided(&self, block: Hpa) -> bool {
        self.block(block)
            .and_then(|index| self.divided.get(index))
            .is_some_and(|word| *word != 0)
    }

    fn block(&self, block: Hpa) -> Option<usize> {
        self.frame(block).map(|index| index / BLOCK)
    }

    fn frames_of(&self, block: Hpa) -> core::ops::Range<usize> {
        let first = self.frame(block).map_or(0, |index| index / BLOCK * BLOCK);
        first..first + BLOCK
    }

    /// From now on the frames of this block are counted one by one, each with the holders that the block has.
    pub fn divide(&mut self, block: Hpa) {
        let frames = self.frames_of(block);
        let Some(divided) = self
            .block(block)
            .and_then(|index| self.divided.get_mut(index))
        else {
            return;
        };
        if core::mem::replace(divided, 1) == 0
            && let Some(words) = self.further.get_mut(frames)
            && let Some(count) = words.first().copied()
        {
            words.fill(count);
        }
    }

    /// How many of this block's 512 pages have several holders.
    #[must_use]
    pub fn shared_pages(&self, block: Hpa) -> u64 {
        let words = self.further.get(self.frames_of(block)).unwrap_or(&[]);
        if self.is_divided(block) {
            return words.iter().filter(|word| **word != 0).count() as u64;
        }
        match words.first() {
            None | Some(0) => 0,
            Some(_) => BLOCK as u64,
        }
    }

    /// One more holds all of this block.
    ///
    /// # Errors
    /// [`TooManyHolders`]; nothing is changed then.
    pub fn add_block(&mut self, block: Hpa) -> Result<(), TooManyHolders> {
        if !self.is_divided(block) {
            return self.add(block);
        }
        let frames = self.frames_of(block);
        let words = self.further.get_mut(frames).ok_or(TooManyHolders(block))?;
        if let Some(full) = words.iter().position(|word| *word == u16::MAX) {
            return Err(TooManyHolders(Hpa::new(
                block.get() + full as u64 * PAGE_BYTES,
            )));
        }
        words.iter_mut().for_each(|word| *word += 1);
        Ok(())
    }

    /// One fewer holds all of this block. Calls `gone` with the first frame and the number of frames of each piece that is
    /// nobody's now.
    pub fn remove_block(&mut self, block: Hpa, mut gone: impl FnMut(Hpa, u64)) {
        if !self.is_divided(block) {
            if self.remove(block) {
                gone(block, BLOCK as u64);
            }
            return;
        }
        for page in 0..BLOCK as u64 {
            let frame = Hpa::new(block.get() + page * PAGE_BYTES);
            if self.remove(frame) {
                gone(frame, 1);
            }
        }
    }

    /// These frames have been taken by somebody: blocks that lie wholly in them are counted as a whole again.
    pub fn taken(&mut self, start: Hpa, pages: u64) {
        let Some(first) = self.frame(start) else {
            return;
        };
        let end = first.saturating_add(usize::try_from(pages).unwrap_or(usize::MAX));
        let blocks = first.div_ceil(BLOCK)..end / BLOCK;
        if let Some(words) = self.divided.get_mut(blocks) {
            words.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const MIB2: u64 = PageSize::Size2M.bytes();

    fn with_holders(action: impl FnOnce(&mut Holders<'_>)) {
        let mut words = vec![7; Holders::words_needed(Hpa::new(4 * MIB2))];
        action(&mut Holders::new(&mut words));
    }

    #[test]
    fn the_last_holder_is_told_that_it_was_the_last() {
        with_holders(|holders| {
            let frame = Hpa::new(5 * PAGE_BYTES);
            assert_eq!(holders.count(frame), 1);
            holders.add(frame).expect("there is room");
            assert_eq!(holders.count(frame), 2);
            assert!(!holders.remove(frame));
            assert!(holders.remove(frame));
        });
    }

    #[test]
    fn a_count_that_is_full_and_a_frame_beyond_the_table_are_refused() {
        with_holders(|holders| {
            let frame = Hpa::new(MIB2);
            for _ in 0..u16::MAX {
                holders.add(frame).expect("there is room");
            }
            assert_eq!(holders.add(frame), Err(TooManyHolders(frame)));
            assert_eq!(holders.add_block(frame), Err(TooManyHolders(frame)));
            holders.divide(frame);
            assert_eq!(holders.add_block(frame), Err(TooManyHolders(frame)));
            assert_eq!(holders.count(frame), 1 << 16);
            let beyond = Hpa::new(4 * MIB2);
            assert_eq!(holders.add(beyond), Err(TooManyHolders(beyond)));
        });
    }

    #[test]
    fn a_divided_block_counts_each_frame_for_itself() {
        with_holders(|holders| {
            let block = Hpa::new(MIB2);
            let third = Hpa::new(MIB2 + 3 * PAGE_BYTES);
            holders.add_block(block).expect("there is room");
            assert_eq!(holders.shared_pages(block), 512);
            holders.divide(block);
            assert_eq!(holders.count(third), 2);
            assert!(!holders.remove(third));
            assert_eq!(holders.shared_pages(block), 511);
            // Dividing it again changes nothing.
            holders.divide(block);
            assert_eq!(holders.count(third), 1);
            let mut gone = Vec::new();
            holders.remove_block(block, |frame, pages| gone.push((frame, pages)));
            assert_eq!(gone, [(third, 1)]);
            assert!(holders.shared_pages(block) == 0 && holders.is_divided(block));
            holders.taken(block, 512);
            assert!(!holders.is_divided(block));
        });
    }

    #[test]
    fn a_whole_block_goes_as_a_whole() {
        with_holders(|holders| {
            let block = Hpa::new(2 * MIB2);
            holders.add_block(block).expect("there is room");
            let mut gone = Vec::new();
            for _ in 0..2 {
                holders.remove_block(block, |frame, pages| gone.push((frame, pages)));
            }
            assert_eq!(gone, [(block, 512)]);
        });
    }
}
