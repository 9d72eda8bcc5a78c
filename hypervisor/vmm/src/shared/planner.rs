//! From a range of a guest's addresses to the pages behind it, in pieces of bounded work.

use alloc::vec::Vec;
use core::mem;

use guest_abi::{Errno, PAGE_BYTES};
use nagaya_mem::{Gpa, GuestRead, Gva, PageSize, PagingState, Run, walk_block};

use super::Plan;
use super::sorter::Sorter;
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
        if self.runs.is_disordered {
            self.runs.is_disordered = false;
            self.sorter = Some(Sorter::new(mem::take(&mut self.runs.list))?);
        }
        let runs = match self.sorter.take() {
            None => mem::take(&mut self.runs.list),
            Some(mut sorter) => {
                if !sorter.step(most) {
                    self.sorter = Some(sorter);
                    return Ok(Progress::More);
                }
                let runs = sorter.into_runs();
                let overlaps =
                    |pair: &[Run]| matches!(pair, [first, next] if first.end() > next.gpa.get());
                if runs.windows(2).any(overlaps) {
                    return Err(Errno::Fault);
                }
                runs
            }
        };
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
    /// Runs that there is memory for, and that there may be.
    room: usize,
    /// Where the last one ends.
    end: u64,
    /// Up to where the last one may grow: the end of its 2 MiB piece, within the RAM.
    limit: u64,
    /// Not all begin behind the end of the one before.
    is_disordered: bool,
}

impl Runs {
    #[inline(always)]
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
        let gpa = gpa.get();
        let end = gpa + pages * PAGE_BYTES;
        if gpa == self.end && end <= self.limit {
            if let Some(last) = self.list.last_mut() {
                last.pages += pages;
            }
            self.end = end;
            return Ok(());
        }
        if pages == 1 {
            self.begin(layout, gpa, first_page, 1)
        } else {
            self.add_pieces(layout, gpa, first_page, pages)
        }
    }

    /// Begins runs, one for each 2 MiB piece.
    fn add_pieces(
        &mut self,
        layout: Layout,
        mut gpa: u64,
        mut first_page: u64,
        mut pages: u64,
    ) -> Result<(), Errno> {
        while pages > 0 {
            let now = pages.min((CHUNK - gpa % CHUNK) / PAGE_BYTES);
            self.begin(layout, gpa, first_page, now)?;
            gpa += now * PAGE_BYTES;
            first_page += now;
            pages -= now;
        }
        Ok(())
    }

    /// Begins a run inside one 2 MiB piece.
    #[inline(never)]
    fn begin(
        &mut self,
        layout: Layout,
        gpa: u64,
        first_page: u64,
        pages: u64,
    ) -> Result<(), Errno> {
        let limit = (gpa | (CHUNK - 1)) + 1;
        // All of a 2 MiB piece is RAM or none of it; in the piece of the run before there is no need to look.
        if limit != self.limit && layout.offset_of(gpa).is_none() {
            return Err(Errno::Fault);
        }
        if self.list.len() >= self.room {
            self.make_room()?;
        }
        self.is_disordered |= gpa < self.end;
        self.list.push(Run {
            gpa: Gpa::new(gpa),
            first_page,
            pages,
        });
        self.end = gpa + pages * PAGE_BYTES;
        self.limit = limit;
        Ok(())
    }

    #[cold]
    fn make_room(&mut self) -> Result<(), Errno> {
        if self.list.len() >= MAX_RUNS {
            return Err(Errno::NoMem);
        }
        let more = self.list.len().max(64);
        self.list
            .try_reserve_exact(more)
            .map_err(|_| Errno::NoMem)?;
        self.room = self.list.capacity().min(MAX_RUNS);
        Ok(())
    }
}
