//! The fixed hardware of ACPI: power management events and control, the timer, and the register that resets.
//!
//! ACPI is on from the start (SCI_EN): there is no SMM to switch it on. Events: the timer, the power button, and the clock's alarm,
//! by which a guest that sleeps wakes. The enable bits of the others can be set, and nothing comes of them.
//!
//! Source: Advanced Configuration and Power Interface Specification 6.4, 4.8 "ACPI Register Model".

use serde::{Deserialize, Serialize};

use super::clock::{Clock, LAST_COUNT};
use crate::state::{StateError, check};

/// Clocks a second (4.8.2.1).
pub(super) const HZ: u32 = 3_579_545;
/// The timer's status comes with each change of its highest bit (4.8.2.1).
const HALF_TURN: u64 = 1 << 31;

/// Bytes from the first register: PM1a status and enable, control, the timer.
const STATUS: u16 = 0;
const ENABLE: u16 = 2;
const CONTROL: u16 = 4;
const TIMER: u16 = 8;

/// Status and enable bits (4.8.3.1).
const EVENT_TIMER: u16 = 1 << 0;
const EVENT_BUTTON: u16 = 1 << 8;
const EVENT_ALARM: u16 = 1 << 10;
/// Timer, global, power and sleep button, clock.
const ENABLE_BITS: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10;

/// Control bits (4.8.3.2.1): SCI is on, bus masters wake, what sleep, and sleep now.
const CONTROL_SCI: u16 = 1 << 0;
const CONTROL_BITS: u16 = 1 << 1 | 7 << SLEEP_TYPE_SHIFT;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_ENABLE: u16 = 1 << 13;

/// The sleep type that switches the power off: `\_S5` says so.
pub(super) const SOFT_OFF: u8 = 5;

/// Reset control as in Intel's 82371: the second bit is what kind, the third does it.
const RESET_BITS: u8 = 0b0110;
const RESET_NOW: u8 = 0b0100;

/// The registers.
#[derive(Clone, Debug)]
pub(super) struct Power {
    clock: Clock,
    status: u16,
    enable: u16,
    control: u16,
    reset: u8,
    /// Half turns of the timer that were noted.
    seen: u64,
}

impl Power {
    pub(super) fn new(clock: Clock) -> Power {
        Power {
            clock,
            status: 0,
            enable: 0,
            control: CONTROL_SCI,
            reset: 0,
            seen: 0,
        }
    }

    /// The PC is reset: the timer counts on.
    pub(super) fn reset(&mut self) {
        *self = Power {
            seen: self.seen,
            ..Power::new(self.clock)
        };
    }

    fn look(&mut self, now: u64) {
        let half_turns = self.clock.count(now) / HALF_TURN;
        if half_turns > self.seen {
            self.seen = half_turns;
            self.status |= EVENT_TIMER;
        }
    }

    /// A byte of the block.
    pub(super) fn read(&mut self, offset: u16, now: u64) -> u8 {
        self.look(now);
        let [timer @ .., _, _, _, _] = self.clock.count(now).to_le_bytes();
        let registers = [
            (STATUS, self.status.to_le_bytes()),
            (ENABLE, self.enable.to_le_bytes()),
            (CONTROL, self.control.to_le_bytes()),
        ];
        let found = registers.iter().find_map(|(start, bytes)| {
            let byte = offset.checked_sub(*start)?;
            bytes.get(usize::from(byte)).copied()
        });
        let of_timer = || timer.get(usize::from(offset.checked_sub(TIMER)?)).copied();
        found.or_else(of_timer).unwrap_or(0)
    }

    /// Writes a byte of the block; whether that switches the power off.
    pub(super) fn write(&mut self, offset: u16, value: u8, now: u64) -> bool {
        self.look(now);
        let shift = offset % 2 * 8;
        let (mask, value) = (0xFF << shift, u16::from(value) << shift);
        match offset - offset % 2 {
            // Ones clear.
            STATUS => self.status &= !value,
            ENABLE => self.enable = self.enable & !mask | value & ENABLE_BITS,
            CONTROL => {
                self.control = self.control & (!mask | CONTROL_SCI) | value & CONTROL_BITS;
                let sleep_type = self.control >> SLEEP_TYPE_SHIFT & 7;
                return value & SLEEP_ENABLE != 0 && sleep_type == u16::from(SOFT_OFF);
            }
            _ => {}
        }
        false
    }

    pub(super) fn read_reset(&self) -> u8 {
        self.reset
    }

    /// Writes the reset register; whether that resets.
    pub(super) fn write_reset(&mut self, value: u8) -> bool {
        self.reset = value & RESET_BITS & !RESET_NOW;
        value & RESET_NOW != 0
    }

    /// Somebody presses the power button.
    pub(super) fn press_button(&mut self) {
        self.status |= EVENT_BUTTON;
    }

    /// The clock's alarm has come.
    pub(super) fn note_alarm(&mut self) {
        self.status |= EVENT_ALARM;
    }

    /// Whether the clock's alarm would raise SCI.
    pub(super) fn hears_alarm(&self) -> bool {
        self.enable & EVENT_ALARM != 0 && self.status & self.enable == 0
    }

    /// The state of SCI.
    pub(super) fn line(&mut self, now: u64) -> bool {
        self.look(now);
        self.status & self.enable != 0
    }

    /// The TSC at which the line rises next because of the timer.
    pub(super) fn deadline(&self) -> Option<u64> {
        let may = self.enable & EVENT_TIMER != 0 && self.status & self.enable == 0;
        let half_turn = self.seen.saturating_add(1).saturating_mul(HALF_TURN);
        may.then(|| self.clock.tsc_of(half_turn))
    }
}

/// The registers as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PowerState {
    status: u16,
    enable: u16,
    control: u16,
    reset: u8,
    seen: u64,
}

impl Power {
    pub(super) fn save(&self) -> PowerState {
        let Power {
            clock: _,
            status,
            enable,
            control,
            reset,
            seen,
        } = self;
        PowerState {
            status: *status,
            enable: *enable,
            control: *control,
            reset: *reset,
            seen: *seen,
        }
    }

    pub(super) fn restore(clock: Clock, state: &PowerState) -> Result<Power, StateError> {
        let PowerState {
            status,
            enable,
            control,
            reset,
            seen,
        } = state;
        check(
            enable & !ENABLE_BITS == 0,
            "enable",
            *enable,
            "without reserved bits",
        )?;
        check(
            control & !CONTROL_BITS == CONTROL_SCI,
            "control",
            *control,
            "with SCI_EN and without reserved bits",
        )?;
        check(
            reset & !(RESET_BITS & !RESET_NOW) == 0,
            "reset",
            *reset,
            "without reserved bits",
        )?;
        check(
            *seen <= LAST_COUNT / HALF_TURN,
            "seen",
            *seen,
            "half turns of a clock that counts below 2^62",
        )?;
        Ok(Power {
            clock,
            status: *status,
            enable: *enable,
            control: *control,
            reset: *reset,
            seen: *seen,
        })
    }
}

#[cfg(test)]
mod tests;
