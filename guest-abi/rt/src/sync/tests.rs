//! On real threads of the host; `tests/loom.rs` explores the interleavings of small cases.

use core::sync::atomic::AtomicU32;
use std::sync::Arc;
use std::thread;
use std::vec::Vec;

use super::atomic::{AtomicU8, AtomicU64, Ordering};
use super::*;

/// Members by bit: set while alive. The clock counts how often it was asked.
struct Double {
    alive: AtomicU32,
    incarnation: AtomicU64,
    clock: AtomicU64,
}

impl Double {
    fn alive(mask: u32) -> Double {
        Double {
            alive: AtomicU32::new(mask),
            incarnation: AtomicU64::new(1),
            clock: AtomicU64::new(0),
        }
    }
}

impl Peers for Double {
    fn is_alive(&self, member: u32) -> bool {
        self.alive.load(Ordering::SeqCst) & (1 << member) != 0
    }

    fn incarnation(&self, _: u32) -> u64 {
        self.incarnation.load(Ordering::SeqCst)
    }

    fn ticks(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }
}

/// Members that are reset while one waits for them: whoever looks finds them alive, first in one life, then in the next.
#[derive(Default)]
struct Reset {
    relaxed: AtomicU64,
}

impl Peers for Reset {
    fn is_alive(&self, _: u32) -> bool {
        true
    }

    fn incarnation(&self, _: u32) -> u64 {
        if self.relaxed.load(Ordering::SeqCst) < 300 {
            1
        } else {
            2
        }
    }

    fn ticks(&self) -> u64 {
        0
    }

    fn relax(&self) {
        self.relaxed.fetch_add(1, Ordering::SeqCst);
    }
}

/// The end of the life that all doubles begin with.
fn died(member: u32) -> PeerDied {
    PeerDied {
        member,
        incarnation: 1,
    }
}

#[test]
fn the_lock_excludes() {
    let shared = Arc::new((SpinLock::new(), AtomicU64::new(0)));
    let threads: Vec<_> = (0..4)
        .map(|me| {
            let shared = shared.clone();
            thread::spawn(move || {
                let peers = Double::alive(u32::MAX);
                for _ in 0..500 {
                    let _guard = shared.0.lock(me, &peers).expect("nobody dies");
                    // Not atomic as a whole: only the lock makes it right.
                    shared
                        .1
                        .store(shared.1.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join().is_ok());
    }
    assert_eq!(shared.1.load(Ordering::SeqCst), 2000);
}

#[test]
fn a_dead_holders_lock_is_inherited_with_an_error_and_opens_again_once_mended() {
    let lock = SpinLock::new();
    let peers = Double::alive(0b11);
    core::mem::forget(lock.lock(1, &peers).expect("free"));
    peers.alive.store(0b01, Ordering::SeqCst);
    match lock.lock(0, &peers) {
        Err(LockError::OwnerDied(recovery)) => {
            assert_eq!(recovery.died(), died(1));
            assert!(
                matches!(lock.try_lock_for(0, &peers, 5), Err(LockError::TimedOut)),
                "the heir holds it"
            );
            drop(recovery.recovered());
        }
        other => panic!("{other:?}"),
    }
    assert!(lock.lock(0, &peers).is_ok());
}

#[test]
fn a_lock_whose_heir_gives_up_stays_closed() {
    let lock = SpinLock::new();
    let peers = Double::alive(0b11);
    core::mem::forget(lock.lock(1, &peers).expect("free"));
    peers.alive.store(0b01, Ordering::SeqCst);
    drop(lock.lock(0, &peers));
    assert!(matches!(
        lock.lock(0, &peers),
        Err(LockError::NotRecoverable)
    ));
}

#[test]
fn a_new_member_with_the_holders_index_does_not_keep_its_lock_closed() {
    let lock = SpinLock::new();
    let peers = Double::alive(0b11);
    core::mem::forget(lock.lock(1, &peers).expect("free"));
    peers.incarnation.store(2, Ordering::SeqCst);
    assert!(matches!(lock.lock(0, &peers), Err(LockError::OwnerDied(_))));
}

#[test]
fn a_living_holder_is_waited_for_no_longer_than_asked() {
    let lock = SpinLock::new();
    let peers = Double::alive(0b11);
    let _held = lock.lock(1, &peers).expect("free");
    assert!(matches!(
        lock.try_lock_for(0, &peers, 3),
        Err(LockError::TimedOut)
    ));
}

#[test]
fn nobody_passes_the_barrier_alone_and_the_living_go_on_without_the_dead() {
    let shared = Arc::new((Barrier::new(), AtomicU64::new(0)));
    let threads: Vec<_> = (0..3)
        .map(|me| {
            let shared = shared.clone();
            thread::spawn(move || {
                let peers = Double::alive(0b111);
                let meet = || shared.0.wait(me, 0b111, &peers, Patience::Endless);
                for round in 0..100 {
                    shared.1.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(meet(), Ok(()));
                    assert!(shared.1.load(Ordering::SeqCst) >= (round + 1) * 3);
                    assert_eq!(meet(), Ok(()));
                }
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join().is_ok());
    }
    let without_2 = Double::alive(0b011);
    let died = Err(BarrierError::PeerDied(died(2)));
    assert_eq!(shared.0.arrive(0).map(drop), Ok(()));
    assert_eq!(shared.0.wait(1, 0b111, &without_2, Patience::Endless), died);
    assert_eq!(
        shared.0.wait(1, 0b010, &without_2, Patience::Endless),
        Ok(())
    );
}

#[test]
fn an_arrival_stands_after_a_time_out() {
    let barrier = Barrier::new();
    let peers = Double::alive(0b11);
    let Err(BarrierError::TimedOut(round)) = barrier.wait(0, 0b11, &peers, Patience::Ticks(2))
    else {
        panic!("member 1 has not come")
    };
    assert!(barrier.arrive(1).is_ok());
    assert_eq!(
        barrier.wait_for(round, 0b11, &peers, Patience::Ticks(2)),
        Ok(())
    );
    assert_eq!(barrier.arrive(32), Err(BarrierError::NoMember(32)));
}

#[test]
fn bytes_pass_the_ring_in_order_and_what_a_dead_peer_put_is_kept() {
    let shared = Arc::new((RingHeader::default(), [const { AtomicU8::new(0) }; 7]));
    let sender = {
        let shared = shared.clone();
        thread::spawn(move || {
            let mut producer = Producer::new(&shared.0, &shared.1, 1);
            let peers = Double::alive(0b11);
            for value in 0..5000_u32 {
                assert_eq!(
                    producer.push(value as u8, &peers, Patience::Endless),
                    Ok(())
                );
            }
        })
    };
    let mut consumer = Consumer::new(&shared.0, &shared.1, 0);
    let peers = Double::alive(0b11);
    for value in 0..4998_u32 {
        assert_eq!(consumer.pop(&peers, Patience::Endless), Ok(value as u8));
    }
    assert!(sender.join().is_ok());
    let dead = Double::alive(0b10);
    assert_eq!(consumer.pop(&dead, Patience::Endless), Ok(4998_u32 as u8));
    assert_eq!(consumer.pop(&dead, Patience::Endless), Ok(4999_u32 as u8));
    assert_eq!(
        consumer.pop(&dead, Patience::Endless),
        Err(RingError::PeerDied(died(0)))
    );
}

#[test]
fn full_and_empty_rings_are_waited_for_no_longer_than_asked() {
    let (header, slots) = (RingHeader::default(), [const { AtomicU64::new(0) }; 2]);
    let peers = Double::alive(0b11);
    let mut consumer = Consumer::new(&header, &slots, 0);
    assert_eq!(
        consumer.pop(&peers, Patience::Ticks(2)),
        Err(RingError::TimedOut)
    );
    let mut producer = Producer::new(&header, &slots, 1);
    assert_eq!(
        (producer.try_push(1), producer.try_push(2)),
        (Ok(true), Ok(true))
    );
    assert_eq!(
        producer.push(3, &peers, Patience::Ticks(2)),
        Err(RingError::TimedOut)
    );
    let mut none = Producer::<AtomicU64>::new(&header, &[], 1);
    assert_eq!(none.try_push(1), Ok(false));
}

/// The peer's counter holds any value at any step: each answer is an error or one of the values that were put, and an end that
/// has seen nonsense once goes on saying so.
#[test]
fn nonsense_in_a_counter_is_an_error() {
    for nonsense in [5, u64::MAX, u64::MAX - 3, 1 << 63] {
        let (header, slots) = (RingHeader::default(), [const { AtomicU64::new(0) }; 4]);
        let mut consumer = Consumer::new(&header, &slots, 0);
        header.overwrite_put(nonsense);
        assert_eq!(
            consumer.try_pop(),
            Err(RingError::Corrupt { found: nonsense })
        );
        assert_eq!(
            consumer.try_pop(),
            Err(RingError::Corrupt { found: nonsense })
        );

        let mut producer = Producer::new(&header, &slots, 1);
        for value in 0..4 {
            assert_eq!(producer.try_push(value), Ok(true));
        }
        header.overwrite_taken(nonsense);
        assert_eq!(
            producer.try_push(4),
            Err(RingError::Corrupt { found: nonsense })
        );
    }
}

#[test]
fn a_counter_that_goes_back_is_an_error() {
    let (header, slots) = (RingHeader::default(), [const { AtomicU64::new(0) }; 4]);
    let mut producer = Producer::new(&header, &slots, 1);
    let mut consumer = Consumer::new(&header, &slots, 0);
    assert_eq!(
        (producer.try_push(1), consumer.try_pop()),
        (Ok(true), Ok(Some(1)))
    );
    header.overwrite_put(0);
    assert_eq!(consumer.try_pop(), Err(RingError::Corrupt { found: 0 }));
}

#[test]
fn a_wait_ends_with_the_life_that_it_began_with() {
    let peers = Reset::default();
    let waited = spin_for(&peers, 3, Patience::Endless, || None::<()>);
    assert_eq!(waited, Err(WaitError::PeerDied(died(3))));

    // And what is found after the next life has begun is not taken for the first one's.
    let peers = Reset::default();
    let is_late = || (peers.incarnation(3) == 2).then_some(());
    let waited = spin_for(&peers, 3, Patience::Endless, is_late);
    assert_eq!(waited, Err(WaitError::PeerDied(died(3))));
}

#[test]
fn a_member_that_is_reset_before_it_comes_is_missing_at_the_barrier() {
    let barrier = Barrier::new();
    let missing = barrier.wait(0, 0b11, &Reset::default(), Patience::Endless);
    assert_eq!(missing, Err(BarrierError::PeerDied(died(1))));
    // All were asked for when the wait began, not one after the other.
    let peers = Reset::default();
    let missing = barrier.wait(0, 0b111, &peers, Patience::Endless);
    assert_eq!(missing, Err(BarrierError::PeerDied(died(1))));
    // Who had come before is not waited for.
    let peers = Reset::default();
    let round = barrier.arrive(0).expect("a member");
    for _ in 0..3 {
        barrier.arrive(1).expect("a member");
    }
    assert_eq!(
        barrier.wait_for(round, 0b10, &peers, Patience::Endless),
        Ok(())
    );
    let missing = barrier.wait_for(round, 0b110, &peers, Patience::Endless);
    assert_eq!(missing, Err(BarrierError::PeerDied(died(2))));
}

#[test]
fn the_next_life_of_a_rings_peer_is_not_its_peer() {
    let (header, slots) = (RingHeader::default(), [const { AtomicU64::new(0) }; 4]);
    let mut consumer = Consumer::new(&header, &slots, 1);
    let peers = Reset::default();
    let dead = Err(RingError::PeerDied(died(1)));
    assert_eq!(consumer.pop(&peers, Patience::Endless), dead);
    // The next life begins at the ring's beginning, which is where the consumer is.
    let mut next_life = Producer::new(&header, &slots, 0);
    assert_eq!(next_life.try_push(7), Ok(true));
    assert_eq!(consumer.pop(&peers, Patience::Endless), dead);

    let (header, slots) = (RingHeader::default(), [const { AtomicU64::new(0) }; 1]);
    let peers = Reset::default();
    let mut producer = Producer::new(&header, &slots, 1);
    assert_eq!(producer.push(1, &peers, Patience::Endless), Ok(()));
    let dead = Err(RingError::PeerDied(died(1)));
    assert_eq!(producer.push(2, &peers, Patience::Endless), dead);
}

#[test]
fn a_ring_can_be_bound_to_a_life_before_it_is_used() {
    let (header, slots) = (RingHeader::default(), [const { AtomicU64::new(0) }; 4]);
    let peers = Double::alive(0b11);
    let life = Life::now(&peers, 1);
    let mut consumer = Consumer::of_life(&header, &slots, life);
    let mut producer = Producer::to_life(&header, &slots, life);
    assert_eq!(producer.push(1, &peers, Patience::Endless), Ok(()));
    peers.incarnation.store(2, Ordering::SeqCst);
    let dead = RingError::PeerDied(died(1));
    assert_eq!(consumer.pop(&peers, Patience::Endless), Err(dead));
    for _ in 0..3 {
        assert_eq!(producer.push(1, &peers, Patience::Endless), Ok(()));
    }
    assert_eq!(producer.push(1, &peers, Patience::Endless), Err(dead));
}

/// What the next life puts makes a counter go back: that is the death, and not a broken peer.
#[test]
fn a_reset_is_not_mistaken_for_a_broken_peer() {
    let (header, slots) = (RingHeader::default(), [const { AtomicU64::new(0) }; 4]);
    let peers = Double::alive(0b11);
    let mut producer = Producer::new(&header, &slots, 0);
    let mut consumer = Consumer::new(&header, &slots, 1);
    for value in 0..3 {
        assert_eq!(producer.try_push(value), Ok(true));
        assert_eq!(consumer.pop(&peers, Patience::Endless), Ok(value));
    }
    peers.incarnation.store(2, Ordering::SeqCst);
    let mut next_life = Producer::new(&header, &slots, 0);
    assert_eq!(next_life.try_push(7), Ok(true));
    assert_eq!(
        consumer.pop(&peers, Patience::Endless),
        Err(RingError::PeerDied(died(1)))
    );
}

fn queue() -> (QueueHeader, [QueueSlot; 4]) {
    (QueueHeader::default(), Default::default())
}

#[test]
fn a_queue_keeps_each_producers_order_and_loses_nothing() {
    const EACH: u64 = 2000;
    let shared = Arc::new(queue());
    let threads: Vec<_> = (1..4_u32)
        .map(|me| {
            let shared = shared.clone();
            thread::spawn(move || {
                let peers = Double::alive(u32::MAX);
                let sender = Sender::new(&shared.0, &shared.1, me, 0, &peers).expect("four slots");
                for count in 0..EACH {
                    let value = u64::from(me) << 32 | count;
                    assert_eq!(sender.send(value, &peers, Patience::Endless), Ok(()));
                }
            })
        })
        .collect();
    let peers = Double::alive(u32::MAX);
    let mut receiver = Receiver::new(&shared.1, 0b1110, &peers).expect("four slots");
    let mut next = [0_u64; 4];
    for _ in 0..3 * EACH {
        let value = receiver
            .receive(&peers, Patience::Endless)
            .expect("nobody dies");
        let count = &mut next[(value >> 32) as usize];
        assert_eq!(value & 0xFFFF_FFFF, *count);
        *count += 1;
    }
    assert_eq!(next, [0, EACH, EACH, EACH]);
    for thread in threads {
        assert!(thread.join().is_ok());
    }
}

#[test]
fn a_producer_that_dies_half_way_holds_no_other_up() {
    let (header, slots) = queue();
    let peers = Double::alive(0b111);
    let sender = |me| Sender::new(&header, &slots, me, 0, &peers).expect("four slots");
    let mut receiver = Receiver::new(&slots, 0b110, &peers).expect("four slots");
    let (whole, broken) = (sender(1), sender(2));
    assert_eq!(whole.try_send(10), Ok(true));
    broken.claim_only(1);
    assert_eq!(whole.try_send(11), Ok(true));
    assert_eq!(receiver.try_receive(), Ok(Some(10)));
    // As long as it lives its value may still come.
    assert_eq!(
        receiver.receive(&peers, Patience::Ticks(2)),
        Err(QueueError::TimedOut)
    );
    peers.alive.store(0b011, Ordering::SeqCst);
    assert_eq!(receiver.receive(&peers, Patience::Endless), Ok(11));
    assert_eq!(
        receiver.receive(&peers, Patience::Endless),
        Err(QueueError::PeerDied(died(2)))
    );
    for value in 0..9 {
        assert_eq!(whole.try_send(value), Ok(true));
        assert_eq!(receiver.receive(&peers, Patience::Endless), Ok(value));
    }
    peers.alive.store(0b001, Ordering::SeqCst);
    assert_eq!(
        receiver.receive(&peers, Patience::Endless),
        Err(QueueError::PeerDied(died(1)))
    );
    assert_eq!(
        receiver.receive(&peers, Patience::Endless),
        Err(QueueError::NobodyLeft)
    );
}

#[test]
fn a_claim_of_an_earlier_life_is_a_dead_ones() {
    let (header, slots) = queue();
    let peers = Double::alive(0b11);
    let mut receiver = Receiver::new(&slots, 0b10, &peers).expect("four slots");
    Sender::new(&header, &slots, 1, 0, &peers)
        .expect("four slots")
        .claim_only(0);
    peers.incarnation.store(2, Ordering::SeqCst);
    assert_eq!(
        receiver.receive(&peers, Patience::Endless),
        Err(QueueError::PeerDied(died(1)))
    );
    let next_life = Sender::new(&header, &slots, 1, 0, &peers).expect("four slots");
    assert_eq!(next_life.try_send(5), Ok(true));
    assert_eq!(receiver.receive(&peers, Patience::Endless), Ok(5));
}

#[test]
fn a_full_queue_is_waited_for_no_longer_than_the_consumer_lives() {
    let (header, slots) = queue();
    let peers = Double::alive(0b11);
    let sender = Sender::new(&header, &slots, 1, 0, &peers).expect("four slots");
    for value in 0..4 {
        assert_eq!(sender.try_send(value), Ok(true));
    }
    assert_eq!(sender.try_send(4), Ok(false));
    assert_eq!(
        sender.send(4, &peers, Patience::Ticks(2)),
        Err(QueueError::TimedOut)
    );
    assert_eq!(
        sender.send(4, &Reset::default(), Patience::Endless),
        Err(QueueError::PeerDied(died(0)))
    );
    let three: [QueueSlot; 3] = Default::default();
    assert!(Receiver::new(&three, 1, &peers).is_none());
}

#[test]
fn nonsense_in_a_queue_is_an_error() {
    let peers = Double::alive(0b11);
    for nonsense in [3, 4 << 2, 5 << 2 | 1, 2, 200 << 2 | 2] {
        let (header, slots) = queue();
        let sender = Sender::new(&header, &slots, 1, 0, &peers).expect("four slots");
        let mut receiver = Receiver::new(&slots, 0b10, &peers).expect("four slots");
        slots[0].overwrite_state(nonsense);
        let corrupt = QueueError::Corrupt { found: nonsense };
        assert_eq!(receiver.try_receive(), Err(corrupt));
        // To a producer a later lap looks as if others had been there.
        if nonsense & 3 >= 2 {
            assert_eq!(sender.try_send(1), Err(corrupt));
        }
    }
    for hint in [4, 400, u64::MAX - 1] {
        let (header, slots) = queue();
        let sender = Sender::new(&header, &slots, 1, 0, &peers).expect("four slots");
        header.overwrite_tail(hint);
        assert_eq!(sender.try_send(1), Err(QueueError::Corrupt { found: 0 }));
    }
}
