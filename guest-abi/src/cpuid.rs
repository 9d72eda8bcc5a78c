//! CPUID leaves by which a guest finds Nagaya.

/// EAX: highest Nagaya leaf. EBX, ECX, EDX: [`SIGNATURE`], four bytes each, little-endian.
pub const LEAF_SIGNATURE: u32 = 0x4000_0000;
/// EAX: [`crate::ABI_VERSION`]. EBX: feature bits ([`FEATURE_GROUP`]..). ECX: the VM's number. EDX: the vCPU's index.
pub const LEAF_VERSION: u32 = 0x4000_0001;
/// EAX: TSC frequency in kHz, as the hypervisor calibrated it. Others 0.
pub const LEAF_TIME: u32 = 0x4000_0002;
/// The highest leaf there is.
pub const LEAF_MAX: u32 = LEAF_TIME;

/// What EBX, ECX, EDX of [`LEAF_SIGNATURE`] spell.
pub const SIGNATURE: [u8; 12] = *b"NagayaNagaya";

/// Feature: this VM is in a group (group page, region and doorbells are there).
pub const FEATURE_GROUP: u32 = 1 << 0;
/// Feature: doorbells can come as interrupts (`doorbell_vector`).
pub const FEATURE_DOORBELL_VECTOR: u32 = 1 << 1;
/// Feature: RDRAND and RDSEED are hidden so that runs repeat exactly.
pub const FEATURE_DETERMINISTIC: u32 = 1 << 2;
