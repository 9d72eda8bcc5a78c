//! Virtqueues of drivers that break the rules: each rule has its error, and garbage has no other effect than errors.

use nagaya_devices::RamError;
use nagaya_devices::queue::{Chain, Queue, QueueError, RingFeatures};
use nagaya_devices::test_support::{DriverQueue, Layout, Raw, TestRam};
use nagaya_mem::Gpa;
use proptest::prelude::*;

const SIZE: u16 = 8;
const RING: u64 = 0x1000;
const TABLE: u64 = 0x4000;
const BUFFER: u64 = 0x8000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const WITH_INDIRECT: RingFeatures = RingFeatures {
    event_index: false,
    indirect: true,
};

fn raw(start: u64, bytes: u32, flags: u16, next: u16) -> Raw {
    Raw {
        start,
        bytes,
        flags,
        next,
    }
}

/// What taking the chain at `head` answers, with these descriptors in the queue's table and those in the indirect one.
fn answer(features: RingFeatures, head: u16, direct: &[Raw], indirect: &[Raw]) -> QueueError {
    let ram = TestRam::new(0x20000);
    let layout = Layout::at(RING, SIZE);
    let mut driver = DriverQueue::new(&ram, layout, features);
    for (index, raw) in direct.iter().enumerate() {
        driver.set_descriptor(&ram, index as u16, *raw);
    }
    for (index, raw) in indirect.iter().enumerate() {
        ram.poke(TABLE + index as u64 * 16, &raw.to_bytes());
    }
    driver.offer(&ram, head);
    driver.publish(&ram);
    let mut queue = Queue::new(layout.config, features, 0).expect("is valid");
    queue
        .pop(&ram, &mut Chain::new())
        .expect_err("the chain breaks a rule")
}

fn direct(raws: &[Raw]) -> QueueError {
    answer(RingFeatures::default(), 0, raws, &[])
}

fn in_table(bytes: u32, raws: &[Raw]) -> QueueError {
    answer(WITH_INDIRECT, 0, &[raw(TABLE, bytes, INDIRECT, 0)], raws)
}

#[test]
fn a_head_or_next_outside_the_table_is_refused() {
    for index in [SIZE, SIZE + 1, 0x8000, 0xFFFF] {
        let found = answer(RingFeatures::default(), index, &[], &[]);
        assert_eq!(found, QueueError::Head { index });
        let found = direct(&[raw(BUFFER, 1, NEXT, index)]);
        assert_eq!(found, QueueError::Next { index, entries: 8 });
        let found = in_table(32, &[raw(BUFFER, 1, NEXT, index)]);
        assert_eq!(found, QueueError::Next { index, entries: 2 });
    }
}

#[test]
fn loops_end() {
    let to_itself = raw(BUFFER, 1, NEXT, 0);
    assert_eq!(direct(&[to_itself]), QueueError::TooManyDescriptors);
    let pair = [raw(BUFFER, 1, NEXT, 1), raw(BUFFER, 1, NEXT, 0)];
    assert_eq!(direct(&pair), QueueError::TooManyDescriptors);
    assert_eq!(in_table(16, &[to_itself]), QueueError::TooManyDescriptors);
    assert_eq!(in_table(32, &pair), QueueError::TooManyDescriptors);
    // A table of a table of a table.
    let nested = raw(TABLE, 16, INDIRECT, 0);
    assert_eq!(in_table(16, &[nested]), QueueError::NestedIndirect);
}

#[test]
fn a_table_longer_than_the_queue_is_refused_with_its_first_descriptor_too_many() {
    let mut raws: Vec<Raw> = (1..=9).map(|next| raw(BUFFER, 1, NEXT, next)).collect();
    raws.push(raw(BUFFER, 1, 0, 0));
    assert_eq!(in_table(160, &raws), QueueError::TooManyDescriptors);
    // Direct descriptors count, too.
    let direct = [raw(BUFFER, 1, NEXT, 1), raw(TABLE, 8 * 16, INDIRECT, 0)];
    raws[7].flags = 0;
    let found = answer(WITH_INDIRECT, 0, &direct, &raws);
    assert_eq!(found, QueueError::TooManyDescriptors);
}

#[test]
fn an_indirect_descriptor_has_to_be_negotiated_whole_and_last() {
    let one = raw(TABLE, 16, INDIRECT, 0);
    assert_eq!(direct(&[one]), QueueError::IndirectNotNegotiated);
    let with_next = raw(TABLE, 16, INDIRECT | NEXT, 1);
    let found = answer(WITH_INDIRECT, 0, &[with_next], &[]);
    assert_eq!(found, QueueError::IndirectWithNext);
    for bytes in [0, 1, 15, 17, 0xFFFF_FFFF] {
        assert_eq!(in_table(bytes, &[]), QueueError::IndirectBytes { bytes });
    }
    let start = Gpa::new(u64::MAX - 15);
    let found = answer(WITH_INDIRECT, 0, &[raw(start.get(), 32, INDIRECT, 0)], &[]);
    assert_eq!(found, QueueError::BufferRange { start, bytes: 32 });
    let found = answer(WITH_INDIRECT, 0, &[raw(0x1F_FFF0, 32, INDIRECT, 0)], &[]);
    assert!(matches!(found, QueueError::Ram(_)));
}

#[test]
fn readable_after_writable_is_refused() {
    let start = Gpa::new(BUFFER + 8);
    let raws = [raw(BUFFER, 1, WRITE | NEXT, 1), raw(BUFFER + 8, 1, 0, 0)];
    assert_eq!(direct(&raws), QueueError::ReadableAfterWritable { start });
    let found = in_table(32, &raws);
    assert_eq!(found, QueueError::ReadableAfterWritable { start });
}

#[test]
fn buffers_of_nothing_beyond_the_end_or_too_long_together_are_refused() {
    let start = Gpa::new(BUFFER);
    let found = direct(&[raw(BUFFER, 0, 0, 0)]);
    assert_eq!(found, QueueError::EmptyBuffer { start });
    let start = Gpa::new(u64::MAX - 3);
    let found = direct(&[raw(start.get(), 5, WRITE, 0)]);
    assert_eq!(found, QueueError::BufferRange { start, bytes: 5 });
    let raws = [
        raw(BUFFER, 0x8000_0000, NEXT, 1),
        raw(BUFFER, 0x8000_0000, WRITE, 0),
    ];
    assert_eq!(direct(&raws), QueueError::TooManyBytes);
}

#[test]
fn a_ring_that_is_no_ram_is_refused_at_its_first_use() {
    let ram = TestRam::new(0x20000);
    let layout = Layout::at(RING, SIZE);
    let mut queue = Queue::new(layout.config, RingFeatures::default(), 0).expect("is valid");
    let start = layout.config.driver.get();
    ram.make_hole(start..start + 4);
    let error = QueueError::Ram(RamError {
        start: Gpa::new(start + 2),
        bytes: 2,
    });
    assert_eq!(queue.pop(&ram, &mut Chain::new()), Err(error));
}

#[test]
fn an_index_that_jumps_over_the_ring_is_refused() {
    for (index, is_error) in [(8, false), (9, true), (0x8000, true), (0xFFFF, true)] {
        let ram = TestRam::new(0x20000);
        let layout = Layout::at(RING, SIZE);
        let _driver = DriverQueue::new(&ram, layout, RingFeatures::default());
        ram.poke(TABLE, &raw(BUFFER, 1, 0, 0).to_bytes());
        ram.poke(RING, &raw(BUFFER, 1, 0, 0).to_bytes());
        ram.poke(layout.config.driver.get() + 2, &u16::to_le_bytes(index));
        let mut queue = Queue::new(layout.config, RingFeatures::default(), 0).expect("is valid");
        let found = queue.pop(&ram, &mut Chain::new());
        let error = QueueError::AvailableIndex { index, next: 0 };
        assert_eq!(found, if is_error { Err(error) } else { Ok(true) });
    }
}

#[test]
fn a_driver_that_offers_on_and_on_without_getting_any_back_is_refused() {
    let ram = TestRam::new(0x20000);
    let layout = Layout::at(RING, SIZE);
    let mut driver = DriverQueue::new(&ram, layout, RingFeatures::default());
    driver.set_descriptor(&ram, 0, raw(BUFFER, 1, 0, 0));
    let mut queue = Queue::new(layout.config, RingFeatures::default(), 0).expect("is valid");
    for _ in 0..SIZE {
        driver.offer(&ram, 0);
        driver.publish(&ram);
        assert_eq!(queue.pop(&ram, &mut Chain::new()), Ok(true));
    }
    driver.offer(&ram, 0);
    driver.publish(&ram);
    let found = queue.pop(&ram, &mut Chain::new());
    assert_eq!(found, Err(QueueError::TooManyInFlight));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Rings, tables and buffers are garbage that changes at each look. Chains that come through keep their bounds.
    #[test]
    fn garbage_that_changes_all_the_time_gives_errors_or_bounded_chains(
        seed: u64,
        garbage in proptest::collection::vec(any::<u8>(), 0x400),
        event_index: bool,
        indirect: bool,
        size in prop_oneof![Just(1_u16), Just(8), Just(16)],
    ) {
        let ram = TestRam::new(0x1000);
        ram.poke(0, &garbage);
        ram.make_restless(0..0x400, seed);
        let features = RingFeatures { event_index, indirect };
        let layout = Layout::at(0, size);
        let mut queue = Queue::new(layout.config, features, 0).expect("is valid");
        let mut chain = Chain::new();
        for _ in 0..64 {
            // A device would stop at the first error; going on must be harmless, too.
            if queue.pop(&ram, &mut chain) == Ok(true) {
                let segments = chain.readable().len() + chain.writable().len();
                prop_assert!(segments > 0 && segments <= usize::from(size));
                let sum: u64 = chain.readable().iter().chain(chain.writable()).map(|s| u64::from(s.bytes)).sum();
                prop_assert_eq!(sum, u64::from(chain.readable_bytes()) + u64::from(chain.writable_bytes()));
                prop_assert!(sum <= u64::from(u32::MAX));
                for segment in chain.readable().iter().chain(chain.writable()) {
                    prop_assert!(segment.start.checked_add(u64::from(segment.bytes)).is_some());
                }
                let _ = queue.complete(&ram, &chain, chain.writable_bytes());
            }
            let _ = queue.publish(&ram);
            let _ = queue.take_interrupt(&ram);
            let _ = queue.resume_notifications(&ram);
            prop_assert!(queue.in_flight() <= size);
        }
    }
}
