//! A virtqueue whose rings, descriptors and indices are the input's.

use nagaya_devices::queue::{Chain, Queue, QueueError, RingFeatures};
use nagaya_devices::test_support::{Layout, TestRam};

use crate::{Input, Seen};

const RAM_BYTES: usize = 0x4000;

fn target(input: &mut Input<'_>, seen: &mut Seen) {
    let shape = input.byte();
    let features = RingFeatures {
        event_index: shape & 1 != 0,
        indirect: shape & 2 != 0,
    };
    let size = 1_u16 << (shape >> 2 & 3);
    let ram = TestRam::new(RAM_BYTES);
    if shape & 0x80 != 0 {
        ram.make_restless(0..0x800, u64::from(shape));
    }
    let layout = Layout::at(0x100, size);
    let mut queue = Queue::new(layout.config, features, 1).expect("is valid");
    let mut taken: Vec<Chain> = Vec::new();
    // The next entry of the available ring, and the driver's index as the queue saw it last.
    let (mut next, mut seen_index) = (0_u16, 0_u16);
    let index = |ram: &TestRam| ram.peek_u16(layout.config.driver.get() + 2);
    while !input.is_empty() {
        let result = match input.byte() % 8 {
            0 | 1 => {
                let to = 0x100 + input.number::<2>() % 0x300;
                let count = input.byte() % 16;
                let bytes: Vec<u8> = (0..count).map(|_| input.byte()).collect();
                ram.poke(to, &bytes);
                continue;
            }
            // The driver's index, by its distance.
            2 => {
                let at = layout.config.driver.get() + 2;
                let index = ram.peek_u16(at).wrapping_add(u16::from(input.byte() % 4));
                ram.poke(at, &index.to_le_bytes());
                continue;
            }
            3 | 4 => {
                let mut chain = Chain::new();
                let looks = seen_index == next;
                if looks {
                    seen_index = index(&ram);
                }
                let popped = queue.pop(&ram, &mut chain);
                if looks {
                    check_index(seen_index.wrapping_sub(next), size, &popped);
                }
                if popped == Ok(true) {
                    next = next.wrapping_add(1);
                    check(&chain, size);
                    taken.push(chain);
                }
                seen.note(&popped);
                popped.map(|_| ())
            }
            5 => match taken.pop() {
                Some(chain) => {
                    let written = input.number::<1>() as u32;
                    let most = chain.writable_bytes();
                    let done = queue.complete(&ram, &chain, written);
                    assert_eq!(done.is_ok(), written <= most, "{done:?}");
                    seen.note(&done);
                    done
                }
                None => continue,
            },
            6 => queue.publish(&ram).and_then(|()| {
                let wanted = queue.take_interrupt(&ram)?;
                seen.note(&wanted);
                Ok(())
            }),
            _ => {
                seen_index = index(&ram);
                let more = queue.resume_notifications(&ram);
                check_index(seen_index.wrapping_sub(next), size, &more);
                seen.note(&more);
                more.map(|_| ())
            }
        };
        assert!(usize::from(queue.in_flight()) <= usize::from(size));
        // After an error the queue is not used any more.
        if result.is_err() {
            return;
        }
        assert_eq!(usize::from(queue.in_flight()), taken.len());
    }
}

/// What an answer promises that the driver's index led to, which was `ahead` of the device's.
fn check_index(ahead: u16, size: u16, answer: &Result<bool, QueueError>) {
    let is_refused = matches!(answer, Err(QueueError::AvailableIndex { .. }));
    assert_eq!(is_refused, ahead > size, "{ahead} ahead: {answer:?}");
    if ahead == 0 {
        assert_eq!(*answer, Ok(false));
    }
}

/// What a chain promises, whatever the rings say.
fn check(chain: &Chain, size: u16) {
    let (readable, writable) = (chain.readable(), chain.writable());
    assert!(readable.len() + writable.len() <= usize::from(size));
    assert!(!readable.is_empty() || !writable.is_empty());
    let sum = |segments: &[nagaya_devices::queue::Segment]| {
        segments
            .iter()
            .map(|segment| {
                assert!(segment.bytes > 0);
                assert!(segment.start.checked_add(segment.bytes.into()).is_some());
                u64::from(segment.bytes)
            })
            .sum::<u64>()
    };
    assert_eq!(sum(readable), u64::from(chain.readable_bytes()));
    assert_eq!(sum(writable), u64::from(chain.writable_bytes()));
}

#[test]
fn no_input_breaks_a_queue() {
    crate::run("queue", target);
}
