//! One measurement, as bounds.

/// How far two clocks that agree may differ, in millionths: crystals are good to 100 each, and a hypervisor that scales the TSC
/// rounds.
const TOLERANCE_PPM: u64 = 500;

/// While the slower clock counted `clocks`, the TSC advanced by `least` to `most` ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shot {
    clocks: u64,
    least: u64,
    most: u64,
}

impl Shot {
    /// From what the TSC read: `start` before and after the access that started the count, `end` before the last moment at which
    /// it was surely not over and after the first at which it surely was. `None` if the readings run backwards or nothing was
    /// counted.
    #[must_use]
    pub fn new(clocks: u64, start: (u64, u64), end: (u64, u64)) -> Option<Shot> {
        let least = end.0.checked_sub(start.1)?;
        let most = end.1.checked_sub(start.0)?;
        (clocks > 0 && most > 0 && least <= most).then_some(Shot {
            clocks,
            least,
            most,
        })
    }

    /// Width of the bounds against their middle, in millionths; `u64::MAX` if there is no telling.
    #[must_use]
    pub fn uncertainty_ppm(&self) -> u64 {
        let middle = u128::from(self.middle());
        let width = u128::from(self.most - self.least) * 1_000_000;
        let ppm = width.checked_div(middle);
        ppm.map_or(u64::MAX, |ppm| u64::try_from(ppm).unwrap_or(u64::MAX))
    }

    fn middle(&self) -> u64 {
        self.least + (self.most - self.least) / 2
    }

    /// Ticks a millisecond by the middle of the bounds, if the slower clock runs at `hz`.
    #[must_use]
    pub fn khz(&self, hz: u64) -> u64 {
        ratio(self.middle(), hz, self.clocks.saturating_mul(1000))
    }

    /// Counts a millisecond of the slower clock by the middle of the bounds, if the TSC runs at `khz`.
    #[must_use]
    pub fn clocks_per_ms(&self, khz: u64) -> u64 {
        ratio(self.clocks, khz, self.middle().max(1))
    }

    /// Whether a TSC of `khz` beside a slower clock of `hz` could have been seen so. The slower clock counts from one of its edges
    /// to another: one count less or two more may have passed.
    #[must_use]
    pub fn allows(&self, khz: u64, hz: u64) -> bool {
        let low = ratio(
            self.least,
            hz,
            self.clocks.saturating_add(2).saturating_mul(1000),
        );
        let high = ratio(
            self.most,
            hz,
            self.clocks.saturating_sub(1).max(1).saturating_mul(1000),
        );
        let slack = khz / (1_000_000 / TOLERANCE_PPM) + 1;
        low <= khz.saturating_add(slack) && khz <= high.saturating_add(slack)
    }
}

fn ratio(a: u64, b: u64, c: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let result = product.checked_div(u128::from(c)).unwrap_or(0);
    u64::try_from(result).unwrap_or(u64::MAX)
}

/// The tightest of some shots.
pub(crate) fn tightest(shots: &[Shot]) -> Option<Shot> {
    shots
        .iter()
        .min_by_key(|shot| shot.uncertainty_ppm())
        .copied()
}

/// Most shots of one measurement.
pub(crate) const MOST_SHOTS: usize = 10;

/// The shots of one measurement.
#[derive(Debug, Default)]
pub(crate) struct Shots {
    shots: [Shot; MOST_SHOTS],
    count: usize,
}

impl Shots {
    /// Adds one, if there is one and room for it.
    pub(crate) fn extend(&mut self, shot: Option<Shot>) {
        if let (Some(shot), Some(slot)) = (shot, self.shots.get_mut(self.count)) {
            *slot = shot;
            self.count += 1;
        }
    }

    /// Those there are.
    pub(crate) fn all(&self) -> &[Shot] {
        self.shots.get(..self.count).unwrap_or(&[])
    }
}
