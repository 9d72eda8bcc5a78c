//! The 8254 timer: three channels at 1.193182 MHz. Channel 0 is IRQ 0, channel 1 once refreshed memory, channel 2 is the speaker's
//! and is gated and seen by port 0x61.
//!
//! A channel does not count: it knows when it began, and what it would show is computed when somebody looks. Times are counts of
//! the clock since it was made; distances are taken modulo 2^64, so that a beginning may lie before the first count.
//!
//! Source: Intel 82C54 data sheet, order number 231244-006.

mod channel;

use serde::{Deserialize, Serialize};

use super::clock::{Clock, LAST_COUNT};
use crate::state::{StateError, TscShift, check};
use channel::{Channel, since};

/// Clocks a second.
pub(super) const HZ: u32 = 1_193_182;
/// The count that channel 1 had for refreshing memory: about 15 us.
const REFRESH: u64 = 18;

/// Read-back command: these are inverted.
const READ_BACK_NO_COUNT: u8 = 1 << 5;
const READ_BACK_NO_STATUS: u8 = 1 << 4;

/// Bits of port 0x61 that are written: gate of channel 2, speaker, two checks that there are none of.
const SYSTEM_BITS: u8 = 0x0F;
const SYSTEM_GATE: u8 = 1 << 0;
/// Bits that are read: refresh, output of channel 2.
const SYSTEM_REFRESH: u8 = 1 << 4;
const SYSTEM_OUTPUT: u8 = 1 << 5;

/// The timer.
#[derive(Clone, Debug)]
pub(super) struct Pit {
    clock: Clock,
    channels: [Channel; 3],
    /// What was written to port 0x61.
    system: u8,
    /// Interrupts of periodic modes do not come more often.
    least_period_ticks: u64,
    /// Rises until this count have been looked at.
    seen: u64,
    /// There was one, and it has not been told.
    is_due: bool,
    /// TSC of the last interrupt.
    last: Option<u64>,
}

impl Pit {
    /// After power-on: nothing counts.
    pub(super) fn new(clock: Clock, least_period_ticks: u64) -> Pit {
        Pit {
            clock,
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            system: 0,
            least_period_ticks,
            seen: 0,
            is_due: false,
            last: None,
        }
    }

    /// The clock's count, which does not go back: CPUs' TSCs may differ by a little.
    fn at(&self, now: u64) -> u64 {
        self.clock.count(now).max(self.seen)
    }

    /// Reads 0x40 to 0x43 as 0 to 3. The control word cannot be read.
    pub(super) fn read(&mut self, port: u16, now: u64) -> u8 {
        let at = self.at(now);
        match self.channels.get_mut(usize::from(port)) {
            Some(channel) => channel.read(at),
            None => 0xFF,
        }
    }

    /// Writes 0x40 to 0x43 as 0 to 3. [`Pit::take_edge`] has been asked before.
    pub(super) fn write(&mut self, port: u16, value: u8, now: u64) {
        let at = self.at(now);
        if let Some(channel) = self.channels.get_mut(usize::from(port)) {
            channel.settle(at);
            channel.write(value, at);
            return;
        }
        let selected = value >> 6;
        if let Some(channel) = self.channels.get_mut(usize::from(selected)) {
            if value >> 4 & 3 == 0 {
                channel.latch_count(at);
                return;
            }
            channel.configure(value);
            // What another mode had to say is of no use to this one.
            self.is_due &= selected != 0;
            return;
        }
        // Read-back.
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << index == 0 {
                continue;
            }
            if value & READ_BACK_NO_COUNT == 0 {
                channel.latch_count(at);
            }
            if value & READ_BACK_NO_STATUS == 0 {
                channel.latch_status(at);
            }
        }
    }

    /// Reads port 0x61.
    pub(super) fn read_system(&mut self, now: u64) -> u8 {
        let at = self.at(now);
        let [_, _, speaker] = &mut self.channels;
        speaker.settle(at);
        let output = if speaker.output(at) { SYSTEM_OUTPUT } else { 0 };
        let refresh = if (at / REFRESH) & 1 != 0 {
            SYSTEM_REFRESH
        } else {
            0
        };
        self.system | output | refresh
    }

    /// Writes port 0x61.
    pub(super) fn write_system(&mut self, value: u8, now: u64) {
        self.system = value & SYSTEM_BITS;
        let at = self.at(now);
        let [_, _, speaker] = &mut self.channels;
        speaker.set_gate(value & SYSTEM_GATE != 0, at);
    }

    /// Whether channel 0's output has risen since the last time that this was true; many rises are one. In periodic modes it is
    /// told after the least period.
    pub(super) fn take_edge(&mut self, now: u64) -> bool {
        let at = self.at(now);
        let [timer, ..] = &mut self.channels;
        let rise = timer.next_rise(self.seen);
        self.is_due |= rise.is_some_and(|rise| since(rise, at).is_some());
        self.seen = at;
        timer.settle(at);
        let is_periodic = timer.is_periodic();
        let is_early = is_periodic && self.earliest().is_some_and(|earliest| now < earliest);
        if !self.is_due || is_early {
            return false;
        }
        self.is_due = false;
        self.last = Some(now);
        true
    }

    fn earliest(&self) -> Option<u64> {
        Some(self.last?.saturating_add(self.least_period_ticks))
    }

    /// The TSC of the next interrupt. [`Pit::take_edge`] is to be called then.
    pub(super) fn deadline(&self) -> Option<u64> {
        let [timer, ..] = &self.channels;
        let rise = if self.is_due {
            self.seen
        } else {
            timer.next_rise(self.seen)?
        };
        let rise = self.clock.tsc_of(rise);
        match self.earliest().filter(|_| timer.is_periodic()) {
            Some(earliest) => Some(rise.max(earliest)),
            None => Some(rise),
        }
    }
}

/// The timer as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PitState {
    channels: [Channel; 3],
    system: u8,
    seen: u64,
    is_due: bool,
    last: Option<u64>,
}

impl PitState {
    pub(super) fn shift(&mut self, by: TscShift) {
        self.last = self.last.map(|last| by.moved(last));
    }
}

impl Pit {
    pub(super) fn save(&self) -> PitState {
        let Pit {
            clock: _,
            channels,
            system,
            least_period_ticks: _,
            seen,
            is_due,
            last,
        } = self;
        PitState {
            channels: channels.clone(),
            system: *system,
            seen: *seen,
            is_due: *is_due,
            last: *last,
        }
    }

    pub(super) fn restore(
        clock: Clock,
        least_period_ticks: u64,
        state: &PitState,
    ) -> Result<Pit, StateError> {
        let PitState {
            channels,
            system,
            seen,
            is_due,
            last,
        } = state;
        for (index, channel) in channels.iter().enumerate() {
            let checked = channel.check();
            checked.map_err(|error| error.within(format_args!("channels[{index}]")))?;
        }
        check(
            system & !SYSTEM_BITS == 0,
            "system",
            *system,
            "of four bits",
        )?;
        check(*seen <= LAST_COUNT, "seen", *seen, "less than 2^62")?;
        Ok(Pit {
            clock,
            channels: channels.clone(),
            system: *system,
            least_period_ticks,
            seen: *seen,
            is_due: *is_due,
            last: *last,
        })
    }
}

#[cfg(test)]
mod tests;
