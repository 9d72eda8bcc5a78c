//! Work that takes longer than a CPU may be kept from its guests: each CPU has a second stack for it, on which a job runs in slices.
//!
//! A job is straight-line code that calls [`super::jobs::breathe`] at least each [`GRAIN_TICKS`]: when its slice is used up that returns only when
//! the CPU comes back to it. It must hold no lock and no borrow of the CPU's state then. The run loop gives a slice when [`Worker::due`]
//! says so. While guests run on the CPU a job gets a part of its time, and whoever it is done for is charged; an idle
//! CPU goes on at once.
//!
//! Concurrency: a CPU resumes its own worker only, from its run loop. Others add jobs: a lock and an atomic.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;
use x86_64::VirtAddr;

use crate::host::cpu::time;

/// Ticks of a slice.
pub const SLICE_TICKS: u64 = 25_000;
/// Most ticks between two calls of [`super::jobs::breathe`] in a job.
pub const GRAIN_TICKS: u64 = 25_000;
/// Beside guests a job gets one of so many parts of its CPU's time.
const SHARE: u64 = 5;

/// What runs on a worker's stack.
pub(super) type Work = extern "sysv64" fn() -> !;

/// Something to be done in slices.
pub struct Job {
    /// Number of the VM that is charged.
    pub payer: u16,
    /// It does not begin before this TSC value.
    pub not_before: u64,
    /// What is done.
    pub work: Box<dyn FnOnce() + Send>,
}

/// A slice that was worked.
#[must_use]
pub struct Worked {
    /// Number of the VM that is to be charged ...
    pub payer: u16,
    /// ... for so many ticks.
    pub ticks: u64,
}

/// The worker of one CPU.
pub struct Worker {
    jobs: Mutex<VecDeque<Job>>,
    /// TSC value at which there is something to do; `u64::MAX` for never.
    due: AtomicU64,
    /// Who pays for the job under way.
    payer: AtomicU64,
    /// When the slice under way ends.
    slice_end: AtomicU64,
    /// The executing code is a job's.
    is_inside: AtomicBool,
    own: UnsafeCell<Own>,
}

/// What only the CPU itself touches, from its run loop and from its worker's stack, one at a time.
struct Own {
    /// The worker's stack pointer while it rests; 0 without a stack.
    worker: u64,
    /// The run loop's while the worker works.
    run_loop: u64,
    job: Option<Job>,
}

/// The payer of no job.
const NOBODY: u64 = u64::MAX;

impl Worker {
    /// One without a stack and without jobs.
    #[must_use]
    pub const fn new() -> Worker {
        Worker {
            jobs: Mutex::new(VecDeque::new()),
            due: AtomicU64::new(u64::MAX),
            payer: AtomicU64::new(NOBODY),
            slice_end: AtomicU64::new(0),
            is_inside: AtomicBool::new(false),
            own: UnsafeCell::new(Own {
                worker: 0,
                run_loop: 0,
                job: None,
            }),
        }
    }

    /// Gives it its stack: `top` is the end of one that nobody else has; what runs there is `work`, which takes the CPU's jobs one after
    /// the other ([`Worker::take_job`], [`Worker::finish_job`]). Called once, by its CPU.
    pub(super) fn set_up(&self, top: VirtAddr, work: Work) {
        let first = prepare_stack(top, work);
        // SAFETY: called by the worker's CPU before its run loop: nobody else touches `own`.
        unsafe { (*self.own.get()).worker = first };
    }

    /// How many jobs there are, for a choice between CPUs.
    #[must_use]
    pub fn load(&self) -> usize {
        self.jobs.lock().len() + usize::from(self.payer.load(Ordering::Relaxed) != NOBODY)
    }

    /// The TSC value at which there is something to do.
    #[inline]
    #[must_use]
    pub fn due(&self) -> u64 {
        self.due.load(Ordering::SeqCst)
    }

    /// The CPU has nothing else to do: a job under way goes on at once.
    pub fn hasten(&self) {
        if self.payer.load(Ordering::Relaxed) != NOBODY {
            self.due.store(0, Ordering::SeqCst);
        }
    }

    pub(super) fn add(&self, job: Job) {
        let mut jobs = self.jobs.lock();
        self.due.fetch_min(job.not_before, Ordering::SeqCst);
        jobs.push_back(job);
    }

    /// Works a slice, if there is something to do. On its own CPU, from its run loop.
    pub fn serve(&self, now: u64) -> Option<Worked> {
        if self.due() > now {
            return None;
        }
        // SAFETY: on the worker's own CPU, outside its jobs: they are left by `switch` only, and nothing here is borrowed then.
        let own = unsafe { &mut *self.own.get() };
        if self.payer.load(Ordering::Relaxed) == NOBODY && !self.begin(own, now) {
            return None;
        }
        let payer = self.payer.load(Ordering::Relaxed);
        self.slice_end
            .store(now.saturating_add(SLICE_TICKS), Ordering::Relaxed);
        self.is_inside.store(true, Ordering::Relaxed);
        let (worker, run_loop) = (own.worker, &raw mut own.run_loop);
        // SAFETY: `worker` is where this worker was left, or its first frame: its stack is its own; `run_loop` takes ours.
        unsafe { switch(run_loop, worker) };
        self.is_inside.store(false, Ordering::Relaxed);
        let end = time::ticks();
        let ticks = end.saturating_sub(now);
        self.set_due(end.saturating_add(ticks.saturating_mul(SHARE - 1)));
        Some(Worked {
            payer: u16::try_from(payer).unwrap_or(0),
            ticks,
        })
    }

    /// Takes the first job whose time has come. `false` if there is none.
    fn begin(&self, own: &mut Own, now: u64) -> bool {
        let mut jobs = self.jobs.lock();
        let ready = jobs.iter().position(|job| job.not_before <= now);
        let job = ready.and_then(|at| jobs.remove(at));
        drop(jobs);
        let Some(job) = job.filter(|_| own.worker != 0) else {
            self.set_due(u64::MAX);
            return false;
        };
        self.payer.store(job.payer.into(), Ordering::Relaxed);
        own.job = Some(job);
        true
    }

    /// Says when there is something to do next: a job under way goes on at `next`.
    fn set_due(&self, next: u64) {
        // Under the lock, so that a job that is added meanwhile is not overlooked.
        let jobs = self.jobs.lock();
        let first = jobs.iter().map(|job| job.not_before).min();
        let first = first.unwrap_or(u64::MAX);
        let due = if self.payer.load(Ordering::Relaxed) == NOBODY {
            first
        } else {
            next
        };
        self.due.store(due, Ordering::SeqCst);
    }

    /// Leaves the job until the CPU comes back to it. On the worker's stack.
    fn rest(&self) {
        let own = self.own.get();
        // SAFETY: on the worker's stack, with the run loop's pointer where `serve` put it; no reference into `own` is alive.
        unsafe { switch(&raw mut (*own).worker, (*own).run_loop) };
    }
}

impl Worker {
    /// Jobs for that VM that wait begin now. `false` if there is none.
    pub(super) fn hurry(&self, payer: u16) -> bool {
        let mut jobs = self.jobs.lock();
        let mut any = false;
        for job in jobs.iter_mut().filter(|job| job.payer == payer) {
            job.not_before = 0;
            any = true;
        }
        if any {
            self.due.store(0, Ordering::SeqCst);
        }
        any
    }

    /// Leaves the job under way until the CPU comes back to it, if its slice is used up. On its own CPU; does nothing outside jobs.
    pub(super) fn breathe(&self) {
        if self.is_inside.load(Ordering::Relaxed)
            && time::ticks() >= self.slice_end.load(Ordering::Relaxed)
        {
            self.rest();
        }
    }

    /// The job that begins.
    ///
    /// # Safety
    /// On the worker's own stack.
    pub(super) unsafe fn take_job(&self) -> Option<Job> {
        // SAFETY: the worker's CPU runs this and nothing else until the next `switch`; the borrow ends here.
        unsafe { (*self.own.get()).job.take() }
    }

    /// The job is done: leaves the stack until there is another.
    pub(super) fn finish_job(&self) {
        self.payer.store(NOBODY, Ordering::Relaxed);
        self.rest();
    }
}

impl Default for Worker {
    fn default() -> Worker {
        Worker::new()
    }
}

/// Words that [`switch`] takes from a stack besides the address it returns to.
const SAVED: u64 = 6;

/// Makes a fresh stack one that [`switch`] can go to: it begins with `work`.
fn prepare_stack(top: VirtAddr, work: Work) -> u64 {
    // As after a call: the stack pointer at a function's entry is 8 below a multiple of 16 (System V ABI).
    let entry = top.as_u64() - 16;
    let start = work as usize as u64;
    // SAFETY: the caller gives a stack that nobody else has; both words lie at its end. The registers below are zeros.
    unsafe {
        core::ptr::with_exposed_provenance_mut::<u64>(entry as usize).write_volatile(start);
    }
    entry - 8 * SAVED
}

/// Saves what a function must keep on this stack, stores its pointer to `save`, and goes on at the other stack.
///
/// # Safety
/// `to` was stored by this function, or made by [`prepare_stack`], and has not been gone to since; `save` is valid.
#[cfg(target_os = "none")]
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(save: *mut u64, to: u64) {
    core::arch::naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Not callable on a host.
///
/// # Safety
/// Never call it.
#[cfg(not(target_os = "none"))]
unsafe extern "sysv64" fn switch(_save: *mut u64, _to: u64) {}
