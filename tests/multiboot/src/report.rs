//! What the cases found.

use core::fmt::{Debug, Display};

use crate::power;
use crate::serial::line;

/// Counts and prints.
pub(crate) struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    pub(crate) fn new() -> Report {
        Report {
            passed: 0,
            failed: 0,
        }
    }

    /// How many were seen.
    pub(crate) fn count(&self) -> u32 {
        self.passed + self.failed
    }

    /// A case holds.
    pub(crate) fn pass(&mut self, case: &str) {
        self.passed += 1;
        line(format_args!("PASS {case}"));
    }

    /// A case does not.
    pub(crate) fn fail(&mut self, case: &str, why: impl Display) {
        self.failed += 1;
        line(format_args!("FAIL {case}: {why}"));
    }

    /// A case holds if that is true.
    pub(crate) fn check(&mut self, case: &str, holds: bool, found: impl Debug) {
        if holds {
            self.pass(case);
        } else {
            self.fail(case, format_args!("found {found:x?}"));
        }
    }

    /// A case holds if the two are the same.
    pub(crate) fn equal<T: PartialEq + Debug>(&mut self, case: &str, found: T, wanted: T) {
        if found == wanted {
            self.pass(case);
        } else {
            self.fail(case, format_args!("{found:x?} and not {wanted:x?}"));
        }
    }

    /// Ends the VM; its code is the number of failures.
    pub(crate) fn end(self) -> ! {
        line(format_args!(
            "{} passed, {} failed",
            self.passed, self.failed
        ));
        power::end(self.failed)
    }
}
