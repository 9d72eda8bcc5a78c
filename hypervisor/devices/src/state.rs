//! What saved states have in common.
//!
//! The state of a part is a plain type beside it. `save` takes the part apart without `..`, so that a field that is forgotten does not
//! compile, and `restore` builds it anew from a state that anybody may have made: what a part relies on is checked there, once.
//! What follows from the configuration alone (masks, capabilities, sizes) is made again and not kept (docs/STATE.md).
//!
//! A state with such a type in it is serialised by its fields in their order. Another field, order or type is another version of the
//! record that it is in; a test holds the bytes of each version.

use alloc::string::{String, ToString};
use core::fmt;

/// A state that no part can have: somebody else made it, or it is of another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateError {
    /// The field, with those that it is in before it, and points between them.
    pub field: String,
    /// Its value, or how many it has.
    pub found: u64,
    /// What it has to be.
    pub wanted: &'static str,
}

impl StateError {
    /// An error at a field.
    #[must_use]
    pub fn new(field: &str, found: u64, wanted: &'static str) -> StateError {
        StateError {
            field: field.to_string(),
            found,
            wanted,
        }
    }

    /// The same error, seen from what `parent` is a field of.
    #[must_use]
    pub fn within(mut self, parent: impl fmt::Display) -> StateError {
        self.field = alloc::format!("{parent}.{}", self.field);
        self
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {:#x}, and has to be {}",
            self.field, self.found, self.wanted
        )
    }
}

impl core::error::Error for StateError {}

/// Refuses a field.
///
/// # Errors
/// [`StateError`] unless `holds`.
pub fn check(
    holds: bool,
    field: &str,
    found: impl Into<u64>,
    wanted: &'static str,
) -> Result<(), StateError> {
    if holds {
        Ok(())
    } else {
        Err(StateError::new(field, found.into(), wanted))
    }
}

/// How far all times of a state are moved: from the TSC at which it was saved to the one at which it goes on. Between two machines,
/// or two times that one was switched on, the TSCs have nothing in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscShift(i64);

impl TscShift {
    /// From one TSC to another.
    #[must_use]
    pub const fn between(saved: u64, now: u64) -> TscShift {
        TscShift(now.wrapping_sub(saved).cast_signed())
    }

    /// Ticks that are added.
    #[must_use]
    pub const fn ticks(self) -> i64 {
        self.0
    }

    /// The same time by the other TSC. What was before its 0 is then.
    #[must_use]
    pub const fn moved(self, tsc: u64) -> u64 {
        tsc.saturating_add_signed(self.0)
    }

    /// Moves a time that may lie before a TSC's 0.
    #[must_use]
    pub const fn moved_signed(self, tsc: i64) -> i64 {
        tsc.saturating_add(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_the_field_with_all_that_it_is_in() {
        let error = StateError::new("written", 0x1_0001, "at most 65536").within("channels[2]");
        let text = error.within("pit").to_string();
        assert_eq!(
            text,
            "pit.channels[2].written is 0x10001, and has to be at most 65536"
        );
        assert!(check(true, "field", 0_u8, "1").is_ok());
    }

    #[test]
    fn times_move_both_ways_and_stop_at_zero() {
        let back = TscShift::between(1_000, 10);
        assert_eq!(
            (back.ticks(), back.moved(1_500), back.moved(3)),
            (-990, 510, 0)
        );
        assert_eq!(back.moved_signed(3), -987);
        assert_eq!(TscShift::between(10, 1_000).moved(u64::MAX), u64::MAX);
        assert_eq!(TscShift::default().moved(7), 7);
    }
}
