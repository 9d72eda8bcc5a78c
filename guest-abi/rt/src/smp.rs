//! Further vCPUs of this VM.
//!
//! Concurrency: a started vCPU shares everything with the one that started it; Rust's rules for threads apply (`Send`, `Sync`). It
//! has no exception stack of its own, so that a second fault on it ends the VM by a triple fault, and it runs with interrupts off.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_abi::{Errno, Number};

use crate::{heap, hypercall, paging};

/// Bytes of a further vCPU's stack.
const STACK_BYTES: u64 = 64 << 10;

/// vCPUs that have come back from their function.
static FINISHED: AtomicU32 = AtomicU32::new(0);

type Work = Box<dyn FnOnce() + Send>;

/// Starts vCPU `index` (1 to `BootInfo::vcpus` - 1, each once) with `work`; when that returns, the vCPU halts for ever.
///
/// # Errors
/// `EINVAL` if there is no such vCPU or it runs already, `EAGAIN` if INIT is on its way to it, `ENOMEM` without RAM for its stack.
pub fn start_vcpu(index: u32, work: impl FnOnce() + Send + 'static) -> Result<(), Errno> {
    let stack = heap::take_frames(STACK_BYTES, paging::SMALL).ok_or(Errno::NoMem)?;
    // Twice boxed: a thin pointer fits into a register.
    let work: *mut Work = Box::into_raw(Box::new(Box::new(work)));
    let arguments = [
        u64::from(index),
        (entry as *const ()).expose_provenance() as u64,
        stack + STACK_BYTES,
        work.expose_provenance() as u64,
        0,
    ];
    // SAFETY: `entry` follows the calling convention of a started vCPU; the stack is its own; `work` is given away with the call
    // and taken back below only if the call failed, so that nobody else has it.
    let started = unsafe { hypercall::execute(Number::StartVcpu as u64, arguments) };
    if let Err(errno) = hypercall::decode(started) {
        // SAFETY: made by `Box::into_raw` above; the vCPU was not started.
        drop(unsafe { Box::from_raw(work) });
        return Err(errno);
    }
    Ok(())
}

/// How many started vCPUs have finished their work.
#[must_use]
pub fn finished() -> u32 {
    FINISHED.load(Ordering::Acquire)
}

/// Where a further vCPU enters: RDI = its work, RSP = top of its stack.
#[cfg(target_os = "none")]
#[unsafe(naked)]
extern "sysv64" fn entry() -> ! {
    core::arch::naked_asm!("and rsp, -16", "xor ebp, ebp", "call {run}", "ud2", run = sym run)
}

#[cfg(not(target_os = "none"))]
extern "sysv64" fn entry() {}

#[cfg_attr(
    not(target_os = "none"),
    expect(
        dead_code,
        reason = "called by `entry`, which exists on bare metal only"
    )
)]
extern "sysv64" fn run(work: *mut Work) -> ! {
    crate::apic::init();
    // SAFETY: RDI is what `start_vcpu` gave: a box that it no longer uses.
    let work = unsafe { Box::from_raw(work) };
    work();
    FINISHED.fetch_add(1, Ordering::Release);
    crate::traps::disable_interrupts();
    loop {
        crate::traps::halt();
    }
}
