//! Task switches: the registers and the memory that `nagaya_vmm::cpu::task` works on.
//!
//! Source: Intel SDM Vol. 3, "Treatment of Task Switches", "Exit Qualification for Task Switches".

use nagaya_devices::GuestRam;
use nagaya_mem::{Access, AccessFault, GuestMark, PagingState, access, access_and_mark};
use nagaya_vmm::cpu::CpuState;
use nagaya_vmm::cpu::task::{
    Ending, Initiator, LinearMemory, PageFault, Privilege, Switched, TaskRegisters, TaskSwitch,
};
use nagaya_vmm::outcome::{Cause, Outcome};
use x86_defs::cr::Cr4;
use x86_defs::interrupt::{EventInjection, EventKind, Interruptibility, vector};

use super::Running;
use super::exits::GENERAL_PROTECTION;
use crate::arch::LoadedVcpu;
use crate::vmx::xstate;

/// DR6.BT.
const TASK_SWITCH_TRAP: u64 = 1 << 15;

impl Running<'_, '_> {
    /// Carries a task switch out.
    #[cold]
    #[inline(never)]
    pub(super) fn task_switch(&mut self, selector: u16, initiator: Initiator) -> Outcome {
        let event = if initiator == Initiator::Gate {
            self.state.interrupted_delivery()
        } else {
            None
        };
        let request = TaskSwitch {
            selector,
            initiator,
            return_eip: self.return_address(event) as u32,
            event,
        };
        let before = self.task_registers();
        let Switched { registers, ending } = {
            let ram = self.vcpu.vm.devices.ram.view();
            let memory = Memory {
                paging: self.paging(),
                ram: &*ram,
            };
            nagaya_vmm::cpu::task::switch(&before, &memory, request)
        };
        // The interrupt has been delivered, or is lost to the fault on its way.
        self.vcpu.injected = None;
        if let Some(after) = registers
            && !self.become_task(&before, &after)
        {
            return GENERAL_PROTECTION;
        }
        self.settle_blocking(initiator, event);
        match ending {
            Ending::Runs => Outcome::Resume,
            Ending::DebugTrap => {
                xstate::set_debug_causes(TASK_SWITCH_TRAP);
                Outcome::Inject(EventInjection {
                    vector: vector::DEBUG,
                    kind: EventKind::HardwareException,
                    error_code: None,
                })
            }
            Ending::Exception(event, address) => {
                if let Some(address) = address {
                    xstate::set_cr2(address.into());
                }
                Outcome::Inject(event)
            }
            Ending::Shutdown => Outcome::End(Cause::TripleFault),
        }
    }

    /// Where the old task goes on: behind an instruction, at what was interrupted or faulted.
    fn return_address(&self, event: Option<EventInjection>) -> u64 {
        let is_instruction = event.is_none_or(|event| {
            matches!(
                event.kind,
                EventKind::SoftwareInterrupt
                    | EventKind::SoftwareException
                    | EventKind::PrivilegedSoftwareException
            )
        });
        let rip = self.state.rip();
        if is_instruction {
            let length = self.state.instruction_length();
            self.state.code_size().wrap(rip.wrapping_add(length.into()))
        } else {
            rip
        }
    }

    /// An instruction or a delivery is over; that of an NMI blocks further ones, IRET lets them in.
    fn settle_blocking(&mut self, initiator: Initiator, event: Option<EventInjection>) {
        let mut blocking = self.state.blocking()
            - (Interruptibility::BLOCKED_BY_STI | Interruptibility::BLOCKED_BY_MOV_SS);
        if initiator == Initiator::Iret {
            blocking -= Interruptibility::BLOCKED_BY_NMI;
        }
        if event.is_some_and(|event| event.kind == EventKind::Nmi) {
            blocking |= Interruptibility::BLOCKED_BY_NMI;
        }
        self.state.set_blocking(blocking);
        self.looks_for_interrupts = true;
    }

    fn task_registers(&mut self) -> TaskRegisters {
        let mut registers = self.state.task_registers();
        for (number, slot) in (0..).zip(&mut registers.general) {
            *slot = self.general(number).unwrap_or(0) as u32;
        }
        registers
    }

    /// Loads the new task's registers. `false` if the first entries of its PAE paging are malformed.
    fn become_task(&mut self, before: &TaskRegisters, after: &TaskRegisters) -> bool {
        for (number, value) in (0..).zip(after.general) {
            self.set_general(number, value.into());
        }
        self.state.set_task_registers(after);
        if after.cr3 == before.cr3 {
            return true;
        }
        // The CPU would have forgotten them with the write; that one it did not see.
        self.state.flush_translations();
        self.state.guest_cr4() & Cr4::PAE.bits() == 0 || self.load_pdptes()
    }
}

/// The guest's memory by linear addresses.
struct Memory<'a, R> {
    paging: PagingState,
    ram: &'a R,
}

impl<R: GuestRam + GuestMark> Memory<'_, R> {
    fn paging(&self, cr3: u64) -> PagingState {
        PagingState { cr3, ..self.paging }
    }

    /// Calls `action` with each page's part of a range: what the access finds there, and which bytes.
    fn pieces(
        &self,
        linear: u32,
        bytes: usize,
        find: impl Fn(u64) -> Result<nagaya_mem::Gpa, AccessFault>,
        mut action: impl FnMut(Option<nagaya_mem::Gpa>, core::ops::Range<usize>),
    ) -> Result<(), PageFault> {
        // First all pages, then the copy: it is done whole or not at all.
        for is_checked in [false, true] {
            let mut done = 0;
            while done < bytes {
                let at = linear.wrapping_add(done as u32);
                let inside = u64::from(at) % guest_abi::PAGE_BYTES;
                let length = ((guest_abi::PAGE_BYTES - inside) as usize).min(bytes - done);
                let found = match find(at.into()) {
                    Ok(gpa) => Some(gpa),
                    Err(AccessFault::Page(code)) => return Err(PageFault { linear: at, code }),
                    // Tables that are in no RAM lead nowhere.
                    Err(AccessFault::NotCanonical | AccessFault::Unreadable) => None,
                };
                if is_checked {
                    action(found, done..done + length);
                }
                done += length;
            }
        }
        Ok(())
    }
}

const fn access_of(writes: bool, privilege: Privilege) -> Access {
    Access {
        writes,
        is_user: matches!(privilege, Privilege::User),
        // The CPU's own accesses are implicit: SMAP is in force whatever RFLAGS.AC says.
        is_smap_off: false,
    }
}

impl<R: GuestRam + GuestMark> LinearMemory for Memory<'_, R> {
    fn read(&self, cr3: u64, linear: u32, buffer: &mut [u8]) -> Result<(), PageFault> {
        let paging = self.paging(cr3);
        let wanted = access_of(false, Privilege::Supervisor);
        let find = |linear| access_and_mark(&paging, self.ram, linear, wanted);
        let bytes = buffer.len();
        buffer.fill(0xFF);
        self.pieces(linear, bytes, find, |gpa, range| {
            if let (Some(gpa), Some(part)) = (gpa, buffer.get_mut(range)) {
                // Refused, it keeps the ones that nobody answers with.
                let _ = self.ram.read(gpa, part);
            }
        })
    }

    fn write(
        &self,
        cr3: u64,
        linear: u32,
        bytes: &[u8],
        privilege: Privilege,
    ) -> Result<(), PageFault> {
        let paging = self.paging(cr3);
        let wanted = access_of(true, privilege);
        let find = |linear| access_and_mark(&paging, self.ram, linear, wanted);
        self.pieces(linear, bytes.len(), find, |gpa, range| {
            if let (Some(gpa), Some(part)) = (gpa, bytes.get(range)) {
                let _ = self.ram.write(gpa, part);
            }
        })
    }

    fn probe_write(&self, cr3: u64, linear: u32, bytes: usize) -> Result<(), PageFault> {
        let paging = self.paging(cr3);
        let wanted = access_of(true, Privilege::Supervisor);
        let find = |linear| access(&paging, self.ram, linear, wanted);
        self.pieces(linear, bytes, find, |_, _| {})
    }
}
