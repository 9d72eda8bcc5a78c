use super::*;
use proptest::prelude::*;
use std::sync::Arc;
use std::thread;
use std::vec::Vec;

#[test]
fn what_was_heeded_is_news_again_with_the_next_ring() {
    let mailbox = Mailbox::new(1);
    for round in 0..3 {
        assert!(mailbox.ring(1, 1000 * round).is_ok());
        assert!(mailbox.has_outstanding());
        mailbox.heed();
        assert!(mailbox.has_pending() && !mailbox.has_outstanding());
    }
    let _ = mailbox.notify_group_changed();
    assert!(mailbox.has_outstanding());
    mailbox.heed();
    assert_eq!(mailbox.take(), WAIT_GROUP_CHANGED | 1 << 1);
    assert!(mailbox.ring(2, 9000).is_ok() && mailbox.has_outstanding());
}

#[test]
fn a_mailbox_that_is_restored_has_what_was_pending_and_the_same_rates() {
    let mailbox = Mailbox::new(100);
    for _ in 0..=BURST {
        assert!(mailbox.ring(3, 5_000).is_ok());
    }
    mailbox.heed();
    mailbox.set_masked(true);
    let mut state = mailbox.save();
    state.shift(TscShift::between(5_000, 90_000));
    let restored = Mailbox::restore(&state).expect("is one");
    assert_eq!(restored.save(), state);
    assert!(restored.has_pending() && !restored.has_outstanding());
    assert_eq!(restored.ring(1, 90_000), Err(Errno::Busy));
    restored.set_masked(false);
    assert_eq!(
        restored.ring(3, 90_000),
        Err(Errno::Again),
        "it has paid for as many"
    );
    assert!(restored.ring(3, 90_100).is_ok());
    assert_eq!(restored.take(), 1 << 3);
    state.word = 1 << 59;
    assert_eq!(
        Mailbox::restore(&state).expect_err("is refused").field,
        "word"
    );
}

#[test]
fn a_ring_arrives_once_and_names_its_sender() {
    let mailbox = Mailbox::new(1);
    assert_eq!(mailbox.ring(3, 0), Ok(Delivered { was_empty: true }));
    assert_eq!(mailbox.ring(3, 0), Ok(Delivered { was_empty: false }));
    assert_eq!(mailbox.ring(0, 0), Ok(Delivered { was_empty: false }));
    assert!(mailbox.has_pending());
    assert_eq!(mailbox.take(), 0b1001);
    assert!(!mailbox.has_pending());
    assert_eq!(mailbox.take(), 0);
    assert_eq!(mailbox.received(), 3);
}

#[test]
fn the_dead_and_the_masked_say_so() {
    let mailbox = Mailbox::new(1);
    mailbox.set_masked(true);
    assert_eq!(mailbox.ring(0, 0), Err(Errno::Busy));
    mailbox.set_masked(false);
    assert!(mailbox.ring(0, 0).is_ok());
    mailbox.close();
    assert_eq!(mailbox.ring(0, 0), Err(Errno::NoPeer));
    mailbox.set_masked(true);
    assert_eq!(
        mailbox.ring(0, 0),
        Err(Errno::NoPeer),
        "death is told before masking"
    );
    assert_eq!(mailbox.ring(MAX_MEMBERS, 0), Err(Errno::Inval));
    assert_eq!(mailbox.received(), 1);
}

#[test]
fn masking_keeps_what_is_pending_and_its_own_bit_is_no_event() {
    let mailbox = Mailbox::new(1);
    assert!(mailbox.ring(5, 0).is_ok());
    mailbox.set_masked(true);
    assert_eq!(mailbox.take(), 1 << 5);
    assert!(!mailbox.has_pending());
    mailbox.close();
    assert!(!mailbox.has_pending());
    assert_eq!(mailbox.take(), 0);
}

#[test]
fn a_flood_is_throttled_to_the_rate_and_others_are_not() {
    let mailbox = Mailbox::new(100);
    while mailbox.ring(1, 10_000).is_ok() {}
    assert_eq!(mailbox.ring(1, 10_000), Err(Errno::Again));
    assert!(mailbox.ring(2, 10_000).is_ok());
    assert!(mailbox.ring(1, 10_000 + 100 * BURST).is_ok());
}

#[test]
fn refused_rings_are_free() {
    let mailbox = Mailbox::new(100);
    mailbox.set_masked(true);
    for _ in 0..1000 {
        assert_eq!(mailbox.ring(1, 0), Err(Errno::Busy));
    }
    mailbox.set_masked(false);
    assert!(mailbox.ring(1, 0).is_ok());
}

#[test]
fn several_vcpus_of_a_sender_share_one_rate() {
    let mailbox = Arc::new(Mailbox::new(1000));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let mailbox = mailbox.clone();
            thread::spawn(move || (0..1000).filter(|_| mailbox.ring(0, 5).is_ok()).count())
        })
        .collect();
    let delivered: usize = threads
        .into_iter()
        .map(|thread| thread.join().expect("no panic"))
        .sum();
    assert_eq!(delivered as u64, BURST + 1);
}

#[test]
fn a_change_of_the_group_passes_the_mask_and_wakes_nobody_who_is_gone() {
    let mailbox = Mailbox::new(1);
    mailbox.set_masked(true);
    assert!(mailbox.notify_group_changed().was_empty);
    assert_eq!(mailbox.take(), WAIT_GROUP_CHANGED);
    mailbox.close();
    assert!(!mailbox.notify_group_changed().was_empty);
}

#[test]
fn no_ring_is_lost_between_ringing_and_taking() {
    let mailbox = Arc::new(Mailbox::new(0));
    let rings = if cfg!(miri) { 200 } else { 100_000 };
    let data = Arc::new(AtomicU64::new(0));
    let sender = {
        let (mailbox, data) = (mailbox.clone(), data.clone());
        thread::spawn(move || {
            for value in 1..=rings {
                data.store(value, Ordering::Relaxed);
                assert!(mailbox.ring(0, 0).is_ok());
            }
        })
    };
    // What was written before the last ring is seen by whoever takes the last bit.
    let mut seen = 0;
    while seen < rings {
        if mailbox.take() != 0 {
            seen = data.load(Ordering::Relaxed);
        }
    }
    assert!(sender.join().is_ok());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ring(usize),
    Wait(u64),
    Take,
    Mask(bool),
    Change,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4_usize).prop_map(Step::Ring),
        2 => (0..3_000_u64).prop_map(Step::Wait),
        2 => Just(Step::Take),
        1 => any::<bool>().prop_map(Step::Mask),
        1 => Just(Step::Change),
    ]
}

proptest! {
    /// Against a model in plain words: a budget of rings for each sender that refills one by one, and a set of bits.
    #[test]
    fn a_mailbox_does_what_its_model_does(
        mut steps in proptest::collection::vec(step(), 1..400),
        close_at in 0..800_usize,
        interval in 0..50_u64,
    ) {
        if close_at < steps.len() {
            steps.insert(close_at, Step::Close);
        }
        let mailbox = Mailbox::new(interval);
        let (mut now, mut bits, mut masked, mut closed) = (0_u64, 0_u64, false, false);
        // Ticks of credit: BURST + 1 rings at the start, never more.
        let full = interval * (BURST + 1);
        let mut credit = [full; 4];
        for step in steps {
            match step {
                Step::Ring(sender) => {
                    let expected = if closed {
                        Err(Errno::NoPeer)
                    } else if masked {
                        Err(Errno::Busy)
                    } else if credit[sender] < interval {
                        Err(Errno::Again)
                    } else {
                        credit[sender] -= interval;
                        let was_empty = bits == 0;
                        bits |= 1 << sender;
                        Ok(Delivered { was_empty })
                    };
                    prop_assert_eq!(mailbox.ring(sender, now), expected);
                }
                Step::Wait(ticks) => {
                    now += ticks;
                    for credit in &mut credit {
                        *credit = (*credit + ticks).min(full);
                    }
                }
                Step::Take => prop_assert_eq!(mailbox.take(), std::mem::take(&mut bits)),
                Step::Mask(on) => {
                    masked = on;
                    mailbox.set_masked(on);
                }
                Step::Change => {
                    let was_empty = bits == 0 && !closed;
                    bits |= WAIT_GROUP_CHANGED;
                    prop_assert_eq!(mailbox.notify_group_changed(), Delivered { was_empty });
                }
                Step::Close => {
                    closed = true;
                    mailbox.close();
                }
            }
            prop_assert_eq!(mailbox.has_pending(), bits != 0);
        }
    }
}
