//! INIT and start-up messages: whether a vCPU runs, waits to be started, or is to be reset, as others see it.
//!
//! A vCPU that runs is reset by the CPU that has it, some time after INIT was sent. A start-up message that comes before that
//! is kept and followed then, since its sender does not wait: real processors take INIT at once.
//!
//! Source: Intel SDM Vol. 3, "MP Initialization Protocol Algorithm for MP Systems", "Typical BSP Initialization Sequence".

use core::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

const WAITS: u32 = 0;
const RUNS: u32 = 1;
const TO_RESET: u32 = 2;
/// To be reset, and to begin at the page in the low byte.
const TO_START_AT: u32 = 0x100;

/// What of these messages has reached one vCPU. Without locks; whoever sends is on any CPU.
#[derive(Debug, Default)]
pub struct StartUp(AtomicU32);

impl StartUp {
    /// It waits for its start.
    #[must_use]
    pub const fn new() -> StartUp {
        StartUp(AtomicU32::new(WAITS))
    }

    /// Makes one step and says from where.
    fn change(&self, step: impl Fn(u32) -> u32) -> u32 {
        let change = |state| Some(step(state));
        match self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change)
        {
            Ok(before) | Err(before) => before,
        }
    }

    /// It has been started by other means than a message. An INIT that has come since it was found waiting stays.
    pub fn started(&self) {
        self.change(|state| if state == WAITS { RUNS } else { state });
    }

    /// It could not be started: it waits as before.
    pub fn not_started(&self) {
        self.0.store(WAITS, Ordering::SeqCst);
    }

    /// INIT. True if it runs and is to be told: one that waits is as after a reset, and one that is to be reset has been told. A
    /// start-up message that it was to follow is void.
    #[must_use]
    pub fn init(&self) -> bool {
        self.change(|state| if state == WAITS { WAITS } else { TO_RESET }) == RUNS
    }

    /// A start-up message for that page. True if it waits for one: the sender starts it, nobody else does. To one that runs it
    /// means nothing.
    #[must_use]
    pub fn start_at(&self, page: u8) -> bool {
        let before = self.change(|state| match state {
            WAITS => RUNS,
            TO_RESET => TO_START_AT | u32::from(page),
            other => other,
        });
        before == WAITS
    }

    /// Whether it is to be reset.
    #[inline]
    #[must_use]
    pub fn is_to_reset(&self) -> bool {
        self.0.load(Ordering::SeqCst) > RUNS
    }

    /// Whether it waits for its start.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.0.load(Ordering::SeqCst) == WAITS
    }

    /// It has been reset: the page to begin at, if it runs on at once; else it waits from now on.
    #[must_use]
    pub fn reset(&self) -> Option<u8> {
        let before = self.change(|state| match state & TO_START_AT {
            0 => WAITS,
            _ => RUNS,
        });
        (before & TO_START_AT != 0).then_some(before as u8)
    }
}

/// The same as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartUpState {
    /// It waits for its start.
    Waits,
    /// It runs.
    Runs,
    /// It is to be reset, and waits then.
    ToReset,
    /// It is to be reset, and begins then.
    ToStartAt {
        /// At this page.
        page: u8,
    },
}

impl StartUp {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> StartUpState {
        let StartUp(state) = self;
        match state.load(Ordering::SeqCst) {
            WAITS => StartUpState::Waits,
            RUNS => StartUpState::Runs,
            TO_RESET => StartUpState::ToReset,
            at => StartUpState::ToStartAt { page: at as u8 },
        }
    }

    /// One that goes on from there: any state is one.
    #[must_use]
    pub fn restore(state: StartUpState) -> StartUp {
        StartUp(AtomicU32::new(match state {
            StartUpState::Waits => WAITS,
            StartUpState::Runs => RUNS,
            StartUpState::ToReset => TO_RESET,
            StartUpState::ToStartAt { page } => TO_START_AT | u32::from(page),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn the_first_start_up_message_starts_one_that_waits_and_init_changes_nothing_before() {
        let vcpu = StartUp::new();
        assert!(!vcpu.init() && !vcpu.is_to_reset());
        assert!(vcpu.start_at(9));
        assert!(!vcpu.start_at(9), "the second finds it running");
        assert!(!vcpu.is_to_reset());
    }

    #[test]
    fn saved_and_restored_it_is_what_it_was() {
        let vcpu = StartUp::new();
        let mut seen = std::vec![vcpu.save()];
        vcpu.started();
        seen.push(vcpu.save());
        assert!(vcpu.init());
        seen.push(vcpu.save());
        assert!(!vcpu.start_at(0));
        seen.push(vcpu.save());
        let expected = [
            StartUpState::Waits,
            StartUpState::Runs,
            StartUpState::ToReset,
            StartUpState::ToStartAt { page: 0 },
        ];
        assert_eq!(seen, expected);
        for state in expected {
            assert_eq!(StartUp::restore(state).save(), state);
        }
        assert_eq!(StartUp::restore(expected[3]).reset(), Some(0));
    }

    #[test]
    fn one_that_runs_is_reset_and_waits() {
        let vcpu = StartUp::new();
        vcpu.started();
        assert!(vcpu.init() && vcpu.is_to_reset());
        assert_eq!(vcpu.reset(), None);
        assert!(!vcpu.is_to_reset() && vcpu.waits());
        assert!(vcpu.start_at(3));
    }

    #[test]
    fn a_start_up_message_before_the_reset_is_followed_after_it_and_another_init_voids_it() {
        let vcpu = StartUp::new();
        vcpu.started();
        assert!(vcpu.init());
        assert!(!vcpu.start_at(0) && !vcpu.start_at(7));
        assert_eq!(vcpu.reset(), Some(0), "the first of them");
        assert!(vcpu.init() && !vcpu.start_at(7));
        assert!(!vcpu.init(), "it has been told");
        assert_eq!(vcpu.reset(), None);
        vcpu.started();
        vcpu.not_started();
        assert!(vcpu.start_at(1));
    }

    #[test]
    fn an_init_between_the_message_and_the_start_is_not_forgotten() {
        let vcpu = StartUp::new();
        assert!(vcpu.start_at(4) && vcpu.init());
        vcpu.started();
        assert!(vcpu.is_to_reset());
        vcpu.not_started();
        vcpu.started();
        assert!(!vcpu.is_to_reset() && !vcpu.start_at(4));
    }

    #[test]
    fn every_round_of_init_and_start_up_starts_it_once() {
        const ROUNDS: u32 = 2_000;
        let vcpu = StartUp::new();
        vcpu.started();
        let done = AtomicBool::new(false);
        // Its CPU: resets it when it is to be; what that starts is counted. The sender counts what it starts itself.
        let (by_cpu, by_sender) = std::thread::scope(|scope| {
            let cpu = scope.spawn(|| {
                let mut started = 0;
                while !done.load(Ordering::SeqCst) || vcpu.is_to_reset() {
                    if vcpu.is_to_reset() {
                        started += u32::from(vcpu.reset().is_some());
                    } else {
                        std::thread::yield_now();
                    }
                }
                started
            });
            let mut started = 0;
            for round in 0..ROUNDS {
                assert!(vcpu.init(), "round {round}");
                started += u32::from(vcpu.start_at(1));
                while vcpu.is_to_reset() {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::SeqCst);
            (cpu.join().unwrap_or(0), started)
        });
        assert_eq!(by_cpu + by_sender, ROUNDS);
    }
}
