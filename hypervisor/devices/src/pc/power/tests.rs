//! ACPI's fixed hardware, by its registers.

use super::*;

/// A TSC tick is a count of the timer.
fn power() -> Power {
    Power::new(Clock::new(1000, 1, 0))
}

fn write_word(power: &mut Power, offset: u16, value: u16) -> bool {
    let [low, high] = value.to_le_bytes();
    let first = power.write(offset, low, 0);
    power.write(offset + 1, high, 0) | first
}

fn read_word(power: &mut Power, offset: u16, now: u64) -> u16 {
    u16::from_le_bytes([power.read(offset, now), power.read(offset + 1, now)])
}

#[test]
fn every_sleep_type_but_soft_off_does_nothing() {
    for sleep_type in 0..8 {
        let mut power = power();
        let value = sleep_type << SLEEP_TYPE_SHIFT;
        assert!(!write_word(&mut power, CONTROL, value), "not enabled");
        let is_off = write_word(&mut power, CONTROL, value | SLEEP_ENABLE);
        assert_eq!(is_off, sleep_type == SOFT_OFF.into());
        assert_eq!(read_word(&mut power, CONTROL, 0), value | CONTROL_SCI);
    }
}

#[test]
fn events_are_cleared_by_ones_and_raise_the_line_where_enabled() {
    let mut power = power();
    assert!(!write_word(&mut power, ENABLE, 0xFFFF));
    assert_eq!(read_word(&mut power, ENABLE, 0), ENABLE_BITS);
    assert!(!power.line(0));
    power.press_button();
    assert!(power.line(0));
    let _ = write_word(&mut power, STATUS, !EVENT_BUTTON);
    assert!(power.line(0), "zeros leave it");
    let _ = write_word(&mut power, STATUS, EVENT_BUTTON);
    assert!(!power.line(0));
    assert_eq!(read_word(&mut power, STATUS, 0), 0);
}

#[test]
fn the_timer_counts_and_tells_each_change_of_its_highest_bit() {
    let mut power = power();
    let read = |power: &mut Power, now| {
        let bytes = [0, 1, 2, 3].map(|byte| power.read(TIMER + byte, now));
        u64::from(u32::from_le_bytes(bytes))
    };
    assert_eq!(read(&mut power, 0x1234_5678), 0x1234_5678);
    assert_eq!(power.deadline(), None, "nobody wants to know");
    let _ = write_word(&mut power, ENABLE, EVENT_TIMER);
    assert_eq!(power.deadline(), Some(HALF_TURN));
    assert!(!power.line(HALF_TURN - 1) && power.line(HALF_TURN));
    assert_eq!(power.deadline(), None);
    let _ = power.write(STATUS, 1, HALF_TURN);
    assert_eq!(power.deadline(), Some(2 * HALF_TURN));
    assert_eq!(read(&mut power, 2 * HALF_TURN + 7), 7);
    assert!(power.line(9 * HALF_TURN));
}

#[test]
fn only_the_reset_bit_resets() {
    for value in 0..=u8::MAX {
        let mut power = power();
        assert_eq!(power.write_reset(value), value & 4 != 0);
        assert_eq!(power.read_reset(), value & 2);
    }
}
