//! Faults made on purpose and proofs asked for by a scenario (`machine.selftest`), so that tests see what the hypervisor does
//! with its own mistakes: a dump, all CPUs stopped, a run that fails.
//!
//! Concurrency: runs on the boot CPU before the first VM; `run::selftest` answers on the others, from their loops.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;

use nagaya_mem::HostMemory;
use nagaya_vmm::config::SelfTest;

use crate::host::cpu::percpu::{self, PerCpu};
use crate::host::cpu::time;
use crate::host::memory::{self, Whose};
use crate::host::paging;
use crate::run::selftest::{ANSWERS, ROUND, STALL, answer};

/// Does what the scenario asks for; most do not return. [`SelfTest::EntryFailure`] is done where the first VM is started,
/// [`SelfTest::OutOfMemory`] where VMs are made, [`SelfTest::AbsentCpu`] where CPUs are.
///
/// # Errors
/// That what should have been stopped or seen was not.
pub fn run(test: SelfTest) -> Result<(), String> {
    log::warn!("self-test {:?}, as the scenario asks", test.name());
    match test {
        SelfTest::Panic => panic!("self-test"),
        SelfTest::StackOverflow => Err(format!("the stack has no end: {}", recurse(&[0; 64], 1))),
        SelfTest::WriteCode => {
            let code = (run as *const ()).cast::<u8>().cast_mut();
            // SAFETY: the page is mapped without write permission: the write faults, and the handler does not return. If it
            // did not fault, it would write what is there already.
            unsafe { code.write_volatile(code.read_volatile()) };
            Err("the hypervisor could write to its own code".into())
        }
        SelfTest::RunData => {
            // RET
            let data: &'static mut [u8; 16] = Box::leak(Box::new([0xC3; 16]));
            // SAFETY: the page is mapped non-executable: the call faults, and the handler does not return. If it did not
            // fault, a RET would return here.
            let call: extern "sysv64" fn() = unsafe { core::mem::transmute(data.as_mut_ptr()) };
            call();
            Err("the hypervisor could run its heap".into())
        }
        SelfTest::EntryFailure | SelfTest::OutOfMemory | SelfTest::AbsentCpu => Ok(()),
        SelfTest::Shootdown => shootdown(),
        SelfTest::Stall => {
            STALL.store(true, Ordering::SeqCst);
            Ok(())
        }
    }
}

#[inline(never)]
#[expect(
    unconditional_recursion,
    reason = "it is to overflow the stack: a volatile read keeps the compiler from knowing the depth"
)]
fn recurse(above: &[u64; 64], depth: u64) -> u64 {
    let mut frame = *above;
    // SAFETY: a local array.
    let element = unsafe { core::ptr::read_volatile(&raw const frame[depth as usize % 64]) };
    frame[0] = element + depth;
    recurse(&frame, depth + 1) + frame[1]
}

/// Rounds of the shootdown.
const ROUNDS: u64 = 32;
/// Changes, round after round, what one page is mapped to, while every CPU has it in its TLB: after each change every CPU must
/// read the new frame.
fn shootdown() -> Result<(), String> {
    let out = || String::from("no memory for the self-test");
    let frames = [
        memory::allocate_hypervisor_frame().ok_or_else(out)?,
        memory::allocate_hypervisor_frame().ok_or_else(out)?,
    ];
    let content = |round: u64| 100 + round % 2;
    for (index, frame) in frames.iter().enumerate() {
        // SAFETY: both frames were just allocated here.
        unsafe { memory::writer(Whose::Hypervisor) }
            .write(*frame, &content(index as u64).to_le_bytes());
    }
    let me = PerCpu::current();
    for round in 1..=ROUNDS {
        paging::remap_probe(frames[(round % 2) as usize]).map_err(|_| out())?;
        ROUND.store(round, Ordering::Release);
        answer(me);
        let deadline = time::ticks() + 1000 * time::khz();
        for cpu in percpu::all().filter(|cpu| cpu.online.load(Ordering::SeqCst)) {
            let answered = &ANSWERS[cpu.index as usize];
            if cpu.index != me.index {
                cpu.kick();
            }
            while answered.load(Ordering::Acquire) & 0xFFFF_FFFF != round {
                if time::ticks() > deadline {
                    return Err(format!(
                        "CPU {} does not answer in round {round}",
                        cpu.index
                    ));
                }
                core::hint::spin_loop();
            }
            let read = answered.load(Ordering::Acquire) >> 32;
            if read != content(round) {
                return Err(format!(
                    "CPU {} read {read} through a stale translation in round {round}; {} is mapped",
                    cpu.index,
                    content(round)
                ));
            }
        }
    }
    ROUND.store(0, Ordering::Release);
    paging::unmap_probe();
    for frame in frames {
        memory::free_hypervisor_frame(frame);
    }
    log::info!(
        "self-test: {ROUNDS} changes of a mapping were seen at once by {} CPUs",
        percpu::count()
    );
    Ok(())
}
