//! The registers of the vCPU that has exited, as `nagaya_vmm::cpu` wants them.

use nagaya_vmm::cpu::CpuState;
use x86_defs::interrupt::{EventInjection, Interruptibility};
use x86_defs::vmcs as field;

use super::Running;

macro_rules! field_of_the_vmcs {
    ($( $read:ident $(, $write:ident)? = $field:ident; )*) => {
        $(
            #[inline]
            fn $read(&self) -> u64 {
                self.vmcs.read(field::$field)
            }
            $(
                #[inline]
                fn $write(&mut self, value: u64) {
                    self.vmcs.write(field::$field, value);
                }
            )?
        )*
    };
}

impl CpuState for Running<'_, '_> {
    field_of_the_vmcs! {
        rip, set_rip = GUEST_RIP;
        rflags, set_rflags = GUEST_RFLAGS;
        cr0 = GUEST_CR0;
        efer = GUEST_IA32_EFER;
        pending_debug, set_pending_debug = GUEST_PENDING_DEBUG_EXCEPTIONS;
        debugctl, set_debugctl = GUEST_IA32_DEBUGCTL;
        dr7, set_dr7 = GUEST_DR7;
    }

    #[inline]
    fn code_rights(&self) -> u32 {
        self.vmcs.read(field::GUEST_CS_ACCESS_RIGHTS)
    }

    #[inline]
    fn blocking(&self) -> Interruptibility {
        Interruptibility::from_bits_retain(self.vmcs.read(field::GUEST_INTERRUPTIBILITY))
    }

    #[inline]
    fn set_blocking(&mut self, blocking: Interruptibility) {
        self.vmcs
            .write(field::GUEST_INTERRUPTIBILITY, blocking.bits());
    }

    #[inline]
    fn set_event(&mut self, event: EventInjection) {
        self.vmcs
            .write(field::ENTRY_INTERRUPTION_INFO, event.to_u32());
        if let Some(code) = event.error_code {
            self.vmcs.write(field::ENTRY_EXCEPTION_ERROR_CODE, code);
        }
    }
}
