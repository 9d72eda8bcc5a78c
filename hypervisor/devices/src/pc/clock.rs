//! A clock of a fixed frequency, derived from the TSC. Counts are computed from the start each time, so nothing adds up: there is
//! no drift.

/// No clock here counts further: that takes thousands of years. It is what saved counts are checked against.
pub(super) const LAST_COUNT: u64 = (1 << 62) - 1;

/// A clock that counted 0 at its origin. That may lie before the TSC's 0, in a VM that is older than the machine it goes on in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    hz: u32,
    tsc_hz: u64,
    origin: i64,
}

impl Clock {
    /// A clock of `hz` on a TSC of `tsc_khz` that counts from the TSC `origin` on.
    pub(super) const fn new(hz: u32, tsc_khz: u32, origin: i64) -> Clock {
        // A frequency of 0 would say that time stands: 1 kHz is as good as any other answer to it.
        let tsc_khz = if tsc_khz == 0 { 1 } else { tsc_khz };
        Clock {
            hz: if hz == 0 { 1 } else { hz },
            tsc_hz: tsc_khz as u64 * 1000,
            origin,
        }
    }

    /// Whole counts until the TSC `now`; 0 before the origin.
    pub(super) fn count(&self, now: u64) -> u64 {
        let ticks = now.saturating_sub_signed(self.origin);
        // For times that are not many years a product of 64 bits is enough.
        match ticks.checked_mul(self.hz.into()) {
            Some(product) => product / self.tsc_hz,
            None => {
                let product = u128::from(ticks) * u128::from(self.hz);
                u64::try_from(product / u128::from(self.tsc_hz)).unwrap_or(u64::MAX)
            }
        }
    }

    /// The first TSC at which [`Clock::count`] is `count` or more.
    pub(super) fn tsc_of(&self, count: u64) -> u64 {
        let product = u128::from(count) * u128::from(self.tsc_hz);
        let ticks = u64::try_from(product.div_ceil(self.hz.into())).unwrap_or(u64::MAX);
        ticks.saturating_add_signed(self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The two directions fit: a count begins exactly at its TSC.
        #[test]
        fn a_count_begins_at_its_tsc_and_not_before(
            hz in prop_oneof![Just(1_193_182_u32), Just(3_579_545), Just(32_768), 1_u32..100_000_000],
            khz in 1_u32..10_000_000,
            origin in -1_i64 << 60..1 << 60,
            count in 0_u64..1 << 44,
        ) {
            let clock = Clock::new(hz, khz, origin);
            let at = clock.tsc_of(count);
            prop_assert!(clock.count(at) >= count);
            if count > 0 && at > 0 {
                prop_assert!(clock.count(at - 1) < count);
            }
        }
    }

    #[test]
    fn a_hundred_years_of_odd_steps_end_where_one_step_does() {
        let clock = Clock::new(1_193_182, 2_599_998, 12_345);
        let seconds = 100 * 365 * 86_400;
        let now = 12_345 + seconds * 2_599_998_000;
        assert_eq!(clock.count(now), seconds * 1_193_182);
        assert_eq!(clock.count(0), 0, "before the origin");
    }
}
