//! A VM's disks: where their bytes are, and the way from a kick to them.
//!
//! A disk is in RAM: in frames that its VM's owner has besides the VM's own, all taken at the start, so that no write fails for want
//! of them. What the guest writes stays over a reset, as on any disk that is not unplugged, and goes with the VM. A disk that nobody
//! can write needs no frames of its own: it is read where the boot archive has it.
//!
//! Concurrency: a disk's lock is taken under its bus's, by whoever serves it, and is a leaf.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_abi::PAGE_BYTES;
use nagaya_devices::blk::{
    Block, BlockConfig, BlockLimit, BlockServed, BlockStore, ID_BYTES, SECTOR_BYTES, StoreError,
};
use nagaya_devices::function::Function;
use nagaya_devices::virtio::Stopped;
use nagaya_mem::{HostMemory, Hpa, Owner, PageSize};
use nagaya_vmm::config::{DiskConfig, DiskSource, VmConfig};
use nagaya_vmm::event::Event;
use spin::Mutex;

use super::ram::RamSnapshotGuard;
use super::{Devices, Step, StepLimit, end_of_turn};
use crate::host::event;
use crate::host::memory::{self, OwnedFrames, Whose};
use crate::objects::archive::{self, Image};

/// What is done before the clock is looked at, and before others get at the bus.
const LIMIT: BlockLimit = BlockLimit {
    requests: 32,
    bytes: 64 << 10,
};
/// Frames of a disk come in pieces of this size; the last may be smaller.
const PIECE_BYTES: u64 = PageSize::Size2M.bytes();

/// A disk's contents, which outlive the device in front of them.
#[derive(Debug)]
pub struct Disk {
    /// Its size.
    bytes: u64,
    is_read_only: bool,
    store: Mutex<Store>,
}

/// Where the bytes are.
#[derive(Debug)]
enum Store {
    Frames(Frames),
    /// Never written.
    Image(Image<'static>),
}

/// Frames that no guest has in its memory.
#[derive(Debug)]
struct Frames {
    /// The first frame of each piece.
    pieces: Vec<Hpa>,
    bytes: u64,
    /// Given back when the disk is dropped.
    #[expect(dead_code, reason = "held for its Drop")]
    frames: OwnedFrames,
}

impl Disk {
    /// The disks of a VM: those that it had before its reset, or new ones.
    ///
    /// # Errors
    /// Which disk cannot be, and why.
    pub(super) fn all(
        id: u16,
        config: &VmConfig,
        kept: &[Arc<Disk>],
    ) -> Result<Vec<Arc<Disk>>, String> {
        if kept.len() == config.disks.len() {
            return Ok(kept.to_vec());
        }
        let new = |(index, disk)| match Disk::new(id, disk) {
            Ok(disk) => Ok(Arc::new(disk)),
            Err(reason) => Err(format!("its disk {index} cannot be: {reason}")),
        };
        config.disks.iter().enumerate().map(new).collect()
    }

    fn new(id: u16, config: &DiskConfig) -> Result<Disk, String> {
        let is_read_only = config.read_only;
        let (bytes, store) = match &config.source {
            DiskSource::Ram { bytes } => (*bytes, Store::Frames(Frames::take(id, *bytes)?)),
            DiskSource::Image(name) => {
                let image = archive::get()?.image(name)?;
                let bytes = (image.len() as u64).next_multiple_of(SECTOR_BYTES);
                if bytes == 0 {
                    return Err(format!("image {name:?} is empty"));
                }
                if is_read_only && bytes == image.len() as u64 {
                    (bytes, Store::Image(image))
                } else {
                    let mut frames = Frames::take(id, bytes)?;
                    frames.fill(&image);
                    (bytes, Store::Frames(frames))
                }
            }
        };
        Ok(Disk {
            bytes,
            is_read_only,
            store: Mutex::new(store),
        })
    }

    /// The device in front of the disk with this index among its VM's.
    pub(super) fn device(&self, index: usize) -> Function {
        let mut id = [0; ID_BYTES];
        for (place, byte) in id.iter_mut().zip(format!("disk{index}").bytes()) {
            *place = byte;
        }
        Function::Block(Block::new(BlockConfig {
            sectors: self.bytes / SECTOR_BYTES,
            read_only: self.is_read_only,
            id,
        }))
    }

    fn serve(&self, block: &mut Block, ram: &RamSnapshotGuard) -> Result<BlockServed, Stopped> {
        block.serve(ram, &mut *self.store.lock(), LIMIT)
    }
}

impl Frames {
    /// Zeroed frames for that many bytes.
    fn take(id: u16, bytes: u64) -> Result<Frames, String> {
        let mut frames = OwnedFrames::new(Owner::Vm(id));
        let mut pieces = Vec::with_capacity(bytes.div_ceil(PIECE_BYTES) as usize);
        for start in (0..bytes).step_by(PIECE_BYTES as usize) {
            let pages = (bytes - start).min(PIECE_BYTES).div_ceil(PAGE_BYTES);
            let piece = frames
                .take(pages, PAGE_BYTES)
                .ok_or_else(|| format!("there is not enough memory for its {bytes} bytes"))?;
            pieces.push(piece);
        }
        Ok(Frames {
            pieces,
            bytes,
            frames,
        })
    }

    /// Copies an image to the start.
    fn fill(&mut self, image: &[u8]) {
        for (piece, part) in self.pieces.iter().zip(image.chunks(PIECE_BYTES as usize)) {
            // SAFETY: the piece is the disk's own, of PIECE_BYTES, and held by `frames`.
            unsafe { memory::writer(Whose::Vm) }.write(*piece, part);
        }
    }

    /// Where a byte is, and how many of `most` lie together from it on.
    fn find(&self, at: u64, most: usize) -> Result<(*mut u8, usize), StoreError> {
        let failed = StoreError { at };
        let piece = usize::try_from(at / PIECE_BYTES).map_err(|_| failed)?;
        let piece = *self.pieces.get(piece).ok_or(failed)?;
        let inside = at % PIECE_BYTES;
        let left = self.bytes.saturating_sub(at).min(PIECE_BYTES - inside);
        if left == 0 {
            return Err(failed);
        }
        let pointer = memory::host_pointer(Hpa::new(piece.get() + inside));
        Ok((pointer, most.min(left as usize)))
    }
}

impl BlockStore for Store {
    fn read(&self, at: u64, most: usize) -> Result<&[u8], StoreError> {
        match self {
            Store::Frames(frames) => {
                let (start, bytes) = frames.find(at, most)?;
                // SAFETY: the bytes are within one piece of `frames`: contiguous, initialised (zeroed by `OwnedFrames::take`) and
                // mapped for good. Nobody else reaches them: no EPT maps them, no `Ram` has them, and they go back with `self`.
                // Whoever writes them borrows `self` mutably.
                Ok(unsafe { core::slice::from_raw_parts(start, bytes) })
            }
            Store::Image(image) => {
                let failed = StoreError { at };
                let start = usize::try_from(at).map_err(|_| failed)?;
                let rest = image.get(start..).ok_or(failed)?;
                Ok(rest.get(..most).unwrap_or(rest))
            }
        }
    }

    fn write(&mut self, at: u64, most: usize) -> Result<&mut [u8], StoreError> {
        match self {
            Store::Frames(frames) => {
                let (start, bytes) = frames.find(at, most)?;
                // SAFETY: as in `read`; `self` is borrowed mutably for as long as the slice is.
                Ok(unsafe { core::slice::from_raw_parts_mut(start, bytes) })
            }
            Store::Image(_) => Err(StoreError { at }),
        }
    }
}

impl Devices {
    /// Serves a disk for a turn at most.
    pub(super) fn serve_disk(self: &Arc<Self>, slot: u8, disk: &Disk) {
        let limit = StepLimit {
            steps: usize::MAX,
            end: end_of_turn(),
        };
        self.serve_by_steps(slot, limit, || {
            let ram = self.ram.view_for_long();
            let served = match self.bus.lock().function_mut(slot)? {
                Function::Block(block) => disk.serve(block, &ram),
                _ => return None,
            };
            Some(served.map(|served| Step {
                message: served.message,
                more: served.more,
            }))
        });
    }

    /// Adds an event with what each disk did, to be sent later.
    pub fn report_disks(&self, events: &mut Vec<Event>) {
        for (index, (slot, disk)) in self.disks.iter().enumerate() {
            let stats = match self.bus.lock().function_mut(*slot) {
                Some(Function::Block(block)) => block.stats(),
                _ => continue,
            };
            let counts = [
                ("requests", stats.requests),
                ("failed", stats.failed),
                ("read-bytes", stats.read_bytes),
                ("written-bytes", stats.written_bytes),
            ];
            let line = event::new("disk")
                .string("vm", &self.name)
                .number("index", index as u64)
                .number("bytes", disk.bytes);
            events.push(line.counts("counts", counts.into_iter()));
        }
    }
}
