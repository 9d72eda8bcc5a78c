//! Interrupts on their way to a vCPU: others post vectors without a lock, the vCPU's CPU collects them into its local APIC before
//! it enters the guest.
//!
//! The order is that of posted interrupts (SDM volume 3, "Posted-Interrupt Processing"): a poster stores the vector, then sets
//! `news`; the collector takes `news` away, then the vectors. Whoever turns `news` on makes the vCPU look; a vector that is posted
//! while it is on is collected by that same look.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use nagaya_devices::apic::Trigger;
use nagaya_devices::state::{StateError, check};
use serde::{Deserialize, Serialize};

/// Vectors that a vCPU has not collected yet, and the word by which senders find their recipients.
#[derive(Debug, Default)]
pub struct Posted {
    vectors: [AtomicU64; 4],
    /// Those of them that are level-triggered: by the last post.
    levels: [AtomicU64; 4],
    /// NMIs that nobody has taken. A CPU keeps two of them: one that it takes at once, and one latched while that is in service.
    nmis: AtomicU8,
    outstanding_notification: AtomicBool,
    route: AtomicU64,
}

/// NMIs that wait at most: of more the others are lost, as in a CPU.
pub const MAX_NMIS: u8 = 2;

/// NMIs that wait after `more` have come to `waiting`. While one is in service only one is latched (SDM Vol. 3, "Handling Multiple
/// NMIs").
#[must_use]
pub const fn latched(waiting: u8, more: u8, is_in_service: bool) -> u8 {
    let most = if is_in_service {
        MAX_NMIS - 1
    } else {
        MAX_NMIS
    };
    let sum = waiting.saturating_add(more);
    if sum < most { sum } else { most }
}

impl Posted {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Posted {
        Posted {
            vectors: [const { AtomicU64::new(0) }; 4],
            levels: [const { AtomicU64::new(0) }; 4],
            nmis: AtomicU8::new(0),
            outstanding_notification: AtomicBool::new(false),
            route: AtomicU64::new(0),
        }
    }

    /// Posts a vector. True if the vCPU is to be told: nobody else has told it since it looked last.
    #[must_use]
    pub fn post(&self, vector: u8, trigger: Trigger) -> bool {
        let is_level = trigger == Trigger::Level;
        let (word, bit) = (usize::from(vector >> 6), 1 << (vector & 63));
        if let (Some(vectors), Some(levels)) = (self.vectors.get(word), self.levels.get(word)) {
            // Before the vector, so that its collector sees it. Nearly always it is as it was: no write.
            if (levels.load(Ordering::SeqCst) & bit != 0) != is_level {
                if is_level {
                    levels.fetch_or(bit, Ordering::SeqCst);
                } else {
                    levels.fetch_and(!bit, Ordering::SeqCst);
                }
            }
            vectors.fetch_or(bit, Ordering::SeqCst);
        }
        self.request_recheck()
    }

    /// Posts an NMI. True if the vCPU is to be told, by something that its interrupt flag does not hold back: nobody has since it
    /// took the last one.
    #[must_use]
    pub fn post_nmi(&self) -> bool {
        let more = |count: u8| (count < MAX_NMIS).then_some(count + 1);
        let before = self
            .nmis
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        let is_new = before == Ok(0);
        // Also if the NMI was there: it may have been taken since, and whoever turns the news on has to tell.
        let turned_on = self.request_recheck();
        is_new || turned_on
    }

    /// Takes the NMIs away: how many there are, at most [`MAX_NMIS`].
    #[inline]
    #[must_use]
    pub fn take_nmis(&self) -> u8 {
        if self.nmis.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.nmis.swap(0, Ordering::SeqCst)
    }

    /// Forgets what was posted: the vCPU has been reset.
    pub fn clear(&self) {
        self.collect(|_, _| ());
        let _ = self.take_nmis();
    }

    /// Makes the vCPU look, with nothing posted: something else than vectors has changed. True if it is to be told.
    #[must_use]
    pub fn request_recheck(&self) -> bool {
        !self.outstanding_notification.swap(true, Ordering::SeqCst)
    }

    /// Whether there is something to collect.
    #[inline]
    #[must_use]
    pub fn has_outstanding(&self) -> bool {
        self.outstanding_notification.load(Ordering::SeqCst)
    }

    /// Collects what was posted, each vector once, and how it is triggered.
    pub fn collect(&self, mut take: impl FnMut(u8, Trigger)) {
        if !self.outstanding_notification.swap(false, Ordering::SeqCst) {
            return;
        }
        let words = self.vectors.iter().zip(&self.levels);
        for ((word, levels), first) in words.zip([0_u8, 64, 128, 192]) {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::SeqCst);
            let levels = levels.load(Ordering::SeqCst);
            while bits != 0 {
                let bit = bits.trailing_zeros();
                let trigger = if levels >> bit & 1 != 0 {
                    Trigger::Level
                } else {
                    Trigger::Edge
                };
                take(first + bit as u8, trigger);
                bits &= bits - 1;
            }
        }
    }

    /// How messages find the vCPU, as its CPU published it (`nagaya_devices::apic::Route`).
    #[inline]
    #[must_use]
    pub fn route(&self) -> u64 {
        self.route.load(Ordering::Acquire)
    }

    /// Publishes that.
    #[inline]
    pub fn publish_route(&self, route: u64) {
        self.route.store(route, Ordering::Release);
    }
}

/// What waits, as a value. Senders' word for the route follows from the APIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostedState {
    vectors: [u64; 4],
    levels: [u64; 4],
    nmis: u8,
    outstanding_notification: bool,
}

impl Posted {
    /// What waits. Nobody posts meanwhile: else it is one of several moments.
    #[must_use]
    pub fn save(&self) -> PostedState {
        let Posted {
            vectors,
            levels,
            nmis,
            outstanding_notification,
            // `LocalApic::route` says it.
            route: _,
        } = self;
        let all = |words: &[AtomicU64; 4]| words.each_ref().map(|word| word.load(Ordering::SeqCst));
        PostedState {
            vectors: all(vectors),
            levels: all(levels),
            nmis: nmis.load(Ordering::SeqCst),
            outstanding_notification: outstanding_notification.load(Ordering::SeqCst),
        }
    }

    /// One with that waiting. The route is published behind it.
    ///
    /// # Errors
    /// [`StateError`]: more NMIs wait than can.
    pub fn restore(state: &PostedState) -> Result<Posted, StateError> {
        let PostedState {
            vectors,
            levels,
            nmis,
            outstanding_notification,
        } = state;
        check(*nmis <= MAX_NMIS, "nmis", *nmis, "at most 2")?;
        Ok(Posted {
            vectors: vectors.map(AtomicU64::new),
            levels: levels.map(AtomicU64::new),
            nmis: AtomicU8::new(*nmis),
            outstanding_notification: AtomicBool::new(*outstanding_notification),
            route: AtomicU64::new(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::vec::Vec;

    fn collected(posted: &Posted) -> Vec<u8> {
        let mut vectors = Vec::new();
        posted.collect(|vector, _| vectors.push(vector));
        vectors
    }

    #[test]
    fn every_vector_is_collected_once_and_only_the_first_poster_tells_the_vcpu() {
        let posted = Posted::new();
        let tellers = (0..=u8::MAX)
            .filter(|vector| posted.post(*vector, Trigger::Edge))
            .count();
        assert_eq!(tellers, 1);
        assert!(!posted.post(7, Trigger::Edge));
        assert_eq!(collected(&posted), (0..=u8::MAX).collect::<Vec<_>>());
        assert!(!posted.has_outstanding());
        assert_eq!(collected(&posted), []);
        assert!(
            posted.post(7, Trigger::Edge),
            "after a look there is news again"
        );
    }

    #[test]
    fn the_last_post_says_how_a_vector_is_triggered_and_a_poke_brings_none() {
        let posted = Posted::new();
        let posts = [
            (9, Trigger::Level),
            (70, Trigger::Edge),
            (255, Trigger::Level),
        ];
        for (vector, trigger) in posts {
            let _ = posted.post(vector, trigger);
        }
        let mut seen = Vec::new();
        posted.collect(|vector, trigger| seen.push((vector, trigger)));
        assert_eq!(seen, posts);
        let _ = posted.post(9, Trigger::Edge);
        posted.collect(|vector, trigger| seen.push((vector, trigger)));
        assert_eq!(seen.last(), Some(&(9, Trigger::Edge)));
        assert!(posted.request_recheck() && !posted.request_recheck() && posted.has_outstanding());
        assert_eq!(collected(&posted), []);
    }

    #[test]
    fn what_waits_is_saved_and_restored() {
        let posted = Posted::new();
        assert!(posted.post(9, Trigger::Level) && !posted.post(200, Trigger::Edge));
        assert!(posted.post_nmi());
        let state = posted.save();
        let restored = Posted::restore(&state).expect("is one");
        assert_eq!(restored.save(), state);
        assert!(restored.has_outstanding() && restored.take_nmis() == 1);
        let mut seen = Vec::new();
        restored.collect(|vector, trigger| seen.push((vector, trigger)));
        assert_eq!(seen, [(9, Trigger::Level), (200, Trigger::Edge)]);
        let error = Posted::restore(&PostedState { nmis: 3, ..state }).expect_err("is refused");
        assert_eq!(error.field, "nmis");
    }

    #[test]
    fn an_nmi_is_taken_once_and_a_reset_forgets_all() {
        let posted = Posted::new();
        assert!(posted.post_nmi() && !posted.post_nmi());
        assert!(posted.has_outstanding() && collected(&posted).is_empty());
        assert_eq!((posted.take_nmis(), posted.take_nmis()), (2, 0));
        let _ = posted.post(50, Trigger::Edge);
        assert!(posted.post_nmi(), "the news was there, the NMI was not");
        assert_eq!(collected(&posted), [50]);
        assert!(posted.post_nmi(), "the NMI was there, the news was not");
        assert!(posted.take_nmis() == 2 && posted.has_outstanding());
        assert_eq!(collected(&posted), []);
        assert!(posted.post_nmi());
        let _ = posted.post(40, Trigger::Edge);
        posted.clear();
        assert!(posted.take_nmis() == 0 && !posted.has_outstanding());
        assert_eq!(collected(&posted), []);
    }

    #[test]
    fn two_nmis_before_the_first_is_taken_are_two_and_in_its_handler_one_is_latched() {
        let posted = Posted::new();
        for _ in 0..5 {
            let _ = posted.post_nmi();
        }
        assert_eq!(posted.take_nmis(), 2);
        assert_eq!((latched(0, 2, false), latched(1, 1, false)), (2, 2));
        assert_eq!((latched(0, 2, true), latched(1, 2, true)), (1, 1));
        assert_eq!(latched(2, 2, false), 2);
    }

    #[test]
    fn no_vector_is_lost_between_posters_and_the_collector() {
        const ROUNDS: u32 = 20_000;
        let posted = Posted::new();
        let (told, seen) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for vector in [33_u8, 97] {
                let (posted, told, seen) = (&posted, &told, &seen);
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        if posted.post(vector, Trigger::Edge) {
                            told.fetch_add(1, Ordering::SeqCst);
                        }
                        // The vector must be collected by somebody who was told, before the next.
                        while posted.vectors[usize::from(vector >> 6)].load(Ordering::SeqCst) != 0 {
                            std::thread::yield_now();
                        }
                    }
                    seen.fetch_add(1, Ordering::SeqCst);
                });
            }
            let mut looked = 0;
            while seen.load(Ordering::SeqCst) < 2 {
                // Looks only when it was told to, as a vCPU that sleeps does.
                if told.load(Ordering::SeqCst) > looked {
                    looked += 1;
                    posted.collect(|_, _| ());
                } else {
                    std::thread::yield_now();
                }
            }
        });
        assert!(!posted.has_outstanding() || collected(&posted).is_empty());
    }
}
