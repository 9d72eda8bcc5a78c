//! The TSC's rate, against a count of known length.

use crate::shot::{MOST_SHOTS, Shot, Shots, tightest};

/// Rate of the 8254's input in Hz (data sheet: 1.193182 MHz).
pub const PIT_HZ: u64 = 1_193_182;

/// A timer that counts down once from a 16-bit number, and the TSC.
pub trait Reference {
    /// The TSC.
    fn ticks(&mut self) -> u64;
    /// Prepares a count of that many clocks, which does not begin yet.
    fn prepare(&mut self, clocks: u16);
    /// Begins it: the one access after which it runs.
    fn start(&mut self);
    /// Whether it is over: one access.
    fn is_over(&mut self) -> bool;
}

/// Where a rate is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// CPUID leaf 0x15, or a hypervisor's timing leaf; no measurement contradicts it.
    Cpuid,
    /// Measured.
    Measured,
}

/// The TSC's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frequency {
    /// In kHz; never 0.
    pub khz: u64,
    /// Where it is from.
    pub source: Source,
    /// How many shots were taken.
    pub shots: usize,
    /// Width of the tightest one's bounds, in millionths; `u64::MAX` if there was none.
    pub uncertainty_ppm: u64,
}

/// Nothing could be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// The reference's count was never over: there is no such timer.
    Reference,
    /// The TSC does not count.
    Tsc,
}

impl Stuck {
    /// In words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Stuck::Reference => {
                "the PIT's channel 2 does not count, and CPUID does not tell the TSC's rate"
            }
            Stuck::Tsc => "the TSC does not count",
        }
    }
}

/// Lengths of the shots in clocks of the PIT: 10 ms twice, then as much longer as accesses that are slow themselves (each may be an
/// exit to a hypervisor below) ask for. A third of a second in all at the very most.
const LENGTHS: [u16; MOST_SHOTS] = [
    11_932, 11_932, 11_932, 11_932, 23_864, 23_864, 23_864, 59_660, 59_660, 59_660,
];
/// Shots that are taken at least: one alone could not be told from a disturbed one.
const LEAST_SHOTS: usize = 2;
/// A shot this tight is good enough: some accesses of a microsecond in 10 ms.
const GOOD_PPM: u64 = 400;
/// Looks at the reference after which there is none. The longest count takes 50 ms, and a look a few instructions at least.
const MOST_POLLS: u64 = 20_000_000;

/// Measures the TSC against the PIT, and chooses among that and what was `told` in kHz, the most trustworthy first.
///
/// # Errors
/// [`Stuck`]: a machine without PIT of which CPUID tells nothing either, or without a TSC that counts.
pub fn measure(reference: &mut impl Reference, told: &[Option<u64>]) -> Result<Frequency, Stuck> {
    let mut shots = Shots::default();
    let mut taken = 0;
    for clocks in LENGTHS {
        let shot = match shoot(reference, clocks) {
            Ok(shot) => shot,
            // Without a PIT nothing can contradict what is told.
            Err(stuck) => return only_told(told).ok_or(stuck),
        };
        taken += 1;
        shots.extend(shot);
        let is_good = shot.is_some_and(|shot| shot.uncertainty_ppm() <= GOOD_PPM);
        if taken >= LEAST_SHOTS && is_good {
            break;
        }
    }
    decide(shots.all(), taken, told).ok_or(Stuck::Tsc)
}

fn only_told(told: &[Option<u64>]) -> Option<Frequency> {
    let khz = told.iter().flatten().copied().find(|&khz| khz > 0)?;
    Some(Frequency {
        khz,
        source: Source::Cpuid,
        shots: 0,
        uncertainty_ppm: u64::MAX,
    })
}

fn shoot(reference: &mut impl Reference, clocks: u16) -> Result<Option<Shot>, Stuck> {
    reference.prepare(clocks);
    let before = reference.ticks();
    reference.start();
    let after = reference.ticks();
    let mut not_yet = after;
    for _ in 0..MOST_POLLS {
        let looked = reference.ticks();
        if reference.is_over() {
            let over = reference.ticks();
            return Ok(Shot::new(
                u64::from(clocks),
                (before, after),
                (not_yet, over),
            ));
        }
        not_yet = looked;
    }
    Err(Stuck::Reference)
}

/// Chooses: what was told if every shot allows it, else what the tightest shot says. `None` if no shot says anything.
fn decide(shots: &[Shot], taken: usize, told: &[Option<u64>]) -> Option<Frequency> {
    let best = tightest(shots)?;
    let believed = told
        .iter()
        .flatten()
        .copied()
        .find(|&khz| khz > 0 && shots.iter().all(|shot| shot.allows(khz, PIT_HZ)));
    let (khz, source) = match believed {
        Some(khz) => (khz, Source::Cpuid),
        None => (best.khz(PIT_HZ), Source::Measured),
    };
    (khz > 0).then_some(Frequency {
        khz,
        source,
        shots: taken,
        uncertainty_ppm: best.uncertainty_ppm(),
    })
}
