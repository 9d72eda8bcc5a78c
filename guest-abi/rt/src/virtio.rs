//! Virtio devices on the PCI bus: found, set up and interrupting, with the crate `virtio-drivers` and what it leaves out.
//!
//! ```no_run
//! use nagaya_rt::virtio::{self, Kind};
//! let mut random = virtio::entropy().expect("this guest has a virtio-rng");
//! let mut key = [0; 32];
//! random.request_entropy(&mut key).expect("the device answers");
//! ```
//!
//! Concurrency: configuration space is reached through a pair of ports, so that one vCPU at a time looks for devices; a device
//! belongs to whoever opened it.
//!
//! Source: virtio 1.2, 4.1 "Virtio Over PCI Bus".

mod function;
pub mod msix;
mod port;
pub mod ring;

use core::fmt;
use core::ptr::NonNull;

use guest_abi::PAGE_BYTES;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::rng::VirtIORng;
pub use virtio_drivers::transport::DeviceType as Kind;
use virtio_drivers::transport::pci::bus::{DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{VirtioPciError, virtio_device_type};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

pub use function::{Doorbell, Function};
pub use port::ConfigPorts;

use crate::frames::{self, Frames};

/// Why there is no device.
#[derive(Debug)]
pub enum Error {
    /// The bus has fewer of that kind.
    Absent,
    /// Its capabilities or BARs are not as they must be.
    Pci(VirtioPciError),
    /// Its driver did not get it to work.
    Driver(virtio_drivers::Error),
    /// It lacks a feature or a queue that its driver cannot do without.
    Unfit,
    /// No RAM for its rings and buffers.
    NoMemory,
    /// It has no MSI-X, or not enough vectors, or this guest has no local APIC or no vector left.
    NoInterrupts,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Absent => f.write_str("there is no such device"),
            Error::Pci(error) => write!(f, "the device's PCI function is of no use: {error}"),
            Error::Driver(error) => write!(f, "the device did not start: {error}"),
            Error::Unfit => f.write_str("the device lacks what its driver needs"),
            Error::NoMemory => f.write_str("no RAM for the device's rings and buffers"),
            Error::NoInterrupts => f.write_str("the device cannot interrupt this guest"),
        }
    }
}

impl From<virtio_drivers::Error> for Error {
    fn from(error: virtio_drivers::Error) -> Error {
        Error::Driver(error)
    }
}

/// The virtio devices on bus 0 in the order of their slots, each with its kind.
#[must_use]
pub fn devices() -> alloc::vec::Vec<(DeviceFunction, Kind)> {
    let root = PciRoot::new(ConfigPorts);
    root.enumerate_bus(0)
        .filter_map(|(at, info)| Some((at, virtio_device_type(&info)?)))
        .collect()
}

/// Opens the `index`th device of a kind (from 0).
///
/// # Errors
/// [`Error::Absent`] or [`Error::Pci`].
pub fn open(kind: Kind, index: usize) -> Result<Function, Error> {
    let found = devices().into_iter().filter(|(_, other)| *other == kind);
    let (at, _) = found.into_iter().nth(index).ok_or(Error::Absent)?;
    Function::new(at)
}

/// The first virtio-rng.
///
/// # Errors
/// [`Error`].
pub fn entropy() -> Result<VirtIORng<Ram, Function>, Error> {
    Ok(VirtIORng::new(open(Kind::EntropySource, 0)?)?)
}

/// The first virtio-console.
///
/// # Errors
/// [`Error`].
pub fn console() -> Result<VirtIOConsole<Ram, Function>, Error> {
    Ok(VirtIOConsole::new(open(Kind::Console, 0)?)?)
}

/// The `index`th virtio-blk (from 0).
///
/// # Errors
/// [`Error`].
pub fn disk(index: usize) -> Result<VirtIOBlk<Ram, Function>, Error> {
    Ok(VirtIOBlk::new(open(Kind::Block, index)?)?)
}

/// This guest's RAM for `virtio-drivers`: mapped one to one, so that an address is what a device is told.
#[derive(Clone, Copy, Debug)]
pub struct Ram;

// SAFETY: `dma_alloc` gives whole zeroed pages that nobody else has until `dma_dealloc`; addresses are guest-physical ones since
// RAM and BARs are mapped one to one (`guest_abi::boot`).
unsafe impl Hal for Ram {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match take(pages as u64) {
            Some(memory) => {
                let start = memory.start;
                // The crate gives them back by their address.
                core::mem::forget(memory);
                (start.as_ptr().expose_provenance() as u64, start)
            }
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller gives back what `dma_alloc` gave.
        unsafe { frames::release_at(paddr, pages as u64) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        let pointer = core::ptr::with_exposed_provenance_mut(paddr as usize);
        // A BAR at address 0 is one that nobody has placed.
        NonNull::new(pointer).expect("the device's memory has an address")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>().expose_provenance() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Zeroed pages of this guest that a device may access. They go back when dropped: whoever owns them keeps them until the device
/// has been reset.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    frames: Option<Frames>,
}

// SAFETY: owned memory.
unsafe impl Send for Memory {}

impl Memory {
    /// That many bytes, rounded up to pages.
    pub(crate) fn take(bytes: usize) -> Result<Memory, Error> {
        take((bytes as u64).div_ceil(PAGE_BYTES)).ok_or(Error::NoMemory)
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take() {
            frames::release(frames);
        }
    }
}

fn take(pages: u64) -> Option<Memory> {
    let frames = frames::allocate(pages, PAGE_BYTES)?;
    let start = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(
        frames.gpa() as usize
    ))?;
    // SAFETY: the frames are ours alone, and RAM is mapped one to one.
    unsafe { start.write_bytes(0, (frames.pages() * PAGE_BYTES) as usize) };
    Some(Memory {
        start,
        frames: Some(frames),
    })
}
