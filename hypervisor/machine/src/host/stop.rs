//! Ending the machine: when all VMs have ended, when the boot fails, when the hypervisor itself fails.
//!
//! The last event line is always `end`. After it both serial lines are drained and the power goes off by the way the scenario
//! names (an emulator's port), else all CPUs halt.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use nagaya_vmm::config::DebugExit;
use nagaya_vmm::event::Escaped;
use x86_64::instructions::port::Port;

use crate::host::console;
use crate::host::cpu::percpu::{self, PerCpu};
use crate::host::cpu::time;
use crate::host::cpu::trap_frame::TrapFrame;
use crate::host::event;

static STOPPING: AtomicBool = AtomicBool::new(false);
static ENDED: AtomicBool = AtomicBool::new(false);
/// 0 none known yet, 1 Bochs, 2 QEMU, 3 neither.
static WAY: AtomicU8 = AtomicU8::new(0);

/// Remembers how the scenario wants the machine to end.
pub fn set_poweroff_method(way: Option<DebugExit>) {
    let code = match way {
        Some(DebugExit::BochsShutdownPort) => 1,
        Some(DebugExit::QemuIsaDebugExit) => 2,
        None => 3,
    };
    WAY.store(code, Ordering::Relaxed);
}

/// Whether the other CPUs have been told to stop.
#[must_use]
pub fn is_stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

/// The executing CPU has been told to stop and does so: it says that it has, and never touches anything of the others' again.
pub fn halt_stopped() -> ! {
    // Before the first has its state there is no other CPU to tell.
    if percpu::count() > 0 {
        PerCpu::current().stopped.store(true, Ordering::SeqCst);
    }
    halt_for_ever()
}

/// Halts the executing CPU with interrupts off, for ever.
pub fn halt_for_ever() -> ! {
    x86_64::instructions::interrupts::disable();
    loop {
        x86_64::instructions::hlt();
    }
}

/// Ends a run that has failed, without touching the heap: there is none yet, or it may be what is broken. `reason` must need
/// no escaping in JSON.
pub fn fail_run(reason: &'static str) -> ! {
    log::error!("the run fails: {reason}");
    end(false, format_args!("{reason}"))
}

/// Ends the run: sends the `end` event and switches the machine off.
pub fn end_run(ok: bool, reason: &str) -> ! {
    if ok {
        log::info!("the run ends well: {reason}");
    } else {
        log::error!("the run fails: {reason}");
    }
    end(ok, format_args!("{}", Escaped(reason)))
}

fn end(ok: bool, reason: fmt::Arguments<'_>) -> ! {
    if ENDED.swap(true, Ordering::SeqCst) {
        halt_for_ever();
    }
    let ticks = event::ticks();
    let root = percpu::all().map(|cpu| cpu.watch.root_longest()).max();
    let root = root.unwrap_or(0);
    console::close_events(format_args!(
        "{{\"ticks\":{ticks},\"event\":\"end\",\"ok\":{ok},\"root_longest\":{root},\"reason\":\"{reason}\"}}"
    ));
    console::drain();
    power_off(ok);
    halt_for_ever();
}

fn power_off(ok: bool) {
    let way = WAY.load(Ordering::Relaxed);
    // SAFETY: these ports do nothing on a machine without the emulator's device (0x8900 and 0xF4 are unassigned on PCs), and
    // the machine is at its end. 3 means real hardware: nothing is written there.
    unsafe {
        if way < 2 {
            for byte in *b"Shutdown" {
                Port::<u8>::new(0x8900).write(byte);
            }
        }
        if way == 0 || way == 2 {
            Port::<u32>::new(0xF4).write(if ok { 0x10 } else { 0x11 });
        }
    }
}

/// How long the others may take to stop, in milliseconds: an NMI reaches each at once, but for one that is handling another.
const STOP_MS: u64 = 100;

/// Tells all other CPUs, by NMI, to halt, and waits until they have.
fn stop_others() {
    if STOPPING.swap(true, Ordering::SeqCst) {
        // Somebody else was first.
        halt_stopped();
    }
    let mut all_stopped = true;
    if percpu::count() > 1 {
        let me = PerCpu::current();
        let others = || {
            percpu::all().filter(|cpu| cpu.index != me.index && cpu.online.load(Ordering::SeqCst))
        };
        others().for_each(PerCpu::kick_urgently);
        let deadline = time::ticks().saturating_add(STOP_MS * time::khz());
        for cpu in others() {
            while !cpu.stopped.load(Ordering::SeqCst) && time::ticks() < deadline {
                core::hint::spin_loop();
            }
            all_stopped &= cpu.stopped.load(Ordering::SeqCst);
        }
    }
    if all_stopped {
        // SAFETY: `halt_stopped` says of each other CPU that it never sends again; if this one was sending, it is here now and does not go
        // back.
        unsafe { console::break_locks() };
    } else {
        // One of them may be in the middle of a line for ever: nothing is taken from it.
        console::do_not_wait();
        log::error!("not all CPUs have stopped");
    }
}

/// The hypervisor panicked: says where, stops all CPUs, fails the run.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    stop_others();
    log::error!("HYPERVISOR PANIC: {info}");
    fail_run("the hypervisor panicked")
}

/// An exception in the hypervisor: dumps it, stops all CPUs, fails the run.
pub fn trapped(frame: &TrapFrame) -> ! {
    stop_others();
    log::error!("EXCEPTION IN THE HYPERVISOR: {frame}");
    fail_run("an exception in the hypervisor")
}
