//! Numbers of VMs and groups: given anew as late as possible, so that an old one rarely names something new.

use alloc::collections::BTreeSet;

use spin::Mutex;

/// The largest number of a group.
const MAX_GROUP: u16 = 4094;

/// The first number from `next` on, round and round, that is not taken.
#[must_use]
pub fn free_number(next: &mut u16, max: u16, is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    for _ in 0..max {
        let number = *next;
        *next = if number >= max { 1 } else { number + 1 };
        if !is_taken(number) {
            return Some(number);
        }
    }
    None
}

struct Taken {
    groups: BTreeSet<u16>,
    next_group: u16,
}

static TAKEN: Mutex<Taken> = Mutex::new(Taken {
    groups: BTreeSet::new(),
    next_group: 1,
});

/// A group's number, nobody else's until this is dropped.
#[derive(Debug)]
pub struct GroupNumber(u16);

impl GroupNumber {
    /// Takes one; `None` if there is none left.
    #[must_use]
    pub fn take() -> Option<GroupNumber> {
        let mut taken = TAKEN.lock();
        let Taken { groups, next_group } = &mut *taken;
        let number = free_number(next_group, MAX_GROUP, |number| groups.contains(&number))?;
        groups.insert(number);
        Some(GroupNumber(number))
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u16 {
        self.0
    }
}

impl Drop for GroupNumber {
    fn drop(&mut self) {
        TAKEN.lock().groups.remove(&self.0);
    }
}
