//! The clock, as kernels read, set and use it.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// 2026-11-21 15:04:05, a Saturday.
const START: u64 = 1_795_273_445;

/// A TSC tick is a clock.
fn rtc(second: u64) -> Rtc {
    Rtc::new(Clock::new(HZ * 1000, HZ, 0), second, [96 << 20, 0], 0)
}

fn read(rtc: &mut Rtc, index: u8, now: u64) -> u8 {
    rtc.write(false, index, now);
    rtc.read(true, now)
}

fn write(rtc: &mut Rtc, index: u8, value: u8, now: u64) {
    rtc.write(false, index, now);
    rtc.write(true, value, now);
}

fn date(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY].map(|index| read(rtc, index, now))
}

#[test]
fn the_date_is_shown_in_each_format() {
    let mut rtc = rtc(START);
    assert_eq!(
        date(&mut rtc, 0),
        [0x20, 0x26, 0x11, 0x21, 0x15, 0x04, 0x05, 7]
    );
    write(&mut rtc, B, B_BINARY | B_24_HOURS, 0);
    assert_eq!(date(&mut rtc, 0), [20, 26, 11, 21, 15, 4, 5, 7]);
    write(&mut rtc, B, 0, 0);
    assert_eq!(read(&mut rtc, HOURS, 0), 0x83);
    write(&mut rtc, B, B_BINARY, 0);
    for (hour, shown) in [
        (0, 12),
        (1, 1),
        (11, 11),
        (12, 0x8C),
        (13, 0x81),
        (23, 0x8B),
    ] {
        let later = ((hour + 24 - 15) % 24) * 3600 * SECOND;
        assert_eq!(read(&mut rtc, HOURS, later), shown, "{hour}");
        assert_eq!(rtc.decode_hour(shown), hour as u8);
    }
}

#[test]
fn it_goes_with_the_time_and_announces_each_second() {
    let mut rtc = rtc(START);
    assert_eq!(read(&mut rtc, SECONDS, SECOND - 1), 0x05);
    assert_eq!(read(&mut rtc, SECONDS, SECOND), 0x06);
    let year = 365 * SECONDS_PER_DAY * SECOND;
    assert_eq!(
        date(&mut rtc, year),
        [0x20, 0x27, 0x11, 0x21, 0x15, 0x04, 0x05, 1]
    );
    let mut announced =
        (0..SECOND).filter(|passed| read(&mut rtc, A, year + passed) & A_UPDATING != 0);
    assert_eq!(announced.next(), Some(SECOND - UPDATE));
    assert_eq!(announced.count() as u64, UPDATE - 1);
}

#[test]
fn it_is_set_while_it_stands() {
    let mut rtc = rtc(START);
    write(&mut rtc, B, B_SET | B_24_HOURS | B_UPDATE, 10);
    assert_eq!(read(&mut rtc, B, 10) & B_UPDATE, 0);
    for (index, value) in [
        (YEAR, 0x24),
        (MONTH, 0x02),
        (DAY, 0x29),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x59),
    ] {
        write(&mut rtc, index, value, 10);
    }
    let later = 5 * SECOND + 100;
    assert_eq!(
        date(&mut rtc, later)[..7],
        [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x59]
    );
    assert_eq!(read(&mut rtc, A, later) & A_UPDATING, 0);
    write(&mut rtc, B, B_24_HOURS, later);
    assert_eq!(read(&mut rtc, SECONDS, later), 0x59);
    // The divider went on: the second ends where it would have.
    assert_eq!(
        date(&mut rtc, 6 * SECOND),
        [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00, 6]
    );
}

#[test]
fn a_divider_that_was_held_begins_with_half_a_second() {
    let mut rtc = rtc(START);
    write(&mut rtc, A, 0x76, 100);
    assert_eq!(read(&mut rtc, SECONDS, 90 * SECOND), 0x05, "it stands");
    let now = 100 * SECOND + 7;
    write(&mut rtc, A, 0x26, now);
    assert_eq!(read(&mut rtc, SECONDS, now + SECOND / 2 - 1), 0x05);
    assert_eq!(read(&mut rtc, SECONDS, now + SECOND / 2), 0x06);
}

#[test]
fn flags_are_told_once_and_make_the_line_where_enabled() {
    let mut rtc = rtc(START);
    assert!(!rtc.line(SECOND));
    assert_eq!(
        read(&mut rtc, C, SECOND),
        B_PERIODIC | B_UPDATE,
        "no request"
    );
    assert_eq!(read(&mut rtc, C, SECOND), 0);
    write(&mut rtc, B, B_24_HOURS | B_UPDATE, SECOND + 5);
    assert_eq!(rtc.deadline(), Some(2 * SECOND));
    assert!(!rtc.line(2 * SECOND - 1) && rtc.line(2 * SECOND));
    assert_eq!(rtc.deadline(), None, "until it is read");
    assert_eq!(
        read(&mut rtc, C, 9 * SECOND),
        C_REQUEST | B_PERIODIC | B_UPDATE
    );
    assert!(!rtc.line(9 * SECOND));
    assert_eq!(rtc.deadline(), Some(10 * SECOND));
}

#[test]
fn periodic_rates_are_those_of_the_table() {
    let mut rtc = rtc(START);
    for (rate, clocks) in [(1, 128), (2, 256), (3, 4), (6, 32), (15, 16_384)] {
        write(&mut rtc, A, A_DIVIDER_RUNS | rate, 0);
        assert_eq!(rtc.period(), Some(clocks), "{rate}");
    }
    write(&mut rtc, A, A_DIVIDER_RUNS, 0);
    write(&mut rtc, B, B_PERIODIC, 0);
    assert_eq!((rtc.period(), rtc.deadline()), (None, None));
}

#[test]
fn the_fastest_rate_is_bounded() {
    let mut rtc = Rtc::new(Clock::new(HZ * 1000, HZ, 0), START, [0, 0], 100);
    write(&mut rtc, A, A_DIVIDER_RUNS | 3, 0);
    write(&mut rtc, B, B_PERIODIC, 0);
    let mut times = Vec::new();
    for _ in 0..4 {
        let now = rtc.deadline().expect("runs");
        assert!(rtc.line(now));
        times.push(now);
        assert_ne!(read(&mut rtc, C, now) & C_REQUEST, 0);
    }
    assert_eq!(times, [4, 104, 204, 304]);
}

#[test]
fn memory_above_4_gib_is_told_by_itself() {
    let cells = |above| {
        let mut rtc = Rtc::new(Clock::new(HZ * 1000, HZ, 0), START, [3 << 30, above], 100);
        [0x34, 0x35, 0x5B, 0x5C, 0x5D].map(|index| read(&mut rtc, index, 0))
    };
    let units = |bytes: u64| u16::try_from(bytes >> 16).expect("fits").to_le_bytes();
    let [low, high] = units((3 << 30) - (16 << 20));
    assert_eq!(cells(0), [low, high, 0, 0, 0]);
    assert_eq!(cells(1 << 20), [low, high, 16, 0, 0]);
    assert_eq!(cells(256 << 30), [low, high, 0, 0, 0x40]);
}

#[test]
fn the_ram_tells_the_memory_and_keeps_what_is_written() {
    let mut rtc = rtc(START);
    let mut word =
        |index| u16::from_le_bytes([read(&mut rtc, index, 0), read(&mut rtc, index + 1, 0)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(
        (word(0x17), word(0x30)),
        (u16::MAX, u16::MAX),
        "95 MiB are more than it can say"
    );
    assert_eq!(word(0x34), 80 * 16);
    let sum: u16 = (0x10..0x2E)
        .map(|index| u16::from(read(&mut rtc, index, 0)))
        .sum();
    assert_eq!(
        sum.to_be_bytes(),
        [read(&mut rtc, 0x2E, 0), read(&mut rtc, 0x2F, 0)]
    );
    write(&mut rtc, 0x8F, 0x0A, 0);
    assert_eq!(read(&mut rtc, 0x0F, 0), 0x0A, "the upper bit is no index");
    for index in [C, D] {
        write(&mut rtc, index, 0xFF, 0);
    }
    assert_eq!((read(&mut rtc, C, 0), read(&mut rtc, D, 0)), (0, D_VALID));
    assert_eq!(rtc.read(false, 0), 0xFF);
}

fn meets(alarm: [Option<u64>; 3], second: u64) -> bool {
    let in_day = second % SECONDS_PER_DAY;
    let now = [in_day / 3600, in_day / 60 % 60, in_day % 60];
    alarm
        .iter()
        .zip(now)
        .all(|(part, now)| part.is_none_or(|part| part == now))
}

proptest! {
    /// The next alarm meets, and nothing between does.
    #[test]
    fn the_next_alarm_is_the_first_that_meets(
        hour in proptest::option::of(0_u64..24),
        minute in proptest::option::of(0_u64..60),
        second in proptest::option::of(0_u64..60),
        after in 0_u64..3 * SECONDS_PER_DAY,
    ) {
        let alarm = [hour, minute, second];
        let next = next_alarm(alarm, after);
        prop_assert!(next > after && meets(alarm, next));
        prop_assert!((after + 1..next).all(|second| !meets(alarm, second)));
    }

    /// Any accesses at any times: nothing breaks, the deadline is not missed, and the line is up only for an enabled flag.
    #[test]
    fn any_accesses_are_without_harm(
        steps in proptest::collection::vec((0_u8..16, any::<u8>(), 0_u64..1 << 36, 0..4_u8), 0..60),
    ) {
        let mut rtc = rtc(START);
        let mut now = 0;
        for (index, value, wait, action) in steps {
            now += if action == 0 { wait } else { wait >> 24 };
            match action {
                1 => drop(read(&mut rtc, index, now)),
                2 => write(&mut rtc, index, value, now),
                _ => {}
            }
            let is_up = rtc.line(now);
            prop_assert_eq!(is_up, rtc.requests());
            if let Some(deadline) = rtc.deadline() {
                prop_assert!(!is_up && deadline > now);
                prop_assert!(!rtc.clone().line(deadline - 1));
                prop_assert!(rtc.clone().line(deadline), "at {}", deadline);
            }
        }
    }
}
