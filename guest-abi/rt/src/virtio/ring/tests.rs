//! The ring against the device's side of `nagaya-devices`, in the same memory.

use std::alloc::{Layout as Block, alloc_zeroed, dealloc};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::vec::Vec;

use nagaya_devices::queue::{Chain, Queue, QueueConfig, RingFeatures};
use nagaya_devices::{CopyError, GuestRam, RamError};
use nagaya_mem::Gpa;
use proptest::prelude::*;

use super::*;

/// Host memory that a device sees from address 0.
struct Ram {
    start: *mut u8,
    block: Block,
}

// SAFETY: reached by atomics and, chain by chain, by one side at a time.
unsafe impl Sync for Ram {}

impl Ram {
    fn new(bytes: usize) -> Ram {
        let block = Block::from_size_align(bytes, 64).expect("a valid block");
        // SAFETY: not empty.
        let start = unsafe { alloc_zeroed(block) };
        assert!(!start.is_null());
        Ram { start, block }
    }

    fn at(&self, from: Gpa, bytes: usize) -> Result<*mut u8, RamError> {
        let start = from.get() as usize;
        if start + bytes > self.block.size() {
            return Err(RamError {
                start: from,
                bytes: bytes as u64,
            });
        }
        // SAFETY: inside the block.
        Ok(unsafe { self.start.add(start) })
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe { dealloc(self.start, self.block) };
    }
}

impl GuestRam for Ram {
    fn read(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), RamError> {
        let from = self.at(from, buffer.len())?;
        // SAFETY: checked by `at`.
        unsafe { from.copy_to(buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), RamError> {
        let to = self.at(to, bytes.len())?;
        // SAFETY: checked by `at`.
        unsafe { to.copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn load_u16(&self, from: Gpa) -> Result<u16, RamError> {
        let word = self.at(from, 2)?.cast::<AtomicU16>();
        // SAFETY: checked by `at`; the queue asks for even addresses.
        Ok(unsafe { &*word }.load(Ordering::Acquire))
    }

    fn store_u16(&self, to: Gpa, value: u16) -> Result<(), RamError> {
        let word = self.at(to, 2)?.cast::<AtomicU16>();
        // SAFETY: as above.
        unsafe { &*word }.store(value, Ordering::Release);
        Ok(())
    }

    fn copy_to(&self, _: Gpa, _: &Ram, _: Gpa, _: u32) -> Result<(), CopyError> {
        unreachable!("nothing is copied")
    }
}

fn pair(ram: &Ram, size: u16, has_event_index: bool) -> (Ring, Queue) {
    let layout = Layout::of(size);
    assert!(layout.bytes <= ram.block.size());
    // SAFETY: zeroed memory of the block, which outlives both.
    let ring = unsafe { Ring::new(ram.start, size, has_event_index) };
    let config = QueueConfig {
        size,
        descriptors: Gpa::new(0),
        driver: Gpa::new(layout.driver as u64),
        device: Gpa::new(layout.device as u64),
    };
    let features = RingFeatures {
        event_index: has_event_index,
        indirect: false,
    };
    (ring, Queue::new(config, features, 1).expect("a good queue"))
}

fn piece(number: u64) -> Piece {
    Piece {
        gpa: 0x1000 + number * 16,
        bytes: 16,
        is_written: true,
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Offers that many chains of that many pieces, then shows them.
    Offer(u8, u8),
    /// The device takes all it finds, and then asks to be told of more or goes on looking.
    Take(bool),
    /// The device gives that many back, the last first.
    GiveBack(u8),
    /// The driver asks for an interrupt after that many, or for none.
    Want(Option<u8>),
    /// The driver takes that many back.
    Reap(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..5_u8, 1..4_u8).prop_map(|(chains, pieces)| Step::Offer(chains, pieces)),
        2 => any::<bool>().prop_map(Step::Take),
        3 => (1..6_u8).prop_map(Step::GiveBack),
        1 => prop::option::of(1..4_u8).prop_map(Step::Want),
        2 => (1..8_u8).prop_map(Step::Reap),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chains_come_back_once_and_whoever_asked_is_told(
        steps in steps(),
        has_event_index: bool,
        start in prop_oneof![Just(0_u16), 65_500..=65_535_u16],
    ) {
        let ram = Ram::new(1 << 16);
        let (mut ring, mut queue) = pair(&ram, 16, has_event_index);
        let mut chain = Chain::new();
        // Turn the indices on, one chain at a time, so that they pass 2^16 among the steps.
        for _ in 0..start {
            // SAFETY: nobody accesses the pieces.
            unsafe { ring.add(&[piece(0)]) }.expect("room");
            let _ = ring.publish();
            queue.pop(&ram, &mut chain).expect("a good chain");
            queue.complete(&ram, &chain, 0).expect("a good chain");
            queue.publish(&ram).expect("RAM");
            let _ = queue.take_interrupt(&ram);
            ring.pop().expect("it came back");
        }

        let mut offered = BTreeSet::new();
        let mut taken: VecDeque<Chain> = VecDeque::new();
        let mut returned = VecDeque::new();
        let (mut device_waits, mut wanted) = (false, None::<u16>);
        device_waits |= !queue.resume_notifications(&ram).expect("RAM");
        for step in steps {
            match step {
                Step::Offer(chains, pieces) => {
                    let mut added = 0;
                    for _ in 0..chains {
                        let pieces: Vec<_> = (0..u64::from(pieces)).map(piece).collect();
                        let has_room = usize::from(ring.room()) >= pieces.len();
                        // SAFETY: nobody accesses the pieces.
                        let head = unsafe { ring.add(&pieces) };
                        prop_assert_eq!(head.is_some(), has_room);
                        if let Some(head) = head {
                            prop_assert!(offered.insert(head), "{} is in use", head);
                            added += 1;
                        }
                    }
                    let kicks = ring.publish();
                    prop_assert_eq!(kicks, device_waits && added > 0);
                    // With flags the wish stands until it is taken back.
                    device_waits &= added == 0 || !has_event_index;
                }
                Step::Take(waits) => {
                    queue.suppress_notifications(&ram).expect("RAM");
                    device_waits &= has_event_index;
                    loop {
                        while queue.pop(&ram, &mut chain).expect("good chains") {
                            prop_assert!(offered.contains(&chain.head()));
                            taken.push_back(chain.clone());
                        }
                        if !waits || !queue.resume_notifications(&ram).expect("RAM") {
                            break;
                        }
                    }
                    device_waits |= waits;
                }
                Step::GiveBack(count) => {
                    let mut given = 0;
                    for _ in 0..count {
                        let Some(chain) = taken.pop_back() else { break };
                        queue.complete(&ram, &chain, 3).expect("a good chain");
                        returned.push_back(chain.head());
                        given += 1;
                    }
                    queue.publish(&ram).expect("RAM");
                    let interrupts = queue.take_interrupt(&ram).expect("RAM");
                    match wanted.as_mut() {
                        Some(left) if *left <= given => {
                            prop_assert!(interrupts);
                            // With flags it stays wanted.
                            wanted = (!has_event_index).then_some(1);
                        }
                        Some(left) => {
                            prop_assert!(!interrupts || (!has_event_index && given > 0));
                            *left -= given;
                        }
                        None => prop_assert!(!interrupts),
                    }
                }
                Step::Want(Some(after)) => {
                    let after = u16::from(after);
                    let is_late = ring.want_interrupt(after);
                    prop_assert_eq!(is_late, !returned.is_empty());
                    let before = returned.len() as u16;
                    // What is there already counts.
                    wanted = if !has_event_index {
                        Some(1)
                    } else {
                        after.checked_sub(before).filter(|left| *left > 0)
                    };
                }
                Step::Want(None) => {
                    ring.want_no_interrupt();
                    wanted = None;
                }
                Step::Reap(count) => {
                    for _ in 0..count {
                        let used = ring.pop();
                        prop_assert_eq!(used.map(|used| used.head), returned.pop_front());
                        let Some(used) = used else { break };
                        prop_assert_eq!(used.bytes, 3);
                        prop_assert!(offered.remove(&used.head));
                    }
                }
            }
        }
    }
}

/// Both sides sleep when they have nothing to do, and count on being told.
#[test]
fn on_two_threads_neither_side_sleeps_through_the_others_news() {
    const CHAINS: u64 = 200_000;
    let ram = Ram::new(1 << 16);
    let (mut ring, mut queue) = pair(&ram, 8, true);
    let (kicked, interrupted) = (AtomicBool::new(false), AtomicBool::new(false));
    let progress = AtomicU64::new(0);
    let sleep = |flag: &AtomicBool| {
        let start = std::time::Instant::now();
        while !flag.swap(false, Ordering::AcqRel) {
            assert!(
                start.elapsed().as_secs() < 20,
                "nobody woke it after {progress:?}"
            );
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut chain = Chain::new();
            let mut served = 0;
            while served < CHAINS {
                while queue.pop(&ram, &mut chain).expect("a good chain") {
                    queue.complete(&ram, &chain, 0).expect("a good chain");
                    queue.publish(&ram).expect("RAM");
                    served += 1;
                    if queue.take_interrupt(&ram).expect("RAM") {
                        interrupted.store(true, Ordering::Release);
                    }
                }
                if served < CHAINS && !queue.resume_notifications(&ram).expect("RAM") {
                    sleep(&kicked);
                }
            }
        });
        let (mut sent, mut back) = (0, 0);
        while back < CHAINS {
            // SAFETY: nobody accesses the piece.
            while sent < CHAINS && unsafe { ring.add(&[piece(0)]) }.is_some() {
                sent += 1;
            }
            if ring.publish() {
                kicked.store(true, Ordering::Release);
            }
            while ring.pop().is_some() {
                back += 1;
            }
            progress.store(back, Ordering::Relaxed);
            if back < sent && !ring.want_interrupt(1) {
                sleep(&interrupted);
            }
        }
    });
}

#[test]
#[should_panic(expected = "which it does not have")]
fn a_chain_that_was_never_offered_does_not_come_back() {
    let ram = Ram::new(1 << 12);
    let (mut ring, _) = pair(&ram, 8, false);
    let used = Layout::of(8).device as u64;
    ram.write(Gpa::new(used + 4), &[3, 0, 0, 0]).expect("RAM");
    ram.store_u16(Gpa::new(used + 2), 1).expect("RAM");
    let _ = ring.pop();
}
