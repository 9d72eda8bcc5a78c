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

    fn incarnation(&self, _member: u32) -> u64 {
        self.incarnation.load(Ordering::SeqCst)
    }

    fn ticks(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
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
            assert_eq!(recovery.died(), PeerDied { member: 1 });
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
    let died = Err(BarrierError::PeerDied(PeerDied { member: 2 }));
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
        Err(RingError::PeerDied(PeerDied { member: 0 }))
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
