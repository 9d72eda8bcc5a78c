//! Accesses to registers, by memory and by MSRs.

use super::register::{self, Lvt, command, error, lvt};
use super::{
    ApicEffect, BusMessage, Delivery, FIRST_VECTOR, GeneralProtection, LocalApic, Mode, Recipients,
    Signal, TimerMode, Trigger,
};
use crate::pci::Width;

/// Bits of IA32_APIC_BASE ("IA32_APIC_BASE MSR").
const BASE_BOOTSTRAP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_FLAGS: u64 = 0xFFF;

/// Delivery modes of ICR that carry a vector.
const COMMAND_FIXED: u32 = 0;
const COMMAND_LOWEST: u32 = 1;

impl LocalApic {
    /// The register that an access by memory meets whole or in part, with the byte in it. The registers are the first words of
    /// their 16 bytes; what comes after is undefined.
    fn decode(offset: u16, width: Width) -> Option<(u8, u16)> {
        let byte = offset % 16;
        let register = u8::try_from(offset / 16).ok()?;
        (usize::from(byte) + width.bytes() <= 4).then_some((register, byte))
    }

    /// Reads `offset` of the page by memory. Undefined places are zeros; all ones where there is no xAPIC.
    pub fn memory_read(&mut self, offset: u16, width: Width, now: u64) -> u64 {
        if self.mode != Mode::XApic {
            return width.ones();
        }
        let _ = self.advance(now);
        let Some((register, byte)) = Self::decode(offset, width) else {
            return 0;
        };
        let value = match register {
            register::ID => self.id() << 24,
            register::LOGICAL_ID => self.logical_id,
            register::DESTINATION_FORMAT => self.destination_format,
            register::COMMAND_HIGH => (self.command >> 32) as u32,
            // Of processors before the Pentium 4, and of a command that has gone since.
            register::ARBITRATION_PRIORITY | register::REMOTE_READ => 0,
            // Write-only.
            register::EOI => 0,
            register::COMMAND => self.command as u32,
            _ => match self.read(register, now) {
                Some(value) => value,
                None => {
                    self.note_error(error::ILLEGAL_REGISTER);
                    0
                }
            },
        };
        u64::from(value) >> (byte * 8) & width.ones()
    }

    /// Writes `offset` of the page by memory: whole registers only ("Local APIC Registers"), others do nothing.
    pub fn memory_write(&mut self, offset: u16, width: Width, value: u64, now: u64) -> ApicEffect {
        if self.mode != Mode::XApic || width != Width::Dword {
            return ApicEffect::None;
        }
        let _ = self.advance(now);
        let Some((register, 0)) = Self::decode(offset, width) else {
            return ApicEffect::None;
        };
        let value = value as u32;
        match register {
            // Read-only.
            register::ID
            | register::VERSION
            | register::ARBITRATION_PRIORITY
            | register::PROCESSOR_PRIORITY
            | register::REMOTE_READ
            | register::CURRENT_COUNT
            | register::IN_SERVICE..register::ERROR_STATUS => {}
            register::LOGICAL_ID => self.logical_id = value & 0xFF00_0000,
            register::DESTINATION_FORMAT => {
                self.destination_format = value | register::DESTINATION_FORMAT_ONES;
            }
            register::COMMAND_HIGH => {
                let high = u64::from(value & 0xFF00_0000) << 32;
                self.command = self.command & 0xFFFF_FFFF | high;
            }
            register::COMMAND => {
                let low = u64::from(value & command::LOW_BITS);
                self.command = self.command >> 32 << 32 | low;
                return self.send();
            }
            register::EOI => return self.end_of_interrupt(),
            _ => {
                if !self.write(register, value, now) {
                    self.note_error(error::ILLEGAL_REGISTER);
                }
            }
        }
        ApicEffect::None
    }

    /// Reads an MSR from 0x800 to 0x8FF.
    ///
    /// # Errors
    /// [`GeneralProtection`] if it is not in x2APIC mode, or the register is not there or write-only.
    pub fn msr_read(&mut self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        let register = self.x2apic_register(msr)?;
        let _ = self.advance(now);
        match register {
            register::ID => Ok(self.id().into()),
            register::LOGICAL_ID => Ok(self.logical_id().into()),
            register::COMMAND => Ok(self.command),
            _ => self
                .read(register, now)
                .map(u64::from)
                .ok_or(GeneralProtection),
        }
    }

    /// Writes an MSR from 0x800 to 0x8FF.
    ///
    /// # Errors
    /// [`GeneralProtection`] if it is not in x2APIC mode, the register is not there or read-only, or reserved bits are set.
    pub fn msr_write(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<ApicEffect, GeneralProtection> {
        let register = self.x2apic_register(msr)?;
        let _ = self.advance(now);
        let allowed = match register {
            register::TASK_PRIORITY | register::SELF_IPI => 0xFF,
            register::EOI | register::ERROR_STATUS => 0,
            register::SPURIOUS => register::SPURIOUS_BITS.into(),
            register::COMMAND => 0xFFFF_FFFF << 32 | u64::from(command::LOW_BITS),
            register::LVT_FIRST..=register::LVT_LAST => {
                let entry = Lvt::at(register).ok_or(GeneralProtection)?;
                u64::from(entry.bits() | lvt::READ_ONLY)
            }
            register::INITIAL_COUNT => 0xFFFF_FFFF,
            register::DIVIDE => register::DIVIDE_BITS.into(),
            _ => return Err(GeneralProtection),
        };
        if value & !allowed != 0 {
            return Err(GeneralProtection);
        }
        match register {
            register::EOI => return Ok(self.end_of_interrupt()),
            register::COMMAND => {
                self.command = value;
                return Ok(self.send());
            }
            register::SELF_IPI => self.send_to_self(value as u8),
            _ => {
                self.write(register, value as u32, now);
            }
        }
        Ok(ApicEffect::None)
    }

    fn x2apic_register(&self, msr: u32) -> Result<u8, GeneralProtection> {
        if self.mode != Mode::X2Apic || msr > register::LAST_MSR {
            return Err(GeneralProtection);
        }
        let register = msr.checked_sub(register::FIRST_MSR);
        register
            .and_then(|register| u8::try_from(register).ok())
            .ok_or(GeneralProtection)
    }

    /// Registers that both modes read alike. `None` if there is none.
    fn read(&self, register: u8, now: u64) -> Option<u32> {
        Some(match register {
            register::VERSION => register::VERSION_VALUE,
            register::TASK_PRIORITY => self.task_priority.into(),
            register::PROCESSOR_PRIORITY => self.processor_priority().into(),
            register::SPURIOUS => self.spurious,
            register::IN_SERVICE..register::LEVEL => {
                self.in_service.word(register - register::IN_SERVICE)
            }
            register::LEVEL..register::REQUESTED => self.level.word(register - register::LEVEL),
            register::REQUESTED..register::ERROR_STATUS => {
                self.requested.word(register - register::REQUESTED)
            }
            register::ERROR_STATUS => self.errors,
            register::LVT_FIRST..=register::LVT_LAST => self.entry(Lvt::at(register)?),
            register::INITIAL_COUNT => self.timer.initial(),
            register::CURRENT_COUNT => self.timer.current(now),
            register::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Registers that both modes write alike. `false` if there is none.
    fn write(&mut self, register: u8, value: u32, now: u64) -> bool {
        match register {
            register::TASK_PRIORITY => self.task_priority = value as u8,
            register::SPURIOUS => self.write_spurious(value),
            // A write shows what has come since the last one.
            register::ERROR_STATUS => self.errors = core::mem::take(&mut self.new_errors),
            register::LVT_FIRST..=register::LVT_LAST => {
                let Some(which) = Lvt::at(register) else {
                    return false;
                };
                self.write_entry(which, value);
            }
            register::INITIAL_COUNT => self.timer.set_initial(value, now),
            register::DIVIDE => self.timer.set_divide(value & register::DIVIDE_BITS, now),
            _ => return false,
        }
        true
    }

    /// "Local APIC State After It Has Been Software Disabled": all entries are masked and stay so.
    fn write_spurious(&mut self, value: u32) {
        self.spurious = value & register::SPURIOUS_BITS;
        if !self.is_software_enabled() {
            for entry in &mut self.lvt {
                *entry |= lvt::MASKED;
            }
        }
    }

    fn write_entry(&mut self, which: Lvt, value: u32) {
        let mut value = value & which.bits();
        if !self.is_software_enabled() {
            value |= lvt::MASKED;
        }
        self.set_entry(which, value);
        if which == Lvt::Timer {
            let mode = TimerMode::from_bits(value >> lvt::TIMER_MODE_SHIFT);
            self.timer.set_mode(mode);
        }
    }

    fn send_to_self(&mut self, vector: u8) {
        if vector < FIRST_VECTOR {
            self.note_error(error::SEND_ILLEGAL_VECTOR);
        } else {
            let _ = self.accept(vector, Trigger::Edge);
        }
    }

    /// Sends what ICR says ("Issuing Interprocessor Interrupts"). To itself it is done here.
    fn send(&mut self) -> ApicEffect {
        let low = self.command as u32;
        let (vector, mode) = (low as u8, low >> 8 & 7);
        let has_vector = matches!(mode, COMMAND_FIXED | COMMAND_LOWEST);
        if has_vector && vector < FIRST_VECTOR {
            self.note_error(error::SEND_ILLEGAL_VECTOR);
            return ApicEffect::None;
        }
        let Some(delivery) = Delivery::from_bits(mode, vector) else {
            return ApicEffect::None;
        };
        // INIT level de-assert synchronised arbitration IDs once; since the Pentium 4 it does nothing.
        let is_deassert =
            self.command & command::ASSERT == 0 && self.command & command::LEVEL_TRIGGERED != 0;
        if delivery == Delivery::Init && is_deassert {
            return ApicEffect::None;
        }
        let recipients = match low >> 18 & 3 {
            0 => self.destination(),
            1 => {
                // Only fixed interrupts may be sent to oneself.
                if mode == COMMAND_FIXED {
                    self.send_to_self(vector);
                }
                return ApicEffect::None;
            }
            2 => Recipients::All,
            _ => Recipients::AllBut { id: self.id() },
        };
        ApicEffect::Send(BusMessage {
            delivery,
            recipients,
            // The trigger mode of ICR is for INIT only.
            trigger: Trigger::Edge,
        })
    }

    /// The destination field: 8 bits in xAPIC mode, 32 in x2APIC mode. All ones are all.
    fn destination(&self) -> Recipients {
        let high = (self.command >> 32) as u32;
        let (address, all) = match self.mode {
            Mode::X2Apic => (high, u32::MAX),
            _ => (high >> 24, 0xFF),
        };
        if address == all {
            Recipients::All
        } else if self.command & command::LOGICAL != 0 {
            Recipients::Logical { address }
        } else {
            Recipients::Physical { id: address }
        }
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub fn base_msr(&self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::XApic => BASE_ENABLE,
            Mode::X2Apic => BASE_ENABLE | BASE_X2APIC,
        };
        let bootstrap = if self.config.is_bootstrap {
            BASE_BOOTSTRAP
        } else {
            0
        };
        self.base | mode | bootstrap
    }

    /// Writes IA32_APIC_BASE. The bootstrap flag does not change. Disabling resets the APIC.
    ///
    /// # Errors
    /// [`GeneralProtection`] at reserved bits and at transitions that are not allowed ("x2APIC State Transitions").
    pub fn set_base_msr(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let known = BASE_BOOTSTRAP | BASE_X2APIC | BASE_ENABLE;
        let bits = u32::from(self.config.physical_bits).clamp(32, 63);
        let address_bits = ((1_u64 << bits) - 1) & !BASE_FLAGS;
        if value & !(address_bits | known) != 0 {
            return Err(GeneralProtection);
        }
        let mode = match (value & BASE_ENABLE != 0, value & BASE_X2APIC != 0) {
            (false, false) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
            (false, true) => return Err(GeneralProtection),
        };
        let is_allowed = !matches!(
            (self.mode, mode),
            (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic)
        );
        if !is_allowed {
            return Err(GeneralProtection);
        }
        if mode == Mode::Disabled {
            self.init();
        }
        if mode == Mode::X2Apic && self.mode != mode {
            // Its high half has another meaning now.
            self.command &= 0xFFFF_FFFF;
        }
        self.mode = mode;
        self.base = value & address_bits;
        Ok(())
    }

    /// Reads IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&mut self, now: u64) -> u64 {
        let _ = self.advance(now);
        self.timer.deadline()
    }

    /// Writes IA32_TSC_DEADLINE. The interrupt of the old one comes if it was due, and with this the new one's if it is by now.
    pub fn set_tsc_deadline(&mut self, tsc: u64, now: u64) -> Signal {
        let before = self.advance(now);
        self.timer.set_deadline(tsc);
        let after = self.advance(now);
        if before == Signal::None {
            after
        } else {
            before
        }
    }
}
