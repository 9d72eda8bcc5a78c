//! The MC146818A clock and the RAM behind it, as in the PC AT: index and data at two ports.
//!
//! The clock does not run: the date is computed from the second that it was set to and the clock of 32,768 Hz since then, when
//! somebody looks. Interrupts are computed in the same way, for any time that has passed in one step.
//!
//! Source: Motorola MC146818A data sheet (1984); the RAM's contents: IBM Personal Computer AT Technical Reference (1984), "CMOS
//! RAM"; memory above 16 MiB as PC firmware has told it since.

mod date;

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::clock::{Clock, LAST_COUNT};
use crate::state::{StateError, TscShift, check};
use date::{Date, SECONDS_PER_DAY};

/// Clocks a second.
pub(super) const HZ: u32 = 32_768;
const SECOND: u64 = HZ as u64;
/// An update is announced 244 us before it begins and takes 1,984 us ("Update Cycle").
const UPDATE: u64 = 8 + 65;

/// Cells of the RAM.
const CELLS: usize = 128;

/// Registers by their index.
const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const A: u8 = 0x0A;
const B: u8 = 0x0B;
const C: u8 = 0x0C;
const D: u8 = 0x0D;
/// Where the century is; the FADT says so, too.
pub(super) const CENTURY: u8 = 0x32;

/// A: update in progress; the divider and its value for a crystal of 32,768 Hz; the rate.
const A_UPDATING: u8 = 1 << 7;
const A_DIVIDER: u8 = 7 << 4;
const A_DIVIDER_RUNS: u8 = 2 << 4;
const A_RATE: u8 = 0x0F;
/// B: setting; interrupts; square wave; binary; 24 hours.
const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE: u8 = 1 << 4;
const B_WAVE: u8 = 1 << 3;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// C: what is asked for, and the flags where B has their enables.
const C_REQUEST: u8 = 1 << 7;
const C_FLAGS: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
/// D: the RAM and the time are valid.
const D_VALID: u8 = 1 << 7;

/// Afternoon, in hours of 12.
const AFTERNOON: u8 = 1 << 7;
/// The last date that a saved clock can show, and its last second: the calendar's arithmetic goes further.
const LAST_YEAR: u32 = 499_999;
const LAST_SECOND: u64 = (LAST_YEAR as u64 - 1970) * 31_556_952;

/// An alarm's byte from here on means any.
const ANY: u8 = 0xC0;

/// What the first 16 MiB and the rest are told as.
const BASE_KIB: u16 = 640;
const MIB: u64 = 1 << 20;
/// Coprocessor, no display, no diskettes.
const EQUIPMENT: u8 = 0x02;

/// The time as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Time {
    /// So many seconds since 1970 when the clock counted `since`, modulo 2^64; that is never in the future.
    Runs { second: u64, since: u64 },
    /// Being set, or the divider is held. `phase` is how far into a second it is, while only being set.
    Stands { date: Date, since: u64 },
}

/// The clock.
#[derive(Clone, Debug)]
pub(super) struct Rtc {
    clock: Clock,
    index: u8,
    cells: [u8; CELLS],
    time: Time,
    /// C, without the request.
    flags: u8,
    /// Flags for what came until this count have been set.
    seen: u64,
    /// Interrupts do not come more often.
    least_period_ticks: u64,
    last: Option<u64>,
    is_asserting: bool,
    /// The alarm has come while its interrupt was enabled, and ACPI has not been told.
    alarm_is_news: bool,
}

impl Rtc {
    /// A clock that is at a second since 1970 at the clock's origin, in a PC with so much memory below and above 4 GiB.
    pub(super) fn new(
        clock: Clock,
        second: u64,
        memory_bytes: [u64; 2],
        least_period_ticks: u64,
    ) -> Rtc {
        let mut cells = [0; CELLS];
        for (cell, value) in memory_cells(memory_bytes) {
            set(&mut cells, cell, value);
        }
        // 1,024 interrupts a second, none of them let through; BCD and 24 hours.
        set(&mut cells, A, A_DIVIDER_RUNS | 6);
        set(&mut cells, B, B_24_HOURS);
        let checked = cells.get(0x10..0x2E).unwrap_or_default();
        let sum: u16 = checked.iter().copied().map(u16::from).sum();
        let [high, low] = sum.to_be_bytes();
        set(&mut cells, 0x2E, high);
        set(&mut cells, 0x2F, low);
        Rtc {
            clock,
            index: D,
            cells,
            time: Time::Runs { second, since: 0 },
            flags: 0,
            seen: 0,
            least_period_ticks,
            last: None,
            is_asserting: false,
            alarm_is_news: false,
        }
    }

    /// The PC is reset: the clock goes on, and its interrupts are off ("RESET").
    pub(super) fn reset(&mut self) {
        let kept = self.cell(B) & !(C_FLAGS | B_WAVE);
        set(&mut self.cells, B, kept);
        self.flags = 0;
        self.is_asserting = false;
        self.alarm_is_news = false;
    }

    /// The clock's count, which does not go back: CPUs' TSCs may differ by a little.
    fn at(&self, now: u64) -> u64 {
        self.clock.count(now).max(self.seen)
    }

    fn cell(&self, index: u8) -> u8 {
        self.cells.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// The date as it is shown.
    fn date(&self, at: u64) -> Date {
        match self.time {
            Time::Runs { second, since } => {
                Date::at(second.saturating_add(at.wrapping_sub(since) / SECOND))
            }
            Time::Stands { date, .. } => date,
        }
    }

    /// A byte in the format that B chooses.
    fn encode(&self, value: u8) -> u8 {
        if self.cell(B) & B_BINARY != 0 {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, raw: u8) -> u8 {
        if self.cell(B) & B_BINARY != 0 {
            raw
        } else {
            (raw >> 4) * 10 + (raw & 0xF)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.cell(B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let of_12 = match hour % 12 {
            0 => 12,
            hour => hour,
        };
        self.encode(of_12) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    fn decode_hour(&self, raw: u8) -> u8 {
        if self.cell(B) & B_24_HOURS != 0 {
            return self.decode(raw);
        }
        let of_12 = self.decode(raw & !AFTERNOON) % 12;
        if raw & AFTERNOON != 0 {
            of_12 + 12
        } else {
            of_12
        }
    }

    /// Reads the data port, or the index port, which cannot be read.
    pub(super) fn read(&mut self, is_data: bool, now: u64) -> u8 {
        if !is_data {
            return 0xFF;
        }
        let at = self.at(now);
        let date = self.date(at);
        match self.index {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.encode_hour(date.hour),
            WEEKDAY => self.encode(date.weekday),
            DAY => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode((date.year % 100) as u8),
            CENTURY => self.encode((date.year / 100 % 100) as u8),
            A => self.cell(A) | if self.is_updating(at) { A_UPDATING } else { 0 },
            C => {
                self.look(at);
                let value = self.flags | if self.requests() { C_REQUEST } else { 0 };
                self.flags = 0;
                self.is_asserting = false;
                value
            }
            D => D_VALID,
            index => self.cell(index),
        }
    }

    fn is_updating(&self, at: u64) -> bool {
        match self.time {
            Time::Runs { since, .. } => at.wrapping_sub(since) % SECOND >= SECOND - UPDATE,
            Time::Stands { .. } => false,
        }
    }

    /// Writes the index or the data port.
    pub(super) fn write(&mut self, is_data: bool, value: u8, now: u64) {
        if !is_data {
            // The upper bit masks NMIs, which nobody makes.
            self.index = value & 0x7F;
            return;
        }
        let at = self.at(now);
        self.look(at);
        let mut date = self.date(at);
        match self.index {
            SECONDS => date.second = self.decode(value),
            MINUTES => date.minute = self.decode(value),
            HOURS => date.hour = self.decode_hour(value),
            DAY => date.day = self.decode(value),
            MONTH => date.month = self.decode(value),
            YEAR => date.year = date.year / 100 * 100 + u32::from(self.decode(value) % 100),
            CENTURY => date.year = u32::from(self.decode(value) % 100) * 100 + date.year % 100,
            // It follows from the date.
            WEEKDAY => return,
            A => return self.write_a(value, at),
            B => return self.write_b(value, at),
            C | D => return,
            index => return set(&mut self.cells, index, value),
        }
        match &mut self.time {
            Time::Stands { date: kept, .. } => *kept = date,
            Time::Runs { second, since } => {
                // The second goes on where it is.
                *since = at.wrapping_sub(at.wrapping_sub(*since) % SECOND);
                *second = date.to_seconds();
            }
        }
    }

    fn write_a(&mut self, value: u8, at: u64) {
        let held = self.cell(A) & A_DIVIDER != A_DIVIDER_RUNS;
        set(&mut self.cells, A, value & !A_UPDATING);
        let holds = value & A_DIVIDER != A_DIVIDER_RUNS;
        if held && !holds {
            // The first update comes half a second later ("Divider Control").
            let since = at.wrapping_sub(SECOND / 2);
            if let Time::Stands { since: kept, .. } = &mut self.time {
                *kept = since;
            }
        }
        self.run_or_stand(at);
    }

    fn write_b(&mut self, value: u8, at: u64) {
        let cleared = if value & B_SET != 0 { B_UPDATE } else { 0 };
        set(&mut self.cells, B, value & !cleared);
        self.run_or_stand(at);
    }

    /// The time runs unless it is being set or the divider is held.
    fn run_or_stand(&mut self, at: u64) {
        let is_held = self.cell(A) & A_DIVIDER != A_DIVIDER_RUNS;
        let stands = is_held || self.cell(B) & B_SET != 0;
        match self.time {
            Time::Runs { since, .. } if stands => {
                let date = self.date(at);
                self.time = Time::Stands { date, since };
            }
            Time::Stands { date, since } if !stands => {
                // Whole seconds have passed without an update.
                let phase = at.wrapping_sub(since) % SECOND;
                self.time = Time::Runs {
                    second: date.to_seconds(),
                    since: at.wrapping_sub(phase),
                };
            }
            _ => {}
        }
    }

    fn requests(&self) -> bool {
        self.flags & self.cell(B) & C_FLAGS != 0
    }

    /// Clocks of one periodic interrupt ("Periodic Interrupt Rate").
    fn period(&self) -> Option<u64> {
        if self.cell(A) & A_DIVIDER != A_DIVIDER_RUNS {
            return None;
        }
        match self.cell(A) & A_RATE {
            0 => None,
            // These two are as 8 and 9.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// The alarm: each of hour, minute and second, or any. `None` if it can never be.
    fn alarm(&self) -> Option<[Option<u64>; 3]> {
        let part = |raw: u8, value: u8, end: u8| match raw {
            ANY.. => Some(None),
            _ => (value < end).then_some(Some(u64::from(value))),
        };
        let [hour, minute, second] =
            [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM].map(|index| self.cell(index));
        Some([
            part(hour, self.decode_hour(hour), 24)?,
            part(minute, self.decode(minute), 60)?,
            part(second, self.decode(second), 60)?,
        ])
    }

    /// Sets the flags of what has come since the last time.
    fn look(&mut self, at: u64) {
        let before = core::mem::replace(&mut self.seen, at);
        if let Some(period) = self.period()
            && before / period != at / period
        {
            self.flags |= B_PERIODIC;
        }
        if let Time::Runs { second, since } = self.time {
            let second_at = |count: u64| second.saturating_add(count.wrapping_sub(since) / SECOND);
            let (old, new) = (second_at(before), second_at(at));
            if old != new {
                self.flags |= B_UPDATE;
                let alarm = self.alarm();
                if alarm.is_some_and(|alarm| next_alarm(alarm, old) <= new) {
                    self.flags |= B_ALARM;
                    self.alarm_is_news |= self.cell(B) & B_ALARM != 0;
                }
            }
        }
    }

    /// The state of IRQ 8. It is not raised more often than the least period.
    pub(super) fn line(&mut self, now: u64) -> bool {
        let at = self.at(now);
        self.look(at);
        if !self.requests() {
            self.is_asserting = false;
        } else if !self.is_asserting && self.earliest().is_none_or(|earliest| earliest <= now) {
            self.is_asserting = true;
            self.last = Some(now);
        }
        self.is_asserting
    }

    /// Whether the alarm's interrupt has come since the last call.
    pub(super) fn take_alarm(&mut self) -> bool {
        core::mem::take(&mut self.alarm_is_news)
    }

    fn earliest(&self) -> Option<u64> {
        Some(self.last?.saturating_add(self.least_period_ticks))
    }

    /// The TSC at which the line rises next. [`Rtc::line`] is to be asked then.
    pub(super) fn deadline(&self) -> Option<u64> {
        if self.is_asserting {
            return None;
        }
        let count = if self.requests() {
            self.seen
        } else {
            self.next_request()?
        };
        let due = self.clock.tsc_of(count);
        Some(self.earliest().map_or(due, |earliest| earliest.max(due)))
    }

    /// The count at which a flag comes that is let through.
    fn next_request(&self) -> Option<u64> {
        let enabled = self.cell(B);
        let is_on = |bit: u8| enabled & bit != 0;
        let periodic = self
            .period()
            .filter(|_| is_on(B_PERIODIC))
            .and_then(|period| (self.seen / period).checked_add(1)?.checked_mul(period));
        let Time::Runs { second, since } = self.time else {
            return periodic;
        };
        let passed = self.seen.wrapping_sub(since) / SECOND;
        let count_of = |later: u64| {
            let clocks = passed.checked_add(later)?.checked_mul(SECOND)?;
            Some(since.wrapping_add(clocks))
        };
        let update = Some(1).filter(|_| is_on(B_UPDATE)).and_then(count_of);
        let current = second.saturating_add(passed);
        let alarm = self
            .alarm()
            .filter(|_| is_on(B_ALARM))
            .and_then(|alarm| count_of(next_alarm(alarm, current).saturating_sub(current)));
        [periodic, update, alarm].into_iter().flatten().min()
    }
}

fn set(cells: &mut [u8; CELLS], index: u8, value: u8) {
    if let Some(cell) = cells.get_mut(usize::from(index)) {
        *cell = value;
    }
}

/// What is told of the memory: KiB below 640 KiB, KiB from 1 MiB on (twice), 64 KiB from 16 MiB on; those above 4 GiB; and the
/// equipment.
fn memory_cells([memory_bytes, above]: [u64; 2]) -> [(u8, u8); 12] {
    let above = u32::try_from(above >> 16).unwrap_or(u32::MAX);
    let [above_low, above_middle, above_high, ..] = above.to_le_bytes();
    let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
    let [base_low, base_high] = BASE_KIB.to_le_bytes();
    let [low, high] = word(memory_bytes.saturating_sub(MIB) >> 10);
    let [more_low, more_high] = word(memory_bytes.saturating_sub(16 * MIB) >> 16);
    [
        (0x14, EQUIPMENT),
        (0x15, base_low),
        (0x16, base_high),
        (0x17, low),
        (0x18, high),
        (0x30, low),
        (0x31, high),
        (0x34, more_low),
        (0x35, more_high),
        (0x5B, above_low),
        (0x5C, above_middle),
        (0x5D, above_high),
    ]
}

/// The first second after one that an alarm of hour, minute and second meets, each of them or any.
fn next_alarm(alarm: [Option<u64>; 3], after: u64) -> u64 {
    let from = after.saturating_add(1);
    let (day, in_day) = (from / SECONDS_PER_DAY, from % SECONDS_PER_DAY);
    let now = [in_day / 3600, in_day / 60 % 60, in_day % 60];
    match next_in_day(alarm, now) {
        Some(found) => day * SECONDS_PER_DAY + found,
        None => {
            (day + 1).saturating_mul(SECONDS_PER_DAY)
                + in_order(alarm.map(|part| part.unwrap_or(0)))
        }
    }
}

fn in_order([hour, minute, second]: [u64; 3]) -> u64 {
    hour * 3600 + minute * 60 + second
}

/// The first one of the same day, from a time on: with as many of the leading parts unchanged as can be.
fn next_in_day(alarm: [Option<u64>; 3], now: [u64; 3]) -> Option<u64> {
    let [hour, minute, second] = alarm;
    let [this_hour, this_minute, this_second] = now;
    let least = |part: Option<u64>| part.unwrap_or(0);
    // The value of a part that is at least so much.
    let reach = |part: Option<u64>, from: u64, end: u64| match part {
        Some(value) => (value >= from).then_some(value),
        None => (from < end).then_some(from),
    };
    let meets = |part: Option<u64>, value: u64| part.is_none_or(|part| part == value);
    let same_minute = || {
        let is_met = meets(hour, this_hour) && meets(minute, this_minute);
        let second = reach(second, this_second, 60).filter(|_| is_met)?;
        Some([this_hour, this_minute, second])
    };
    let same_hour = || {
        let minute = reach(minute, this_minute + 1, 60).filter(|_| meets(hour, this_hour))?;
        Some([this_hour, minute, least(second)])
    };
    let later = || {
        let hour = reach(hour, this_hour + 1, 24)?;
        Some([hour, least(minute), least(second)])
    };
    same_minute()
        .or_else(same_hour)
        .or_else(later)
        .map(in_order)
}

/// The clock as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RtcState {
    index: u8,
    cells: Vec<u8>,
    time: Time,
    flags: u8,
    seen: u64,
    last: Option<u64>,
    is_asserting: bool,
    alarm_is_news: bool,
}

impl RtcState {
    pub(super) fn shift(&mut self, by: TscShift) {
        self.last = self.last.map(|last| by.moved(last));
    }
}

impl Rtc {
    pub(super) fn save(&self) -> RtcState {
        let Rtc {
            clock: _,
            index,
            cells,
            time,
            flags,
            seen,
            least_period_ticks: _,
            last,
            is_asserting,
            alarm_is_news,
        } = self;
        RtcState {
            index: *index,
            cells: cells.to_vec(),
            time: *time,
            flags: *flags,
            seen: *seen,
            last: *last,
            is_asserting: *is_asserting,
            alarm_is_news: *alarm_is_news,
        }
    }

    pub(super) fn restore(
        clock: Clock,
        least_period_ticks: u64,
        state: &RtcState,
    ) -> Result<Rtc, StateError> {
        let RtcState {
            index,
            cells,
            time,
            flags,
            seen,
            last,
            is_asserting,
            alarm_is_news,
        } = state;
        let wrong = || StateError::new("cells", cells.len() as u64, "128");
        let kept = cells.as_slice().try_into().map_err(|_| wrong())?;
        check(index & 0x80 == 0, "index", *index, "less than 128")?;
        match *time {
            Time::Runs { second, .. } => check(
                second <= LAST_SECOND,
                "time.second",
                second,
                "before the year 500000",
            )?,
            Time::Stands { date, .. } => check(
                date.year <= LAST_YEAR,
                "time.date.year",
                date.year,
                "before the year 500000",
            )?,
        }
        check(
            flags & !C_FLAGS == 0,
            "flags",
            *flags,
            "of periodic, alarm and update",
        )?;
        check(*seen <= LAST_COUNT, "seen", *seen, "less than 2^62")?;
        Ok(Rtc {
            clock,
            index: *index,
            cells: kept,
            time: *time,
            flags: *flags,
            seen: *seen,
            least_period_ticks,
            last: *last,
            is_asserting: *is_asserting,
            alarm_is_news: *alarm_is_news,
        })
    }
}

#[cfg(test)]
mod tests;
