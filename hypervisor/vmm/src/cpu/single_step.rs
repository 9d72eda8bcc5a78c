//! One instruction of a guest by itself: which of the guest's state is other meanwhile, and what becomes of it afterwards.
//!
//! RFLAGS.TF ends the run behind the instruction; every exception ends it, too, since what the CPU would push for a handler has
//! flags in it that are not the guest's. (The monitor trap flag would do this without touching the guest's flags; not every CPU
//! has it, and that of an emulator has no effect.) With IF clear no interrupt comes first.
//!
//! Source: Intel SDM Vol. 3, "Single-Step Exception Condition", "Checks on Guest Non-Register State" (pending debug exceptions),
//! "Interruptibility State"; Vol. 2, "POPF", "IRET" (who may load IF).

use x86_defs::cr::Rflags;
use x86_defs::interrupt::Interruptibility;

use super::debug::{BTF, SINGLE_STEP};

/// What an instruction does beside what most do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that counts here.
    Usual,
    /// It loads TF, and IF where the guest may: POPF, IRET, SYSRET.
    LoadsFlags,
    /// It is INT: it pushes the flags, and so is injected as an event instead.
    Interrupts {
        /// Vector.
        vector: u8,
    },
}

/// The state that is other while an instruction runs by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepState {
    /// RFLAGS.
    pub rflags: u64,
    /// Interruptibility state.
    pub interruptibility: Interruptibility,
    /// Pending debug exceptions.
    pub pending_debug: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
}

/// What follows from an instruction that ran to its end.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// RFLAGS.
    pub rflags: u64,
    /// Interruptibility state.
    pub interruptibility: Interruptibility,
    /// Pending debug exceptions: a #DB of the guest's own, which the next entry delivers.
    pub pending_debug: u64,
}

/// Bit of the pending debug exceptions: one of the breakpoints is enabled.
const ENABLED_BREAKPOINT: u64 = 1 << 12;
/// Bits of DR6: breakpoints.
const BREAKPOINTS: u64 = 0xF;
/// IF and TF.
const BORROWED: u64 = Rflags::TF.bits() | Rflags::IF.bits();

impl StepState {
    /// The state for the run.
    #[must_use]
    pub fn for_step(self) -> StepState {
        let blocked = Interruptibility::BLOCKED_BY_STI | Interruptibility::BLOCKED_BY_MOV_SS;
        StepState {
            // RF: breakpoints on the instruction itself have been looked at when it was begun.
            rflags: self.rflags & !Rflags::IF.bits() | Rflags::TF.bits() | Rflags::RF.bits(),
            interruptibility: self.interruptibility - blocked,
            pending_debug: 0,
            debugctl: self.debugctl & !BTF,
        }
    }

    /// Pending debug exceptions for an instruction that is begun again because it was not carried out: no step has been made, but
    /// the entry demands the bit of one of a guest that steps itself while it is blocked by STI or MOV SS.
    #[must_use]
    pub fn pending_debug_before(self) -> u64 {
        let blocked = Interruptibility::BLOCKED_BY_STI | Interruptibility::BLOCKED_BY_MOV_SS;
        let is_demanded = self.interruptibility.intersects(blocked)
            && self.rflags & Rflags::TF.bits() != 0
            && self.debugctl & BTF == 0;
        let step = if is_demanded { SINGLE_STEP } else { 0 };
        self.pending_debug & !SINGLE_STEP | step
    }

    /// The guest's flags after a fault: those of the run, but what was borrowed.
    #[must_use]
    pub fn flags_after_fault(self, rflags: u64) -> u64 {
        rflags & !BORROWED | self.rflags & BORROWED
    }

    /// What follows from the instruction's end. `rflags`, `interruptibility` and `causes` (of the #DB) are what the run left,
    /// `cpl` is the privilege level before it, `has_branched` whether it goes on elsewhere than behind the instruction.
    pub fn completed(self, effect: Effect, cpl: u8, dr7: u64, run: Run) -> Completed {
        let rflags = match effect {
            Effect::LoadsFlags => {
                let iopl = (self.rflags & Rflags::IOPL.bits()) >> 12;
                let kept = if u64::from(cpl) <= iopl {
                    0
                } else {
                    Rflags::IF.bits()
                };
                run.rflags & !kept | self.rflags & kept
            }
            Effect::Usual | Effect::Interrupts { .. } => self.flags_after_fault(run.rflags),
        };
        let enabled = (0..4)
            .filter(|breakpoint| dr7 >> (breakpoint * 2) & 3 != 0)
            .fold(0, |mask, breakpoint| mask | 1 << breakpoint);
        let mut causes = 0;
        if run.causes & BREAKPOINTS & enabled != 0 {
            causes |= run.causes & BREAKPOINTS | ENABLED_BREAKPOINT;
        }
        if self.pending_debug & ENABLED_BREAKPOINT != 0 {
            causes |= self.pending_debug & BREAKPOINTS | ENABLED_BREAKPOINT;
        }
        let steps = self.rflags & Rflags::TF.bits() != 0;
        if steps && (self.debugctl & BTF == 0 || run.has_branched) {
            causes |= SINGLE_STEP;
        }
        Completed {
            rflags,
            interruptibility: run.interruptibility,
            pending_debug: causes,
        }
    }
}

/// How a run was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// RFLAGS.
    pub rflags: u64,
    /// Interruptibility state.
    pub interruptibility: Interruptibility,
    /// Causes of the #DB that ended it, as bits of DR6.
    pub causes: u64,
    /// It goes on elsewhere than behind the instruction.
    pub has_branched: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Interruptibility = Interruptibility::empty();
    const TF: u64 = Rflags::TF.bits();
    const IF: u64 = Rflags::IF.bits();
    const CARRY: u64 = 1;

    fn guest(rflags: u64) -> StepState {
        StepState {
            rflags,
            interruptibility: NONE,
            pending_debug: 0,
            debugctl: 0,
        }
    }

    fn run(rflags: u64) -> Run {
        Run {
            rflags,
            interruptibility: NONE,
            causes: SINGLE_STEP,
            has_branched: false,
        }
    }

    #[test]
    fn what_is_borrowed_comes_back_and_the_instructions_flags_stay() {
        for own in [0, IF, TF, IF | TF] {
            let before = guest(own | 2);
            let during = before.for_step();
            assert_eq!(during.rflags & (IF | TF), TF);
            let after = before.completed(Effect::Usual, 0, 0, run(during.rflags | CARRY));
            assert_eq!(after.rflags & (IF | TF | CARRY), own | CARRY);
            // Only a guest that steps itself is told of a step.
            let step = if own & TF != 0 { SINGLE_STEP } else { 0 };
            assert_eq!(after.pending_debug, step);
            assert_eq!(before.flags_after_fault(during.rflags) & (IF | TF), own);
        }
    }

    #[test]
    fn who_loads_flags_gets_them_but_if_only_with_the_right() {
        let iopl = |level: u64| level << 12;
        for (cpl, level, before, loaded, is_on) in [
            (0, 0, 0, IF, true),
            (0, 0, IF, 0, false),
            (3, 0, 0, IF, false),
            (3, 0, IF, 0, true),
            (3, 3, 0, IF, true),
        ] {
            let state = guest(before | iopl(level));
            let after = state.completed(Effect::LoadsFlags, cpl, 0, run(loaded | TF));
            assert_eq!(after.rflags & IF != 0, is_on, "{cpl} {level}");
            assert_eq!(after.rflags & TF, TF);
            assert_eq!(after.pending_debug, 0);
        }
    }

    #[test]
    fn breakpoints_count_if_they_are_enabled() {
        const B: u64 = ENABLED_BREAKPOINT;
        let hit = Run {
            causes: SINGLE_STEP | 0b0110,
            ..run(2)
        };
        let causes =
            |state: StepState, dr7| state.completed(Effect::Usual, 0, dr7, hit).pending_debug;
        assert_eq!(causes(guest(2), 0), 0);
        assert_eq!(causes(guest(2), 0b11), 0);
        assert_eq!(causes(guest(2), 1 << 2), B | 0b0110);
        assert_eq!(causes(guest(2), 1 << 5), B | 0b0110);
        assert_eq!(causes(guest(2 | TF), 1 << 5), B | 0b0110 | SINGLE_STEP);
        // What waited behind a MOV SS comes with it.
        let waiting = StepState {
            pending_debug: ENABLED_BREAKPOINT | 1,
            ..guest(2)
        };
        assert_eq!(causes(waiting, 0), B | 1);
        assert_eq!(waiting.for_step().pending_debug, 0);
    }

    #[test]
    fn a_guest_that_traps_branches_only_is_told_of_those() {
        let state = StepState {
            debugctl: BTF,
            ..guest(TF)
        };
        assert_eq!(state.for_step().debugctl, 0);
        let straight = state.completed(Effect::Usual, 0, 0, run(TF));
        assert_eq!(straight.pending_debug, 0);
        let branch = Run {
            has_branched: true,
            ..run(TF)
        };
        let after = state.completed(Effect::Usual, 0, 0, branch);
        assert_eq!(after.pending_debug, SINGLE_STEP);
    }

    #[test]
    fn nothing_is_blocked_during_the_run_but_nmis() {
        let state = StepState {
            interruptibility: Interruptibility::BLOCKED_BY_MOV_SS
                | Interruptibility::BLOCKED_BY_NMI,
            ..guest(2)
        };
        let during = state.for_step();
        assert_eq!(during.interruptibility, Interruptibility::BLOCKED_BY_NMI);
    }

    #[test]
    fn an_instruction_that_is_begun_again_has_made_no_step() {
        let noted = StepState {
            pending_debug: SINGLE_STEP | ENABLED_BREAKPOINT | 1,
            ..guest(TF)
        };
        assert_eq!(noted.pending_debug_before(), ENABLED_BREAKPOINT | 1);
        // "Checks on Guest Non-Register State".
        let blocked = StepState {
            interruptibility: Interruptibility::BLOCKED_BY_STI,
            ..guest(TF)
        };
        assert_eq!(blocked.pending_debug_before(), SINGLE_STEP);
    }
}
