//! The hypervisor's own page tables: the loader's, mended to W^X, plus an area of stacks with guard pages.
//!
//! The loader maps the image with the permissions of its program headers, but physical memory, boot information and page
//! tables writable *and* executable, and some of the lower half for its own hand-over. [`harden`] makes every writable page
//! non-executable and empties the lower half; [`audit`] walks everything once more and counts. Changes after the start of
//! the other CPUs go through [`flush_everywhere`].
//!
//! Source: Intel SDM Vol. 3, "4-Level Paging and 5-Level Paging", "Propagation of Paging-Structure Changes".

use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_mem::Hpa;
use spin::Mutex;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::structures::paging::mapper::{MapToError, MapperFlush};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::host::cpu::percpu;
use crate::host::memory;

/// Where stacks lie: each in its own slot, the lowest page of a slot never mapped.
const STACKS: u64 = 0xFFFF_C000_0000_0000;
/// Bytes of virtual addresses for one stack with its guard page.
const STACK_SLOT: u64 = 128 << 10;
/// Bytes of one stack.
pub const STACK_BYTES: u64 = 64 << 10;

/// A page that the self-test of the shootdown maps here and there.
pub const PROBE_PAGE: VirtAddr = VirtAddr::new(0xFFFF_D000_0000_0000);

static NEXT_STACK: AtomicU64 = AtomicU64::new(0);
static TABLES: Mutex<ActiveTables> = Mutex::new(ActiveTables(()));
/// Grows with every change that other CPUs' TLBs must forget.
static GENERATION: AtomicU64 = AtomicU64::new(0);

struct TableFrames;

// SAFETY: `allocate_hypervisor_frame` hands each frame out once.
unsafe impl FrameAllocator<Size4KiB> for TableFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        let frame = memory::allocate_hypervisor_frame()?;
        PhysFrame::from_start_address(PhysAddr::new(frame.get())).ok()
    }
}

/// The active page tables: there is one value of this type, behind [`TABLES`].
struct ActiveTables(());

impl ActiveTables {
    fn root(&mut self) -> &mut PageTable {
        let (frame, _) = Cr3::read();
        // SAFETY: CR3 names the active root, which is mapped in the physical map and never freed. The borrow of `self`, of which there
        // is one, makes this the only reference to it; every CPU has the same root.
        unsafe { &mut *memory::host_pointer::<PageTable>(Hpa::new(frame.start_address().as_u64())) }
    }
}

fn with_mapper<R>(action: impl FnOnce(&mut OffsetPageTable<'_>) -> R) -> R {
    let mut tables = TABLES.lock();
    // SAFETY: all physical memory is mapped at this offset.
    let mut mapper =
        unsafe { OffsetPageTable::new(tables.root(), VirtAddr::new(memory::PHYSICAL_MAP)) };
    action(&mut mapper)
}

/// The physical address of the root of the page tables.
#[must_use]
pub fn root_address() -> Hpa {
    Hpa::new(Cr3::read().0.start_address().as_u64())
}

/// Switches the executing CPU's protections on: no-execute, write protection at CPL 0, global pages off; caches on.
pub fn enable_protections() {
    // SAFETY: both only take permissions away that no code here relies on; the loader's tables use NX already.
    unsafe {
        Efer::update(|flags| flags.insert(EferFlags::NO_EXECUTE_ENABLE));
        Cr0::update(|flags| {
            flags.insert(
                Cr0Flags::WRITE_PROTECT | Cr0Flags::NUMERIC_ERROR | Cr0Flags::MONITOR_COPROCESSOR,
            );
            flags.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
            // Some firmware leaves the caches off; VM entries keep these two bits as they are.
            flags.remove(Cr0Flags::CACHE_DISABLE | Cr0Flags::NOT_WRITE_THROUGH);
        });
        Cr4::update(|flags| flags.remove(Cr4Flags::PAGE_GLOBAL));
    }
}

/// What an audit of all present leaves found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Audit {
    /// Leaves seen.
    pub leaves: u64,
    /// Leaves that can be executed.
    pub executable: u64,
    /// Leaves that can be both written and executed: must be 0.
    pub writable_executable: u64,
}

fn each_leaf(table: &mut PageTable, level: u8, visit: &mut impl FnMut(&mut PageTableFlags)) {
    for entry in table.iter_mut() {
        let mut flags = entry.flags();
        if !flags.contains(PageTableFlags::PRESENT) {
            continue;
        }
        if level == 1 || flags.contains(PageTableFlags::HUGE_PAGE) {
            let before = flags;
            visit(&mut flags);
            if flags != before {
                entry.set_flags(flags);
            }
        } else {
            // SAFETY: a present non-leaf entry names a page table, which the physical map covers. The walk visits a tree (the
            // loader shares no table), one branch at a time.
            let below =
                unsafe { &mut *memory::host_pointer::<PageTable>(Hpa::new(entry.addr().as_u64())) };
            each_leaf(below, level - 1, visit);
        }
    }
}

/// Empties the lower half and makes every writable page non-executable. Called once, on the boot CPU, while it is alone, and
/// after everything the loader left in the lower half has been read.
pub fn harden() {
    let mut tables = TABLES.lock();
    let table = tables.root();
    for entry in table.iter_mut().take(256) {
        entry.set_unused();
    }
    each_leaf(table, 4, &mut |flags| {
        if flags.contains(PageTableFlags::WRITABLE) {
            flags.insert(PageTableFlags::NO_EXECUTE);
        }
    });
    x86_64::instructions::tlb::flush_all();
}

/// Counts all leaves by what they allow.
#[must_use]
pub fn audit() -> Audit {
    let mut tables = TABLES.lock();
    let mut audit = Audit::default();
    each_leaf(tables.root(), 4, &mut |flags| {
        audit.leaves += 1;
        let executable = !flags.contains(PageTableFlags::NO_EXECUTE);
        audit.executable += u64::from(executable);
        audit.writable_executable +=
            u64::from(executable && flags.contains(PageTableFlags::WRITABLE));
    });
    audit
}

/// Maps a new stack with an unmapped guard page below it and returns its top.
///
/// # Errors
/// `None` when frames run out.
#[must_use]
pub fn new_stack() -> Option<VirtAddr> {
    let slot = STACKS + NEXT_STACK.fetch_add(1, Ordering::Relaxed) * STACK_SLOT;
    let top = slot + STACK_SLOT;
    for address in (top - STACK_BYTES..top).step_by(4096) {
        let frame = memory::allocate_hypervisor_frame()?;
        map(
            address,
            frame,
            PageTableFlags::WRITABLE | PageTableFlags::NO_EXECUTE,
        )
        .ok()?;
    }
    Some(VirtAddr::new(top))
}

fn map(
    virtual_address: u64,
    frame: Hpa,
    flags: PageTableFlags,
) -> Result<(), MapToError<Size4KiB>> {
    let page = Page::<Size4KiB>::containing_address(VirtAddr::new(virtual_address));
    let frame = PhysFrame::containing_address(PhysAddr::new(frame.get()));
    with_mapper(|mapper| {
        // SAFETY: callers map fresh frames, or the trampoline's page for execution only: no alias of memory that Rust owns.
        // An entry that was absent needs no flush.
        unsafe {
            mapper.map_to(
                page,
                frame,
                PageTableFlags::PRESENT | flags,
                &mut TableFrames,
            )
        }
        .map(MapperFlush::ignore)
    })
}

/// Maps one page of low memory at its own address, executable and read-only, for CPUs that start in real mode.
///
/// # Errors
/// What the mapper says.
pub fn map_identity_executable(page: Hpa) -> Result<(), MapToError<Size4KiB>> {
    map(page.get(), page, PageTableFlags::empty())
}

/// Takes that mapping away, on all CPUs.
pub fn unmap_identity(page: Hpa) {
    unmap(Page::containing_address(VirtAddr::new(page.get())));
}

fn unmap(page: Page<Size4KiB>) {
    with_mapper(|mapper| {
        if let Ok((_, flush)) = mapper.unmap(page) {
            flush.ignore();
        }
    });
    flush_everywhere();
}

/// Maps the probe page to another frame, read-only, on all CPUs.
///
/// # Errors
/// What the mapper says.
pub fn remap_probe(frame: Hpa) -> Result<(), MapToError<Size4KiB>> {
    let page = Page::<Size4KiB>::containing_address(PROBE_PAGE);
    with_mapper(|mapper| {
        if let Ok((_, flush)) = mapper.unmap(page) {
            flush.ignore();
        }
    });
    map(PROBE_PAGE.as_u64(), frame, PageTableFlags::NO_EXECUTE)?;
    flush_everywhere();
    Ok(())
}

/// Takes the probe page away, on all CPUs.
pub fn unmap_probe() {
    unmap(Page::containing_address(PROBE_PAGE));
}

/// Flushes the executing CPU's TLB if the tables have changed since it did so last. Safe in an NMI handler: touches only
/// atomics and CR3.
pub fn flush_if_stale(cpu: &percpu::PerCpu) {
    let generation = GENERATION.load(Ordering::SeqCst);
    if cpu.tlb_generation.load(Ordering::Relaxed) != generation {
        x86_64::instructions::tlb::flush_all();
        cpu.tlb_generation.store(generation, Ordering::SeqCst);
    }
}

/// Makes every CPU that is online forget what it cached of the page tables, and waits until all have: a TLB shootdown by NMI,
/// which also reaches CPUs in guests and CPUs that wait with interrupts off.
pub fn flush_everywhere() {
    let generation = GENERATION.fetch_add(1, Ordering::SeqCst) + 1;
    let me = percpu::PerCpu::current();
    flush_if_stale(me);
    for cpu in
        percpu::all().filter(|cpu| cpu.index != me.index && cpu.online.load(Ordering::SeqCst))
    {
        cpu.kick_urgently();
        while cpu.tlb_generation.load(Ordering::SeqCst) < generation {
            core::hint::spin_loop();
        }
    }
}
