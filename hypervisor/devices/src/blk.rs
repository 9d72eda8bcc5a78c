//! virtio-blk: a disk. Where its bytes are is its owner's business ([`BlockStore`]).
//!
//! A request is loaded once and checked whole, then carried out, however long that takes: [`Block::serve`] does a bounded part
//! and goes on where it was. Bytes are copied once, between the store and the guest's memory. A request that asks for what cannot
//! be done is answered with an error; a chain that is no request, having no room for a header or for an answer, stops the device.
//!
//! Source: virtio 1.2, 5.2 "Block Device".

mod request;

use serde::{Deserialize, Serialize};

use crate::GuestRam;
use crate::pci::Message;
use crate::queue::{Chain, ChainState, QueueError};
use crate::state::{StateError, check};
use crate::virtio::{
    self, DeviceType, Profile, Stopped, VirtioFunction, VirtioPci, VirtioPciState,
};
use request::Request;

/// The only queue (5.2.2).
pub const REQUESTS: u16 = 0;
/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 128;
/// Bytes of a sector, the unit of all requests (5.2.4).
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of the name that a driver can ask for (5.2.6).
pub const ID_BYTES: usize = 20;

/// The most segments of data in one request: the others are header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// The most bytes in one of them.
const MAX_SEGMENT_BYTES: u32 = 1 << 20;
/// The most ranges of one request to discard or to zero.
const MAX_RANGES: u32 = 16;
/// Sectors of a physical block, as a power of two: pages of the store.
const BLOCK_EXPONENT: u8 = 3;

/// Feature bits (5.2.3).
pub mod feature {
    /// `VIRTIO_BLK_F_SIZE_MAX`.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// `VIRTIO_BLK_F_SEG_MAX`.
    pub const SEG_MAX: u64 = 1 << 2;
    /// `VIRTIO_BLK_F_RO`: nothing can be written.
    pub const RO: u64 = 1 << 5;
    /// `VIRTIO_BLK_F_BLK_SIZE`.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// `VIRTIO_BLK_F_FLUSH`.
    pub const FLUSH: u64 = 1 << 9;
    /// `VIRTIO_BLK_F_TOPOLOGY`.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// `VIRTIO_BLK_F_DISCARD`.
    pub const DISCARD: u64 = 1 << 13;
    /// `VIRTIO_BLK_F_WRITE_ZEROES`.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// The store could not do it: the guest's request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// The byte at which it failed.
    pub at: u64,
}

/// The bytes of a disk. Positions are in bytes and have been checked against [`BlockConfig::sectors`].
///
/// The bytes are given as slices, so that they are copied once. They are nobody else's while they are borrowed; in particular no
/// guest's memory.
pub trait BlockStore {
    /// Bytes from `at` on, as many as lie together, at least one and at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&self, at: u64, most: usize) -> Result<&[u8], StoreError>;

    /// Bytes from `at` on to be overwritten, as many as lie together, at least one and at most `most`. Perhaps not all of them will
    /// be: the others keep what they have.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(&mut self, at: u64, most: usize) -> Result<&mut [u8], StoreError>;

    /// Makes bytes zero. It may give their place back.
    ///
    /// # Errors
    /// [`StoreError`].
    fn zero(&mut self, at: u64, bytes: u64) -> Result<(), StoreError> {
        let mut done = 0;
        while done < bytes {
            let most = usize::try_from(bytes - done).unwrap_or(usize::MAX);
            let piece = self.write(at + done, most)?;
            if piece.is_empty() {
                return Err(StoreError { at: at + done });
            }
            piece.fill(0);
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// The guest has no use for bytes any more: they may read as they are or as zeros.
    ///
    /// # Errors
    /// [`StoreError`].
    fn discard(&mut self, _at: u64, _bytes: u64) -> Result<(), StoreError> {
        Ok(())
    }

    /// What was written is to last.
    ///
    /// # Errors
    /// [`StoreError`].
    fn flush(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// Its size.
    pub sectors: u64,
    /// Whether nothing can be written.
    pub read_only: bool,
    /// Its name: ASCII, with zeros behind it.
    pub id: [u8; ID_BYTES],
}

/// How much is done at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimit {
    /// Requests that are ended.
    pub requests: u32,
    /// Bytes that are copied, zeroed or discarded: a sector at least.
    pub bytes: u64,
}

/// What was served.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockServed {
    /// Requests that were ended.
    pub requests: u32,
    /// Bytes that were copied, zeroed or discarded.
    pub bytes: u64,
    /// The interrupt, to be sent.
    pub message: Option<Message>,
    /// There is more to do, or may be, and no kick will come for it.
    pub more: bool,
}

/// What a disk counts. Counts turn over at 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStats {
    /// Requests that were ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Bytes that the guest read.
    pub read_bytes: u64,
    /// Bytes that the guest wrote.
    pub written_bytes: u64,
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    pci: VirtioPci,
    config: BlockConfig,
    chain: Chain,
    /// The request that `chain` is, if it has been begun.
    active: Option<Request>,
    stats: BlockStats,
}

impl Block {
    /// A device.
    #[must_use]
    pub fn new(config: BlockConfig) -> Block {
        let features = if config.read_only {
            feature::RO
        } else {
            feature::DISCARD | feature::WRITE_ZEROES
        };
        let always = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY;
        let pci = VirtioPci::new(&Profile {
            device: DeviceType::Block,
            // Mass storage, other.
            class: [1, 0x80, 0],
            features: virtio::feature::COMMON | always | features,
            needs: &[],
            queue_sizes: &[QUEUE_SIZE],
            config: &config_space(&config),
        });
        Block {
            pci,
            config,
            chain: Chain::new(),
            active: None,
            stats: BlockStats::default(),
        }
    }

    /// The PCI function: status, failure.
    #[must_use]
    pub fn pci(&self) -> &VirtioPci {
        &self.pci
    }

    /// What it is like.
    #[must_use]
    pub fn config(&self) -> &BlockConfig {
        &self.config
    }

    /// What it counted.
    #[must_use]
    pub fn stats(&self) -> BlockStats {
        self.stats
    }

    /// Serves requests up to the limit, after a kick or because of [`BlockServed::more`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve<R: GuestRam>(
        &mut self,
        ram: &R,
        store: &mut impl BlockStore,
        limit: BlockLimit,
    ) -> Result<BlockServed, Stopped> {
        match self.try_serve(ram, store, limit) {
            Ok(served) => Ok(served),
            Err(error) => {
                self.active = None;
                Err(self.pci.stop(REQUESTS, error))
            }
        }
    }

    fn try_serve<R: GuestRam>(
        &mut self,
        ram: &R,
        store: &mut impl BlockStore,
        limit: BlockLimit,
    ) -> Result<BlockServed, QueueError> {
        let mut served = BlockServed::default();
        let Some(queue) = self.pci.queue(REQUESTS) else {
            self.active = None;
            return Ok(served);
        };
        queue.suppress_notifications(ram)?;
        let most = limit.bytes.max(SECTOR_BYTES);
        loop {
            if served.requests >= limit.requests {
                served.more = true;
                break;
            }
            // Half a request from before a reset is let go.
            let begun = self.active.take().filter(|_| queue.owns(&self.chain));
            let mut request = match begun {
                Some(request) => request,
                None => {
                    if !queue.pop(ram, &mut self.chain)? {
                        if queue.resume_notifications(ram)? {
                            continue;
                        }
                        break;
                    }
                    Request::load(ram, &self.chain, &self.config)?
                }
            };
            let before = request.done();
            let ended = request.run(ram, &self.chain, store, most - served.bytes)?;
            served.bytes += request.done() - before;
            let Some(status) = ended else {
                self.active = Some(request);
                served.more = true;
                break;
            };
            let written = request.answer(ram, &self.chain, status)?;
            queue.complete(ram, &self.chain, written)?;
            served.requests += 1;
            request.count(&mut self.stats, status);
        }
        queue.publish(ram)?;
        if queue.take_interrupt(ram)? {
            served.message = self.pci.interrupt_queue(REQUESTS);
        }
        Ok(served)
    }
}

/// `struct virtio_blk_config` (5.2.4), with zeros for what is not offered.
fn config_space(config: &BlockConfig) -> [u8; 60] {
    let ranges = if config.read_only { 0 } else { MAX_RANGES };
    let sectors = if config.read_only { 0 } else { u32::MAX };
    let block = 1 << BLOCK_EXPONENT;
    let fields: [(u64, usize); 20] = [
        (config.sectors, 8),
        (MAX_SEGMENT_BYTES.into(), 4),
        (MAX_SEGMENTS.into(), 4),
        // Geometry.
        (0, 4),
        (SECTOR_BYTES, 4),
        // Topology: exponent, alignment, least and best size of an access.
        (BLOCK_EXPONENT.into(), 1),
        (0, 1),
        (block, 2),
        (0, 4),
        // Write-back, and a gap.
        (0, 2),
        (1, 2),
        // Discard: sectors, ranges, alignment.
        (sectors.into(), 4),
        (ranges.into(), 4),
        (if config.read_only { 0 } else { block }, 4),
        // Write zeroes: sectors, ranges, whether they may be unmapped, and a gap.
        (sectors.into(), 4),
        (ranges.into(), 4),
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 1),
    ];
    let raw = fields
        .into_iter()
        .flat_map(|(value, bytes)| value.to_le_bytes().into_iter().take(bytes));
    let mut space = [0; 60];
    for (place, byte) in space.iter_mut().zip(raw) {
        *place = byte;
    }
    space
}

impl VirtioFunction for Block {
    fn transport(&self) -> &VirtioPci {
        &self.pci
    }

    fn transport_mut(&mut self) -> &mut VirtioPci {
        &mut self.pci
    }
}

/// A disk as a value, but for its bytes: they are their owner's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// What it is like. Who restores it has a store of that size.
    pub config: BlockConfig,
    pci: VirtioPciState,
    /// The request that has been begun, with its chain.
    active: Option<(ChainState, Request)>,
    stats: BlockStats,
}

/// No disk has more sectors: 2^50 bytes.
const MAX_SECTORS: u64 = 1 << 41;

impl Block {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> BlockState {
        let Block {
            pci,
            config,
            chain,
            active,
            stats,
        } = self;
        let active = active.as_ref();
        BlockState {
            config: *config,
            pci: pci.save(),
            // Without a request the chain is only storage.
            active: active.map(|request| (chain.save(), request.clone())),
            stats: *stats,
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: none of ours gets there.
    pub fn restore(state: &BlockState) -> Result<Block, StateError> {
        let BlockState {
            config,
            pci,
            active,
            stats,
        } = state;
        check(
            config.sectors <= MAX_SECTORS,
            "config.sectors",
            config.sectors,
            "at most 2^41",
        )?;
        let made = Block::new(*config);
        let pci = made.pci.restore(pci);
        let (chain, active) = match active {
            Some((chain, request)) => {
                let chain = Chain::restore(chain).map_err(|error| error.within("active.chain"))?;
                let checked = request.check(&chain, config);
                checked.map_err(|error| error.within("active"))?;
                (chain, Some(request.clone()))
            }
            None => (made.chain, None),
        };
        Ok(Block {
            pci: pci.map_err(|error| error.within("pci"))?,
            config: *config,
            chain,
            active,
            stats: *stats,
        })
    }
}
