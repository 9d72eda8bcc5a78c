//! What of a display kernels look at even where none is: the CRT controller's registers, above all the cursor's, and the retrace
//! of the picture, which some wait for. Nothing is shown.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Video Graphics Array Function", "CRT Controller Registers", "Input
//! Status Register 1".

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use crate::state::StateError;

/// Parts of a second in which the retrace is looked at: 60 pictures, of each part 16 the last.
pub(super) const HZ: u32 = 60 * PARTS as u32;
const PARTS: u64 = 16;
/// Input status 1: nothing is displayed, vertical retrace.
const RETRACE: u8 = 1 << 0 | 1 << 3;

/// The registers in text mode with 80 columns and 25 lines: timing, cursor, and at 14 and 15 its place.
const TEXT_MODE: [u8; 25] = [
    0x5F, 0x4F, 0x50, 0x82, 0x55, 0x81, 0xBF, 0x1F, 0x00, 0x4F, 0x0D, 0x0E, 0x00, 0x00, 0x00, 0x00,
    0x9C, 0x8E, 0x8F, 0x28, 0x1F, 0x96, 0xB9, 0xA3, 0xFF,
];

#[derive(Clone, Debug)]
pub(super) struct Display {
    clock: Clock,
    index: u8,
    registers: [u8; TEXT_MODE.len()],
}

impl Display {
    pub(super) fn new(clock: Clock) -> Display {
        Display {
            clock,
            index: 0,
            registers: TEXT_MODE,
        }
    }

    /// Reads the index or the register that it chooses; what does not exist floats.
    pub(super) fn read(&self, is_data: bool) -> u8 {
        if !is_data {
            return self.index;
        }
        let register = self.registers.get(usize::from(self.index));
        register.copied().unwrap_or(0xFF)
    }

    /// Writes them.
    pub(super) fn write(&mut self, is_data: bool, value: u8) {
        if !is_data {
            self.index = value;
        } else if let Some(register) = self.registers.get_mut(usize::from(self.index)) {
            *register = value;
        }
    }

    /// Reads input status 1.
    pub(super) fn status(&self, now: u64) -> u8 {
        if self.clock.count(now) % PARTS == PARTS - 1 {
            RETRACE
        } else {
            0
        }
    }
}

/// The registers as a value: any is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DisplayState {
    index: u8,
    registers: [u8; TEXT_MODE.len()],
}

impl Display {
    pub(super) fn save(&self) -> DisplayState {
        let Display {
            clock: _,
            index,
            registers,
        } = self;
        DisplayState {
            index: *index,
            registers: *registers,
        }
    }

    pub(super) fn restore(clock: Clock, state: &DisplayState) -> Result<Display, StateError> {
        let DisplayState { index, registers } = state;
        Ok(Display {
            clock,
            index: *index,
            registers: *registers,
        })
    }
}
