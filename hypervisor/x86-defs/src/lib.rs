//! What the Intel SDM says about VMX, as plain data: VMCS fields, exit reasons, controls, MSRs, EPT entries, events.
//!
//! Nothing here executes an instruction or touches memory, so that every layer, host tools and tests share the definitions.
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volumes 3 (VMX, its appendices A to C) and 4 (MSRs);
//! each module names the sections. Registers are decoded by open types: a value that a later CPU adds stays representable.
//!
//! Concurrency: none; all items are values and constant.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod apic;
pub mod controls;
pub mod cr;
pub mod ept;
pub mod exit;
pub mod interrupt;
pub mod msr;
pub mod vmcs;
