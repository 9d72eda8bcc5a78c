//! A credit scheduler whose unit is the gang: the VMs of a group, or one VM without a group.
//!
//! The scheduler is a value. It is told what happens (a vCPU woke, blocked, yields) and when, in ticks of the TSC, and answers
//! with decisions: what a CPU is to run, until when, and which other CPUs are to ask as well ([`Kicks`]). It reads no clock,
//! starts nothing and knows no machine. `docs/SCHEDULING.md` tells the algorithm, its bounds and what it was measured to do.
//!
//! Concurrency: none here; the caller holds one lock for each call. Calls cost the logarithm of the number of gangs, plus
//! the members of the gangs concerned times the CPUs. Memory is taken when vCPUs, VMs and groups are added.
//!
//! Sources: paper 004 (groups scheduled as one machine); Ousterhout, "Scheduling Techniques for Concurrent Systems" (gangs);
//! Sukwong and Kim, "Is Co-scheduling Too Expensive for SMP VMs?" (balance); VMware, "The CPU Scheduler in VMware vSphere"
//! (relaxed co-scheduling).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "sim"))]
extern crate std;

mod account;
mod budget;
mod charge;
mod claims;
mod config;
mod gang;
mod ids;
mod pick;
mod place;
mod queue;
mod refill;
mod report;
mod rules;
mod scheduler;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod skew;
mod state;
mod swap;
mod table;
mod wake;
mod work;
mod yields;

pub use account::{Account, CpuAccount, GroupAccount, Starts};
pub use config::{Affinity, Config, Error, Mode, Share};
pub use ids::{CpuId, CpuSet, GroupId, Kicks, Ticks, VcpuId, VmId};
pub use scheduler::{Decision, Scheduler};
pub use table::{Key, Table};

#[cfg(test)]
mod tests;
