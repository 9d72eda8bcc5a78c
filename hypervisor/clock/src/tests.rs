//! A machine whose CPU is taken away at random moments, as a virtual one's is.

extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use crate::*;

/// A PIT, an APIC timer and a TSC over one time in picoseconds, and a CPU that is not always there.
struct Machine {
    now_ps: u64,
    tsc_khz: u64,
    timer_khz: u64,
    /// How long an access to a port or register takes.
    access_ps: u64,
    /// For each step, how long the CPU is away before it; used from the end, then never away.
    absences_ps: Vec<u64>,
    count_ends_ps: Option<u64>,
    prepared: u16,
    timer_started_ps: u64,
    pit_counts: bool,
}

impl Machine {
    fn new(tsc_khz: u64) -> Machine {
        Machine {
            now_ps: 7_777,
            tsc_khz,
            timer_khz: 24_000,
            access_ps: 1_000_000,
            absences_ps: Vec::new(),
            count_ends_ps: None,
            prepared: 0,
            timer_started_ps: 0,
            pit_counts: true,
        }
    }

    fn step(&mut self, duration_ps: u64) {
        self.now_ps += duration_ps + self.absences_ps.pop().unwrap_or(0);
    }

    fn tsc(&mut self) -> u64 {
        self.step(10_000);
        u64::try_from(u128::from(self.now_ps) * u128::from(self.tsc_khz) / 1_000_000_000)
            .expect("fits")
    }
}

impl Reference for Machine {
    fn ticks(&mut self) -> u64 {
        self.tsc()
    }

    fn prepare(&mut self, clocks: u16) {
        self.step(self.access_ps);
        self.prepared = clocks;
        self.count_ends_ps = None;
    }

    fn start(&mut self) {
        // The access takes effect in its middle.
        self.step(self.access_ps / 2);
        let length = u64::from(self.prepared) * 1_000_000_000_000 / PIT_HZ;
        self.count_ends_ps = self.pit_counts.then_some(self.now_ps + length);
        self.step(self.access_ps / 2);
    }

    fn is_over(&mut self) -> bool {
        self.step(self.access_ps / 2);
        let over = self.count_ends_ps.is_some_and(|end| self.now_ps >= end);
        self.step(self.access_ps / 2);
        over
    }
}

impl Countdown for Machine {
    fn ticks(&mut self) -> u64 {
        self.tsc()
    }

    fn start(&mut self, _: u32) {
        self.step(self.access_ps / 2);
        self.timer_started_ps = self.now_ps;
        self.step(self.access_ps / 2);
    }

    fn current(&mut self) -> u32 {
        self.step(self.access_ps / 2);
        let counted = (self.now_ps - self.timer_started_ps) * self.timer_khz / 1_000_000_000;
        self.step(self.access_ps / 2);
        u32::MAX - u32::try_from(counted).expect("fits")
    }
}

/// Difference in millionths.
fn off_ppm(found: u64, truth: u64) -> u64 {
    found.abs_diff(truth) * 1_000_000 / truth
}

#[test]
fn an_undisturbed_machine_is_measured_in_two_shots() {
    for khz in [10_000, 1_000_000, 2_400_000, 5_000_000] {
        let found = measure(&mut Machine::new(khz), &[]).expect("counts");
        assert_eq!((found.shots, found.source), (2, Source::Measured));
        assert!(off_ppm(found.khz, khz) < 600, "{khz}: {found:?}");
    }
}

#[test]
fn slow_accesses_are_made_up_for_by_longer_shots() {
    // 40 us each: an exit to a hypervisor below a hypervisor.
    let mut machine = Machine::new(2_400_000);
    machine.access_ps = 40_000_000;
    let found = measure(&mut machine, &[]).expect("counts");
    assert!(off_ppm(found.khz, 2_400_000) < 1_500, "{found:?}");
}

#[test]
fn a_machine_without_pit_or_tsc_is_told_and_does_not_hang() {
    let mut machine = Machine::new(0);
    assert_eq!(measure(&mut machine, &[]), Err(Stuck::Tsc));
    let mut machine = Machine::new(2_000_000);
    machine.pit_counts = false;
    // So that the many looks take no time here.
    machine.access_ps = 0;
    assert_eq!(measure(&mut machine, &[None]), Err(Stuck::Reference));
    let told = measure(&mut machine, &[None, Some(2_000_000)]).expect("CPUID tells it");
    assert_eq!((told.khz, told.source), (2_000_000, Source::Cpuid));
}

#[test]
fn cpuid_is_believed_unless_the_machine_runs_at_another_pace() {
    let told = crystal(2, 200, 24_000_000).map(|crystal| crystal.tsc_khz);
    assert_eq!(told, Some(2_400_000));
    let found = measure(&mut Machine::new(2_400_100), &[None, told]).expect("counts");
    assert_eq!((found.khz, found.source), (2_400_000, Source::Cpuid));
    // An emulator that describes a CPU of 2.4 GHz and runs at 10 MHz.
    let found = measure(&mut Machine::new(10_000), &[told]).expect("counts");
    assert_eq!(found.source, Source::Measured);
    assert!(off_ppm(found.khz, 10_000) < 600, "{found:?}");
    // Of two, the first that is not contradicted.
    let found = measure(&mut Machine::new(2_400_000), &[Some(3_000_000), told]).expect("counts");
    assert_eq!(found.khz, 2_400_000);
}

#[test]
fn a_leaf_that_leaves_something_out_says_nothing() {
    assert_eq!(crystal(2, 200, 0), None);
    assert_eq!(crystal(0, 200, 1), None);
    assert_eq!(
        hypervisor_timing(0x4000_0010, 2_000_000, 1_000_000),
        (Some(2_000_000), Some(1_000_000))
    );
    assert_eq!(hypervisor_timing(0x4000_0010, 5, 0), (Some(5), None));
    assert_eq!(hypervisor_timing(0x4000_0001, 5, 5), (None, None));
    assert_eq!(hypervisor_timing(0x8000_0000, 5, 5), (None, None));
}

#[test]
fn a_stopped_timer_or_clock_makes_no_shot() {
    assert_eq!(Shot::new(0, (0, 1), (5, 6)), None);
    assert_eq!(Shot::new(9, (5, 6), (3, 4)), None, "backwards");
    assert_eq!(Shot::new(9, (5, 5), (5, 5)), None, "it stands still");
}

#[test]
fn the_apic_timer_is_measured_and_its_rate_by_cpuid_believed_if_it_fits() {
    let mut machine = Machine::new(2_400_000);
    let found = measure_countdown(&mut machine, 2_400_000, &[]);
    assert!(off_ppm(found, 24_000) < 1_000, "{found}");
    assert_eq!(
        measure_countdown(&mut machine, 2_400_000, &[Some(24_001)]),
        24_001
    );
    let found = measure_countdown(&mut machine, 2_400_000, &[Some(100_000)]);
    assert!(off_ppm(found, 24_000) < 1_000, "{found}");
}

/// Absences of up to 30 ms, in a few of the steps of a shot.
fn absences() -> impl Strategy<Value = Vec<u64>> {
    let absence = prop_oneof![
        40 => Just(0_u64),
        1 => 1_000_000_u64..30_000_000_000,
    ];
    proptest::collection::vec(absence, 0..80_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The one shot of 10 ms that was taken before is off by more than half in such machines.
    #[test]
    fn a_machine_that_is_preempted_is_never_measured_far_off(absences_ps in absences(), khz in 1_000_000_u64..5_000_000) {
        let mut machine = Machine::new(khz);
        machine.absences_ps = absences_ps;
        let found = measure(&mut machine, &[]).expect("counts");
        // Half the width, of the middle as of the truth, which may be the lower bound.
        let half = (found.uncertainty_ppm / 2).min(999_999);
        let bound = half * 1_000_000 / (1_000_000 - half) + 600;
        prop_assert!(off_ppm(found.khz, khz) <= bound, "{found:?}");
        let told = Some(khz);
        let mut machine = Machine::new(khz);
        machine.absences_ps = vec![20_000_000_000; 30];
        let found = measure(&mut machine, &[told]).expect("counts");
        prop_assert_eq!(found.source, Source::Cpuid, "no shot may contradict the truth");
    }

    #[test]
    fn a_few_absences_do_no_harm_at_all(
        at in proptest::collection::vec((0..18_000_usize, 1_000_000_u64..30_000_000_000), 1..4),
        khz in 1_000_000_u64..5_000_000,
    ) {
        let mut machine = Machine::new(khz);
        machine.absences_ps = vec![0; 18_000];
        for (step, absence_ps) in at {
            machine.absences_ps[step] = absence_ps;
        }
        let found = measure(&mut machine, &[]).expect("counts");
        prop_assert!(off_ppm(found.khz, khz) < 800, "{found:?}");
    }

    #[test]
    fn no_reading_makes_us_stop(clocks: u64, a: u64, b: u64, c: u64, d: u64, khz: u64, hz: u64) {
        if let Some(shot) = Shot::new(clocks >> 1, (a, b), (c, d)) {
            let _ = (shot.uncertainty_ppm(), shot.khz(hz), shot.clocks_per_ms(khz));
            let _ = shot.allows(khz, hz >> 12);
        }
    }
}
