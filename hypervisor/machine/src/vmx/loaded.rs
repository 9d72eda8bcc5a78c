//! The vCPU that is loaded on a CPU, by its VMCS: what `arch` and `nagaya_vmm::cpu` ask of one.
//!
//! Source: Intel SDM Vol. 3, "Guest-State Area", "VM-Entry Control Fields", "VM-Exit Information Fields".

use core::ffi::c_void;

use nagaya_vmm::control::Registers;
use nagaya_vmm::control_registers::{CR4_ALLOWED, CR4_SHADOWED, ControlRegisters};
use nagaya_vmm::cpu::task::TaskRegisters;
use nagaya_vmm::cpu::{CpuState, Segment, SegmentRegister};
use nagaya_vmm::exit::{ExitSnapshot, PortAccess, Reason, vmx as decode};
use x86_defs::controls::{Entry, Primary};
use x86_defs::cr::Cr4;
use x86_defs::exit::{EptViolation, ExitReason};
use x86_defs::interrupt::{EventInjection, Interruptibility, InterruptionInfo, vector};
use x86_defs::{msr, vmcs as field};

use crate::arch::{Entered, GuestRegisters, Intercepts, LoadedVcpu, Quick, Runner, Table, Window};
use crate::vmx::cr::{self, CR0_OWNED};
use crate::vmx::vmcs::LoadedVmcs;
use crate::vmx::{capabilities, dump, entry, invalidate, segments, setup};

macro_rules! field_of_the_vmcs {
    ($( $read:ident $(, $write:ident)? = $field:ident; )*) => {
        $(
            #[inline]
            fn $read(&self) -> u64 {
                self.read(field::$field)
            }
            $(
                #[inline]
                fn $write(&mut self, value: u64) {
                    self.write(field::$field, value);
                }
            )?
        )*
    };
}

impl CpuState for LoadedVmcs<'_> {
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
        self.read(field::GUEST_CS_ACCESS_RIGHTS)
    }

    #[inline]
    fn blocking(&self) -> Interruptibility {
        Interruptibility::from_bits_retain(self.read(field::GUEST_INTERRUPTIBILITY))
    }

    #[inline]
    fn set_blocking(&mut self, blocking: Interruptibility) {
        self.write(field::GUEST_INTERRUPTIBILITY, blocking.bits());
    }

    #[inline]
    fn set_event(&mut self, event: EventInjection) {
        self.write(field::ENTRY_INTERRUPTION_INFO, event.to_u32());
        if let Some(code) = event.error_code {
            self.write(field::ENTRY_EXCEPTION_ERROR_CODE, code);
        }
    }
}

/// [`Runner::quick`], as [`entry::enter`] calls it.
unsafe extern "sysv64" fn quick_exit<'cpu, R: Runner<State = LoadedVmcs<'cpu>>>(
    runner: *mut c_void,
) -> u64 {
    // SAFETY: it is the runner that `LoadedVcpu::enter` has exclusively, which waits for `entry::enter`; that touches nothing of
    // it but the registers, and these not while it calls this.
    let runner = unsafe { &mut *runner.cast::<R>() };
    runner.quick().bits()
}

// `flags` of what has been entered is such an answer.
const _: () = assert!(entry::AGAIN == entry::LAUNCHED && entry::FAILED != Quick::LEAVE_DONE.bits());
const _: () = assert!(
    Quick::LEAVE.bits() & entry::AGAIN == 0 && Quick::LEAVE_DONE.bits() & entry::AGAIN == 0
);
const _: () = assert!(entry::AGAIN_CLEARED == entry::LAUNCHED | entry::CLEAR_BUFFERS);

impl LoadedVcpu for LoadedVmcs<'_> {
    field_of_the_vmcs! {
        rsp, set_rsp = GUEST_RSP;
        cr3 = GUEST_CR3;
    }

    #[inline]
    fn enter<R: Runner<State = Self>>(runner: &mut R) -> Result<Entered, Reason> {
        let (state, registers) = runner.vcpu();
        let (flags, registers) = (state.flags, &raw mut *registers);
        // From its first entry on; should that fail, there is no second.
        state.flags |= entry::LAUNCHED;
        let address = (&raw mut *runner).cast();
        // SAFETY: `state` is current on this CPU; `setup` wrote all of it when the vCPU was loaded first, with this CPU's host state and
        // `exit_address`; the registers are exclusively ours, as the runner is that lends them, whose address goes to its own `quick`.
        let answer = unsafe { entry::enter(registers, flags, address, quick_exit::<R>) };
        if answer == entry::FAILED {
            let (state, _) = runner.vcpu();
            let error = state.instruction_error();
            return Err(Reason {
                name: error.name(),
                number: error.0 as u16,
            });
        }
        Ok(if answer == Quick::LEAVE_DONE.bits() {
            Entered::Done
        } else {
            Entered::Exit
        })
    }

    #[inline]
    fn again(&self) -> Quick {
        Quick::again(self.flags)
    }

    #[inline]
    fn exit_number(&self) -> u32 {
        self.read(field::EXIT_REASON)
    }

    #[inline]
    fn port_exit(&self) -> (PortAccess, ExitSnapshot) {
        decode::port_exit(self.read(field::EXIT_QUALIFICATION))
    }

    #[inline]
    fn exit(&self) -> ExitSnapshot {
        decode::snapshot(self.read(field::EXIT_REASON), self)
    }

    #[inline]
    fn instruction_length(&self) -> u32 {
        self.read(field::EXIT_INSTRUCTION_LENGTH)
    }

    #[inline]
    fn interrupt_vector(&self) -> u8 {
        InterruptionInfo(self.read(field::EXIT_INTERRUPTION_INFO)).vector()
    }

    #[inline]
    fn interrupted_delivery(&self) -> Option<EventInjection> {
        let vectoring = InterruptionInfo(self.read(field::IDT_VECTORING_INFO));
        let code = if vectoring.is_valid() && vectoring.has_error_code() {
            self.read(field::IDT_VECTORING_ERROR_CODE)
        } else {
            0
        };
        vectoring.reinjection(code)
    }

    #[inline]
    fn guest_cr0(&self) -> u64 {
        self.read(field::GUEST_CR0) & !CR0_OWNED | self.read(field::CR0_READ_SHADOW) & CR0_OWNED
    }

    #[inline]
    fn guest_cr4(&self) -> u64 {
        self.read(field::GUEST_CR4) & CR4_ALLOWED | self.read(field::CR4_READ_SHADOW) & !CR4_ALLOWED
    }

    #[inline]
    fn has_osxsave(&self) -> bool {
        // Not one that is shadowed.
        const { assert!(CR4_ALLOWED & Cr4::OSXSAVE.bits() != 0) };
        self.read(field::GUEST_CR4) & Cr4::OSXSAVE.bits() != 0
    }

    fn allowed_cr4(&self) -> u64 {
        // A CPU without a feature faults where a guest sets its bit by itself; so do we where we carry the write out.
        CR4_ALLOWED & capabilities::get().cr4_fixed1 | CR4_SHADOWED
    }

    fn set_modes(&mut self, modes: ControlRegisters) {
        self.write(field::GUEST_CR0, cr::real_cr0(modes.cr0));
        self.write(field::CR0_READ_SHADOW, modes.cr0);
        self.write(field::GUEST_CR4, cr::real_cr4(modes.cr4));
        self.write(field::CR4_READ_SHADOW, modes.cr4);
        if modes.efer != self.read(field::GUEST_IA32_EFER) {
            self.write(field::GUEST_IA32_EFER, modes.efer);
            // The two have to agree ("Checks on Guest Control Registers, Debug Registers, and MSRs").
            let mut entry = Entry::from_bits_retain(self.read(field::ENTRY_CONTROLS));
            entry.set(Entry::IA32E_MODE_GUEST, modes.efer & msr::EFER_LMA != 0);
            self.write(field::ENTRY_CONTROLS, entry.bits());
        }
    }

    fn set_efer(&mut self, value: u64) {
        self.write(field::GUEST_IA32_EFER, value);
    }

    fn set_pat(&mut self, value: u64) {
        self.write(field::GUEST_IA32_PAT, value);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.write(field::TSC_OFFSET, offset);
    }

    fn set_pdptes(&mut self, [first, second, third, fourth]: [u64; 4]) {
        self.write(field::GUEST_PDPTE_0, first);
        self.write(field::GUEST_PDPTE_1, second);
        self.write(field::GUEST_PDPTE_2, third);
        self.write(field::GUEST_PDPTE_3, fourth);
    }

    /// DPL of SS ("Guest Register State").
    #[inline]
    fn cpl(&self) -> u8 {
        (self.read(field::GUEST_SS_ACCESS_RIGHTS) >> 5) as u8 & 3
    }

    #[inline]
    fn segment_base(&self, segment: SegmentRegister) -> u64 {
        self.read(match segment {
            SegmentRegister::Es => field::GUEST_ES_BASE,
            SegmentRegister::Cs => field::GUEST_CS_BASE,
            SegmentRegister::Ss => field::GUEST_SS_BASE,
            SegmentRegister::Ds => field::GUEST_DS_BASE,
            SegmentRegister::Fs => field::GUEST_FS_BASE,
            SegmentRegister::Gs => field::GUEST_GS_BASE,
        })
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        segments::data_segment(self, register)
    }

    fn gdtr(&self) -> Table {
        (
            self.read(field::GUEST_GDTR_BASE),
            self.read(field::GUEST_GDTR_LIMIT),
        )
    }

    fn idtr(&self) -> Table {
        (
            self.read(field::GUEST_IDTR_BASE),
            self.read(field::GUEST_IDTR_LIMIT),
        )
    }

    fn task_registers(&self) -> TaskRegisters {
        segments::task_registers(self)
    }

    fn set_task_registers(&mut self, registers: &TaskRegisters) {
        segments::set_task_registers(self, registers);
    }

    fn flush_translations(&mut self) {
        if capabilities::get().has(x86_defs::controls::Secondary::ENABLE_VPID) {
            invalidate::vpid(self.read(field::VPID));
        }
    }

    #[inline]
    fn has_event(&self) -> bool {
        self.read(field::ENTRY_INTERRUPTION_INFO) & 1 << 31 != 0
    }

    fn set_event_length(&mut self, bytes: u32) {
        self.write(field::ENTRY_INSTRUCTION_LENGTH, bytes);
    }

    fn registers(&self, general: &GuestRegisters, cr2: u64) -> Registers {
        dump::registers(general, cr2, |encoding| {
            self.try_read(encoding).unwrap_or(0)
        })
    }

    fn tell_fields(&self, tell: &mut dyn FnMut(&str, u64)) {
        for (encoding, name) in field::ALL_GUEST_STATE {
            if let Some(value) = self.try_read(*encoding) {
                tell(name, value);
            }
        }
    }

    fn set_window(&mut self, window: Window, wanted: bool) {
        let window = match window {
            Window::Interrupt => Primary::INTERRUPT_WINDOW_EXITING,
            Window::Nmi => Primary::NMI_WINDOW_EXITING,
        };
        setup::set_primary(self, window, wanted);
    }

    fn watch_spinning(&mut self, wanted: bool) {
        setup::watch_spinning(self, wanted);
    }

    /// By the preemption timer, whose units are powers of two of ticks.
    #[inline]
    fn set_deadline(&mut self, ticks: u64) {
        let units = ticks >> capabilities::get().misc.preemption_timer_shift();
        let units = u32::try_from(units.saturating_add(1)).unwrap_or(u32::MAX);
        self.write(field::PREEMPTION_TIMER_VALUE, units.min(setup::backstop()));
    }

    /// A timer that is 0 ends the run as soon as it could begin ("VMX-Preemption Timer").
    fn end_run_at_once(&mut self) {
        self.write(field::PREEMPTION_TIMER_VALUE, 0);
    }

    fn intercept_exceptions(&mut self, which: Intercepts) {
        let exceptions = match which {
            Intercepts::Usual => setup::INTERCEPTED_EXCEPTIONS,
            Intercepts::Debugged => setup::INTERCEPTED_EXCEPTIONS | 1 << vector::BREAKPOINT,
            Intercepts::All => u32::MAX,
        };
        self.write(field::EXCEPTION_BITMAP, exceptions);
    }

    fn intercept_debug_registers(&mut self, wanted: bool) {
        setup::set_primary(self, Primary::MOV_DR_EXITING, wanted);
    }

    fn set_nested_root(&mut self, root: u64) {
        self.write(field::EPT_POINTER, root);
    }

    fn violation_address(&self) -> u64 {
        self.read(field::GUEST_LINEAR_ADDRESS)
    }

    fn fault_address(&self) -> u64 {
        self.read(field::EXIT_QUALIFICATION)
    }

    /// "Information for VM Exits Due to Vectored Events", "Exit Qualification for EPT Violations": bit 12.
    fn has_iret_unblocked(&self) -> bool {
        match ExitReason::from_raw(self.read(field::EXIT_REASON)) {
            ExitReason::EPT_VIOLATION => {
                EptViolation(self.read(field::EXIT_QUALIFICATION)).nmi_unblocking()
            }
            ExitReason::EXCEPTION_OR_NMI => {
                InterruptionInfo(self.read(field::EXIT_INTERRUPTION_INFO)).nmi_unblocking()
            }
            _ => false,
        }
    }
}
