//! The group as a guest sees it: the read-only group page, its members, its generation.

use core::mem::offset_of;

use guest_abi::group::MEMBERS_OFFSET;
use guest_abi::{GroupPage, InfoPage, MAX_MEMBERS, MemberEntry, MemberState};

use crate::boot_info;

fn load_u32(base: u64, offset: usize) -> u32 {
    // SAFETY: the page is mapped read-only for good and `offset` is an aligned field inside it; the hypervisor writes meanwhile,
    // hence volatile.
    unsafe { core::ptr::with_exposed_provenance::<u32>(base as usize + offset).read_volatile() }
}

fn load_u64(base: u64, offset: usize) -> u64 {
    // SAFETY: as above.
    unsafe { core::ptr::with_exposed_provenance::<u64>(base as usize + offset).read_volatile() }
}

fn page() -> Option<u64> {
    Some(boot_info().group_page_gpa).filter(|gpa| *gpa != 0)
}

/// This VM's index in its group; `None` in no group.
#[must_use]
pub fn my_index() -> Option<u32> {
    Some(boot_info().member_index).filter(|index| *index != u32::MAX)
}

/// State of a member, by a plain load. `Absent` for an index no member has, or in no group.
#[must_use]
pub fn member_state(index: u32) -> MemberState {
    match page() {
        Some(base) if (index as usize) < MAX_MEMBERS => {
            let offset = MEMBERS_OFFSET
                + index as usize * size_of::<MemberEntry>()
                + offset_of!(MemberEntry, state);
            MemberState::from_raw(load_u32(base, offset)).unwrap_or(MemberState::Absent)
        }
        _ => MemberState::Absent,
    }
}

/// Exit code of a member that ended by itself.
#[must_use]
pub fn member_exit_code(index: u32) -> i64 {
    match page() {
        Some(base) if (index as usize) < MAX_MEMBERS => {
            let entry = MEMBERS_OFFSET + index as usize * size_of::<MemberEntry>();
            load_u64(base, entry + offset_of!(MemberEntry, exit_code)) as i64
        }
        _ => 0,
    }
}

/// Whether a member can still answer.
#[must_use]
pub fn is_alive(index: u32) -> bool {
    member_state(index).is_alive()
}

/// How often the group has changed; 0 in no group.
#[must_use]
pub fn generation() -> u64 {
    page().map_or(0, |base| load_u64(base, offset_of!(GroupPage, generation)))
}

/// Pages of the group's region; 0 in no group.
#[must_use]
pub fn region_pages() -> u64 {
    page().map_or(0, |base| {
        load_u64(base, offset_of!(GroupPage, region_pages))
    })
}

/// VM exits of vCPU 0 so far, by [`guest_abi::ExitKind`]. Reading them causes none.
#[must_use]
pub fn exits() -> [u64; guest_abi::ExitKind::COUNT] {
    let mut counts = [0; guest_abi::ExitKind::COUNT];
    if !crate::is_bare() {
        for (index, count) in counts.iter_mut().enumerate() {
            *count = load_u64(
                boot_info().info_page_gpa,
                offset_of!(InfoPage, exits) + index * 8,
            );
        }
    }
    counts
}
