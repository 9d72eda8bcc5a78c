//! Caps: what a share may consume in a period, and who has consumed it.
//!
//! Nothing is done for everybody when a period ends: each budget knows the period up to which it was paid.

use crate::config::Share;
use crate::ids::Ticks;

/// Periods: how long they are, and which it is now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Periods {
    length: Ticks,
    index: u64,
}

impl Periods {
    /// Periods of that length, at a time.
    pub(crate) fn at(now: Ticks, length: Ticks) -> Periods {
        let length = length.max(1);
        Periods {
            length,
            index: now / length,
        }
    }

    /// The number of this one.
    pub(crate) fn index(self) -> u64 {
        self.index
    }

    /// What a share may consume in a period; `None` for no bound.
    fn allow(self, share: Share) -> Option<Ticks> {
        (share.cap != 0).then(|| {
            let ticks = u128::from(self.length) * u128::from(share.cap) / 100;
            Ticks::try_from(ticks).unwrap_or(Ticks::MAX).max(1)
        })
    }

    /// When this period ends.
    pub(crate) fn end(self) -> Ticks {
        self.index.saturating_add(1).saturating_mul(self.length)
    }
}

/// What has been consumed of a cap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Budget {
    /// Ticks consumed that no period up to `paid` has paid for.
    used: Ticks,
    paid: u64,
    /// It was spent, and whom it holds back has not been let go since.
    is_held: bool,
}

impl Budget {
    /// Ticks consumed that no period has paid for yet.
    fn used(self, share: Share, periods: Periods) -> Ticks {
        let gone = periods.index.saturating_sub(self.paid);
        if gone == 0 {
            return self.used;
        }
        let paid = periods.allow(share).unwrap_or(Ticks::MAX);
        self.used.saturating_sub(paid.saturating_mul(gone))
    }

    /// Takes note of what has been consumed up to now, under that share. Periods that have ended since pay for that, too: one
    /// that consumes all it may would else begin each period with nothing.
    pub(crate) fn spend(&mut self, ticks: Ticks, share: Share, periods: Periods) {
        self.used = self.used.saturating_add(ticks);
        self.used = self.used(share, periods);
        self.paid = periods.index;
        self.is_held |= self.is_spent(share, periods);
    }

    /// Another share holds from now on: periods that have ended pay as the old one says, and what was overdrawn under that is
    /// taken from this period, but not from later ones.
    pub(crate) fn change(&mut self, old: Share, new: Share, periods: Periods) {
        self.used = self.used(old, periods);
        self.paid = periods.index;
        if let Some(allowed) = periods.allow(new) {
            self.used = self.used.min(allowed);
        }
        self.is_held |= self.is_spent(new, periods);
    }

    /// Whether whom it held back is let go now.
    pub(crate) fn release(&mut self, share: Share, periods: Periods) -> bool {
        self.is_held && !self.is_spent(share, periods) && core::mem::take(&mut self.is_held)
    }

    /// What is left of this period; `None` for no bound.
    pub(crate) fn left(self, share: Share, periods: Periods) -> Option<Ticks> {
        let allowed = periods.allow(share)?;
        Some(allowed.saturating_sub(self.used(share, periods)))
    }

    pub(crate) fn is_spent(self, share: Share, periods: Periods) -> bool {
        self.left(share, periods) == Some(0)
    }
}
