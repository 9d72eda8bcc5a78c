//! The guest's part of a VMCS as a value, to be put into another.
//!
//! Source: Intel SDM Vol. 3, "Guest-State Area", "VM-Entry Controls for Event Injection".

use x86_defs::vmcs::{self as field, Access, Field, ReadWrite, Width};

use crate::vmx::vmcs::{LoadedVmcs, Vmcs};

/// What of a guest its VMCS holds: its registers, what it is blocked by, the event that its next entry delivers, and in which mode
/// it is entered. What the hypervisor sets for itself is not in it, nor what the CPU keeps of an APIC.
#[derive(Clone, Debug)]
pub struct GuestArea([u64; COUNT]);

fn get<W: Width, A: Access>(read: &impl Fn(u32) -> u64, field: Field<W, A>) -> u64 {
    read(field.encoding())
}

fn put<W: Width>(vmcs: &mut LoadedVmcs<'_>, field: Field<W, ReadWrite>, value: u64) {
    vmcs.write(field, W::from_u64(value));
}

macro_rules! fields {
    ($($name:ident)*) => {
        const COUNT: usize = [$(stringify!($name)),*].len();

        fn read_all(read: impl Fn(u32) -> u64) -> [u64; COUNT] {
            [$(get(&read, field::$name)),*]
        }

        fn write_all(values: &[u64; COUNT], vmcs: &mut LoadedVmcs<'_>) {
            let mut values = values.iter();
            $(
                if let Some(value) = values.next() {
                    put(vmcs, field::$name, *value);
                }
            )*
        }
    };
}

fields! {
    ENTRY_CONTROLS ENTRY_INTERRUPTION_INFO ENTRY_EXCEPTION_ERROR_CODE ENTRY_INSTRUCTION_LENGTH
    GUEST_CR0 CR0_READ_SHADOW GUEST_CR3 GUEST_CR4 CR4_READ_SHADOW GUEST_DR7
    GUEST_RSP GUEST_RIP GUEST_RFLAGS
    GUEST_ES_SELECTOR GUEST_CS_SELECTOR GUEST_SS_SELECTOR GUEST_DS_SELECTOR
    GUEST_FS_SELECTOR GUEST_GS_SELECTOR GUEST_LDTR_SELECTOR GUEST_TR_SELECTOR
    GUEST_ES_LIMIT GUEST_CS_LIMIT GUEST_SS_LIMIT GUEST_DS_LIMIT
    GUEST_FS_LIMIT GUEST_GS_LIMIT GUEST_LDTR_LIMIT GUEST_TR_LIMIT
    GUEST_ES_ACCESS_RIGHTS GUEST_CS_ACCESS_RIGHTS GUEST_SS_ACCESS_RIGHTS GUEST_DS_ACCESS_RIGHTS
    GUEST_FS_ACCESS_RIGHTS GUEST_GS_ACCESS_RIGHTS GUEST_LDTR_ACCESS_RIGHTS GUEST_TR_ACCESS_RIGHTS
    GUEST_ES_BASE GUEST_CS_BASE GUEST_SS_BASE GUEST_DS_BASE
    GUEST_FS_BASE GUEST_GS_BASE GUEST_LDTR_BASE GUEST_TR_BASE
    GUEST_GDTR_BASE GUEST_GDTR_LIMIT GUEST_IDTR_BASE GUEST_IDTR_LIMIT
    GUEST_INTERRUPTIBILITY GUEST_ACTIVITY_STATE GUEST_PENDING_DEBUG_EXCEPTIONS VMCS_LINK_POINTER
    GUEST_IA32_EFER GUEST_IA32_PAT GUEST_IA32_DEBUGCTL
    GUEST_IA32_SYSENTER_CS GUEST_IA32_SYSENTER_ESP GUEST_IA32_SYSENTER_EIP
    GUEST_PDPTE_0 GUEST_PDPTE_1 GUEST_PDPTE_2 GUEST_PDPTE_3
}

impl GuestArea {
    /// That of the guest that is loaded on the executing CPU, between an exit and the next entry.
    #[must_use]
    pub fn of_loaded(vmcs: &LoadedVmcs<'_>) -> GuestArea {
        GuestArea(read_all(|encoding| vmcs.try_read(encoding).unwrap_or(0)))
    }

    /// That of a guest that is on no CPU.
    #[must_use]
    pub fn of_parked(vmcs: &Vmcs) -> GuestArea {
        GuestArea(vmcs.inspect(|read| read_all(read)))
    }

    /// Puts it into a VMCS.
    pub fn write(&self, vmcs: &mut LoadedVmcs<'_>) {
        write_all(&self.0, vmcs);
    }
}
