//! Events of the machine, stamped with the TSC and sent on the event line.

use nagaya_vmm::event::Event;

use crate::host::console;
use crate::host::cpu::time;

/// Ticks since the hypervisor's entry.
#[must_use]
pub fn ticks() -> u64 {
    time::ticks().wrapping_sub(time::boot_ticks())
}

/// Starts an event stamped with the time since the hypervisor's entry, in ticks.
#[must_use]
pub fn new(name: &str) -> Event {
    Event::new(ticks(), name)
}

/// Sends it.
pub fn send(event: Event) {
    console::event(&event.finish());
}

/// Reports the end of a boot phase.
pub fn boot_phase(name: &str) {
    send(new("boot-phase").string("name", name));
}
