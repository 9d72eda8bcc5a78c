//! The privileged shell of Nagaya: boot, CPUs, VMX instructions, the run loop. The only crate of the hypervisor with unsafe code.
//!
//! What an exit means and what may be done is decided by `nagaya-vmm` over plain values; this crate reads the machine's state
//! into such values, checks every decision, and carries it out. It compiles for a host too (where nothing of it may be
//! called), so that the ordinary tools check it.

#![no_std]
#![allow(
    unsafe_code,
    reason = "this crate is where the hypervisor touches the machine"
)]

extern crate alloc;

// From the top layer down: each may use those below it (docs/ARCHITECTURE.md).
pub mod arch;
pub mod boot;
pub mod control;
pub mod dispatch;
pub mod host;
pub mod lifecycle;
pub mod objects;
pub mod run;
pub mod vmx;
