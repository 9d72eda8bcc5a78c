//! What of a VM outlives its resets: number and name, share and account, console with its allowance, RAM, place in its group,
//! counts. Between two lives a VM is this alone.
//!
//! Concurrency: shared by whoever knows the VM; each field has its own lock, all of them leaves, or is atomic.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use guest_abi::{ExitKind, PAGE_BYTES};
use nagaya_mem::{Hpa, Owner, PageSize};
use nagaya_sched::{Account, Affinity, CpuId, CpuSet};
use nagaya_vmm::config::VmConfig;
use nagaya_vmm::control::DoorbellCounts;
use nagaya_vmm::outcome::Cause;
use nagaya_vmm::process::Children;
use nagaya_vmm::restarts::{DEFAULT_LIMIT, Restarts};
use nagaya_vmm::shared::Backing;
use spin::Mutex;

use crate::host::cpu::percpu;
use crate::host::cpu::time;
use crate::host::cpu::{jobs, worker};
use crate::host::memory::{self, OwnedFrames, Tables};
use crate::objects::devices::{self, console::GuestConsole};
use crate::objects::family::Family;
use crate::objects::group::Group;
use crate::objects::scheduling;
use crate::objects::space::Space;

/// What an operator wants of a VM that is between two lives, or on its way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    None,
    /// It is to be gone.
    Destroy,
}

/// What becomes of a VM whose life has ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is made again, not before that TSC value.
    Again {
        /// TSC value.
        not_before: u64,
    },
    /// It is over, for that cause.
    Over(Cause),
}

/// What is counted of a VM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Exits of all vCPUs by kind.
    pub exits: [u64; ExitKind::COUNT],
    /// Doorbells that it rang.
    pub doorbells: DoorbellCounts,
}

impl Counts {
    fn and(mut self, other: &Counts) -> Counts {
        for (sum, count) in self.exits.iter_mut().zip(other.exits) {
            *sum += count;
        }
        self.doorbells.sent += other.doorbells.sent;
        self.doorbells.delivered += other.doorbells.delivered;
        self.doorbells.throttled += other.doorbells.throttled;
        self
    }
}

/// RAM that stays a VM's over its resets.
#[derive(Debug)]
struct Ram {
    /// In pieces of 2 MiB, in the guest's order.
    chunks: Vec<Hpa>,
    /// A life has had it since it was zeroed.
    is_used: bool,
    /// Given back with the identity.
    #[expect(dead_code, reason = "held for its Drop")]
    frames: OwnedFrames,
}

/// What others a new VM belongs to.
#[derive(Clone, Debug, Default)]
pub struct Kin<'a> {
    /// Its group.
    pub group: Option<&'a Arc<Group>>,
    /// Its family.
    pub family: Option<Arc<Family>>,
    /// The VM that it is a child of, in whose family it has a place.
    pub parent: Option<&'a Arc<Identity>>,
}

/// A VM over all its lives.
#[derive(Debug)]
pub struct Identity {
    /// Its number, from 1, also its VPID's base and the owner of its frames.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// What it is made from.
    pub config: VmConfig,
    /// Its group, which stays for as long as it does.
    pub group: Option<Arc<Group>>,
    /// The family that it shares memory with, if it may.
    pub family: Option<Arc<Family>>,
    /// The VM that it is a child of.
    parent: Weak<Identity>,
    /// It is a child of another.
    pub is_child: bool,
    /// Its children.
    pub children: Mutex<Children>,
    /// RDRAND and RDSEED are hidden.
    pub deterministic: bool,
    /// Its console.
    pub console: Arc<GuestConsole>,
    /// Its weight and its cap in percent, as they are now.
    pub share: Mutex<(u32, u32)>,
    /// Where each vCPU may run.
    pub affinities: Mutex<Vec<Affinity>>,
    /// The operator has stopped it.
    pub paused: AtomicBool,
    /// TSC value at which it was made.
    pub made_at: u64,
    /// Lives that have begun.
    lives: AtomicU32,
    ram: Mutex<Ram>,
    /// Its index in its group, once it has one.
    place: Mutex<Option<usize>>,
    past: Mutex<Counts>,
    restarts: Mutex<Restarts>,
    order: Mutex<Order>,
}

impl Identity {
    /// A VM that has not lived yet: nothing of it has been made. If it is not to run outside VMX, the scheduler is to know it.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn new(
        id: u16,
        config: &VmConfig,
        kin: Kin<'_>,
        deterministic: bool,
        affinities: Vec<Affinity>,
    ) -> Result<Arc<Identity>, String> {
        let physical_bits = core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xFF;
        if !config.layout().fits(physical_bits) {
            return Err(format!(
                "its {} MiB of RAM cannot be addressed: the CPU has {physical_bits} bits for it",
                config.memory_bytes >> 20
            ));
        }
        if config.vcpus == 0 {
            return Err(String::from("it has no vCPU"));
        }
        Ok(Arc::new(Identity {
            id,
            name: config.name.clone(),
            config: config.clone(),
            group: kin.group.map(Arc::clone),
            family: kin.family,
            parent: kin.parent.map_or_else(Weak::new, Arc::downgrade),
            is_child: kin.parent.is_some(),
            children: Mutex::new(Children::default()),
            deterministic,
            console: Arc::new(GuestConsole::new(&config.name)),
            share: Mutex::new((config.weight, config.cap_percent)),
            affinities: Mutex::new(affinities),
            paused: AtomicBool::new(false),
            made_at: time::ticks(),
            lives: AtomicU32::new(0),
            ram: Mutex::new(Ram {
                chunks: Vec::new(),
                is_used: false,
                frames: OwnedFrames::new(Owner::Vm(id)),
            }),
            place: Mutex::new(None),
            past: Mutex::new(Counts::default()),
            restarts: Mutex::new(Restarts::new(config.restarts.unwrap_or(DEFAULT_LIMIT))),
            order: Mutex::new(Order::None),
        }))
    }

    /// The VM that it is a child of, if that is not over.
    #[must_use]
    pub fn parent(&self) -> Option<Arc<Identity>> {
        self.parent.upgrade()
    }

    /// Whether it descends from that VM, by parents that are not over.
    #[must_use]
    pub fn descends_from(&self, id: u16) -> bool {
        let mut next = self.parent();
        while let Some(ancestor) = next {
            if ancestor.id == id {
                return true;
            }
            next = ancestor.parent();
        }
        false
    }

    /// Its RAM, zeroed, for a new life, mapped in `space`. In slices if a worker does it.
    ///
    /// # Errors
    /// That there is not enough memory.
    pub fn take_ram(&self, space: &Arc<Space>) -> Result<(Backing, devices::ram::Ram), String> {
        let layout = self.config.layout();
        let map = |backing: &Backing| {
            // The last check before the hardware may reach it: every frame is this VM's, or its family's and held by nobody else.
            let mapped = backing.map_all(&space.ept, &Tables);
            mapped
                .map(|flush| flush.complete(&Tables))
                .map_err(|error| format!("its memory cannot be mapped: {error:?}"))
        };
        let Some(family) = &self.family else {
            let chunks = self.take_chunks()?;
            let ram = devices::ram::Ram::new(chunks.clone(), layout);
            let backing = Backing::new(chunks, layout);
            map(&backing)?;
            return Ok((backing, ram));
        };
        if !family.has_room_for(self.config.memory_bytes) {
            return Err(self.no_memory());
        }
        let mut frames = family.frames();
        let chunks = allocate_ram(&mut frames, self.config.memory_bytes);
        let backing = Backing::new(chunks.ok_or_else(|| self.no_memory())?, layout);
        map(&backing)?;
        space.adopt(frames);
        Ok((backing, devices::ram::Ram::of_family(space, layout)))
    }

    fn no_memory(&self) -> String {
        format!(
            "there is not enough memory for its {} MiB of RAM",
            self.config.memory_bytes >> 20
        )
    }

    fn take_chunks(&self) -> Result<Vec<Hpa>, String> {
        let (chunks, is_used) = {
            let ram = self.ram.lock();
            (ram.chunks.clone(), ram.is_used)
        };
        if !chunks.is_empty() {
            if is_used {
                for chunk in &chunks {
                    if self.is_doomed() {
                        return Err(String::from("it is to be gone"));
                    }
                    memory::zero(*chunk, PageSize::Size2M.bytes() / PAGE_BYTES);
                }
            }
            self.ram.lock().is_used = true;
            return Ok(chunks);
        }
        let mut frames = OwnedFrames::new(Owner::Vm(self.id));
        let chunks = allocate_ram(&mut frames, self.config.memory_bytes);
        let chunks = chunks.ok_or_else(|| self.no_memory())?;
        *self.ram.lock() = Ram {
            chunks: chunks.clone(),
            is_used: true,
            frames,
        };
        Ok(chunks)
    }

    /// Its index in its group, once it has joined.
    #[must_use]
    pub fn place(&self) -> Option<usize> {
        *self.place.lock()
    }

    /// Notes its index in its group: it keeps it.
    pub fn set_place(&self, index: usize) {
        *self.place.lock() = Some(index);
    }

    /// A life begins. True for the first.
    pub fn begins(&self) -> bool {
        self.lives.fetch_add(1, Ordering::SeqCst) == 0
    }

    /// Lives that have begun.
    #[must_use]
    pub fn lives(&self) -> u32 {
        self.lives.load(Ordering::SeqCst)
    }

    /// Whether one has.
    #[must_use]
    pub fn has_lived(&self) -> bool {
        self.lives() != 0
    }

    /// Resets so far, whoever asked for them.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.lives.load(Ordering::SeqCst).saturating_sub(1)
    }

    /// Whether it is to be gone: it is not made again, and making it may stop.
    #[must_use]
    pub fn is_doomed(&self) -> bool {
        *self.order.lock() == Order::Destroy
    }

    /// It is to be gone.
    pub fn doom(&self) {
        *self.order.lock() = Order::Destroy;
    }

    /// Whether a triple fault resets it.
    #[must_use]
    pub fn restarts_on_triple_fault(&self) -> bool {
        self.config.restarts.is_some()
    }

    /// Decides what becomes of it after a life of so many ticks that ended for that cause.
    pub fn after(&self, cause: Cause, lived_ticks: u64) -> Fate {
        if self.is_doomed() {
            return Fate::Over(Cause::Destroyed);
        }
        let now = time::ticks();
        let mut restarts = self.restarts.lock();
        match cause {
            Cause::OperatorReset => {
                restarts.forget();
                Fate::Again { not_before: now }
            }
            Cause::Reset => match restarts.next_pause_ms(lived_ticks / time::khz().max(1)) {
                Ok(pause) => Fate::Again {
                    not_before: now.saturating_add(pause.saturating_mul(time::khz())),
                },
                Err(too_many) => Fate::Over(Cause::ResetTooOften {
                    limit: too_many.limit,
                }),
            },
            other => Fate::Over(other),
        }
    }

    /// Adds what a life counted that is over.
    pub fn remember(&self, life: &Counts) {
        let mut past = self.past.lock();
        *past = past.and(life);
    }

    /// What has been counted in all lives, with the one that is there.
    #[must_use]
    pub fn counts(&self, life: Option<&Counts>) -> Counts {
        let past = *self.past.lock();
        life.map_or(past, |life| past.and(life))
    }

    /// Its account in the scheduler over all lives.
    #[must_use]
    pub fn account(&self) -> Account {
        scheduling::vm_account(self.id)
    }

    /// Has work done for it in slices, at its expense: on a CPU that it may run on, one that sleeps if there is such.
    pub fn work(&self, not_before: u64, work: impl FnOnce() + Send + 'static) {
        let hard = self
            .affinities
            .lock()
            .first()
            .map_or(CpuSet::EMPTY, |affinity| affinity.hard);
        work_for(self.id, hard, not_before, work);
    }

    /// What is to be done for it later is done now.
    pub fn hurry(&self) {
        percpu::all().for_each(|cpu| jobs::hurry(cpu, self.id));
    }
}

/// Has work done in slices for a VM, on one of these CPUs: one that sleeps if there is such.
pub fn work_for(payer: u16, cpus: CpuSet, not_before: u64, work: impl FnOnce() + Send + 'static) {
    let job = worker::Job {
        payer,
        not_before,
        work: Box::new(work),
    };
    let usable = percpu::all()
        .filter(|cpu| cpu.online.load(Ordering::SeqCst) && cpus.contains(CpuId(cpu.index)));
    let chosen = usable.min_by_key(|cpu| {
        let is_busy = !cpu.sleeping.load(Ordering::SeqCst);
        (cpu.worker.load(), is_busy)
    });
    if let Some(cpu) = chosen.or_else(|| percpu::get(0)) {
        jobs::add(cpu, job);
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let (Some(group), Some(index)) = (&self.group, *self.place.get_mut()) {
            group.give_up(index);
        }
        if !self.config.bare {
            scheduling::vm_ended(self.id);
        }
        if let Some(family) = self.family.as_ref().filter(|_| self.is_child) {
            family.leave();
        }
    }
}

fn allocate_ram(frames: &mut OwnedFrames, bytes: u64) -> Option<Vec<Hpa>> {
    let (large, gib) = (PageSize::Size2M.bytes(), PageSize::Size1G.bytes());
    let mut chunks = Vec::with_capacity((bytes / large) as usize);
    let mut left = bytes;
    let mut take = |left: &mut u64, piece: u64, align: u64| {
        let start = frames.take(piece / PAGE_BYTES, align)?;
        chunks.extend((0..piece / large).map(|index| Hpa::new(start.get() + index * large)));
        *left -= piece;
        Some(())
    };
    // Whole aligned GiB first, where there are such: then the EPT maps them as one page each.
    while left >= gib && take(&mut left, gib, gib).is_some() {}
    // The rest in one piece if there is one: what a device accesses is found faster then (`ContiguousRanges`).
    let rest = left;
    if rest > 0 && take(&mut left, rest, large).is_none() {
        while left > 0 {
            take(&mut left, large, large)?;
        }
    }
    Some(chunks)
}
