//! What a TSS holds, in its two formats.
//!
//! Source: Intel SDM Vol. 3, "Task-State Segment (TSS)", "16-Bit Task-State Segment (TSS)".

use x86_defs::cr::Rflags;

use super::{LinearMemory, PageFault, Privilege, TaskRegisters};

/// Bits of EFLAGS that there are, and the one that is always set.
const EFLAGS: u32 = 0x003F_7FD5;
const EFLAGS_16: u32 = 0x7FD5;
const EFLAGS_ONE: u32 = Rflags::RESERVED_ONE.bits() as u32;

/// A TSS's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Of the 80286.
    Bits16,
    /// 32 bits.
    Bits32,
}

/// A task as its TSS has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) general: [u32; 8],
    pub(super) eip: u32,
    pub(super) eflags: u32,
    /// ES, CS, SS, DS, FS, GS.
    pub(super) selectors: [u16; 6],
    pub(super) ldt: u16,
    /// Only a TSS of 32 bits has one.
    pub(super) cr3: Option<u32>,
    /// The T flag: a debug trap comes before the task's first instruction.
    pub(super) traps: bool,
}

/// Bytes of a TSS of 32 bits without what software adds.
const BYTES: usize = 104;

/// Where EIP or IP is; EFLAGS, the general registers and the selectors follow.
const EIP: usize = 0x20;
const IP: usize = 0x0E;
/// Selectors of a TSS of 32 bits, and behind them LDT and T flag.
const SELECTORS: usize = 0x48;
const LDT: usize = 0x60;
const TRAP: usize = 0x64;
const CR3: usize = 0x1C;
/// The same of 16 bits.
const SELECTORS_16: usize = 0x22;
const LDT_16: usize = 0x2A;

fn word(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |chunk| u16::from_le_bytes(*chunk))
}

fn double_word(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) | u32::from(word(bytes, at + 2)) << 16
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(slot) = bytes.get_mut(at..at + value.len()) {
        slot.copy_from_slice(value);
    }
}

impl Format {
    /// The least limit of its segment.
    pub(super) const fn least_limit(self) -> u32 {
        match self {
            Format::Bits16 => 0x2B,
            Format::Bits32 => 0x67,
        }
    }

    /// Offset and bytes of what is saved.
    pub(super) const fn saved(self) -> (u32, usize) {
        match self {
            Format::Bits16 => (IP as u32, LDT_16 - IP),
            Format::Bits32 => (EIP as u32, LDT - EIP),
        }
    }

    /// Reads a task. What 16 bits do not tell is 0, FS and GS are null.
    pub(super) fn read(
        self,
        memory: &impl LinearMemory,
        cr3: u64,
        base: u32,
    ) -> Result<State, PageFault> {
        let mut bytes = [0; BYTES];
        let length = self.least_limit() as usize + 1;
        memory.read(cr3, base, bytes.get_mut(..length).unwrap_or_default())?;
        Ok(match self {
            Format::Bits32 => State {
                general: core::array::from_fn(|index| double_word(&bytes, EIP + 8 + index * 4)),
                eip: double_word(&bytes, EIP),
                eflags: double_word(&bytes, EIP + 4) & EFLAGS | EFLAGS_ONE,
                selectors: core::array::from_fn(|index| word(&bytes, SELECTORS + index * 4)),
                ldt: word(&bytes, LDT),
                cr3: Some(double_word(&bytes, CR3)),
                traps: word(&bytes, TRAP) & 1 != 0,
            },
            Format::Bits16 => State {
                general: core::array::from_fn(|index| word(&bytes, IP + 4 + index * 2).into()),
                eip: word(&bytes, IP).into(),
                eflags: u32::from(word(&bytes, IP + 2)) & EFLAGS_16 | EFLAGS_ONE,
                selectors: core::array::from_fn(|index| match index {
                    0..4 => word(&bytes, SELECTORS_16 + index * 2),
                    _ => 0,
                }),
                ldt: word(&bytes, LDT_16),
                cr3: None,
                traps: false,
            },
        })
    }

    /// Saves a task. Of what is reserved nothing changes.
    pub(super) fn save(
        self,
        memory: &impl LinearMemory,
        cr3: u64,
        base: u32,
        task: &TaskRegisters,
    ) -> Result<(), PageFault> {
        let (offset, length) = self.saved();
        let at = base.wrapping_add(offset);
        let mut buffer = [0; LDT - EIP];
        let bytes = buffer.get_mut(..length).unwrap_or_default();
        memory.read(cr3, at, bytes)?;
        let selectors = task.segments.iter().map(|segment| segment.selector);
        match self {
            Format::Bits32 => {
                put(bytes, 0, &task.eip.to_le_bytes());
                put(bytes, 4, &task.eflags.to_le_bytes());
                for (index, value) in task.general.iter().enumerate() {
                    put(bytes, 8 + index * 4, &value.to_le_bytes());
                }
                for (index, value) in selectors.enumerate() {
                    put(bytes, SELECTORS - EIP + index * 4, &value.to_le_bytes());
                }
            }
            Format::Bits16 => {
                put(bytes, 0, &(task.eip as u16).to_le_bytes());
                put(bytes, 2, &(task.eflags as u16).to_le_bytes());
                for (index, value) in task.general.iter().enumerate() {
                    put(bytes, 4 + index * 2, &(*value as u16).to_le_bytes());
                }
                for (index, value) in selectors.take(4).enumerate() {
                    put(bytes, SELECTORS_16 - IP + index * 2, &value.to_le_bytes());
                }
            }
        }
        memory.write(cr3, at, bytes, Privilege::Supervisor)
    }
}
