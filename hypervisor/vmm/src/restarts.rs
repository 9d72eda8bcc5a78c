//! How often, and how soon, a VM that its own guest resets is made again.
//!
//! Making a VM is work for the hypervisor, which the VM pays for like for any other; but a guest that resets itself at once after each
//! start would still have nothing else done than that. So lives that are short, one after the other, are followed by pauses that
//! grow, and the resets of a VM have a bound.

use serde::{Deserialize, Serialize};

/// Resets by its guest before a VM is given up, unless its configuration says otherwise.
pub const DEFAULT_LIMIT: u32 = 1000;
/// A life shorter than this, in milliseconds, counts as short.
pub const SHORT_LIFE_MS: u64 = 10_000;
/// Short lives in a row that are followed by no pause.
pub const FREE: u32 = 3;
/// The first pause; each is twice the one before, up to [`LONGEST_PAUSE_MS`].
pub const FIRST_PAUSE_MS: u64 = 10;
/// The longest pause.
pub const LONGEST_PAUSE_MS: u64 = 2_000;

/// A VM has been reset by its guest more often than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany {
    /// How often it may be.
    pub limit: u32,
}

/// The resets of one VM by its guest since its operator made or reset it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    limit: u32,
    count: u32,
    /// Short lives in a row.
    short_lives: u32,
}

impl Restarts {
    /// None so far, of at most `limit`.
    #[must_use]
    pub fn new(limit: u32) -> Restarts {
        Restarts {
            limit,
            count: 0,
            short_lives: 0,
        }
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The guest has reset its VM after so many milliseconds: for how many milliseconds to wait before it is made again.
    ///
    /// # Errors
    /// [`TooMany`]: it is not to be made again.
    pub fn next_pause_ms(&mut self, lived_ms: u64) -> Result<u64, TooMany> {
        if self.count >= self.limit {
            return Err(TooMany { limit: self.limit });
        }
        self.count += 1;
        if lived_ms >= SHORT_LIFE_MS {
            self.short_lives = 0;
            return Ok(0);
        }
        self.short_lives = self.short_lives.saturating_add(1);
        let Some(doublings) = self.short_lives.checked_sub(FREE + 1) else {
            return Ok(0);
        };
        let pause = FIRST_PAUSE_MS.saturating_mul(1 << doublings.min(32));
        Ok(pause.min(LONGEST_PAUSE_MS))
    }

    /// The operator has reset it: everything begins anew.
    pub fn forget(&mut self) {
        self.count = 0;
        self.short_lives = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_short_lives_cost_no_time_and_then_pauses_double_up_to_the_longest() {
        let mut restarts = Restarts::new(u32::MAX);
        let pauses: std::vec::Vec<_> = (0..13).map(|_| restarts.next_pause_ms(1)).collect();
        let wanted = [0, 0, 0, 10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000];
        assert_eq!(pauses, wanted.map(Ok));
        for _ in 0..100 {
            assert_eq!(restarts.next_pause_ms(0), Ok(LONGEST_PAUSE_MS));
        }
    }

    #[test]
    fn a_long_life_ends_the_row_of_short_ones() {
        let mut restarts = Restarts::new(u32::MAX);
        for _ in 0..10 {
            let _ = restarts.next_pause_ms(0);
        }
        assert_eq!(restarts.next_pause_ms(SHORT_LIFE_MS), Ok(0));
        assert_eq!(restarts.next_pause_ms(0), Ok(0));
    }

    #[test]
    fn no_more_than_the_limit_however_long_the_lives_until_the_operator_resets_it() {
        let mut restarts = Restarts::new(2);
        for _ in 0..2 {
            assert!(restarts.next_pause_ms(u64::MAX).is_ok());
        }
        assert_eq!(restarts.next_pause_ms(u64::MAX), Err(TooMany { limit: 2 }));
        assert_eq!(restarts.count(), 2);
        restarts.forget();
        assert_eq!(restarts.next_pause_ms(0), Ok(0));
        assert_eq!(Restarts::new(0).next_pause_ms(0), Err(TooMany { limit: 0 }));
    }
}
