//! A local APIC as a value.
//!
//! With a virtual-APIC page the CPU keeps a part of it; that is taken back first ([`LocalApic::take_from`]).

use serde::{Deserialize, Serialize};

use super::register::{DESTINATION_FORMAT_ONES, LVT_FIRST, Lvt, SPURIOUS_BITS, command, lvt};
use super::timer::{Timer, TimerMode, TimerState};
use super::vectors::Vectors;
use super::{ApicConfig, LocalApic, Mode};
use crate::state::{StateError, TscShift, check};

/// All that a local APIC is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicState {
    /// What it is like.
    pub config: ApicConfig,
    mode: Mode,
    base: u64,
    task_priority: u8,
    logical_id: u32,
    destination_format: u32,
    spurious: u32,
    requested: Vectors,
    in_service: Vectors,
    level: Vectors,
    errors: u32,
    new_errors: u32,
    command: u64,
    lvt: [u32; Lvt::COUNT],
    timer: TimerState,
}

impl ApicState {
    /// Moves its times.
    pub fn shift(&mut self, by: TscShift) {
        self.timer.shift(by);
    }
}

/// Bits of the ICR that software sets, in both modes.
const COMMAND_BITS: u64 = 0xFFFF_FFFF << 32 | command::LOW_BITS as u64;
/// No other bit of an address can be set than those of a page below 2^52.
const BASE_BITS: u64 = 0x000F_FFFF_FFFF_F000;

impl LocalApic {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> ApicState {
        let LocalApic {
            config,
            mode,
            base,
            task_priority,
            logical_id,
            destination_format,
            spurious,
            requested,
            in_service,
            level,
            errors,
            new_errors,
            command,
            lvt,
            timer,
        } = self;
        ApicState {
            config: *config,
            mode: *mode,
            base: *base,
            task_priority: *task_priority,
            logical_id: *logical_id,
            destination_format: *destination_format,
            spurious: *spurious,
            requested: *requested,
            in_service: *in_service,
            level: *level,
            errors: *errors,
            new_errors: *new_errors,
            command: *command,
            lvt: *lvt,
            timer: timer.save(),
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: no APIC of ours gets there.
    pub fn restore(state: &ApicState) -> Result<LocalApic, StateError> {
        let ApicState {
            config,
            mode,
            base,
            task_priority,
            logical_id,
            destination_format,
            spurious,
            requested,
            in_service,
            level,
            errors,
            new_errors,
            command,
            lvt,
            timer,
        } = state;
        check(
            config.ticks_per_count > 0,
            "config.ticks_per_count",
            config.ticks_per_count,
            "more than 0",
        )?;
        check(
            base & !BASE_BITS == 0,
            "base",
            *base,
            "the address of a page",
        )?;
        check(
            *destination_format & DESTINATION_FORMAT_ONES == DESTINATION_FORMAT_ONES,
            "destination_format",
            *destination_format,
            "ones in bits 27 to 0",
        )?;
        check(
            spurious & !SPURIOUS_BITS == 0,
            "spurious",
            *spurious,
            "of 9 bits",
        )?;
        check(
            command & !COMMAND_BITS == 0,
            "command",
            *command,
            "without reserved bits",
        )?;
        for (index, value) in (0..).zip(lvt) {
            let bits = Lvt::at(LVT_FIRST + index).map_or(0, Lvt::bits);
            check(
                value & !(bits | lvt::MASKED) == 0,
                "lvt",
                *value,
                "without reserved and read-only bits",
            )?;
        }
        // The mode is in the timer's entry, too.
        let [of_timer, ..] = lvt;
        let timer = Timer::restore(config, timer)
            .and_then(|timer| {
                let mode = TimerMode::from_bits(of_timer >> lvt::TIMER_MODE_SHIFT);
                check(
                    timer.mode() == mode,
                    "mode",
                    mode as u64,
                    "that of the local vector table",
                )?;
                Ok(timer)
            })
            .map_err(|error| error.within("timer"))?;
        Ok(LocalApic {
            config: *config,
            mode: *mode,
            base: *base,
            task_priority: *task_priority,
            logical_id: *logical_id,
            destination_format: *destination_format,
            spurious: *spurious,
            requested: *requested,
            in_service: *in_service,
            level: *level,
            errors: *errors,
            new_errors: *new_errors,
            command: *command,
            lvt: *lvt,
            timer,
        })
    }
}
