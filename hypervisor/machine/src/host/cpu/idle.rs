//! Sleeping: what a CPU does while it has no vCPU, or a halted one.

use core::sync::atomic::Ordering;

use crate::host::cpu::percpu::PerCpu;
use crate::host::cpu::time;

/// Halts the executing CPU until it is kicked or the TSC reaches `deadline` (`None`: no deadline). Returns at once if it has
/// been kicked or if `is_idle`, asked last thing before the halt, says no. May return early; callers look at their state again.
pub fn sleep(cpu: &PerCpu, deadline: Option<u64>, is_idle: impl FnOnce() -> bool) {
    // Nobody waits for this CPU, whether it sleeps or goes on at once with work for nobody here.
    let now = time::ticks();
    cpu.watch.leave_root(now);
    cpu.watch.enter_root(now);
    if let Some(deadline) = deadline {
        let now = time::ticks();
        if deadline <= now {
            return;
        }
        cpu.with_apic(|apic| apic.arm_timer(deadline - now));
    }
    cpu.sleeping.store(true, Ordering::SeqCst);
    // A kicker stores `kicked`, then loads `sleeping`; we the other way round. Either we see the kick here, or the kicker
    // sees us asleep and sends an IPI, which stays pending until the STI below lets it in: HLT begins before any interrupt is
    // taken (the instruction after STI is shielded), so none is lost.
    if !cpu.kicked.load(Ordering::SeqCst) && is_idle() {
        cpu.watch.leave_root(time::ticks());
        x86_64::instructions::interrupts::enable_and_hlt();
        x86_64::instructions::interrupts::disable();
        cpu.watch.enter_root(time::ticks());
    }
    cpu.sleeping.store(false, Ordering::SeqCst);
    if deadline.is_some() {
        cpu.with_apic(crate::host::cpu::apic::Apic::disarm_timer);
    }
}
