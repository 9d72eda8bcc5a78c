//! The group as a guest sees it: the read-only group page, its members, its generation.

use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};

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

/// How often the index was filled: tells a member from an earlier one with the same index. 0 for an index no member ever had.
#[must_use]
pub fn incarnation(index: u32) -> u64 {
    match page() {
        Some(base) if (index as usize) < MAX_MEMBERS => {
            let entry = MEMBERS_OFFSET + index as usize * size_of::<MemberEntry>();
            load_u64(base, entry + offset_of!(MemberEntry, incarnation))
        }
        _ => 0,
    }
}

/// One member, read as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its index.
    pub index: u32,
    /// Its state.
    pub state: MemberState,
    /// The VM's number.
    pub vm_id: u32,
    /// Whether it has the region mapped.
    pub mapped: bool,
    /// Its exit code, in state `Exited`.
    pub exit_code: i64,
    /// How often the index was filled.
    pub incarnation: u64,
    /// The VM's name, padded with zeros; see [`guest_abi::unpack_name`].
    pub name: [u8; guest_abi::NAME_BYTES],
}

/// All members that were ever there, as they were at one moment: the page is read again while the hypervisor changes it.
#[must_use]
pub fn members() -> Vec<Member> {
    let Some(base) = page() else {
        return Vec::new();
    };
    let sequence = || load_u64(base, offset_of!(GroupPage, sequence));
    loop {
        let before = sequence();
        fence(Ordering::Acquire);
        let count = load_u32(base, offset_of!(GroupPage, member_count)).min(MAX_MEMBERS as u32);
        let members = (0..count).map(|index| member(base, index)).collect();
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && sequence() == before {
            return members;
        }
        crate::time::pause();
    }
}

fn member(base: u64, index: u32) -> Member {
    let entry = MEMBERS_OFFSET + index as usize * size_of::<MemberEntry>();
    let mut name = [0; guest_abi::NAME_BYTES];
    for (word, part) in name.chunks_exact_mut(8).enumerate() {
        part.copy_from_slice(
            &load_u64(base, entry + offset_of!(MemberEntry, name) + word * 8).to_le_bytes(),
        );
    }
    Member {
        index,
        state: member_state(index),
        vm_id: load_u32(base, entry + offset_of!(MemberEntry, vm_id)),
        mapped: load_u32(base, entry + offset_of!(MemberEntry, mapped)) != 0,
        exit_code: load_u64(base, entry + offset_of!(MemberEntry, exit_code)) as i64,
        incarnation: load_u64(base, entry + offset_of!(MemberEntry, incarnation)),
        name,
    }
}

/// The address the group's region has in every member; 0 while there is none, and in no group.
#[must_use]
pub fn region_va() -> u64 {
    page().map_or(0, |base| load_u64(base, offset_of!(GroupPage, region_va)))
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

/// Ticks in which vCPU 0 could have run and was not let, up to when it last began to run. Reading them causes no exit.
#[must_use]
pub fn stolen_ticks() -> u64 {
    if crate::is_bare() {
        return 0;
    }
    load_u64(
        boot_info().info_page_gpa,
        offset_of!(InfoPage, stolen_ticks),
    )
}
