//! virtio-blk: what is written is read, what cannot be is refused, what is no request stops the device.

use std::collections::BTreeMap;

use nagaya_devices::blk::{
    Block, BlockConfig, BlockLimit, BlockServed, BlockStore, StoreError, feature as block,
};
use nagaya_devices::function::Function;
use nagaya_devices::pci::{PciBus, PciFunction, Width};
use nagaya_devices::queue::{QueueError, RingFeatures};
use nagaya_devices::test_support::guest::{self, message_of};
use nagaya_devices::test_support::{Buffer, DriverQueue, Layout, TestRam};
use nagaya_devices::virtio::{feature, layout, status};
use proptest::prelude::*;

const SECTORS: u64 = 64;
const RING: RingFeatures = RingFeatures {
    event_index: true,
    indirect: true,
};
const ENOUGH: BlockLimit = BlockLimit {
    requests: 100,
    bytes: 1 << 30,
};

/// Where header, data and status are.
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x1_0000;
const STATUS: u64 = 0x5000;
/// A status that no device writes.
const NO_STATUS: u8 = 0xEE;

/// A disk in pieces of a few bytes, some of them bad.
#[derive(Default)]
struct Store {
    bytes: Vec<u8>,
    piece: usize,
    bad: Option<u64>,
    flushes: usize,
    discarded: Vec<(u64, u64)>,
}

impl Store {
    fn new(piece: usize) -> Store {
        let bytes = (0..SECTORS * 512).map(|at| (at % 251) as u8).collect();
        Store {
            bytes,
            piece,
            ..Store::default()
        }
    }

    fn range(&self, at: u64, most: usize) -> Result<std::ops::Range<usize>, StoreError> {
        assert!(most > 0, "nothing is asked for");
        let (start, end) = (at as usize, at as usize + most);
        assert!(
            end <= self.bytes.len(),
            "{at} and {most} bytes are beyond the end"
        );
        let end = end.min((start / self.piece + 1) * self.piece);
        match self.bad {
            Some(bad) if (start as u64..end as u64).contains(&bad) => Err(StoreError { at: bad }),
            _ => Ok(start..end),
        }
    }
}

impl BlockStore for Store {
    fn read(&self, at: u64, most: usize) -> Result<&[u8], StoreError> {
        Ok(&self.bytes[self.range(at, most)?])
    }

    fn write(&mut self, at: u64, most: usize) -> Result<&mut [u8], StoreError> {
        let range = self.range(at, most)?;
        Ok(&mut self.bytes[range])
    }

    fn discard(&mut self, at: u64, bytes: u64) -> Result<(), StoreError> {
        self.discarded.push((at, bytes));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.flushes += 1;
        Ok(())
    }
}

fn config(read_only: bool) -> BlockConfig {
    BlockConfig {
        sectors: SECTORS,
        read_only,
        id: *b"nagaya-disk-0\0\0\0\0\0\0\0",
    }
}

struct Guest {
    ram: TestRam,
    driver: DriverQueue,
    device: Block,
}

fn guest_with(read_only: bool) -> Guest {
    let ram = TestRam::new(0x4_0000);
    let at = Layout::at(0x1000, 16);
    let mut device = Block::new(config(read_only));
    let features = guest::offered(&mut device);
    guest::start(&mut device, features, &[at]);
    let driver = DriverQueue::new(&ram, at, RING);
    Guest {
        ram,
        driver,
        device,
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn buffer(start: u64, bytes: usize) -> Buffer {
    Buffer {
        start,
        bytes: bytes as u32,
    }
}

impl Guest {
    /// Offers a request: header, `out` behind it, room for `room` bytes and the status.
    fn offer(&mut self, header: &[u8], out: &[u8], room: usize) {
        self.ram.poke(HEADER, header);
        self.ram.poke(DATA, out);
        self.ram.poke(STATUS, &[NO_STATUS]);
        let readable = [buffer(HEADER, header.len()), buffer(DATA, out.len())];
        let writable = [buffer(DATA, room), buffer(STATUS, 1)];
        let some = |buffers: &[Buffer]| -> Vec<Buffer> {
            buffers
                .iter()
                .copied()
                .filter(|buffer| buffer.bytes > 0)
                .collect()
        };
        self.driver
            .add(&self.ram, &some(&readable), &some(&writable))
            .expect("free");
        self.driver.publish(&self.ram);
    }

    /// A request to its end: its status and the bytes that are told as written.
    fn request(&mut self, store: &mut Store, header: &[u8], out: &[u8], room: usize) -> (u8, u32) {
        self.offer(header, out, room);
        let served = self.device.serve(&self.ram, store, ENOUGH).expect("runs");
        assert_eq!((served.requests, served.more), (1, false));
        let used = self.driver.take(&self.ram).expect("came back");
        (self.ram.peek(STATUS, 1)[0], used.written)
    }
}

#[test]
fn the_configuration_says_what_there_is() {
    for read_only in [false, true] {
        let mut device = Block::new(config(read_only));
        let offered = guest::offered(&mut device);
        let all =
            block::SIZE_MAX | block::SEG_MAX | block::BLK_SIZE | block::FLUSH | block::TOPOLOGY;
        let by_kind = if read_only {
            block::RO
        } else {
            block::DISCARD | block::WRITE_ZEROES
        };
        assert_eq!(offered, all | by_kind | feature::COMMON);
        let mut field = |offset, width| guest::read(&mut device, layout::DEVICE + offset, width);
        assert_eq!(field(0, Width::Dword), SECTORS);
        assert_eq!(field(12, Width::Dword), 126);
        assert_eq!((field(20, Width::Dword), field(24, Width::Byte)), (512, 3));
        let ranges = if read_only { 0 } else { 16 };
        assert_eq!(
            (field(40, Width::Dword), field(52, Width::Dword)),
            (ranges, ranges)
        );
        assert_eq!(field(34, Width::Word), 1);
        assert_eq!(field(60, Width::Dword), 0);
    }
}

#[test]
fn a_read_comes_with_its_status_and_one_copy() {
    let mut guest = guest_with(false);
    let mut store = Store::new(4096);
    let _ = guest.ram.take_written_bytes();
    let (status, written) = guest.request(&mut store, &header(0, 3), &[], 1024);
    assert_eq!((status, written), (0, 1025));
    assert_eq!(guest.ram.peek(DATA, 1024), store.bytes[3 * 512..5 * 512]);
    // Data, status, used element, index, event index.
    let written = guest.ram.take_written_bytes();
    assert!(
        (1024 + 1 + 8 + 2..1024 + 32).contains(&written),
        "{written}"
    );
    assert_eq!(guest.device.stats().read_bytes, 1024);
}

#[test]
fn a_write_is_read_back_and_flushed() {
    let mut guest = guest_with(false);
    let mut store = Store::new(100);
    let data: Vec<u8> = (0..1536).map(|at| (at % 7) as u8).collect();
    assert_eq!(guest.request(&mut store, &header(1, 61), &data, 0), (0, 1));
    assert_eq!(store.bytes[61 * 512..], data);
    assert_eq!(guest.request(&mut store, &header(4, 0), &[], 0), (0, 1));
    assert_eq!(store.flushes, 1);
    let (status, written) = guest.request(&mut store, &header(8, 0), &[], 20);
    assert_eq!((status, written), (0, 21));
    assert_eq!(guest.ram.peek(DATA, 20), config(false).id);
    guest.ram.poke(DATA, &[9; 20]);
    assert_eq!(
        guest.request(&mut store, &header(8, 0), &[], 5),
        (0, 6),
        "a short name"
    );
    assert_eq!(guest.ram.peek(DATA, 6), b"nagay\x09");
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn ranges_are_zeroed_and_discarded_all_or_none() {
    let mut guest = guest_with(false);
    let mut store = Store::new(1000);
    let before = store.bytes.clone();
    let two = [range(2, 3, 1), range(60, 4, 0)].concat();
    assert_eq!(guest.request(&mut store, &header(13, 0), &two, 0), (0, 1));
    for (at, byte) in store.bytes.iter().enumerate() {
        let is_zeroed = matches!(at / 512, 2..5 | 60..);
        assert_eq!(*byte, if is_zeroed { 0 } else { before[at] });
    }
    let two = [range(1, 1, 0), range(5, 9, 0)].concat();
    assert_eq!(guest.request(&mut store, &header(11, 0), &two, 0), (0, 1));
    assert_eq!(store.discarded, [(512, 512), (5 * 512, 9 * 512)]);
    let before = store.bytes.clone();
    for (kind, ranges, answer) in [
        (13, [range(0, 1, 0), range(63, 2, 0)].concat(), 1),
        (13, range(u64::MAX, 1, 0), 1),
        (13, range(0, u32::MAX, 0), 1),
        (13, range(0, 1, 2), 2),
        (11, range(0, 1, 1), 2),
        (11, [range(0, 1, 0).as_slice(), &[0; 8]].concat(), 1),
        (11, range(0, 1, 0).repeat(17), 1),
        (11, Vec::new(), 1),
    ] {
        assert_eq!(
            guest.request(&mut store, &header(kind, 0), &ranges, 0).0,
            answer
        );
    }
    assert_eq!((store.bytes == before, store.discarded.len()), (true, 2));
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let mut guest = guest_with(false);
    let mut store = Store::new(4096);
    let before = store.bytes.clone();
    let data = vec![1; 1024];
    for (kind, sector, out, room, answer) in [
        (0, SECTORS - 1, 0, 1024, 1),
        (0, u64::MAX, 0, 512, 1),
        (0, u64::MAX / 512, 0, 512, 1),
        (0, 0, 0, 511, 1),
        (0, 0, 512, 512, 1),
        (1, SECTORS - 1, 1024, 0, 1),
        (1, 0, 100, 0, 1),
        (1, 0, 512, 512, 1),
        (2, 0, 0, 0, 2),
        (10, 0, 0, 40, 2),
        (14, 0, 16, 0, 2),
        (u32::MAX, 0, 0, 512, 2),
    ] {
        let (status, written) =
            guest.request(&mut store, &header(kind, sector), &data[..out], room);
        assert_eq!(status, answer, "type {kind} at {sector}");
        assert_eq!(
            written,
            u32::from(room == 0),
            "what lies before the status was not written"
        );
    }
    assert!(store.bytes == before);
    assert_eq!(guest.device.stats().failed, 12);
    for kind in [0, 1] {
        let (out, room) = if kind == 0 { (0, 1024) } else { (1024, 0) };
        store.bad = Some(2 * 512 + 7);
        let (status, _) = guest.request(&mut store, &header(kind, 1), &data[..out], room);
        assert_eq!(status, 1, "the store fails");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut guest = guest_with(true);
    let mut store = Store::new(4096);
    let before = store.bytes.clone();
    assert_eq!(guest.request(&mut store, &header(1, 0), &[0; 512], 0).0, 1);
    for kind in [11, 13] {
        assert_eq!(
            guest
                .request(&mut store, &header(kind, 0), &range(0, 1, 0), 0)
                .0,
            2
        );
    }
    assert_eq!(guest.request(&mut store, &header(0, 0), &[], 512).0, 0);
    assert!(store.bytes == before && store.discarded.is_empty());
}

/// A chain, with what is wrong with it.
type Hostile<'a> = (&'a [Buffer], &'a [Buffer], fn(QueueError) -> bool);

#[test]
fn a_chain_that_is_no_request_stops_the_device() {
    let head = buffer(HEADER, 16);
    let short = |error| matches!(error, QueueError::ChainBytes { .. });
    let no_ram = |error| matches!(error, QueueError::Ram(_));
    let cases: [Hostile<'_>; 6] = [
        (&[buffer(HEADER, 15)], &[buffer(STATUS, 1)], short),
        (&[], &[buffer(STATUS, 1)], short),
        (&[head], &[], short),
        (&[buffer(0x3F_FFF8, 16)], &[buffer(STATUS, 1)], no_ram),
        (
            &[head],
            &[buffer(0x10_0000, 512), buffer(STATUS, 1)],
            no_ram,
        ),
        (&[head], &[buffer(DATA, 512), buffer(0x10_0000, 1)], no_ram),
    ];
    for (readable, writable, expected) in cases {
        let mut guest = guest_with(false);
        let mut store = Store::new(4096);
        guest.ram.poke(HEADER, &header(0, 0));
        guest
            .driver
            .add(&guest.ram, readable, writable)
            .expect("free");
        guest.driver.publish(&guest.ram);
        let stopped = guest
            .device
            .serve(&guest.ram, &mut store, ENOUGH)
            .expect_err("stops");
        assert!(
            expected(stopped.failure.error),
            "{:?}",
            stopped.failure.error
        );
        assert_eq!(stopped.message, Some(message_of(1)));
        assert!(guest::device_status(&mut guest.device) & status::NEEDS_RESET != 0);
        let served = guest
            .device
            .serve(&guest.ram, &mut store, ENOUGH)
            .expect("does nothing");
        assert_eq!(served, BlockServed::default());
    }
}

#[test]
fn a_long_request_is_done_in_parts_from_a_header_that_was_read_once() {
    let mut guest = guest_with(false);
    let mut store = Store::new(4096);
    guest.offer(&header(0, 0), &[], 10 * 512);
    let limit = BlockLimit {
        requests: 8,
        bytes: 1,
    };
    let _ = guest.ram.take_loads();
    for part in 1..10 {
        let served = guest
            .device
            .serve(&guest.ram, &mut store, limit)
            .expect("runs");
        let expected = BlockServed {
            requests: 0,
            bytes: 512,
            message: None,
            more: true,
        };
        assert_eq!(served, expected, "part {part}");
        guest.ram.poke(HEADER, &header(1, 7));
        assert!(guest.driver.take(&guest.ram).is_none());
    }
    let served = guest
        .device
        .serve(&guest.ram, &mut store, limit)
        .expect("runs");
    assert_eq!((served.requests, served.message), (1, Some(message_of(0))));
    assert_eq!(
        guest.driver.take(&guest.ram).expect("came back").written,
        10 * 512 + 1
    );
    assert_eq!(guest.ram.peek(DATA, 10 * 512), store.bytes[..10 * 512]);
    let loads = guest.ram.take_loads();
    assert!((HEADER..HEADER + 16).all(|at| loads.get(&at) == Some(&1)));
}

#[test]
fn requests_are_counted_and_half_a_one_is_let_go_at_a_reset() {
    let mut guest = guest_with(false);
    let mut store = Store::new(4096);
    for _ in 0..3 {
        guest.offer(&header(4, 0), &[], 0);
    }
    let limit = BlockLimit {
        requests: 2,
        bytes: 512,
    };
    let served = guest
        .device
        .serve(&guest.ram, &mut store, limit)
        .expect("runs");
    assert_eq!((served.requests, served.more), (2, true));
    let served = guest
        .device
        .serve(&guest.ram, &mut store, limit)
        .expect("runs");
    assert_eq!((served.requests, served.more), (1, false));
    while guest.driver.take(&guest.ram).is_some() {}
    guest.offer(&header(1, 0), &[5; 1024], 0);
    assert!(
        guest
            .device
            .serve(&guest.ram, &mut store, limit)
            .expect("runs")
            .more
    );
    assert_eq!(store.bytes[..512], [5; 512]);
    let at = guest.driver.layout();
    let features = guest::offered(&mut guest.device);
    guest::start(&mut guest.device, features, &[at]);
    guest.driver = DriverQueue::new(&guest.ram, at, RING);
    assert_eq!(guest.request(&mut store, &header(0, 0), &[], 512).0, 0);
    assert_ne!(store.bytes[512..1024], [5; 512], "the rest was not written");
}

#[test]
fn a_disk_is_a_function_of_the_bus() {
    let mut bus: PciBus<Function> = PciBus::new();
    assert!(
        bus.insert(3, Function::Block(Block::new(config(false))))
            .is_ok()
    );
    let id = bus
        .functions_mut()
        .map(|(_, function)| function.config_read(0, Width::Dword))
        .next();
    assert_eq!(id, Some(0x1042_1AF4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Reads, writes and zeroes of any sectors in any order, cut anyhow on all sides: the disk is what a plain array would be.
    #[test]
    fn the_disk_is_an_array_of_sectors(
        steps in proptest::collection::vec((0..3_u8, 0..SECTORS, 1..9_u64, any::<u8>(), 1..4000_u64), 1..12),
        piece in 1..5000_usize,
        cut in 1..900_usize,
    ) {
        let mut guest = guest_with(false);
        let mut store = Store::new(piece);
        let mut model: BTreeMap<u64, u8> = (0..SECTORS * 512).zip(store.bytes.iter().copied()).collect();
        for (step, sector, sectors, fill, part) in steps {
            let sectors = sectors.min(SECTORS - sector);
            let (at, bytes) = (sector * 512, (sectors * 512) as usize);
            let pieces: Vec<Buffer> = (0..bytes)
                .step_by(cut.max(bytes / 13 + 1))
                .map(|start| buffer(DATA + start as u64, bytes.min(start + cut.max(bytes / 13 + 1)) - start))
                .collect();
            let status = buffer(STATUS, 1);
            let head = buffer(HEADER, 16);
            guest.ram.poke(DATA, &vec![fill; bytes]);
            let (kind, readable, writable) = match step {
                0 => (0, vec![head], [pieces, vec![status]].concat()),
                1 => (1, [vec![head], pieces].concat(), vec![status]),
                _ => {
                    guest.ram.poke(DATA, &range(sector, sectors as u32, 0));
                    (13, vec![head, buffer(DATA, 16)], vec![status])
                }
            };
            guest.ram.poke(HEADER, &header(kind, sector));
            prop_assert!(guest.driver.add(&guest.ram, &readable, &writable).is_some());
            guest.driver.publish(&guest.ram);
            let limit = BlockLimit { requests: 1, bytes: part };
            let mut calls = 0;
            while guest.driver.take(&guest.ram).is_none() {
                let served = guest.device.serve(&guest.ram, &mut store, limit).expect("runs");
                prop_assert!(served.bytes <= part.max(512));
                calls += 1;
                prop_assert!(calls <= sectors + 1);
            }
            prop_assert_eq!(guest.ram.peek(STATUS, 1), [0]);
            if step == 0 {
                let expected: Vec<u8> = model.range(at..at + bytes as u64).map(|(_, byte)| *byte).collect();
                prop_assert_eq!(guest.ram.peek(DATA, bytes), expected);
            } else {
                let value = if step == 1 { fill } else { 0 };
                model.extend((at..at + bytes as u64).map(|at| (at, value)));
            }
        }
        prop_assert!(store.bytes.iter().eq(model.values()));
    }
}
