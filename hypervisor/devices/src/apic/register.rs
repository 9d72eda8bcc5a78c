//! The registers by their numbers ("Local APIC Register Address Map", "Local APIC Register Address Space in x2APIC mode"): the
//! offset in memory divided by 16 is the distance from the first MSR.

/// MSR of register 0.
pub(super) const FIRST_MSR: u32 = 0x800;
/// MSR of the last.
pub(super) const LAST_MSR: u32 = 0x8FF;

pub(super) const ID: u8 = 0x02;
pub(super) const VERSION: u8 = 0x03;
pub(super) const TASK_PRIORITY: u8 = 0x08;
pub(super) const ARBITRATION_PRIORITY: u8 = 0x09;
pub(super) const PROCESSOR_PRIORITY: u8 = 0x0A;
pub(super) const EOI: u8 = 0x0B;
pub(super) const REMOTE_READ: u8 = 0x0C;
pub(super) const LOGICAL_ID: u8 = 0x0D;
pub(super) const DESTINATION_FORMAT: u8 = 0x0E;
pub(super) const SPURIOUS: u8 = 0x0F;
pub(super) const IN_SERVICE: u8 = 0x10;
pub(super) const LEVEL: u8 = 0x18;
pub(super) const REQUESTED: u8 = 0x20;
pub(super) const ERROR_STATUS: u8 = 0x28;
pub(super) const COMMAND: u8 = 0x30;
pub(super) const COMMAND_HIGH: u8 = 0x31;
pub(super) const LVT_FIRST: u8 = 0x32;
pub(super) const LVT_LAST: u8 = 0x37;
pub(super) const INITIAL_COUNT: u8 = 0x38;
pub(super) const CURRENT_COUNT: u8 = 0x39;
pub(super) const DIVIDE: u8 = 0x3E;
pub(super) const SELF_IPI: u8 = 0x3F;

/// Version 0x14, six entries in the local vector table, no suppression of EOI broadcasts ("Local APIC Version Register").
pub(super) const VERSION_VALUE: u32 = 0x14 | 5 << 16;

/// SVR: enabled by software.
pub(super) const SPURIOUS_ENABLE: u32 = 1 << 8;
/// SVR after reset.
pub(super) const SPURIOUS_RESET: u32 = 0xFF;
/// Bits of SVR that exist.
pub(super) const SPURIOUS_BITS: u32 = 0x1FF;

/// DFR: the flat model; only bits 31 to 28 are not fixed.
pub(super) const FLAT_MODEL: u32 = 0xFFFF_FFFF;
/// Bits of DFR that are ones always.
pub(super) const DESTINATION_FORMAT_ONES: u32 = 0x0FFF_FFFF;
/// Bits of the divide configuration.
pub(super) const DIVIDE_BITS: u32 = 0b1011;

/// Fields of the interrupt command register ("Interrupt Command Register (ICR)").
pub(super) mod command {
    /// Bits of the low half that software sets.
    pub(in super::super) const LOW_BITS: u32 = 0x000C_CFFF;
    /// Logical destination mode, else physical.
    pub(in super::super) const LOGICAL: u64 = 1 << 11;
    /// Level: assert.
    pub(in super::super) const ASSERT: u64 = 1 << 14;
    /// Trigger mode: level.
    pub(in super::super) const LEVEL_TRIGGERED: u64 = 1 << 15;
}

/// Bits of the error status ("Error Status Register (ESR)").
pub(super) mod error {
    pub(in super::super) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(in super::super) const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(in super::super) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Fields of the entries of the local vector table ("Local Vector Table").
pub(super) mod lvt {
    pub(in super::super) const DELIVERY: u32 = 7 << 8;
    pub(in super::super) const DELIVERY_FIXED: u32 = 0;
    pub(in super::super) const DELIVERY_NMI: u32 = 4 << 8;
    pub(in super::super) const DELIVERY_INIT: u32 = 5 << 8;
    pub(in super::super) const DELIVERY_EXTERNAL: u32 = 7 << 8;
    /// Bits that are read-only: delivery status and remote IRR.
    pub(in super::super) const READ_ONLY: u32 = 1 << 12 | 1 << 14;
    pub(in super::super) const LEVEL: u32 = 1 << 15;
    pub(in super::super) const MASKED: u32 = 1 << 16;
    /// Where the timer's mode is.
    pub(in super::super) const TIMER_MODE_SHIFT: u32 = 17;
}

/// An entry of the local vector table, in the order of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Lvt {
    Timer = 0,
    Thermal = 1,
    Performance = 2,
    Lint0 = 3,
    Lint1 = 4,
    Error = 5,
}

impl Lvt {
    pub(super) const COUNT: usize = 6;

    /// The entry at a register from [`LVT_FIRST`] on.
    pub(super) fn at(register: u8) -> Option<Lvt> {
        Some(match register.checked_sub(LVT_FIRST)? {
            0 => Lvt::Timer,
            1 => Lvt::Thermal,
            2 => Lvt::Performance,
            3 => Lvt::Lint0,
            4 => Lvt::Lint1,
            5 => Lvt::Error,
            _ => return None,
        })
    }

    /// Bits that software sets.
    pub(super) const fn bits(self) -> u32 {
        match self {
            Lvt::Timer => 0x0007_00FF,
            Lvt::Thermal | Lvt::Performance => 0x0001_07FF,
            Lvt::Lint0 | Lvt::Lint1 => 0x0001_A7FF,
            Lvt::Error => 0x0001_00FF,
        }
    }
}
