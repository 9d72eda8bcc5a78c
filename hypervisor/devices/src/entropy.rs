//! virtio-rng: hands random bytes to a guest. Whoever owns the device brings them.
//!
//! Source: virtio 1.2, 5.4 "Entropy Device".

use crate::GuestRam;
use crate::pci::{ConfigSpace, Effect, Message, PciFunction, Width};
use crate::queue::scatter::Cursor;
use crate::queue::{Chain, QueueError};
use crate::virtio::{self, DeviceType, Profile, Stopped, VirtioPci};

/// The only queue (5.4.2).
pub const REQUESTS: u16 = 0;
/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 16;

/// What was served.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Bytes that a guest has now; the others may be used otherwise.
    pub bytes: usize,
    /// The interrupt, to be sent.
    pub message: Option<Message>,
    /// Requests are left, and no kick will come for them.
    pub more: bool,
}

/// A source of entropy.
#[derive(Debug)]
pub struct Entropy {
    pci: VirtioPci,
    chain: Chain,
}

impl Default for Entropy {
    fn default() -> Self {
        Self::new()
    }
}

impl Entropy {
    /// A device.
    #[must_use]
    pub fn new() -> Entropy {
        let pci = VirtioPci::new(&Profile {
            device: DeviceType::Entropy,
            // Of no class.
            class: [0xFF, 0, 0],
            features: virtio::feature::COMMON,
            needs: &[],
            queue_sizes: &[QUEUE_SIZE],
            config: &[],
        });
        Entropy {
            pci,
            chain: Chain::new(),
        }
    }

    /// The PCI function: status, failure.
    #[must_use]
    pub fn pci(&self) -> &VirtioPci {
        &self.pci
    }

    /// Fills requests with random bytes until either is used up, after a kick or because of [`Served::more`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve<R: GuestRam>(&mut self, ram: &R, random: &[u8]) -> Result<Served, Stopped> {
        match self.try_serve(ram, random) {
            Ok(served) => Ok(served),
            Err(error) => Err(self.pci.stop(REQUESTS, error)),
        }
    }

    fn try_serve<R: GuestRam>(&mut self, ram: &R, random: &[u8]) -> Result<Served, QueueError> {
        let mut served = Served {
            bytes: 0,
            message: None,
            more: false,
        };
        let Some(queue) = self.pci.queue(REQUESTS) else {
            return Ok(served);
        };
        queue.suppress_notifications(ram)?;
        loop {
            let rest = random.get(served.bytes..).unwrap_or_default();
            if rest.is_empty() {
                served.more = true;
                break;
            }
            if !queue.pop(ram, &mut self.chain)? {
                if queue.resume_notifications(ram)? {
                    continue;
                }
                break;
            }
            // The driver puts no device-readable buffers there (5.4.6.1).
            if self.chain.readable_bytes() > 0 {
                return Err(QueueError::Direction);
            }
            let written = Cursor::new(self.chain.writable()).write(ram, rest)?;
            queue.complete(ram, &self.chain, written as u32)?;
            served.bytes += written;
        }
        queue.publish(ram)?;
        if queue.take_interrupt(ram)? {
            served.message = self.pci.interrupt_queue(REQUESTS);
        }
        Ok(served)
    }
}

impl PciFunction for Entropy {
    fn config(&self) -> &ConfigSpace {
        self.pci.config()
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        self.pci.config_mut()
    }

    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.pci.config_read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> Effect {
        self.pci.config_write(offset, width, value)
    }

    fn bar_read(&mut self, bar: u8, offset: u32, width: Width) -> u64 {
        self.pci.bar_read(bar, offset, width)
    }

    fn bar_write(&mut self, bar: u8, offset: u32, width: Width, value: u64) -> Effect {
        self.pci.bar_write(bar, offset, width, value)
    }
}
