//! The keyboard controller, an 8042, with a keyboard that nobody types on, and without a mouse.
//!
//! Commands are done at once, so that its input buffer is never full. What the keyboard answers waits in a queue, as in the
//! keyboard's own buffer.
//!
//! Source: IBM Personal Computer AT Technical Reference (1984), "Keyboard Controller", "Keyboard"; IBM PS/2 Hardware Interface
//! Technical Reference, "Keyboard and Auxiliary Device Controller".

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::state::{StateError, check};

/// Status: a byte waits, the self-test has passed, the last write was a command, the keyboard is not locked, the byte is a
/// mouse's, the device did not answer.
const STATUS_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_NOT_LOCKED: u8 = 1 << 4;
const STATUS_AUXILIARY: u8 = 1 << 5;
const STATUS_TIMEOUT: u8 = 1 << 6;

/// The command byte, cell 0 of the controller's RAM: interrupt, self-test has passed, interfaces off, codes as of the first set.
const MODE_INTERRUPT: u8 = 1 << 0;
const MODE_SYSTEM: u8 = 1 << 2;
const MODE_KEYBOARD_OFF: u8 = 1 << 4;
const MODE_AUXILIARY_OFF: u8 = 1 << 5;
const MODE_TRANSLATE: u8 = 1 << 6;

/// The output port: the processor runs, A20 goes through.
const OUTPUT_RUNS: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;
/// The input port: the keyboard is not locked.
const INPUT_PORT: u8 = 1 << 7;

/// Bytes of the controller's RAM.
const RAM_BYTES: usize = 32;
/// Bytes that wait: those of a keyboard.
const QUEUE_BYTES: usize = 16;

/// A keyboard's answers.
const ACKNOWLEDGE: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const SELF_TEST_PASSED: u8 = 0xAA;
const ECHO: u8 = 0xEE;
const IDENTIFICATION: [u8; 2] = [0xAB, 0x83];
/// The set of scan codes after its reset.
const DEFAULT_SET: u8 = 2;

/// Whose a byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Controller,
    Keyboard,
    /// The mouse that is not there; whether it did not answer.
    Auxiliary {
        timed_out: bool,
    },
}

/// What the next byte at the data port is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expected {
    #[default]
    Keyboard,
    Ram(u8),
    OutputPort,
    AsKeyboards,
    AsAuxiliarys,
    Auxiliary,
}

/// The controller. After each access its owner looks at [`Keyboard::is_interrupting`].
#[derive(Clone, Debug)]
pub(super) struct Keyboard {
    ram: [u8; RAM_BYTES],
    output_port: u8,
    expected: Expected,
    last_was_command: bool,
    /// What waits to be read.
    queue: VecDeque<(Source, u8)>,
    /// The byte in the output buffer, also after it has been read.
    last: u8,
    /// The keyboard: a command whose parameter it waits for, its set of codes, its last answer.
    wants_parameter: Option<u8>,
    scan_set: u8,
    answered: u8,
}

impl Keyboard {
    /// As firmware leaves it: tested, the keyboard on, no mouse.
    pub(super) fn new() -> Keyboard {
        let mut ram = [0; RAM_BYTES];
        if let Some(mode) = ram.first_mut() {
            *mode = MODE_INTERRUPT | MODE_SYSTEM | MODE_AUXILIARY_OFF | MODE_TRANSLATE;
        }
        Keyboard {
            ram,
            output_port: OUTPUT_RUNS | OUTPUT_A20,
            expected: Expected::Keyboard,
            last_was_command: false,
            queue: VecDeque::new(),
            last: 0,
            wants_parameter: None,
            scan_set: DEFAULT_SET,
            answered: 0,
        }
    }

    fn mode(&self) -> u8 {
        self.ram.first().copied().unwrap_or(0)
    }

    fn set_mode(&mut self, mode: u8) {
        if let Some(cell) = self.ram.first_mut() {
            // There is no second interface to be switched on.
            *cell = mode | MODE_AUXILIARY_OFF;
        }
    }

    /// The byte in the output buffer. The keyboard's wait while it is off.
    fn waiting(&self) -> Option<(Source, u8)> {
        let is_off = self.mode() & MODE_KEYBOARD_OFF != 0;
        let first = self.queue.front().copied();
        first.filter(|(source, _)| *source != Source::Keyboard || !is_off)
    }

    /// IRQ 1: a byte of the keyboard's waits.
    pub(super) fn is_interrupting(&self) -> bool {
        self.mode() & MODE_INTERRUPT != 0 && matches!(self.waiting(), Some((Source::Keyboard, _)))
    }

    fn push(&mut self, source: Source, byte: u8) {
        if self.queue.len() < QUEUE_BYTES {
            self.queue.push_back((source, byte));
        }
    }

    /// Reads the status.
    pub(super) fn status(&self) -> u8 {
        let waiting = match self.waiting() {
            None => 0,
            Some((Source::Auxiliary { timed_out: true }, _)) => {
                STATUS_FULL | STATUS_AUXILIARY | STATUS_TIMEOUT
            }
            Some((Source::Auxiliary { timed_out: false }, _)) => STATUS_FULL | STATUS_AUXILIARY,
            Some(_) => STATUS_FULL,
        };
        let system = if self.mode() & MODE_SYSTEM != 0 {
            STATUS_SYSTEM
        } else {
            0
        };
        let command = if self.last_was_command {
            STATUS_COMMAND
        } else {
            0
        };
        waiting | system | command | STATUS_NOT_LOCKED
    }

    /// Reads the data port: what waits, or else the last byte again.
    pub(super) fn read(&mut self) -> u8 {
        if let Some((_, byte)) = self.waiting() {
            self.queue.pop_front();
            self.last = byte;
        }
        self.last
    }

    /// Writes a command; whether it resets the processor.
    pub(super) fn command(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.expected = Expected::Keyboard;
        match command {
            0x20..=0x3F => {
                let cell = self.ram.get(usize::from(command - 0x20)).copied();
                self.push(Source::Controller, cell.unwrap_or(0));
            }
            0x60..=0x7F => self.expected = Expected::Ram(command - 0x60),
            // No password is set.
            0xA4 => self.push(Source::Controller, 0xF1),
            // The mouse's clock does not move.
            0xA9 => self.push(Source::Controller, 0x01),
            0xAA => {
                self.queue.clear();
                self.push(Source::Controller, 0x55);
                self.set_mode(self.mode() | MODE_SYSTEM);
            }
            0xAB => self.push(Source::Controller, 0),
            0xAD => self.set_mode(self.mode() | MODE_KEYBOARD_OFF),
            0xAE => self.set_mode(self.mode() & !MODE_KEYBOARD_OFF),
            0xC0 => self.push(Source::Controller, INPUT_PORT),
            0xD0 => {
                let full = if self.is_interrupting() { 1 << 4 } else { 0 };
                self.push(Source::Controller, self.output_port | full);
            }
            0xD1 => self.expected = Expected::OutputPort,
            0xD2 => self.expected = Expected::AsKeyboards,
            0xD3 => self.expected = Expected::AsAuxiliarys,
            0xD4 => self.expected = Expected::Auxiliary,
            0xE0 => self.push(Source::Controller, 0),
            // Pulses low the lines of the output port whose bits are 0.
            0xF0..=0xFF => return command & OUTPUT_RUNS == 0,
            _ => {}
        }
        false
    }

    /// Writes the data port; whether it resets the processor.
    pub(super) fn write(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match core::mem::take(&mut self.expected) {
            Expected::Keyboard => {
                // Its interface goes on to be sent something.
                self.set_mode(self.mode() & !MODE_KEYBOARD_OFF);
                self.keyboard_receives(value);
            }
            Expected::Ram(0) => self.set_mode(value),
            Expected::Ram(cell) => {
                if let Some(cell) = self.ram.get_mut(usize::from(cell)) {
                    *cell = value;
                }
            }
            Expected::OutputPort => {
                self.output_port = value & (OUTPUT_RUNS | OUTPUT_A20) | OUTPUT_RUNS;
                return value & OUTPUT_RUNS == 0;
            }
            Expected::AsKeyboards => self.push(Source::Keyboard, value),
            Expected::AsAuxiliarys => {
                self.push(Source::Auxiliary { timed_out: false }, value);
            }
            Expected::Auxiliary => self.push(Source::Auxiliary { timed_out: true }, RESEND),
        }
        false
    }

    fn answer(&mut self, byte: u8) {
        self.answered = byte;
        let is_translated = self.mode() & MODE_TRANSLATE != 0;
        // Of what this keyboard says only these have other codes in the first set.
        let byte = match byte {
            0x01 if is_translated => 0x43,
            0x02 | 0x83 if is_translated => 0x41,
            0x03 if is_translated => 0x3F,
            byte => byte,
        };
        self.push(Source::Keyboard, byte);
    }

    fn keyboard_receives(&mut self, byte: u8) {
        if let Some(command) = self.wants_parameter.take().filter(|_| byte < 0xED) {
            self.answer(ACKNOWLEDGE);
            match (command, byte) {
                (0xF0, 0) => self.answer(self.scan_set),
                (0xF0, 1..=3) => self.scan_set = byte,
                _ => {}
            }
            return;
        }
        match byte {
            // Lamps, set of codes, rate, keys of the third set.
            0xED | 0xF0 | 0xF3 | 0xFB..=0xFD => {
                self.wants_parameter = Some(byte);
                self.answer(ACKNOWLEDGE);
            }
            0xEE => self.answer(ECHO),
            0xF2 => {
                self.answer(ACKNOWLEDGE);
                IDENTIFICATION
                    .into_iter()
                    .for_each(|byte| self.answer(byte));
            }
            0xFE => self.answer(self.answered),
            0xFF => {
                self.queue.clear();
                self.scan_set = DEFAULT_SET;
                self.answer(ACKNOWLEDGE);
                self.answer(SELF_TEST_PASSED);
            }
            0xF4..=0xFA => self.answer(ACKNOWLEDGE),
            _ => self.answer(RESEND),
        }
    }
}

/// The controller as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyboardState {
    ram: [u8; RAM_BYTES],
    output_port: u8,
    expected: Expected,
    last_was_command: bool,
    queue: Vec<(Source, u8)>,
    last: u8,
    wants_parameter: Option<u8>,
    scan_set: u8,
    answered: u8,
}

impl Keyboard {
    pub(super) fn save(&self) -> KeyboardState {
        let Keyboard {
            ram,
            output_port,
            expected,
            last_was_command,
            queue,
            last,
            wants_parameter,
            scan_set,
            answered,
        } = self;
        KeyboardState {
            ram: *ram,
            output_port: *output_port,
            expected: *expected,
            last_was_command: *last_was_command,
            queue: queue.iter().copied().collect(),
            last: *last,
            wants_parameter: *wants_parameter,
            scan_set: *scan_set,
            answered: *answered,
        }
    }

    pub(super) fn restore(state: &KeyboardState) -> Result<Keyboard, StateError> {
        let KeyboardState {
            ram,
            output_port,
            expected,
            last_was_command,
            queue,
            last,
            wants_parameter,
            scan_set,
            answered,
        } = state;
        check(
            queue.len() <= QUEUE_BYTES,
            "queue",
            queue.len() as u64,
            "at most 16 bytes",
        )?;
        check(
            output_port & !OUTPUT_A20 == OUTPUT_RUNS,
            "output_port",
            *output_port,
            "1, and 2 for A20",
        )?;
        Ok(Keyboard {
            ram: *ram,
            output_port: *output_port,
            expected: *expected,
            last_was_command: *last_was_command,
            queue: queue.iter().copied().collect(),
            last: *last,
            wants_parameter: *wants_parameter,
            scan_set: *scan_set,
            answered: *answered,
        })
    }
}

#[cfg(test)]
mod tests;
