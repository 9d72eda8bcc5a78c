//! Writes to CR0 and CR4 that exit, and the modes that change with them.
//!
//! Source: Intel SDM Vol. 3, "Exit Qualification for Control-Register Accesses"; what a write means: `vmm::control_registers`.

use nagaya_mem::{Gpa, GuestRead};
use nagaya_vmm::control_registers::{self, Change, ControlRegisters};
use nagaya_vmm::cpu::{CodeSize, CpuState};
use nagaya_vmm::outcome::Outcome;
use x86_defs::controls::Entry;
use x86_defs::cr::Cr0;
use x86_defs::exit::{CrAccess, CrAccessKind};
use x86_defs::{msr, vmcs as field};

use super::Running;
use super::exits::GENERAL_PROTECTION;
use crate::vmx::{cr, invalidate};

/// CS's access rights: 64-bit code.
pub(super) const LONG_MODE_CODE: u32 = 1 << 13;
/// CR3 under PAE paging: where the entries lie.
const PDPT_ADDRESS: u64 = 0xFFFF_FFE0;

impl Running<'_, '_> {
    /// MOV to CR0 or CR4 that changes a bit of the hypervisor's, CLTS and LMSW likewise.
    pub(super) fn control_register(&mut self, access: CrAccess) -> Outcome {
        if access.register == 8 {
            return self.task_priority(access);
        }
        let value = match access.kind {
            CrAccessKind::Write => match self.general(access.gpr) {
                Some(value) => self.code_size().operand(value),
                None => return GENERAL_PROTECTION,
            },
            CrAccessKind::Clts => self.guest_cr0() & !Cr0::TS.bits(),
            CrAccessKind::Lmsw => self.guest_cr0() & !0xE | u64::from(access.lmsw_source & 0xF),
            CrAccessKind::Read => return GENERAL_PROTECTION,
        };
        match access.register {
            0 => self.write_cr0(value),
            4 => self.write_cr4(value),
            _ => GENERAL_PROTECTION,
        }
    }

    /// CR0 as the guest sees it.
    pub(super) fn guest_cr0(&self) -> u64 {
        self.vmcs.read(field::GUEST_CR0) & !cr::CR0_OWNED
            | self.vmcs.read(field::CR0_READ_SHADOW) & cr::CR0_OWNED
    }

    /// CR4 as the guest sees it.
    pub(super) fn guest_cr4(&self) -> u64 {
        self.vmcs.read(field::GUEST_CR4) & cr::CR4_ALLOWED
            | self.vmcs.read(field::CR4_READ_SHADOW) & !cr::CR4_ALLOWED
    }

    fn is_in_64_bit_code(&self) -> bool {
        self.code_size() == CodeSize::Bits64
    }

    fn modes(&self) -> ControlRegisters {
        ControlRegisters {
            cr0: self.guest_cr0(),
            cr4: self.guest_cr4(),
            efer: self.vmcs.read(field::GUEST_IA32_EFER),
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
        let allowed = cr::CR4_ALLOWED | cr::CR4_SHADOWED;
        match control_registers::write_cr4(self.modes(), value, allowed) {
            Ok(change) => self.change_modes(change),
            Err(_) => GENERAL_PROTECTION,
        }
    }

    fn change_modes(&mut self, change: Change) -> Outcome {
        if change.loads_pdptes && !self.load_pdptes() {
            return GENERAL_PROTECTION;
        }
        let after = change.after;
        self.vmcs.write(field::GUEST_CR0, cr::real_cr0(after.cr0));
        self.vmcs.write(field::CR0_READ_SHADOW, after.cr0);
        self.vmcs.write(field::GUEST_CR4, cr::real_cr4(after.cr4));
        self.vmcs.write(field::CR4_READ_SHADOW, after.cr4);
        if after.efer != self.vmcs.read(field::GUEST_IA32_EFER) {
            self.vmcs.write(field::GUEST_IA32_EFER, after.efer);
            // The two have to agree ("Checks on Guest Control Registers, Debug Registers, and MSRs").
            let mut entry = Entry::from_bits_retain(self.vmcs.read(field::ENTRY_CONTROLS));
            entry.set(Entry::IA32E_MODE_GUEST, after.efer & msr::EFER_LMA != 0);
            self.vmcs.write(field::ENTRY_CONTROLS, entry.bits());
        }
        if change.flushes {
            // The CPU would have forgotten them with the instruction; that one it did not see.
            invalidate::vpid(self.vcpu.binding().vpid);
        }
        Outcome::Next
    }

    /// Loads the entries of PAE paging. `false` if the CPU would fault on them.
    fn load_pdptes(&mut self) -> bool {
        let table = self.vmcs.read(field::GUEST_CR3) & PDPT_ADDRESS;
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
        let [first, second, third, fourth] = entries;
        self.vmcs.write(field::GUEST_PDPTE_0, first);
        self.vmcs.write(field::GUEST_PDPTE_1, second);
        self.vmcs.write(field::GUEST_PDPTE_2, third);
        self.vmcs.write(field::GUEST_PDPTE_3, fourth);
        true
    }
}
