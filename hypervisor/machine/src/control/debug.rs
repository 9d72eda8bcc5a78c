//! A debugger's requests on a VM.
//!
//! Everything but `Stop` and `Status` is done while no vCPU of the VM is on a CPU: a stop is told only once all have been put down. The VM
//! is paused meanwhile as by an operator, so that vCPUs which are started later wait as well.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering;

use guest_abi::PAGE_BYTES;
use nagaya_devices::GuestRam;
use nagaya_mem::{Gpa, PagingState, translate};
use nagaya_vmm::control::{
    Breakpoint, ControlError, CoreRegisters, DebugAnswer, DebugOrder, DebugStatus, ErrorCode,
    Registers, Stop, StopReason,
};
use nagaya_vmm::debugger::{HARDWARE_SLOTS, INT3, MAX_SOFTWARE_BREAKPOINTS, changed_flags};
use x86_defs::msr::EFER_LMA;

use super::refusal::{find_vcpu, refuse};
use super::rows::ids;
use crate::dispatch;
use crate::host::cpu::percpu::{self, PerCpu};
use crate::objects::debugger::{SingleStep, SoftwareBreakpoint};
use crate::objects::registry;
use crate::objects::vcpu::Vcpu;
use crate::objects::vm::Vm;

/// The VM that is debugged.
#[derive(Default)]
pub(super) struct Debugging {
    vm: Option<Attached>,
}

struct Attached {
    vm: u16,
    /// It was paused before.
    was_paused: bool,
}

fn state(text: &str) -> ControlError {
    refuse(ErrorCode::State, text)
}

fn no_ram(address: u64) -> ControlError {
    refuse(
        ErrorCode::Invalid,
        format!("there is no RAM at the linear address {address:#x}"),
    )
}

impl Debugging {
    /// Does what a debugger asks of a life of a VM.
    pub(super) fn serve(
        &mut self,
        vm: &Arc<Vm>,
        order: &DebugOrder,
    ) -> Result<DebugAnswer, ControlError> {
        if *order == DebugOrder::Attach {
            return self.attach(vm);
        }
        if self.vm.as_ref().is_none_or(|attached| attached.vm != vm.id)
            || !vm.debugger.is_attached()
        {
            return Err(state(
                "the VM is not debugged; one that is made anew by a reset has to be attached again",
            ));
        }
        match order {
            DebugOrder::Status => return Ok(DebugAnswer::Status(status(vm))),
            DebugOrder::Stop => {
                stop(vm);
                return Ok(DebugAnswer::Done);
            }
            _ if status(vm).stop.is_none() => {
                return Err(state("the VM runs, or is about to stop"));
            }
            _ => {}
        }
        match order {
            DebugOrder::Attach | DebugOrder::Status | DebugOrder::Stop => {}
            DebugOrder::Detach => self.end(),
            DebugOrder::Go { step, only } => go(vm, *step, *only)?,
            DebugOrder::SetRegisters { vcpu, registers } => set_registers(vm, *vcpu, registers)?,
            DebugOrder::Read {
                vcpu,
                address,
                bytes,
            } => {
                let paging = paging(vm, *vcpu)?;
                return read(vm, &paging, *address, *bytes as usize);
            }
            DebugOrder::Write {
                vcpu,
                address,
                bytes,
            } => write(vm, &paging(vm, *vcpu)?, *address, bytes)?,
            DebugOrder::Set(Breakpoint::Software { vcpu, address }) => {
                set_software(vm, &paging(vm, *vcpu)?, *address)?;
            }
            DebugOrder::Clear(Breakpoint::Software { vcpu, address }) => {
                let gpa = find(vm, &paging(vm, *vcpu)?, *address)?;
                let removed = vm.debugger.with(|debugger| debugger.remove_software(gpa));
                restore(
                    vm,
                    removed.ok_or_else(|| state("there is no such breakpoint"))?,
                );
            }
            DebugOrder::Set(Breakpoint::Hardware(wanted)) => {
                if !vm.debugger.with(|debugger| debugger.hardware.add(*wanted)) {
                    return Err(refuse(
                        ErrorCode::Exhausted,
                        format!("all {HARDWARE_SLOTS} debug registers are in use"),
                    ));
                }
            }
            DebugOrder::Clear(Breakpoint::Hardware(unwanted)) => {
                if !vm
                    .debugger
                    .with(|debugger| debugger.hardware.remove(*unwanted))
                {
                    return Err(state("there is no such breakpoint"));
                }
            }
        }
        Ok(DebugAnswer::Done)
    }

    fn attach(&mut self, vm: &Arc<Vm>) -> Result<DebugAnswer, ControlError> {
        if vm.is_bare {
            return Err(refuse(
                ErrorCode::Unsupported,
                "a bare loop runs outside of VMX: there is nothing to stop it with",
            ));
        }
        if vm.debugger.is_attached() {
            return Err(state("the VM is debugged already"));
        }
        self.end();
        let was_paused = vm.identity.paused.load(Ordering::SeqCst);
        vm.debugger.set_attached(true);
        self.vm = Some(Attached {
            vm: vm.id,
            was_paused,
        });
        stop(vm);
        Ok(DebugAnswer::Done)
    }

    /// The debugger has gone. Its VM goes on as if it had not been there.
    pub(super) fn end(&mut self) {
        let Some(attached) = self.vm.take() else {
            return;
        };
        let Some(vm) = registry::vm(attached.vm).filter(|vm| vm.debugger.is_attached()) else {
            return;
        };
        for breakpoint in vm.debugger.with(|debugger| debugger.take_software()) {
            restore(&vm, breakpoint);
        }
        vm.debugger.set_attached(false);
        // What is on a CPU still goes through a load before it forgets what was prepared.
        put_down(&vm);
        if !attached.was_paused {
            vm.identity.paused.store(false, Ordering::SeqCst);
            dispatch::pause(&ids(&vm), false);
        }
    }
}

/// Stops a VM because the debugger wants it.
fn stop(vm: &Vm) {
    let started = started(vm);
    vm.debugger.with(|debugger| {
        debugger.note(Stop {
            vcpu: started.trailing_zeros().min(u32::from(u8::MAX)),
            reason: StopReason::Asked,
        });
    });
    vm.identity.paused.store(true, Ordering::SeqCst);
    dispatch::pause(&ids(vm), true);
}

/// The vCPUs that have been started.
fn started(vm: &Vm) -> u64 {
    (0..)
        .zip(&vm.vcpus)
        .filter(|(_, handle)| dispatch::inspect(handle.id, |_| ()).is_some())
        .fold(0, |mask, (index, _): (u32, _)| mask | 1 << index)
}

/// Has CPUs put down what they have loaded of the VM. True if there is none.
fn put_down(vm: &Vm) -> bool {
    let on = dispatch::loaded_on(&ids(vm));
    for cpu in on.iter().filter_map(|cpu| percpu::get(*cpu)) {
        cpu.release.store(true, Ordering::SeqCst);
        if cpu.index == PerCpu::current().index {
            cpu.kicked.store(true, Ordering::SeqCst);
        } else {
            cpu.kick_to_reschedule();
        }
    }
    on.is_empty()
}

fn status(vm: &Vm) -> DebugStatus {
    let stop = vm.debugger.with(|debugger| debugger.stop());
    DebugStatus {
        started: started(vm),
        stop: stop.filter(|_| put_down(vm)),
    }
}

fn at_rest<R>(vm: &Vm, vcpu: u32, action: impl FnOnce(&mut Vcpu) -> R) -> Result<R, ControlError> {
    let handle = find_vcpu(vm, vcpu)?;
    match dispatch::change_at_rest(handle.id, action) {
        Some(Ok(result)) => Ok(result),
        Some(Err(_)) => Err(state("the vCPU is on a CPU")),
        None => Err(state("the vCPU has not been started")),
    }
}

fn registers(vm: &Vm, vcpu: u32) -> Result<Registers, ControlError> {
    at_rest(vm, vcpu, |vcpu| vcpu.snapshot_at_rest())?
        .map(|snapshot| snapshot.registers)
        .ok_or_else(|| state("the vCPU has not run yet"))
}

fn paging(vm: &Vm, vcpu: u32) -> Result<PagingState, ControlError> {
    let registers = registers(vm, vcpu)?;
    Ok(PagingState {
        cr0: registers.cr0,
        cr3: registers.cr3,
        cr4: registers.cr4,
        efer: registers.efer,
    })
}

fn go(vm: &Vm, step: Option<u32>, only: Option<u32>) -> Result<(), ControlError> {
    if let Some(vcpu) = only {
        at_rest(vm, vcpu, |_| ())?;
    }
    if let Some(vcpu) = step {
        at_rest(vm, vcpu, |vcpu| {
            vcpu.debugged.step = SingleStep::Wanted;
        })?;
    }
    if !vm.debugger.with(|debugger| debugger.go_on()) {
        // Another vCPU has stopped as well: that is told first.
        return Ok(());
    }
    match only {
        Some(only) => {
            let only = vm.vcpus.get(only as usize).map(|handle| handle.id);
            dispatch::pause(only.as_slice(), false);
        }
        None => {
            vm.identity.paused.store(false, Ordering::SeqCst);
            dispatch::pause(&ids(vm), false);
        }
    }
    Ok(())
}

fn set_registers(vm: &Vm, vcpu: u32, wanted: &CoreRegisters) -> Result<(), ControlError> {
    const LONG: u32 = 1 << 13;
    let now = registers(vm, vcpu)?;
    let invalid = |text: String| Err(refuse(ErrorCode::Invalid, text));
    let rflags = match changed_flags(now.rflags, wanted.rflags) {
        Ok(rflags) => rflags,
        Err(bits) => {
            return invalid(format!(
                "RFLAGS {:#x} differs from {:#x} in {bits:#x}: CF, PF, AF, ZF, SF, DF and OF can be set",
                wanted.rflags, now.rflags
            ));
        }
    };
    let [_, code, ..] = now.segments;
    let is_64_bit = now.efer & EFER_LMA != 0 && code.access & LONG != 0;
    let is_canonical = (wanted.rip << 16).cast_signed() >> 16 == wanted.rip.cast_signed();
    if (is_64_bit && !is_canonical) || (!is_64_bit && wanted.rip >> 32 != 0) {
        return invalid(format!("RIP {:#x} is no address of code", wanted.rip));
    }
    at_rest(vm, vcpu, |vcpu| {
        let rsp = (0..).zip(wanted.general).fold(0, |rsp, (number, value)| {
            if number == 4 {
                return value;
            }
            if let Some(register) = vcpu.registers.by_number(number) {
                *register = value;
            }
            rsp
        });
        if let Some(vmcs) = &mut vcpu.vmcs {
            vmcs.set_registers(wanted.rip, rsp, rflags);
        }
    })
}

/// Where a linear address is in guest-physical memory.
fn find(vm: &Vm, paging: &PagingState, linear: u64) -> Result<u64, ControlError> {
    translate(paging, &*vm.devices.ram.view(), linear)
        .map(|found| found.gpa.get())
        .map_err(|_| no_ram(linear))
}

/// Calls `action` with each stretch of a range that lies in one page: where it is, and which part of the range it is.
fn by_pages(
    vm: &Vm,
    paging: &PagingState,
    linear: u64,
    bytes: usize,
    mut action: impl FnMut(u64, core::ops::Range<usize>) -> bool,
) -> Result<(), usize> {
    let mut done = 0;
    while done < bytes {
        let at = linear.wrapping_add(done as u64);
        let left = (PAGE_BYTES - at % PAGE_BYTES) as usize;
        let end = bytes.min(done + left);
        let gpa = find(vm, paging, at).map_err(|_| done)?;
        if !action(gpa, done..end) {
            return Err(done);
        }
        done = end;
    }
    Ok(())
}

fn read(
    vm: &Vm,
    paging: &PagingState,
    linear: u64,
    bytes: usize,
) -> Result<DebugAnswer, ControlError> {
    let mut buffer = vec![0; bytes];
    let found = by_pages(vm, paging, linear, bytes, |gpa, range| {
        let Some(part) = buffer.get_mut(range) else {
            return false;
        };
        if vm.devices.ram.view().read(Gpa::new(gpa), part).is_err() {
            return false;
        }
        // What the guest has, not what a breakpoint put there.
        vm.debugger.with(|debugger| {
            for (at, byte) in (gpa..).zip(part) {
                if let Some(breakpoint) = debugger.software_at(at) {
                    *byte = breakpoint.original;
                }
            }
        });
        true
    });
    if let Err(done) = found {
        buffer.truncate(done);
    }
    if buffer.is_empty() {
        return Err(no_ram(linear));
    }
    Ok(DebugAnswer::Bytes(buffer))
}

fn write(vm: &Vm, paging: &PagingState, linear: u64, bytes: &[u8]) -> Result<(), ControlError> {
    let mut probe = [0];
    let all = by_pages(vm, paging, linear, bytes.len(), |gpa, range| {
        let last = Gpa::new(gpa + (range.len() as u64).saturating_sub(1));
        vm.devices.ram.view().read(last, &mut probe).is_ok()
    });
    all.map_err(|done| no_ram(linear.wrapping_add(done as u64)))?;
    by_pages(vm, paging, linear, bytes.len(), |gpa, range| {
        let Some(part) = bytes.get(range) else {
            return false;
        };
        let mut part = part.to_vec();
        vm.debugger.with(|debugger| {
            for (at, byte) in (gpa..).zip(&mut part) {
                if let Some(breakpoint) = debugger.software_at(at) {
                    breakpoint.original = core::mem::replace(byte, INT3);
                }
            }
        });
        vm.devices.ram.view().write(Gpa::new(gpa), &part).is_ok()
    })
    .map_err(|done| no_ram(linear.wrapping_add(done as u64)))
}

fn set_software(vm: &Vm, paging: &PagingState, linear: u64) -> Result<(), ControlError> {
    let gpa = find(vm, paging, linear)?;
    if vm
        .debugger
        .with(|debugger| debugger.software_at(gpa).is_some())
    {
        return Ok(());
    }
    let view = vm.devices.ram.view();
    let mut original = [0];
    view.read(Gpa::new(gpa), &mut original)
        .map_err(|_| no_ram(linear))?;
    let [original] = original;
    let breakpoint = SoftwareBreakpoint { gpa, original };
    if !vm
        .debugger
        .with(|debugger| debugger.add_software(breakpoint))
    {
        return Err(refuse(
            ErrorCode::Exhausted,
            format!("{MAX_SOFTWARE_BREAKPOINTS} breakpoints are set: clear one first"),
        ));
    }
    view.write(Gpa::new(gpa), &[INT3])
        .map_err(|_| no_ram(linear))
}

/// Puts the guest's byte back where a breakpoint was, unless the guest has put something else there itself.
fn restore(vm: &Vm, breakpoint: SoftwareBreakpoint) {
    let view = vm.devices.ram.view();
    let gpa = Gpa::new(breakpoint.gpa);
    let mut now = [0];
    if view.read(gpa, &mut now).is_ok() && now == [INT3] {
        // RAM that could be read can be written.
        let _ = view.write(gpa, &[breakpoint.original]);
    }
}
