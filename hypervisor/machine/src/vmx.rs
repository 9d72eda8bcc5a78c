//! VMX on the executing CPU: what it can do, entering it, VMCS residency, entries and exits. It knows no VM.
//!
//! Source: Intel SDM Vol. 3, "Introduction to Virtual Machine Extensions", "VMX Instruction Reference".

pub mod bitmaps;
pub mod capabilities;
pub mod cr;
mod dump;
pub mod entry;
pub mod guest_area;
pub mod invalidate;
pub mod loaded;
pub mod operation;
mod segments;
pub mod setup;
pub mod start;
pub mod virtual_apic;
pub mod vmcs;
pub mod xstate;
