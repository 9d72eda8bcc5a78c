//! What is told of a vCPU that ended its VM.

use core::sync::atomic::Ordering;

use nagaya_vmm::exit::vmx as decode;
use nagaya_vmm::outcome::Cause;

use super::Running;
use crate::arch::LoadedVcpu;
use crate::host::event;
use crate::objects::notices;
use crate::objects::snapshot::Snapshot;

impl Running<'_, '_> {
    /// The registers as they are now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let cr2 = x86_64::registers::control::Cr2::read_raw();
        let registers = self.state.registers(&self.vcpu.registers, cr2);
        self.vcpu.snapshot_with(registers)
    }

    /// The guest's kernel says that it has panicked. It is told once in a VM's life, however often the guest says it.
    #[cold]
    pub(super) fn guest_panicked(&self, is_dumping: bool) {
        let vm = &self.vcpu.vm;
        if vm.panicked.swap(true, Ordering::Relaxed) {
            return;
        }
        let what = if is_dumping {
            "its kernel has panicked, and another dumps its memory"
        } else {
            "its kernel has panicked"
        };
        log::warn!("VM {}: {what}", vm.name);
        event::send(
            event::new("vm-panicked")
                .string("vm", &vm.name)
                .flag("dumping", is_dumping),
        );
        notices::note("vm-panicked", Some(vm.id), &vm.name);
    }

    /// One screen on what the vCPU was doing.
    pub(super) fn report(&self, cause: &Cause) {
        let Snapshot { registers, .. } = self.snapshot();
        let last = self.vcpu.exits.last();
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = registers.general;
        log::error!(
            "VM {} vCPU {}: {cause}\n\
             last exit {} qualification {:#x} gpa {:#x}\n\
             rip {:#018x} rsp {rsp:#018x} rflags {:#x}\n\
             cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}\n\
             rax {rax:016x} rbx {rbx:016x} rcx {rcx:016x} rdx {rdx:016x}\n\
             rsi {rsi:016x} rdi {rdi:016x} rbp {rbp:016x} r8  {r8:016x}\n\
             r9  {r9:016x} r10 {r10:016x} r11 {r11:016x} r12 {r12:016x}\n\
             r13 {r13:016x} r14 {r14:016x} r15 {r15:016x}",
            self.vcpu.vm.name,
            self.vcpu.index,
            decode::reason(&last),
            last.qualification,
            last.guest_physical,
            registers.rip,
            registers.rflags,
            registers.cr0,
            registers.cr2,
            registers.cr3,
            registers.cr4,
            registers.efer,
        );
        if matches!(cause, Cause::EntryFailure(_) | Cause::InstructionFailure(_)) {
            self.state
                .tell_fields(&mut |name, value| log::error!("  {name} = {value:#x}"));
        }
    }
}
