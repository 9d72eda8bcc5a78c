//! What a CPU vendor's virtualisation gives the run loop: the state of the vCPU that is loaded on this CPU, the way into the guest, and
//! events and deadlines for its next entry.
//!
//! `vmx` implements it; nothing above it reads a VMCS. Registers are those of the architecture; what the vendor encodes in its own way
//! comes as plain facts (`nagaya_vmm::exit`). docs/PORTING.md says what another vendor has to bring.

use nagaya_vmm::control::Registers;
use nagaya_vmm::control_registers::ControlRegisters;
use nagaya_vmm::cpu::task::TaskRegisters;
use nagaya_vmm::cpu::{CpuState, Segment, SegmentRegister};
use nagaya_vmm::exit::{ExitSnapshot, PortAccess, Reason};
use x86_defs::interrupt::EventInjection;

/// A guest's general registers but RSP, which is the vendor's to switch.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "named as the registers they hold")]
pub struct GuestRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl GuestRegisters {
    /// The register that an exit qualification numbers: 0 RAX, 1 RCX, 2 RDX, 3 RBX, 5 RBP, 6 RSI, 7 RDI, 8 to 15. `None` for
    /// 4, which is RSP, and for what is no register.
    #[must_use]
    pub fn by_number(&mut self, number: u8) -> Option<&mut u64> {
        Some(match number {
            0 => &mut self.rax,
            1 => &mut self.rcx,
            2 => &mut self.rdx,
            3 => &mut self.rbx,
            5 => &mut self.rbp,
            6 => &mut self.rsi,
            7 => &mut self.rdi,
            8 => &mut self.r8,
            9 => &mut self.r9,
            10 => &mut self.r10,
            11 => &mut self.r11,
            12 => &mut self.r12,
            13 => &mut self.r13,
            14 => &mut self.r14,
            15 => &mut self.r15,
            _ => return None,
        })
    }
}

/// What a guest is to be left for when it can take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// An interrupt.
    Interrupt,
    /// An NMI.
    Nmi,
}

/// Exceptions of the guest's that end its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercepts {
    /// Those that the hypervisor has to know of.
    Usual,
    /// Those, and breakpoints: a debugger has set some.
    Debugged,
    /// All.
    All,
}

/// A descriptor table's base and limit.
pub type Table = (u64, u32);

/// What follows from an exit that a [`Runner`] has looked at, as the loop around the entry instruction takes it.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Quick(u64);

impl Quick {
    /// The exit is left to whoever entered.
    pub const LEAVE: Quick = Quick(0);
    /// It has been carried out, and there is more to be done before the next entry.
    pub const LEAVE_DONE: Quick = Quick(4);

    /// It has been carried out: enter again. `how` is the vendor's, odd and below 4; the run loop gets it from [`LoadedVcpu::again`].
    #[inline]
    pub const fn again(how: u64) -> Quick {
        Quick(how)
    }

    /// For that loop.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// Why [`LoadedVcpu::enter`] came back.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// An exit, which is to be carried out.
    Exit,
    /// An exit that [`Runner::quick`] has carried out.
    Done,
}

/// Whoever runs a vCPU: it is asked at once what is to become of an exit, so that the commonest ones need not leave the loop around the
/// entry instruction.
pub trait Runner {
    /// The vCPU's state.
    type State: LoadedVcpu;
    /// The vCPU.
    fn vcpu(&mut self) -> (&mut Self::State, &mut GuestRegisters);
    /// Carries an exit out, or leaves it. Meanwhile of the guest's general registers those are there that a called function need not
    /// preserve, and RBX: reading or setting RBP and R12 to R15 is a mistake.
    fn quick(&mut self) -> Quick;
}

/// The vCPU that is loaded on the executing CPU, between an exit and the next entry.
///
/// What [`CpuState`] has is there for `nagaya_vmm::cpu`; this is the rest.
pub trait LoadedVcpu: CpuState {
    /// Enters the guest of `runner`'s vCPU and comes back after an exit that [`Runner::quick`] wants to be left for.
    ///
    /// # Errors
    /// Why the instruction failed: the guest has not run.
    fn enter<R: Runner<State = Self>>(runner: &mut R) -> Result<Entered, Reason>
    where
        Self: Sized;
    /// Enter again after an exit.
    fn again(&self) -> Quick;
    /// The vendor's number of what ended the guest's run: `nagaya_vmm::exit` knows those that come most.
    fn exit_number(&self) -> u32;
    /// The port access that ended the guest's run.
    fn port_exit(&self) -> (PortAccess, ExitSnapshot);
    /// What ended the guest's run, as the vendor tells it.
    fn exit(&self) -> ExitSnapshot;
    /// Bytes of the instruction that exited.
    fn instruction_length(&self) -> u32;
    /// The vector of the physical interrupt that ended the guest's run and that this CPU's APIC has been told of.
    fn interrupt_vector(&self) -> u8;
    /// The event whose delivery the exit cut short, with its error code.
    fn interrupted_delivery(&self) -> Option<EventInjection>;

    /// RSP.
    fn rsp(&self) -> u64;
    /// Sets RSP.
    fn set_rsp(&mut self, value: u64);
    /// CR0 as the guest sees it.
    fn guest_cr0(&self) -> u64;
    /// CR3.
    fn cr3(&self) -> u64;
    /// CR4 as the guest sees it.
    fn guest_cr4(&self) -> u64;
    /// Whether CR4.OSXSAVE is set.
    fn has_osxsave(&self) -> bool;
    /// Bits of CR4 that guests may have.
    fn allowed_cr4(&self) -> u64;
    /// Sets CR0, CR4 and IA32_EFER, which agree with each other, as the guest is to see them.
    fn set_modes(&mut self, modes: ControlRegisters);
    /// Sets IA32_EFER where no mode changes.
    fn set_efer(&mut self, value: u64);
    /// Sets IA32_PAT.
    fn set_pat(&mut self, value: u64);
    /// Sets what is added to the TSC that the guest reads.
    fn set_tsc_offset(&mut self, offset: u64);
    /// Sets the entries of PAE paging, which the CPU keeps.
    fn set_pdptes(&mut self, entries: [u64; 4]);
    /// The privilege level.
    fn cpl(&self) -> u8;
    /// A segment's base.
    fn segment_base(&self, segment: SegmentRegister) -> u64;
    /// A segment with all that its register holds.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// GDTR.
    fn gdtr(&self) -> Table;
    /// IDTR.
    fn idtr(&self) -> Table;
    /// All that a task switch reads and changes, but the general registers, which are 0.
    fn task_registers(&self) -> TaskRegisters;
    /// Sets it, but the general registers.
    fn set_task_registers(&mut self, registers: &TaskRegisters);
    /// Forgets what the CPU cached of the guest's own translations.
    fn flush_translations(&mut self);

    /// Whether the next entry delivers an event.
    fn has_event(&self) -> bool;
    /// The event that the next entry delivers stands for the instruction at RIP, of so many bytes: a handler returns behind it.
    fn set_event_length(&mut self, bytes: u32);
    /// All registers, for dumps; what the vendor does not switch comes from the caller.
    fn registers(&self, general: &GuestRegisters, cr2: u64) -> Registers;
    /// Tells what the vendor keeps of the guest, by its names, for reports of entries that were refused.
    fn tell_fields(&self, tell: &mut dyn FnMut(&str, u64));

    /// Asks for an exit when the guest can take such an event, or asks no more.
    fn set_window(&mut self, window: Window, wanted: bool);
    /// Asks for exits of loops of PAUSEs, where the CPU has them, or asks no more.
    fn watch_spinning(&mut self, wanted: bool);
    /// Ends the guest's next run when it has lasted that many ticks, or somewhat earlier.
    fn set_deadline(&mut self, ticks: u64);
    /// Ends the guest's next run before its first instruction, but behind the delivery of an event.
    fn end_run_at_once(&mut self);
    /// Which exceptions end the guest's runs from now on.
    fn intercept_exceptions(&mut self, which: Intercepts);
    /// Whether MOV DR ends the guest's runs from now on.
    fn intercept_debug_registers(&mut self, wanted: bool);
    /// Sets the root of the tables of nested paging, in the vendor's format.
    fn set_nested_root(&mut self, root: u64);
    /// The linear address of the access that nested paging did not allow.
    fn violation_address(&self) -> u64;
    /// The address whose page fault was intercepted.
    fn fault_address(&self) -> u64;
    /// The access or exception that exited is an IRET's, which had ended the blocking of NMIs by then.
    fn has_iret_unblocked(&self) -> bool;
}

const _: () = assert!(core::mem::offset_of!(GuestRegisters, rdi) == 40);
const _: () = assert!(core::mem::offset_of!(GuestRegisters, r15) == 112);
