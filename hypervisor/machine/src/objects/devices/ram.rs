//! A VM's RAM as its devices see it: from guest-physical to host-physical addresses without the EPT.
//!
//! Of a VM that belongs to a family it is found by the EPT instead, and copied before it is written to if others hold it as well
//! ([`crate::objects::space`]). Of all others:
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
use crate::objects::space::{Space, Use};

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
    /// Or where they are found, if it belongs to a family.
    space: Option<Arc<Space>>,
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
                space: None,
                shared: None,
                layout,
                spans,
                generation: 0,
            }),
            is_wanted: AtomicBool::new(false),
        }
    }

    /// RAM of a VM that belongs to a family.
    #[must_use]
    pub fn of_family(space: &Arc<Space>, layout: Layout) -> Ram {
        let mut ram = Ram::new(Vec::new(), layout);
        ram.view.get_mut().space = Some(Arc::clone(space));
        ram
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
            // A family's VM finds it as it finds its own pages.
            if view.space.is_none() {
                view.shared = Some(Shared { hull, plan, region });
            }
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
            view.space = None;
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

/// Most that is copied at a time from one VM to another if one of them belongs to a family: never are two families held at once.
const BOUNCED_BYTES: usize = 512;

impl RamSnapshotGuard {
    /// Whether a byte is RAM.
    #[must_use]
    pub fn is_ram(&self, gpa: Gpa) -> bool {
        self.whole(gpa, 1).is_some() || self.space.is_some() && self.layout.is_ram(gpa.get(), 1)
    }

    /// As `pieces`, of a VM that belongs to a family: pages that are to be written to are its own alone.
    #[cold]
    #[inline(never)]
    fn family_pieces(
        &self,
        space: &Space,
        start: Gpa,
        bytes: u64,
        use_: Use,
        mut action: impl FnMut(Hpa, usize, usize),
    ) -> Result<(), RamError> {
        let refused = RamError { start, bytes };
        start.checked_add(bytes).ok_or(refused)?;
        if !self.layout.is_ram(start.get(), bytes) {
            return Err(refused);
        }
        // First it is made sure that there is memory for all copies.
        for is_checked in [false, true] {
            let mut done = 0;
            while done < bytes {
                let gpa = start.get() + done;
                let length = (PAGE_BYTES - gpa % PAGE_BYTES).min(bytes - done);
                space
                    .with_page(Gpa::new(gpa), use_, |at| {
                        if is_checked {
                            action(at, done as usize, length as usize);
                        }
                    })
                    .ok_or(refused)?;
                done += length;
            }
        }
        Ok(())
    }

    /// A word of a VM that belongs to a family.
    #[cold]
    #[inline(never)]
    fn family_word<R>(
        &self,
        gpa: Gpa,
        align: u64,
        use_: Use,
        action: impl FnOnce(Hpa) -> R,
    ) -> Option<R> {
        let space = self.space.as_ref().filter(|_| gpa.is_aligned(align))?;
        space.with_page(gpa, use_, action)
    }

    /// As [`GuestRam::copy_to`], where one of both belongs to a family.
    #[cold]
    #[inline(never)]
    fn bounce(
        &self,
        from: Gpa,
        target: &RamSnapshotGuard,
        to: Gpa,
        bytes: u64,
    ) -> Result<(), CopyError> {
        let mut buffer = [0; BOUNCED_BYTES];
        let mut done = 0;
        while done < bytes {
            let length = (bytes - done).min(BOUNCED_BYTES as u64);
            let part = buffer.get_mut(..length as usize).unwrap_or_default();
            let (source, place) = (from.get() + done, to.get() + done);
            self.read(Gpa::new(source), part)
                .map_err(CopyError::Source)?;
            target
                .write(Gpa::new(place), part)
                .map_err(CopyError::Target)?;
            done += length;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn read_pieces(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), RamError> {
        let length = buffer.len() as u64;
        let action = |at, start, bytes| {
            if let Some(part) = buffer.get_mut(start..start + bytes) {
                memory::phys().read(at, part);
            }
        };
        match &self.space {
            Some(space) => self.family_pieces(space, from, length, Use::Read, action),
            None => self.pieces(from, length, action),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_pieces(&self, to: Gpa, bytes: &[u8]) -> Result<(), RamError> {
        let length = bytes.len() as u64;
        let action = |at, start, length| {
            if let Some(part) = bytes.get(start..start + length) {
                // SAFETY: `pieces` names RAM of the VM's, or of its group's region, which the view keeps from being given back;
                // `family_pieces` what this VM alone holds, for as long as this lasts.
                unsafe { memory::writer(Whose::Vm) }.write(at, part);
            }
        };
        match &self.space {
            Some(space) => self.family_pieces(space, to, length, Use::Write, action),
            None => self.pieces(to, length, action),
        }
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
        let load = |at| memory::phys().load_u16(at);
        if let Some(at) = self.whole(from, 2).filter(|at| at.is_aligned(2)) {
            return Ok(load(at));
        }
        self.family_word(from, 2, Use::Read, load).ok_or(refused)
    }

    #[inline]
    fn store_u16(&self, to: Gpa, value: u16) -> Result<(), RamError> {
        let refused = RamError {
            start: to,
            bytes: 2,
        };
        // SAFETY: as in `write`.
        let store = |at| unsafe { memory::writer(Whose::Vm) }.store_u16(at, value);
        if let Some(at) = self.whole(to, 2).filter(|at| at.is_aligned(2)) {
            store(at);
            return Ok(());
        }
        self.family_word(to, 2, Use::Write, store).ok_or(refused)
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
        if self.space.is_some() || target.space.is_some() {
            return self.bounce(from, target, to, bytes);
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
        let load = |at| memory::phys().load_u64(at);
        if let Some(at) = self.whole(gpa, 8).filter(|at| at.is_aligned(8)) {
            return Some(load(at));
        }
        self.family_word(gpa, 8, Use::Read, load)
    }
}

impl GuestMark for RamSnapshotGuard {
    fn set_bits(&self, gpa: Gpa, bits: u64) {
        // SAFETY: `whole` and `family_word` name RAM as in `write`.
        let set = |at| unsafe { memory::writer(Whose::Vm) }.set_bits_u64(at, bits);
        if let Some(at) = self.whole(gpa, 8).filter(|at| at.is_aligned(8)) {
            set(at);
            return;
        }
        // Without memory for a copy the bits stay clear: the CPU sets them when it walks.
        let _ = self.family_word(gpa, 8, Use::Write, set);
    }
}
