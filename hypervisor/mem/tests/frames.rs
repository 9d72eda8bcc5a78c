//! The frame table under sequences of operations agrees with a plain list of owners, and refuses every wrong claim.

use nagaya_mem::frames::MAX_OWNER_ID;
use nagaya_mem::{Counts, FrameError, FrameTable, Hpa, OutOfFrames, Owner, PageSize};
use proptest::prelude::*;

const PAGE: u64 = 0x1000;
const MIB2: u64 = 0x20_0000;
const BLOCK: u64 = 512;
const CASES: u32 = if cfg!(miri) { 3 } else { 96 };

/// Words for a table of `blocks` blocks of 2 MiB.
fn words(blocks: u64) -> Vec<u16> {
    // What was there before must not matter.
    vec![0xABCD; FrameTable::words_needed(Hpa::new(blocks * MIB2))]
}

#[derive(Clone, Debug)]
enum Op {
    Release {
        start: u64,
        pages: u64,
    },
    Allocate {
        size: PageSize,
        owner: Owner,
    },
    Contiguous {
        pages: u64,
        align_pages: u64,
        owner: Owner,
    },
    /// Gives back a part of the run that was handed out at this position of the list, as that owner.
    Free {
        run: usize,
        skip: u64,
        pages: u64,
        owner: Option<Owner>,
    },
}

fn holder() -> impl Strategy<Value = Owner> {
    prop_oneof![
        Just(Owner::Hypervisor),
        (0..3_u16).prop_map(Owner::Vm),
        (0..3_u16).prop_map(Owner::Group),
        (0..3_u16).prop_map(Owner::Family)
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let pages = || prop_oneof![2 => 1..8_u64, 1 => Just(512_u64), 1 => 1..1100_u64];
    prop_oneof![
        1 => (0..9 * BLOCK, pages()).prop_map(|(start, pages)| Op::Release { start, pages }),
        3 => holder().prop_map(|owner| Op::Allocate { size: PageSize::Size4K, owner }),
        2 => holder().prop_map(|owner| Op::Allocate { size: PageSize::Size2M, owner }),
        3 => (pages(), prop_oneof![Just(1_u64), Just(4), Just(512), Just(1024)], holder())
            .prop_map(|(pages, align_pages, owner)| Op::Contiguous { pages, align_pages, owner }),
        5 => (any::<usize>(), 0..3_u64, pages(), proptest::option::weighted(0.2, holder()))
            .prop_map(|(run, skip, pages, owner)| Op::Free { run, skip, pages, owner }),
    ]
}

struct Model {
    owners: Vec<Owner>,
    /// Handed out and not given back: first frame, frames, owner.
    runs: Vec<(u64, u64, Owner)>,
}

impl Model {
    fn count(&self, wanted: impl Fn(Owner) -> bool) -> u64 {
        self.owners.iter().filter(|owner| wanted(**owner)).count() as u64
    }

    fn counts(&self) -> Counts {
        Counts {
            total: self.owners.len() as u64,
            free: self.count(|owner| owner == Owner::Free),
            reserved: self.count(|owner| owner == Owner::Reserved),
            hypervisor: self.count(|owner| owner == Owner::Hypervisor),
            vm: self.count(|owner| matches!(owner, Owner::Vm(_))),
            group: self.count(|owner| matches!(owner, Owner::Group(_))),
            family: self.count(|owner| matches!(owner, Owner::Family(_))),
        }
    }

    fn is_free(&self, start: u64, pages: u64) -> bool {
        self.owners
            .get(start as usize..(start + pages) as usize)
            .is_some_and(|run| run.iter().all(|owner| *owner == Owner::Free))
    }

    fn has_room(&self, pages: u64, align_pages: u64) -> bool {
        (0..self.owners.len() as u64)
            .step_by(align_pages as usize)
            .any(|start| self.is_free(start, pages))
    }

    /// Whether there is room that touches no whole block.
    fn has_broken_room(&self, pages: u64, align_pages: u64) -> bool {
        let is_whole = |frame: u64| self.is_free(frame / BLOCK * BLOCK, BLOCK);
        (0..self.owners.len() as u64)
            .step_by(align_pages as usize)
            .any(|start| {
                self.is_free(start, pages) && !is_whole(start) && !is_whole(start + pages - 1)
            })
    }

    fn whole_blocks(&self) -> usize {
        self.owners
            .chunks(BLOCK as usize)
            .filter(|block| block.iter().all(|owner| *owner == Owner::Free))
            .count()
    }

    fn set(&mut self, start: u64, pages: u64, owner: Owner) {
        self.owners[start as usize..(start + pages) as usize].fill(owner);
    }

    /// Checks what an allocation answered, and makes its change.
    fn allocated(
        &mut self,
        answer: Result<Hpa, OutOfFrames>,
        pages: u64,
        align_pages: u64,
        owner: Owner,
    ) {
        let whole = self.whole_blocks();
        match answer {
            Ok(frame) => {
                assert!(
                    frame.is_aligned(align_pages * PAGE),
                    "{frame} is not aligned to {align_pages} pages"
                );
                let start = frame.get() / PAGE;
                assert!(
                    self.is_free(start, pages),
                    "{pages} frames at {frame} were not all free"
                );
                let spares_whole_blocks = pages < BLOCK && self.has_broken_room(pages, align_pages);
                self.set(start, pages, owner);
                self.runs.push((start, pages, owner));
                assert!(
                    !spares_whole_blocks || self.whole_blocks() == whole,
                    "a whole block was broken for {pages} frames although there is room in broken ones"
                );
            }
            Err(error) => {
                assert_eq!(error, OutOfFrames { pages });
                assert!(
                    !self.has_room(pages, align_pages),
                    "refused {pages} frames although there is room"
                );
            }
        }
    }
}

fn step(table: &mut FrameTable<'_>, model: &mut Model, op: &Op) {
    match *op {
        Op::Release { start, pages } => {
            table.release(Hpa::new(start * PAGE), pages);
            for owner in model
                .owners
                .iter_mut()
                .skip(start as usize)
                .take(pages as usize)
            {
                if *owner == Owner::Reserved {
                    *owner = Owner::Free;
                }
            }
        }
        Op::Allocate { size, owner } => {
            let pages = size.bytes() / PAGE;
            model.allocated(table.allocate(size, owner), pages, pages, owner);
        }
        Op::Contiguous {
            pages,
            align_pages,
            owner,
        } => {
            model.allocated(
                table.allocate_contiguous(pages, align_pages * PAGE, owner),
                pages,
                align_pages,
                owner,
            );
        }
        Op::Free {
            run,
            skip,
            pages,
            owner,
        } => {
            if model.runs.is_empty() {
                return;
            }
            // The run stays in the list: freeing it again, or after another has it, must be refused.
            let (start, length, true_owner) = model.runs[run % model.runs.len()];
            let (start, pages) = (start + skip.min(length - 1), pages.min(length + 2));
            let owner = owner.unwrap_or(true_owner);
            let expected = match model.owners.get(start as usize..(start + pages) as usize) {
                None => Err(FrameError::BadRange {
                    start: Hpa::new(start * PAGE),
                    pages,
                }),
                Some(range) => match range.iter().position(|held| *held != owner) {
                    Some(offset) => Err(FrameError::NotOwner {
                        frame: Hpa::new((start + offset as u64) * PAGE),
                        held_by: range[offset],
                    }),
                    None => Ok(()),
                },
            };
            assert_eq!(
                table.holds(Hpa::new(start * PAGE), pages, owner),
                expected.is_ok()
            );
            assert_eq!(table.free(Hpa::new(start * PAGE), pages, owner), expected);
            if expected.is_ok() {
                model.set(start, pages, Owner::Free);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_agrees_with_a_list_of_owners_after_every_step(
        blocks in 1..9_u64, usable in 0.2..1.0_f64, ops in proptest::collection::vec(op(), 1..60),
    ) {
        let mut words = words(blocks);
        let mut table = FrameTable::new(&mut words);
        let frames = blocks * BLOCK;
        let mut model = Model { owners: vec![Owner::Reserved; frames as usize], runs: Vec::new() };
        let start = 3;
        step(&mut table, &mut model, &Op::Release { start, pages: (frames as f64 * usable) as u64 });
        for op in &ops {
            step(&mut table, &mut model, op);
            prop_assert_eq!(table.counts(), model.counts(), "{:?}", op);
            for (index, owner) in model.owners.iter().enumerate() {
                prop_assert_eq!(table.owner(Hpa::new(index as u64 * PAGE + 5)), *owner, "frame {} after {:?}", index, op);
            }
        }
    }
}

/// A table over fresh words with all its frames free.
fn with_free<R>(blocks: u64, check: impl FnOnce(&mut FrameTable<'_>) -> R) -> R {
    let mut words = words(blocks);
    let mut table = FrameTable::new(&mut words);
    table.release(Hpa::new(0), blocks * BLOCK);
    check(&mut table)
}

#[test]
fn nothing_is_given_out_before_it_is_released() {
    let mut words = words(4);
    let mut table = FrameTable::new(&mut words);
    assert_eq!(
        table.allocate(PageSize::Size4K, Owner::Hypervisor),
        Err(OutOfFrames { pages: 1 })
    );
    assert_eq!(table.counts().reserved, 4 * BLOCK);
}

#[test]
fn every_frame_can_be_taken_once_and_comes_back() {
    with_free(3, |table| {
        let before = table.counts();
        let mut taken: Vec<Hpa> = (0..3 * BLOCK)
            .map(|_| {
                table
                    .allocate(PageSize::Size4K, Owner::Vm(1))
                    .expect("there are as many")
            })
            .collect();
        assert_eq!(
            table.allocate(PageSize::Size4K, Owner::Vm(1)),
            Err(OutOfFrames { pages: 1 })
        );
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len() as u64, 3 * BLOCK);
        for frame in taken {
            assert_eq!(table.free(frame, 1, Owner::Vm(1)), Ok(()));
        }
        assert_eq!(table.counts(), before);
    });
}

#[test]
fn small_frames_share_one_block_and_leave_the_others_whole() {
    with_free(8, |table| {
        let small: Vec<Hpa> = (0..BLOCK)
            .map(|_| {
                table
                    .allocate(PageSize::Size4K, Owner::Hypervisor)
                    .expect("free")
            })
            .collect();
        assert!(
            small
                .iter()
                .all(|frame| frame.align_down(MIB2) == small[0].align_down(MIB2))
        );
        for _ in 0..7 {
            assert!(table.allocate(PageSize::Size2M, Owner::Vm(0)).is_ok());
        }
    });
}

#[test]
fn a_few_contiguous_frames_go_where_a_block_is_broken_already() {
    with_free(4, |table| {
        table
            .allocate(PageSize::Size4K, Owner::Hypervisor)
            .expect("free");
        table
            .allocate_contiguous(100, PAGE, Owner::Hypervisor)
            .expect("free");
        for _ in 0..3 {
            assert!(table.allocate(PageSize::Size2M, Owner::Vm(0)).is_ok());
        }
    });
}

#[test]
fn a_region_of_1025_pages_starts_on_2_mib_though_frames_before_it_are_free() {
    with_free(8, |table| {
        let low = table
            .allocate_contiguous(3, PAGE, Owner::Hypervisor)
            .expect("free");
        assert_eq!(low, Hpa::new(0));
        let region = table
            .allocate_contiguous(1025, MIB2, Owner::Group(2))
            .expect("free");
        assert_eq!(region, Hpa::new(MIB2));
        assert_eq!(table.counts().group, 1025);
    });
}

#[test]
fn claims_on_others_frames_are_refused_whole() {
    with_free(2, |table| {
        let frame = table
            .allocate_contiguous(4, PAGE, Owner::Vm(1))
            .expect("free");
        let second = Hpa::new(frame.get() + PAGE);
        table.free(second, 1, Owner::Vm(1)).expect("it is its own");
        let before = table.counts();
        let refused = FrameError::NotOwner {
            frame: second,
            held_by: Owner::Free,
        };
        assert_eq!(table.free(frame, 4, Owner::Vm(1)), Err(refused));
        for wrong in [
            Owner::Vm(2),
            Owner::Group(1),
            Owner::Hypervisor,
            Owner::Reserved,
            Owner::Free,
        ] {
            let refused = FrameError::NotOwner {
                frame,
                held_by: Owner::Vm(1),
            };
            assert_eq!(table.free(frame, 1, wrong), Err(refused), "{wrong:?}");
        }
        for (start, pages) in [
            (frame.get() + 8, 1),
            (frame.get(), 0),
            (2 * MIB2, 1),
            (MIB2, BLOCK + 1),
            (0, u64::MAX),
        ] {
            let start = Hpa::new(start);
            assert_eq!(
                table.free(start, pages, Owner::Vm(1)),
                Err(FrameError::BadRange { start, pages })
            );
        }
        assert_eq!(table.counts(), before);
    });
}

#[test]
fn impossible_allocations_are_refused() {
    with_free(2, |table| {
        let before = table.counts();
        for (pages, align) in [
            (0, PAGE),
            (1, 0),
            (1, 3 * PAGE),
            (1, 2048),
            (u64::MAX, PAGE),
            (1025, PAGE),
            (1, 1 << 63),
        ] {
            let answer = table.allocate_contiguous(pages, align, Owner::Vm(0));
            // Address 0 is a multiple of everything.
            if (pages, align) == (1, 1 << 63) {
                assert_eq!(answer, Ok(Hpa::new(0)));
                table
                    .free(Hpa::new(0), 1, Owner::Vm(0))
                    .expect("it is its own");
            } else {
                assert_eq!(
                    answer,
                    Err(OutOfFrames { pages }),
                    "{pages} pages at {align}"
                );
            }
        }
        for nobody in [
            Owner::Free,
            Owner::Reserved,
            Owner::Vm(MAX_OWNER_ID),
            Owner::Group(u16::MAX),
        ] {
            assert!(
                table.allocate(PageSize::Size4K, nobody).is_err(),
                "{nobody:?}"
            );
            assert!(
                table.allocate(PageSize::Size2M, nobody).is_err(),
                "{nobody:?}"
            );
        }
        assert_eq!(table.counts(), before);
        assert_eq!(table.owner(Hpa::new(u64::MAX)), Owner::Reserved);
    });
}

#[test]
fn owners_with_the_largest_number_keep_it() {
    with_free(1, |table| {
        for owner in [
            Owner::Vm(MAX_OWNER_ID - 1),
            Owner::Group(MAX_OWNER_ID - 1),
            Owner::Vm(0),
            Owner::Group(0),
        ] {
            let frame = table.allocate(PageSize::Size4K, owner).expect("free");
            assert_eq!(table.owner(frame), owner);
        }
    });
}
