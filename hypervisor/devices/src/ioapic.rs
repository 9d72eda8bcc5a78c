//! An I/O APIC with 24 pins, as the 82093AA.
//!
//! A pin is told whether its source asserts it; which voltage that is (the polarity bit) does not matter here. An edge at a
//! masked pin is lost; a level is sent when the mask goes.
//!
//! A level is being served (its remote IRR is set) from when a local APIC has taken its message (3.2.4 "IOREDTBL\[23:0\]"). One that
//! nobody takes, because no APIC has that address or the one that has it is disabled, is sent again at each [`IoApic::deliver`].
//!
//! Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller, order number 290566-001.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::apic::{Acceptance, BusMessage, Delivery, Recipients, Trigger};
use crate::pci::Width;
use crate::state::{StateError, check};

/// Where the registers are on PCs.
pub const DEFAULT_BASE: u64 = 0xFEC0_0000;
/// Bytes that they take.
pub const PAGE_BYTES: u64 = 4096;
/// Pins.
pub const PINS: u8 = 24;

/// IOREGSEL: which register the window shows.
const SELECT: u16 = 0x00;
/// IOWIN.
const WINDOW: u16 = 0x10;

/// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION: u8 = 0x10;

/// Version 0x11 and the number of the last pin.
const VERSION_VALUE: u32 = 0x11 | (PINS as u32 - 1) << 16;
const ID_BITS: u32 = 0x0F00_0000;

/// Fields of a redirection entry.
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits that software sets: not the delivery status and the remote IRR.
const ENTRY_BITS: u64 = 0xFF00_0000_0001_AFFF;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pin {
    entry: u64,
    is_asserted: bool,
    /// It was asserted since the last message, perhaps for a moment only: a pulse counts at a level-triggered pin, too.
    has_risen: bool,
}

impl Pin {
    fn is_level(&self) -> bool {
        self.entry & LEVEL != 0
    }

    /// Whether a level is to be sent: there, not masked, and not being served.
    fn wants(&self) -> bool {
        self.entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL && (self.is_asserted || self.has_risen)
    }

    fn message(&self) -> Option<BusMessage> {
        let vector = self.entry as u8;
        let delivery = Delivery::from_bits((self.entry >> 8) as u32, vector)?;
        let address = (self.entry >> 56) as u32;
        let recipients = match address {
            0xFF => Recipients::All,
            _ if self.entry & LOGICAL != 0 => Recipients::Logical { address },
            _ => Recipients::Physical { id: address },
        };
        Some(BusMessage {
            delivery,
            recipients,
            trigger: if self.is_level() {
                Trigger::Level
            } else {
                Trigger::Edge
            },
        })
    }
}

/// The I/O APIC. After each call of another method its owner calls [`IoApic::deliver`].
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    pins: [Pin; PINS as usize],
    /// Messages of edges that have not been delivered, each once: as they were when the edge came.
    edges: Vec<BusMessage>,
    /// A level wants to be sent: there may be one for which [`Pin::wants`] is true.
    has_level: bool,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// An I/O APIC after power-on: all pins masked.
    #[must_use]
    pub fn new() -> IoApic {
        let pin = Pin {
            entry: MASKED,
            is_asserted: false,
            has_risen: false,
        };
        IoApic {
            id: 0,
            select: 0,
            pins: [pin; PINS as usize],
            edges: Vec::new(),
            has_level: false,
        }
    }

    /// The pin and half of its entry that the window shows.
    fn selected_entry(&mut self) -> Option<(&mut Pin, bool)> {
        let index = self.select.checked_sub(REDIRECTION)?;
        let pin = self.pins.get_mut(usize::from(index / 2))?;
        Some((pin, index % 2 == 1))
    }

    /// Reads at an offset of the page. What is not a whole register is 0.
    #[must_use]
    pub fn read(&mut self, offset: u16, width: Width) -> u64 {
        if width != Width::Dword {
            return 0;
        }
        match (offset, self.select) {
            (SELECT, select) => select.into(),
            (WINDOW, ID | ARBITRATION) => self.id.into(),
            (WINDOW, VERSION) => VERSION_VALUE.into(),
            (WINDOW, _) => self.selected_entry().map_or(0, |(pin, is_high)| {
                let shift = if is_high { 32 } else { 0 };
                pin.entry >> shift & 0xFFFF_FFFF
            }),
            _ => 0,
        }
    }

    /// Writes at an offset of the page; what is not a whole register does nothing. Lifting a mask may make a message.
    pub fn write(&mut self, offset: u16, width: Width, value: u64) {
        if width != Width::Dword {
            return;
        }
        match (offset, self.select) {
            (SELECT, _) => self.select = value as u8,
            (WINDOW, ID) => self.id = value as u32 & ID_BITS,
            (WINDOW, _) => {
                let Some((pin, is_high)) = self.selected_entry() else {
                    return;
                };
                let value = value & 0xFFFF_FFFF;
                let whole = if is_high {
                    pin.entry & 0xFFFF_FFFF | value << 32
                } else {
                    pin.entry >> 32 << 32 | value
                };
                let mut entry = whole & ENTRY_BITS;
                // It is of levels only: software ends a stuck one by switching to edge and back.
                if entry & LEVEL != 0 {
                    entry |= pin.entry & REMOTE_IRR;
                }
                pin.entry = entry;
                pin.has_risen &= entry & (LEVEL | MASKED) == LEVEL;
                self.has_level |= pin.wants();
            }
            _ => {}
        }
    }

    /// The source of a pin asserts it or not. Pins that do not exist have no effect.
    pub fn set_pin(&mut self, pin: u8, is_asserted: bool) {
        let Some(pin) = self.pins.get_mut(usize::from(pin)) else {
            return;
        };
        let rises = is_asserted && !pin.is_asserted;
        pin.is_asserted = is_asserted;
        if pin.entry & MASKED != 0 || !rises {
            return;
        }
        if pin.is_level() {
            pin.has_risen = pin.entry & REMOTE_IRR == 0;
            self.has_level |= pin.wants();
        } else if let Some(message) = pin.message()
            // The same message twice is one: an APIC would not tell them apart.
            && !self.edges.contains(&message)
        {
            self.edges.push(message);
        }
    }

    /// Whether somebody listens to a pin: it is not masked.
    #[must_use]
    pub fn listens(&self, pin: u8) -> bool {
        let pin = self.pins.get(usize::from(pin));
        pin.is_some_and(|pin| pin.entry & MASKED == 0)
    }

    /// A local APIC has ended a level-triggered interrupt: pins that are still asserted send again.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in &mut self.pins {
            if pin.entry as u8 == vector && pin.entry & REMOTE_IRR != 0 {
                pin.entry &= !REMOTE_IRR;
                self.has_level |= pin.wants();
            }
        }
    }

    /// Whether [`IoApic::deliver`] would send something.
    #[inline]
    #[must_use]
    pub fn has_messages(&self) -> bool {
        self.has_level || !self.edges.is_empty()
    }

    /// Sends what there is to be sent. `send` says of each message whether a local APIC has taken it. What is triggered by edge
    /// goes once, whoever takes it; a level that nobody takes is sent again the next time.
    pub fn deliver(&mut self, mut send: impl FnMut(&BusMessage) -> Acceptance) {
        for message in self.edges.drain(..) {
            let _lost_if_refused = send(&message);
        }
        if !core::mem::take(&mut self.has_level) {
            return;
        }
        for pin in &mut self.pins {
            if !pin.wants() {
                continue;
            }
            pin.has_risen = false;
            match pin.message().as_ref().map(&mut send) {
                Some(Acceptance::Accepted) => pin.entry |= REMOTE_IRR,
                Some(Acceptance::Refused) => self.has_level |= pin.is_asserted,
                // A kind of message that there is not.
                None => {}
            }
        }
    }
}

/// The I/O APIC as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    id: u32,
    select: u8,
    pins: [Pin; PINS as usize],
    edges: Vec<BusMessage>,
    has_level: bool,
}

impl IoApic {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> IoApicState {
        let IoApic {
            id,
            select,
            pins,
            edges,
            has_level,
        } = self;
        IoApicState {
            id: *id,
            select: *select,
            pins: *pins,
            edges: edges.clone(),
            has_level: *has_level,
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: none of ours gets there.
    pub fn restore(state: &IoApicState) -> Result<IoApic, StateError> {
        let IoApicState {
            id,
            select,
            pins,
            edges,
            has_level,
        } = state;
        check(id & !ID_BITS == 0, "id", *id, "in bits 27 to 24")?;
        for (index, pin) in pins.iter().enumerate() {
            check(
                pin.entry & !(ENTRY_BITS | REMOTE_IRR) == 0,
                "entry",
                pin.entry,
                "without reserved bits",
            )
            .map_err(|error| error.within(format_args!("pins[{index}]")))?;
        }
        check(
            edges.len() <= pins.len(),
            "edges",
            edges.len() as u64,
            "at most one for each pin",
        )?;
        Ok(IoApic {
            id: *id,
            select: *select,
            pins: *pins,
            edges: edges.clone(),
            has_level: *has_level,
        })
    }
}
