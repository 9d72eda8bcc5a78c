//! VMs on the machine: their frames, EPT, vCPUs, and their end.
//!
//! Concurrency: a [`Vm`] is shared by the CPUs of its vCPUs; its memory is behind one lock, everything else is atomic or set
//! once. A [`Vcpu`] belongs to one CPU at a time. The last vCPU to leave destroys the VM.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use guest_abi::info::INFO_MAGIC;
use guest_abi::{ABI_VERSION, ExitKind, InfoPage, PAGE_BYTES, boot, pack_name};
use nagaya_mem::{
    Ept, EptFeatures, Flush, Gpa, Gva, HostMemory, Hpa, MemoryType, Owner, PageSize, Permissions,
};
use nagaya_vmm::config::VmConfig;
use nagaya_vmm::cpuid::CpuidPolicy;
use nagaya_vmm::exit::ExitSnapshot;
use nagaya_vmm::loader::{self, GuestWriter, Identity};
use nagaya_vmm::msr::MsrState;
use nagaya_vmm::outcome::Cause;
use nagaya_vmm::shared::{Backing, Plan};
use spin::Mutex;
use x86_defs::controls::Secondary;
use x86_defs::msr::{self, EptVpidCapabilities};

use crate::cpu::percpu::{self, PerCpu};
use crate::cpu::time;
use crate::group::{Endpoint, Group};
use crate::memory::{self, OwnedFrames, Tables};
use crate::vmx::Bitmaps;
use crate::vmx::capabilities;
use crate::vmx::entry::GuestRegisters;
use crate::vmx::setup::{Binding, Start};
use crate::vmx::vmcs::Vmcs;
use crate::vmx::xstate::ExtendedState;
use crate::{console, event, stop};

/// Longest line of a guest's console that is kept before it is sent without its end.
const LINE_BYTES: usize = 512;

/// A VM's memory: what changes under its lock.
#[derive(Debug)]
pub struct Memory {
    /// Its own frames by guest-physical address.
    pub backing: Backing,
    /// Where it has the group's region, if it has.
    pub shared: Option<Plan>,
}

/// A VM's place in a group.
#[derive(Debug)]
pub struct Membership {
    /// The group.
    pub group: Arc<Group>,
    /// The VM's index in it.
    pub index: usize,
}

impl Drop for Membership {
    /// A VM that could not be made after it had joined leaves as one that died.
    fn drop(&mut self) {
        if self
            .group
            .update(|state, _| state.state(self.index).is_alive())
        {
            self.group.ended(self.index, None);
        }
    }
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    /// Its number, from 1, also its VPID's base and the owner of its frames.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Its EPT. Changed only under `memory`'s lock.
    pub ept: Ept,
    /// Its memory.
    pub memory: Mutex<Memory>,
    /// Bytes of RAM; guest-physical addresses below it are plain RAM.
    pub memory_bytes: u64,
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
    pub ept_generation: AtomicU64,
    /// The CPUs its vCPUs are pinned to.
    cpus: Vec<&'static PerCpu>,
    /// vCPUs that have not been started.
    parked: Mutex<Vec<Vcpu>>,
    /// vCPUs that have been started and not left.
    running: AtomicU32,
    /// Set once, by whoever ends the VM.
    cause: Mutex<Option<Cause>>,
    ending: AtomicBool,
    /// The line its console has begun.
    line: Mutex<Vec<u8>>,
    /// Its info pages, vCPU 0 first.
    info_pages: Vec<Hpa>,
    /// Given back when the VM is dropped.
    #[expect(dead_code, reason = "held for its Drop")]
    frames: OwnedFrames,
}

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    /// The VM it is part of.
    pub vm: Arc<Vm>,
    /// Its index.
    pub index: u32,
    /// General registers.
    pub registers: GuestRegisters,
    /// Its VMCS while it is on no CPU.
    pub vmcs: Option<Vmcs>,
    /// State that is switched with it.
    pub extended: ExtendedState,
    /// Where it starts; taken by its first load.
    pub start: Option<Start>,
    /// Answers of CPUID.
    pub cpuid: CpuidPolicy,
    /// Emulated MSRs.
    pub msrs: MsrState,
    /// TSC value at which HLT ends.
    pub deadline: Option<u64>,
    /// Generation of the EPT that its CPU's caches reflect.
    pub ept_seen: u64,
    /// Its info page.
    pub info_page: Hpa,
    /// The last exit, for the report.
    pub last_exit: ExitSnapshot,
}

struct Loading<'a> {
    backing: &'a Backing,
}

impl GuestWriter for Loading<'_> {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        let mut gpa = gpa;
        while !rest.is_empty() {
            let Some(frame) = self.backing.own_frame(Gpa::new(gpa)) else {
                return false;
            };
            let (now, later) =
                rest.split_at(((PAGE_BYTES - gpa % PAGE_BYTES) as usize).min(rest.len()));
            memory::phys().write(frame, now);
            gpa += now.len() as u64;
            rest = later;
        }
        true
    }
}

static LIVE: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static STARTED: AtomicU32 = AtomicU32::new(0);

fn take_ram(frames: &mut OwnedFrames, bytes: u64) -> Option<Vec<Hpa>> {
    let (large, gib) = (PageSize::Size2M.bytes(), PageSize::Size1G.bytes());
    let mut chunks = Vec::with_capacity((bytes / large) as usize);
    let mut left = bytes;
    // Whole aligned GiB first, where there are such: then the EPT maps them as one page each.
    while left >= gib {
        let Some(start) = frames.take(gib / PAGE_BYTES, gib) else {
            break;
        };
        chunks.extend((0..gib / large).map(|index| Hpa::new(start.get() + index * large)));
        left -= gib;
    }
    while left > 0 {
        chunks.push(frames.take(large / PAGE_BYTES, large)?);
        left -= large;
    }
    Some(chunks)
}

impl Vm {
    /// Makes a VM and its vCPUs, loads its image, and joins its group.
    ///
    /// # Errors
    /// Why this VM cannot be: the message names the value.
    pub fn create(
        id: u16,
        config: &VmConfig,
        image: &[u8],
        group: Option<&Arc<Group>>,
        deterministic: bool,
    ) -> Result<Arc<Vm>, String> {
        let out = |what: &str| format!("there is not enough memory for {what}");
        let mut frames = OwnedFrames::new(Owner::Vm(id));
        let chunks = take_ram(&mut frames, config.memory_bytes)
            .ok_or_else(|| out(&format!("its {} MiB of RAM", config.memory_bytes >> 20)))?;
        let backing = Backing::new(chunks);
        let cpus: Vec<_> = config
            .cpus
            .iter()
            .filter_map(|cpu| percpu::get(*cpu))
            .collect();
        let first_cpu = *cpus
            .first()
            .ok_or_else(|| format!("CPU {:?} is not there", config.cpus))?;
        if cpus.len() != config.cpus.len() {
            return Err(format!("one of the CPUs {:?} is not there", config.cpus));
        }
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
            first_cpu,
            group.map_or(1, |group| group.doorbells_per_second),
        ));
        let membership = match group {
            None => None,
            Some(group) => {
                let index = group
                    .join(u32::from(id), config.vcpus, &config.name, &endpoint)
                    .ok_or_else(|| format!("group {:?} is full", group.name))?;
                Some(Membership {
                    group: Arc::clone(group),
                    index,
                })
            }
        };
        let identity = Identity {
            vm_id: u32::from(id),
            name: pack_name(&config.name),
            memory_bytes: config.memory_bytes,
            vcpus: config.vcpus,
            member_index: membership
                .as_ref()
                .map(|membership| membership.index as u32),
            tsc_khz: time::khz(),
            cmdline: &config.cmdline,
            bare_hypercall: if config.bare {
                crate::bare::hypercall_address()
            } else {
                0
            },
        };
        let loaded = loader::load(image, &identity, &mut Loading { backing: &backing })
            .map_err(|error| format!("{error}"))?;
        let bitmaps = Bitmaps::new().ok_or_else(|| out("bitmaps"))?;
        // From here on the tables are the VM's, which frees them when it is dropped.
        let ept = Ept::new(&Tables, features).map_err(|_| out("EPT tables"))?;
        let vm = Arc::new(Vm {
            id,
            name: config.name.clone(),
            ept,
            memory_bytes: backing.bytes(),
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
            cpus,
            parked: Mutex::new(Vec::new()),
            running: AtomicU32::new(0),
            cause: Mutex::new(None),
            ending: AtomicBool::new(false),
            line: Mutex::new(Vec::new()),
            info_pages,
            frames,
        });
        vm.map_memory()
            .map_err(|error| format!("its memory cannot be mapped: {error:?}"))?;
        for index in 0..config.vcpus {
            let start = (index == 0).then(|| Start::boot(loaded.entry));
            let Some(vcpu) = Vcpu::create(&vm, index, start) else {
                // vCPUs hold their VM: without this it would never be dropped.
                vm.parked.lock().clear();
                return Err(out("a vCPU's structures"));
            };
            vm.parked.lock().push(vcpu);
        }
        Ok(vm)
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

    /// Hands vCPU 0 to its CPU.
    pub fn start(self: &Arc<Vm>) {
        LIVE.fetch_add(1, Ordering::SeqCst);
        STARTED.fetch_add(1, Ordering::SeqCst);
        if let Some(membership) = &self.membership {
            membership
                .group
                .update(|state, page| state.started(page, membership.index));
        }
        let cpu = self.cpus.first().map_or(0, |cpu| cpu.index);
        event::send(
            event::new("vm-start")
                .string("vm", &self.name)
                .number("cpu", cpu),
        );
        let handed = self.start_vcpu(0, None);
        debug_assert!(handed, "vCPU 0 is parked at the start");
    }

    /// Makes the start of vCPU 0 one that every CPU refuses (a CR3 beyond physical addresses), for a self-test.
    pub fn spoil_start(&self) {
        for start in self
            .parked
            .lock()
            .iter_mut()
            .filter_map(|vcpu| vcpu.start.as_mut())
        {
            start.cr3 = 1 << 62;
        }
    }

    /// Hands a parked vCPU to its CPU, starting at `start` if that is given. `false` if it is not parked.
    pub fn start_vcpu(&self, index: u32, start: Option<(Start, u64)>) -> bool {
        let mut vcpu = {
            let mut parked = self.parked.lock();
            let Some(at) = parked.iter().position(|vcpu| vcpu.index == index) else {
                return false;
            };
            parked.swap_remove(at)
        };
        if let Some((start, argument)) = start {
            vcpu.start = Some(start);
            vcpu.registers.rdi = argument;
        }
        let Some(cpu) = self.cpus.get(index as usize) else {
            return false;
        };
        self.running.fetch_add(1, Ordering::SeqCst);
        *cpu.inbox.lock() = Some(Box::new(vcpu));
        cpu.kick();
        true
    }

    /// Ends the VM for that cause, unless it is ending already, and calls its other vCPUs back.
    pub fn end(&self, cause: Cause) {
        {
            let mut slot = self.cause.lock();
            if slot.is_some() {
                return;
            }
            *slot = Some(cause);
        }
        self.ending.store(true, Ordering::SeqCst);
        let me = PerCpu::current().index;
        for cpu in self.cpus.iter().filter(|cpu| cpu.index != me) {
            // Urgent: a guest with interrupts off must not be able to outlive its VM.
            cpu.kick_urgently();
        }
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

    /// Carries out what a change of the EPT owes: this CPU and those of the VM's other vCPUs forget old translations.
    ///
    /// A CPU that is in the guest is called out by NMI and looks at the generation before it enters again; a CPU in the
    /// hypervisor does so by itself. Either way, once `in_guest` was seen false, the guest runs no more on what is stale.
    pub fn flush(&self, flush: Flush, mine: &mut u64) {
        if flush.needs_invalidation() {
            let generation = self.ept_generation.fetch_add(1, Ordering::SeqCst) + 1;
            crate::vmx::invalidate::ept(self.ept.eptp());
            *mine = generation;
            let me = PerCpu::current().index;
            for cpu in self.cpus.iter().filter(|cpu| cpu.index != me) {
                cpu.kicked.store(true, Ordering::SeqCst);
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

    /// The address at which the VM has the region, if it has.
    #[must_use]
    pub fn shared_va(&self) -> Option<Gva> {
        self.memory.lock().shared.as_ref().map(|plan| plan.va)
    }

    /// Takes console text: whole lines are sent, the rest waits for its end.
    pub fn console_text(&self, bytes: &[u8]) {
        let mut line = self.line.lock();
        for byte in bytes {
            if *byte == b'\n' || line.len() >= LINE_BYTES {
                console::guest_line(&self.name, &line);
                line.clear();
            }
            if *byte != b'\n' && *byte != b'\r' {
                line.push(*byte);
            }
        }
    }

    /// Exits of all vCPUs by kind.
    fn exits(&self) -> [u64; ExitKind::COUNT] {
        let mut sums = [0_u64; ExitKind::COUNT];
        for page in &self.info_pages {
            for (kind, sum) in sums.iter_mut().enumerate() {
                *sum += memory::phys().load_u64(exit_counter(*page, kind));
            }
        }
        sums
    }

    /// A vCPU has left its CPU for good. The last one reports the VM's end and gives everything back.
    pub fn leave(vcpu: Box<Vcpu>) {
        let vm = Arc::clone(&vcpu.vm);
        drop(vcpu);
        if vm.running.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        vm.parked.lock().clear();
        let cause = vm.cause.lock().unwrap_or(Cause::Killed);
        {
            let mut line = vm.line.lock();
            if !line.is_empty() {
                console::guest_line(&vm.name, &line);
                line.clear();
            }
        }
        let code = if let Cause::Exit(code) = cause {
            Some(code)
        } else {
            None
        };
        let mut end = event::new("vm-end")
            .string("vm", &vm.name)
            .string("cause", cause.word());
        if let Some(code) = code {
            end = end.number("code", code);
        }
        let exits = vm.exits();
        event::send(
            end.display("detail", cause)
                .counts(
                    "exits",
                    ExitKind::ALL
                        .iter()
                        .map(|kind| (kind.name(), exits[*kind as usize])),
                )
                .number("doorbells", vm.endpoint.mailbox.received()),
        );
        if cause.is_success() {
            log::info!("VM {} {cause}", vm.name);
        } else {
            log::warn!("VM {} {cause}", vm.name);
            FAILED.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(membership) = &vm.membership {
            membership.group.ended(membership.index, code);
        }
        debug_assert_eq!(
            Arc::strong_count(&vm),
            1,
            "nobody else holds a VM whose vCPUs have left"
        );
        drop(vm);
        if LIVE.fetch_sub(1, Ordering::SeqCst) == 1 {
            all_ended();
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The tables go back to the store; the frames follow as the fields are dropped. A later VM whose EPT root lies in the
        // same frame invalidates when its vCPUs are loaded.
        self.ept.destroy(&Tables);
    }
}

/// A VM that could not be created: counted as failed, reported, everything else goes on.
pub fn refused(name: &str, reason: &str) {
    FAILED.fetch_add(1, Ordering::SeqCst);
    log::error!("VM {name} is refused: {reason}");
    event::send(
        event::new("vm-end")
            .string("vm", name)
            .string("cause", "refused")
            .string("detail", reason),
    );
}

/// Sends the number of free frames and who holds the others.
pub fn report_frames(when: &str) {
    let counts = memory::frames().counts();
    event::send(
        event::new("frames")
            .string("when", when)
            .number("free", counts.free)
            .number("hypervisor", counts.hypervisor)
            .number("vm", counts.vm)
            .number("group", counts.group),
    );
}

/// Ends the run if no VM is left.
pub fn all_ended() {
    report_frames("after-last-vm");
    let (started, failed) = (
        STARTED.load(Ordering::SeqCst),
        FAILED.load(Ordering::SeqCst),
    );
    if failed == 0 {
        stop::end_run(true, &format!("all {started} VMs ended well"));
    }
    stop::end_run(false, &format!("{failed} VMs did not end well"));
}

/// Keeps the run from ending while VMs are still being started: counts as one VM.
pub fn hold_run() {
    LIVE.fetch_add(1, Ordering::SeqCst);
}

/// Lets the run end.
pub fn release_run() {
    if LIVE.fetch_sub(1, Ordering::SeqCst) == 1 {
        all_ended();
    }
}

fn exit_counter(page: Hpa, kind: usize) -> Hpa {
    Hpa::new(page.get() + offset_of!(InfoPage, exits) as u64 + kind as u64 * 8)
}

impl Vcpu {
    fn create(vm: &Arc<Vm>, index: u32, start: Option<Start>) -> Option<Vcpu> {
        let capabilities = capabilities::get();
        let info_page = *vm.info_pages.get(index as usize)?;
        let at = |offset: usize| Hpa::new(info_page.get() + offset as u64);
        memory::phys().store_u64(at(offset_of!(InfoPage, magic)), INFO_MAGIC);
        memory::phys().store_u64(
            at(offset_of!(InfoPage, abi_version)),
            u64::from(ABI_VERSION) | u64::from(index) << 32,
        );
        let registers = GuestRegisters {
            rdi: boot::BOOT_INFO_GPA,
            ..GuestRegisters::default()
        };
        Some(Vcpu {
            vm: Arc::clone(vm),
            index,
            registers,
            vmcs: Some(Vmcs::new()?),
            extended: ExtendedState::new()?,
            start,
            cpuid: CpuidPolicy {
                vm_id: u32::from(vm.id),
                vcpu: index,
                vcpus: vm.info_pages.len() as u32,
                tsc_khz: u32::try_from(time::khz()).unwrap_or(u32::MAX),
                in_group: vm.membership.is_some(),
                deterministic: vm.deterministic,
                xcr0: capabilities.xcr0,
                has_rdtscp: capabilities.has(Secondary::ENABLE_RDTSCP),
            },
            msrs: MsrState {
                efer: 0,
                pat: msr::PAT_RESET,
                paging: true,
                misc_enable: 1,
            },
            deadline: None,
            ept_seen: 0,
            info_page,
            last_exit: ExitSnapshot::default(),
        })
    }

    /// What its VMCS names of the VM. Each vCPU has a VPID of its own: up to 8 of them for each VM, none 0.
    #[must_use]
    pub fn binding(&self) -> Binding<'_> {
        Binding {
            eptp: self.vm.ept.eptp(),
            vpid: self.vm.id * boot::MAX_VCPUS as u16 + self.index as u16,
            bitmaps: &self.vm.bitmaps,
            deterministic: self.vm.deterministic,
        }
    }

    /// Counts an exit, where the guest can read it.
    #[inline]
    pub fn count(&self, kind: ExitKind) {
        let at = exit_counter(self.info_page, kind as usize);
        memory::phys().store_u64(at, memory::phys().load_u64(at) + 1);
    }

    /// Brings the info page's counter of doorbells up to date.
    pub fn publish_doorbells(&self) {
        let at = Hpa::new(self.info_page.get() + offset_of!(InfoPage, doorbells_received) as u64);
        memory::phys().store_u64(at, self.vm.endpoint.mailbox.received());
    }
}

const _: () = assert!(offset_of!(InfoPage, abi_version) == 8 && offset_of!(InfoPage, vcpu) == 12);
