//! The APIC timer's rate, against the TSC whose rate is known by now.

use crate::shot::{Shot, Shots, tightest};

/// A 32-bit counter that counts down to 0, and the TSC.
pub trait Countdown {
    /// The TSC.
    fn ticks(&mut self) -> u64;
    /// Starts it from that number: one access.
    fn start(&mut self, from: u32);
    /// Where it is: one access.
    fn current(&mut self) -> u32;
}

/// Shots at most.
const SHOTS: usize = 6;
/// A shot this tight is good enough.
const GOOD_PPM: u64 = 500;
/// Length of a shot in milliseconds of the TSC.
const SHOT_MS: u64 = 2;

/// Counts a millisecond of that timer, beside a TSC of `tsc_khz`: what was `told` in kHz if every shot allows it, else the tightest
/// shot's. At least 1.
pub fn measure_countdown(timer: &mut impl Countdown, tsc_khz: u64, told: &[Option<u64>]) -> u64 {
    let mut shots = Shots::default();
    for taken in 1..=SHOTS {
        let shot = shoot(timer, tsc_khz.saturating_mul(SHOT_MS));
        shots.extend(shot);
        if taken >= 2 && shot.is_some_and(|shot| shot.uncertainty_ppm() <= GOOD_PPM) {
            break;
        }
    }
    let believed = told.iter().flatten().copied().find(|&khz| {
        let hz = khz.saturating_mul(1000);
        khz > 0 && shots.all().iter().all(|shot| shot.allows(tsc_khz, hz))
    });
    let measured = || tightest(shots.all()).map_or(0, |shot| shot.clocks_per_ms(tsc_khz));
    believed.unwrap_or_else(measured).max(1)
}

fn shoot(timer: &mut impl Countdown, ticks: u64) -> Option<Shot> {
    let before = timer.ticks();
    timer.start(u32::MAX);
    let after = timer.ticks();
    let end = after.saturating_add(ticks);
    let mut looked = after;
    while looked < end {
        looked = timer.ticks();
    }
    let left = timer.current();
    let seen = timer.ticks();
    // At 0 it has stopped, who knows when.
    if left == 0 {
        return None;
    }
    Shot::new(u64::from(u32::MAX - left), (before, after), (looked, seen))
}
