//! What devices behind the transport have in common.

use super::VirtioPci;
use crate::GuestRam;
use crate::pci::{ConfigSpace, Effect, Message, PciFunction, Width};
use crate::queue::scatter::Cursor;
use crate::queue::{Chain, QueueError};

/// A device whose PCI function is its virtio transport.
pub trait VirtioFunction {
    /// The transport.
    fn transport(&self) -> &VirtioPci;

    /// The transport, to be changed.
    fn transport_mut(&mut self) -> &mut VirtioPci;

    /// What the device itself does about an access, before its effect is the bus's.
    fn after(&mut self, effect: Effect) -> Effect {
        effect
    }
}

impl<D: VirtioFunction> PciFunction for D {
    fn config(&self) -> &ConfigSpace {
        self.transport().config()
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        self.transport_mut().config_mut()
    }

    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.transport_mut().config_read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> Effect {
        let effect = self.transport_mut().config_write(offset, width, value);
        self.after(effect)
    }

    fn bar_read(&mut self, bar: u8, offset: u32, width: Width) -> u64 {
        self.transport_mut().bar_read(bar, offset, width)
    }

    #[inline]
    fn bar_write(&mut self, bar: u8, offset: u32, width: Width, value: u64) -> Effect {
        let effect = self.transport_mut().bar_write(bar, offset, width, value);
        self.after(effect)
    }

    #[inline]
    fn notified(&mut self, bar: u8, offset: u32) -> Option<u16> {
        self.transport_mut().notified(bar, offset)
    }
}

impl VirtioPci {
    /// Writes bytes into the driver's buffers on a queue, as many as these hold: how many, and the interrupt that is due. When
    /// there were too few, the driver kicks once it has more.
    pub(crate) fn fill<R: GuestRam>(
        &mut self,
        ram: &R,
        index: u16,
        chain: &mut Chain,
        bytes: &[u8],
    ) -> Result<(usize, Option<Message>), QueueError> {
        let mut filled = 0;
        let Some(queue) = self.queue(index) else {
            return Ok((filled, None));
        };
        while let Some(rest) = bytes.get(filled..).filter(|rest| !rest.is_empty()) {
            if !queue.pop(ram, chain)? {
                if queue.resume_notifications(ram)? {
                    continue;
                }
                break;
            }
            // The driver puts no device-readable buffers there.
            if chain.readable_bytes() > 0 {
                return Err(QueueError::Direction);
            }
            let written = Cursor::new(chain.writable()).write(ram, rest)?;
            queue.complete(ram, chain, written as u32)?;
            filled += written;
        }
        queue.publish(ram)?;
        let message = if queue.take_interrupt(ram)? {
            self.interrupt_queue(index)
        } else {
            None
        };
        Ok((filled, message))
    }
}
