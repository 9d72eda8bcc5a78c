//! One physical CPU: tables, per-CPU state, local APIC, time, start-up of the others.

pub mod acpi;
pub mod apic;
pub mod idle;
pub mod ioapic;
pub mod jobs;
pub mod percpu;
pub mod protect;
pub mod smp;
pub mod time;
pub mod trap_frame;
pub mod traps;
pub mod wall_clock;
pub mod watch;
pub mod watchdog;
pub mod worker;
