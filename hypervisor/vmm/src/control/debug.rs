//! A debugger's requests: what `nagayactl gdb` asks of one VM. The order of variants and fields is the wire format.
//!
//! All vCPUs of a VM stop and go on together, but for steps. What reads or changes state is refused while one of them runs.

use alloc::format;
use alloc::vec::Vec;

use guest_abi::boot::MAX_VCPUS;
use serde::{Deserialize, Serialize};

use super::{ControlError, ErrorCode};
use crate::debugger::Hardware;

/// Most bytes that one request reads or writes: they fit a frame beside the rest.
pub const MAX_DEBUG_BYTES: usize = 2048;

/// The registers that a debugger may set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreRegisters {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: in the order of their encoding.
    pub general: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS; only what computing sets may be other than it was.
    pub rflags: u64,
}

/// A breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Breakpoint {
    /// INT3 in the guest's memory, at a linear address of a vCPU's.
    Software {
        /// By whose page tables.
        vcpu: u32,
        /// Where.
        address: u64,
    },
    /// In the debug registers of each vCPU.
    Hardware(Hardware),
}

/// What a debugger asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DebugOrder {
    /// Begins: stops the VM.
    Attach,
    /// Ends: all breakpoints are taken away and the VM goes on.
    Detach,
    /// Stops the VM; [`DebugOrder::Status`] tells when it has.
    Stop,
    /// Lets it go on.
    Go {
        /// The vCPU that is to stop after one instruction.
        step: Option<u32>,
        /// The only vCPU that runs meanwhile; without: all do.
        only: Option<u32>,
    },
    /// Whether it runs; [`DebugAnswer::Status`].
    Status,
    /// Sets registers.
    SetRegisters {
        /// Of which vCPU.
        vcpu: u32,
        /// To what.
        registers: CoreRegisters,
    },
    /// Reads memory at a linear address; [`DebugAnswer::Bytes`], fewer where no RAM follows.
    Read {
        /// By whose page tables.
        vcpu: u32,
        /// From where.
        address: u64,
        /// How much, at most [`MAX_DEBUG_BYTES`].
        bytes: u32,
    },
    /// Writes memory at a linear address, all or nothing, whatever the guest's page tables allow.
    Write {
        /// By whose page tables.
        vcpu: u32,
        /// To where.
        address: u64,
        /// What, at most [`MAX_DEBUG_BYTES`].
        bytes: Vec<u8>,
    },
    /// Sets a breakpoint.
    Set(Breakpoint),
    /// Takes a breakpoint away.
    Clear(Breakpoint),
}

/// Why a VM has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The debugger wanted it.
    Asked,
    /// A step is done.
    Stepped,
    /// A software breakpoint.
    Software,
    /// A hardware breakpoint or watchpoint.
    Hardware(Hardware),
}

/// A stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Which vCPU.
    pub vcpu: u32,
    /// Why.
    pub reason: StopReason,
}

/// How a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugStatus {
    /// The vCPUs that have been started, a bit for each.
    pub started: u64,
    /// Why all have stopped; `None` while one runs.
    pub stop: Option<Stop>,
}

/// What comes of a debugger's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DebugAnswer {
    /// Done.
    Done,
    /// How the VM is.
    Status(DebugStatus),
    /// Bytes that were read.
    Bytes(Vec<u8>),
}

impl DebugOrder {
    /// Whether everything in it is in range.
    ///
    /// # Errors
    /// What is not.
    pub(super) fn check(&self) -> Result<(), ControlError> {
        let invalid = |text| Err(ControlError::new(ErrorCode::Invalid, text));
        let bytes = match self {
            DebugOrder::Read { bytes, .. } => *bytes as usize,
            DebugOrder::Write { bytes, .. } => bytes.len(),
            _ => 1,
        };
        if !(1..=MAX_DEBUG_BYTES).contains(&bytes) {
            return invalid(format!(
                "{bytes} bytes of memory: 1 to {MAX_DEBUG_BYTES} at once"
            ));
        }
        let vcpu = match self {
            DebugOrder::Go { step, only } => step.unwrap_or(0).max(only.unwrap_or(0)),
            DebugOrder::SetRegisters { vcpu, .. }
            | DebugOrder::Read { vcpu, .. }
            | DebugOrder::Write { vcpu, .. }
            | DebugOrder::Set(Breakpoint::Software { vcpu, .. })
            | DebugOrder::Clear(Breakpoint::Software { vcpu, .. }) => *vcpu,
            _ => 0,
        };
        if vcpu >= MAX_VCPUS {
            return invalid(format!("vCPU {vcpu}: there are at most {MAX_VCPUS}"));
        }
        match self {
            DebugOrder::Set(Breakpoint::Hardware(wanted)) if !wanted.is_possible() => {
                invalid(format!(
                    "{} bytes at {:#x} cannot be watched: 1, 2, 4 or 8 bytes at a multiple of that, 1 for instructions",
                    wanted.bytes, wanted.address
                ))
            }
            _ => Ok(()),
        }
    }
}

impl DebugAnswer {
    pub(super) fn is_sane(&self) -> bool {
        match self {
            DebugAnswer::Done => true,
            DebugAnswer::Status(status) => status.stop.is_none_or(|stop| stop.vcpu < MAX_VCPUS),
            DebugAnswer::Bytes(bytes) => bytes.len() <= MAX_DEBUG_BYTES,
        }
    }
}
