//! A deterministic simulator of the scheduler: what would a machine do with this load?
//!
//! [`Machine`] has the CPUs: it does what the scheduler says and nothing else. [`Scenario`] describes groups, VMs and what
//! their vCPUs do ([`Behaviour`]); [`Simulation`] runs that on a machine, in virtual time. The same scenario with the same
//! seed gives the same trace, byte for byte. [`ascii`] and [`svg`] draw what happened.
//!
//! Left out: caches, memory, and the time that decisions take. A switch costs what the scenario says, and nothing else does.
//! Compiled for tests and with the feature `sim`; never part of the hypervisor.

mod behaviour;
mod loads;
mod machine;
mod picture;
mod rng;
mod scenario;
mod simulation;
mod trace;

pub use behaviour::{BarrierId, Behaviour, LockId, Wait};
pub use loads::{Load, Policy, add_group, groups, machine};
pub use machine::{Delays, Machine};
pub use picture::{Panel, ascii, svg};
pub use rng::Rng;
pub use scenario::Scenario;
pub use simulation::{Simulation, Tally};
pub use trace::{Event, Line, Segment};
