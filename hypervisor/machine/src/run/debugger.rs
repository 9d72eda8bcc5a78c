//! A vCPU under a debugger: what is put into it when it is loaded, and exits that are the debugger's.
//!
//! A step is made by RFLAGS.TF in the run loop itself, so that whatever its instruction needs is done as ever. An interrupt that comes first
//! takes the flag onto the stack, its handler runs, and the trap comes behind the instruction that follows its IRET.
//!
//! Source: Intel SDM Vol. 3, "Single-Step Exception Condition", "Instruction-Breakpoint Exception Condition", "Checks on Guest
//! Non-Register State".

use core::sync::atomic::Ordering;

use alloc::vec::Vec;
use nagaya_devices::GuestRam;
use nagaya_mem::{Gpa, translate};
use nagaya_vmm::control::{Stop, StopReason};
use nagaya_vmm::cpu::{CpuState, SegmentRegister};
use nagaya_vmm::debugger::{DebugRegister, GuestDebugRegisters, INT3, Watch, debug_register};
use nagaya_vmm::exit::{DebugRegisterAccess, Exception};
use nagaya_vmm::outcome::Outcome;
use x86_defs::cr::{Cr4, Rflags};
use x86_defs::interrupt::{Interruptibility, vector};

use super::Running;
use super::exits::{GENERAL_PROTECTION, INVALID_OPCODE};
use crate::arch::{Intercepts, LoadedVcpu};
use crate::dispatch;
use crate::objects::debugger::SingleStep;
use crate::objects::vcpu::Vcpu;
use crate::vmx::xstate;

/// Bit of a #DB's causes: single step.
const SINGLE_STEP: u64 = 1 << 14;
/// Bits of a #DB's causes: breakpoints of the debug registers.
const BREAKPOINTS: u64 = 0xF;

/// Brings what the VM's debugger wants into a vCPU that is being loaded, or takes it out again. Before its extended state is loaded.
pub(super) fn prepare(vcpu: &mut Vcpu, state: &mut impl LoadedVcpu) {
    let is_attached = vcpu.vm.debugger.is_attached();
    if !is_attached && !vcpu.debugged.is_prepared {
        return;
    }
    let slots = vcpu.vm.debugger.with(|debugger| debugger.hardware);
    match (slots.is_empty(), vcpu.debugged.own.take()) {
        (true, None) => {}
        (true, Some(own)) => {
            vcpu.extended.set_debug_addresses(own.addresses);
            state.set_dr7(own.dr7);
            state.intercept_debug_registers(false);
        }
        (false, own) => {
            vcpu.debugged.own = Some(own.unwrap_or_else(|| GuestDebugRegisters {
                addresses: vcpu.extended.debug_addresses(),
                dr7: state.dr7(),
            }));
            vcpu.extended.set_debug_addresses(slots.addresses());
            state.set_dr7(slots.dr7());
            state.intercept_debug_registers(true);
        }
    }
    vcpu.debugged.is_prepared = is_attached;
    state.intercept_exceptions(intercepts(vcpu));
    let mut rflags = state.rflags();
    if vcpu.debugged.passes.take() == Some(linear_rip(state)) {
        rflags |= Rflags::RF.bits();
    }
    if vcpu.debugged.step == SingleStep::Wanted {
        let had_trap_flag = rflags & Rflags::TF.bits() != 0;
        vcpu.debugged.step = SingleStep::Begun { had_trap_flag };
        rflags |= Rflags::TF.bits();
        // With TF an entry that is blocked so demands a trap that has happened already.
        let blocked = Interruptibility::BLOCKED_BY_STI | Interruptibility::BLOCKED_BY_MOV_SS;
        state.set_blocking(state.blocking() - blocked);
    }
    state.set_rflags(rflags);
}

/// The exceptions that end a vCPU's runs.
pub(super) fn intercepts(vcpu: &Vcpu) -> Intercepts {
    if vcpu.debugged.is_prepared {
        Intercepts::Debugged
    } else {
        Intercepts::Usual
    }
}

/// The linear address of the next instruction.
fn linear_rip(state: &impl LoadedVcpu) -> u64 {
    let base = state.segment_base(SegmentRegister::Cs);
    state.code_size().linear(base, state.rip())
}

impl Running<'_, '_> {
    /// Whether an exception is the debugger's, and what follows; `None` if it is the guest's.
    #[cold]
    pub(super) fn exception_for_debugger(&mut self, exception: &Exception) -> Option<Outcome> {
        match exception.vector {
            vector::BREAKPOINT => self.breakpoint_for_debugger(),
            vector::DEBUG if !exception.is_int1 => self.trap_for_debugger(exception.debug_causes),
            _ => None,
        }
    }

    fn breakpoint_for_debugger(&mut self) -> Option<Outcome> {
        let linear = linear_rip(&self.state);
        let vm = &self.vcpu.vm;
        let ram = vm.devices.ram.view();
        let gpa = translate(&self.paging(), &*ram, linear).ok()?.gpa;
        let mut now = [0];
        ram.read(gpa, &mut now).ok()?;
        drop(ram);
        let is_set = |gpa: Gpa| {
            vm.debugger
                .with(|debugger| debugger.software_at(gpa.get()).is_some())
        };
        if is_set(gpa) {
            Some(self.stop_for_debugger(StopReason::Software))
        } else {
            // One that has been taken away since it was fetched is tried again; the guest's own is the guest's.
            (now != [INT3]).then_some(Outcome::Resume)
        }
    }

    fn trap_for_debugger(&mut self, causes: u64) -> Option<Outcome> {
        let is_step = causes & SINGLE_STEP != 0;
        let step = self.vcpu.debugged.step;
        if is_step && matches!(step, SingleStep::Begun { .. } | SingleStep::CutShort) {
            self.vcpu.debugged.step = SingleStep::No;
            self.clear_trap_flag(step);
        }
        if self.vcpu.debugged.own.is_some() {
            let slots = self.vcpu.vm.debugger.with(|debugger| debugger.hardware);
            if let Some(hit) = slots.hit(causes) {
                if hit.watch == Watch::Execute {
                    self.vcpu.debugged.passes = Some(linear_rip(&self.state));
                }
                return Some(self.stop_for_debugger(StopReason::Hardware(hit)));
            }
            if causes & BREAKPOINTS != 0 && !is_step {
                // One that has been taken away since the vCPU was loaded.
                let rflags = self.state.rflags() | Rflags::RF.bits();
                self.state.set_rflags(rflags);
                return Some(Outcome::Resume);
            }
        }
        match step {
            SingleStep::Begun { .. } if is_step => {
                Some(self.stop_for_debugger(StopReason::Stepped))
            }
            SingleStep::CutShort if is_step => Some(Outcome::Resume),
            _ => None,
        }
    }

    /// Gives the guest the flag back that it had before a step. An instruction that loaded flags has cleared it, or means what it set.
    fn clear_trap_flag(&mut self, step: SingleStep) {
        let had_trap_flag = step
            == (SingleStep::Begun {
                had_trap_flag: true,
            });
        if !had_trap_flag {
            let rflags = self.state.rflags() & !Rflags::TF.bits();
            self.state.set_rflags(rflags);
        }
    }

    /// Stops the VM. This vCPU leaves its CPU before it enters again, and so do the others.
    fn stop_for_debugger(&mut self, reason: StopReason) -> Outcome {
        if let step @ SingleStep::Begun { .. } = self.vcpu.debugged.step {
            self.clear_trap_flag(step);
            self.vcpu.debugged.step = SingleStep::CutShort;
        }
        let vm = &self.vcpu.vm;
        let vcpu = self.vcpu.index;
        vm.debugger
            .with(|debugger| debugger.note(Stop { vcpu, reason }));
        // A vCPU that is started meanwhile sees the mark.
        vm.identity.paused.store(true, Ordering::SeqCst);
        let ids: Vec<_> = vm.vcpus.iter().map(|vcpu| vcpu.id).collect();
        dispatch::pause(&ids, true);
        Outcome::Resume
    }

    /// MOV to or from a debug register while the debugger has the CPU's: at CPL 0, or it would have been #GP.
    #[cold]
    pub(super) fn debug_register(&mut self, access: DebugRegisterAccess) -> Outcome {
        let DebugRegisterAccess {
            register,
            is_read,
            general,
        } = access;
        let has_extensions = self.state.guest_cr4() & Cr4::DE.bits() != 0;
        let which = debug_register(register, has_extensions);
        if which == DebugRegister::Undefined {
            return INVALID_OPCODE;
        }
        let size = self.state.code_size();
        if is_read {
            let value = match which {
                DebugRegister::Kept => self.vcpu.debugged.own.unwrap_or_default().read(register),
                _ => xstate::dr6(),
            };
            self.set_general(general, size.operand(value));
            return Outcome::Next;
        }
        let Some(value) = self.general(general) else {
            return GENERAL_PROTECTION;
        };
        let value = size.operand(value);
        let is_taken = match which {
            DebugRegister::Kept => self
                .vcpu
                .debugged
                .own
                .get_or_insert_default()
                .write(register, value),
            _ => xstate::set_dr6(value),
        };
        if is_taken {
            Outcome::Next
        } else {
            GENERAL_PROTECTION
        }
    }
}
