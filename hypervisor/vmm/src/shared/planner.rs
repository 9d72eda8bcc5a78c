//! From a range of a guest's addresses to the pages behind it, in pieces of bounded work.

use alloc::vec::Vec;
use core::mem;

use guest_abi::{Errno, PAGE_BYTES};
use nagaya_mem::{Gpa, GuestRead, Gva, PageSize, PagingState, Run, walk_block};

use super::Plan;
use crate::layout::Layout;

/// Most pieces of guest-physical memory that a region may be scattered over: what a guest makes the hypervisor remember has a
/// bound (24 bytes each, twice while they are sorted). A guest whose pages lie worse gets ENOMEM.
pub const MAX_RUNS: usize = 16_384;

const CHUNK: u64 = PageSize::Size2M.bytes();

/// What a step has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do.
    More,
    /// All pages are fine.
    Done(Plan),
}

/// Checks that `va` can be where `pages` pages begin: before anything is asked of anybody.
///
/// # Errors
/// `EINVAL`: not page-aligned, or the range leaves its canonical half.
pub fn check_range(va: Gva, pages: u64) -> Result<(), Errno> {
    let bytes = pages.checked_mul(PAGE_BYTES).ok_or(Errno::Inval)?;
    let last = bytes
        .checked_sub(1)
        .and_then(|span| va.checked_add(span))
        .ok_or(Errno::Inval)?;
    // Both ends canonical and in the same half: then everything between is, too.
    if !va.is_aligned(PAGE_BYTES)
        || !va.is_canonical()
        || !last.is_canonical()
        || (va.get() ^ last.get()) >> 63 != 0
    {
        return Err(Errno::Inval);
    }
    Ok(())
}

/// A walk over a range that can be interrupted.
#[derive(Debug)]
pub struct Planner {
    layout: Layout,
    va: Gva,
    pages: u64,
    /// Pages that have been walked.
    walked: u64,
    runs: Runs,
    sorter: Option<Sorter>,
}

impl Planner {
    /// A walk over `pages` pages from `va`.
    ///
    /// # Errors
    /// As [`check_range`].
    pub fn new(layout: Layout, va: Gva, pages: u64) -> Result<Planner, Errno> {
        check_range(va, pages)?;
        Ok(Planner {
            layout,
            va,
            pages,
            walked: 0,
            runs: Runs::default(),
            sorter: None,
        })
    }

    /// Goes on for about `most` pages. What it costs grows with these alone.
    ///
    /// # Errors
    /// As [`super::plan`].
    pub fn step(
        &mut self,
        paging: &PagingState,
        memory: &impl GuestRead,
        most: u64,
    ) -> Result<Progress, Errno> {
        if self.walked < self.pages {
            self.walk(paging, memory, most)?;
            if self.walked < self.pages {
                return Ok(Progress::More);
            }
        }
        let runs = mem::take(&mut self.runs.list);
        if self.runs.is_disordered || self.sorter.is_some() {
            let sorter = match &mut self.sorter {
                Some(sorter) => sorter,
                none => none.insert(Sorter::new(runs)?),
            };
            self.runs.is_disordered = false;
            if !sorter.step(most) {
                return Ok(Progress::More);
            }
            return self.finish_sorted();
        }
        Ok(Progress::Done(Plan { va: self.va, runs }))
    }

    fn finish_sorted(&mut self) -> Result<Progress, Errno> {
        let runs = self
            .sorter
            .take()
            .map(|sorter| sorter.runs)
            .unwrap_or_default();
        let overlaps = |pair: &[Run]| matches!(pair, [first, next] if first.end() > next.gpa.get());
        if runs.windows(2).any(overlaps) {
            return Err(Errno::Fault);
        }
        Ok(Progress::Done(Plan { va: self.va, runs }))
    }

    fn walk(
        &mut self,
        paging: &PagingState,
        memory: &impl GuestRead,
        most: u64,
    ) -> Result<(), Errno> {
        let end = self.walked.saturating_add(most).min(self.pages);
        while self.walked < end {
            let at = self
                .va
                .checked_add(self.walked * PAGE_BYTES)
                .ok_or(Errno::Inval)?;
            let mut first = self.walked;
            let mut result = Ok(());
            let (runs, layout) = (&mut self.runs, self.layout);
            let walked = walk_block(
                paging,
                memory,
                at,
                end - self.walked,
                |gpa, pages, writable| {
                    if result.is_ok() {
                        result = runs.add(layout, gpa, first, pages, writable);
                    }
                    first += pages;
                },
            );
            result?;
            self.walked += walked.map_err(|_| Errno::Fault)?;
        }
        Ok(())
    }
}

/// The runs found so far, in the order of the range.
#[derive(Debug, Default)]
struct Runs {
    list: Vec<Run>,
    /// Where the last one ends.
    end: u64,
    /// Up to where the last one may grow: the end of its 2 MiB piece, within the RAM.
    limit: u64,
    /// Not all begin behind the end of the one before.
    is_disordered: bool,
}

impl Runs {
    #[inline]
    fn add(
        &mut self,
        layout: Layout,
        gpa: Gpa,
        first_page: u64,
        pages: u64,
        writable: bool,
    ) -> Result<(), Errno> {
        if !writable {
            return Err(Errno::Fault);
        }
        let end = gpa.get() + pages * PAGE_BYTES;
        if gpa.get() == self.end
            && end <= self.limit
            && let Some(last) = self.list.last_mut()
        {
            last.pages += pages;
            self.end = end;
            return Ok(());
        }
        self.begin(layout, gpa.get(), first_page, pages)
    }

    /// Begins a run, and more where 2 MiB pieces end.
    fn begin(
        &mut self,
        layout: Layout,
        mut gpa: u64,
        mut first_page: u64,
        mut pages: u64,
    ) -> Result<(), Errno> {
        while pages > 0 {
            // All of a 2 MiB piece is RAM or none of it.
            if layout.offset_of(gpa).is_none() {
                return Err(Errno::Fault);
            }
            let limit = (gpa / CHUNK + 1) * CHUNK;
            let now = pages.min((limit - gpa) / PAGE_BYTES);
            if self.list.len() >= MAX_RUNS {
                return Err(Errno::NoMem);
            }
            if self.list.len() == self.list.capacity() {
                let more = self.list.len().max(64);
                self.list
                    .try_reserve_exact(more)
                    .map_err(|_| Errno::NoMem)?;
            }
            self.is_disordered |= gpa < self.end;
            self.list.push(Run {
                gpa: Gpa::new(gpa),
                first_page,
                pages: now,
            });
            self.end = gpa + now * PAGE_BYTES;
            self.limit = limit;
            gpa = self.end;
            first_page += now;
            pages -= now;
        }
        Ok(())
    }
}

/// A merge sort by guest-physical addresses that can be interrupted.
#[derive(Debug)]
struct Sorter {
    runs: Vec<Run>,
    merged: Vec<Run>,
    /// Stretches of that many runs are in order.
    width: usize,
    /// Where the pair of stretches begins that is being merged, and what of each is not taken.
    base: usize,
    left: usize,
    right: usize,
}

impl Sorter {
    fn new(runs: Vec<Run>) -> Result<Sorter, Errno> {
        let mut merged = Vec::new();
        merged
            .try_reserve_exact(runs.len())
            .map_err(|_| Errno::NoMem)?;
        Ok(Sorter {
            runs,
            merged,
            width: 1,
            base: 0,
            left: 0,
            right: 1,
        })
    }

    /// Moves at most `most` runs; says whether all are in order.
    fn step(&mut self, most: u64) -> bool {
        let count = self.runs.len();
        for _ in 0..most {
            if self.width >= count {
                return true;
            }
            let middle = (self.base + self.width).min(count);
            let end = (middle + self.width).min(count);
            let at =
                |index: usize, end: usize| (index < end).then(|| self.runs.get(index)).flatten();
            let next = match (at(self.left, middle), at(self.right, end)) {
                (Some(left), Some(right)) if right.gpa < left.gpa => {
                    self.right += 1;
                    *right
                }
                (Some(left), _) => {
                    self.left += 1;
                    *left
                }
                (None, Some(right)) => {
                    self.right += 1;
                    *right
                }
                (None, None) => {
                    self.begin_pair(end);
                    continue;
                }
            };
            self.merged.push(next);
        }
        self.width >= count
    }

    /// Goes on to the pair of stretches at `base`; behind the last one, to the first of twice the width.
    fn begin_pair(&mut self, base: usize) {
        self.base = base;
        if base >= self.runs.len() {
            mem::swap(&mut self.runs, &mut self.merged);
            self.merged.clear();
            self.width *= 2;
            self.base = 0;
        }
        self.left = self.base;
        self.right = (self.base + self.width).min(self.runs.len());
    }
}
