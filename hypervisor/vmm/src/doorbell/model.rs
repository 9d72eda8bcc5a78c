//! All interleavings of small cases, by the model checker loom.

use super::*;
use loom::thread;
use std::sync::Arc;

#[test]
fn every_ring_is_taken_once_and_every_filling_is_announced_once() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(1));
        let senders: std::vec::Vec<_> = (0..2)
            .map(|sender| {
                let mailbox = mailbox.clone();
                thread::spawn(move || mailbox.ring(sender, 0).expect("open").was_empty)
            })
            .collect();
        let first = mailbox.take();
        let announced = senders
            .into_iter()
            .filter_map(|sender| sender.join().ok())
            .filter(|was_empty| *was_empty)
            .count();
        let second = mailbox.take();
        assert_eq!(first | second, 0b11, "no ring is lost");
        assert_eq!(first & second, 0, "none is taken twice");
        let fillings = [first, second].iter().filter(|bits| **bits != 0).count();
        assert_eq!(announced, fillings, "each filling wakes the receiver once");
    });
}

#[test]
fn what_was_written_before_a_ring_is_seen_after_taking_it() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(1));
        let data = Arc::new(AtomicU64::new(0));
        let sender = {
            let (mailbox, data) = (mailbox.clone(), data.clone());
            thread::spawn(move || {
                data.store(7, Ordering::Relaxed);
                mailbox.ring(0, 0).expect("open");
            })
        };
        if mailbox.take() != 0 {
            assert_eq!(data.load(Ordering::Relaxed), 7);
        }
        sender.join().expect("no panic");
    });
}

#[test]
fn nothing_arrives_after_closing_and_an_error_means_nothing_arrived() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(1));
        let sender = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.ring(0, 0))
        };
        mailbox.close();
        let at_closing = mailbox.take();
        let answer = sender.join().expect("no panic");
        assert_eq!(mailbox.take(), 0, "a closed mailbox stays empty");
        match answer {
            Ok(_) => assert_eq!(at_closing, 1),
            Err(errno) => {
                assert_eq!(errno, Errno::NoPeer);
                assert_eq!(at_closing, 0);
            }
        }
    });
}

#[test]
fn nothing_arrives_between_masking_and_unmasking() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(1));
        let sender = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.ring(0, 0))
        };
        mailbox.set_masked(true);
        let before = mailbox.take();
        let during = mailbox.take();
        mailbox.set_masked(false);
        assert_eq!(during, 0);
        let answer = sender.join().expect("no panic");
        let after = mailbox.take();
        assert_eq!(answer.is_ok(), before | after == 1);
    });
}
