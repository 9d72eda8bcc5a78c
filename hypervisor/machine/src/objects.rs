//! What the hypervisor keeps: VMs, vCPUs, groups, their devices and boards, and the lists of them. It asks the scheduler by
//! `scheduling` alone.

pub mod archive;
pub mod code;
pub mod convert;
pub mod debugger;
pub mod devices;
pub mod family;
pub mod group;
pub mod handle;
pub mod identity;
pub mod image;
pub mod interrupts;
pub mod notices;
pub mod numbers;
pub mod overlay;
pub mod registry;
pub mod scheduling;
pub mod snapshot;
pub mod space;
pub mod vcpu;
pub mod vm;
