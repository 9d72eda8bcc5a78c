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

pub mod archive;
pub mod bare;
pub mod boot;
pub mod console;
pub mod control;
pub mod cpu;
pub mod devices;
pub mod dispatch;
pub mod event;
pub mod group;
pub mod image;
pub mod memory;
pub mod paging;
pub mod rebirth;
pub mod registry;
pub mod run;
pub mod selftest;
pub mod snapshot;
pub mod stop;
pub mod terms;
pub mod vcpu;
pub mod vm;
pub mod vmx;
