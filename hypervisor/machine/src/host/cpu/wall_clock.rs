//! The time of day: read once from the machine's clock, then counted by the TSC.
//!
//! Concurrency: read on the boot CPU before others run, constant afterwards.
//! Source: Motorola MC146818A data sheet, "Address Map", "Update Cycle".

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::Port;

use crate::host::cpu::time;

/// Seconds since 1970-01-01 00:00 UTC at [`READ_AT`].
static SECONDS: AtomicU64 = AtomicU64::new(0);
/// TSC value at which the clock was read.
static READ_AT: AtomicU64 = AtomicU64::new(0);

const UPDATE_IN_PROGRESS: u8 = 0x80;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const AFTERNOON: u8 = 0x80;
/// Looks at the clock before it is taken to be broken: an update takes 2 ms.
const MAX_LOOKS: u32 = 1_000_000;

/// What the clock shows: seconds, minutes, hours, day, month, year, century, status register B.
type Shown = [u8; 8];
const INDICES: Shown = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32, 0x0B];

/// Reads the machine's clock. It is taken to show UTC, as hypervisors' and servers' clocks do.
pub fn read() {
    let mut last = registers();
    // Twice the same: no update came between the registers.
    let shown = loop {
        let next = registers();
        if next == last {
            break next;
        }
        last = next;
    };
    READ_AT.store(time::ticks(), Ordering::Relaxed);
    SECONDS.store(to_seconds(shown), Ordering::Relaxed);
}

/// Seconds since 1970-01-01 00:00 UTC at that TSC value.
#[must_use]
pub fn seconds(tsc: u64) -> u64 {
    let since = tsc.saturating_sub(READ_AT.load(Ordering::Relaxed)) / 1000;
    SECONDS.load(Ordering::Relaxed) + since.checked_div(time::khz()).unwrap_or(0)
}

fn registers() -> Shown {
    let (mut index, mut data): (Port<u8>, Port<u8>) = (Port::new(0x70), Port::new(0x71));
    // SAFETY: the ports are the clock's on every PC; reading its registers 0 to 0x32 changes nothing. Nobody else uses them.
    let mut register = |number: u8| unsafe {
        index.write(number);
        data.read()
    };
    for _ in 0..MAX_LOOKS {
        if register(0x0A) & UPDATE_IN_PROGRESS == 0 {
            break;
        }
    }
    INDICES.map(register)
}

fn to_seconds(shown: Shown) -> u64 {
    let [seconds, minutes, hours, day, month, year, century, status] = shown;
    let number = |value: u8| {
        u64::from(if status & BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0xF)
        })
    };
    let mut hour = number(hours & !AFTERNOON);
    if status & HOURS_24 == 0 {
        hour = hour % 12 + if hours & AFTERNOON != 0 { 12 } else { 0 };
    }
    let century = match number(century) {
        century @ 19..=21 => century,
        _ => 20,
    };
    let days = days_since_1970(century * 100 + number(year), number(month), number(day));
    days * 86_400 + hour * 3600 + number(minutes) * 60 + number(seconds)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, of years from 1970 on.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March here, so that the leap day is their last.
    let year = if month <= 2 {
        year.saturating_sub(1)
    } else {
        year
    };
    let month = (month + 9) % 12;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    days.saturating_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(1972, 2, 29), 789);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        assert_eq!(days_since_1970(2026, 11, 21), 20_778);
    }

    #[test]
    fn both_ways_of_showing_the_time_are_read() {
        let binary = [5, 4, 13, 21, 11, 26, 20, BINARY | HOURS_24];
        let decimal = [0x05, 0x04, 0x81, 0x21, 0x11, 0x26, 0x20, 0];
        assert_eq!(to_seconds(binary), 20_778 * 86_400 + 13 * 3600 + 4 * 60 + 5);
        assert_eq!(to_seconds(binary), to_seconds(decimal));
    }
}
