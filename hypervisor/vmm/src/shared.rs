//! `map_shared` and `unmap_shared`: which frames of a VM give way to the group's region, and how they come back.
//!
//! Two steps. A [`Planner`] walks the caller's page tables for every page of the range and checks them all, without changing
//! anything; its answer is a [`Plan`]: the pages behind the range, in guest-physical order. [`Backing::install`] replaces the frames behind
//! them in the EPT; if that cannot be finished, what was replaced is put back. The guest's own frames are never given up: [`Backing`]
//! knows them all, so that unmapping is the same replacement the other way round.
//!
//! Two plans are equal if the same pages stand behind the same address: that, and not the address alone, is what "mapped already" means. A
//! guest can change its page tables, or be another kernel by now.
//!
//! Both steps can be taken in pieces of bounded work: [`Planner::step`], [`Backing::install_from`], [`Backing::restore_from`].
//!
//! Concurrency: the caller holds the VM's memory lock. Other vCPUs of the VM may run meanwhile; they see each page old or new
//! (`Ept::replace`), and the caller owes them the flush.
//! Source: paper 000, section on hypercall 39; `docs/ABI.md`.

mod planner;
mod sorter;

use alloc::vec::Vec;

use guest_abi::{Errno, PAGE_BYTES};
use nagaya_mem::{
    Ept, EptError, Flush, FrameStore, Gpa, GuestRead, Gva, Hpa, MemoryType, PageSize, PagingState,
    Permissions,
};

pub use nagaya_mem::Run;
pub use planner::{MAX_RUNS, Planner, Progress, check_range};

use crate::layout::Layout;

/// A checked range of a guest, ready to take the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the guest sees it.
    pub va: Gva,
    /// What lies behind it: in ascending order of guest-physical addresses, no two overlapping, each as long as it can be inside its 2 MiB
    /// piece. So two plans of the same pages are equal.
    pub runs: Vec<Run>,
}

/// Checks the `pages` pages from `va` in the address space `paging`: each present, writable, plain RAM of the VM, none
/// twice. Nothing is changed.
///
/// # Errors
/// `EINVAL`: not page-aligned, or the range leaves its canonical half. `EFAULT`: a page is not mapped, not writable, not RAM,
/// or stands behind two of the range's addresses. `ENOMEM`: they lie in more pieces than [`MAX_RUNS`].
pub fn plan(
    paging: &PagingState,
    memory: &impl GuestRead,
    layout: Layout,
    va: Gva,
    pages: u64,
) -> Result<Plan, Errno> {
    let mut planner = Planner::new(layout, va, pages)?;
    loop {
        match planner.step(paging, memory, u64::MAX)? {
            Progress::More => {}
            Progress::Done(plan) => return Ok(plan),
        }
    }
}

/// The frames behind a VM's RAM, one 2 MiB piece after the other.
#[derive(Debug)]
pub struct Backing {
    chunks: Vec<Hpa>,
    layout: Layout,
}

const CHUNK: u64 = PageSize::Size2M.bytes();

impl Backing {
    /// RAM made of these 2 MiB pieces.
    #[must_use]
    pub fn new(chunks: Vec<Hpa>, layout: Layout) -> Backing {
        Backing { chunks, layout }
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK
    }

    /// The VM's own frame behind a guest-physical address, whatever the EPT shows there now.
    #[must_use]
    pub fn own_frame(&self, gpa: Gpa) -> Option<Hpa> {
        let offset = self.layout.offset_of(gpa.get())?;
        let chunk = self.chunks.get(usize::try_from(offset / CHUNK).ok()?)?;
        chunk.checked_add(offset % CHUNK)
    }

    /// Maps all RAM into a fresh EPT, pieces that are neighbours in host memory together, so that pages get as large as they can.
    ///
    /// # Errors
    /// As `Ept::map`.
    pub fn map_all<S: FrameStore>(&self, ept: &Ept, store: &S) -> Result<Flush, EptError> {
        let mut flush: Option<Flush> = None;
        let mut index = 0;
        while let Some(&start) = self.chunks.get(index) {
            let mut count = 1;
            let gpa_of = |index: usize| self.layout.gpa_of(index as u64 * CHUNK);
            let gpa = gpa_of(index);
            // Neighbours to the guest, too: between two of them lie the devices.
            let is_next = |next: &Hpa, count: usize| {
                let bytes = count as u64 * CHUNK;
                next.get() == start.get() + bytes && gpa_of(index + count) == gpa + bytes
            };
            while self
                .chunks
                .get(index + count)
                .is_some_and(|next| is_next(next, count))
            {
                count += 1;
            }
            let gpa = Gpa::new(gpa);
            let more = ept.map(
                store,
                gpa,
                start,
                count as u64 * CHUNK,
                RAM,
                MemoryType::WriteBack,
            )?;
            flush = Some(match flush {
                Some(before) => before.combine(more),
                None => more,
            });
            index += count;
        }
        flush.ok_or(EptError::Empty)
    }

    /// Puts the region, contiguous in host memory from `region`, behind a plan's runs: all of them or none.
    ///
    /// # Errors
    /// `ENOMEM` if there are no frames for EPT tables; then every page is what it was. The flush is owed in both cases.
    pub fn install<S: FrameStore>(
        &self,
        ept: &Ept,
        store: &S,
        plan: &Plan,
        region: Hpa,
    ) -> (Result<(), Errno>, Option<Flush>) {
        match self.install_from(ept, store, plan, region, 0, u64::MAX) {
            Ok((_, flush)) => (Ok(()), flush),
            Err(errno) => (Err(errno), None),
        }
    }

    /// A piece of [`Backing::install`]: goes on at run `from` until about `pages` pages more are done. Where to go on; all is done at the
    /// number of runs.
    ///
    /// # Errors
    /// `ENOMEM`: this piece has changed nothing, and whoever wants none of it puts the earlier ones back by [`Backing::restore`].
    pub fn install_from<S: FrameStore>(
        &self,
        ept: &Ept,
        store: &S,
        plan: &Plan,
        region: Hpa,
        from: usize,
        pages: u64,
    ) -> Result<(usize, Option<Flush>), Errno> {
        let rest = plan.runs.get(from..).unwrap_or_default();
        let count = piece(rest, pages);
        let now = rest.get(..count).unwrap_or_default();
        if now.is_empty() {
            return Ok((from, None));
        }
        let flush = ept
            .replace_each(store, now, region, RAM, MemoryType::WriteBack)
            .map_err(|error| {
                debug_assert_eq!(
                    error,
                    EptError::OutOfTables,
                    "RAM is mapped, and plans are sound"
                );
                Errno::NoMem
            })?;
        Ok((from + count, Some(flush)))
    }

    /// Puts the VM's own frames back behind a plan's runs, by large pages again.
    ///
    /// The flush is owed.
    #[must_use]
    pub fn restore<S: FrameStore>(&self, ept: &Ept, store: &S, plan: &Plan) -> Option<Flush> {
        self.restore_from(ept, store, plan, 0, u64::MAX).1
    }

    /// A piece of [`Backing::restore`], as [`Backing::install_from`]. All of a 2 MiB piece of RAM is the VM's own when the region has gone from
    /// it, so that whole pieces are put back.
    #[must_use]
    pub fn restore_from<S: FrameStore>(
        &self,
        ept: &Ept,
        store: &S,
        plan: &Plan,
        from: usize,
        pages: u64,
    ) -> (usize, Option<Flush>) {
        let mut flush: Option<Flush> = None;
        let mut done = 0;
        let mut next = from;
        while let Some(run) = plan.runs.get(next) {
            if done >= pages {
                break;
            }
            let chunk = Gpa::new(run.gpa.get() / CHUNK * CHUNK);
            let own = self.own_frame(chunk).ok_or(EptError::OutOfRange);
            let replaced = own
                .and_then(|own| ept.replace(store, chunk, own, CHUNK, RAM, MemoryType::WriteBack));
            match replaced {
                Ok(more) => flush = Some(combine(flush, more)),
                // It needs no table: there is a large page, or the table that is there stays.
                Err(error) => {
                    debug_assert!(false, "own frames cannot be put back at {chunk}: {error:?}");
                }
            }
            done += CHUNK / PAGE_BYTES;
            let rest = plan.runs.get(next..).unwrap_or_default();
            next += rest.partition_point(|run| run.gpa.get() / CHUNK == chunk.get() / CHUNK);
        }
        (next, flush)
    }
}

/// How many runs from the first on have about that many pages, at least one.
fn piece(runs: &[Run], pages: u64) -> usize {
    if pages == u64::MAX {
        return runs.len();
    }
    let mut left = pages;
    let count = runs.iter().take_while(|run| {
        let is_taken = left > 0;
        left = left.saturating_sub(run.pages);
        is_taken
    });
    count.count()
}

const RAM: Permissions = Permissions::READ
    .union(Permissions::WRITE)
    .union(Permissions::EXECUTE);

fn combine(before: Option<Flush>, more: Flush) -> Flush {
    match before {
        Some(before) => before.combine(more),
        None => more,
    }
}

#[cfg(test)]
mod tests;
