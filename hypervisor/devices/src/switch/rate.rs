//! A token bucket without rounding: it counts in bytes times ticks.

/// How much may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes that may pass in the long run ...
    pub bytes: u64,
    /// ... in each of so many ticks. 0 counts as 1.
    pub per_ticks: u64,
    /// Bytes that may pass at once after a pause. A frame longer than this never passes.
    pub burst_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// Bytes that may pass now, times [`Rate::per_ticks`].
    level: u128,
    filled_at: u64,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: u64) -> Bucket {
        let rate = Rate {
            per_ticks: rate.per_ticks.max(1),
            ..rate
        };
        Bucket {
            rate,
            level: Self::top(&rate),
            filled_at: now,
        }
    }

    fn top(rate: &Rate) -> u128 {
        u128::from(rate.burst_bytes) * u128::from(rate.per_ticks)
    }

    /// Puts back what was taken for a frame that did not pass after all.
    pub(super) fn put_back(&mut self, bytes: u32) {
        let price = u128::from(bytes) * u128::from(self.rate.per_ticks);
        self.level = self.level.saturating_add(price).min(Self::top(&self.rate));
    }

    /// Takes the bytes out if they are there.
    pub(super) fn take(&mut self, bytes: u32, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.filled_at);
        let filled = u128::from(elapsed) * u128::from(self.rate.bytes);
        self.level = self.level.saturating_add(filled).min(Self::top(&self.rate));
        self.filled_at = self.filled_at.max(now);
        let price = u128::from(bytes) * u128::from(self.rate.per_ticks);
        match self.level.checked_sub(price) {
            Some(rest) => {
                self.level = rest;
                true
            }
            None => false,
        }
    }
}
