//! What is told of a vCPU that ended its VM.

use nagaya_vmm::outcome::Cause;
use x86_defs::vmcs as field;

use super::Running;
use crate::snapshot::Snapshot;

impl Running<'_, '_> {
    /// The registers as they are now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let cr2 = x86_64::registers::control::Cr2::read_raw();
        Snapshot::take(self.vcpu, cr2, |encoding| {
            self.vmcs.try_read(encoding).unwrap_or(0)
        })
    }

    /// One screen on what the vCPU was doing.
    pub(super) fn report(&mut self, cause: &Cause) {
        let registers = self.vcpu.registers;
        let read = |encoding: u32| self.vmcs.try_read(encoding).unwrap_or(0);
        let last = self.vcpu.exits.last();
        log::error!(
            "VM {} vCPU {}: {cause}\n\
             last exit {} qualification {:#x} gpa {:#x}\n\
             rip {:#018x} rsp {:#018x} rflags {:#x}\n\
             cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}\n\
             rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n\
             rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}\n\
             r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}\n\
             r13 {:016x} r14 {:016x} r15 {:016x}",
            self.vcpu.vm.name,
            self.vcpu.index,
            x86_defs::exit::ExitReason::from_raw(last.reason),
            last.qualification,
            last.guest_physical,
            read(field::GUEST_RIP.encoding()),
            read(field::GUEST_RSP.encoding()),
            read(field::GUEST_RFLAGS.encoding()),
            read(field::GUEST_CR0.encoding()),
            read(field::GUEST_CR3.encoding()),
            read(field::GUEST_CR4.encoding()),
            read(field::GUEST_IA32_EFER.encoding()),
            registers.rax,
            registers.rbx,
            registers.rcx,
            registers.rdx,
            registers.rsi,
            registers.rdi,
            registers.rbp,
            registers.r8,
            registers.r9,
            registers.r10,
            registers.r11,
            registers.r12,
            registers.r13,
            registers.r14,
            registers.r15,
        );
        if matches!(cause, Cause::EntryFailure(_) | Cause::InstructionFailure(_)) {
            for (encoding, name) in field::ALL_GUEST_STATE {
                if let Some(value) = self.vmcs.try_read(*encoding) {
                    log::error!("  {name} = {value:#x}");
                }
            }
        }
    }
}
