//! CPUID leaves by which a guest finds Nagaya.

/// EAX: highest leaf of this block. EBX, ECX, EDX: [`SIGNATURE`], four bytes each, little-endian.
pub const LEAF_SIGNATURE: u32 = 0x4000_0000;
/// EAX: [`crate::ABI_VERSION`]. EBX: feature bits ([`FEATURE_GROUP`]..). ECX: the VM's number. EDX: the vCPU's index.
pub const LEAF_VERSION: u32 = 0x4000_0001;
/// EAX: TSC frequency in kHz, as the hypervisor calibrated it. Others 0.
pub const LEAF_TIME: u32 = 0x4000_0002;
/// EAX: TSC frequency in kHz. EBX: frequency of the APIC timer's input in kHz. As other hypervisors tell them.
pub const LEAF_TIMING: u32 = 0x4000_0010;
/// The highest leaf there is for native guests.
pub const LEAF_MAX: u32 = LEAF_TIMING;
/// For guests that see a PC the block stands so far behind: they find KVM's at [`LEAF_SIGNATURE`], whose features many read without a
/// look at the signature. Look for ours in steps of this.
pub const BLOCK: u32 = 0x100;

/// What EBX, ECX, EDX of [`LEAF_SIGNATURE`] spell.
pub const SIGNATURE: [u8; 12] = *b"NagayaNagaya";

/// Feature: this VM is in a group (group page, region and doorbells are there).
pub const FEATURE_GROUP: u32 = 1 << 0;
/// Feature: doorbells can come as interrupts (`doorbell_vector`).
pub const FEATURE_DOORBELL_VECTOR: u32 = 1 << 1;
/// Feature: RDRAND and RDSEED are hidden so that runs repeat exactly.
pub const FEATURE_DETERMINISTIC: u32 = 1 << 2;
/// Feature: [`MSR_EOI_WORD`] is there. It is not where the CPU virtualises the APIC: there an EOI in x2APIC mode does not exit.
pub const FEATURE_EOI_WORD: u32 = 1 << 3;

/// Where a vCPU's word lies that spares it writes of the APIC's EOI register, and bit 0 if it is used; KVM's MSR_KVM_PV_EOI_EN, whose
/// contract it has. The word is 4 bytes of RAM, aligned. While its bit 0 is set the guest may end an interrupt by clearing it, with
/// one instruction that needs no LOCK.
pub const MSR_EOI_WORD: u32 = 0x4B56_4D04;
