//! virtio-rng: hands random bytes to a guest. Whoever owns the device brings them.
//!
//! Source: virtio 1.2, 5.4 "Entropy Device".

use crate::GuestRam;
use crate::pci::Message;
use crate::queue::{Chain, QueueError};
use crate::virtio::{self, DeviceType, Profile, Stopped, VirtioFunction, VirtioPci};

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
        let Some(queue) = self.pci.queue(REQUESTS) else {
            return Ok(Served {
                bytes: 0,
                message: None,
                more: false,
            });
        };
        queue.suppress_notifications(ram)?;
        // The driver puts no device-readable buffers there (5.4.6.1).
        let (bytes, message) = self.pci.fill(ram, REQUESTS, &mut self.chain, random)?;
        Ok(Served {
            bytes,
            message,
            more: bytes == random.len(),
        })
    }
}

impl VirtioFunction for Entropy {
    fn transport(&self) -> &VirtioPci {
        &self.pci
    }

    fn transport_mut(&mut self) -> &mut VirtioPci {
        &mut self.pci
    }
}
