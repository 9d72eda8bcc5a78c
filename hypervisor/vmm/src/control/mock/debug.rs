//! A guest of the imagination under a debugger: each of its instructions is one byte and does nothing.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use crate::control::{
    Breakpoint, ControlError, CoreRegisters, DebugAnswer, DebugOrder, DebugStatus, ErrorCode, Stop,
    StopReason,
};

/// Where its memory begins.
const START: u64 = 0x20_0000;
/// How much it has.
const BYTES: usize = 4096;
const NOP: u8 = 0x90;

/// The guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DebuggedGuest {
    pub(super) vm: u32,
    vcpus: Vec<CoreRegisters>,
    memory: Vec<u8>,
    breakpoints: Vec<Breakpoint>,
    stop: Option<Stop>,
}

fn refuse(text: impl Into<alloc::string::String>) -> ControlError {
    ControlError::new(ErrorCode::State, text)
}

impl DebuggedGuest {
    pub(super) fn new(vm: u32, vcpus: u32) -> DebuggedGuest {
        let registers = CoreRegisters {
            rip: 0x20_0234,
            rflags: 0x202,
            ..CoreRegisters::default()
        };
        DebuggedGuest {
            vm,
            vcpus: vec![registers; vcpus as usize],
            memory: vec![NOP; BYTES],
            breakpoints: Vec::new(),
            stop: Some(Stop {
                vcpu: 0,
                reason: StopReason::Asked,
            }),
        }
    }

    /// The registers of one of its vCPUs.
    pub(super) fn registers(&self, vcpu: u32) -> Option<CoreRegisters> {
        self.vcpus.get(vcpu as usize).copied()
    }

    fn range(address: u64, bytes: usize) -> core::ops::Range<usize> {
        let start =
            usize::try_from(address.wrapping_sub(START)).map_or(BYTES, |start| start.min(BYTES));
        start..start.saturating_add(bytes).min(BYTES)
    }

    fn has_breakpoint(&self, at: u64) -> bool {
        self.breakpoints
            .iter()
            .any(|it| matches!(it, Breakpoint::Software { address, .. } if *address == at))
    }

    pub(super) fn debug(&mut self, order: &DebugOrder) -> Result<DebugAnswer, ControlError> {
        match order {
            DebugOrder::Status => {
                return Ok(DebugAnswer::Status(DebugStatus {
                    started: (1 << self.vcpus.len()) - 1,
                    stop: self.stop,
                }));
            }
            DebugOrder::Stop => {
                let asked = Stop {
                    vcpu: 0,
                    reason: StopReason::Asked,
                };
                self.stop.get_or_insert(asked);
                return Ok(DebugAnswer::Done);
            }
            _ if self.stop.is_none() => return Err(refuse("the VM runs")),
            DebugOrder::Attach => return Err(refuse("the VM is debugged already")),
            DebugOrder::Detach => {}
            DebugOrder::Go { step, .. } => self.go(*step),
            DebugOrder::SetRegisters { vcpu, registers } => {
                let place = self.vcpus.get_mut(*vcpu as usize);
                *place.ok_or_else(|| refuse("there is no such vCPU"))? = *registers;
            }
            DebugOrder::Read { address, bytes, .. } => {
                let found = &self.memory[DebuggedGuest::range(*address, *bytes as usize)];
                if found.is_empty() {
                    return Err(refuse(format!("there is no RAM at {address:#x}")));
                }
                return Ok(DebugAnswer::Bytes(found.to_vec()));
            }
            DebugOrder::Write { address, bytes, .. } => {
                let range = DebuggedGuest::range(*address, bytes.len());
                if range.len() != bytes.len() {
                    return Err(refuse(format!("there is no RAM at {address:#x}")));
                }
                self.memory[range].copy_from_slice(bytes);
            }
            DebugOrder::Set(wanted) => self.breakpoints.push(*wanted),
            DebugOrder::Clear(unwanted) => {
                let before = self.breakpoints.len();
                self.breakpoints.retain(|it| it != unwanted);
                if self.breakpoints.len() == before {
                    return Err(refuse("there is no such breakpoint"));
                }
            }
        }
        Ok(DebugAnswer::Done)
    }

    /// One instruction, or all until a breakpoint: without one in its way it runs on.
    fn go(&mut self, step: Option<u32>) {
        let vcpu = step.unwrap_or(0);
        let end = START + BYTES as u64;
        self.stop = None;
        let Some(mut now) = self.registers(vcpu) else {
            return;
        };
        while now.rip < end {
            now.rip += 1;
            let reason = if self.has_breakpoint(now.rip) {
                Some(StopReason::Software)
            } else {
                step.map(|_| StopReason::Stepped)
            };
            if let Some(reason) = reason {
                self.stop = Some(Stop { vcpu, reason });
                break;
            }
        }
        self.vcpus[vcpu as usize] = now;
    }
}
