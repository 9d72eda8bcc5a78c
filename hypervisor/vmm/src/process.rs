//! The children of a VM: which there are, and how those ended that their parent has not been told of.
//!
//! Each child's end is told once. What is told is taken out only by [`Children::told`], after it has been written where the guest
//! wants it.
//!
//! Concurrency: none; the caller locks.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use guest_abi::{ChildEnd, ChildStatus};

use crate::outcome::Cause;

/// The children of a VM.
#[derive(Clone, Debug, Default)]
pub struct Children {
    alive: BTreeSet<u16>,
    /// In the order of their ends.
    ended: VecDeque<ChildStatus>,
}

/// What there is of a child that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It has ended so.
    Ended(ChildStatus),
    /// It lives, or one of those that are meant does.
    Alive,
    /// There is none such.
    Nobody,
}

impl Children {
    /// A child is made.
    pub fn born(&mut self, child: u16) {
        self.alive.insert(child);
    }

    /// A child has ended. One that is not known is not told of.
    pub fn ended(&mut self, child: u16, cause: Cause) {
        if self.alive.remove(&child) {
            let (end, code) = end_of(cause);
            self.ended.push_back(ChildStatus {
                vm: child.into(),
                end: end as u32,
                code,
            });
        }
    }

    /// A child could not be made after all.
    pub fn not_born(&mut self, child: u16) {
        self.alive.remove(&child);
    }

    /// Looks for a child, or for any.
    #[must_use]
    pub fn find(&self, child: Option<u16>) -> Found {
        let is_meant = |number: u32| child.is_none_or(|child| u32::from(child) == number);
        if let Some(status) = self.ended.iter().find(|status| is_meant(status.vm)) {
            return Found::Ended(*status);
        }
        if self.alive.iter().any(|alive| is_meant((*alive).into())) {
            return Found::Alive;
        }
        Found::Nobody
    }

    /// The parent knows of it. False if it knew already: another vCPU was faster.
    #[must_use]
    pub fn told(&mut self, status: &ChildStatus) -> bool {
        let place = self.ended.iter().position(|ended| ended == status);
        place.and_then(|place| self.ended.remove(place)).is_some()
    }

    /// Whether a child lives.
    #[must_use]
    pub fn is_alive(&self, child: u16) -> bool {
        self.alive.contains(&child)
    }

    /// Numbers of children that live or have not been waited for, in ascending order.
    #[must_use]
    pub fn numbers(&self) -> Vec<u32> {
        let alive = self.alive.iter().map(|child| u32::from(*child));
        let mut numbers: Vec<u32> = alive
            .chain(self.ended.iter().map(|status| status.vm))
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

/// How a parent is told of a cause.
fn end_of(cause: Cause) -> (ChildEnd, i64) {
    let end = match cause {
        Cause::Exit(code) => return (ChildEnd::Exited, code),
        Cause::Killed | Cause::Destroyed | Cause::KilledByParent => ChildEnd::Killed,
        Cause::HaltedForever => ChildEnd::Halted,
        Cause::PowerOff | Cause::Reset | Cause::ResetTooOften { .. } | Cause::OperatorReset => {
            ChildEnd::SwitchedOff
        }
        Cause::TripleFault
        | Cause::MemoryViolation { .. }
        | Cause::Misconfiguration { .. }
        | Cause::UnknownExit(_)
        | Cause::EntryFailure(_)
        | Cause::InstructionFailure(_) => ChildEnd::Fault,
    };
    (end, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_told_once_in_the_order_of_the_ends() {
        let mut children = Children::default();
        assert_eq!(children.find(None), Found::Nobody);
        for child in [3, 5, 9] {
            children.born(child);
        }
        assert_eq!(children.find(None), Found::Alive);
        children.ended(9, Cause::Exit(-4));
        children.ended(3, Cause::TripleFault);
        // Nobody's child, and one that has ended already.
        children.ended(4, Cause::Exit(1));
        children.ended(9, Cause::Exit(2));
        assert_eq!(children.find(Some(5)), Found::Alive);
        assert_eq!(children.find(Some(4)), Found::Nobody);
        assert_eq!(children.numbers(), [3, 5, 9]);
        let exited = ChildStatus {
            vm: 9,
            end: ChildEnd::Exited as u32,
            code: -4,
        };
        let Found::Ended(first) = children.find(None) else {
            panic!("two have ended");
        };
        assert_eq!(first, exited);
        assert!(children.told(&first));
        assert!(!children.told(&first));
        assert_eq!(children.find(Some(9)), Found::Nobody);
        let Found::Ended(second) = children.find(Some(3)) else {
            panic!("it has ended");
        };
        assert_eq!((second.end, second.code), (ChildEnd::Fault as u32, 0));
        assert!(children.told(&second));
        children.not_born(5);
        assert_eq!(children.find(None), Found::Nobody);
    }
}
