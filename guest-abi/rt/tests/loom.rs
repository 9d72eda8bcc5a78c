//! Every interleaving of small cases of the primitives, by the model checker:
//! `RUSTFLAGS="--cfg loom" cargo test -p nagaya-rt --release --test loom`.
//!
//! A death is modelled as a thread that leaves its work half done and then clears its bit in `alive`, as the hypervisor does after
//! the last instruction of a VM.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use nagaya_rt::sync::{
    Barrier, BarrierError, Consumer, LockError, Patience, PeerDied, Peers, Producer, QueueError,
    QueueHeader, QueueSlot, Receiver, RingError, RingHeader, Sender, SpinLock,
};

/// The end of member 1's first life.
const DIED: PeerDied = PeerDied {
    member: 1,
    incarnation: 1,
};

/// Members by bit: set while alive. From bit 32 on, how often a member was reset.
struct Double(AtomicU64);

impl Double {
    fn new() -> Double {
        Double(AtomicU64::new(0b11))
    }

    /// All members begin their next lives at once.
    fn reset(&self) {
        self.0.fetch_add(1 << 32, Ordering::Release);
    }

    fn kill(&self, member: u32) {
        self.0.fetch_and(!(1 << member), Ordering::Release);
    }
}

impl Peers for Double {
    fn is_alive(&self, member: u32) -> bool {
        self.0.load(Ordering::Acquire) & (1 << member) != 0
    }

    fn incarnation(&self, _: u32) -> u64 {
        1 + (self.0.load(Ordering::Acquire) >> 32)
    }

    fn ticks(&self) -> u64 {
        0
    }
}

/// The lock, what it protects (not atomic as a whole), and who lives.
struct Locked {
    lock: SpinLock,
    value: AtomicU64,
    peers: Double,
}

impl Locked {
    fn new() -> Arc<Locked> {
        Arc::new(Locked {
            lock: SpinLock::new(),
            value: AtomicU64::new(0),
            peers: Double::new(),
        })
    }

    fn increment(&self) {
        self.value
            .store(self.value.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

#[test]
fn the_lock_excludes_and_publishes_what_it_protects() {
    loom::model(|| {
        let shared = Locked::new();
        let other = {
            let shared = shared.clone();
            thread::spawn(move || {
                let _guard = shared.lock.lock(1, &shared.peers).expect("nobody dies");
                shared.increment();
            })
        };
        {
            let _guard = shared.lock.lock(0, &shared.peers).expect("nobody dies");
            shared.increment();
        }
        other.join().expect("the other does not panic");
        assert_eq!(shared.value.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn the_lock_of_a_dead_holder_is_inherited_with_its_last_writes() {
    loom::model(|| {
        let shared = Locked::new();
        let victim = {
            let shared = shared.clone();
            thread::spawn(move || {
                if let Ok(guard) = shared.lock.lock(1, &shared.peers) {
                    shared.increment();
                    core::mem::forget(guard);
                }
                shared.peers.kill(1);
            })
        };
        match shared.lock.lock(0, &shared.peers) {
            Ok(_) => {}
            Err(LockError::OwnerDied(recovery)) => {
                assert_eq!(recovery.died(), DIED);
                assert_eq!(shared.value.load(Ordering::Relaxed), 1);
                drop(recovery.recovered());
            }
            Err(other) => panic!("{other:?}"),
        }
        victim.join().expect("the victim does not panic");
    });
}

#[test]
fn everything_before_the_barrier_is_seen_behind_it() {
    loom::model(|| {
        let shared = Arc::new((
            Barrier::new(),
            [AtomicU64::new(0), AtomicU64::new(0)],
            Double::new(),
        ));
        let run = |shared: Arc<(Barrier, [AtomicU64; 2], Double)>, me: u32| {
            shared.1[me as usize].store(7, Ordering::Relaxed);
            assert_eq!(
                shared.0.wait(me, 0b11, &shared.2, Patience::Endless),
                Ok(())
            );
            assert_eq!(shared.1[1 - me as usize].load(Ordering::Relaxed), 7);
        };
        let other = {
            let shared = shared.clone();
            thread::spawn(move || run(shared, 1))
        };
        run(shared, 0);
        other.join().expect("the other does not panic");
    });
}

#[test]
fn a_member_that_arrived_and_died_counts_as_arrived() {
    for arrives in [false, true] {
        loom::model(move || {
            let shared = Arc::new((Barrier::new(), Double::new()));
            let victim = {
                let shared = shared.clone();
                thread::spawn(move || {
                    if arrives {
                        shared.0.arrive(1).expect("a member");
                    }
                    shared.1.kill(1);
                })
            };
            let met = shared.0.wait(0, 0b11, &shared.1, Patience::Endless);
            let promised = if arrives {
                Ok(())
            } else {
                Err(BarrierError::PeerDied(DIED))
            };
            assert_eq!(met, promised);
            victim.join().expect("the victim does not panic");
        });
    }
}

#[test]
fn the_ring_keeps_order_and_hands_over_what_a_dead_producer_put() {
    loom::model(|| {
        let shared = Arc::new((
            RingHeader::default(),
            [AtomicU64::new(0), AtomicU64::new(0)],
            Double::new(),
        ));
        let victim = {
            let shared = shared.clone();
            thread::spawn(move || {
                let mut producer = Producer::new(&shared.0, &shared.1, 0);
                assert_eq!(producer.try_push(10), Ok(true));
                assert_eq!(producer.try_push(11), Ok(true));
                shared.2.kill(1);
            })
        };
        let mut consumer = Consumer::new(&shared.0, &shared.1, 1);
        assert_eq!(consumer.pop(&shared.2, Patience::Endless), Ok(10));
        assert_eq!(consumer.pop(&shared.2, Patience::Endless), Ok(11));
        let end = consumer.pop(&shared.2, Patience::Endless);
        assert_eq!(end, Err(RingError::PeerDied(DIED)));
        victim.join().expect("the victim does not panic");
    });
}

#[test]
fn a_slot_is_used_again_only_after_it_was_read() {
    loom::model(|| {
        let shared = Arc::new((RingHeader::default(), [AtomicU64::new(0)], Double::new()));
        let sender = {
            let shared = shared.clone();
            thread::spawn(move || {
                let mut producer = Producer::new(&shared.0, &shared.1, 0);
                for value in [1, 2] {
                    assert_eq!(producer.push(value, &shared.2, Patience::Endless), Ok(()));
                }
            })
        };
        let mut consumer = Consumer::new(&shared.0, &shared.1, 1);
        for value in [1, 2] {
            assert_eq!(consumer.pop(&shared.2, Patience::Endless), Ok(value));
        }
        sender.join().expect("the sender does not panic");
    });
}

/// The next life puts a value at the ring's beginning, where the consumer waits for the first life's.
#[test]
fn a_value_of_the_next_life_is_never_taken_for_the_first_ones() {
    loom::model(|| {
        let shared = Arc::new((RingHeader::default(), [AtomicU64::new(0)], Double::new()));
        let mut consumer = Consumer::of_life(
            &shared.0,
            &shared.1,
            nagaya_rt::sync::Life::now(&shared.2, 1),
        );
        let next = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.2.reset();
                let mut producer = Producer::new(&shared.0, &shared.1, 0);
                assert_eq!(producer.try_push(66), Ok(true));
            })
        };
        let popped = consumer.pop(&shared.2, Patience::Endless);
        assert_eq!(popped, Err(RingError::PeerDied(DIED)));
        next.join().expect("the next life does not panic");
    });
}

#[test]
fn a_member_that_is_reset_is_missing_at_the_barrier_even_if_its_next_life_comes() {
    loom::model(|| {
        let shared = Arc::new((Barrier::new(), Double::new()));
        let next = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.1.reset();
                shared.0.arrive(1).expect("a member");
            })
        };
        match shared.0.wait(0, 0b11, &shared.1, Patience::Endless) {
            // The wait began in the next life.
            Ok(()) => assert_eq!(shared.1.incarnation(1), 2),
            Err(error) => assert_eq!(error, BarrierError::PeerDied(DIED)),
        }
        next.join().expect("the next life does not panic");
    });
}

#[test]
fn what_two_producers_put_comes_once_each() {
    loom::model(|| {
        let slots: [QueueSlot; 2] = Default::default();
        let shared = Arc::new((QueueHeader::default(), slots, Double::new()));
        let send = |me: u32, value: u64| {
            let shared = shared.clone();
            thread::spawn(move || {
                let sender =
                    Sender::new(&shared.0, &shared.1, me, 0, &shared.2).expect("two slots");
                assert_eq!(sender.try_send(value), Ok(true));
            })
        };
        let threads = [send(0, 10), send(1, 11)];
        for thread in threads {
            thread.join().expect("nobody panics");
        }
        let mut receiver = Receiver::new(&shared.1, 0b11, &shared.2).expect("two slots");
        let mut got = [receiver.try_receive(), receiver.try_receive()];
        got.sort_by_key(|got| got.ok());
        assert_eq!(got, [Ok(Some(10)), Ok(Some(11))]);
    });
}

#[test]
fn a_queue_hands_over_what_a_dead_producer_put_and_no_more() {
    for is_whole in [true, false] {
        loom::model(move || {
            let slots: [QueueSlot; 2] = Default::default();
            let shared = Arc::new((QueueHeader::default(), slots, Double::new()));
            let mut receiver = Receiver::new(&shared.1, 0b10, &shared.2).expect("two slots");
            let victim = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let sender =
                        Sender::new(&shared.0, &shared.1, 1, 0, &shared.2).expect("two slots");
                    if is_whole {
                        assert_eq!(sender.try_send(10), Ok(true));
                    } else {
                        sender.claim_only(0);
                    }
                    shared.2.kill(1);
                })
            };
            if is_whole {
                assert_eq!(receiver.receive(&shared.2, Patience::Endless), Ok(10));
            }
            let end = receiver.receive(&shared.2, Patience::Endless);
            assert_eq!(end, Err(QueueError::PeerDied(DIED)));
            victim.join().expect("the victim does not panic");
        });
    }
}
