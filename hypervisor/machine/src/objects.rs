//! What the hypervisor keeps: VMs, vCPUs, groups, their devices and boards, and the lists of them.

pub mod archive;
pub mod convert;
pub mod devices;
pub mod group;
pub mod image;
pub mod registry;
pub mod reset;
pub mod snapshot;
pub mod vcpu;
pub mod vm;
