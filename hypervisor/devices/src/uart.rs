//! A serial port as the 16550A, as far as software can tell without a clock: bytes go at once, at any rate. What takes character
//! times on the chip has been over when software looks: the transmitter is empty again, and fewer bytes than the FIFO's trigger
//! level have timed out.
//!
//! Source: National Semiconductor PC16550D data sheet, "Registers".

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::state::{StateError, check};

/// Ports that it takes.
pub const PORTS: u16 = 8;
/// Bytes that the FIFO holds.
const FIFO_BYTES: usize = 16;

/// Interrupt enable: received data, transmitter empty, line status, modem status.
const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_EMPTY: u8 = 1 << 1;
const ENABLE_LINE: u8 = 1 << 2;
const ENABLE_MODEM: u8 = 1 << 3;
const ENABLE_BITS: u8 = 0x0F;

/// Interrupt identification, in the order of priority.
const CAUSE_LINE: u8 = 0x06;
const CAUSE_RECEIVED: u8 = 0x04;
const CAUSE_EMPTY: u8 = 0x02;
const CAUSE_MODEM: u8 = 0x00;
const CAUSE_NONE: u8 = 0x01;
/// Both bits: the FIFOs are on.
const CAUSE_FIFO: u8 = 0xC0;

/// With [`CAUSE_RECEIVED`]: fewer bytes than the trigger level, and no more have come for a while.
const CAUSE_TIMEOUT: u8 = 0x08;

/// FIFO control: on, and clear what was received. The upper two bits are the trigger level.
const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR: u8 = 1 << 1;
const FIFO_TRIGGERS: [usize; 4] = [1, 4, 8, 14];

/// Line control: the divisor is at the first two ports.
const LINE_DIVISOR: u8 = 1 << 7;

/// Modem control: the outputs, and the loop back.
const MODEM_BITS: u8 = 0x1F;
const MODEM_DTR: u8 = 1 << 0;
const MODEM_RTS: u8 = 1 << 1;
const MODEM_OUT1: u8 = 1 << 2;
const MODEM_OUT2: u8 = 1 << 3;
const MODEM_LOOP: u8 = 1 << 4;

/// Line status: data, overrun, transmitter empty (holding register and all).
const STATUS_DATA: u8 = 1 << 0;
const STATUS_OVERRUN: u8 = 1 << 1;
const STATUS_EMPTY: u8 = 1 << 5 | 1 << 6;

/// Modem status: somebody is there and ready: CTS, DSR, DCD.
const PEER_READY: u8 = 1 << 4 | 1 << 5 | 1 << 7;
const PEER_CTS: u8 = 1 << 4;
const PEER_DSR: u8 = 1 << 5;
const PEER_RI: u8 = 1 << 6;
const PEER_DCD: u8 = 1 << 7;

/// A serial port. After each access its owner looks at [`Uart::take_fall`], then at [`Uart::is_interrupting`].
#[derive(Clone, Debug, Default)]
pub struct Uart {
    enable: u8,
    line: u8,
    modem: u8,
    scratch: u8,
    divisor: u16,
    has_fifo: bool,
    /// Bytes in the FIFO from which on the interrupt is not one of a time-out.
    trigger: usize,
    received: VecDeque<u8>,
    has_overrun: bool,
    /// Changes of the modem's inputs that nobody has seen: in loop-back mode there are some.
    changes: u8,
    /// The transmitter has become empty and nobody has been told.
    empty_is_news: bool,
    /// The interrupt line was down for a moment.
    fell: bool,
}

impl Uart {
    /// A port after reset.
    #[must_use]
    pub fn new() -> Uart {
        Uart::default()
    }

    fn room(&self) -> usize {
        let bytes = if self.has_fifo { FIFO_BYTES } else { 1 };
        bytes.saturating_sub(self.received.len())
    }

    /// How many bytes it can take from outside now: none in loop-back mode.
    #[must_use]
    pub fn input_room(&self) -> usize {
        if self.is_looped() { 0 } else { self.room() }
    }

    /// Brings a byte from outside. Without room it is lost, and that is noted.
    pub fn receive(&mut self, byte: u8) {
        if !self.is_looped() {
            self.push(byte);
        }
    }

    fn push(&mut self, byte: u8) {
        if self.room() == 0 {
            self.has_overrun = true;
            if self.has_fifo {
                // It stays in the shift register, where the next one comes over it ("Line Status Register", OE).
                return;
            }
            // The holding register's byte is destroyed.
            self.received.clear();
        }
        self.received.push_back(byte);
    }

    fn is_looped(&self) -> bool {
        self.modem & MODEM_LOOP != 0
    }

    /// Whether the interrupt line has been down since the last call, if only for a moment: a controller that looks for edges has
    /// to see that.
    #[must_use]
    pub fn take_fall(&mut self) -> bool {
        core::mem::take(&mut self.fell)
    }

    /// Whether its interrupt line is up: OUT2 lets it through, as on PCs.
    #[must_use]
    pub fn is_interrupting(&self) -> bool {
        let is_connected = self.modem & MODEM_OUT2 != 0 && !self.is_looped();
        is_connected && self.cause() != CAUSE_NONE
    }

    fn cause(&self) -> u8 {
        if self.has_overrun && self.enable & ENABLE_LINE != 0 {
            CAUSE_LINE
        } else if !self.received.is_empty() && self.enable & ENABLE_RECEIVED != 0 {
            if self.has_fifo && self.received.len() < self.trigger {
                CAUSE_RECEIVED | CAUSE_TIMEOUT
            } else {
                CAUSE_RECEIVED
            }
        } else if self.empty_is_news && self.enable & ENABLE_EMPTY != 0 {
            CAUSE_EMPTY
        } else if self.changes != 0 && self.enable & ENABLE_MODEM != 0 {
            CAUSE_MODEM
        } else {
            CAUSE_NONE
        }
    }

    /// Reads a byte at port 0 to 7 of it; others float.
    #[must_use]
    pub fn read(&mut self, port: u16) -> u8 {
        let shows_divisor = self.line & LINE_DIVISOR != 0;
        let [low, high] = self.divisor.to_le_bytes();
        match port {
            0 if shows_divisor => low,
            1 if shows_divisor => high,
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.enable,
            2 => {
                let cause = self.cause();
                if cause == CAUSE_EMPTY {
                    self.empty_is_news = false;
                }
                cause | if self.has_fifo { CAUSE_FIFO } else { 0 }
            }
            3 => self.line,
            4 => self.modem,
            5 => {
                let data = if self.received.is_empty() {
                    0
                } else {
                    STATUS_DATA
                };
                let overrun = core::mem::take(&mut self.has_overrun);
                STATUS_EMPTY | data | if overrun { STATUS_OVERRUN } else { 0 }
            }
            6 => self.modem_status() | core::mem::take(&mut self.changes),
            7 => self.scratch,
            _ => 0xFF,
        }
    }

    /// In loop-back mode the outputs come back as inputs.
    fn modem_status(&self) -> u8 {
        if !self.is_looped() {
            return PEER_READY;
        }
        let wires = [
            (MODEM_RTS, PEER_CTS),
            (MODEM_DTR, PEER_DSR),
            (MODEM_OUT1, PEER_RI),
            (MODEM_OUT2, PEER_DCD),
        ];
        wires
            .iter()
            .filter(|(output, _)| self.modem & output != 0)
            .fold(0, |status, (_, input)| status | input)
    }

    /// Writes a byte at port 0 to 7 of it; others do nothing. Returns a byte that goes out.
    #[must_use]
    pub fn write(&mut self, port: u16, value: u8) -> Option<u8> {
        let shows_divisor = self.line & LINE_DIVISOR != 0;
        let [low, high] = self.divisor.to_le_bytes();
        match port {
            0 if shows_divisor => self.divisor = u16::from_le_bytes([value, high]),
            1 if shows_divisor => self.divisor = u16::from_le_bytes([low, value]),
            0 => {
                // Writing ends the interrupt ("Interrupt Identification Register", table); it comes again as the byte has gone.
                self.fell |= self.cause() == CAUSE_EMPTY;
                self.empty_is_news = true;
                if !self.is_looped() {
                    return Some(value);
                }
                self.push(value);
            }
            1 => {
                // The transmitter is empty as the interrupt is allowed.
                if value & ENABLE_EMPTY != 0 && self.enable & ENABLE_EMPTY == 0 {
                    self.empty_is_news = true;
                }
                self.enable = value & ENABLE_BITS;
            }
            2 => {
                // Without it the other bits have no effect.
                let has_fifo = value & FIFO_ENABLE != 0;
                if has_fifo != self.has_fifo || (has_fifo && value & FIFO_CLEAR != 0) {
                    self.received.clear();
                }
                self.has_fifo = has_fifo;
                let trigger = FIFO_TRIGGERS.get(usize::from(value >> 6));
                self.trigger = trigger.copied().unwrap_or(1);
            }
            3 => self.line = value,
            4 => {
                let before = self.modem_status();
                self.modem = value & MODEM_BITS;
                let after = self.modem_status();
                // Of the ring indicator only the end counts.
                let changed = (before ^ after) & !(PEER_RI & after);
                self.changes |= changed >> 4;
            }
            7 => self.scratch = value,
            _ => {}
        }
        None
    }
}

/// A serial port as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    enable: u8,
    line: u8,
    modem: u8,
    scratch: u8,
    divisor: u16,
    has_fifo: bool,
    trigger: u8,
    received: Vec<u8>,
    has_overrun: bool,
    changes: u8,
    empty_is_news: bool,
    fell: bool,
}

impl Uart {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> UartState {
        let Uart {
            enable,
            line,
            modem,
            scratch,
            divisor,
            has_fifo,
            trigger,
            received,
            has_overrun,
            changes,
            empty_is_news,
            fell,
        } = self;
        UartState {
            enable: *enable,
            line: *line,
            modem: *modem,
            scratch: *scratch,
            divisor: *divisor,
            has_fifo: *has_fifo,
            trigger: *trigger as u8,
            received: received.iter().copied().collect(),
            has_overrun: *has_overrun,
            changes: *changes,
            empty_is_news: *empty_is_news,
            fell: *fell,
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: none of ours gets there.
    pub fn restore(state: &UartState) -> Result<Uart, StateError> {
        let UartState {
            enable,
            line,
            modem,
            scratch,
            divisor,
            has_fifo,
            trigger,
            received,
            has_overrun,
            changes,
            empty_is_news,
            fell,
        } = state;
        check(
            enable & !ENABLE_BITS == 0,
            "enable",
            *enable,
            "of four bits",
        )?;
        check(modem & !MODEM_BITS == 0, "modem", *modem, "of five bits")?;
        let is_trigger = *trigger == 0 || FIFO_TRIGGERS.contains(&usize::from(*trigger));
        check(is_trigger, "trigger", *trigger, "0, 1, 4, 8 or 14")?;
        let room = if *has_fifo { FIFO_BYTES } else { 1 };
        check(
            received.len() <= room,
            "received",
            received.len() as u64,
            "at most 16 bytes with the FIFO, and one without",
        )?;
        Ok(Uart {
            enable: *enable,
            line: *line,
            modem: *modem,
            scratch: *scratch,
            divisor: *divisor,
            has_fifo: *has_fifo,
            trigger: usize::from(*trigger),
            received: received.iter().copied().collect(),
            has_overrun: *has_overrun,
            changes: *changes,
            empty_is_news: *empty_is_news,
            fell: *fell,
        })
    }
}
