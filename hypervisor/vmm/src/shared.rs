//! `map_shared` and `unmap_shared`: which frames of a VM give way to the group's region, and how they come back.
//!
//! Two steps. [`plan`] walks the caller's page tables for every page of the range and checks them all, without changing
//! anything; its answer is a list of runs of guest-physical pages. [`Backing::install`] replaces the frames behind them in
//! the EPT, run by run; if a run cannot be replaced, those before it are put back. The guest's own frames are never given up:
//! [`Backing`] knows them all, so that unmapping is the same replacement the other way round.
//!
//! Concurrency: the caller holds the VM's memory lock. Other vCPUs of the VM may run meanwhile; they see each page old or new
//! (`Ept::replace`), and the caller owes them the flush.
//! Source: paper 000, section on hypercall 39; `docs/ABI.md`.

use alloc::vec::Vec;

use guest_abi::{Errno, PAGE_BYTES};
use nagaya_mem::{
    Ept, EptError, Flush, FrameStore, Gpa, GuestRead, Gva, Hpa, MemoryType, PageSize, PagingState,
    Permissions, walk,
};

use crate::layout::Layout;

/// Pages contiguous in guest-physical memory that take contiguous pages of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First guest-physical page.
    pub gpa: Gpa,
    /// Index in the region of the page that goes there.
    pub first_page: u64,
    /// Number of pages.
    pub pages: u64,
}

/// A checked range of a guest, ready to take the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the guest sees it.
    pub va: Gva,
    /// What lies behind it, in the region's order; no two overlap.
    pub runs: Vec<Run>,
}

/// Most pieces of guest-physical memory that a region may be scattered over: what a guest makes the hypervisor remember has a
/// bound (24 bytes each, twice while they are sorted). A guest whose pages lie worse gets ENOMEM.
pub const MAX_RUNS: usize = 16_384;

/// Checks the `pages` pages from `va` in the address space `paging`: each present, writable, plain RAM of the VM, none
/// twice. Nothing is changed.
///
/// # Errors
/// `EINVAL`: not page-aligned, or the range leaves its canonical half. `EFAULT`: a page is not mapped, not writable, not RAM,
/// or stands behind two of the range's addresses.
pub fn plan(
    paging: &PagingState,
    memory: &impl GuestRead,
    layout: Layout,
    va: Gva,
    pages: u64,
) -> Result<Plan, Errno> {
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
    let mut runs: Vec<Run> = Vec::new();
    let mut page = 0;
    while page < pages {
        let address = va.checked_add(page * PAGE_BYTES).ok_or(Errno::Inval)?;
        let found = walk(paging, memory, address).map_err(|_| Errno::Fault)?;
        if !found.writable {
            return Err(Errno::Fault);
        }
        // One walk speaks for the rest of the guest's page, which may be a large one.
        let inside = address.get() & (found.size.bytes() - 1);
        let covered = ((found.size.bytes() - inside) / PAGE_BYTES).min(pages - page);
        if !layout.is_ram(found.gpa.get(), covered * PAGE_BYTES) {
            return Err(Errno::Fault);
        }
        match runs.last_mut() {
            Some(last) if last.gpa.get() + last.pages * PAGE_BYTES == found.gpa.get() => {
                last.pages += covered
            }
            _ => {
                if runs.len() >= MAX_RUNS {
                    return Err(Errno::NoMem);
                }
                runs.try_reserve(1).map_err(|_| Errno::NoMem)?;
                runs.push(Run {
                    gpa: found.gpa,
                    first_page: page,
                    pages: covered,
                });
            }
        }
        page += covered;
    }
    let mut sorted: Vec<(u64, u64)> = Vec::new();
    sorted
        .try_reserve_exact(runs.len())
        .map_err(|_| Errno::NoMem)?;
    sorted.extend(
        runs.iter()
            .map(|run| (run.gpa.get(), run.pages * PAGE_BYTES)),
    );
    sorted.sort_unstable();
    if sorted
        .windows(2)
        .any(|pair| matches!(pair, [(start, bytes), (next, _)] if start + bytes > *next))
    {
        return Err(Errno::Fault);
    }
    Ok(Plan { va, runs })
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
        let mut flush: Option<Flush> = None;
        for (done, run) in plan.runs.iter().enumerate() {
            let target = Hpa::new(region.get() + run.first_page * PAGE_BYTES);
            match ept.replace(
                store,
                run.gpa,
                target,
                run.pages * PAGE_BYTES,
                RAM,
                MemoryType::WriteBack,
            ) {
                Ok(more) => flush = Some(combine(flush, more)),
                Err(_) => {
                    let (back, undone) = plan.runs.split_at(done);
                    debug_assert!(!undone.is_empty());
                    // Tables for these runs exist now, so that putting them back takes no frame and cannot fail.
                    let restored = self.restore_runs(ept, store, back, flush);
                    return (Err(Errno::NoMem), restored);
                }
            }
        }
        (Ok(()), flush)
    }

    /// Puts the VM's own frames back behind a plan's runs and merges pages to large ones again.
    ///
    /// The flush is owed.
    #[must_use]
    pub fn restore<S: FrameStore>(&self, ept: &Ept, store: &S, plan: &Plan) -> Option<Flush> {
        let mut flush = self.restore_runs(ept, store, &plan.runs, None);
        for run in &plan.runs {
            let first = run.gpa.get() / CHUNK;
            let last = (run.gpa.get() + run.pages * PAGE_BYTES - 1) / CHUNK;
            for chunk in first..=last {
                // Merging is a matter of speed: where it does not apply, small pages stay.
                if let Ok(more) = ept.merge(store, Gpa::new(chunk * CHUNK)) {
                    flush = Some(combine(flush, more));
                }
            }
        }
        flush
    }

    fn restore_runs<S: FrameStore>(
        &self,
        ept: &Ept,
        store: &S,
        runs: &[Run],
        mut flush: Option<Flush>,
    ) -> Option<Flush> {
        for run in runs {
            let mut done = 0;
            while done < run.pages {
                let gpa = Gpa::new(run.gpa.get() + done * PAGE_BYTES);
                // Own frames are contiguous only inside a 2 MiB piece.
                let pages = ((CHUNK - gpa.get() % CHUNK) / PAGE_BYTES).min(run.pages - done);
                let replaced = self
                    .own_frame(gpa)
                    .ok_or(EptError::OutOfRange)
                    .and_then(|own| {
                        ept.replace(
                            store,
                            gpa,
                            own,
                            pages * PAGE_BYTES,
                            RAM,
                            MemoryType::WriteBack,
                        )
                    });
                match replaced {
                    Ok(more) => flush = Some(combine(flush, more)),
                    Err(error) => {
                        debug_assert!(false, "own frames cannot be put back at {gpa}: {error:?}")
                    }
                }
                done += pages;
            }
        }
        flush
    }
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
