//! What a VM's CPUs translate guest-physical addresses by: its EPT, and who has cached something of it.
//!
//! Of a VM that may fork it is also what holds its memory, which it may share with others of its family (`nagaya_mem::share`). A page
//! that others hold, too, is copied before it is written to, by whomever: the guest, which faults ([`Space::break_sharing`]), or the
//! hypervisor on its behalf ([`Space::with_page`]). There is no other way to a family's page.
//!
//! Concurrency: an EPT is changed under the lock of its VM's memory; that of a family also under the family's.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use guest_abi::PAGE_BYTES;
use guest_abi::boot::DEVICE_SPACE_GPA;
use nagaya_mem::share::{ShareStore, SharedFlush, Write};
use nagaya_mem::{Ept, EptError, EptFeatures, Flush, Gpa, Hpa, MemoryType, Permissions, Run};
use spin::MutexGuard;
use x86_defs::msr::EptVpidCapabilities;

use crate::host::cpu::percpu::{self, MAX_CPUS, PerCpu};
use crate::host::memory::{OwnedFrames, Tables};
use crate::objects::family::Family;
use crate::vmx::{capabilities, invalidate};

/// Entries that are looked at under a family's lock before others may have it.
const RELEASED_AT_ONCE: usize = 512;

/// An address space.
#[derive(Debug)]
pub struct Space {
    /// The tables.
    pub ept: Ept,
    /// Of a VM that belongs to a family.
    shared: Option<Shared>,
    /// Grows with every change that CPUs must forget.
    generation: AtomicU64,
    /// The generation that each CPU's caches reflect.
    seen: [AtomicU64; MAX_CPUS],
    /// The CPUs on which vCPUs are loaded: how many, for each.
    loaded: [AtomicU8; MAX_CPUS],
}

#[derive(Debug)]
struct Shared {
    family: Arc<Family>,
    /// What the group's region covers. No hardware walks it.
    covered: Ept,
    /// The tables hold what they lead to.
    is_holding: AtomicBool,
}

/// What is done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is read.
    Read,
    /// It is written to.
    Write,
}

/// Whether an address is one that each VM of a family has for itself: group page and info pages.
fn is_private(gpa: Gpa) -> bool {
    gpa.get() >= DEVICE_SPACE_GPA
}

fn end(ept: &mut Ept, family: &Family, is_holding: bool) {
    if !is_holding {
        ept.destroy(&Tables);
        return;
    }
    let mut release = {
        let _held = family.hold();
        ept.release(family)
    };
    loop {
        let _held = family.hold();
        if release.step(family, RELEASED_AT_ONCE) {
            break;
        }
    }
}

impl Space {
    /// An empty one.
    ///
    /// # Errors
    /// [`EptError::OutOfTables`].
    pub fn new(family: Option<&Arc<Family>>) -> Result<Space, EptError> {
        let ept_vpid = capabilities::get().ept_vpid;
        let features = EptFeatures {
            large_2m: ept_vpid.contains(EptVpidCapabilities::PAGES_2M),
            large_1g: ept_vpid.contains(EptVpidCapabilities::PAGES_1G),
            accessed_dirty: ept_vpid.contains(EptVpidCapabilities::ACCESSED_DIRTY),
        };
        let mut ept = Ept::new(&Tables, features)?;
        let Some(family) = family else {
            return Ok(Space::of(ept, None));
        };
        let covered = match Ept::new(&Tables, features) {
            Ok(covered) => covered,
            Err(error) => {
                ept.destroy(&Tables);
                return Err(error);
            }
        };
        let shared = Shared {
            family: Arc::clone(family),
            covered,
            is_holding: AtomicBool::new(false),
        };
        Ok(Space::of(ept, Some(shared)))
    }

    fn of(ept: Ept, shared: Option<Shared>) -> Space {
        Space {
            ept,
            shared,
            generation: AtomicU64::new(0),
            seen: [const { AtomicU64::new(u64::MAX) }; MAX_CPUS],
            loaded: [const { AtomicU8::new(0) }; MAX_CPUS],
        }
    }

    /// The family that its VM belongs to.
    #[must_use]
    pub fn family(&self) -> Option<&Arc<Family>> {
        self.shared.as_ref().map(|shared| &shared.family)
    }

    /// Nobody changes tables of the family's, or frees what they lead to, while this is held. Under it nothing else here is called.
    #[must_use]
    pub fn hold(&self) -> Option<MutexGuard<'_, ()>> {
        self.shared.as_ref().map(|shared| shared.family.hold())
    }

    /// The tables map all of these frames, each once, and hold them from now on.
    pub fn adopt(&self, frames: OwnedFrames) {
        if let Some(shared) = &self.shared {
            shared.family.adopt(frames);
            shared.is_holding.store(true, Ordering::SeqCst);
        }
    }

    /// Shows a page of the hypervisor's that the guest may only read.
    ///
    /// # Errors
    /// As [`Ept::map`].
    pub fn show(&self, gpa: u64, page: Hpa) -> Result<(), EptError> {
        self.ept
            .map_apart(&Tables, Gpa::new(gpa), page, PAGE_BYTES, Permissions::READ)
            .map(|flush| flush.complete(&Tables))
    }

    /// A space that shares all memory with this one, but for what each VM has for itself. No vCPU of the VM's runs meanwhile.
    ///
    /// # Errors
    /// [`EptError::OutOfTables`], [`EptError::TooManyHolders`]; [`EptError::NotMapped`] if it belongs to no family.
    pub fn fork(&self) -> Result<Space, EptError> {
        let Some(shared) = &self.shared else {
            return Err(EptError::NotMapped { gpa: Gpa::new(0) });
        };
        let family = &shared.family;
        let (mut ept, covered) = {
            let _held = family.hold();
            let (ept, owed) = self.ept.fork(&**family, is_private);
            self.flush_shared(owed, &**family);
            let ept = ept?;
            let (covered, owed) = shared.covered.fork(&**family, is_private);
            // No CPU has anything of that tree.
            owed.complete(&**family);
            (ept, covered)
        };
        let covered = match covered {
            Ok(covered) => covered,
            Err(error) => {
                end(&mut ept, family, true);
                return Err(error);
            }
        };
        let shared = Shared {
            family: Arc::clone(family),
            covered,
            is_holding: AtomicBool::new(true),
        };
        Ok(Space::of(ept, Some(shared)))
    }

    /// Lets the VM write to a page that others may hold, too. `None` if it belongs to no family.
    ///
    /// # Errors
    /// [`EptError::OutOfPages`], [`EptError::OutOfTables`], [`EptError::TooManyHolders`]: there is no memory for a copy.
    pub fn break_sharing(&self, gpa: Gpa) -> Option<Result<Write, EptError>> {
        let shared = self.shared.as_ref()?;
        let _held = shared.family.hold();
        Some(self.make_writable(&shared.family, gpa))
    }

    fn make_writable(&self, family: &Family, gpa: Gpa) -> Result<Write, EptError> {
        let (done, owed) = self.ept.make_writable(family, gpa);
        self.flush_shared(owed, family);
        done
    }

    /// Calls `action` with where the page around an address is, if it is RAM, held by the VM alone if it is to be written to. It stays
    /// so until the action has ended. `None` also if there is no memory for a copy, or the VM belongs to no family.
    pub fn with_page<R>(&self, gpa: Gpa, use_: Use, action: impl FnOnce(Hpa) -> R) -> Option<R> {
        let shared = self.shared.as_ref()?;
        let _held = shared.family.hold();
        let find = || {
            let found = self.ept.translate(&Tables, gpa)?;
            (found.memory_type == MemoryType::WriteBack && !is_private(gpa)).then_some(found)
        };
        let mut found = find()?;
        if use_ == Use::Write && !found.permissions.contains(Permissions::WRITE) {
            self.make_writable(&shared.family, gpa).ok()?;
            found = find()?;
        }
        Some(action(found.hpa))
    }

    /// Puts a region behind these runs; what it covers is kept.
    ///
    /// # Errors
    /// As [`Ept::cover`].
    pub fn cover(&self, runs: &[Run], region: Hpa) -> Option<Result<(), EptError>> {
        let Shared {
            family, covered, ..
        } = self.shared.as_ref()?;
        let _held = family.hold();
        let (done, owed) = self.ept.cover(&**family, covered, runs, region);
        self.flush_shared(owed, &**family);
        Some(done)
    }

    /// Puts back what the region has covered.
    ///
    /// # Errors
    /// As [`Ept::uncover`].
    pub fn uncover(&self, runs: &[Run]) -> Option<Result<(), EptError>> {
        let Shared {
            family, covered, ..
        } = self.shared.as_ref()?;
        let _held = family.hold();
        let (done, owed) = self.ept.uncover(&**family, covered, runs);
        self.flush_shared(owed, &**family);
        Some(done)
    }

    /// Carries out what a change owes: this CPU and those on which vCPUs are loaded forget old translations; the others do when
    /// they load one.
    pub fn flush(&self, flush: Flush) {
        if flush.needs_invalidation() {
            self.invalidate();
        }
        flush.complete(&Tables);
    }

    /// The same for a change in a family.
    fn flush_shared<S: ShareStore>(&self, owed: SharedFlush, store: &S) {
        if owed.needs_invalidation() {
            self.invalidate();
        }
        owed.complete(store);
    }

    /// A CPU that is in the guest is called out by NMI and looks at the generation before it enters again; a CPU in the
    /// hypervisor does so by itself. Either way, once `in_guest` was seen false, the guest runs no more on what is stale.
    fn invalidate(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        let me = PerCpu::current();
        self.refresh(me);
        for cpu in percpu::all().filter(|cpu| cpu.index != me.index) {
            // A CPU counts itself in and then looks at the generation; we the other way round.
            let loaded = self
                .loaded
                .get(cpu.index as usize)
                .is_some_and(|count| count.load(Ordering::SeqCst) != 0);
            if !loaded {
                continue;
            }
            // With an IPI to one that sleeps: a mark without one would make later kicks believe that it has been told.
            cpu.kick_to_reschedule();
            if cpu.in_guest.load(Ordering::SeqCst) {
                cpu.kick_urgently();
                while cpu.in_guest.load(Ordering::SeqCst) && cpu.kicked.load(Ordering::SeqCst) {
                    core::hint::spin_loop();
                }
            }
        }
    }

    /// A vCPU is loaded on this CPU.
    pub fn loaded(&self, cpu: &PerCpu) {
        if let Some(count) = self.loaded.get(cpu.index as usize) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        self.refresh(cpu);
    }

    /// A vCPU is loaded here no more.
    pub fn unloaded(&self, cpu: &PerCpu) {
        if let Some(count) = self.loaded.get(cpu.index as usize) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Makes the executing CPU forget what it cached, if that has changed since it did so last.
    pub fn refresh(&self, cpu: &PerCpu) {
        let generation = self.generation.load(Ordering::SeqCst);
        if let Some(seen) = self.seen.get(cpu.index as usize)
            && seen.load(Ordering::Relaxed) != generation
        {
            invalidate::ept(self.ept.eptp());
            seen.store(generation, Ordering::Relaxed);
        }
    }

    /// Another number after each change that CPUs must forget. Changes only under the lock of the VM's memory, or the family's.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // A later VM whose root lies in the same frame invalidates when its vCPUs are loaded.
        match self.shared.take() {
            None => self.ept.destroy(&Tables),
            Some(mut shared) => {
                let is_holding = shared.is_holding.load(Ordering::SeqCst);
                end(&mut self.ept, &shared.family, is_holding);
                end(&mut shared.covered, &shared.family, is_holding);
            }
        }
    }
}
