//! Exits that are carried out between an exit and the next entry, without the run loop.
//!
//! What the run loop looks at before each entry is looked at here, too. Each kind has a function of its own, which is jumped to by a table,
//! so that none stores what only another one needs. None of them may enter a guest itself, or use RBP and R12 to R15 of the guest's
//! ([`Runner::quick`]): what does is left to the run loop.

use core::sync::atomic::Ordering;

use guest_abi::{ABI_VERSION, ExitKind, Number};
use nagaya_vmm::cpu::{self, CpuState};
use nagaya_vmm::exit::vmx as decode;
use nagaya_vmm::outcome::Outcome;

use super::Running;
use super::exits::{Fault, GENERAL_PROTECTION};
use crate::arch::{GuestRegisters, LoadedVcpu, Quick, Runner};
use crate::host::cpu::time;
use crate::vmx::vmcs::LoadedVmcs;

impl<'cpu> Runner for Running<'_, 'cpu> {
    type State = LoadedVmcs<'cpu>;

    #[inline]
    fn vcpu(&mut self) -> (&mut LoadedVmcs<'cpu>, &mut GuestRegisters) {
        (&mut self.state, &mut self.vcpu.registers)
    }

    #[inline]
    fn quick(&mut self) -> Quick {
        let number = self.state.exit_number();
        // First what a null hypercall measures. It has no argument: the mode, which says how wide they are, need not be asked for.
        if number == decode::reason_of(ExitKind::Hypercall)
            && self.vcpu.registers.rax == Number::Version as u64
            && self.state.cpl() == 0
        {
            let rip = self.note(ExitKind::Hypercall);
            self.vcpu.registers.rax = u64::from(ABI_VERSION);
            return self.next(rip);
        }
        match TABLE.get(number as usize) {
            Some(action) => action(self),
            None => Quick::LEAVE,
        }
    }
}

type Action = fn(&mut Running<'_, '_>) -> Quick;

/// What is done, by the number of the exit.
static TABLE: [Action; 64] = {
    let mut table: [Action; 64] = [leave; 64];
    let mut index = 0;
    while index < decode::COMMON.len() {
        let (kind, number) = decode::COMMON[index];
        table[number as usize] = match kind {
            ExitKind::Hypercall => hypercall,
            ExitKind::Cpuid => cpuid,
            ExitKind::MsrRead => msr_read,
            ExitKind::MsrWrite => msr_write,
            ExitKind::Port => port,
            _ => leave,
        };
        index += 1;
    }
    table
};

fn leave(_: &mut Running<'_, '_>) -> Quick {
    Quick::LEAVE
}

fn hypercall(running: &mut Running<'_, '_>) -> Quick {
    // A child gets all registers. Outside 64-bit code the upper half is no part of the number.
    if running.vcpu.registers.rax as u32 == Number::Fork as u32 {
        return Quick::LEAVE;
    }
    let rip = running.note(ExitKind::Hypercall);
    running.leave_guest();
    running.cpu.watch.enter_root(time::ticks());
    match running.hypercall() {
        Outcome::Next => running.next_after_long(rip),
        other => running.conclude_later(other),
    }
}

fn cpuid(running: &mut Running<'_, '_>) -> Quick {
    let rip = running.note(ExitKind::Cpuid);
    running.cpuid();
    running.next(rip)
}

fn msr_read(running: &mut Running<'_, '_>) -> Quick {
    let rip = running.note(ExitKind::MsrRead);
    running.leave_guest();
    match running.msr_read() {
        Ok(()) => running.next_outside(rip),
        Err(Fault) => running.conclude_short(GENERAL_PROTECTION),
    }
}

fn msr_write(running: &mut Running<'_, '_>) -> Quick {
    let rip = running.note(ExitKind::MsrWrite);
    running.leave_guest();
    match running.msr_write() {
        Ok(()) => running.next_outside(rip),
        Err(Fault) => running.conclude_short(GENERAL_PROTECTION),
    }
}

fn port(running: &mut Running<'_, '_>) -> Quick {
    let (access, snapshot) = running.state.port_exit();
    if access.string {
        return Quick::LEAVE;
    }
    let (rip, now) = (running.state.rip(), time::ticks());
    running.vcpu.exits.record(now, rip, snapshot);
    running.vcpu.count(ExitKind::Port);
    running.leave_guest();
    running.cpu.watch.enter_root(now);
    match running.port(access) {
        Outcome::Next => running.next_after_long(rip),
        other => running.conclude_later(other),
    }
}

impl Running<'_, '_> {
    /// Notes an exit that its number alone tells for dumps, and counts it. Its RIP.
    #[inline(always)]
    fn note(&mut self, kind: ExitKind) -> u64 {
        let rip = self.state.rip();
        let reason = decode::reason_of(kind);
        self.vcpu.exits.record_reason(time::ticks(), rip, reason);
        self.vcpu.count(kind);
        rip
    }

    /// Before what may wait for a lock, whose holder may wait until the guest is seen to be left.
    #[inline(always)]
    fn leave_guest(&self) {
        self.cpu.in_guest.store(false, Ordering::Release);
    }

    /// [`Running::next`] after [`Running::leave_guest`].
    #[inline(always)]
    fn next_outside(&mut self, rip: u64) -> Quick {
        // As in the run loop.
        self.cpu.in_guest.store(true, Ordering::SeqCst);
        self.next(rip)
    }

    /// The same after what may have taken its time: it is accounted for, and the clock is looked at.
    #[inline(always)]
    fn next_after_long(&mut self, rip: u64) -> Quick {
        let now = time::ticks();
        if now >= self.due || self.looks_for_interrupts {
            return self.conclude_later(Outcome::Next);
        }
        self.cpu.watch.leave_root(now);
        self.next_outside(rip)
    }

    /// Steps over the instruction at `rip`, which has been carried out, and enters again unless there is something to be done before.
    /// `in_guest` is set: whoever kicks or posts stores that first and then looks whether the guest is to be called out.
    #[inline(always)]
    fn next(&mut self, rip: u64) -> Quick {
        let length = self.state.instruction_length();
        if !cpu::step_plainly(&mut self.state, rip, length) {
            return self.conclude_short(Outcome::Next);
        }
        // The run loop never leaves it at 0.
        self.exits_left = self.exits_left.wrapping_sub(1);
        if self.exits_left == 0 {
            return self.conclude_short(Outcome::Resume);
        }
        // As in the run loop.
        let is_kicked = self.cpu.kicked.load(Ordering::SeqCst);
        if is_kicked | self.vcpu.handle.posted.has_outstanding() {
            return self.conclude_short(Outcome::Resume);
        }
        if self.looks_for_interrupts | self.is_precise {
            return self.again_in_time();
        }
        self.state.again()
    }

    /// The run loop is to do the rest.
    #[cold]
    fn conclude_later(&mut self, outcome: Outcome) -> Quick {
        self.outcome = outcome;
        Quick::LEAVE_DONE
    }

    /// The same after what took a few instructions, so that nobody has noted when the guest was left.
    #[cold]
    fn conclude_short(&mut self, outcome: Outcome) -> Quick {
        self.cpu.watch.enter_root(time::ticks());
        self.conclude_later(outcome)
    }

    /// The preemption timer is set for a timer of the vCPU's own.
    #[inline(never)]
    fn again_in_time(&mut self) -> Quick {
        if self.looks_for_interrupts || !self.keeps_time() {
            return self.conclude_short(Outcome::Resume);
        }
        self.state.again()
    }
}

/// A vCPU that is left at each exit.
pub(super) struct LeftAlways<'r, 'a, 'cpu>(pub(super) &'r mut Running<'a, 'cpu>);

impl<'cpu> Runner for LeftAlways<'_, '_, 'cpu> {
    type State = LoadedVmcs<'cpu>;

    fn vcpu(&mut self) -> (&mut LoadedVmcs<'cpu>, &mut GuestRegisters) {
        self.0.vcpu()
    }

    fn quick(&mut self) -> Quick {
        Quick::LEAVE
    }
}
