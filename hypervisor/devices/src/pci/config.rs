//! The 256 bytes of configuration space of a type-0 function, as bytes with a mask of what the guest may write.

use alloc::vec::Vec;

use bitflags::bitflags;

use super::{Width, read_bytes};
use crate::state::{StateError, check};

/// Bytes of a configuration space.
const BYTES: usize = 256;
/// Base address registers of a type-0 header.
const BARS: usize = 6;

/// Offsets in a type-0 header.
mod at {
    pub(super) const VENDOR: u8 = 0x00;
    pub(super) const DEVICE: u8 = 0x02;
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const STATUS: u8 = 0x06;
    pub(super) const REVISION: u8 = 0x08;
    pub(super) const CLASS: u8 = 0x09;
    pub(super) const BAR: u8 = 0x10;
    pub(super) const SUBSYSTEM_VENDOR: u8 = 0x2C;
    pub(super) const SUBSYSTEM: u8 = 0x2E;
    pub(super) const CAPABILITIES: u8 = 0x34;
    pub(super) const INTERRUPT_LINE: u8 = 0x3C;
    /// The first byte after the header.
    pub(super) const END: u8 = 0x40;
}

/// Bit of the status register: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// The least a memory BAR can decode: four bits of it are flags.
const LEAST_BAR_BYTES: u32 = 16;
/// What an I/O BAR can decode: two bits of it are flags, and more than 256 ports are not for one (6.2.5.1).
const PORT_BAR_BYTES: core::ops::RangeInclusive<u32> = 4..=256;
/// The flag of an I/O BAR.
const PORT_BAR: u32 = 1;

bitflags! {
    /// The command register, of which these bits exist here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Command: u16 {
        /// I/O BARs answer.
        const PORTS = 1 << 0;
        /// Memory BARs answer.
        const MEMORY = 1 << 1;
        /// The function may read and write memory, and send messages.
        const BUS_MASTER = 1 << 2;
        /// No INTx; there is none anyway.
        const NO_INTX = 1 << 10;
    }
}

/// What a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    /// Bits that the guest may write.
    writable: [u8; BYTES],
    bar_bytes: [u32; BARS],
    /// Which BARs are of ports, a bit each.
    port_bars: u8,
    /// Where the pointer to the next capability goes.
    link: u8,
    /// Where the next capability goes.
    free: u8,
}

impl ConfigSpace {
    /// A header with no BARs and no capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bar_bytes: [0; BARS],
            port_bars: 0,
            link: at::CAPABILITIES,
            free: at::END,
        };
        let [base, sub, interface] = identity.class;
        space.set(at::VENDOR, &identity.vendor.to_le_bytes());
        space.set(at::DEVICE, &identity.device.to_le_bytes());
        space.set(at::REVISION, &[identity.revision]);
        space.set(at::CLASS, &[interface, sub, base]);
        let vendor = identity.subsystem_vendor.to_le_bytes();
        space.set(at::SUBSYSTEM_VENDOR, &vendor);
        space.set(at::SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space.permit(at::COMMAND, &Command::all().bits().to_le_bytes());
        space.permit(at::INTERRUPT_LINE, &[0xFF]);
        space
    }

    /// Sets bytes, whatever the guest may write. What would go beyond the end is left out.
    pub fn set(&mut self, offset: u8, bytes: &[u8]) {
        let places = self.bytes.iter_mut().skip(usize::from(offset));
        for (place, byte) in places.zip(bytes) {
            *place = *byte;
        }
    }

    /// Lets the guest write these bits.
    fn permit(&mut self, offset: u8, bits: &[u8]) {
        let places = self.writable.iter_mut().skip(usize::from(offset));
        for (place, bits) in places.zip(bits) {
            *place = *bits;
        }
    }

    /// Makes a 32-bit memory BAR, not prefetchable, of `bytes`: rounded up to a power of two. BARs after the sixth are left out.
    pub fn add_bar(&mut self, bar: u8, bytes: u32) {
        let bytes = bytes
            .max(LEAST_BAR_BYTES)
            .checked_next_power_of_two()
            .unwrap_or(1 << 31);
        if let Some(place) = self.bar_bytes.get_mut(usize::from(bar)) {
            *place = bytes;
            // A guest finds the size by writing ones: bits below it stay 0 (6.2.5.1).
            self.permit(at::BAR + bar * 4, &(!(bytes - 1)).to_le_bytes());
        }
    }

    /// Makes an I/O BAR of `bytes` ports, rounded up to a power of two from 4 to 256. BARs after the sixth are left out.
    pub fn add_port_bar(&mut self, bar: u8, bytes: u32) {
        let (least, most) = PORT_BAR_BYTES.into_inner();
        let bytes = bytes.clamp(least, most).next_power_of_two();
        if let Some(place) = self.bar_bytes.get_mut(usize::from(bar)) {
            *place = bytes;
            self.port_bars |= 1 << bar;
            self.set(at::BAR + bar * 4, &PORT_BAR.to_le_bytes());
            // There are 64 Ki ports: the upper half stays 0.
            let writable = !(bytes - 1) & 0xFFFF;
            self.permit(at::BAR + bar * 4, &writable.to_le_bytes());
        }
    }

    /// Whether a BAR is of ports.
    #[must_use]
    pub fn is_port_bar(&self, bar: u8) -> bool {
        self.port_bars & 1_u8.checked_shl(bar.into()).unwrap_or(0) != 0
    }

    /// Appends a capability: `body` comes after its ID and link, `writable` are the bits of it that the guest may write.
    /// Returns its offset, `None` if there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let offset = self.free;
        let bytes = u8::try_from(body.len() + 2).ok()?;
        let end = offset.checked_add(bytes)?.checked_next_multiple_of(4)?;
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.permit(offset + 2, writable);
        self.set(self.link, &[offset]);
        self.set(at::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = offset + 1;
        self.free = end;
        Some(offset)
    }

    /// Reads; bytes beyond the end are ones.
    #[must_use]
    pub fn read(&self, offset: u8, width: Width) -> u32 {
        read_bytes(&self.bytes, usize::from(offset), width, 0xFF) as u32
    }

    /// Writes the bits that the guest may write.
    pub fn write(&mut self, offset: u8, width: Width, value: u32) {
        let places = self.bytes.iter_mut().zip(&self.writable);
        let values = value.to_le_bytes();
        for ((place, writable), value) in places
            .skip(usize::from(offset))
            .zip(values)
            .take(width.bytes())
        {
            *place = (*place & !writable) | (value & writable);
        }
    }

    /// A 32-bit register.
    #[must_use]
    pub fn dword(&self, offset: u8) -> u32 {
        self.read(offset, Width::Dword)
    }

    /// The command register.
    #[must_use]
    #[inline]
    pub fn command(&self) -> Command {
        // Asked for several times with each frame: not by way of `read`.
        let [_, _, _, _, low, high, ..] = self.bytes;
        Command::from_bits_truncate(u16::from_le_bytes([low, high]))
    }

    /// Size of a BAR in bytes, 0 if there is none.
    #[must_use]
    pub fn bar_bytes(&self, bar: u8) -> u32 {
        let bytes = self.bar_bytes.get(usize::from(bar)).copied();
        bytes.unwrap_or(0)
    }

    /// Where a BAR answers: its address, or first port, if it exists, has been placed and its kind is decoded. A BAR at 0 is not
    /// placed.
    #[must_use]
    pub fn bar(&self, bar: u8) -> Option<u32> {
        let (decoded, flags) = self.kind(bar);
        if self.bar_bytes(bar) == 0 || !self.command().contains(decoded) {
            return None;
        }
        let address = self.dword(at::BAR + bar * 4) & !flags;
        (address != 0).then_some(address)
    }

    /// What has a BAR decoded, and which of its bits are no address.
    fn kind(&self, bar: u8) -> (Command, u32) {
        if self.is_port_bar(bar) {
            (Command::PORTS, 3)
        } else {
            (Command::MEMORY, 0xF)
        }
    }

    /// Places a BAR and has its kind decoded, as firmware does.
    pub fn place_bar(&mut self, bar: u8, address: u32) {
        if self.bar_bytes(bar) != 0 {
            self.write(at::BAR + bar * 4, Width::Dword, address);
            let command = self.command() | self.kind(bar).0;
            self.set(at::COMMAND, &command.bits().to_le_bytes());
        }
    }

    /// All BARs that answer: index, address or first port, bytes.
    pub fn bars(&self) -> impl Iterator<Item = (u8, u32, u32)> {
        (0..BARS as u8).filter_map(|bar| Some((bar, self.bar(bar)?, self.bar_bytes(bar))))
    }
}

impl ConfigSpace {
    /// Its bytes. What the guest may write, BARs' sizes and where capabilities are follow from what function it is of.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let ConfigSpace {
            bytes,
            writable: _,
            bar_bytes: _,
            port_bars: _,
            link: _,
            free: _,
        } = self;
        bytes.to_vec()
    }

    /// The space with those bytes; itself it is as its function makes it.
    ///
    /// # Errors
    /// [`StateError`]: too few or too many, or one differs where the guest cannot write.
    pub fn restore(mut self, bytes: &[u8]) -> Result<ConfigSpace, StateError> {
        check(bytes.len() == BYTES, "bytes", bytes.len() as u64, "256")?;
        let places = self.bytes.iter_mut().zip(&self.writable);
        for (index, ((place, writable), byte)) in places.zip(bytes).enumerate() {
            let name = "what the function has there";
            check((*place ^ byte) & !writable == 0, "value", *byte, name)
                .map_err(|error| error.within(format_args!("bytes[{index:#x}]")))?;
            *place = *byte;
        }
        Ok(self)
    }
}
