//! How much a guest may say on a slow line: a token bucket, and a count of what found no place.
//!
//! Once a guest has said too much it is shut up until a good part of its allowance is there again. So the line tells rarely that
//! something is missing, and what is told is whole for a while.

use nagaya_devices::rate::{Bucket, Rate};

/// What a line, of which others have a share, allows each of those who speak on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Bytes that all together may send ...
    pub bytes: u64,
    /// ... in so many ticks.
    pub per_ticks: u64,
    /// Bytes that each may send at once after a pause.
    pub burst_bytes: u64,
}

/// What becomes of a piece of output.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is sent. So many bytes before it were not, which is to be told first, unless there are none.
    Passes {
        /// The bytes.
        dropped: u64,
    },
    /// It is not, and has been counted.
    Dropped,
}

/// One guest's part of a line.
#[derive(Debug)]
pub struct Allowance {
    line: Line,
    bucket: Bucket,
    speakers: u64,
    is_shut: bool,
    dropped: u64,
}

impl Allowance {
    /// An allowance that nothing has been taken from.
    #[must_use]
    pub fn new(line: Line, now: u64) -> Allowance {
        let rate = Rate {
            bytes: line.bytes,
            per_ticks: line.per_ticks,
            burst_bytes: line.burst_bytes,
        };
        Allowance {
            line,
            bucket: Bucket::full(rate, now),
            speakers: 1,
            is_shut: false,
            dropped: 0,
        }
    }

    /// Asks for `bytes` on the line, which so many speakers share.
    pub fn admit(&mut self, bytes: u32, speakers: u64, now: u64) -> Admission {
        let speakers = speakers.max(1);
        if speakers != self.speakers {
            self.speakers = speakers;
            self.bucket.set_bytes(self.line.bytes / speakers, now);
        }
        if self.refuse_if_shut(bytes.into(), now) {
            return Admission::Dropped;
        }
        if !self.bucket.take(bytes, now) {
            self.is_shut = true;
            self.dropped = self.dropped.saturating_add(bytes.into());
            return Admission::Dropped;
        }
        Admission::Passes {
            dropped: self.take_dropped(),
        }
    }

    /// Whether the guest is shut up still: then so many bytes of it have been dropped, without a look at what they are.
    pub fn refuse_if_shut(&mut self, bytes: u64, now: u64) -> bool {
        if self.is_shut && self.bucket.has(self.line.burst_bytes / 2, now) {
            self.is_shut = false;
        }
        if self.is_shut {
            self.dropped = self.dropped.saturating_add(bytes);
        }
        self.is_shut
    }

    /// Bytes that had been admitted found no room after all: the guest is shut up, and they count as dropped.
    pub fn drop_admitted(&mut self, bytes: u64) {
        self.is_shut = true;
        self.dropped = self.dropped.saturating_add(bytes);
    }

    /// Bytes dropped that nobody has been told of.
    #[must_use]
    pub fn take_dropped(&mut self) -> u64 {
        core::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const LINE: Line = Line {
        bytes: 100,
        per_ticks: 1000,
        burst_bytes: 500,
    };

    #[test]
    fn after_too_much_it_is_silent_until_half_a_burst_is_there_and_then_told_once() {
        let mut allowance = Allowance::new(LINE, 0);
        for _ in 0..10 {
            let found = allowance.admit(50, 1, 0);
            assert_eq!(found, Admission::Passes { dropped: 0 });
        }
        assert_eq!(allowance.admit(50, 1, 0), Admission::Dropped);
        // 249 bytes are there.
        assert_eq!(allowance.admit(1, 1, 2490), Admission::Dropped);
        let found = allowance.admit(50, 1, 2500);
        assert_eq!(found, Admission::Passes { dropped: 51 });
        let found = allowance.admit(50, 1, 2500);
        assert_eq!(found, Admission::Passes { dropped: 0 });
    }

    #[test]
    fn what_found_no_room_is_told_and_the_guest_is_shut_up() {
        let mut allowance = Allowance::new(LINE, 0);
        assert!(!allowance.refuse_if_shut(1, 0));
        assert_eq!(allowance.admit(400, 1, 0), Admission::Passes { dropped: 0 });
        allowance.drop_admitted(400);
        assert!(allowance.refuse_if_shut(30, 0));
        // 250 bytes are there again.
        assert!(!allowance.refuse_if_shut(30, 1500));
        assert_eq!(
            allowance.admit(10, 1, 1500),
            Admission::Passes { dropped: 430 }
        );
    }

    proptest! {
        /// However many speak, and come and go: in the long run no more passes than the line carries, each gets its burst, and
        /// every byte either passes or is told to be missing.
        #[test]
        fn the_line_is_never_kept(
            speakers in 1..9_usize,
            steps in prop::collection::vec((0..9_usize, 1..300_u32, 0..40_u64), 1..400),
        ) {
            let mut all: Vec<_> = (0..speakers).map(|_| Allowance::new(LINE, 0)).collect();
            // Everybody knows how many there are from the start.
            for allowance in &mut all {
                prop_assert_eq!(allowance.admit(0, speakers as u64, 0), Admission::Passes { dropped: 0 });
            }
            let (mut now, mut passed, mut said, mut told) = (0, 0_u64, 0_u64, 0_u64);
            for (who, bytes, wait) in steps {
                now += wait;
                said += u64::from(bytes);
                let allowance = &mut all[who % speakers];
                if let Admission::Passes { dropped } = allowance.admit(bytes, speakers as u64, now) {
                    passed += u64::from(bytes);
                    told += dropped;
                }
                let most = LINE.burst_bytes * speakers as u64 + LINE.bytes * now / LINE.per_ticks;
                prop_assert!(passed <= most, "{passed} of {most}");
            }
            told += all.iter_mut().map(Allowance::take_dropped).sum::<u64>();
            prop_assert_eq!(passed + told, said);
        }
    }
}
