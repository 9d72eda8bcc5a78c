//! VMs as processes: how a child ended, as `wait_child` tells its parent, and what it is called.

use crate::NAME_BYTES;

/// Why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ChildEnd {
    /// By `exit`, with its code.
    Exited = 0,
    /// It was ended by a VM that it descends from, or by the operator.
    Killed = 1,
    /// By something that it did wrong: an exception that could not be delivered, an access where it has no memory.
    Fault = 2,
    /// It halted with nothing left that could wake it.
    Halted = 3,
    /// It switched itself off, or reset itself too often.
    SwitchedOff = 4,
}

impl ChildEnd {
    /// Every end.
    pub const ALL: [ChildEnd; 5] = [
        ChildEnd::Exited,
        ChildEnd::Killed,
        ChildEnd::Fault,
        ChildEnd::Halted,
        ChildEnd::SwitchedOff,
    ];

    /// The end that a number means.
    #[must_use]
    pub fn from_raw(raw: u32) -> Option<ChildEnd> {
        ChildEnd::ALL.into_iter().find(|end| *end as u32 == raw)
    }
}

/// What `wait_child` writes. All fields by the hypervisor, before the call answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ChildStatus {
    /// The child's number.
    pub vm: u32,
    /// [`ChildEnd`].
    pub end: u32,
    /// Its exit code; 0 unless it exited.
    pub code: i64,
}

/// The child that `wait_child` takes for "any".
pub const CHILD_ANY: u64 = u64::MAX;
/// How `kill` ends a VM: at once.
pub const KILL_NOW: u64 = 0;

const _: () = assert!(size_of::<ChildStatus>() == 16);

/// The name of a VM that descends from the one called `first`: that name, cut if need be, a dot, and its own number.
#[must_use]
pub fn child_name(first: &str, number: u32) -> [u8; NAME_BYTES] {
    let mut digits = [0; 10];
    let mut from = digits.len();
    let mut left = number;
    loop {
        from -= 1;
        digits[from] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    let digits = &digits[from..];
    // A zero stays behind it.
    let room = NAME_BYTES - 2 - digits.len();
    let mut end = first.len().min(room);
    while !first.is_char_boundary(end) {
        end -= 1;
    }
    let name = first.as_bytes()[..end].iter().chain(b".").chain(digits);
    let mut field = [0; NAME_BYTES];
    field
        .iter_mut()
        .zip(name)
        .for_each(|(to, from)| *to = *from);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_called_after_the_first_and_by_its_number() {
        for (first, number, name) in [
            ("web", 3, "web.3"),
            ("web", 0, "web.0"),
            (
                "a23456789012345678901234567890x",
                8190,
                "a2345678901234567890123456.8190",
            ),
            ("", u32::MAX, ".4294967295"),
        ] {
            assert_eq!(crate::unpack_name(&child_name(first, number)), name);
        }
    }

    #[test]
    fn every_end_survives_its_number() {
        for end in ChildEnd::ALL {
            assert_eq!(ChildEnd::from_raw(end as u32), Some(end));
        }
        assert_eq!(ChildEnd::from_raw(u32::MAX), None);
    }
}
