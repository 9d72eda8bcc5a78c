//! VMs on the machine: their frames, their EPT, and what is told of them. How they begin and end is `lifecycle`'s business.
//!
//! Concurrency: a [`Vm`] is shared by the CPUs of its vCPUs; its memory is behind one lock, everything else is atomic or set
//! once.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use guest_abi::{ExitKind, InfoPage, PAGE_BYTES, boot};
use nagaya_mem::{Ept, EptFeatures, Flush, Gpa, Gva, Hpa, MemoryType, Owner, Permissions};
use nagaya_vmm::config::VmConfig;
use nagaya_vmm::layout::Layout;
use nagaya_vmm::outcome::Cause;
use nagaya_vmm::shared::{Backing, Plan};
use spin::Mutex;
use x86_defs::msr::EptVpidCapabilities;

use crate::host::cpu::percpu::{self, MAX_CPUS, PerCpu};
use crate::host::cpu::time;
use crate::host::memory::{self, OwnedFrames, Tables};
use crate::objects::devices::console::GuestConsole;
use crate::objects::devices::{self, Attached, Devices, ResetPersistentDevices};
use crate::objects::group::{Endpoint, Group};
use crate::objects::handle::Handle;
use crate::objects::identity::{Counts, Identity};
use crate::objects::image;
use crate::vmx::bitmaps::Bitmaps;
use crate::vmx::capabilities;
use crate::vmx::start::Start;

/// A VM's memory: what changes under its lock.
#[derive(Debug)]
pub struct Memory {
    /// Its own frames by guest-physical address.
    pub backing: Backing,
    /// Where it has the group's region, if it has.
    pub shared: Option<Arc<Plan>>,
}

/// A VM's place in a group.
#[derive(Debug)]
pub struct Membership {
    /// The group.
    pub group: Arc<Group>,
    /// The VM's index in it.
    pub index: usize,
    /// Which VM with that index it is: when it is gone another takes its place.
    incarnation: u64,
}

impl Drop for Membership {
    /// A VM that could not be made after it had joined leaves as one that died.
    fn drop(&mut self) {
        let is_there = self.group.update(|state, _| {
            state.incarnation(self.index) == self.incarnation && state.state(self.index).is_alive()
        });
        if is_there {
            self.group.ended(self.index, None);
        }
    }
}

/// One life of a VM.
#[derive(Debug)]
pub struct Vm {
    /// What of it outlives a reset.
    pub identity: Arc<Identity>,
    /// Its number, from 1, also its VPID's base and the owner of its frames.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Its EPT. Changed only under `memory`'s lock.
    pub ept: Ept,
    /// Its memory.
    pub memory: Mutex<Memory>,
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// Where its RAM is.
    pub layout: Layout,
    /// Its group.
    pub membership: Option<Membership>,
    /// Where its doorbells arrive.
    pub endpoint: Arc<Endpoint>,
    /// RDRAND and RDSEED are hidden.
    pub deterministic: bool,
    /// Its image runs outside VMX.
    pub is_bare: bool,
    /// Port and MSR bitmaps.
    pub bitmaps: Bitmaps,
    /// Grows with every change of the EPT that CPUs must forget.
    ept_generation: AtomicU64,
    /// The generation that each CPU's caches reflect.
    ept_seen: [AtomicU64; MAX_CPUS],
    /// The CPUs on which vCPUs are loaded: how many, for each.
    loaded: [AtomicU8; MAX_CPUS],
    /// Its vCPUs as others know them.
    pub vcpus: Vec<Arc<Handle>>,
    /// vCPUs that have been started and not left.
    running: AtomicU32,
    /// Set once, by whoever ends the VM.
    cause: Mutex<Option<Cause>>,
    ending: AtomicBool,
    /// Its console.
    pub console: Arc<GuestConsole>,
    /// Its devices.
    pub devices: Attached,
    /// Its info pages, vCPU 0 first.
    pub info_pages: Vec<Hpa>,
    /// What it was made from.
    pub config: VmConfig,
    /// Its kernel has said that it has panicked.
    pub panicked: AtomicBool,
    /// TSC value at which this life was made.
    pub began_at: u64,
    /// Given back when the VM is dropped.
    #[expect(dead_code, reason = "held for its Drop")]
    frames: OwnedFrames,
}

/// Where a counter of exits lies.
#[must_use]
pub fn exit_counter(page: Hpa, kind: usize) -> Hpa {
    Hpa::new(page.get() + offset_of!(InfoPage, exits) as u64 + kind as u64 * 8)
}

impl Vm {
    /// Makes a life of a VM without its vCPUs, loads its image, and joins its group: with it comes where vCPU 0 starts. `kept` are devices
    /// that it had before its reset.
    ///
    /// # Errors
    /// Why this VM cannot be: the message names the value.
    pub fn create(
        identity: &Arc<Identity>,
        kept: &ResetPersistentDevices,
    ) -> Result<(Arc<Vm>, Start), String> {
        let (id, config) = (identity.id, &identity.config);
        let (group, deterministic) = (identity.group.as_ref(), identity.deterministic);
        let out = |what: &str| format!("there is not enough memory for {what}");
        let mut frames = OwnedFrames::new(Owner::Vm(id));
        let console = Arc::clone(&identity.console);
        let chunks = identity.take_ram()?;
        let backing = Backing::new(chunks.clone(), config.layout());
        let vcpus: Vec<_> = (0..config.vcpus)
            .map(|index| Arc::new(Handle::new(id, index)))
            .collect();
        let info_pages: Vec<Hpa> = (0..config.vcpus)
            .map(|_| frames.take(1, PAGE_BYTES))
            .collect::<Option<_>>()
            .ok_or_else(|| out("info pages"))?;
        let capabilities = capabilities::get();
        let features = EptFeatures {
            large_2m: capabilities
                .ept_vpid
                .contains(EptVpidCapabilities::PAGES_2M),
            large_1g: capabilities
                .ept_vpid
                .contains(EptVpidCapabilities::PAGES_1G),
            accessed_dirty: capabilities
                .ept_vpid
                .contains(EptVpidCapabilities::ACCESSED_DIRTY),
        };
        let endpoint = Arc::new(Endpoint::new(
            vcpus.clone(),
            group.map_or(1, |group| group.doorbells_per_second),
            config.kind.is_pc(),
        ));
        // Before the others of the group hear of it: what can be had is had.
        let devices = Devices::attach(
            config,
            devices::Owner {
                id,
                group: group.map(|group| group.name.as_str()),
                vcpus: &vcpus,
                chunks,
                console: &console,
                kept,
                deterministic,
            },
        )?;
        let membership = match group {
            None => None,
            Some(group) => {
                let (index, incarnation) = group
                    .join(
                        u32::from(id),
                        config.vcpus,
                        &config.name,
                        &endpoint,
                        identity.place(),
                    )
                    .ok_or_else(|| format!("group {:?} is full", group.name))?;
                identity.set_place(index);
                Some(Membership {
                    group: Arc::clone(group),
                    index,
                    incarnation,
                })
            }
        };
        let member_index = membership
            .as_ref()
            .map(|membership| membership.index as u32);
        let start = image::load(id, config, member_index, &backing)?;
        let bitmaps = Bitmaps::new().ok_or_else(|| out("bitmaps"))?;
        // From here on the tables are the VM's, which frees them when it is dropped.
        let ept = Ept::new(&Tables, features).map_err(|_| out("EPT tables"))?;
        let vm = Arc::new(Vm {
            identity: Arc::clone(identity),
            id,
            name: config.name.clone(),
            ept,
            memory_bytes: backing.bytes(),
            layout: config.layout(),
            memory: Mutex::new(Memory {
                backing,
                shared: None,
            }),
            membership,
            endpoint,
            deterministic,
            is_bare: config.bare,
            bitmaps,
            ept_generation: AtomicU64::new(0),
            ept_seen: [const { AtomicU64::new(u64::MAX) }; MAX_CPUS],
            loaded: [const { AtomicU8::new(0) }; MAX_CPUS],
            vcpus,
            running: AtomicU32::new(0),
            cause: Mutex::new(None),
            ending: AtomicBool::new(false),
            console,
            devices,
            info_pages,
            config: config.clone(),
            panicked: AtomicBool::new(false),
            began_at: time::ticks(),
            frames,
        });
        vm.map_memory()
            .map_err(|error| format!("its memory cannot be mapped: {error:?}"))?;
        Ok((vm, start))
    }

    fn map_memory(&self) -> Result<(), nagaya_mem::EptError> {
        // The last check before the hardware may reach it: every frame is this VM's, or the group page of its group.
        let memory = self.memory.lock();
        memory
            .backing
            .map_all(&self.ept, &Tables)?
            .complete(&Tables);
        let read_only = |gpa: u64, page: Hpa| {
            self.ept
                .map(
                    &Tables,
                    Gpa::new(gpa),
                    page,
                    PAGE_BYTES,
                    Permissions::READ,
                    MemoryType::WriteBack,
                )
                .map(|flush| flush.complete(&Tables))
        };
        if let Some(membership) = &self.membership {
            read_only(boot::GROUP_PAGE_GPA, membership.group.page)?;
        }
        for (index, page) in self.info_pages.iter().enumerate() {
            read_only(boot::INFO_PAGE_GPA + index as u64 * PAGE_BYTES, *page)?;
        }
        Ok(())
    }

    /// One more vCPU runs.
    pub fn count_in(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
    }

    /// One vCPU less runs. True if it was the last one.
    #[must_use]
    pub fn count_out(&self) -> bool {
        self.running.fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// The VM is ending for that cause. False if it was ending already.
    #[must_use]
    pub fn begin_end(&self, cause: Cause) -> bool {
        {
            let mut slot = self.cause.lock();
            if slot.is_some() {
                return false;
            }
            *slot = Some(cause);
        }
        self.ending.store(true, Ordering::SeqCst);
        true
    }

    /// Why it is ending, if it is.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        *self.cause.lock()
    }

    /// Whether every vCPU that has been started lies halted with interrupts off: each marks itself before it asks, so the last one
    /// sees all.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        let deaf = self.vcpus.iter().filter(|vcpu| vcpu.is_deaf()).count();
        deaf == self.running.load(Ordering::SeqCst) as usize
    }

    /// Whether only one vCPU of the VM runs.
    #[must_use]
    pub fn is_single_threaded(&self) -> bool {
        self.running.load(Ordering::SeqCst) == 1
    }

    /// Whether the VM is ending.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Carries out what a change of the EPT owes: this CPU and those on which vCPUs are loaded forget old translations; the
    /// others do when they load one.
    ///
    /// A CPU that is in the guest is called out by NMI and looks at the generation before it enters again; a CPU in the
    /// hypervisor does so by itself. Either way, once `in_guest` was seen false, the guest runs no more on what is stale.
    pub fn flush(&self, flush: Flush) {
        if flush.needs_invalidation() {
            self.ept_generation.fetch_add(1, Ordering::SeqCst);
            let me = PerCpu::current();
            self.refresh_translations(me);
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
        flush.complete(&Tables);
    }

    /// A vCPU is loaded on this CPU.
    pub fn loaded(&self, cpu: &PerCpu) {
        if let Some(count) = self.loaded.get(cpu.index as usize) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        self.refresh_translations(cpu);
    }

    /// A vCPU is loaded here no more.
    pub fn unloaded(&self, cpu: &PerCpu) {
        if let Some(count) = self.loaded.get(cpu.index as usize) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Makes the executing CPU forget what it cached of the EPT, if that has changed since it did so last.
    pub fn refresh_translations(&self, cpu: &PerCpu) {
        let generation = self.ept_generation.load(Ordering::SeqCst);
        if let Some(seen) = self.ept_seen.get(cpu.index as usize)
            && seen.load(Ordering::Relaxed) != generation
        {
            crate::vmx::invalidate::ept(self.ept.eptp());
            seen.store(generation, Ordering::Relaxed);
        }
    }

    /// Another number after each change of the EPT that CPUs must forget. Changes only under `memory`'s lock.
    #[must_use]
    pub fn ept_generation(&self) -> u64 {
        self.ept_generation.load(Ordering::SeqCst)
    }

    /// The address at which the VM has the region, if it has.
    #[must_use]
    pub fn shared_va(&self) -> Option<Gva> {
        self.memory.lock().shared.as_ref().map(|plan| plan.va)
    }

    /// Exits of all vCPUs by kind.
    #[must_use]
    pub fn exits(&self) -> [u64; ExitKind::COUNT] {
        let mut sums = [0_u64; ExitKind::COUNT];
        for page in &self.info_pages {
            for (kind, sum) in sums.iter_mut().enumerate() {
                *sum += memory::phys().load_u64(exit_counter(*page, kind));
            }
        }
        sums
    }

    /// What has been counted since it was made.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            exits: self.exits(),
            doorbells: self.endpoint.counts(),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // First the devices let go of its RAM.
        self.devices.detach();
        // The tables go back to the store; the frames follow as the fields are dropped. A later VM whose EPT root lies in the
        // same frame invalidates when its vCPUs are loaded.
        self.ept.destroy(&Tables);
    }
}
