//! A disk whose requests are the input's: chains of buffers with anything in them, cut anyhow, done in parts.

use nagaya_devices::blk::{Block, BlockConfig, BlockLimit, BlockStore, StoreError};
use nagaya_devices::queue::RingFeatures;
use nagaya_devices::state::TscShift;
use nagaya_devices::test_support::guest;
use nagaya_devices::test_support::{Buffer, DriverQueue, Layout, TestRam};
use nagaya_devices::virtio::feature;

use crate::{Driven, Input, Seen};

const SECTORS: u64 = 8;
/// Where requests are made.
const AREA: u64 = 0x1000;

/// A disk that panics at what is not on it.
struct Store(Vec<u8>);

impl Store {
    fn end(&self, at: u64, most: usize) -> usize {
        assert!(
            most > 0 && at as usize + most <= self.0.len(),
            "{at}, {most} bytes"
        );
        // Pieces of 700 bytes.
        (at as usize + most).min((at as usize / 700 + 1) * 700)
    }
}

impl BlockStore for Store {
    fn read(&self, at: u64, most: usize) -> Result<&[u8], StoreError> {
        if at == 1024 {
            return Err(StoreError { at });
        }
        Ok(&self.0[at as usize..self.end(at, most)])
    }

    fn write(&mut self, at: u64, most: usize) -> Result<&mut [u8], StoreError> {
        let end = self.end(at, most);
        Ok(&mut self.0[at as usize..end])
    }

    fn discard(&mut self, at: u64, bytes: u64) -> Result<(), StoreError> {
        assert!(at + bytes <= self.0.len() as u64);
        Ok(())
    }
}

struct Machine {
    ram: TestRam,
    device: Block,
    driver: DriverQueue,
    store: Store,
    has_stopped: bool,
}

impl Driven for Machine {
    fn new(input: &mut Input<'_>) -> Machine {
        let shape = input.byte();
        let ram = TestRam::new(0x8000);
        let at = Layout::at(0x100, 16);
        let mut device = Block::new(BlockConfig {
            sectors: SECTORS,
            read_only: shape & 1 != 0,
            id: [b'x'; 20],
        });
        let offered = guest::offered(&mut device) & !feature::EVENT_IDX;
        guest::start(&mut device, offered, &[at]);
        let features = RingFeatures {
            event_index: false,
            indirect: true,
        };
        let driver = DriverQueue::new(&ram, at, features);
        if shape & 2 != 0 {
            ram.make_restless(AREA..AREA + 0x40, shape.into());
        }
        Machine {
            ram,
            device,
            driver,
            store: Store(vec![3; SECTORS as usize * 512]),
            has_stopped: false,
        }
    }

    fn step(&mut self, input: &mut Input<'_>, seen: &mut Seen) {
        let Machine {
            ram,
            device,
            driver,
            store,
            has_stopped,
        } = self;
        match input.byte() % 4 {
            0 => {
                let to = AREA + input.number::<1>();
                let count = input.byte() % 24;
                let bytes: Vec<u8> = (0..count).map(|_| input.byte()).collect();
                ram.poke(to, &bytes);
            }
            1 | 2 => {
                let (readable, writable) = (input.byte() % 4, input.byte() % 4);
                let mut buffers = |count: u8| -> Vec<Buffer> {
                    let mut buffer = || Buffer {
                        start: AREA + input.number::<1>() * 0x20,
                        bytes: (input.number::<2>() % 0x1200).max(1) as u32,
                    };
                    (0..count).map(|_| buffer()).collect()
                };
                let (readable, writable) = (buffers(readable), buffers(writable));
                if readable.len() + writable.len() > 0 {
                    let _ = driver.add(ram, &readable, &writable);
                    driver.publish(ram);
                }
            }
            _ => {
                let limit = BlockLimit {
                    requests: u32::from(input.byte() % 4),
                    bytes: input.number::<2>(),
                };
                if *has_stopped {
                    return;
                }
                let pending = driver.pending();
                let served = match device.serve(ram, store, limit) {
                    Ok(served) => served,
                    Err(stopped) => {
                        *has_stopped = true;
                        return seen.note(&stopped);
                    }
                };
                assert!(served.requests <= limit.requests);
                assert!(served.bytes <= limit.bytes.max(512));
                assert!(served.more || served.requests as usize == pending);
                let back = std::iter::from_fn(|| driver.take(ram)).count();
                assert_eq!(back, served.requests as usize);
                seen.note(&(served.more, device.stats().failed > 0, back));
                seen.tell(&(served, device.stats()));
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.device.save()).expect("is written")
    }

    fn restore_from(&mut self, bytes: &[u8]) -> bool {
        let restored = crate::from_bytes(bytes, Block::restore);
        restored.map(|restored| self.device = restored).is_some()
    }

    fn save_and_restore(&mut self, _: TscShift) {
        let state = self.device.save();
        self.device = crate::through_bytes(&state, Block::restore, Block::save);
    }

    fn end(&mut self, seen: &mut Seen) {
        seen.tell(&(self.ram.peek(0, 0x8000), &self.store.0));
    }
}

#[test]
fn no_input_breaks_a_disk() {
    crate::run("blk", crate::drive::<Machine>);
}

#[test]
fn a_disk_that_was_saved_and_restored_answers_as_one_that_was_not() {
    crate::run("blk", crate::drive_beside_twin::<Machine>);
}

#[test]
fn no_damaged_state_breaks_a_disk() {
    crate::run("blk", crate::drive_damaged::<Machine>);
}
