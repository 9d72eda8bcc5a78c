//! What a VM and a group are, and what a VM exit means: the pure core of Nagaya.
//!
//! Every module takes plain values and returns plain decisions; the privileged shell (`machine`) gathers the values, checks
//! the decisions and carries them out. All of it runs under `cargo test` on the host.
//!
//! Concurrency: values are owned by their caller, who serialises calls, but for [`doorbell`], [`posted`] and [`start_up`], which are
//! made of atomics.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod allowance;
pub mod archive;
pub mod config;
pub mod contiguous;
pub mod control;
pub mod control_registers;
pub mod cpu;
pub mod cpuid;
pub mod debugger;
pub mod doorbell;
pub mod event;
pub mod exit;
pub mod group;
pub mod hypercall;
pub mod kvm_clock;
pub mod layout;
pub mod loader;
pub mod mmio;
pub mod mp_tables;
pub mod msr;
pub mod outcome;
pub mod platform;
pub mod posted;
pub mod process;
pub mod restarts;
pub mod shared;
pub mod snapshot;
pub mod start_up;
