//! Writes to CR0 and CR4 that exit, and the modes that change with them.
//!
//! Source: Intel SDM Vol. 3, "Exit Qualification for Control-Register Accesses"; what a write means: `vmm::control_registers`.

use nagaya_mem::{Gpa, GuestRead};
use nagaya_vmm::control_registers::{self, Change, ControlRegisters};
use nagaya_vmm::cpu::{CodeSize, CpuState};
use nagaya_vmm::exit::ControlRegisterAccess;
use nagaya_vmm::outcome::Outcome;
use x86_defs::cr::Cr0;

use super::Running;
use super::exits::GENERAL_PROTECTION;
use crate::arch::LoadedVcpu;

/// CR3 under PAE paging: where the entries lie.
const PDPT_ADDRESS: u64 = 0xFFFF_FFE0;

impl Running<'_, '_> {
    /// MOV to CR0 or CR4 that changes a bit of the hypervisor's, CLTS and LMSW likewise.
    pub(super) fn control_register(&mut self, access: ControlRegisterAccess) -> Outcome {
        let (register, value) = match access {
            ControlRegisterAccess::Read { register: 8, .. }
            | ControlRegisterAccess::Write { register: 8, .. } => {
                return self.task_priority(access);
            }
            ControlRegisterAccess::Read { .. } => return GENERAL_PROTECTION,
            ControlRegisterAccess::Write { register, from } => match self.general(from) {
                Some(value) => (register, self.state.code_size().operand(value)),
                None => return GENERAL_PROTECTION,
            },
            ControlRegisterAccess::Clts => (0, self.state.guest_cr0() & !Cr0::TS.bits()),
            ControlRegisterAccess::Lmsw { source } => {
                let kept = self.state.guest_cr0() & !0xE;
                (0, kept | u64::from(source & 0xF))
            }
        };
        match register {
            0 => self.write_cr0(value),
            4 => self.write_cr4(value),
            _ => GENERAL_PROTECTION,
        }
    }

    fn is_in_64_bit_code(&self) -> bool {
        self.state.code_size() == CodeSize::Bits64
    }

    fn modes(&self) -> ControlRegisters {
        ControlRegisters {
            cr0: self.state.guest_cr0(),
            cr4: self.state.guest_cr4(),
            efer: self.state.efer(),
        }
    }

    fn write_cr0(&mut self, value: u64) -> Outcome {
        match control_registers::write_cr0(self.modes(), value, self.is_in_64_bit_code()) {
            Ok(change) => self.change_modes(change),
            Err(_) => GENERAL_PROTECTION,
        }
    }

    /// Bits outside the allowed ones cannot be set: to the guest they are features that its CPU lacks.
    fn write_cr4(&mut self, value: u64) -> Outcome {
        let allowed = self.state.allowed_cr4();
        match control_registers::write_cr4(self.modes(), value, allowed, self.state.cr3()) {
            Ok(change) => self.change_modes(change),
            Err(_) => GENERAL_PROTECTION,
        }
    }

    fn change_modes(&mut self, change: Change) -> Outcome {
        if change.loads_pdptes && !self.load_pdptes() {
            return GENERAL_PROTECTION;
        }
        self.state.set_modes(change.after);
        if change.flushes {
            // The CPU would have forgotten them with the instruction; that one it did not see.
            self.state.flush_translations();
        }
        Outcome::Next
    }

    /// Loads the entries of PAE paging. `false` if the CPU would fault on them.
    pub(super) fn load_pdptes(&mut self) -> bool {
        let table = self.state.cr3() & PDPT_ADDRESS;
        let mut entries = [0; 4];
        {
            let ram = self.vcpu.vm.devices.ram.view();
            for (at, entry) in (table..).step_by(8).zip(&mut entries) {
                *entry = ram.read_u64(Gpa::new(at)).unwrap_or(0);
            }
        }
        let physical_bits = core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xFF;
        if !control_registers::are_valid_pdptes(&entries, physical_bits) {
            return false;
        }
        self.state.set_pdptes(entries);
        true
    }
}
