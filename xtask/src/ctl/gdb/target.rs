//! What GDB asks, as requests to the hypervisor. vCPU n is thread n + 1: GDB knows no thread 0.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use nagaya_vmm::control::{
    Answer, Breakpoint, ControlError, DebugAnswer, DebugOrder, DebugStatus, MAX_DEBUG_BYTES,
    Request, Selector, StopReason,
};
use nagaya_vmm::debugger::{Hardware, Watch};

use super::super::client::{Client, unexpected};
use super::registers::{GdbRegisters, X86};

/// How long a VM may take to stop: each vCPU leaves its CPU.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const STOP_LOOK: Duration = Duration::from_millis(20);
/// EFAULT, by which GDB knows that there is no memory.
const BAD_ADDRESS: u8 = 14;

/// A VM as GDB sees it.
pub(super) struct VmTarget<'a> {
    client: &'a mut Client,
    vm: Selector,
    /// The vCPU that GDB looks at first, and by whose page tables breakpoints are set.
    first: u32,
    started: u64,
    step: Option<u32>,
    continued: Option<u32>,
    is_locked: bool,
}

fn thread(vcpu: u32) -> Tid {
    Tid::MIN.saturating_add(vcpu as usize)
}

fn vcpu(thread: Tid) -> u32 {
    u32::try_from(thread.get() - 1).unwrap_or(u32::MAX)
}

/// What the hypervisor refuses is told to GDB by that code, and it goes on; without the hypervisor there is no going on.
fn refused<T>(result: Result<T>, code: u8) -> TargetResult<T, VmTarget<'static>> {
    result.map_err(|error| {
        if error.is::<ControlError>() {
            crate::note!("{error}");
            TargetError::Errno(code)
        } else {
            TargetError::Fatal(error)
        }
    })
}

impl<'a> VmTarget<'a> {
    /// Stops a VM for GDB.
    pub(super) fn attach(
        client: &'a mut Client,
        vm: &Selector,
        first: u32,
    ) -> Result<VmTarget<'a>> {
        let mut target = VmTarget {
            client,
            vm: vm.clone(),
            first,
            started: 0,
            step: None,
            continued: None,
            is_locked: false,
        };
        target.order(DebugOrder::Attach)?;
        let began = target.await_stop();
        let is_there = began.is_ok() && first < 64 && target.started >> first & 1 != 0;
        if !is_there {
            // As if this had not been.
            let _ = target.detach();
            began?;
            bail!("vCPU {first} has not been started: `nagayactl ps` tells how many there are");
        }
        Ok(target)
    }

    /// Takes away what GDB has set and lets the VM go on.
    pub(super) fn detach(&mut self) -> Result<()> {
        self.stop()?;
        self.await_stop()?;
        self.order(DebugOrder::Detach)
    }

    fn ask(&mut self, order: DebugOrder) -> Result<DebugAnswer> {
        let vm = self.vm.clone();
        match self.client.ask(&Request::Debug { vm, order })? {
            Answer::Debug(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    fn order(&mut self, order: DebugOrder) -> Result<()> {
        match self.ask(order)? {
            DebugAnswer::Done => Ok(()),
            other => Err(anyhow!("not what was asked: {other:?}")),
        }
    }

    fn status(&mut self) -> Result<DebugStatus> {
        match self.ask(DebugOrder::Status)? {
            DebugAnswer::Status(status) => {
                self.started = status.started;
                Ok(status)
            }
            other => Err(anyhow!("not what was asked: {other:?}")),
        }
    }

    /// Has it stop.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.order(DebugOrder::Stop)
    }

    /// Why it has stopped, if it has.
    pub(super) fn stopped(&mut self) -> Result<Option<MultiThreadStopReason<u64>>> {
        let status = match self.status() {
            Ok(status) => status,
            // It has ended, or been made anew.
            Err(error) if error.is::<ControlError>() => {
                return Ok(Some(MultiThreadStopReason::Exited(0)));
            }
            Err(error) => return Err(error),
        };
        Ok(status.stop.map(|stop| {
            let tid = thread(stop.vcpu);
            match stop.reason {
                StopReason::Asked => MultiThreadStopReason::SignalWithThread {
                    tid,
                    signal: Signal::SIGINT,
                },
                StopReason::Stepped => MultiThreadStopReason::SignalWithThread {
                    tid,
                    signal: Signal::SIGTRAP,
                },
                StopReason::Software => MultiThreadStopReason::SwBreak(tid),
                StopReason::Hardware(hit) => match hit.watch {
                    Watch::Execute => MultiThreadStopReason::HwBreak(tid),
                    Watch::Write | Watch::Access => MultiThreadStopReason::Watch {
                        tid,
                        kind: if hit.watch == Watch::Write {
                            WatchKind::Write
                        } else {
                            WatchKind::ReadWrite
                        },
                        addr: hit.address,
                    },
                },
            }
        }))
    }

    /// Waits until it has stopped.
    pub(super) fn await_stop(&mut self) -> Result<Option<MultiThreadStopReason<u64>>> {
        let limit = Instant::now() + STOP_LIMIT;
        while Instant::now() < limit {
            if let Some(stop) = self.stopped()? {
                return Ok(Some(stop));
            }
            sleep(STOP_LOOK);
        }
        bail!("the VM has not stopped within {STOP_LIMIT:?}")
    }

    fn registers(&mut self, vcpu: u32) -> Result<GdbRegisters> {
        let vm = self.vm.clone();
        match self.client.ask(&Request::Dump { vm, vcpu })? {
            Answer::Dump(dump) => Ok(GdbRegisters(dump.registers)),
            other => Err(unexpected(&other)),
        }
    }

    /// Sets or clears a breakpoint; false if the hypervisor refuses it, and says why.
    fn change(&mut self, order: DebugOrder) -> TargetResult<bool, VmTarget<'static>> {
        match self.order(order) {
            Ok(()) => Ok(true),
            Err(error) if error.is::<ControlError>() => {
                crate::note!("{error}");
                Ok(false)
            }
            Err(error) => Err(TargetError::Fatal(error)),
        }
    }
}

/// What x86 can watch: it has nothing for reads alone.
fn watchpoint(address: u64, bytes: u64, kind: WatchKind) -> Breakpoint {
    Breakpoint::Hardware(Hardware {
        address,
        bytes: u8::try_from(bytes).unwrap_or(0),
        watch: match kind {
            WatchKind::Write => Watch::Write,
            WatchKind::Read | WatchKind::ReadWrite => Watch::Access,
        },
    })
}

impl Target for VmTarget<'_> {
    type Arch = X86;
    type Error = anyhow::Error;

    fn base_ops(&mut self) -> BaseOps<'_, X86, anyhow::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for VmTarget<'_> {
    fn read_registers(&mut self, registers: &mut GdbRegisters, tid: Tid) -> TargetResult<(), Self> {
        let found = self.registers(vcpu(tid));
        *registers = refused(found, BAD_ADDRESS)?;
        Ok(())
    }

    fn write_registers(&mut self, registers: &GdbRegisters, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = vcpu(tid);
        let mut settable = refused(self.registers(vcpu), BAD_ADDRESS)?;
        settable.0.general = registers.0.general;
        settable.0.rip = registers.0.rip;
        settable.0.rflags = registers.0.rflags;
        // GDB does not send all that it was told.
        let same = |all: &GdbRegisters| {
            let registers = &all.0;
            let selectors = registers.segments.map(|segment| segment.selector);
            let bases = [registers.segments[4].base, registers.segments[5].base];
            let control = [registers.cr0, registers.cr2, registers.cr3, registers.cr4];
            (selectors, bases, control, registers.efer)
        };
        if same(&settable) != same(registers) {
            crate::note!("a debugger sets general registers, RIP and flags only");
            return Err(TargetError::Errno(BAD_ADDRESS));
        }
        let order = DebugOrder::SetRegisters {
            vcpu,
            registers: registers.core(),
        };
        refused(self.order(order), BAD_ADDRESS)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let mut done = 0;
        while done < data.len() {
            let order = DebugOrder::Read {
                vcpu: vcpu(tid),
                address: start.wrapping_add(done as u64),
                bytes: (data.len() - done).min(MAX_DEBUG_BYTES) as u32,
            };
            let bytes = match self.ask(order) {
                Ok(DebugAnswer::Bytes(bytes)) if !bytes.is_empty() => bytes,
                Ok(other) => return Err(TargetError::Fatal(anyhow!("no bytes: {other:?}"))),
                Err(_) if done > 0 => break,
                // GDB tries addresses that are none: it says so itself.
                Err(error) if error.is::<ControlError>() => {
                    return Err(TargetError::Errno(BAD_ADDRESS));
                }
                Err(error) => return Err(TargetError::Fatal(error)),
            };
            let room = data.get_mut(done..).unwrap_or_default();
            let count = bytes.len().min(room.len());
            for (slot, byte) in room.iter_mut().zip(bytes) {
                *slot = byte;
            }
            done += count;
        }
        Ok(done)
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        for (index, part) in data.chunks(MAX_DEBUG_BYTES).enumerate() {
            let order = DebugOrder::Write {
                vcpu: vcpu(tid),
                address: start.wrapping_add((index * MAX_DEBUG_BYTES) as u64),
                bytes: part.to_vec(),
            };
            refused(self.order(order), BAD_ADDRESS)?;
        }
        Ok(())
    }

    fn list_active_threads(&mut self, is_active: &mut dyn FnMut(Tid)) -> Result<()> {
        is_active(thread(self.first));
        (0..64)
            .filter(|vcpu| self.started >> vcpu & 1 != 0 && *vcpu != self.first)
            .for_each(|vcpu| is_active(thread(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for VmTarget<'_> {
    fn resume(&mut self) -> Result<()> {
        let only = if self.is_locked {
            self.step.or(self.continued)
        } else {
            None
        };
        self.order(DebugOrder::Go {
            step: self.step,
            only,
        })
    }

    fn clear_resume_actions(&mut self) -> Result<()> {
        (self.step, self.continued, self.is_locked) = (None, None, false);
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<()> {
        self.continued = Some(vcpu(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for VmTarget<'_> {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<()> {
        self.step = Some(vcpu(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for VmTarget<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<()> {
        self.is_locked = true;
        Ok(())
    }
}

impl Breakpoints for VmTarget<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for VmTarget<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let vcpu = self.first;
        self.change(DebugOrder::Set(Breakpoint::Software { vcpu, address }))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let vcpu = self.first;
        self.change(DebugOrder::Clear(Breakpoint::Software { vcpu, address }))
    }
}

fn instruction(address: u64) -> Breakpoint {
    Breakpoint::Hardware(Hardware {
        address,
        bytes: 1,
        watch: Watch::Execute,
    })
}

impl HwBreakpoint for VmTarget<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.change(DebugOrder::Set(instruction(address)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.change(DebugOrder::Clear(instruction(address)))
    }
}

impl HwWatchpoint for VmTarget<'_> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        bytes: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.change(DebugOrder::Set(watchpoint(address, bytes, kind)))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        bytes: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.change(DebugOrder::Clear(watchpoint(address, bytes, kind)))
    }
}
