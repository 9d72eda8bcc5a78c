//! MSI-X: a table of messages in a BAR, masks for each and for all, and bits for what waits behind a mask.
//!
//! Source: PCI Local Bus Specification 3.0, 6.8.2 and 6.8.3.

use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Width, read_bytes};
use crate::state::{StateError, check};

/// Capability ID of MSI-X.
pub const CAPABILITY: u8 = 0x11;
/// Message Control: MSI-X is used.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Message Control: all vectors are masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Bytes of a table entry.
pub const ENTRY_BYTES: u32 = 16;
/// The most entries of a table.
pub const MAX_ENTRIES: u16 = 2048;

/// Vector Control of an entry: masked.
const MASKED: u32 = 1;

/// An interrupt as a write to memory: on x86 the local APICs take it (SDM volume 3, "Message Signalled Interrupts").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Where.
    pub address: u64,
    /// What.
    pub data: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    message: Message,
    is_masked: bool,
    is_pending: bool,
}

/// The MSI-X state of a function.
#[derive(Clone, Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    is_enabled: bool,
    is_masked: bool,
}

impl Msix {
    /// A table of `entries`, all masked, MSI-X not in use.
    #[must_use]
    pub fn new(entries: u16) -> Msix {
        let entry = Entry {
            message: Message::default(),
            is_masked: true,
            is_pending: false,
        };
        Msix {
            entries: vec![entry; usize::from(entries.clamp(1, MAX_ENTRIES))],
            is_enabled: false,
            is_masked: false,
        }
    }

    /// Entries of the table.
    #[must_use]
    pub fn entries(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Whether the guest uses MSI-X.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    /// Whether a message waits behind a mask.
    #[must_use]
    pub fn is_pending(&self, vector: u16) -> bool {
        let entry = self.entries.get(usize::from(vector));
        entry.is_some_and(|entry| entry.is_pending)
    }

    /// The message of a vector, to be sent now. Behind a mask it is kept, however often. Without MSI-X there is none.
    #[must_use]
    pub fn fire(&mut self, vector: u16) -> Option<Message> {
        let entry = self.entries.get_mut(usize::from(vector))?;
        if !self.is_enabled {
            return None;
        }
        if self.is_masked || entry.is_masked {
            entry.is_pending = true;
            return None;
        }
        Some(entry.message)
    }

    /// Forgets what waits.
    pub fn clear_pending(&mut self) {
        for entry in &mut self.entries {
            entry.is_pending = false;
        }
    }

    /// Takes the Message Control register as the guest wrote it. Returns what no longer waits.
    pub fn set_control(&mut self, control: u16) -> Vec<Message> {
        self.is_enabled = control & CONTROL_ENABLE != 0;
        self.is_masked = control & CONTROL_MASK_ALL != 0;
        if !self.is_enabled || self.is_masked {
            return Vec::new();
        }
        self.entries
            .iter_mut()
            .filter_map(|entry| {
                let is_due = !entry.is_masked && core::mem::take(&mut entry.is_pending);
                is_due.then_some(entry.message)
            })
            .collect()
    }

    /// Reads the table; 0 beyond it.
    #[must_use]
    pub fn read_table(&self, offset: u32, width: Width) -> u64 {
        let mut image = [0; 2 * ENTRY_BYTES as usize];
        // An access may begin in one entry and end in the next.
        let first = (offset / ENTRY_BYTES) as usize;
        let places = image.chunks_exact_mut(ENTRY_BYTES as usize);
        for (place, entry) in places.zip(self.entries.iter().skip(first)) {
            let address = entry.message.address.to_le_bytes();
            let data = entry.message.data.to_le_bytes();
            let control = u32::from(entry.is_masked).to_le_bytes();
            let raw = address.into_iter().chain(data).chain(control);
            for (byte, value) in place.iter_mut().zip(raw) {
                *byte = value;
            }
        }
        read_bytes(&image, (offset % ENTRY_BYTES) as usize, width, 0)
    }

    /// Writes the table: aligned accesses of 4 or 8 bytes (6.8.2), others do nothing. Returns a message that no longer waits.
    pub fn write_table(&mut self, offset: u32, width: Width, value: u64) -> Option<Message> {
        match width {
            Width::Dword if offset.is_multiple_of(4) => self.write_field(offset, value as u32),
            Width::Qword if offset.is_multiple_of(8) => {
                // The halves are of one entry; the mask is in the second.
                let first = self.write_field(offset, value as u32);
                first.or(self.write_field(offset | 4, (value >> 32) as u32))
            }
            _ => None,
        }
    }

    fn write_field(&mut self, offset: u32, value: u32) -> Option<Message> {
        let may_send = self.is_enabled && !self.is_masked;
        let entry = self.entries.get_mut((offset / ENTRY_BYTES) as usize)?;
        let message = &mut entry.message;
        match offset % ENTRY_BYTES {
            // The two lowest bits stay 0: the address is of a 32-bit word.
            0 => message.address = message.address >> 32 << 32 | u64::from(value & !3),
            4 => message.address = u64::from(value) << 32 | (message.address & 0xFFFF_FFFF),
            8 => message.data = value,
            _ => entry.is_masked = value & MASKED != 0,
        }
        let is_due = may_send && !entry.is_masked && core::mem::take(&mut entry.is_pending);
        is_due.then_some(entry.message)
    }

    /// Reads the bits of what waits; 0 beyond them.
    #[must_use]
    pub fn read_pending(&self, offset: u32, width: Width) -> u64 {
        let first = offset as usize * 8;
        let bits = self.entries.iter().skip(first).take(width.bytes() * 8);
        bits.enumerate().fold(0, |bits, (index, entry)| {
            bits | u64::from(entry.is_pending) << index
        })
    }
}

/// Table, masks and what waits, as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<Entry>,
    is_enabled: bool,
    is_masked: bool,
}

impl Msix {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let Msix {
            entries,
            is_enabled,
            is_masked,
        } = self;
        MsixState {
            entries: entries.clone(),
            is_enabled: *is_enabled,
            is_masked: *is_masked,
        }
    }

    /// One of so many entries that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: it has another number of entries, or an address of no 32-bit word.
    pub fn restore(count: u16, state: &MsixState) -> Result<Msix, StateError> {
        let MsixState {
            entries,
            is_enabled,
            is_masked,
        } = state;
        check(
            entries.len() == usize::from(count),
            "entries",
            entries.len() as u64,
            "as many as the function has",
        )?;
        for (index, entry) in entries.iter().enumerate() {
            let address = entry.message.address;
            check(address & 3 == 0, "address", address, "a multiple of 4")
                .map_err(|error| error.within(format_args!("entries[{index}]")))?;
        }
        Ok(Msix {
            entries: entries.clone(),
            is_enabled: *is_enabled,
            is_masked: *is_masked,
        })
    }
}
