//! A VM's RAM as its devices see it: from guest-physical to host-physical addresses without the EPT.
//!
//! A VM's own frames never change; what changes is whether the group's region covers some of them, which `map_shared` and
//! `unmap_shared` say here. So a device's access costs an index into a table, and retired EPT tables are no concern of it.
//!
//! Concurrency: devices, of this VM and of those that it exchanges frames with, hold a [`Ram::view`] while they work. Whoever
//! changes the view waits for them: that is what keeps frames from being given back under a copy. Views may be held of several
//! VMs at once, since views do not exclude each other, and whoever waits for them holds no bus and no network.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use guest_abi::PAGE_BYTES;
use nagaya_devices::{CopyError, GuestRam, RamError};
use nagaya_mem::{Gpa, GuestMark, GuestRead, HostMemory, Hpa, PageSize};
use nagaya_vmm::contiguous::ContiguousRanges;
use nagaya_vmm::layout::Layout;
use nagaya_vmm::shared::{Plan, Run};
use spin::{RwLock, RwLockReadGuard};

use crate::host::memory::{self, Whose};

const CHUNK: u64 = PageSize::Size2M.bytes();
/// Where the region is if it is not mapped.
const NOWHERE: Range<u64> = 0..0;

/// A VM's RAM.
#[derive(Debug)]
pub struct Ram {
    view: RwLock<RamSnapshotGuard>,
    /// Somebody waits to change the view.
    is_wanted: AtomicBool,
}

/// What is RAM, and where.
#[derive(Debug)]
pub struct RamSnapshotGuard {
    /// The VM's own frames, in pieces of 2 MiB.
    chunks: Vec<Hpa>,
    shared: Option<Shared>,
    layout: Layout,
    /// What of it is found at once.
    spans: ContiguousRanges,
    /// Another number after each change: what was found before need not be so any more.
    generation: u64,
}

/// The group's region over some of it.
#[derive(Debug)]
struct Shared {
    /// All its pages are in here, perhaps with others between them.
    hull: Range<u64>,
    plan: Arc<Plan>,
    region: Hpa,
}

impl Ram {
    /// RAM made of these pieces.
    #[must_use]
    pub fn new(chunks: Vec<Hpa>, layout: Layout) -> Ram {
        let spans = ContiguousRanges::new(&chunks, CHUNK, layout, &NOWHERE);
        Ram {
            view: RwLock::new(RamSnapshotGuard {
                chunks,
                shared: None,
                layout,
                spans,
                generation: 0,
            }),
            is_wanted: AtomicBool::new(false),
        }
    }

    /// The RAM as it is now; it stays so for as long as the view is held.
    #[inline]
    pub fn view(&self) -> RwLockReadGuard<'_, RamSnapshotGuard> {
        self.view.read()
    }

    /// As [`Ram::view`], for work that takes long, by somebody who holds no other view: lets those go first who want to change it.
    /// Readers that follow each other would keep them waiting for ever.
    pub fn view_for_long(&self) -> RwLockReadGuard<'_, RamSnapshotGuard> {
        while self.is_wanted.load(Ordering::SeqCst) {
            core::hint::spin_loop();
        }
        self.view.read()
    }

    fn change(&self, action: impl FnOnce(&mut RamSnapshotGuard)) {
        self.is_wanted.store(true, Ordering::SeqCst);
        let mut view = self.view.write();
        self.is_wanted.store(false, Ordering::SeqCst);
        view.generation += 1;
        action(&mut view);
    }

    /// The region has been mapped.
    pub fn share(&self, plan: Arc<Plan>, region: Hpa) {
        let start = plan.runs.first().map_or(0, |run| run.gpa.get());
        let end = plan.runs.last().map_or(0, Run::end);
        let hull = start..end;
        let spans = self.spans_without(&hull);
        self.change(|view| {
            view.set_spans(spans);
            view.shared = Some(Shared { hull, plan, region });
        });
    }

    /// What is found at once without those addresses. That takes as long as there is RAM: not while devices are held up.
    fn spans_without(&self, hull: &Range<u64>) -> ContiguousRanges {
        let view = self.view();
        ContiguousRanges::new(&view.chunks, CHUNK, view.layout, hull)
    }

    /// The region is going to be unmapped.
    pub fn unshare(&self) {
        let spans = self.spans_without(&NOWHERE);
        self.change(|view| {
            view.set_spans(spans);
            view.shared = None;
        });
    }

    /// The VM ends: there is no RAM any more.
    pub fn take_away(&self) {
        self.change(|view| {
            view.chunks = Vec::new();
            view.spans = ContiguousRanges::default();
            view.shared = None;
        });
    }
}

impl Shared {
    /// Where an address of the hull is: in the region, or how far it is to the next address that is.
    #[inline(never)]
    fn find(&self, gpa: u64) -> Result<(Hpa, u64), u64> {
        let runs = &self.plan.runs;
        let next = runs.partition_point(|run| run.end() <= gpa);
        let Some(run) = runs.get(next) else {
            return Err(u64::MAX);
        };
        let Some(inside) = gpa.checked_sub(run.gpa.get()) else {
            return Err(run.gpa.get() - gpa);
        };
        let at = self.region.get() + run.first_page * PAGE_BYTES + inside;
        Ok((Hpa::new(at), run.end() - gpa))
    }
}

impl RamSnapshotGuard {
    /// Takes what was found before the view was held: the VM may have ended meanwhile, and then nothing is to be found.
    fn set_spans(&mut self, spans: ContiguousRanges) {
        if !self.chunks.is_empty() {
            self.spans = spans;
        }
    }

    /// Where an address is, and for how many bytes what follows lies behind it. `None` if it is no RAM.
    #[inline]
    fn piece(&self, gpa: u64) -> Option<(Hpa, u64)> {
        let mut bytes = CHUNK - gpa % CHUNK;
        if let Some(shared) = &self.shared
            && gpa < shared.hull.end
            && gpa.saturating_add(bytes) > shared.hull.start
        {
            match shared.find(gpa) {
                Ok(found) => return Some(found),
                Err(distance) => bytes = bytes.min(distance),
            }
        }
        let offset = self.layout.offset_of(gpa)?;
        let chunk = self.chunks.get(usize::try_from(offset / CHUNK).ok()?)?;
        Some((Hpa::new(chunk.get() + offset % CHUNK), bytes))
    }

    /// A number that is another after each change of what is RAM and where.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where a range is if it is all in one piece. It stays there until the generation changes.
    #[inline]
    pub fn whole(&self, gpa: Gpa, bytes: u64) -> Option<Hpa> {
        let found = self.spans.find(gpa.get(), bytes);
        found.or_else(|| self.whole_by_piece(gpa.get(), bytes))
    }

    #[inline(never)]
    fn whole_by_piece(&self, gpa: u64, bytes: u64) -> Option<Hpa> {
        self.piece(gpa)
            .filter(|(_, length)| bytes <= *length)
            .map(|(at, _)| at)
    }

    /// Calls `action` with each piece of a range, after all of it has been found to be RAM.
    fn pieces(
        &self,
        start: Gpa,
        bytes: u64,
        mut action: impl FnMut(Hpa, usize, usize),
    ) -> Result<(), RamError> {
        let refused = RamError { start, bytes };
        start.checked_add(bytes).ok_or(refused)?;
        for is_checked in [false, true] {
            let mut done = 0;
            while done < bytes {
                let (at, length) = self.piece(start.get() + done).ok_or(refused)?;
                let length = length.min(bytes - done);
                if is_checked {
                    action(at, done as usize, length as usize);
                }
                done += length;
            }
        }
        Ok(())
    }
}

impl RamSnapshotGuard {
    #[cold]
    #[inline(never)]
    fn read_pieces(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), RamError> {
        self.pieces(from, buffer.len() as u64, |at, start, bytes| {
            if let Some(part) = buffer.get_mut(start..start + bytes) {
                memory::phys().read(at, part);
            }
        })
    }

    #[cold]
    #[inline(never)]
    fn write_pieces(&self, to: Gpa, bytes: &[u8]) -> Result<(), RamError> {
        self.pieces(to, bytes.len() as u64, |at, start, length| {
            if let Some(part) = bytes.get(start..start + length) {
                // SAFETY: `pieces` names RAM of the VM's, or of its group's region, which the view keeps from being given back.
                unsafe { memory::writer(Whose::Vm) }.write(at, part);
            }
        })
    }
}

impl GuestRam for RamSnapshotGuard {
    #[inline]
    fn read(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), RamError> {
        if let Some(at) = self.whole(from, buffer.len() as u64) {
            memory::phys().read(at, buffer);
            return Ok(());
        }
        self.read_pieces(from, buffer)
    }

    #[inline]
    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), RamError> {
        if let Some(at) = self.whole(to, bytes.len() as u64) {
            // SAFETY: `whole` names RAM as `pieces` does.
            unsafe { memory::writer(Whose::Vm) }.write(at, bytes);
            return Ok(());
        }
        self.write_pieces(to, bytes)
    }

    #[inline]
    fn load_u16(&self, from: Gpa) -> Result<u16, RamError> {
        let refused = RamError {
            start: from,
            bytes: 2,
        };
        let at = self.whole(from, 2).filter(|at| at.is_aligned(2));
        at.map(|at| memory::phys().load_u16(at)).ok_or(refused)
    }

    #[inline]
    fn store_u16(&self, to: Gpa, value: u16) -> Result<(), RamError> {
        let refused = RamError {
            start: to,
            bytes: 2,
        };
        let at = self.whole(to, 2).filter(|at| at.is_aligned(2));
        // SAFETY: as in `write`.
        at.map(|at| unsafe { memory::writer(Whose::Vm) }.store_u16(at, value))
            .ok_or(refused)
    }

    fn copy_to(
        &self,
        from: Gpa,
        target: &RamSnapshotGuard,
        to: Gpa,
        bytes: u32,
    ) -> Result<(), CopyError> {
        let bytes = u64::from(bytes);
        let source_refused = CopyError::Source(RamError { start: from, bytes });
        let target_refused = CopyError::Target(RamError { start: to, bytes });
        from.checked_add(bytes).ok_or(source_refused)?;
        to.checked_add(bytes).ok_or(target_refused)?;
        if let Some(source) = self.whole(from, bytes)
            && let Some(place) = target.whole(to, bytes)
        {
            // SAFETY: as in `write`, with the target's view.
            unsafe { memory::writer(Whose::Vm) }.copy(source, place, bytes as usize);
            return Ok(());
        }
        let mut done = 0;
        while done < bytes {
            let (source, most) = self.piece(from.get() + done).ok_or(source_refused)?;
            let (place, room) = target.piece(to.get() + done).ok_or(target_refused)?;
            let length = most.min(room).min(bytes - done);
            // SAFETY: `piece` names RAM as `whole` does.
            unsafe { memory::writer(Whose::Vm) }.copy(source, place, length as usize);
            done += length;
        }
        Ok(())
    }
}

impl GuestRead for RamSnapshotGuard {
    #[inline]
    fn read_u64(&self, gpa: Gpa) -> Option<u64> {
        let at = self.whole(gpa, 8).filter(|at| at.is_aligned(8))?;
        Some(memory::phys().load_u64(at))
    }
}

impl GuestMark for RamSnapshotGuard {
    fn set_bits(&self, gpa: Gpa, bits: u64) {
        if let Some(at) = self.whole(gpa, 8).filter(|at| at.is_aligned(8)) {
            // SAFETY: `whole` names RAM as in `write`.
            unsafe { memory::writer(Whose::Vm) }.set_bits_u64(at, bits);
        }
    }
}
