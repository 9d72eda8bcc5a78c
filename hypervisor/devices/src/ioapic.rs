//! An I/O APIC with 24 pins, as the 82093AA.
//!
//! A pin is told whether its source asserts it; which voltage that is (the polarity bit) does not matter here. An edge at a
//! masked pin is lost; a level is sent when the mask goes.
//!
//! Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller, order number 290566-001.

use alloc::vec::Vec;

use crate::apic::{BusMessage, Delivery, Recipients, Trigger};
use crate::pci::Width;

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

#[derive(Clone, Copy, Debug)]
struct Pin {
    entry: u64,
    is_asserted: bool,
}

impl Pin {
    fn is_level(&self) -> bool {
        self.entry & LEVEL != 0
    }

    /// Sends what a level demands: asserted, not masked, and not being served.
    fn send_level(&mut self) -> Option<BusMessage> {
        let may = self.entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL;
        if !may || !self.is_asserted {
            return None;
        }
        let message = self.message()?;
        self.entry |= REMOTE_IRR;
        Some(message)
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

/// The I/O APIC. Messages that it returns are to be brought to the local APICs.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    pins: [Pin; PINS as usize],
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
        };
        IoApic {
            id: 0,
            select: 0,
            pins: [pin; PINS as usize],
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

    /// Writes at an offset of the page; what is not a whole register does nothing. Lifting a mask may send a message.
    #[must_use]
    pub fn write(&mut self, offset: u16, width: Width, value: u64) -> Option<BusMessage> {
        if width != Width::Dword {
            return None;
        }
        match (offset, self.select) {
            (SELECT, _) => self.select = value as u8,
            (WINDOW, ID) => self.id = value as u32 & ID_BITS,
            (WINDOW, _) => {
                let (pin, is_high) = self.selected_entry()?;
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
                return pin.send_level();
            }
            _ => {}
        }
        None
    }

    /// The source of a pin asserts it or not. Pins that do not exist have no effect.
    #[must_use]
    pub fn set_pin(&mut self, pin: u8, is_asserted: bool) -> Option<BusMessage> {
        let pin = self.pins.get_mut(usize::from(pin))?;
        let rises = is_asserted && !pin.is_asserted;
        pin.is_asserted = is_asserted;
        if pin.is_level() {
            pin.send_level()
        } else if rises && pin.entry & MASKED == 0 {
            pin.message()
        } else {
            None
        }
    }

    /// Whether somebody listens to a pin: it is not masked.
    #[must_use]
    pub fn listens(&self, pin: u8) -> bool {
        let pin = self.pins.get(usize::from(pin));
        pin.is_some_and(|pin| pin.entry & MASKED == 0)
    }

    /// A local APIC has ended a level-triggered interrupt: pins that are still asserted send again.
    #[must_use]
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<BusMessage> {
        let mut sent = Vec::new();
        for pin in self.served(vector) {
            pin.entry &= !REMOTE_IRR;
            sent.extend(pin.send_level());
        }
        sent
    }

    /// No local APIC took a level-triggered message: it is not being served. It is sent again when something changes.
    pub fn refused(&mut self, vector: u8) {
        for pin in self.served(vector) {
            pin.entry &= !REMOTE_IRR;
        }
    }

    /// The pins that wait for the end of an interrupt.
    fn served(&mut self, vector: u8) -> impl Iterator<Item = &mut Pin> {
        self.pins
            .iter_mut()
            .filter(move |pin| pin.entry as u8 == vector && pin.entry & REMOTE_IRR != 0)
    }
}
