//! How fast a counter runs, measured against another whose rate is known, on a machine that may stand still at any moment.
//!
//! Below a hypervisor, or on a host that is busy, the CPU that measures can be taken away between any two instructions. So the
//! counter is read on both sides of each access to the reference, and a measurement ([`Shot`]) is two bounds: whatever happened
//! meanwhile, the truth lies between them, and a disturbed shot shows as a wide one. Several short shots are taken and the tightest
//! wins. What CPUID says of the rate is exact where it is true, and is believed as long as no shot contradicts it: an emulator
//! may describe a CPU that it does not keep pace with.
//!
//! Pure: the machine is behind [`Reference`] and [`Countdown`]. Concurrency: none.

#![no_std]
#![forbid(unsafe_code)]

mod apic;
mod cpuid;
mod shot;
#[cfg(test)]
mod tests;
mod tsc;

pub use apic::{Countdown, measure_countdown};
pub use cpuid::{Crystal, crystal, hypervisor_timing};
pub use shot::Shot;
pub use tsc::{Frequency, PIT_HZ, Reference, Source, Stuck, measure};
