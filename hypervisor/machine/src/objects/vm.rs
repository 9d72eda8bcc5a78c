//! VMs on the machine: their frames, their EPT, and what is told of them. How they begin and end is `lifecycle`'s business.
//!
//! Concurrency: a [`Vm`] is shared by the CPUs of its vCPUs; its memory is behind one lock, everything else is atomic or set
//! once.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use guest_abi::{ExitKind, InfoPage, PAGE_BYTES, boot};
use nagaya_mem::{Gva, Hpa, Owner};
use nagaya_vmm::config::VmConfig;
use nagaya_vmm::layout::Layout;
use nagaya_vmm::outcome::Cause;
use nagaya_vmm::shared::{Backing, Plan};
use spin::Mutex;

use crate::host::cpu::time;
use crate::host::memory::{self, OwnedFrames};
use crate::objects::debugger::Debugger;
use crate::objects::devices::console::GuestConsole;
use crate::objects::devices::ram::Ram;
use crate::objects::devices::{self, Attached, Devices, ResetPersistentDevices};
use crate::objects::group::{Endpoint, Group};
use crate::objects::handle::Handle;
use crate::objects::identity::{Counts, Identity};
use crate::objects::image;
use crate::objects::space::Space;
use crate::vmx::bitmaps::Bitmaps;
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

impl Membership {
    /// Joins the group that a VM is to be in, if it is to be in one.
    fn join(identity: &Identity, endpoint: &Arc<Endpoint>) -> Result<Option<Membership>, String> {
        let Some(group) = &identity.group else {
            return Ok(None);
        };
        let (index, incarnation) = group
            .join(
                u32::from(identity.id),
                identity.config.vcpus,
                &identity.config.name,
                endpoint,
                identity.place(),
            )
            .ok_or_else(|| format!("group {:?} is full", group.name))?;
        identity.set_place(index);
        Ok(Some(Membership {
            group: Arc::clone(group),
            index,
            incarnation,
        }))
    }
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
    /// Its EPT. Changed only under `memory`'s lock, or its family's.
    pub space: Arc<Space>,
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
    pub bitmaps: Arc<Bitmaps>,
    /// Its vCPUs as others know them.
    pub vcpus: Vec<Arc<Handle>>,
    /// vCPUs that have been started and not left.
    running: AtomicU32,
    /// One of its vCPUs makes a child.
    pub is_forking: AtomicBool,
    /// Set once, by whoever ends the VM.
    cause: Mutex<Option<Cause>>,
    ending: AtomicBool,
    /// Its console.
    pub console: Arc<GuestConsole>,
    /// Its devices.
    pub devices: Attached,
    /// Its info pages, vCPU 0 first.
    pub info_pages: Vec<Hpa>,
    /// What a debugger has set in it.
    pub debugger: Debugger,
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

fn out_of_memory_for(what: &str) -> String {
    format!("there is not enough memory for {what}")
}

/// What each life of a VM has for itself, whatever its RAM and its devices are like.
struct Own {
    frames: OwnedFrames,
    vcpus: Vec<Arc<Handle>>,
    info_pages: Vec<Hpa>,
    endpoint: Arc<Endpoint>,
}

impl Own {
    fn new(identity: &Identity) -> Result<Own, String> {
        let (id, config) = (identity.id, &identity.config);
        let mut frames = OwnedFrames::new(Owner::Vm(id));
        let vcpus: Vec<_> = (0..config.vcpus)
            .map(|index| Arc::new(Handle::new(id, index)))
            .collect();
        let info_pages = (0..config.vcpus)
            .map(|_| frames.take(1, PAGE_BYTES))
            .collect::<Option<_>>()
            .ok_or_else(|| out_of_memory_for("info pages"))?;
        let group = identity.group.as_ref();
        let endpoint = Arc::new(Endpoint::new(
            vcpus.clone(),
            group.map_or(1, |group| group.doorbells_per_second),
            config.kind.is_pc(),
        ));
        Ok(Own {
            frames,
            vcpus,
            info_pages,
            endpoint,
        })
    }

    fn attach(
        &self,
        identity: &Identity,
        ram: Ram,
        kept: &ResetPersistentDevices,
    ) -> Result<Attached, String> {
        let owner = devices::Owner {
            id: identity.id,
            group: identity.group.as_ref().map(|group| group.name.as_str()),
            vcpus: &self.vcpus,
            ram,
            console: &identity.console,
            kept,
            deterministic: identity.deterministic,
        };
        Devices::attach(&identity.config, owner)
    }
}

/// What a life is made of besides.
struct Parts {
    own: Own,
    space: Arc<Space>,
    memory: Memory,
    memory_bytes: u64,
    devices: Attached,
    membership: Option<Membership>,
    bitmaps: Arc<Bitmaps>,
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
        let space = Space::new(identity.family.as_ref());
        let space = Arc::new(space.map_err(|_| out_of_memory_for("EPT tables"))?);
        let (backing, ram) = identity.take_ram(&space)?;
        let own = Own::new(identity)?;
        // Before the others of the group hear of it: what can be had is had.
        let devices = own.attach(identity, ram, kept)?;
        let membership = Membership::join(identity, &own.endpoint)?;
        let member_index = membership
            .as_ref()
            .map(|membership| membership.index as u32);
        let start = image::load(id, config, member_index, &backing)?;
        let bitmaps = Arc::new(Bitmaps::new().ok_or_else(|| out_of_memory_for("bitmaps"))?);
        let vm = Vm::assemble(
            identity,
            Parts {
                own,
                space,
                memory_bytes: backing.bytes(),
                memory: Memory {
                    backing,
                    shared: None,
                },
                devices,
                membership,
                bitmaps,
            },
        )?;
        Ok((vm, start))
    }

    /// A life of a VM that is as `parent` is, whose vCPUs do not run meanwhile, without its own vCPUs yet. It has joined its group, and
    /// has the region where the parent has it.
    ///
    /// # Errors
    /// Why it cannot be: nothing of it is left.
    pub fn fork(parent: &Vm, identity: &Arc<Identity>) -> Result<Arc<Vm>, String> {
        let memory = parent.memory.lock();
        let space = parent.space.fork();
        let space = Arc::new(space.map_err(|_| out_of_memory_for("tables"))?);
        let own = Own::new(identity)?;
        own.endpoint.set_like(&parent.endpoint);
        let ram = Ram::of_family(&space, parent.layout);
        let devices = own.attach(identity, ram, &ResetPersistentDevices::default())?;
        let membership = Membership::join(identity, &own.endpoint)?;
        let shared = memory.shared.clone();
        if let (Some(membership), Some(plan)) = (&membership, &shared) {
            let index = membership.index;
            membership
                .group
                .update(|state, page| state.mapped(page, index, plan.va));
        }
        Vm::assemble(
            identity,
            Parts {
                own,
                space,
                memory_bytes: parent.memory_bytes,
                memory: Memory {
                    backing: Backing::new(Vec::new(), parent.layout),
                    shared,
                },
                devices,
                membership,
                // Nobody changes them.
                bitmaps: Arc::clone(&parent.bitmaps),
            },
        )
    }

    fn assemble(identity: &Arc<Identity>, parts: Parts) -> Result<Arc<Vm>, String> {
        let config = &identity.config;
        let vm = Arc::new(Vm {
            identity: Arc::clone(identity),
            id: identity.id,
            name: config.name.clone(),
            space: parts.space,
            memory_bytes: parts.memory_bytes,
            layout: config.layout(),
            memory: Mutex::new(parts.memory),
            membership: parts.membership,
            endpoint: parts.own.endpoint,
            deterministic: identity.deterministic,
            is_bare: config.bare,
            bitmaps: parts.bitmaps,
            vcpus: parts.own.vcpus,
            running: AtomicU32::new(0),
            is_forking: AtomicBool::new(false),
            cause: Mutex::new(None),
            ending: AtomicBool::new(false),
            console: Arc::clone(&identity.console),
            devices: parts.devices,
            info_pages: parts.own.info_pages,
            debugger: Debugger::default(),
            config: config.clone(),
            panicked: AtomicBool::new(false),
            began_at: time::ticks(),
            frames: parts.own.frames,
        });
        vm.show_platform_pages()
            .map_err(|error| format!("its info pages cannot be mapped: {error:?}"))?;
        Ok(vm)
    }

    /// The last check before the hardware may reach them: the group page of its group, its own info pages.
    fn show_platform_pages(&self) -> Result<(), nagaya_mem::EptError> {
        let _memory = self.memory.lock();
        if let Some(membership) = &self.membership {
            self.space
                .show(boot::GROUP_PAGE_GPA, membership.group.page)?;
        }
        for (index, page) in self.info_pages.iter().enumerate() {
            self.space
                .show(boot::INFO_PAGE_GPA + index as u64 * PAGE_BYTES, *page)?;
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
        // First the devices let go of its RAM; the tables, and then the frames, follow as the fields are dropped.
        self.devices.detach();
    }
}
