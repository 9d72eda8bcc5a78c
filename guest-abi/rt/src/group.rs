//! The group as a guest sees it: the read-only group page, its members, its generation.

use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

use guest_abi::group::MEMBERS_OFFSET;
use guest_abi::{BootInfo, GroupPage, InfoPage, MAX_MEMBERS, MemberEntry, MemberState};

use crate::boot::{boot_info, is_bare};
use crate::time;

const WORDS: usize = size_of::<GroupPage>().div_ceil(8);
/// What stands for the group page of a guest in no group: it has no members.
static NOBODY: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
/// The group page, or [`NOBODY`].
static PAGE: AtomicPtr<u8> = AtomicPtr::new((&raw const NOBODY).cast_mut().cast());

/// Notes where the group page is.
pub(crate) fn init(info: &BootInfo) {
    if info.group_page_gpa != 0 {
        let page = core::ptr::with_exposed_provenance_mut(info.group_page_gpa as usize);
        PAGE.store(page, Ordering::Relaxed);
    }
}

/// A field of the group page.
#[inline(always)]
fn load<T: Copy>(offset: usize) -> T {
    const { assert!(size_of::<T>() <= 8) };
    debug_assert!(offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= WORDS * 8);
    // SAFETY: `PAGE` points to a page that is mapped read-only for good, or to `NOBODY`, which is as long; all callers give the offset
    // of an aligned field inside. The hypervisor writes meanwhile, hence volatile.
    unsafe {
        PAGE.load(Ordering::Relaxed)
            .add(offset)
            .cast::<T>()
            .read_volatile()
    }
}

/// The offset of a member's entry; `None` if no member can have that index.
#[inline(always)]
fn entry(index: u32) -> Option<usize> {
    let index = index as usize;
    (index < MAX_MEMBERS).then(|| MEMBERS_OFFSET + index * size_of::<MemberEntry>())
}

/// This VM's index in its group; `None` in no group.
#[must_use]
pub fn my_index() -> Option<u32> {
    Some(boot_info().member_index).filter(|index| *index != u32::MAX)
}

/// State of a member, by a plain load. `Absent` for an index no member has, or in no group.
#[inline]
#[must_use]
pub fn member_state(index: u32) -> MemberState {
    entry(index)
        .and_then(|entry| MemberState::from_raw(load(entry + offset_of!(MemberEntry, state))))
        .unwrap_or(MemberState::Absent)
}

/// Exit code of a member that ended by itself.
#[must_use]
pub fn member_exit_code(index: u32) -> i64 {
    entry(index).map_or(0, |entry| load(entry + offset_of!(MemberEntry, exit_code)))
}

/// How often the index was filled: tells a member from an earlier one with the same index. 0 for an index no member ever had.
#[inline]
#[must_use]
pub fn incarnation(index: u32) -> u64 {
    entry(index).map_or(0, |entry| {
        load(entry + offset_of!(MemberEntry, incarnation))
    })
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
    let sequence = || load::<u64>(offset_of!(GroupPage, sequence));
    loop {
        let before = sequence();
        fence(Ordering::Acquire);
        let count = load::<u32>(offset_of!(GroupPage, member_count));
        let members = (0..count).map_while(member).collect();
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && sequence() == before {
            return members;
        }
        time::pause();
    }
}

fn member(index: u32) -> Option<Member> {
    let entry = entry(index)?;
    let mut name = [0; guest_abi::NAME_BYTES];
    for (word, part) in name.chunks_exact_mut(8).enumerate() {
        let bytes: u64 = load(entry + offset_of!(MemberEntry, name) + word * 8);
        part.copy_from_slice(&bytes.to_le_bytes());
    }
    Some(Member {
        index,
        state: member_state(index),
        vm_id: load(entry + offset_of!(MemberEntry, vm_id)),
        mapped: load::<u32>(entry + offset_of!(MemberEntry, mapped)) != 0,
        exit_code: load(entry + offset_of!(MemberEntry, exit_code)),
        incarnation: load(entry + offset_of!(MemberEntry, incarnation)),
        name,
    })
}

/// The address the group's region has in every member; 0 while there is none, and in no group.
#[must_use]
pub fn region_va() -> u64 {
    load(offset_of!(GroupPage, region_va))
}

/// Whether a member can still answer.
#[inline]
#[must_use]
pub fn is_alive(index: u32) -> bool {
    member_state(index).is_alive()
}

/// How often the group has changed; 0 in no group.
#[must_use]
pub fn generation() -> u64 {
    load(offset_of!(GroupPage, generation))
}

/// Pages of the group's region; 0 in no group.
#[must_use]
pub fn region_pages() -> u64 {
    load(offset_of!(GroupPage, region_pages))
}

/// VM exits of vCPU 0 so far, by [`guest_abi::ExitKind`]. Reading them causes none.
#[must_use]
pub fn exits() -> [u64; guest_abi::ExitKind::COUNT] {
    let mut counts = [0; guest_abi::ExitKind::COUNT];
    if !is_bare() {
        for (index, count) in counts.iter_mut().enumerate() {
            *count = load_info(offset_of!(InfoPage, exits) + index * 8);
        }
    }
    counts
}

/// The events that the last HLT of vCPU 0 took ([`crate::hypercall::halt_events`]). Reading them causes no exit.
#[must_use]
pub fn halt_events() -> u64 {
    if is_bare() {
        return 0;
    }
    load_info(offset_of!(InfoPage, halt_events))
}

/// Ticks in which vCPU 0 could have run and was not let, up to when it last began to run. Reading them causes no exit.
#[must_use]
pub fn stolen_ticks() -> u64 {
    if is_bare() {
        return 0;
    }
    load_info(offset_of!(InfoPage, stolen_ticks))
}

/// A field of vCPU 0's info page.
fn load_info(offset: usize) -> u64 {
    let at = boot_info().info_page_gpa as usize + offset;
    // SAFETY: the page is mapped read-only for good and `offset` is an aligned field inside it; the hypervisor writes meanwhile,
    // hence volatile.
    unsafe { core::ptr::with_exposed_provenance::<u64>(at).read_volatile() }
}
