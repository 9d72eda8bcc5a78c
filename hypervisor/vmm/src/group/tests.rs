use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// The page as guests see it, with the checks a reader relies on.
struct Page {
    bytes: Vec<u8>,
}

impl Page {
    fn new() -> Page {
        Page {
            bytes: std::vec![0; 4096],
        }
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(
            self.bytes[offset..offset + 8]
                .try_into()
                .expect("eight bytes"),
        )
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(
            self.bytes[offset..offset + 4]
                .try_into()
                .expect("four bytes"),
        )
    }

    fn state(&self, member: usize) -> u32 {
        self.u32(entry_offset(member))
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        assert_eq!(offset % bytes.len(), 0, "stores are aligned");
        let sequence = offset_of!(GroupPage, sequence);
        let header = self.u64(offset_of!(GroupPage, magic)) == 0;
        if offset != sequence && !header {
            assert_eq!(
                self.u64(sequence) % 2,
                1,
                "changes are made under the sequence lock"
            );
        }
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

impl PageWriter for Page {
    fn store_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }
    fn store_u64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }
}

fn group(policy: AddressPolicy) -> (Group, Page) {
    let group = Group::new(7, "pair", policy, 1025);
    let mut page = Page::new();
    group.write_header(&mut page);
    (group, page)
}

#[test]
fn the_first_mapper_fixes_the_address_and_the_last_to_leave_frees_it() {
    let (mut group, mut page) = group(AddressPolicy::Fixed);
    let first = group.join(&mut page, 1, 1, "a", None).expect("room");
    let second = group.join(&mut page, 2, 1, "b", None).expect("room");
    let (here, there) = (Gva::new(0x1000_0000), Gva::new(0x2000_0000));
    assert_eq!(group.may_map(here, None), Ok(()));
    group.mapped(&mut page, first, here);
    assert_eq!(group.may_map(here, Some(here)), Ok(()));
    assert_eq!(group.may_map(there, Some(here)), Err(Errno::AddrInUse));
    assert_eq!(group.may_map(there, None), Err(Errno::AddrInUse));
    assert_eq!(group.may_map(here, None), Ok(()));
    group.mapped(&mut page, second, here);
    group.unmapped(&mut page, first);
    assert_eq!(
        group.may_map(there, None),
        Err(Errno::AddrInUse),
        "a member still has it"
    );
    group.ended(&mut page, second, None);
    assert_eq!(group.may_map(there, None), Ok(()));
}

#[test]
fn under_any_each_member_chooses() {
    let (mut group, mut page) = group(AddressPolicy::Any);
    let first = group.join(&mut page, 1, 1, "a", None).expect("room");
    group.mapped(&mut page, first, Gva::new(0x1000));
    assert_eq!(group.may_map(Gva::new(0x2000), None), Ok(()));
    assert_eq!(page.u64(offset_of!(GroupPage, region_va)), 0);
}

#[test]
fn a_death_is_one_store_of_the_state_and_a_new_generation() {
    let (mut group, mut page) = group(AddressPolicy::Fixed);
    let member = group.join(&mut page, 1, 1, "a", None).expect("room");
    group.started(&mut page, member);
    assert_eq!(page.state(member), MemberState::Running as u32);
    let before = page.u64(offset_of!(GroupPage, generation));
    group.ended(&mut page, member, None);
    assert_eq!(page.state(member), MemberState::Died as u32);
    assert_eq!(page.u64(offset_of!(GroupPage, generation)), before + 1);
}

#[test]
fn an_index_is_used_again_under_a_new_incarnation() {
    let (mut group, mut page) = group(AddressPolicy::Fixed);
    let first = group.join(&mut page, 1, 1, "a", None).expect("room");
    let at = entry_offset(first) + offset_of!(MemberEntry, incarnation);
    let before = page.u64(at);
    group.ended(&mut page, first, Some(3));
    group.give_up(first);
    assert_eq!(group.join(&mut page, 2, 1, "b", None), Some(first));
    assert_eq!(page.u64(at), before + 1);
}

#[test]
fn the_place_of_one_that_may_come_back_is_kept_for_it_in_a_full_group_too() {
    let (mut group, mut page) = group(AddressPolicy::Fixed);
    for index in 0..MAX_MEMBERS {
        assert_eq!(
            group.join(&mut page, index as u32, 1, "m", None),
            Some(index)
        );
    }
    // One that is still there has its place; nobody else gets it.
    assert_eq!(group.join(&mut page, 1, 1, "m", Some(1)), None);
    group.ended(&mut page, 1, None);
    assert_eq!(group.join(&mut page, 99, 1, "thief", None), None);
    assert_eq!(group.join(&mut page, 1, 1, "m", Some(1)), Some(1));
    group.ended(&mut page, 1, None);
    group.give_up(1);
    assert_eq!(group.join(&mut page, 1, 1, "m", Some(1)), None);
    assert_eq!(group.join(&mut page, 99, 1, "heir", None), Some(1));
}

#[test]
fn a_full_group_takes_nobody_in() {
    let (mut group, mut page) = group(AddressPolicy::Fixed);
    for index in 0..MAX_MEMBERS {
        assert_eq!(
            group.join(&mut page, index as u32, 1, "m", None),
            Some(index)
        );
    }
    assert_eq!(group.join(&mut page, 99, 1, "m", None), None);
}

#[derive(Clone, Debug)]
enum Step {
    Join,
    Start(usize),
    Map(usize, u64),
    Unmap(usize),
    End(usize, Option<i64>),
}

fn step() -> impl Strategy<Value = Step> {
    let member = 0..6_usize;
    prop_oneof![
        Just(Step::Join),
        member.clone().prop_map(Step::Start),
        (member.clone(), 1..4_u64).prop_map(|(member, va)| Step::Map(member, va << 20)),
        member.clone().prop_map(Step::Unmap),
        (member, proptest::option::of(any::<i64>()))
            .prop_map(|(member, code)| Step::End(member, code)),
    ]
}

proptest! {
    /// Whatever happens: the page says what the group knows, the generation only grows, and under `Fixed` no two members have
    /// the region at different addresses.
    #[test]
    fn page_and_group_agree(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut group, mut page) = group(AddressPolicy::Fixed);
        let mut where_mapped = [None; MAX_MEMBERS];
        for step in steps {
            let before = page.u64(offset_of!(GroupPage, generation));
            match step {
                Step::Join => {
                    let _ = group.join(&mut page, 1, 1, "m", None);
                }
                Step::Start(member) if group.state(member).is_alive() => group.started(&mut page, member),
                Step::Map(member, va) if group.state(member).is_alive() => {
                    let va = Gva::new(va);
                    if group.may_map(va, where_mapped[member]) == Ok(()) {
                        group.mapped(&mut page, member, va);
                        where_mapped[member] = Some(va);
                    }
                }
                Step::Unmap(member) => {
                    group.unmapped(&mut page, member);
                    where_mapped[member] = None;
                }
                Step::End(member, code) if group.state(member).is_alive() => {
                    group.ended(&mut page, member, code);
                    where_mapped[member] = None;
                }
                _ => {}
            }
            prop_assert!(page.u64(offset_of!(GroupPage, generation)) >= before);
            prop_assert_eq!(page.u64(offset_of!(GroupPage, sequence)) % 2, 0);
            for member in 0..MAX_MEMBERS {
                prop_assert_eq!(page.state(member), group.state(member) as u32);
            }
            let mut addresses: Vec<_> = where_mapped.iter().flatten().collect();
            addresses.dedup();
            prop_assert!(addresses.len() <= 1);
            prop_assert_eq!(page.u64(offset_of!(GroupPage, region_va)), addresses.first().map_or(0, |va| va.get()));
        }
    }
}
