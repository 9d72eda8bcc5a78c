//! vCPUs: what is switched with them.
//!
//! Concurrency: a [`Vcpu`] belongs to one CPU, or to the dispatcher while it is on none. What others may know of it is in its
//! [`Handle`].

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::info::INFO_MAGIC;
use guest_abi::{ABI_VERSION, ExitKind, InfoPage, boot};
use nagaya_devices::GuestRam;
use nagaya_devices::apic::{ApicConfig, EoiWord, LocalApic};
use nagaya_mem::{Gpa, Hpa};
use nagaya_vmm::control::Registers;
use nagaya_vmm::cpuid::{self, CpuidPolicy};
use nagaya_vmm::kvm_clock::{self, Scale};
use nagaya_vmm::msr::MsrState;
use nagaya_vmm::outcome::Block;

use crate::arch::GuestRegisters;
use crate::host::cpu::{time, wall_clock};
use crate::host::memory::{self, Whose};
use crate::objects::code::DecodedInsnCache;
use crate::objects::debugger::Debugged;
use crate::objects::devices::board::Board;
use crate::objects::handle::Handle;
use crate::objects::snapshot::{RecentExits, Snapshot};
use crate::objects::vm::{Vm, exit_counter};
use crate::vmx::capabilities;
use crate::vmx::guest_area::GuestArea;
use crate::vmx::setup::Binding;
use crate::vmx::start::Start;
use crate::vmx::virtual_apic::{self, VirtualApic};
use crate::vmx::vmcs::Vmcs;
use crate::vmx::xstate::{self, ExtendedState};

/// Where an injected interrupt came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The local APIC.
    Apic,
    /// The PIC, past the APIC.
    Pic,
    /// A doorbell, past the APIC.
    Doorbell,
}

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    /// The VM it is part of.
    pub vm: Arc<Vm>,
    /// Its index.
    pub index: u32,
    /// What others know of it.
    pub handle: Arc<Handle>,
    /// General registers.
    pub registers: GuestRegisters,
    /// Its VMCS while it is on no CPU.
    pub vmcs: Option<Vmcs>,
    /// State that is switched with it.
    pub extended: ExtendedState,
    /// Where it starts; taken by its first load.
    pub start: Option<Start>,
    /// Or as which other vCPU; taken likewise.
    pub forked: Option<Box<GuestArea>>,
    /// What it waits for, if it does.
    pub waiting: Option<Block>,
    /// Answers of CPUID.
    pub cpuid: CpuidPolicy,
    /// Emulated MSRs.
    pub msrs: MsrState,
    /// Its local APIC.
    pub apic: LocalApic,
    /// The word of the guest's by which it ends interrupts without an exit.
    pub eoi_word: EoiWord,
    /// What of it the CPU keeps.
    pub virtual_apic: VirtualApic,
    /// The interrupt that was injected last, to be taken back if an exit cuts its delivery short.
    pub injected: Option<(u8, Source)>,
    /// An interrupt of the PIC's that has been acknowledged and not delivered.
    pub pic_vector: Option<u8>,
    /// Instructions that accessed devices: drivers do so in few places.
    pub known: DecodedInsnCache,
    /// NMIs that have not been delivered.
    pub waiting_nmis: u8,
    /// Its VMCS asks for an exit when it can take an interrupt.
    pub window_is_open: bool,
    /// Its VMCS asks for an exit when it can take an NMI.
    pub nmi_window_is_open: bool,
    /// The deadline of its own timers that the preemption timer was set for.
    pub armed_for: Option<u64>,
    /// TSC value at which HLT ends.
    pub deadline: Option<u64>,
    /// The CPU it ran on last, where the translations under its VPID are its own; `None` before the first.
    pub last_cpu: Option<u32>,
    /// Version of the clock that it reads, always even.
    clock_version: u32,
    /// Its info page.
    pub info_page: Hpa,
    /// The counters of its exits there: this vCPU's CPU alone counts.
    exit_counters: &'static [AtomicU64; ExitKind::COUNT],
    /// Ticks stolen before it was reset last, and up to the last time that the guest was told.
    stolen_before: u64,
    stolen: u64,
    /// Its last exits, for reports and dumps.
    pub exits: RecentExits,
    /// What a debugger has done to it.
    pub debugged: Debugged,
}

/// A periodic timer of a guest's APIC comes at most so often in a millisecond: a guest cannot keep its CPU in the hypervisor.
const LEAST_PERIODS_PER_MS: u64 = 10;

impl Vcpu {
    /// Makes vCPU `index` of a VM; vCPU 0 gets a start. `None` if memory runs out.
    #[must_use]
    pub fn create(vm: &Arc<Vm>, index: u32, start: Option<Start>) -> Option<Vcpu> {
        let capabilities = capabilities::get();
        let info_page = *vm.info_pages.get(index as usize)?;
        let handle = Arc::clone(vm.vcpus.get(index as usize)?);
        let at = |offset: usize| Hpa::new(info_page.get() + offset as u64);
        // SAFETY: the info page is a frame that its VM took for it, and that the VM holds.
        unsafe { memory::writer(Whose::Vm) }.store_u64(at(offset_of!(InfoPage, magic)), INFO_MAGIC);
        // SAFETY: as above.
        unsafe { memory::writer(Whose::Vm) }.store_u64(
            at(offset_of!(InfoPage, abi_version)),
            u64::from(ABI_VERSION) | u64::from(index) << 32,
        );
        let tsc_khz = u32::try_from(time::khz()).unwrap_or(u32::MAX);
        let is_pc = vm.config.kind.is_pc();
        let mut apic = LocalApic::new(ApicConfig {
            id: index,
            is_bootstrap: index == 0,
            physical_bits: core::arch::x86_64::__cpuid(0x8000_0008).eax as u8,
            ticks_per_count: cpuid::crystal_ratio(tsc_khz),
            least_period_ticks: time::khz() / LEAST_PERIODS_PER_MS,
        });
        if is_pc && index == 0 {
            // As firmware leaves it for kernels that know no more than a PIC.
            apic.set_virtual_wire();
        }
        handle.posted.publish_route(apic.route().to_bits());
        Some(Vcpu {
            vm: Arc::clone(vm),
            index,
            handle,
            registers: GuestRegisters::default(),
            vmcs: Some(Vmcs::new()?),
            extended: ExtendedState::new()?,
            start,
            forked: None,
            waiting: None,
            cpuid: CpuidPolicy {
                vm_id: u32::from(vm.id),
                vcpu: index,
                vcpus: vm.info_pages.len() as u32,
                tsc_khz,
                in_group: vm.membership.is_some(),
                deterministic: vm.deterministic,
                xcr0: capabilities.xcr0,
                xcr0_now: 1,
                has_xsavec: xstate::has_xsavec(),
                is_pc,
                has_eoi_word: !virtual_apic::is_used(),
                has_rdtscp: capabilities.has_rdtscp(),
                has_invpcid: capabilities.has_invpcid(),
                apic_is_on: true,
                last_leaf: cpuid::last_leaf(core::arch::x86_64::__cpuid(0).eax, is_pc),
            },
            msrs: MsrState::new(is_pc),
            apic,
            eoi_word: EoiWord::default(),
            virtual_apic: VirtualApic::new()?,
            injected: None,
            pic_vector: None,
            known: DecodedInsnCache::default(),
            waiting_nmis: 0,
            window_is_open: false,
            nmi_window_is_open: false,
            armed_for: None,
            deadline: None,
            last_cpu: None,
            clock_version: 0,
            info_page,
            // SAFETY: as above; a vCPU holds its VM.
            exit_counters: unsafe { memory::writer(Whose::Vm) }.words(exit_counter(info_page, 0)),
            stolen_before: 0,
            stolen: 0,
            exits: RecentExits::default(),
            debugged: Debugged::default(),
        })
    }

    /// Makes vCPU `index` of a fork of this one's VM, to go on as this one does, which is on no CPU or has just been saved: `area` is what its
    /// VMCS has of the guest. `None` if memory runs out.
    #[must_use]
    pub fn fork(&mut self, vm: &Arc<Vm>, area: GuestArea) -> Option<Vcpu> {
        let apic = &mut self.apic;
        self.handle
            .posted
            .collect(|vector, trigger| apic.accept_sent(vector, trigger));
        let mut child = Vcpu::create(vm, self.index, None)?;
        child.registers = self.registers;
        child.extended = self.extended.copy()?;
        child.forked = Some(Box::new(area));
        child.waiting = self.waiting;
        child.cpuid = CpuidPolicy {
            vm_id: child.cpuid.vm_id,
            ..self.cpuid
        };
        child.msrs = self.msrs;
        child.apic = self.virtual_apic.whole(&self.apic);
        child.eoi_word = self.eoi_word;
        child.injected = self.injected;
        child.pic_vector = self.pic_vector;
        child.waiting_nmis = self.waiting_nmis;
        child.deadline = self.deadline;
        child.clock_version = self.clock_version;
        let route = child.apic.route().to_bits();
        child.handle.posted.publish_route(route);
        Some(child)
    }

    /// INIT: all that does not come with its next start is as after a reset ("Processor State After Reset"). What INIT leaves alone
    /// stays: FPU and vector registers, XCR0, most MSRs, ID, mode and base of the APIC. Stolen time goes on.
    pub fn init(&mut self) {
        self.waiting = None;
        self.injected = None;
        self.pic_vector = None;
        self.waiting_nmis = 0;
        self.window_is_open = false;
        self.nmi_window_is_open = false;
        self.armed_for = None;
        self.deadline = None;
        self.apic.init();
        self.virtual_apic.forget();
        self.handle.posted.clear();
        self.handle.try_wake();
        self.extended.init();
        // Whoever starts it next has other plans for that memory.
        self.msrs.init();
        self.eoi_word = EoiWord::default();
        self.stolen_before = self.stolen;
        // It begins without translations.
        self.last_cpu = None;
        let route = self.apic.route().to_bits();
        self.handle.posted.publish_route(route);
    }

    /// What its VMCS names of the VM. Each vCPU has a VPID of its own: up to 8 of them for each VM, none 0.
    #[must_use]
    pub fn binding(&self) -> Binding<'_> {
        Binding {
            eptp: self.vm.space.ept.eptp(),
            vpid: self.vm.id * boot::MAX_VCPUS as u16 + self.index as u16,
            bitmaps: &self.vm.bitmaps,
            deterministic: self.vm.deterministic,
            tsc_offset: self.msrs.tsc_offset,
        }
    }

    /// What it was doing, if it is on no CPU; `None` if it has not been on one yet.
    #[must_use]
    pub fn snapshot_at_rest(&self) -> Option<Snapshot> {
        if self.start.is_some() || self.forked.is_some() {
            return None;
        }
        let vmcs = self.vmcs.as_ref()?;
        Some(self.snapshot_with(vmcs.registers(&self.registers, self.extended.cr2())))
    }

    /// What it is doing, with these registers.
    pub fn snapshot_with(&self, registers: Registers) -> Snapshot {
        Snapshot {
            registers,
            last_exits: self.exits.all(),
        }
    }

    /// The board whose timers and PIC are this vCPU's business.
    #[inline]
    #[must_use]
    pub fn board(&self) -> Option<&Board> {
        self.vm.devices.board().filter(|_| self.index == 0)
    }

    /// The TSC at which a timer of its own is due: its APIC's, or of the board.
    #[inline]
    #[must_use]
    pub fn own_deadline(&self) -> Option<u64> {
        let timer = self.apic.timer_deadline();
        match self.board().map(Board::deadline) {
            None | Some(u64::MAX) => timer,
            Some(board) => Some(timer.map_or(board, |timer| timer.min(board))),
        }
    }

    /// Counts an exit, where the guest can read it.
    #[inline]
    pub fn count(&self, kind: ExitKind) {
        let counter = &self.exit_counters[kind as usize];
        let count = counter.load(Ordering::Relaxed);
        counter.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// Brings the info page's counter of doorbells up to date.
    pub fn publish_doorbells(&self) {
        self.publish(
            offset_of!(InfoPage, doorbells_received),
            self.vm.endpoint.mailbox.received(),
        );
    }

    /// Brings the info page's stolen time up to date: ticks in which the vCPU could have run and was not let.
    pub fn publish_stolen(&mut self, ticks: u64) {
        let ticks = self.stolen_before + ticks;
        self.stolen = ticks;
        self.publish(offset_of!(InfoPage, stolen_ticks), ticks);
        if let Some(gpa) = self.msrs.steal_time_gpa() {
            self.tell_stolen(gpa, ticks);
        }
    }

    /// Stolen time in KVM's structure: nanoseconds, then a version that is odd while they change. The guest reads it on this
    /// vCPU, which does not run now: nobody ever sees it odd.
    #[cold]
    fn tell_stolen(&self, gpa: u64, ticks: u64) {
        let ns = u128::from(ticks) * 1_000_000 / u128::from(time::khz().max(1));
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        // Where there is no RAM the guest does not learn it: its own fault.
        let _ = self
            .vm
            .devices
            .ram
            .view()
            .write(Gpa::new(gpa), &ns.to_le_bytes());
    }

    /// A HLT ends: if the guest wants it so, what is pending is taken and told in the info page.
    pub fn take_halt_events(&self) {
        let endpoint = &self.vm.endpoint;
        if self.index == 0 && endpoint.halt_takes_events.load(Ordering::SeqCst) {
            self.publish(offset_of!(InfoPage, halt_events), endpoint.mailbox.take());
        }
    }

    /// Writes KVM's clock where the guest reads it, if it does. `was_stopped`: the guest is to learn that its vCPUs did not run for a
    /// while, so that its watchdogs do not take that for its own fault. Only while the vCPU is not in the guest.
    pub fn publish_clock(&mut self, was_stopped: bool) {
        let Some(gpa) = self.msrs.clock_gpa() else {
            return;
        };
        let version = self.clock_version.wrapping_add(2);
        self.clock_version = version;
        let start = self.msrs.tsc(time::boot_ticks());
        let bytes = kvm_clock::clock(
            version,
            start,
            Scale::of_khz(self.cpuid.tsc_khz),
            was_stopped,
        );
        let ram = self.vm.devices.ram.view();
        // Odd first, the new version last: other vCPUs of the guest may read meanwhile.
        let odd = version.wrapping_sub(1).to_le_bytes();
        let (head, rest) = bytes.split_at(4);
        // Where there is no RAM the guest does not learn it: its own fault.
        let _ = ram.write(Gpa::new(gpa), &odd);
        let _ = ram.write(Gpa::new(gpa.wrapping_add(4)), rest);
        let _ = ram.write(Gpa::new(gpa), head);
    }

    /// Writes the time of day at the clock's 0 where the guest asks for it.
    pub fn publish_wall_clock(&mut self, gpa: u64) {
        let version = self.clock_version.wrapping_add(2);
        self.clock_version = version;
        let seconds = wall_clock::seconds(time::boot_ticks());
        let bytes = kvm_clock::wall_clock(version, seconds);
        let _ = self.vm.devices.ram.view().write(Gpa::new(gpa), &bytes);
    }

    fn publish(&self, offset: usize, value: u64) {
        // SAFETY: as in `create`: `vm` holds the frame.
        unsafe { memory::writer(Whose::Vm) }
            .store_u64(Hpa::new(self.info_page.get() + offset as u64), value);
    }
}

const _: () = assert!(offset_of!(InfoPage, abi_version) == 8 && offset_of!(InfoPage, vcpu) == 12);
