//! The 8254, by the figures of its data sheet and against a model that counts clock by clock.

use proptest::prelude::*;

use std::vec::Vec;

use super::channel::{STATUS_NULL, STATUS_OUTPUT};
use super::*;

/// A TSC tick is a clock.
fn clock() -> Clock {
    Clock::new(1_000_000, 1_000, 0)
}

fn pit() -> Pit {
    Pit::new(clock(), 0)
}

fn set(pit: &mut Pit, channel: u8, mode: u8, count: u16, now: u64) {
    pit.write(3, channel << 6 | 0x30 | mode << 1, now);
    for byte in count.to_le_bytes() {
        pit.write(channel.into(), byte, now);
    }
}

fn read(pit: &mut Pit, channel: u16, now: u64) -> u16 {
    let low = pit.read(channel, now);
    u16::from_le_bytes([low, pit.read(channel, now)])
}

/// The output of channel 2, whose gate is open, at each of some times.
fn outputs(pit: &mut Pit, times: core::ops::Range<u64>) -> std::string::String {
    times
        .map(|now| match pit.read_system(now) & SYSTEM_OUTPUT {
            0 => '_',
            _ => '#',
        })
        .collect()
}

/// The waveforms of the data sheet's figures, with a count of 4 (5 where it tells odd ones) that is written at 0 and loaded at 1.
#[test]
fn outputs_are_those_of_the_data_sheet() {
    for (mode, count, expected) in [
        (0, 4, "_____#######"),
        (2, 4, "####_###_###_"),
        (3, 4, "###__##__##__"),
        (3, 5, "####__###__###"),
        (4, 4, "#####_######"),
    ] {
        let mut pit = pit();
        pit.write_system(1, 0);
        set(&mut pit, 2, mode, count, 0);
        let times = 0..expected.len() as u64;
        assert_eq!(outputs(&mut pit, times), expected, "mode {mode}, {count}");
    }
}

#[test]
fn the_gate_starts_modes_1_and_5() {
    for (mode, expected) in [(1, "##____#####"), (5, "######_####")] {
        let mut pit = pit();
        set(&mut pit, 2, mode, 4, 0);
        assert_eq!(outputs(&mut pit, 0..10), "##########", "not before");
        pit.write_system(1, 100);
        // Loaded by the next clock.
        assert_eq!(outputs(&mut pit, 99..110), expected);
        pit.write_system(0, 120);
        pit.write_system(1, 121);
        pit.write_system(0, 122);
        assert_eq!(
            outputs(&mut pit, 120..131),
            expected,
            "the gate need not stay"
        );
        pit.write_system(1, 140);
        pit.write_system(0, 141);
        pit.write_system(1, 142);
        assert!(
            outputs(&mut pit, 143..146)
                .chars()
                .all(|level| (level == '_') == (mode == 1))
        );
        assert_eq!(
            pit.read_system(146) & SYSTEM_OUTPUT != 0,
            mode == 5,
            "triggered again"
        );
    }
}

#[test]
fn the_gate_holds_modes_0_and_4_and_restarts_2_and_3() {
    let mut pit = pit();
    pit.write_system(1, 0);
    set(&mut pit, 2, 0, 10, 0);
    pit.write_system(0, 4);
    assert_eq!(read(&mut pit, 2, 50), 7);
    pit.write_system(1, 50);
    assert_eq!(read(&mut pit, 2, 51), 6);
    assert_eq!(outputs(&mut pit, 55..59), "__##");
    for mode in [2, 3] {
        pit.write_system(1, 100);
        set(&mut pit, 2, mode, 10, 100);
        pit.write_system(0, 110);
        assert_eq!(outputs(&mut pit, 110..130), "#".repeat(20), "high at once");
        pit.write_system(1, 130);
        assert_eq!(read(&mut pit, 2, 131), 10, "loaded anew");
    }
}

#[test]
fn after_the_end_mode_0_counts_on_and_a_new_count_starts_it_again() {
    let mut pit = pit();
    set(&mut pit, 0, 0, 3, 0);
    assert_eq!(read(&mut pit, 0, 5), 0xFFFF);
    assert!(pit.take_edge(5));
    pit.write(0, 2, 10);
    assert_eq!(pit.deadline(), None, "the first byte stops it");
    pit.write(0, 0, 10);
    assert_eq!(pit.deadline(), Some(13));
    assert!(!pit.take_edge(12) && pit.take_edge(13) && !pit.take_edge(1000));
}

#[test]
fn a_new_count_of_a_periodic_mode_waits_for_the_end_of_the_old_one() {
    let mut pit = pit();
    set(&mut pit, 0, 2, 10, 0);
    pit.write(0, 5, 14);
    pit.write(0, 0, 14);
    let edges: Vec<u64> = (1..40).filter(|now| pit.take_edge(*now)).collect();
    assert_eq!(edges, [11, 21, 26, 31, 36]);
    let mut pit = self::pit();
    pit.write_system(1, 0);
    set(&mut pit, 2, 3, 8, 0);
    assert_eq!(outputs(&mut pit, 1..3), "##");
    pit.write(2, 4, 3);
    pit.write(2, 0, 3);
    // The rest of the high half, then halves of two.
    assert_eq!(outputs(&mut pit, 3..15), "##__##__##__");
}

#[test]
fn counts_are_latched_until_they_are_read_and_once() {
    let mut pit = pit();
    set(&mut pit, 0, 2, 1000, 0);
    pit.write(3, 0x00, 101);
    pit.write(3, 0x00, 201);
    assert_eq!(read(&mut pit, 0, 301), 900, "the first latch holds");
    assert_eq!(read(&mut pit, 0, 301), 700);
    let low = pit.read(0, 301);
    assert_eq!(
        u16::from_le_bytes([low, pit.read(0, 401)]),
        0x02BC,
        "torn, 700 and 600"
    );
    // Read-back of count and status of channels 0 and 2: the status comes first.
    pit.write(3, 0xCA, 501);
    assert_eq!(pit.read(0, 601), STATUS_OUTPUT | 0x34);
    assert_eq!(read(&mut pit, 0, 601), 500);
    assert_eq!(pit.read(2, 601), STATUS_NULL, "not set up");
    // The status alone.
    pit.write(3, 0xE2, 700);
    assert_eq!(pit.read(0, 701), STATUS_OUTPUT | 0x34);
    assert_eq!(read(&mut pit, 0, 701), 300);
}

#[test]
fn one_byte_counts_and_digits() {
    let mut pit = pit();
    pit.write(3, 0x14, 0);
    pit.write(0, 200, 0);
    assert_eq!((pit.read(0, 11), pit.read(0, 12)), (190, 189));
    pit.write(3, 0x24, 0);
    pit.write(0, 2, 20);
    assert_eq!((pit.read(0, 21), pit.read(0, 22)), (2, 1));
    pit.write(3, 0x31, 100);
    for byte in [0x00, 0x10] {
        pit.write(0, byte, 100);
    }
    assert_eq!(read(&mut pit, 0, 102), 0x0999);
    assert_eq!(read(&mut pit, 0, 1102), 0x9999);
    set(&mut pit, 0, 0, 0, 2000);
    assert_eq!(pit.deadline(), Some(2001 + 65_536), "0 is the largest");
}

#[test]
fn missed_periods_come_as_one_and_short_ones_not_too_often() {
    let mut pit = Pit::new(clock(), 500);
    set(&mut pit, 0, 2, 2, 0);
    assert_eq!(pit.deadline(), Some(3));
    let mut now = 0;
    let mut edges = Vec::new();
    for _ in 0..5 {
        now = pit.deadline().expect("runs");
        assert!(pit.take_edge(now));
        edges.push(now);
    }
    assert_eq!(edges, [3, 503, 1003, 1503, 2003]);
    assert!(pit.take_edge(now + 1_000_000_000_000));
    assert!(
        !pit.take_edge(now + 1_000_000_000_000),
        "all of them are one"
    );
}

#[test]
fn the_refresh_bit_toggles() {
    let mut pit = pit();
    let bits: Vec<u8> = (0..72)
        .step_by(18)
        .map(|now| pit.read_system(now) & SYSTEM_REFRESH)
        .collect();
    assert_eq!(bits, [0, SYSTEM_REFRESH, 0, SYSTEM_REFRESH]);
    pit.write_system(0xFE, 0);
    assert_eq!(pit.read_system(0) & 0xCF, 0x0E, "what is written is read");
}

/// One channel as gates and a counter, stepped clock by clock ("Mode Definitions").
struct Model {
    mode: u8,
    gate: bool,
    written: Option<u64>,
    /// A load waits for the next clock.
    loads: bool,
    is_triggered: bool,
    /// The counting element, since it was loaded; for modes 2 and 3 within the half or period.
    count: Option<u64>,
    initial: u64,
    is_over: bool,
    output: bool,
}

impl Model {
    fn new(mode: u8, gate: bool) -> Model {
        Model {
            mode,
            gate,
            written: None,
            loads: false,
            is_triggered: false,
            count: None,
            initial: 0,
            is_over: false,
            output: mode != 0,
        }
    }

    fn write(&mut self, count: u64) {
        self.written = Some(count);
        match self.mode {
            0 => {
                self.output = false;
                self.loads = true;
            }
            4 => self.loads = true,
            2 | 3 if self.count.is_none() => self.loads = self.gate,
            _ => {}
        }
    }

    fn set_gate(&mut self, gate: bool) {
        let (rises, falls) = (gate && !self.gate, !gate && self.gate);
        self.gate = gate;
        let has_count = self.written.is_some();
        match self.mode {
            1 | 5 if rises && has_count => self.is_triggered = true,
            2 | 3 if rises && has_count => self.loads = true,
            2 | 3 if falls => {
                (self.output, self.loads, self.count) = (true, false, None);
            }
            _ => {}
        }
    }

    fn clock(&mut self) {
        if core::mem::take(&mut self.is_triggered) || core::mem::take(&mut self.loads) {
            self.initial = self.written.expect("was written");
            self.count = Some(self.initial);
            self.is_over = false;
            self.output = !matches!(self.mode, 0 | 1);
            return;
        }
        let Some(count) = self.count else { return };
        if matches!(self.mode, 0 | 4) && !self.gate {
            return;
        }
        let next = count.wrapping_sub(1) & 0xFFFF;
        match self.mode {
            2 if count == 1 => {
                self.initial = self.written.expect("was written");
                (self.count, self.output) = (Some(self.initial), true);
                return;
            }
            2 => self.output = next != 1,
            3 => {
                // The half's clocks: one more when it is high and the count is odd.
                let half = |initial: u64, high: bool| {
                    if high {
                        initial.div_ceil(2)
                    } else {
                        initial / 2
                    }
                };
                let passed = self.initial - count + 1;
                if passed >= half(self.initial, self.output) {
                    self.initial = self.written.expect("was written");
                    self.output = !self.output;
                    self.count = Some(self.initial);
                    return;
                }
            }
            _ => {
                let ends = next == 0 && !self.is_over;
                self.is_over |= ends;
                match self.mode {
                    0 | 1 => self.output |= ends,
                    _ => self.output = !ends,
                }
            }
        }
        self.count = Some(next);
    }
}

proptest! {
    /// Any counts, gates and times: the output is that of a counter that counts.
    #[test]
    fn the_output_is_that_of_a_counter(
        mode in 0_u8..6,
        gate: bool,
        steps in proptest::collection::vec((0_u64..40, 2_u16..24, 0..4_u8), 1..12),
    ) {
        let mut pit = pit();
        pit.write_system(gate.into(), 0);
        pit.write(3, 0x90 | mode << 1, 0);
        let mut model = Model::new(mode, gate);
        let mut now = 0;
        for (wait, count, action) in steps {
            match action {
                0 => {
                    let gate = !model.gate;
                    pit.write_system(gate.into(), now);
                    model.set_gate(gate);
                }
                _ => {
                    pit.write(2, count as u8, now);
                    model.write(count.into());
                }
            }
            for _ in 0..wait + 2 {
                let output = pit.read_system(now) & SYSTEM_OUTPUT != 0;
                prop_assert_eq!(output, model.output, "mode {} at {}", mode, now);
                now += 1;
                model.clock();
            }
        }
    }

    /// The edges of channel 0 are where its output rises, whether looked at often or by deadlines.
    #[test]
    fn deadlines_are_where_the_output_rises(
        mode in prop_oneof![Just(0_u8), Just(2), Just(3), Just(4)],
        counts in proptest::collection::vec((2_u16..50, 0_u64..200), 1..6),
    ) {
        let (mut often, mut rarely) = (pit(), pit());
        for pit in [&mut often, &mut rarely] {
            pit.write(3, 0x10 | mode << 1, 0);
        }
        let mut now = 0;
        for (count, wait) in counts {
            let end = now + wait;
            for pit in [&mut often, &mut rarely] {
                pit.write(0, count as u8, now);
            }
            let mut edges = Vec::new();
            while let Some(at) = rarely.deadline().filter(|at| *at <= end) {
                prop_assert!(rarely.take_edge(at));
                edges.push(at);
            }
            let _ = rarely.take_edge(end);
            let seen: Vec<u64> = (now..=end).filter(|at| often.take_edge(*at)).collect();
            prop_assert_eq!(edges, seen);
            now = end;
        }
    }
}
