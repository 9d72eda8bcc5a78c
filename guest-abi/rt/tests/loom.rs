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
    Barrier, BarrierError, Consumer, LockError, Patience, PeerDied, Peers, Producer, RingError,
    RingHeader, SpinLock,
};

/// Members by bit: set while alive.
struct Double(AtomicU64);

impl Double {
    fn new() -> Double {
        Double(AtomicU64::new(0b11))
    }

    fn kill(&self, member: u32) {
        self.0.fetch_and(!(1 << member), Ordering::Release);
    }
}

impl Peers for Double {
    fn is_alive(&self, member: u32) -> bool {
        self.0.load(Ordering::Acquire) & (1 << member) != 0
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
                assert_eq!(recovery.died(), PeerDied { member: 1 });
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
                Err(BarrierError::PeerDied(PeerDied { member: 1 }))
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
        assert_eq!(end, Err(RingError::PeerDied(PeerDied { member: 1 })));
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
