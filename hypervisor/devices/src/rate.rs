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

/// How much may pass now.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// Bytes that may pass now, times [`Rate::per_ticks`].
    level: u128,
    filled_at: u64,
}

impl Bucket {
    /// A bucket that has not been used.
    #[must_use]
    pub fn full(rate: Rate, now: u64) -> Bucket {
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
    pub fn put_back(&mut self, bytes: u32) {
        let price = u128::from(bytes) * u128::from(self.rate.per_ticks);
        self.level = self.level.saturating_add(price).min(Self::top(&self.rate));
    }

    /// From now on so much may pass; only the bytes may be others.
    pub fn set_bytes(&mut self, bytes: u64, now: u64) {
        self.fill(now);
        self.rate.bytes = bytes;
    }

    /// Whether so many bytes could pass now.
    #[must_use]
    pub fn has(&mut self, bytes: u64, now: u64) -> bool {
        self.fill(now);
        self.level >= u128::from(bytes) * u128::from(self.rate.per_ticks)
    }

    fn fill(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.filled_at);
        let filled = u128::from(elapsed) * u128::from(self.rate.bytes);
        self.level = self.level.saturating_add(filled).min(Self::top(&self.rate));
        self.filled_at = self.filled_at.max(now);
    }

    /// Takes the bytes out if they are there.
    #[must_use]
    pub fn take(&mut self, bytes: u32, now: u64) -> bool {
        self.fill(now);
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
