//! The control port as the run loop sees it: when it is to be served, and the function that does so.
//!
//! The port itself is a layer above (`control`), which opens it here at boot and sets its times. CPU 0 serves it, between its own vCPUs'
//! exits or while it sleeps. Concurrency: atomics only.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Once;

use crate::host::cpu::percpu::{self, PerCpu};
use crate::host::cpu::time;

/// There is something to do at once.
static WANTED: AtomicBool = AtomicBool::new(false);
/// TSC value at which the port is to be looked at; `u64::MAX` for never.
static DUE: AtomicU64 = AtomicU64::new(u64::MAX);
/// What serves it; set when it is open.
static SERVE: Once<fn()> = Once::new();

/// The port is open and is served by `serve`, first of all at once.
pub fn open(serve: fn()) {
    SERVE.call_once(|| serve);
    WANTED.store(true, Ordering::SeqCst);
}

/// Part of every NMI, the way by which the port's interrupt arrives on CPU 0: that CPU looks at the port before it goes on. Touches
/// atomics only.
pub fn note_interrupt(cpu: &PerCpu) {
    if cpu.index == 0 && SERVE.get().is_some() {
        WANTED.store(true, Ordering::SeqCst);
        cpu.kicked.store(true, Ordering::SeqCst);
    }
}

/// Something that a client waits for has come about: CPU 0 looks at the port soon.
pub fn look_soon() {
    WANTED.store(true, Ordering::SeqCst);
    if let Some(server) = percpu::get(0) {
        server.kick();
    }
}

/// What has come up to now is being served.
pub fn begin() {
    WANTED.store(false, Ordering::SeqCst);
}

/// Sets the TSC value at which the port is to be looked at next; `u64::MAX` for not before something comes.
pub fn set_due(tsc: u64) {
    DUE.store(tsc, Ordering::SeqCst);
}

/// When CPU 0 has to look at the port.
#[must_use]
pub fn due() -> u64 {
    if WANTED.load(Ordering::SeqCst) {
        0
    } else {
        DUE.load(Ordering::SeqCst)
    }
}

/// The longest that CPU 0 sleeps while the port is open, in ticks: an NMI that comes between the last look at the marks and the
/// halt is noticed no later.
#[must_use]
pub fn longest_sleep() -> u64 {
    if SERVE.get().is_some() {
        10 * time::khz()
    } else {
        u64::MAX
    }
}

/// Serves the port, if its time has come. On CPU 0, with no lock held.
pub fn serve(now: u64) {
    if due() <= now
        && let Some(serve) = SERVE.get()
    {
        serve();
    }
}
