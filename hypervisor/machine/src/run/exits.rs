//! Exits other than hypercalls.

use guest_abi::cpuid::MSR_EOI_WORD;
use nagaya_vmm::cpu::CpuState;
use nagaya_vmm::cpuid::{self, Registers};
use nagaya_vmm::exit::{Exception, Instruction, VmExit};
use nagaya_vmm::msr::{self as policy, MsrAnswer};
use nagaya_vmm::outcome::{Block, Cause, Outcome};
use x86_defs::cr::{Cr0, Xcr0};
use x86_defs::interrupt::{EventInjection, EventKind, vector};
use x86_defs::msr;

use super::Running;
use crate::arch::LoadedVcpu;
use crate::host::cpu::{time, traps};
use crate::objects::debugger::SingleStep;
use crate::vmx::{capabilities, xstate};

pub(super) const GENERAL_PROTECTION: Outcome = Outcome::Inject(EventInjection::GENERAL_PROTECTION);
pub(super) const INVALID_OPCODE: Outcome = Outcome::Inject(EventInjection::INVALID_OPCODE);

/// #GP(0), raised by an access that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault;

/// What follows from an access.
fn outcome_of(access: Result<(), Fault>) -> Outcome {
    match access {
        Ok(()) => Outcome::Next,
        Err(Fault) => GENERAL_PROTECTION,
    }
}

fn halves(value: u64) -> (u64, u64) {
    (value & 0xFFFF_FFFF, value >> 32)
}

impl Running<'_, '_> {
    pub(super) fn handle(&mut self, exit: VmExit) -> Outcome {
        match exit {
            VmExit::Hypercall => self.hypercall(),
            VmExit::Cpuid => {
                self.cpuid();
                Outcome::Next
            }
            VmExit::MsrRead => outcome_of(self.msr_read()),
            VmExit::MsrWrite => outcome_of(self.msr_write()),
            VmExit::Port(access) => self.port(access),
            VmExit::Halt => Outcome::Block(Block::Halt),
            VmExit::ExternalInterrupt => {
                // The exit has taken it from this CPU's APIC ("acknowledge interrupt on exit"): no IDT is needed to learn of it.
                traps::interrupted(self.state.interrupt_vector());
                Outcome::Resume
            }
            VmExit::Nmi => {
                if traps::nmi_ended_run(self.cpu) {
                    self.arm();
                }
                Outcome::Resume
            }
            VmExit::PreemptionTimer => Outcome::Tick,
            VmExit::InterruptWindow => {
                self.looks_for_interrupts = true;
                Outcome::Resume
            }
            VmExit::EndOfInterrupt { vector } => self.end_of_interrupt(vector),
            VmExit::MemoryViolation { gpa, access } => self.memory_violation(gpa, access),
            VmExit::Misconfiguration { gpa } => Outcome::End(Cause::Misconfiguration { gpa }),
            VmExit::ControlRegister(access) => self.control_register(access),
            VmExit::DebugRegister(access) => self.debug_register(access),
            VmExit::Exception(exception) => self.exception(exception),
            VmExit::TaskSwitch {
                selector,
                initiator,
            } => self.task_switch(selector, initiator),
            VmExit::TripleFault if self.vcpu.vm.identity.restarts_on_triple_fault() => {
                Outcome::End(Cause::Reset)
            }
            VmExit::TripleFault => Outcome::End(Cause::TripleFault),
            VmExit::Instruction(instruction) => self.instruction(instruction),
            VmExit::EntryFailure(reason) => Outcome::End(Cause::EntryFailure(reason)),
            VmExit::Unknown(reason) => Outcome::End(Cause::UnknownExit(reason)),
        }
    }

    #[inline(always)]
    pub(super) fn cpuid(&mut self) {
        let registers = &mut self.vcpu.registers;
        let leaf = cpuid::answered_leaf(registers.rax as u32, self.vcpu.cpuid.last_leaf);
        let subleaf = registers.rcx as u32;
        let host = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        let host = Registers {
            eax: host.eax,
            ebx: host.ebx,
            ecx: host.ecx,
            edx: host.edx,
        };
        let os_xsave = leaf == 1 && self.state.has_osxsave();
        let answer = cpuid::answer(leaf, subleaf, host, &self.vcpu.cpuid, os_xsave);
        registers.rax = u64::from(answer.eax);
        registers.rbx = u64::from(answer.ebx);
        registers.rcx = u64::from(answer.ecx);
        registers.rdx = u64::from(answer.edx);
    }

    /// RDMSR.
    ///
    /// # Errors
    /// #GP.
    #[inline]
    pub(super) fn msr_read(&mut self) -> Result<(), Fault> {
        let number = self.vcpu.registers.rcx as u32;
        let value = match number {
            // Of the APIC's registers the one that has nothing to do with interrupts.
            msr::IA32_APIC_BASE => self.vcpu.apic.base_msr(),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST | msr::IA32_TSC_DEADLINE => {
                self.apic_msr_read(number)?
            }
            _ => self.other_msr_read(number)?,
        };
        (self.vcpu.registers.rax, self.vcpu.registers.rdx) = halves(value);
        Ok(())
    }

    fn other_msr_read(&mut self, number: u32) -> Result<u64, Fault> {
        if number == MSR_EOI_WORD && self.vcpu.cpuid.has_eoi_word {
            return Ok(self.vcpu.eoi_word.register());
        }
        if number == msr::IA32_EFER {
            self.note_modes();
        }
        match policy::read(number, time::ticks(), &self.vcpu.msrs) {
            MsrAnswer::Value(value) => Ok(value),
            _ => Err(Fault),
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// #GP.
    #[inline]
    pub(super) fn msr_write(&mut self) -> Result<(), Fault> {
        let registers = &self.vcpu.registers;
        let number = registers.rcx as u32;
        let value = registers.rax & 0xFFFF_FFFF | registers.rdx << 32;
        match number {
            msr::IA32_TSC_DEADLINE => {
                self.write_deadline(value);
                Ok(())
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST | msr::IA32_APIC_BASE => {
                self.apic_msr_write(number, value)
            }
            _ => self.other_msr_write(number, value),
        }
    }

    fn other_msr_write(&mut self, number: u32, value: u64) -> Result<(), Fault> {
        if number == MSR_EOI_WORD && self.vcpu.cpuid.has_eoi_word {
            return self.apic_msr_write(number, value);
        }
        if number == msr::IA32_EFER {
            self.note_modes();
        }
        let before = self.vcpu.msrs.tsc_offset;
        match policy::write(number, value, time::ticks(), &mut self.vcpu.msrs) {
            MsrAnswer::Value(_) => {}
            MsrAnswer::SetEfer(value) => self.state.set_efer(value),
            MsrAnswer::SetPat(value) => self.state.set_pat(value),
            MsrAnswer::SetDebugctl(value) => self.state.set_debugctl(value),
            MsrAnswer::TscMoved => self.move_tsc(before),
            MsrAnswer::WriteClock => self.vcpu.publish_clock(false),
            MsrAnswer::WriteWallClock(gpa) => self.vcpu.publish_wall_clock(gpa),
            MsrAnswer::GeneralProtection => return Err(Fault),
        }
        Ok(())
    }

    /// The guest has moved its TSC, which was so far ahead before: deadlines are of that TSC, and its clock is made of it.
    #[cold]
    fn move_tsc(&mut self, before: u64) {
        let offset = self.vcpu.msrs.tsc_offset;
        self.state.set_tsc_offset(offset);
        let moved = before.wrapping_sub(offset);
        let now = time::ticks();
        let deadline = self.vcpu.apic.tsc_deadline(now);
        if deadline != 0 {
            let deadline = deadline.wrapping_add(moved);
            let _ = self.vcpu.apic.set_tsc_deadline(deadline, now);
        }
        if let Some(deadline) = &mut self.vcpu.deadline {
            *deadline = deadline.wrapping_add(moved);
        }
        self.vcpu.publish_clock(false);
        self.apic_changed();
    }

    /// Before IA32_EFER is looked at: LMA and PG may have changed without an exit.
    fn note_modes(&mut self) {
        self.vcpu.msrs.efer = self.state.efer();
        self.vcpu.msrs.paging = self.state.cr0() & Cr0::PG.bits() != 0;
    }

    pub(super) fn exception(&mut self, exception: Exception) -> Outcome {
        let vector = exception.vector;
        if vector == vector::MACHINE_CHECK {
            panic!("machine check while VM {} ran", self.vcpu.vm.name);
        }
        // An interrupt whose delivery was cut short by this exception comes again after it.
        self.take_back_interrupt();
        let is_debugged = self.vcpu.debugged.is_prepared;
        if (is_debugged || self.vcpu.debugged.step != SingleStep::No)
            && let Some(outcome) = self.exception_for_debugger(&exception)
        {
            return outcome;
        }
        let kind = if vector == vector::BREAKPOINT {
            // INT3: the handler is to return behind the instruction.
            let length = self.state.instruction_length();
            self.state.set_event_length(length);
            EventKind::SoftwareException
        } else if exception.is_int1 {
            // The handler is to return behind the instruction, which leaves DR6 alone.
            let length = self.state.instruction_length();
            self.state.set_event_length(length);
            EventKind::PrivilegedSoftwareException
        } else {
            if vector == vector::DEBUG {
                // The exit kept the CPU from noting the causes.
                xstate::set_debug_causes(exception.debug_causes);
            }
            EventKind::HardwareException
        };
        Outcome::Inject(EventInjection {
            vector,
            kind,
            error_code: exception.error_code,
        })
    }

    fn instruction(&mut self, instruction: Instruction) -> Outcome {
        match instruction {
            // Caches are coherent and nothing is behind them that a guest must write back to by hand.
            Instruction::Invd | Instruction::Wbinvd => Outcome::Next,
            Instruction::Pause => Outcome::Spinning,
            Instruction::Xsetbv => self.xsetbv(),
            Instruction::Absent => INVALID_OPCODE,
            // There are no counters, whichever it asks for; nor does CR4.PCE change that.
            Instruction::Rdpmc => GENERAL_PROTECTION,
        }
    }

    fn xsetbv(&mut self) -> Outcome {
        let registers = &self.vcpu.registers;
        let value = registers.rax & 0xFFFF_FFFF | registers.rdx << 32;
        let allowed = Xcr0::from_bits_retain(capabilities::get().xcr0);
        if registers.rcx as u32 != 0 || self.state.cpl() != 0 || !Xcr0::is_valid(value, allowed) {
            return GENERAL_PROTECTION;
        }
        // SAFETY: the value is a valid combination of bits that CPUID offers.
        unsafe { xstate::xsetbv(value) };
        self.vcpu.extended.xcr0 = value;
        self.vcpu.cpuid.xcr0_now = value;
        Outcome::Next
    }

    /// A general register by its number in instructions: RSP is kept apart.
    pub(super) fn general(&mut self, number: u8) -> Option<u64> {
        if number == 4 {
            return Some(self.state.rsp());
        }
        self.vcpu.registers.by_number(number).copied()
    }

    /// Sets a general register.
    pub(super) fn set_general(&mut self, number: u8, value: u64) {
        if number == 4 {
            self.state.set_rsp(value);
        } else if let Some(register) = self.vcpu.registers.by_number(number) {
            *register = value;
        }
    }
}
