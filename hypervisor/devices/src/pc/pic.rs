//! Two 8259A interrupt controllers, the second at input 2 of the first, as PCs have them, with the registers that choose edge or
//! level for each input.
//!
//! An edge that was seen is kept until it is acknowledged, also if the line falls before: a driver that is quick would otherwise
//! make a spurious interrupt of it. A level that falls is gone, and who acknowledges then gets input 7.
//!
//! Source: Intel 8259A data sheet, order number 231468-003; for ELCR Intel 82371FB/SB (PIIX, PIIX3), 290550-002, "Interrupt
//! Controller Registers".

use serde::{Deserialize, Serialize};

use crate::state::{StateError, check};

/// Where the second chip is connected.
const CASCADE: u8 = 2;
/// The input that a spurious interrupt looks like.
const SPURIOUS: u8 = 7;

/// The inputs that can be level-triggered: not timer, keyboard, cascade; not the clock and the coprocessor.
const LEVEL_INPUTS: [u8; 2] = [0xF8, 0xDE];
/// IRQ 9 is ACPI's and level-triggered: firmware has set that.
const LEVEL_AT_START: [u8; 2] = [0x00, 0x02];

/// ICW1: it is one, four words are needed, a single chip.
const ICW1: u8 = 1 << 4;
const ICW1_FOURTH: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;
/// ICW4: automatic end of interrupt, special fully nested mode.
const ICW4_AUTO_END: u8 = 1 << 1;
const ICW4_NESTED: u8 = 1 << 4;
/// OCW3: it is one, special mask and whether it is meant, poll, register to read and whether it is meant.
const OCW3: u8 = 1 << 3;
const OCW3_MASK_SET: u8 = 1 << 6;
const OCW3_MASK: u8 = 1 << 5;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_READ_SET: u8 = 1 << 1;
const OCW3_READ_SERVICE: u8 = 1 << 0;
/// A poll's answer: there is an interrupt.
const POLL_PENDING: u8 = 1 << 7;

/// The word that the upper port takes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expected {
    /// OCW1.
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A. Bits are inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    /// The inputs as they are.
    lines: u8,
    /// Edges that were seen and not acknowledged.
    edges: u8,
    /// ELCR.
    levels: u8,
    mask: u8,
    in_service: u8,
    /// The first vector, a multiple of 8.
    base: u8,
    /// The input of the lowest priority; the one after it has the highest.
    lowest: u8,
    expected: Expected,
    needs_fourth: bool,
    is_single: bool,
    /// It has been initialised: before that it says nothing.
    is_ready: bool,
    ends_by_itself: bool,
    rotates_at_end: bool,
    is_specially_nested: bool,
    is_specially_masked: bool,
    reads_in_service: bool,
    polls: bool,
    /// The master: its cascade input is treated as such.
    has_cascade: bool,
}

impl Chip {
    fn requests(&self) -> u8 {
        self.edges & !self.levels | self.lines & self.levels
    }

    fn set_line(&mut self, input: u8, is_asserted: bool) {
        let bit = 1 << (input & 7);
        if is_asserted {
            self.edges |= bit & !self.lines & !self.levels;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// 0 is the highest.
    fn priority(&self, input: u8) -> u8 {
        input.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// Of some inputs the one with the highest priority.
    fn first(&self, inputs: u8) -> Option<u8> {
        let start = self.lowest.wrapping_add(1) & 7;
        let rotated = inputs.rotate_right(start.into());
        (rotated != 0).then(|| (rotated.trailing_zeros() as u8 + start) & 7)
    }

    /// The input that INT is raised for ("Fully Nested Mode", "Special Mask Mode", "Special Fully Nested Mode").
    fn pending(&self) -> Option<u8> {
        if !self.is_ready {
            return None;
        }
        let input = self.first(self.requests() & !self.mask)?;
        let served = if self.is_specially_masked {
            self.in_service & !self.mask
        } else {
            self.in_service
        };
        let Some(served) = self.first(served) else {
            return Some(input);
        };
        let again = self.is_specially_nested && self.has_cascade && input == CASCADE;
        let is_before = self.priority(input) < self.priority(served);
        (is_before || (again && input == served)).then_some(input)
    }

    /// The processor's INTA, or a poll. `None` if what was asked for has gone.
    fn acknowledge(&mut self) -> Option<u8> {
        let input = self.pending()?;
        let bit = 1 << input;
        self.edges &= !bit;
        if !self.ends_by_itself {
            self.in_service |= bit;
        } else if self.rotates_at_end {
            self.lowest = input;
        }
        Some(input)
    }

    fn vector(&self, input: u8) -> u8 {
        self.base | input
    }

    fn read(&mut self, is_upper: bool) -> u8 {
        if core::mem::take(&mut self.polls) {
            return self.acknowledge().map_or(0, |input| POLL_PENDING | input);
        }
        match (is_upper, self.reads_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests(),
        }
    }

    fn write(&mut self, is_upper: bool, value: u8) {
        match (is_upper, self.expected) {
            (false, _) if value & ICW1 != 0 => self.initialise(value),
            (false, _) if value & OCW3 != 0 => self.write_ocw3(value),
            (false, _) => self.write_ocw2(value),
            (true, Expected::Mask) => self.mask = value,
            (true, Expected::Icw2) => {
                self.base = value & 0xF8;
                self.expect(if self.is_single {
                    Expected::Icw4
                } else {
                    Expected::Icw3
                });
            }
            // Where chips are connected is not to be chosen.
            (true, Expected::Icw3) => self.expect(Expected::Icw4),
            (true, Expected::Icw4) => {
                self.ends_by_itself = value & ICW4_AUTO_END != 0;
                self.is_specially_nested = value & ICW4_NESTED != 0;
                self.expect(Expected::Mask);
            }
        }
    }

    fn expect(&mut self, word: Expected) {
        self.expected = match word {
            Expected::Icw4 if !self.needs_fourth => Expected::Mask,
            word => word,
        };
        self.is_ready = self.expected == Expected::Mask;
    }

    /// ICW1. What is in service ends, too: who initialises does not come back to it. (LTIM is ELCR's on PCs.)
    fn initialise(&mut self, value: u8) {
        *self = Chip {
            lines: self.lines,
            levels: self.levels,
            base: self.base,
            has_cascade: self.has_cascade,
            needs_fourth: value & ICW1_FOURTH != 0,
            is_single: value & ICW1_SINGLE != 0,
            lowest: 7,
            expected: Expected::Icw2,
            ..Chip::default()
        };
    }

    /// End of interrupt and rotation, by the three upper bits.
    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b001 => drop(self.end(None)),
            0b011 => drop(self.end(Some(level))),
            0b101 => {
                if let Some(input) = self.end(None) {
                    self.lowest = input;
                }
            }
            0b111 => {
                let _ = self.end(Some(level));
                self.lowest = level;
            }
            0b110 => self.lowest = level,
            0b100 => self.rotates_at_end = true,
            0b000 => self.rotates_at_end = false,
            // No operation.
            _ => {}
        }
    }

    /// Ends the interrupt of an input, or the one of the highest priority: which. In special mask mode that passes over masked ones.
    fn end(&mut self, input: Option<u8>) -> Option<u8> {
        let candidates = if self.is_specially_masked {
            self.in_service & !self.mask
        } else {
            self.in_service
        };
        let input = input.or_else(|| self.first(candidates))?;
        self.in_service &= !(1 << input);
        Some(input)
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & OCW3_MASK_SET != 0 {
            self.is_specially_masked = value & OCW3_MASK != 0;
        }
        self.polls = value & OCW3_POLL != 0;
        if value & OCW3_READ_SET != 0 && !self.polls {
            self.reads_in_service = value & OCW3_READ_SERVICE != 0;
        }
    }
}

/// Ports by which the pair is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PicPort {
    /// 0x20, 0xA0.
    Lower,
    /// 0x21, 0xA1.
    Upper,
    /// 0x4D0, 0x4D1.
    Level,
}

impl Chip {
    /// Whether a chip gets there.
    fn check(&self, has_cascade: bool, level_inputs: u8) -> Result<(), StateError> {
        check(
            self.levels & !level_inputs == 0,
            "levels",
            self.levels,
            "of inputs that can be level-triggered",
        )?;
        check(self.base & 7 == 0, "base", self.base, "a multiple of 8")?;
        check(self.lowest < 8, "lowest", self.lowest, "an input")?;
        check(
            self.has_cascade == has_cascade,
            "has_cascade",
            self.has_cascade,
            "1 for the master only",
        )
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Master,
    Slave,
}

/// The pair.
#[derive(Clone, Debug)]
pub(super) struct Pic {
    master: Chip,
    slave: Chip,
}

impl Pic {
    /// After power-on: everything masked, nothing said before both are initialised.
    pub(super) fn new() -> Pic {
        let [master, slave] = LEVEL_AT_START.map(|levels| Chip {
            mask: 0xFF,
            lowest: 7,
            levels,
            ..Chip::default()
        });
        Pic {
            master: Chip {
                has_cascade: true,
                ..master
            },
            slave,
        }
    }

    /// The line of IRQ 0 to 15; 2 is the cascade's and has no source.
    pub(super) fn set_line(&mut self, irq: u8, is_asserted: bool) {
        match irq {
            CASCADE => {}
            0..8 => self.master.set_line(irq, is_asserted),
            8..16 => {
                self.slave.set_line(irq - 8, is_asserted);
                self.connect();
            }
            _ => {}
        }
    }

    /// Brings the slave's output to the master.
    fn connect(&mut self) {
        let is_asserted = self.slave.pending().is_some();
        self.master.set_line(CASCADE, is_asserted);
        // It is a level whatever ELCR says: it stays for as long as the slave has something.
        let bit = 1 << CASCADE;
        self.master.edges = self.master.edges & !bit | self.master.lines & bit;
    }

    /// Whether an edge or level of an IRQ would raise the output now or later: it is not masked and not known already.
    pub(super) fn wants(&self, irq: u8) -> bool {
        let (chip, input) = match irq {
            0..8 => (&self.master, irq),
            8..16 => (&self.slave, irq - 8),
            _ => return false,
        };
        let hears = |chip: &Chip, input: u8| chip.is_ready && chip.mask & 1 << input == 0;
        let is_known = chip.requests() & 1 << input != 0;
        hears(chip, input) && !is_known && (irq < 8 || hears(&self.master, CASCADE))
    }

    /// INT of the master.
    pub(super) fn is_asserting(&self) -> bool {
        self.master.pending().is_some()
    }

    /// The processor's two INTA cycles: the vector.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.acknowledge() else {
            return self.master.vector(SPURIOUS);
        };
        if input != CASCADE || self.master.is_single {
            return self.master.vector(input);
        }
        let taken = self.slave.acknowledge().unwrap_or(SPURIOUS);
        let vector = self.slave.vector(taken);
        self.connect();
        vector
    }

    fn chip(&mut self, side: Side) -> &mut Chip {
        match side {
            Side::Master => &mut self.master,
            Side::Slave => &mut self.slave,
        }
    }

    pub(super) fn read(&mut self, side: Side, port: PicPort) -> u8 {
        let chip = self.chip(side);
        let value = match port {
            PicPort::Level => chip.levels,
            PicPort::Lower => chip.read(false),
            PicPort::Upper => chip.read(true),
        };
        self.connect();
        value
    }

    pub(super) fn write(&mut self, side: Side, port: PicPort, value: u8) {
        let [master, slave] = LEVEL_INPUTS;
        let may_be_level = match side {
            Side::Master => master,
            Side::Slave => slave,
        };
        let chip = self.chip(side);
        match port {
            PicPort::Level => {
                chip.levels = value & may_be_level;
                chip.edges &= !chip.levels;
            }
            PicPort::Lower => chip.write(false, value),
            PicPort::Upper => chip.write(true, value),
        }
        self.connect();
    }
}

/// The pair as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PicState {
    master: Chip,
    slave: Chip,
}

impl Pic {
    pub(super) fn save(&self) -> PicState {
        let Pic { master, slave } = self;
        PicState {
            master: master.clone(),
            slave: slave.clone(),
        }
    }

    pub(super) fn restore(state: &PicState) -> Result<Pic, StateError> {
        let PicState { master, slave } = state;
        for (name, chip, has_cascade, inputs) in [
            ("master", master, true, LEVEL_INPUTS[0]),
            ("slave", slave, false, LEVEL_INPUTS[1]),
        ] {
            chip.check(has_cascade, inputs)
                .map_err(|error| error.within(name))?;
        }
        Ok(Pic {
            master: master.clone(),
            slave: slave.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
