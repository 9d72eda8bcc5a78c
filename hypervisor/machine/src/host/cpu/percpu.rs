//! Per-CPU state, reached through the GS base.
//!
//! One [`PerCpu`] lives for each CPU, for ever. Fields that other CPUs touch are atomics; the others are cells that only the
//! owner touches, on its own stack of calls (interrupt and NMI handlers touch the atomics only). On VM exits the CPU reloads
//! the GS base from the VMCS (`HOST_GS_BASE`), so that the pointer is right in every host context.

use alloc::boxed::Box;
use core::cell::{RefCell, UnsafeCell};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

use crate::host::cpu::apic::Apic;
use crate::host::cpu::watch::Watch;
use crate::host::cpu::worker::Worker;

/// Most CPUs the hypervisor uses; further ones stay off with a warning.
pub const MAX_CPUS: usize = 64;

/// What one CPU keeps for itself and what others may set for it.
#[repr(C)]
pub struct PerCpu {
    /// The structure's own address: what `gs:0` holds.
    this: UnsafeCell<u64>,
    /// Dense index, 0 for the boot CPU.
    pub index: u32,
    /// The local APIC's ID, the destination of IPIs.
    pub apic_id: u32,
    /// True from just before a VM entry to just after the exit.
    pub in_guest: AtomicBool,
    /// The guest that is loaded has its interrupts delivered by the CPU.
    pub delivers_interrupts: AtomicBool,
    /// A reason to leave the guest or the idle loop: a doorbell, an assignment, the end of a VM. Cleared by the run loop.
    pub kicked: AtomicBool,
    /// True while the CPU sleeps (or is about to) in the idle loop and wants an IPI for a kick.
    pub sleeping: AtomicBool,
    /// Generation of the host's page tables that this CPU's TLB reflects.
    pub tlb_generation: AtomicU64,
    /// NMIs taken.
    pub nmis: AtomicU64,
    /// Set by the CPU when it is ready for work.
    pub online: AtomicBool,
    /// Set by the CPU when it has been told to stop and has ([`crate::host::stop`]).
    pub stopped: AtomicBool,
    /// The CPU is to ask the scheduler again. Set before a kick.
    pub resched: AtomicBool,
    /// Another CPU is to run the vCPU that is loaded here: put it down if the CPU sleeps. Set before a kick.
    pub release: AtomicBool,
    /// The blocked vCPU with which the CPU sleeps, and the mark of whoever wakes it (`dispatch::resting`).
    pub resting: AtomicU64,
    /// TSC value until which the scheduler's last decision for this CPU holds.
    pub until: AtomicU64,
    /// TSC value at which work that was left for later here goes on; `u64::MAX` if there is none. Only the CPU itself sets it.
    pub deferred_at: AtomicU64,
    /// Long work, in slices.
    pub worker: Worker,
    /// For the watchdog.
    pub watch: Watch,
    /// The VM that ran here last.
    pub last_vm: AtomicU32,
    /// The local APIC; only its own CPU borrows it ([`PerCpu::with_apic`]).
    apic: RefCell<Option<Apic>>,
}

impl core::fmt::Debug for PerCpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "CPU {} (APIC ID {})", self.index, self.apic_id)
    }
}

// SAFETY: `this` is written once before the structure is shared. `apic` is private and borrowed by `set_apic` and `with_apic` alone, which
// refuse any other CPU than the one that owns the structure; no handler of NMIs calls them, and a borrow that an exception's handler
// finds is refused. `worker` keeps what it does not lock to its own CPU by itself. All else is atomic or constant.
unsafe impl Sync for PerCpu {}

static CPUS: [Once<&'static PerCpu>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
static COUNT: AtomicU32 = AtomicU32::new(0);

impl PerCpu {
    /// Makes the state of a further CPU. Called on the boot CPU only; the structure is never freed.
    pub fn create(apic_id: u32) -> Option<&'static PerCpu> {
        let index = COUNT.load(Ordering::Relaxed);
        let slot = CPUS.get(index as usize)?;
        let cpu: &'static PerCpu = Box::leak(Box::new(PerCpu {
            this: UnsafeCell::new(0),
            index,
            apic_id,
            in_guest: AtomicBool::new(false),
            delivers_interrupts: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            tlb_generation: AtomicU64::new(0),
            nmis: AtomicU64::new(0),
            online: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            resched: AtomicBool::new(false),
            release: AtomicBool::new(false),
            resting: AtomicU64::new(u64::MAX),
            until: AtomicU64::new(0),
            deferred_at: AtomicU64::new(u64::MAX),
            worker: Worker::new(),
            watch: Watch::default(),
            last_vm: AtomicU32::new(u32::MAX),
            apic: RefCell::new(None),
        }));
        // SAFETY: nobody else has the pointer yet.
        unsafe { *cpu.this.get() = core::ptr::from_ref(cpu).addr() as u64 };
        slot.call_once(|| cpu);
        COUNT.store(index + 1, Ordering::Release);
        Some(cpu)
    }

    /// Makes `self` the state of the executing CPU.
    ///
    /// # Safety
    /// Must run once on each CPU, with the structure that was made for it.
    pub unsafe fn install(&'static self) {
        GsBase::write(VirtAddr::from_ptr(self));
    }

    /// The executing CPU's state.
    #[inline]
    #[must_use]
    pub fn current() -> &'static PerCpu {
        let address: u64;
        // SAFETY: every CPU runs `install` before anything that calls this (`boot::start` and `smp::ap_main` do it first
        // thing), and VM exits restore the GS base; `gs:0` then holds the address of a structure that is never freed.
        unsafe {
            core::arch::asm!("mov {}, gs:[0]", out(reg) address, options(nostack, preserves_flags, readonly, pure));
            &*core::ptr::with_exposed_provenance::<PerCpu>(address as usize)
        }
    }

    /// The address that `HOST_GS_BASE` must hold on this CPU.
    #[must_use]
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    /// Runs `action` with the CPU's local APIC. `None` before the APIC is set up.
    ///
    /// # Panics
    /// On any other CPU.
    #[inline]
    pub fn with_apic<R>(&self, action: impl FnOnce(&mut Apic) -> R) -> Option<R> {
        self.assert_own();
        self.apic.try_borrow_mut().ok()?.as_mut().map(action)
    }

    /// Gives the executing CPU its local APIC.
    ///
    /// # Panics
    /// On any other CPU.
    pub fn set_apic(&self, apic: Apic) {
        self.assert_own();
        *self.apic.borrow_mut() = Some(apic);
    }

    /// Cells are for the CPU that owns them: [`PerCpu`] is `Sync` by this.
    #[inline]
    fn assert_own(&self) {
        assert!(
            core::ptr::eq(self, PerCpu::current()),
            "a CPU's cells are reached from that CPU only"
        );
    }

    /// Whether work that was left for later here goes on before then.
    #[inline]
    #[must_use]
    pub fn has_deferred_before(&self, tsc: u64) -> bool {
        self.deferred_at.load(Ordering::Relaxed) < tsc
    }

    /// Makes the CPU look at its state soon: if it sleeps or runs a guest, an IPI brings it back. Cheap if it was kicked already.
    pub fn kick(&self) {
        if self.kicked.swap(true, Ordering::SeqCst) {
            return;
        }
        if self.index == PerCpu::current().index {
            return;
        }
        // The other side stores `in_guest` or `sleeping`, then loads `kicked` (both SeqCst): either it sees the kick, or we
        // see it there and bring it back.
        if self.in_guest.load(Ordering::SeqCst) {
            self.end_guest_run();
        } else if self.sleeping.load(Ordering::SeqCst) {
            PerCpu::current().with_apic(|apic| apic.send_kick(self.apic_id));
        }
    }

    /// Makes a guest that runs there exit, so that its run loop looks at the news that the caller has stored (SeqCst) and that it
    /// looks at before each entry. What else a kick makes it look at stays.
    pub fn call_out(&self) {
        // As above, with the news in place of `kicked`.
        if self.in_guest.load(Ordering::SeqCst) && self.index != PerCpu::current().index {
            self.end_guest_run();
        }
    }

    /// Makes the guest there exit: by IPI, or by NMI if the CPU delivers its interrupts. In Bochs an IPI that finds such a guest
    /// with interrupts off has the next virtual interrupt delivered to it at once, in the middle of what it had switched them off
    /// for (test `interrupts/none-while-off`). On hardware both do.
    fn end_guest_run(&self) {
        PerCpu::current().with_apic(|apic| {
            if self.delivers_interrupts.load(Ordering::Relaxed) {
                apic.send_nmi(self.apic_id);
            } else {
                apic.send_kick(self.apic_id);
            }
        });
    }

    /// Makes the CPU ask the scheduler. A guest is called out by NMI, not by IPI: in Bochs one that was entered with interrupts
    /// off takes no exit for an interrupt, and would run on until its preemption timer ends, which may be far. On hardware
    /// both cost the same.
    pub fn kick_to_reschedule(&self) {
        let was_kicked = self.kicked.swap(true, Ordering::SeqCst);
        // Even if it has been kicked: that may have been by an IPI, which the guest holds off.
        if self.in_guest.load(Ordering::SeqCst) {
            PerCpu::current().with_apic(|apic| apic.send_nmi(self.apic_id));
        } else if !was_kicked && self.sleeping.load(Ordering::SeqCst) {
            PerCpu::current().with_apic(|apic| apic.send_kick(self.apic_id));
        }
    }

    /// Like [`PerCpu::kick`], but reaches a guest that runs with interrupts off, by NMI.
    pub fn kick_urgently(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        if self.index != PerCpu::current().index {
            PerCpu::current().with_apic(|apic| {
                apic.send_nmi(self.apic_id);
                // An NMI between its last look at the mark and the HLT would not end that; an IPI stays pending until then.
                if self.sleeping.load(Ordering::SeqCst) {
                    apic.send_kick(self.apic_id);
                }
            });
        }
    }
}

/// Number of CPUs that have a [`PerCpu`].
#[must_use]
pub fn count() -> u32 {
    COUNT.load(Ordering::Acquire)
}

/// The state of CPU `index`.
#[must_use]
pub fn get(index: u32) -> Option<&'static PerCpu> {
    CPUS.get(index as usize)?.get().copied()
}

/// All CPUs, the boot CPU first.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..count()).filter_map(get)
}

const _: () = assert!(core::mem::offset_of!(PerCpu, this) == 0);
