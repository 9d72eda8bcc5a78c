//! virtio-console with one port: bytes both ways.
//!
//! Source: virtio 1.2, 5.3 "Console Device".

use serde::{Deserialize, Serialize};

use crate::GuestRam;
use crate::pci::Message;
use crate::queue::scatter::Cursor;
use crate::queue::{Chain, ChainState, QueueError};
use crate::state::{StateError, check};
use crate::virtio::{
    self, DeviceType, Profile, Stopped, VirtioFunction, VirtioPci, VirtioPciState,
};

/// The queue of bytes to the guest (5.3.2).
pub const RECEIVE: u16 = 0;
/// The queue of bytes from the guest.
pub const TRANSMIT: u16 = 1;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 64;

/// What was moved.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Bytes.
    pub bytes: usize,
    /// The interrupt, to be sent.
    pub message: Option<Message>,
    /// There is more than there was room for, and no kick will come for it.
    pub more: bool,
}

/// A console.
#[derive(Debug)]
pub struct Console {
    pci: VirtioPci,
    /// The chain that is being read, and how far.
    output: Chain,
    output_done: u32,
    input: Chain,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// A device.
    #[must_use]
    pub fn new() -> Console {
        let pci = VirtioPci::new(&Profile {
            device: DeviceType::Console,
            // Simple communication controller, other.
            class: [7, 0x80, 0],
            features: virtio::feature::COMMON,
            needs: &[],
            queue_sizes: &[QUEUE_SIZE, QUEUE_SIZE],
            // struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr; none of them is offered.
            config: &[0; 12],
        });
        Console {
            pci,
            output: Chain::new(),
            output_done: 0,
            input: Chain::new(),
        }
    }

    /// The PCI function: status, failure.
    #[must_use]
    pub fn pci(&self) -> &VirtioPci {
        &self.pci
    }

    /// Takes what the guest has written, as much as the buffer holds, after a kick of [`TRANSMIT`] or because of
    /// [`Moved::more`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn take_output<R: GuestRam>(
        &mut self,
        ram: &R,
        buffer: &mut [u8],
    ) -> Result<Moved, Stopped> {
        match self.try_take_output(ram, buffer) {
            Ok(moved) => Ok(moved),
            Err(error) => Err(self.pci.stop(TRANSMIT, error)),
        }
    }

    fn try_take_output<R: GuestRam>(
        &mut self,
        ram: &R,
        buffer: &mut [u8],
    ) -> Result<Moved, QueueError> {
        let mut moved = Moved {
            bytes: 0,
            message: None,
            more: false,
        };
        let Some(queue) = self.pci.queue(TRANSMIT) else {
            self.output_done = 0;
            return Ok(moved);
        };
        queue.suppress_notifications(ram)?;
        // Half a chain from before a reset is let go.
        if !queue.owns(&self.output) {
            self.output_done = 0;
        }
        loop {
            if self.output_done == 0 {
                if !queue.pop(ram, &mut self.output)? {
                    if queue.resume_notifications(ram)? {
                        continue;
                    }
                    break;
                }
                if self.output.writable_bytes() > 0 {
                    return Err(QueueError::Direction);
                }
            }
            let room = buffer.get_mut(moved.bytes..).unwrap_or_default();
            let mut cursor = Cursor::new(self.output.readable());
            cursor.skip(self.output_done);
            let read = cursor.read(ram, room)?;
            moved.bytes += read;
            self.output_done += read as u32;
            if self.output_done < self.output.readable_bytes() {
                // The buffer is full.
                if self.output_done == 0 {
                    queue.undo_pop(1);
                }
                moved.more = true;
                break;
            }
            self.output_done = 0;
            queue.complete(ram, &self.output, 0)?;
        }
        queue.publish(ram)?;
        if queue.take_interrupt(ram)? {
            moved.message = self.pci.interrupt_queue(TRANSMIT);
        }
        Ok(moved)
    }

    /// Gives the guest bytes, as many as it has room for. When there was not enough, it kicks [`RECEIVE`] once it has more.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn give_input<R: GuestRam>(&mut self, ram: &R, bytes: &[u8]) -> Result<Moved, Stopped> {
        match self.pci.fill(ram, RECEIVE, &mut self.input, bytes) {
            Ok((bytes, message)) => Ok(Moved {
                bytes,
                message,
                more: false,
            }),
            Err(error) => Err(self.pci.stop(RECEIVE, error)),
        }
    }
}

impl VirtioFunction for Console {
    fn transport(&self) -> &VirtioPci {
        &self.pci
    }

    fn transport_mut(&mut self) -> &mut VirtioPci {
        &mut self.pci
    }
}

/// A console as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    pci: VirtioPciState,
    /// The chain that is being read and how far, if there is one.
    output: Option<(ChainState, u32)>,
}

impl Console {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> ConsoleState {
        let Console {
            pci,
            output,
            output_done,
            // Storage for chains: between two calls nobody waits for what is in it.
            input: _,
        } = self;
        ConsoleState {
            pci: pci.save(),
            output: (*output_done > 0).then(|| (output.save(), *output_done)),
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: none of ours gets there.
    pub fn restore(state: &ConsoleState) -> Result<Console, StateError> {
        let ConsoleState { pci, output } = state;
        let made = Console::new();
        let pci = made.pci.restore(pci);
        let (output, output_done) = match output {
            Some((chain, done)) => {
                let chain = Chain::restore(chain).map_err(|error| error.within("output"))?;
                check(
                    (1..chain.readable_bytes()).contains(done) && chain.writable_bytes() == 0,
                    "output.done",
                    *done,
                    "more than 0 and less than a readable chain has",
                )?;
                (chain, *done)
            }
            None => (made.output, 0),
        };
        Ok(Console {
            pci: pci.map_err(|error| error.within("pci"))?,
            output,
            output_done,
            input: made.input,
        })
    }
}
