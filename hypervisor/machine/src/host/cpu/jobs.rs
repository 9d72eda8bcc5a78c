//! Jobs for the workers of CPUs ([`super::worker`]): adding them, and what a job itself calls.

use x86_64::VirtAddr;

use super::percpu::PerCpu;
use super::worker::Job;

/// Gives the executing CPU's worker its stack: `top` is the end of one that nobody else has. Called once on each.
pub fn set_up(cpu: &PerCpu, top: VirtAddr) {
    cpu.worker.set_up(top, work);
}

/// Has a job done on that CPU.
pub fn add(cpu: &PerCpu, job: Job) {
    cpu.worker.add(job);
    cpu.kick();
}

/// Jobs for that VM that wait on that CPU begin now.
pub fn hurry(cpu: &PerCpu, payer: u16) {
    if cpu.worker.hurry(payer) {
        cpu.kick();
    }
}

/// A job's slice may be used up: goes on when the CPU comes back to it. Does nothing outside jobs.
pub fn breathe() {
    PerCpu::current().worker.breathe();
}

/// What runs on a worker's stack: one job after the other.
extern "sysv64" fn work() -> ! {
    loop {
        let worker = &PerCpu::current().worker;
        // SAFETY: this is the worker's own stack, which nothing else runs on.
        if let Some(job) = unsafe { worker.take_job() } {
            (job.work)();
        }
        worker.finish_job();
    }
}
