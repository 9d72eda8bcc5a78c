//! Virtqueues between the device's side and a well-behaved driver.

use std::collections::BTreeMap;

use nagaya_devices::GuestRam;
use nagaya_devices::queue::{Chain, Queue, QueueConfig, QueueError, RingFeatures};
use nagaya_devices::test_support::{Buffer, DriverQueue, Layout, TestRam};
use nagaya_mem::Gpa;
use proptest::collection::vec;
use proptest::prelude::*;

const RAM_BYTES: usize = 1 << 20;
const RING: u64 = 0x1000;
/// Buffers and indirect tables begin here.
const BUFFERS: u64 = 0x40000;

fn pair(size: u16, features: RingFeatures) -> (TestRam, DriverQueue, Queue) {
    let ram = TestRam::new(RAM_BYTES);
    let layout = Layout::at(RING, size);
    let driver = DriverQueue::new(&ram, layout, features);
    let queue = Queue::new(layout.config, features, 1).expect("the layout is valid");
    (ram, driver, queue)
}

fn buffer(index: u64, bytes: u32) -> Buffer {
    Buffer {
        start: BUFFERS + index * 0x1000,
        bytes,
    }
}

fn all_features() -> [RingFeatures; 4] {
    [(false, false), (false, true), (true, false), (true, true)].map(|(event_index, indirect)| {
        RingFeatures {
            event_index,
            indirect,
        }
    })
}

#[test]
fn a_chain_arrives_as_it_was_offered_and_comes_back_with_its_length() {
    let (ram, mut driver, mut queue) = pair(8, RingFeatures::default());
    let head = driver
        .add(
            &ram,
            &[buffer(0, 10), buffer(1, 20)],
            &[buffer(2, 30), buffer(3, 40)],
        )
        .expect("free");
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&ram, &mut chain), Ok(false), "not shown yet");
    assert!(driver.publish(&ram));
    assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
    assert_eq!(chain.head(), head);
    let spans = |segments: &[nagaya_devices::queue::Segment]| {
        segments
            .iter()
            .map(|segment| (segment.start.get(), segment.bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        spans(chain.readable()),
        [(BUFFERS, 10), (BUFFERS + 0x1000, 20)]
    );
    assert_eq!(
        spans(chain.writable()),
        [(BUFFERS + 0x2000, 30), (BUFFERS + 0x3000, 40)]
    );
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (30, 70));
    queue.complete(&ram, &chain, 70).expect("fits");
    assert!(driver.take(&ram).is_none(), "not shown yet");
    queue.publish(&ram).expect("is RAM");
    let used = driver.take(&ram).expect("came back");
    assert_eq!((used.head, used.written), (head, 70));
}

#[test]
fn an_indirect_table_may_follow_direct_descriptors() {
    let features = RingFeatures {
        event_index: false,
        indirect: true,
    };
    let (ram, mut driver, mut queue) = pair(8, features);
    let table = BUFFERS + 0x8000;
    driver
        .add_indirect(&ram, table, &[buffer(1, 5)], &[buffer(2, 6), buffer(3, 7)])
        .expect("free");
    // The table hangs on descriptor 0, since that was free first: put a direct one before it.
    driver.set_descriptor(
        &ram,
        5,
        nagaya_devices::test_support::Raw {
            start: BUFFERS,
            bytes: 4,
            flags: 1,
            next: 0,
        },
    );
    let ring = driver.layout().config.driver.get();
    ram.poke(ring + 4, &5_u16.to_le_bytes());
    driver.publish(&ram);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
    assert_eq!(chain.head(), 5);
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (9, 13));
}

#[test]
fn each_byte_of_ring_and_descriptors_is_loaded_once_for_a_chain() {
    for features in all_features() {
        let (ram, mut driver, mut queue) = pair(8, features);
        let (readable, writable) = ([buffer(0, 1), buffer(1, 2)], [buffer(2, 3)]);
        if features.indirect {
            driver.add_indirect(&ram, BUFFERS + 0x9000, &readable, &writable);
        } else {
            driver.add(&ram, &readable, &writable);
        }
        driver.publish(&ram);
        ram.take_loads();
        assert_eq!(queue.pop(&ram, &mut Chain::new()), Ok(true));
        let loads = ram.take_loads();
        assert!(loads.values().all(|count| *count == 1), "{loads:?}");
    }
}

#[test]
fn a_burst_looks_at_the_drivers_index_once() {
    let (ram, mut driver, mut queue) = pair(8, RingFeatures::default());
    for index in 0..8 {
        driver.add(&ram, &[buffer(index, 1)], &[]).expect("free");
    }
    driver.publish(&ram);
    ram.take_loads();
    for _ in 0..8 {
        assert_eq!(queue.pop(&ram, &mut Chain::new()), Ok(true));
    }
    let index = driver.layout().config.driver.get() + 2;
    assert_eq!(ram.take_loads().get(&index), Some(&1));
}

#[test]
fn chains_that_are_put_back_are_taken_again_in_order() {
    let (ram, mut driver, mut queue) = pair(4, RingFeatures::default());
    let heads: Vec<u16> = (0..3)
        .filter_map(|index| driver.add(&ram, &[buffer(index, 1)], &[]))
        .collect();
    driver.publish(&ram);
    let mut chain = Chain::new();
    for _ in 0..3 {
        assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
    }
    queue.undo_pop(2);
    assert_eq!(queue.in_flight(), 1);
    for head in &heads[1..] {
        assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
        assert_eq!(chain.head(), *head);
    }
    assert_eq!(queue.pop(&ram, &mut chain), Ok(false));
}

#[test]
fn a_chain_from_before_a_reset_is_let_go() {
    let (ram, mut driver, mut queue) = pair(4, RingFeatures::default());
    driver.add(&ram, &[], &[buffer(0, 8)]).expect("free");
    driver.publish(&ram);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
    let driver = &mut DriverQueue::new(&ram, driver.layout(), RingFeatures::default());
    let mut queue =
        Queue::new(driver.layout().config, RingFeatures::default(), 2).expect("is valid");
    assert!(!queue.owns(&chain));
    assert_eq!(queue.complete(&ram, &chain, 8), Ok(()));
    assert_eq!(queue.publish(&ram), Ok(()));
    assert_eq!(driver.take(&ram), None);
}

#[test]
fn the_device_cannot_say_that_it_wrote_more_than_there_is_room() {
    let (ram, mut driver, mut queue) = pair(4, RingFeatures::default());
    driver.add(&ram, &[], &[buffer(0, 8)]).expect("free");
    driver.publish(&ram);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
    let refused = QueueError::Written { bytes: 9, room: 8 };
    assert_eq!(queue.complete(&ram, &chain, 9), Err(refused));
}

#[test]
fn a_queue_that_is_not_aligned_not_a_power_of_two_or_beyond_the_end_is_refused() {
    let good = Layout::at(RING, 8).config;
    let new = |config| Queue::new(config, RingFeatures::default(), 0).map(|_| ());
    assert_eq!(new(good), Ok(()));
    let near_the_end = |bytes: u64| Gpa::new(u64::MAX - bytes + 1);
    for bad in [
        QueueConfig { size: 0, ..good },
        QueueConfig { size: 6, ..good },
        QueueConfig {
            descriptors: Gpa::new(RING + 8),
            ..good
        },
        QueueConfig {
            driver: Gpa::new(RING + 1),
            ..good
        },
        QueueConfig {
            device: Gpa::new(RING + 2),
            ..good
        },
        QueueConfig {
            descriptors: near_the_end(128),
            ..good
        },
        QueueConfig {
            driver: near_the_end(22),
            ..good
        },
        QueueConfig {
            device: near_the_end(68),
            ..good
        },
    ] {
        assert_eq!(new(bad), Err(QueueError::Config(bad)));
    }
}

#[test]
fn without_event_indices_flags_suppress_interrupts_and_notifications() {
    let (ram, mut driver, mut queue) = pair(4, RingFeatures::default());
    let mut chain = Chain::new();
    for wanted in [true, false, true] {
        driver.want_interrupt(&ram, wanted);
        driver.add(&ram, &[buffer(0, 1)], &[]).expect("free");
        driver.publish(&ram);
        assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
        queue.complete(&ram, &chain, 0).expect("fits");
        queue.publish(&ram).expect("is RAM");
        assert_eq!(queue.take_interrupt(&ram), Ok(wanted));
        assert_eq!(queue.take_interrupt(&ram), Ok(false), "once");
        driver.take(&ram).expect("came back");
    }
    queue.suppress_notifications(&ram).expect("is RAM");
    driver.add(&ram, &[buffer(0, 1)], &[]).expect("free");
    assert!(!driver.publish(&ram));
    assert_eq!(
        queue.resume_notifications(&ram),
        Ok(true),
        "there is one already"
    );
    assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
    assert_eq!(queue.resume_notifications(&ram), Ok(false));
    driver.add(&ram, &[buffer(0, 1)], &[]).expect("free");
    assert!(driver.publish(&ram));
}

#[test]
fn with_event_indices_one_interrupt_comes_for_a_burst_across_the_turn_of_the_counters() {
    let features = RingFeatures {
        event_index: true,
        indirect: false,
    };
    let (ram, mut driver, mut queue) = pair(8, features);
    let mut chain = Chain::new();
    // 13,200 bursts of 5 take both 16-bit counters around once.
    for burst in 0..13_200 {
        let wanted = burst % 3 != 0;
        driver.want_interrupt(&ram, wanted);
        assert_eq!(queue.resume_notifications(&ram), Ok(false));
        for index in 0..5 {
            driver.add(&ram, &[buffer(index, 1)], &[]).expect("free");
            assert_eq!(driver.publish(&ram), index == 0, "only the first is told");
        }
        while queue.pop(&ram, &mut chain) == Ok(true) {
            queue.complete(&ram, &chain, 0).expect("fits");
        }
        queue.publish(&ram).expect("is RAM");
        assert_eq!(queue.take_interrupt(&ram), Ok(wanted));
        assert_eq!(queue.take_interrupt(&ram), Ok(false));
        for _ in 0..5 {
            driver.take(&ram).expect("came back");
        }
    }
}

/// A step of driver or device.
#[derive(Clone, Debug)]
enum Step {
    Add {
        readable: Vec<u32>,
        writable: Vec<u32>,
        indirect: bool,
    },
    Publish,
    Pop,
    Undo,
    Complete {
        which: usize,
        part: u32,
    },
    PublishUsed,
    Take,
    WantInterrupt(bool),
    Suppress,
    Resume,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (vec(1..5000_u32, 0..4), vec(1..5000_u32, 0..4), any::<bool>()).prop_map(
            |(readable, writable, indirect)| Step::Add { readable, writable, indirect }
        ),
        3 => Just(Step::Publish),
        4 => Just(Step::Pop),
        1 => Just(Step::Undo),
        4 => (any::<usize>(), 0..=100_u32).prop_map(|(which, part)| Step::Complete { which, part }),
        3 => Just(Step::PublishUsed),
        4 => Just(Step::Take),
        1 => any::<bool>().prop_map(Step::WantInterrupt),
        1 => Just(Step::Suppress),
        1 => Just(Step::Resume),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every chain arrives once, in order, as it was; comes back once, in any order; and neither side waits for news that the
    /// other has.
    #[test]
    fn any_sequence_keeps_the_contract(
        steps in vec(step(), 1..200),
        size in prop_oneof![Just(1_u16), Just(4), Just(16)],
        event_index: bool,
        indirect: bool,
    ) {
        let features = RingFeatures { event_index, indirect };
        let (ram, mut driver, mut queue) = pair(size, features);
        let mut offered: Vec<(u16, u32, u32)> = Vec::new();
        let mut shown = 0;
        let mut taken = 0;
        let mut held: Vec<Chain> = Vec::new();
        let mut done: BTreeMap<u16, u32> = BTreeMap::new();
        let (mut staged, mut published) = (0_u64, 0_u64);
        // What the driver asked for: an interrupt when this many chains have come back.
        let mut wish = Some(1);
        let mut received = 0;
        let mut undoable = false;
        for step in steps {
            match step {
                Step::Add { readable, writable, indirect: by_table } => {
                    let all = readable.len() + writable.len();
                    if all == 0 || all > usize::from(size) {
                        continue;
                    }
                    let place = |lengths: &[u32], first: usize| lengths
                        .iter()
                        .enumerate()
                        .map(|(index, bytes)| Buffer { start: BUFFERS + (first + index) as u64 * 0x2000, bytes: *bytes })
                        .collect::<Vec<_>>();
                    let (out, into) = (place(&readable, 0), place(&writable, readable.len()));
                    // There is one table: it is used while nothing else is pending.
                    let head = if by_table && indirect && driver.pending() == 0 {
                        driver.add_indirect(&ram, 0xA0000, &out, &into)
                    } else {
                        driver.add(&ram, &out, &into)
                    };
                    if let Some(head) = head {
                        offered.push((head, readable.iter().sum(), writable.iter().sum()));
                    }
                }
                Step::Publish => {
                    driver.publish(&ram);
                    shown = offered.len();
                }
                Step::Pop => {
                    let mut chain = Chain::new();
                    let popped = queue.pop(&ram, &mut chain);
                    prop_assert_eq!(popped, Ok(taken < shown));
                    if taken < shown {
                        let (head, readable, writable) = offered[taken];
                        prop_assert_eq!(chain.head(), head);
                        prop_assert_eq!(chain.readable_bytes(), readable);
                        prop_assert_eq!(chain.writable_bytes(), writable);
                        taken += 1;
                        held.push(chain);
                        undoable = true;
                    }
                }
                Step::Undo => {
                    if undoable && held.pop().is_some() {
                        queue.undo_pop(1);
                        taken -= 1;
                    }
                    undoable = false;
                }
                Step::Complete { which, part } => {
                    if held.is_empty() {
                        continue;
                    }
                    let chain = held.remove(which % held.len());
                    let written = (u64::from(chain.writable_bytes()) * u64::from(part) / 100) as u32;
                    prop_assert_eq!(queue.complete(&ram, &chain, written), Ok(()));
                    prop_assert!(done.insert(chain.head(), written).is_none());
                    staged += 1;
                    undoable = false;
                }
                Step::PublishUsed => {
                    prop_assert_eq!(queue.publish(&ram), Ok(()));
                    let news = staged > published;
                    published = staged;
                    let interrupt = queue.take_interrupt(&ram);
                    match wish {
                        Some(count) if news && published >= count => {
                            prop_assert_eq!(interrupt, Ok(true));
                            // Flags keep asking; an event index asks once.
                            wish = if event_index { None } else { Some(0) };
                        }
                        _ => prop_assert_eq!(interrupt, Ok(false)),
                    }
                }
                Step::Take => {
                    let used = driver.take(&ram);
                    prop_assert_eq!(used.is_some(), received < published);
                    if let Some(used) = used {
                        received += 1;
                        prop_assert_eq!(done.remove(&used.head), Some(used.written));
                    }
                }
                Step::WantInterrupt(wanted) => {
                    // A driver looks at the ring after asking; here it asks when there is nothing to see.
                    if received == published {
                        driver.want_interrupt(&ram, wanted);
                        wish = wanted.then_some(if event_index { published + 1 } else { 0 });
                    }
                }
                Step::Suppress => {
                    prop_assert_eq!(queue.suppress_notifications(&ram), Ok(()));
                }
                Step::Resume => {
                    prop_assert_eq!(queue.resume_notifications(&ram), Ok(taken < shown));
                    if taken == offered.len() {
                        // Whatever comes next is told.
                        if let Some(head) = driver.add(&ram, &[buffer(0, 1)], &[]) {
                            offered.push((head, 1, 0));
                            prop_assert!(driver.publish(&ram));
                            shown = offered.len();
                        }
                    }
                }
            }
            prop_assert_eq!(usize::from(queue.in_flight()), held.len());
        }
    }
}

#[test]
fn what_a_device_reads_and_writes_goes_through_the_checked_accessors_only() {
    let (ram, mut driver, mut queue) = pair(4, RingFeatures::default());
    driver.add(&ram, &[buffer(0, 4)], &[]).expect("free");
    driver.publish(&ram);
    let ring = driver.layout().config.device.get();
    ram.make_read_only(ring..ring + 4);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
    assert_eq!(queue.complete(&ram, &chain, 0), Ok(()));
    assert!(matches!(queue.publish(&ram), Err(QueueError::Ram(_))));
    assert!(ram.write(Gpa::new(ring), &[1]).is_err());
}

/// RAM that writes down the order of what is done to single words.
struct Recorder<'a> {
    ram: &'a TestRam,
    log: std::cell::RefCell<Vec<Access>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Load(u64),
    Store(u64),
    Fence,
}

impl GuestRam for Recorder<'_> {
    fn read(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), nagaya_devices::RamError> {
        self.ram.read(from, buffer)
    }

    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), nagaya_devices::RamError> {
        self.log.borrow_mut().push(Access::Store(to.get()));
        self.ram.write(to, bytes)
    }

    fn load_u16(&self, from: Gpa) -> Result<u16, nagaya_devices::RamError> {
        self.log.borrow_mut().push(Access::Load(from.get()));
        self.ram.load_u16(from)
    }

    fn store_u16(&self, to: Gpa, value: u16) -> Result<(), nagaya_devices::RamError> {
        self.log.borrow_mut().push(Access::Store(to.get()));
        self.ram.store_u16(to, value)
    }

    fn copy_to(
        &self,
        from: Gpa,
        target: &Self,
        to: Gpa,
        bytes: u32,
    ) -> Result<(), nagaya_devices::CopyError> {
        self.ram.copy_to(from, target.ram, to, bytes)
    }

    fn fence(&self) {
        self.log.borrow_mut().push(Access::Fence);
    }
}

#[test]
fn between_telling_and_looking_there_is_a_fence() {
    for features in all_features() {
        let (ram, mut driver, mut queue) = pair(8, features);
        driver.add(&ram, &[buffer(0, 4)], &[]).expect("free");
        driver.publish(&ram);
        let recorder = Recorder {
            ram: &ram,
            log: std::cell::RefCell::default(),
        };
        let config = driver.layout().config;
        let (driver_area, device_area) = (config.driver.get(), config.device.get());
        let (wish_of_driver, wish_of_device) = if features.event_index {
            (driver_area + 4 + 16, device_area + 4 + 64)
        } else {
            (driver_area, device_area)
        };
        let mut chain = Chain::new();
        assert_eq!(queue.pop(&recorder, &mut chain), Ok(true));
        queue.complete(&recorder, &chain, 0).expect("fits");
        recorder.log.borrow_mut().clear();
        queue.publish(&recorder).expect("is RAM");
        let _ = queue.take_interrupt(&recorder);
        let expected = [
            Access::Store(device_area + 2),
            Access::Fence,
            Access::Load(wish_of_driver),
        ];
        assert_eq!(recorder.log.take(), expected);
        let expected = [
            Access::Store(wish_of_device),
            Access::Fence,
            Access::Load(driver_area + 2),
        ];
        let _ = queue.resume_notifications(&recorder);
        assert_eq!(recorder.log.take(), expected);
        let _ = queue.ask_for_more(&recorder);
        assert_eq!(recorder.log.take(), expected);
    }
}
