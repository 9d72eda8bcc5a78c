//! Physical memory: the map of all of it, the table of frame owners, the heap, the store of EPT tables.
//!
//! Concurrency: [`frames`] is one lock, held for short, bounded searches and never on a hot exit path. The heap has its own
//! lock, inside the allocator. Neither may be touched from an NMI handler.

use alloc::vec::Vec;
use bootloader_api::info::{MemoryRegionKind, MemoryRegions};
use guest_abi::PAGE_BYTES;
use linked_list_allocator::LockedHeap;
use nagaya_mem::{FrameStore, FrameTable, Holders, HostMemory, Hpa, Owner, PageSize, PhysMap};
use spin::{Mutex, MutexGuard, Once};

use crate::host::cpu::jobs;
pub use crate::host::physical_map::{PHYSICAL_MAP, device_address, host_pointer};
use crate::host::scarcity;

/// Bytes of the heap. It holds per-CPU and per-VM structures, vectors of frames and the parsed scenario; guests cannot make it
/// grow (ADR 0003).
const HEAP_BYTES: u64 = 32 << 20;
/// What of the heap is left to guests' calls and the operator's requests: making a VM or a group is refused where less would be. Each CPU can
/// have one `map_shared` under way, with 16,384 runs of pages, twice 24 bytes each.
pub const HEAP_RESERVE: usize = 8 << 20;
/// Memory below this stays unused: firmware data, and the page that further CPUs start on.
const LOW_MEMORY: u64 = 1 << 20;

#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: LockedHeap = LockedHeap::empty();

// A constant, since every access to a guest's memory goes through it.
// SAFETY: `boot::LOADER_CONFIG` makes the loader map all physical memory at this address, writable, for good, before the first
// instruction of ours.
static PHYS: PhysMap = unsafe { PhysMap::new(PHYSICAL_MAP) };
static FRAMES: Once<Mutex<FrameTable<'static>>> = Once::new();
static HOLDERS: Once<Mutex<Holders<'static>>> = Once::new();

/// Physical memory to be read. What may be written, and by whom, is said by [`writer`].
#[derive(Clone, Copy, Debug)]
pub struct ReadOnlyMap(());

impl ReadOnlyMap {
    /// As [`PhysMap::load_u64`].
    #[inline]
    #[must_use]
    pub fn load_u64(self, address: Hpa) -> u64 {
        PHYS.load_u64(address)
    }

    /// As [`PhysMap::load_u16`].
    #[inline]
    #[must_use]
    pub fn load_u16(self, address: Hpa) -> u16 {
        PHYS.load_u16(address)
    }

    /// As [`HostMemory::read`].
    #[inline]
    pub fn read(self, address: Hpa, buffer: &mut [u8]) {
        PHYS.read(address, buffer);
    }
}

/// Physical memory, to be read.
#[inline]
#[must_use]
pub fn phys() -> ReadOnlyMap {
    ReadOnlyMap(())
}

/// Whose frames somebody writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The hypervisor's own, handed out by [`allocate_hypervisor_frame`] to the caller alone.
    Hypervisor,
    /// A VM's.
    Vm,
    /// A group's.
    Group,
    /// A family's, held by one VM alone.
    Family,
}

/// Physical memory, to be written.
///
/// # Safety
/// What is written through it lies in frames of that owner which the caller was given, by the table of frames or by who was, and which are
/// not given back meanwhile; what stands there is no memory that Rust owns.
#[inline]
#[must_use]
pub unsafe fn writer(_whose: Whose) -> &'static PhysMap {
    &PHYS
}

/// The table of frame owners, locked.
///
/// # Panics
/// Before [`init`].
pub fn frames() -> MutexGuard<'static, FrameTable<'static>> {
    match FRAMES.get() {
        Some(table) => table.lock(),
        None => panic!("frames are used before memory::init"),
    }
}

/// How many hold each frame that a family shares, locked. [`frames`] may be taken under it, and not the other way round.
///
/// # Panics
/// Before [`init`].
pub fn holders() -> MutexGuard<'static, Holders<'static>> {
    match HOLDERS.get() {
        Some(holders) => holders.lock(),
        None => panic!("holders are used before memory::init"),
    }
}

/// What [`init`] found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Bytes of RAM that the hypervisor and its guests can use.
    pub usable_bytes: u64,
    /// A page below 1 MiB, for the code that further CPUs start with.
    pub trampoline: Option<Hpa>,
}

/// Takes over the machine's memory: tables of frames and of their holders, then heap. Called once, on the boot CPU, before anything allocates.
///
/// # Errors
/// The message says what there is too little of.
pub fn init(regions: &MemoryRegions) -> Result<Found, &'static str> {
    let usable = || {
        regions
            .iter()
            .filter(|region| region.kind == MemoryRegionKind::Usable)
    };
    let top = usable()
        .map(|region| region.end)
        .max()
        .ok_or("the loader reports no usable memory")?;
    let words = FrameTable::words_needed(Hpa::new(top));
    let holder_words = Holders::words_needed(Hpa::new(top));
    let table_bytes = ((words + holder_words) as u64 * 2).next_multiple_of(4096);

    // The tables lie at the start of the first usable region that can hold them, and are reserved by never being released.
    let home = usable()
        .map(|region| {
            (
                region.start.max(LOW_MEMORY).next_multiple_of(4096),
                region.end,
            )
        })
        .find(|(start, end)| start + table_bytes <= *end)
        .map(|(start, _)| start)
        .ok_or("no usable region can hold the table of frames")?;
    let all_words = words + holder_words;
    // SAFETY: the range is usable RAM that nobody else has been given, mapped and aligned; u16 has no invalid values. The tables
    // keep it for ever.
    let all_words =
        unsafe { core::slice::from_raw_parts_mut(host_pointer::<u16>(Hpa::new(home)), all_words) };
    let (words, holder_words) = all_words.split_at_mut(words);
    let mut table = FrameTable::new(words);
    HOLDERS.call_once(|| Mutex::new(Holders::new(holder_words)));
    for region in usable() {
        let mut start = region.start.max(LOW_MEMORY).next_multiple_of(4096);
        let end = region.end & !4095;
        if start <= home && home < end {
            start = home + table_bytes;
        }
        if start < end {
            table.release(Hpa::new(start), (end - start) / 4096);
        }
    }
    let usable_bytes = table.counts().free * 4096;
    let heap = table
        .allocate_contiguous(
            HEAP_BYTES / 4096,
            PageSize::Size2M.bytes(),
            Owner::Hypervisor,
        )
        .map_err(|_| "no 32 MiB of contiguous memory for the heap")?;
    // SAFETY: the frames were just allocated to the hypervisor, are mapped writable and are never freed.
    unsafe {
        HEAP.lock()
            .init(host_pointer::<u8>(heap), HEAP_BYTES as usize)
    };
    FRAMES.call_once(|| Mutex::new(table));

    let trampoline = usable()
        .map(|region| region.start.max(0x1000).next_multiple_of(4096))
        .find(|start| {
            *start + 4096 <= 0xA_0000
                && usable().any(|region| region.start <= *start && start + 4096 <= region.end)
        })
        .map(Hpa::new);
    Ok(Found {
        usable_bytes,
        trampoline,
    })
}

/// Free bytes of the heap.
#[must_use]
pub fn heap_left() -> usize {
    HEAP.lock().free()
}

/// Takes a zeroed 4 KiB frame for the hypervisor's own use.
#[must_use]
pub fn allocate_hypervisor_frame() -> Option<Hpa> {
    if !scarcity::grants() {
        return None;
    }
    let frame = frames()
        .allocate(PageSize::Size4K, Owner::Hypervisor)
        .ok()?;
    PHYS.zero(frame, 1);
    Some(frame)
}

/// Gives such a frame back.
pub fn free_hypervisor_frame(frame: Hpa) {
    if let Err(error) = frames().free(frame, 1, Owner::Hypervisor) {
        log::error!("hypervisor frame {frame} is given back wrongly: {error:?}");
    }
}

/// Pages that are zeroed before the clock is looked at: a quarter of a worker's grain.
const ZEROED_AT_ONCE: u64 = 16;

/// Zeroes frames, in slices if a worker does it.
pub fn zero(start: Hpa, pages: u64) {
    let mut done = 0;
    while done < pages {
        let now = ZEROED_AT_ONCE.min(pages - done);
        PHYS.zero(Hpa::new(start.get() + done * PAGE_BYTES), now);
        done += now;
        jobs::breathe();
    }
}

/// Frames of one VM or group, given back when dropped.
#[derive(Debug)]
pub struct OwnedFrames {
    owner: Owner,
    runs: Vec<(Hpa, u64)>,
}

impl OwnedFrames {
    /// Nothing yet, for that owner.
    #[must_use]
    pub fn new(owner: Owner) -> OwnedFrames {
        OwnedFrames {
            owner,
            runs: Vec::new(),
        }
    }

    /// Takes `pages` contiguous frames at an aligned address and zeroes them: nobody sees what a former owner left there.
    pub fn take(&mut self, pages: u64, align_bytes: u64) -> Option<Hpa> {
        if !scarcity::grants() {
            return None;
        }
        let start = if pages == 1 && align_bytes <= PAGE_BYTES {
            frames().allocate(PageSize::Size4K, self.owner).ok()?
        } else {
            frames()
                .allocate_contiguous(pages, align_bytes, self.owner)
                .ok()?
        };
        self.runs.push((start, pages));
        zero(start, pages);
        Some(start)
    }

    /// Frames held.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|(_, pages)| pages).sum()
    }

    /// From now on the tables that map them hold them, each once: whoever ends those lets them go.
    pub fn hand_over(mut self) {
        let mut holders = holders();
        for (start, pages) in self.runs.drain(..) {
            holders.taken(start, pages);
        }
    }
}

/// Takes a page of 4 KiB with any content.
#[must_use]
pub fn allocate_page(owner: Owner) -> Option<Hpa> {
    if !scarcity::grants() {
        return None;
    }
    frames().allocate(PageSize::Size4K, owner).ok()
}

/// Gives frames of that owner back.
pub fn free(start: Hpa, pages: u64, owner: Owner) {
    if let Err(error) = frames().free(start, pages, owner) {
        log::error!("{pages} frames at {start} of {owner:?} are given back wrongly: {error:?}");
    }
}

impl Drop for OwnedFrames {
    fn drop(&mut self) {
        for (start, pages) in self.runs.drain(..) {
            free(start, pages, self.owner);
        }
    }
}

/// The store of EPT tables: frames of the hypervisor, changed by atomic operations through the physical map.
#[derive(Clone, Copy, Debug)]
pub struct Tables;

impl FrameStore for Tables {
    fn load(&self, table: Hpa, index: usize) -> u64 {
        phys().load_u64(entry(table, index))
    }

    fn compare_exchange(
        &self,
        table: Hpa,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        PHYS.compare_exchange_u64(entry(table, index), current, new)
    }

    fn store_unlinked(&self, table: Hpa, index: usize, new: u64) {
        PHYS.store_u64(entry(table, index), new);
    }

    fn fill_unlinked(&self, table: Hpa, first: u64, step: u64) {
        PHYS.fill_table(table, first, step);
    }

    fn allocate_table(&self) -> Option<Hpa> {
        allocate_hypervisor_frame()
    }

    fn free_table(&self, table: Hpa) {
        free_hypervisor_frame(table);
    }
}

fn entry(table: Hpa, index: usize) -> Hpa {
    Hpa::new(table.get() + index as u64 * 8)
}
