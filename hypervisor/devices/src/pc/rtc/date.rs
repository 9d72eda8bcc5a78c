//! Seconds since 1970 as a date in the Gregorian calendar, and back.

use serde::{Deserialize, Serialize};

pub(super) const SECONDS_PER_DAY: u64 = 86_400;
const SECONDS_PER_HOUR: u64 = 3600;
/// Days of 400 years: after them the calendar repeats.
const DAYS_PER_ERA: u64 = 146_097;
/// Days from 1 March 0000 to 1 January 1970.
const DAYS_BEFORE_1970: u64 = 719_468;

/// A date and a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Date {
    pub(super) year: u32,
    /// From 1.
    pub(super) month: u8,
    /// From 1.
    pub(super) day: u8,
    /// From 1, which is Sunday.
    pub(super) weekday: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Date {
    /// The date at a second since 1970-01-01 00:00.
    ///
    /// Years are counted from March, so that the leap day is their last: then the month follows from the day of the year by a
    /// straight line (153 days are five months).
    pub(super) fn at(second: u64) -> Date {
        let (days, in_day) = (second / SECONDS_PER_DAY, second % SECONDS_PER_DAY);
        let shifted = days.saturating_add(DAYS_BEFORE_1970);
        let (era, in_era) = (shifted / DAYS_PER_ERA, shifted % DAYS_PER_ERA);
        let year = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
        let in_year = in_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * in_year + 2) / 153;
        let day = in_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        let year = era * 400 + year + u64::from(month <= 2);
        Date {
            year: u32::try_from(year).unwrap_or(u32::MAX),
            month: month as u8,
            day: day as u8,
            // The first day of 1970 was a Thursday.
            weekday: ((days + 4) % 7) as u8 + 1,
            hour: (in_day / SECONDS_PER_HOUR) as u8,
            minute: (in_day / 60 % 60) as u8,
            second: (in_day % 60) as u8,
        }
    }

    /// The second of the date. What is beyond the end of a month, day, hour or minute runs into the next; the weekday does not
    /// count. Dates before 1970 are its beginning.
    pub(super) fn to_seconds(self) -> u64 {
        let months = u64::from(self.month.saturating_sub(1));
        let year = u64::from(self.year) + months / 12;
        let month = months % 12 + 1;
        let year = if month <= 2 {
            year.saturating_sub(1)
        } else {
            year
        };
        let from_march = (month + 9) % 12;
        let in_year = (153 * from_march + 2) / 5 + u64::from(self.day.saturating_sub(1));
        let days = year * 365 + year / 4 - year / 100 + year / 400 + in_year;
        days.saturating_sub(DAYS_BEFORE_1970) * SECONDS_PER_DAY
            + u64::from(self.hour) * SECONDS_PER_HOUR
            + u64::from(self.minute) * 60
            + u64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The next day, by the rules of the calendar as they are told.
    fn next_day(year: u32, month: u8, day: u8) -> (u32, u8, u8) {
        let is_leap =
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days = match month {
            4 | 6 | 9 | 11 => 30,
            2 if is_leap => 29,
            2 => 28,
            _ => 31,
        };
        match (month, day) {
            (12, 31) => (year + 1, 1, 1),
            (_, day) if day == days => (year, month + 1, 1),
            _ => (year, month, day + 1),
        }
    }

    #[test]
    fn eight_hundred_years_follow_day_by_day() {
        let (mut expected, mut weekday) = ((1970, 1, 1), 5);
        for day in 0..800 * 366_u64 {
            let date = Date::at(day * SECONDS_PER_DAY);
            assert_eq!((date.year, date.month, date.day), expected);
            assert_eq!(date.weekday, weekday);
            let (year, month, of_month) = expected;
            expected = next_day(year, month, of_month);
            weekday = weekday % 7 + 1;
        }
    }

    proptest! {
        #[test]
        fn a_date_is_the_second_it_came_from(second in 0_u64..1 << 36) {
            prop_assert_eq!(Date::at(second).to_seconds(), second);
        }

        #[test]
        fn no_date_is_without_a_second(
            year in 0_u32..10_000, month: u8, day: u8, hour: u8, minute: u8, second: u8,
        ) {
            let date = Date { year, month, day, weekday: 0, hour, minute, second };
            let made = Date::at(date.to_seconds());
            prop_assert!((1..=12).contains(&made.month) && (1..=31).contains(&made.day));
        }
    }
}
