//! Driver and device on two threads, as on two CPUs: neither sleeps through the other's news.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nagaya_devices::queue::scatter::Cursor;
use nagaya_devices::queue::{Chain, Queue, RingFeatures};
use nagaya_devices::test_support::{Buffer, DriverQueue, GuestView, Layout};
use nagaya_devices::{CopyError, GuestRam, RamError};
use nagaya_mem::Gpa;

/// RAM that both threads use. Everything is at even addresses.
struct SharedRam(Vec<AtomicU16>);

impl SharedRam {
    fn words(&self, start: u64, bytes: usize) -> &[AtomicU16] {
        assert!(start.is_multiple_of(2) && bytes.is_multiple_of(2));
        let first = start as usize / 2;
        &self.0[first..first + bytes / 2]
    }
}

impl GuestView for SharedRam {
    fn peek(&self, from: u64, bytes: usize) -> Vec<u8> {
        let words = self.words(from, bytes).iter();
        words
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect()
    }

    fn poke(&self, to: u64, bytes: &[u8]) {
        let words = self.words(to, bytes.len()).iter();
        for (word, pair) in words.zip(bytes.chunks_exact(2)) {
            word.store(u16::from_le_bytes([pair[0], pair[1]]), Ordering::Relaxed);
        }
    }

    fn peek_u16(&self, from: u64) -> u16 {
        self.words(from, 2)[0].load(Ordering::Acquire)
    }

    fn poke_u16(&self, to: u64, value: u16) {
        self.words(to, 2)[0].store(value, Ordering::Release);
    }
}

impl GuestRam for SharedRam {
    fn read(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), RamError> {
        buffer.copy_from_slice(&self.peek(from.get(), buffer.len()));
        Ok(())
    }

    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), RamError> {
        self.poke(to.get(), bytes);
        Ok(())
    }

    fn load_u16(&self, from: Gpa) -> Result<u16, RamError> {
        Ok(self.peek_u16(from.get()))
    }

    fn store_u16(&self, to: Gpa, value: u16) -> Result<(), RamError> {
        self.poke_u16(to.get(), value);
        Ok(())
    }

    fn copy_to(&self, from: Gpa, target: &Self, to: Gpa, bytes: u32) -> Result<(), CopyError> {
        target.poke(to.get(), &self.peek(from.get(), bytes as usize));
        Ok(())
    }
}

const SIZE: u16 = 8;
const BUFFERS: u64 = 0x1000;
/// Long enough for any sleep that is not for ever.
const FOR_EVER: Duration = Duration::from_secs(20);

/// Serves the queue: each chain holds a number and a place for its square. Returns how often it was kicked.
fn device(
    ram: &SharedRam,
    mut queue: Queue,
    rounds: u32,
    kicks: Receiver<()>,
    irqs: Sender<()>,
) -> u32 {
    let (mut expected, mut kicked) = (0, 0);
    let mut chain = Chain::new();
    while expected < rounds {
        kicks
            .recv_timeout(FOR_EVER)
            .expect("the device sleeps for ever");
        kicked += 1;
        loop {
            queue.suppress_notifications(ram).expect("is RAM");
            while queue.pop(ram, &mut chain).expect("keeps the rules") {
                let mut number = [0; 4];
                Cursor::new(chain.readable())
                    .read(ram, &mut number)
                    .expect("is RAM");
                assert_eq!(
                    u32::from_le_bytes(number),
                    expected,
                    "written before it was offered"
                );
                let square = expected.wrapping_mul(expected).to_le_bytes();
                Cursor::new(chain.writable())
                    .write(ram, &square)
                    .expect("is RAM");
                queue.complete(ram, &chain, 4).expect("fits");
                expected += 1;
            }
            queue.publish(ram).expect("is RAM");
            if queue.take_interrupt(ram).expect("is RAM") {
                let _ = irqs.send(());
            }
            if !queue.resume_notifications(ram).expect("keeps the rules") {
                break;
            }
        }
    }
    kicked
}

/// Offers numbers as long as there are descriptors, and sleeps when there are none. Returns how often it was interrupted.
fn driver(
    ram: &SharedRam,
    mut queue: DriverQueue,
    rounds: u32,
    kicks: &Sender<()>,
    irqs: &Receiver<()>,
) -> u32 {
    let (mut offered, mut done, mut interrupted) = (0_u32, 0_u32, 0);
    let place = |number: u32| BUFFERS + u64::from(number % u32::from(SIZE)) * 8;
    while done < rounds {
        while offered < rounds && queue.free() >= 2 && offered - done < u32::from(SIZE) {
            ram.poke(place(offered), &offered.to_le_bytes());
            let [number, square] = [0, 4].map(|offset| Buffer {
                start: place(offered) + offset,
                bytes: 4,
            });
            queue.add(ram, &[number], &[square]).expect("free");
            offered += 1;
            // Sometimes each, sometimes several at once.
            if offered % 7 < 4 && queue.publish(ram) {
                let _ = kicks.send(());
            }
        }
        if queue.publish(ram) {
            let _ = kicks.send(());
        }
        let mut used = queue.take(ram);
        if used.is_none() {
            queue.want_interrupt(ram, true);
            used = queue.take(ram);
            if used.is_none() {
                irqs.recv_timeout(FOR_EVER)
                    .expect("the driver sleeps for ever");
                interrupted += 1;
                used = queue.take(ram);
            }
            queue.want_interrupt(ram, false);
        }
        while let Some(element) = used {
            assert_eq!(element.written, 4);
            let square = ram.peek(place(done) + 4, 4);
            assert_eq!(
                square,
                done.wrapping_mul(done).to_le_bytes(),
                "written before it came back"
            );
            done += 1;
            used = queue.take(ram);
        }
    }
    interrupted
}

#[test]
fn neither_side_sleeps_through_the_others_news() {
    const ROUNDS: u32 = 50_000;
    for event_index in [false, true] {
        let features = RingFeatures {
            event_index,
            indirect: false,
        };
        let ram = SharedRam((0..0x1000).map(|_| AtomicU16::new(0)).collect());
        let layout = Layout::at(0, SIZE);
        let guest = DriverQueue::new(&ram, layout, features);
        guest.want_interrupt(&ram, false);
        let queue = Queue::new(layout.config, features, 0).expect("is valid");
        let (kick, kicks) = channel();
        let (irq, irqs) = channel();
        let shared = &ram;
        let (kicked, interrupted) = std::thread::scope(|scope| {
            let device = scope.spawn(move || device(shared, queue, ROUNDS, kicks, irq));
            let interrupted = driver(&ram, guest, ROUNDS, &kick, &irqs);
            (device.join().expect("no panic"), interrupted)
        });
        assert!(
            kicked <= ROUNDS && interrupted <= ROUNDS,
            "{kicked} {interrupted}"
        );
        assert!(kicked > 0);
    }
}
