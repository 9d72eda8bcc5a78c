//! What others may know of a vCPU wherever it is, and how they reach it.
//!
//! Concurrency: a [`Handle`] is shared; everything in it is atomic, but for the snapshot, whose lock is a leaf.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use guest_abi::boot;
use nagaya_sched::VcpuId;
use nagaya_vmm::posted::Posted;
use nagaya_vmm::start_up::StartUp;
use spin::Mutex;

use crate::host::cpu::percpu::{self, PerCpu};
use crate::objects::snapshot::Snapshot;

/// No CPU.
const NOWHERE: u32 = u32::MAX;

/// What others may know of a vCPU, and how they reach it.
#[derive(Debug)]
pub struct Handle {
    /// Its name to the scheduler.
    pub id: VcpuId,
    /// The CPU it is loaded on.
    cpu: AtomicU32,
    /// It waits, or is about to: whoever gives it a reason to go on takes this mark away and wakes it in the scheduler.
    asleep: AtomicBool,
    /// A doorbell is a reason for it to go on.
    heeds_doorbells: AtomicBool,
    /// It lay down with interrupts off and without a deadline.
    is_deaf: AtomicBool,
    /// Interrupts that others post for it.
    pub posted: Posted,
    /// Whether it runs, waits for its start, or is to be reset.
    pub start_up: StartUp,
    /// Somebody wants to see its registers.
    wants_snapshot: AtomicBool,
    snapshot: Mutex<Option<Snapshot>>,
}

impl Handle {
    /// The handle of vCPU `index` of that VM.
    #[must_use]
    pub fn new(vm: u16, index: u32) -> Handle {
        Handle {
            id: VcpuId(u32::from(vm) * boot::MAX_VCPUS + index),
            cpu: AtomicU32::new(NOWHERE),
            asleep: AtomicBool::new(false),
            heeds_doorbells: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
            posted: Posted::new(),
            start_up: StartUp::new(),
            wants_snapshot: AtomicBool::new(false),
            snapshot: Mutex::new(None),
        }
    }

    /// Asks for its registers. Its CPU is to be kicked.
    pub fn ask_for_snapshot(&self) {
        *self.snapshot.lock() = None;
        self.wants_snapshot.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked. Only the first call after that says yes.
    pub fn is_asked_for_snapshot(&self) -> bool {
        self.wants_snapshot.load(Ordering::Relaxed)
            && self.wants_snapshot.swap(false, Ordering::SeqCst)
    }

    /// Answers.
    pub fn give_snapshot(&self, snapshot: Snapshot) {
        *self.snapshot.lock() = Some(snapshot);
    }

    /// The answer, if it has come.
    #[must_use]
    pub fn take_snapshot(&self) -> Option<Snapshot> {
        self.snapshot.lock().take()
    }

    /// The CPU it is loaded on, if it is on one.
    #[must_use]
    pub fn cpu(&self) -> Option<&'static PerCpu> {
        percpu::get(self.cpu.load(Ordering::SeqCst))
    }

    /// Notes where it is loaded; `None` for nowhere.
    pub fn set_cpu(&self, cpu: Option<&PerCpu>) {
        self.cpu
            .store(cpu.map_or(NOWHERE, |cpu| cpu.index), Ordering::SeqCst);
    }

    /// Lies down, perhaps for doorbells, too. The caller looks once more for a reason to go on before it tells the scheduler.
    pub fn prepare_to_wait(&self, for_doorbells: bool) {
        self.heeds_doorbells.store(for_doorbells, Ordering::SeqCst);
        self.is_deaf.store(false, Ordering::SeqCst);
        self.asleep.store(true, Ordering::SeqCst);
    }

    /// Notes, after [`Handle::prepare_to_wait`], whether it lies with interrupts off and without a deadline: only another vCPU of
    /// its VM, by NMI or INIT, makes it go on then, or a doorbell where those count.
    pub fn set_deaf(&self, is_deaf: bool) {
        self.is_deaf.store(is_deaf, Ordering::SeqCst);
    }

    /// Whether it lies so, and nobody has roused it.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        self.is_deaf.load(Ordering::SeqCst) && self.is_asleep()
    }

    /// As [`Handle::try_wake`], by a doorbell: only if it lay down for one.
    pub fn try_wake_by_doorbell(&self) -> bool {
        self.heeds_doorbells.load(Ordering::SeqCst) && self.try_wake()
    }

    /// Gets up. True for the one who took the mark away: that one tells the scheduler.
    pub fn try_wake(&self) -> bool {
        self.asleep.swap(false, Ordering::SeqCst)
    }

    /// Whether it has lain down and nobody has roused it.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }
}
