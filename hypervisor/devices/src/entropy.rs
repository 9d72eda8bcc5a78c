//! virtio-rng: hands random bytes to a guest. Whoever owns the device brings them.
//!
//! Source: virtio 1.2, 5.4 "Entropy Device".

use serde::{Deserialize, Serialize};

use crate::GuestRam;
use crate::pci::Message;
use crate::queue::{Chain, QueueError};
use crate::state::StateError;
use crate::virtio::{
    self, DeviceType, Profile, Stopped, VirtioFunction, VirtioPci, VirtioPciState,
};

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

/// A source of entropy as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyState {
    pci: VirtioPciState,
}

impl Entropy {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> EntropyState {
        // Storage for chains: between two calls nobody waits for what is in it.
        let Entropy { pci, chain: _ } = self;
        EntropyState { pci: pci.save() }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: none of ours gets there.
    pub fn restore(state: &EntropyState) -> Result<Entropy, StateError> {
        let EntropyState { pci } = state;
        let made = Entropy::new();
        let pci = made.pci.restore(pci);
        Ok(Entropy {
            pci: pci.map_err(|error| error.within("pci"))?,
            chain: made.chain,
        })
    }
}
