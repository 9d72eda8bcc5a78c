//! The group page and the answer of the `group_info` hypercall.

use crate::{MAX_MEMBERS, NAME_BYTES};

/// `GroupPage::magic`: "NAGAYAGP" as little-endian bytes.
pub const GROUP_MAGIC: u64 = u64::from_le_bytes(*b"NAGAYAGP");

/// State of a member, as its entry's `state` holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MemberState {
    /// No VM has this index, or it was never started.
    Absent = 0,
    /// Created, not yet entered.
    Created = 1,
    /// It runs, or is blocked: it can be rung.
    Running = 2,
    /// It ended by the `exit` hypercall; `exit_code` holds the code.
    Exited = 3,
    /// It was ended by the hypervisor (triple fault, violation, panic, kill).
    Died = 4,
}

impl MemberState {
    /// The state a raw word means; `None` for a word outside the contract.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<MemberState> {
        Some(match raw {
            0 => MemberState::Absent,
            1 => MemberState::Created,
            2 => MemberState::Running,
            3 => MemberState::Exited,
            4 => MemberState::Died,
            _ => return None,
        })
    }

    /// Whether a doorbell can still reach the member.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        matches!(self, MemberState::Created | MemberState::Running)
    }
}

/// One member in the group page. All fields are written by the hypervisor only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MemberEntry {
    /// A [`MemberState`]; changed by one store, so that a peer's death is seen by a plain load.
    pub state: u32,
    /// The VM's number.
    pub vm_id: u32,
    /// 1 while the member has the region mapped.
    pub mapped: u32,
    /// How many vCPUs the member has.
    pub vcpus: u32,
    /// The code given to `exit`, valid in state `Exited`.
    pub exit_code: i64,
    /// How often this index was filled: tells a new member from the old one with the same index.
    pub incarnation: u64,
    /// The VM's name, padded with zeros.
    pub name: [u8; NAME_BYTES],
}

const _: () = assert!(size_of::<MemberEntry>() == 64);

/// The group page: one for each group, read-only to its members, mapped at [`crate::boot::GROUP_PAGE_GPA`].
///
/// Written by the hypervisor only, under a sequence lock: `sequence` is odd while a change is under way. A reader that needs
/// more than one field loads `sequence`, the fields, and `sequence` again, and repeats if it was odd or has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct GroupPage {
    /// [`GROUP_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// The group's number.
    pub group_id: u32,
    /// Odd while the hypervisor changes the page.
    pub sequence: u64,
    /// Grows by one with each join, leave and death.
    pub generation: u64,
    /// Pages of the shared region.
    pub region_pages: u64,
    /// The address the group's region has in every member, 0 while no member has mapped (and always under `address = "any"`).
    pub region_va: u64,
    /// How many of `members` have ever been filled: entries from here on are `Absent`.
    pub member_count: u32,
    /// 1 if every member may choose its own address.
    pub address_any: u32,
    /// The group's name, padded with zeros.
    pub name: [u8; NAME_BYTES],
    /// Zero; room for later fields.
    pub reserved: [u64; 5],
    /// The members by index.
    pub members: [MemberEntry; MAX_MEMBERS],
}

/// Offset of [`GroupPage::members`] in bytes.
pub const MEMBERS_OFFSET: usize = 128;
const _: () = assert!(core::mem::offset_of!(GroupPage, members) == MEMBERS_OFFSET);
const _: () = assert!(size_of::<GroupPage>() <= crate::PAGE_BYTES as usize);

/// In a hypercall's argument: how far an incarnation stands above the index of the member.
pub const LIFE_SHIFT: u32 = 8;

/// Names one life of a member in a hypercall's argument; whichever it leads with incarnation 0.
#[must_use]
pub const fn life(index: u32, incarnation: u64) -> u64 {
    incarnation << LIFE_SHIFT | (index as u64 & ((1 << LIFE_SHIFT) - 1))
}

/// The index and the incarnation that an argument names; `None` for whichever.
#[must_use]
pub const fn split_life(argument: u64) -> (u64, Option<u64>) {
    let index = argument & ((1 << LIFE_SHIFT) - 1);
    match argument >> LIFE_SHIFT {
        0 => (index, None),
        incarnation => (index, Some(incarnation)),
    }
}

/// What `group_info` copies out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GroupInfo {
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// The group's number.
    pub group_id: u32,
    /// The caller's index in the group.
    pub member_index: u32,
    /// How many members the group has ever had.
    pub member_count: u32,
    /// Pages of the shared region.
    pub region_pages: u64,
    /// The group's address, 0 if not fixed.
    pub region_va: u64,
    /// Guest-physical address of the group page.
    pub group_page_gpa: u64,
    /// Generation of the group at the call.
    pub generation: u64,
}

const _: () = assert!(size_of::<GroupInfo>() == 48);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_their_raw_form_and_only_live_ones_can_be_rung() {
        for raw in 0..5 {
            let state = MemberState::from_raw(raw).expect("inside the contract");
            assert_eq!(state as u32, raw);
            assert_eq!(state.is_alive(), raw == 1 || raw == 2);
        }
        assert_eq!(MemberState::from_raw(5), None);
    }

    #[test]
    fn a_life_is_named_and_split_alike_and_a_bare_index_is_any() {
        for (index, incarnation) in [(0, 1), (31, 7), (5, u64::MAX >> LIFE_SHIFT)] {
            let split = split_life(life(index, incarnation));
            assert_eq!(split, (index.into(), Some(incarnation)));
        }
        assert_eq!(split_life(31), (31, None));
        assert_eq!(split_life(life(31, 0)), (31, None));
    }
}
