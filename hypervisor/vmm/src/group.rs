//! A group as state: its members, its address, its generation, and the page that shows all this to them.
//!
//! Changes are made on a mirror of the group page and emitted as stores through [`PageWriter`], in an order such that a reader
//! that follows the sequence lock never takes a half-made change for a whole one, and that a member's state changes by one
//! store. Concurrency: the caller locks; it is the page's only writer.

use core::mem::offset_of;

use guest_abi::group::{GROUP_MAGIC, MEMBERS_OFFSET};
use guest_abi::{
    ABI_VERSION, Errno, GroupInfo, GroupPage, MAX_MEMBERS, MemberEntry, MemberState, pack_name,
};
use nagaya_mem::Gva;

use crate::config::AddressPolicy;

/// Stores into the group page, made visible to guests in the order of the calls. Offsets are in bytes and aligned.
pub trait PageWriter {
    /// Stores 32 bits.
    fn store_u32(&mut self, offset: usize, value: u32);
    /// Stores 64 bits.
    fn store_u64(&mut self, offset: usize, value: u64);
}

/// One group.
#[derive(Clone, Debug)]
pub struct Group {
    id: u32,
    name: [u8; guest_abi::NAME_BYTES],
    policy: AddressPolicy,
    region_pages: u64,
    region_va: u64,
    sequence: u64,
    generation: u64,
    members: [Member; MAX_MEMBERS],
    member_count: u32,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    state: MemberState,
    mapped: bool,
    /// Its place is kept for it: it may come back after a reset.
    is_kept: bool,
    incarnation: u64,
}

impl Group {
    /// A group without members.
    #[must_use]
    pub fn new(id: u32, name: &str, policy: AddressPolicy, region_pages: u64) -> Group {
        Group {
            id,
            name: pack_name(name),
            policy,
            region_pages,
            region_va: 0,
            sequence: 0,
            generation: 0,
            members: [Member {
                state: MemberState::Absent,
                mapped: false,
                is_kept: false,
                incarnation: 0,
            }; MAX_MEMBERS],
            member_count: 0,
        }
    }

    /// The same group, going on from a generation: a group that is made anew under an old name never repeats one.
    #[must_use]
    pub fn from_generation(mut self, generation: u64) -> Group {
        self.generation = generation;
        self
    }

    /// The numbers that [`Group::info`] tells of the region: its address, 0 while nobody has it.
    #[must_use]
    pub fn region_va(&self) -> u64 {
        self.region_va
    }

    /// Writes the parts of a fresh, zeroed page that never change.
    pub fn write_header(&self, page: &mut impl PageWriter) {
        page.store_u32(offset_of!(GroupPage, abi_version), ABI_VERSION);
        page.store_u32(offset_of!(GroupPage, group_id), self.id);
        page.store_u64(offset_of!(GroupPage, region_pages), self.region_pages);
        page.store_u64(offset_of!(GroupPage, generation), self.generation);
        page.store_u32(
            offset_of!(GroupPage, address_any),
            u32::from(self.policy == AddressPolicy::Any),
        );
        store_bytes(page, offset_of!(GroupPage, name), &self.name);
        page.store_u64(offset_of!(GroupPage, magic), GROUP_MAGIC);
    }

    /// Pages of the region.
    #[must_use]
    pub fn region_pages(&self) -> u64 {
        self.region_pages
    }

    /// Generation now.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// State of a member; `Absent` for an index that no member has.
    #[must_use]
    pub fn state(&self, member: usize) -> MemberState {
        self.members
            .get(member)
            .map_or(MemberState::Absent, |member| member.state)
    }

    /// Which VM in a row the member is that has had this index; 0 for none yet.
    #[must_use]
    pub fn incarnation(&self, member: usize) -> u64 {
        self.members
            .get(member)
            .map_or(0, |member| member.incarnation)
    }

    /// Members that can still be rung.
    #[must_use]
    pub fn live_members(&self) -> usize {
        self.members
            .iter()
            .filter(|member| member.state.is_alive())
            .count()
    }

    /// What `group_info` answers to a member.
    #[must_use]
    pub fn info(&self, member: usize) -> GroupInfo {
        GroupInfo {
            abi_version: ABI_VERSION,
            group_id: self.id,
            member_index: member as u32,
            member_count: self.member_count,
            region_pages: self.region_pages,
            region_va: self.region_va,
            group_page_gpa: guest_abi::boot::GROUP_PAGE_GPA,
            generation: self.generation,
        }
    }

    /// Takes a VM in, at the lowest free index, or at the `place` that it had before its reset. It keeps that until it gives it up
    /// ([`Group::give_up`]). `None` when the group is full.
    #[must_use]
    pub fn join(
        &mut self,
        page: &mut impl PageWriter,
        vm_id: u32,
        vcpus: u32,
        name: &str,
        place: Option<usize>,
    ) -> Option<usize> {
        let is_empty = |member: &Member| !member.state.is_alive() && !member.mapped;
        let index = match place {
            Some(index) => Some(index).filter(|index| {
                let member = self.members.get(*index);
                member.is_some_and(|member| is_empty(member) && member.is_kept)
            }),
            None => self
                .members
                .iter()
                .position(|member| is_empty(member) && !member.is_kept),
        }?;
        let member = self.members.get_mut(index)?;
        member.state = MemberState::Created;
        member.is_kept = true;
        member.incarnation += 1;
        let incarnation = member.incarnation;
        self.member_count = self.member_count.max(index as u32 + 1);
        self.change(page, |group, page| {
            let entry = entry_offset(index);
            page.store_u32(entry + offset_of!(MemberEntry, vm_id), vm_id);
            page.store_u32(entry + offset_of!(MemberEntry, mapped), 0);
            page.store_u32(entry + offset_of!(MemberEntry, vcpus), vcpus);
            page.store_u64(entry + offset_of!(MemberEntry, exit_code), 0);
            page.store_u64(entry + offset_of!(MemberEntry, incarnation), incarnation);
            store_bytes(
                page,
                entry + offset_of!(MemberEntry, name),
                &pack_name(name),
            );
            page.store_u32(offset_of!(GroupPage, member_count), group.member_count);
            page.store_u32(
                entry + offset_of!(MemberEntry, state),
                MemberState::Created as u32,
            );
            true
        });
        Some(index)
    }

    /// A member does not come back: another may have its place.
    pub fn give_up(&mut self, index: usize) {
        if let Some(member) = self.members.get_mut(index) {
            member.is_kept = false;
        }
    }

    /// A member is entered for the first time. The generation stays: it joined already.
    pub fn started(&mut self, page: &mut impl PageWriter, index: usize) {
        self.set_state(page, index, MemberState::Running, 0, false);
    }

    /// A member has ended, by `exit` with that code or, with `None`, by the hypervisor.
    pub fn ended(&mut self, page: &mut impl PageWriter, index: usize, exit_code: Option<i64>) {
        let state = if exit_code.is_some() {
            MemberState::Exited
        } else {
            MemberState::Died
        };
        self.unmapped(page, index);
        self.set_state(page, index, state, exit_code.unwrap_or(0), true);
    }

    fn set_state(
        &mut self,
        page: &mut impl PageWriter,
        index: usize,
        state: MemberState,
        exit_code: i64,
        new_generation: bool,
    ) {
        let Some(member) = self.members.get_mut(index) else {
            return;
        };
        member.state = state;
        self.change(page, |_, page| {
            let entry = entry_offset(index);
            page.store_u64(entry + offset_of!(MemberEntry, exit_code), exit_code as u64);
            page.store_u32(entry + offset_of!(MemberEntry, state), state as u32);
            new_generation
        });
    }

    /// Whether a member may map the region at `va`. `current` is where it has it now.
    ///
    /// # Errors
    /// `EADDRINUSE`: the group lives elsewhere, or the member has mapped it elsewhere.
    pub fn may_map(&self, va: Gva, current: Option<Gva>) -> Result<(), Errno> {
        let is_elsewhere = current.is_some_and(|there| there != va);
        let is_fixed = self.policy == AddressPolicy::Fixed && self.region_va != 0;
        if is_elsewhere || is_fixed && self.region_va != va.get() {
            return Err(Errno::AddrInUse);
        }
        Ok(())
    }

    /// Whether a member has mapped the region.
    #[must_use]
    pub fn has_mapped(&self, index: usize) -> bool {
        self.members.get(index).is_some_and(|member| member.mapped)
    }

    /// A member has mapped the region at `va`: under `Fixed` the first one fixes the address for all.
    pub fn mapped(&mut self, page: &mut impl PageWriter, index: usize, va: Gva) {
        self.set_mapped(page, index, true, va.get());
    }

    /// A member has the region no more. When nobody has, the address is free again.
    pub fn unmapped(&mut self, page: &mut impl PageWriter, index: usize) {
        if self.members.get(index).is_some_and(|member| member.mapped) {
            self.set_mapped(page, index, false, 0);
        }
    }

    fn set_mapped(&mut self, page: &mut impl PageWriter, index: usize, mapped: bool, va: u64) {
        let Some(member) = self.members.get_mut(index) else {
            return;
        };
        member.mapped = mapped;
        if self.policy == AddressPolicy::Fixed {
            if mapped {
                self.region_va = va;
            } else if self.members.iter().all(|member| !member.mapped) {
                self.region_va = 0;
            }
        }
        self.change(page, |group, page| {
            page.store_u32(
                entry_offset(index) + offset_of!(MemberEntry, mapped),
                u32::from(mapped),
            );
            page.store_u64(offset_of!(GroupPage, region_va), group.region_va);
            false
        });
    }

    /// Makes a change under the sequence lock; `action` says whether it is a new generation.
    fn change<W: PageWriter>(&mut self, page: &mut W, action: impl FnOnce(&Group, &mut W) -> bool) {
        self.sequence += 1;
        page.store_u64(offset_of!(GroupPage, sequence), self.sequence);
        if action(self, page) {
            self.generation += 1;
            page.store_u64(offset_of!(GroupPage, generation), self.generation);
        }
        self.sequence += 1;
        page.store_u64(offset_of!(GroupPage, sequence), self.sequence);
    }
}

fn entry_offset(index: usize) -> usize {
    MEMBERS_OFFSET + index * size_of::<MemberEntry>()
}

fn store_bytes(page: &mut impl PageWriter, offset: usize, bytes: &[u8]) {
    for (index, chunk) in bytes.chunks(8).enumerate() {
        let mut word = [0; 8];
        for (slot, byte) in word.iter_mut().zip(chunk) {
            *slot = *byte;
        }
        page.store_u64(offset + index * 8, u64::from_le_bytes(word));
    }
}

#[cfg(test)]
mod tests;
