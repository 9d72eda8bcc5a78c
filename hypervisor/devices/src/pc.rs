//! What a kernel written for PCs expects besides PCI: interrupt controllers, timer, clock, serial port, power.
//!
//! One [`Pc`] for a VM. It is given accesses and the time and answers what follows: what the VM's owner is to do as [`PcEffect`],
//! messages to local APICs by [`Pc::deliver`], the PIC's output by [`Pc::is_pic_asserting`]. After each call its owner has the
//! messages delivered and looks at that output again, and at [`Pc::next_deadline`].
//!
//! The time is the TSC, the same for all vCPUs. Nothing here runs by itself: a timer's ticks that nobody looked at come as one, and
//! no call takes longer for the time that has passed. Interrupts of periodic sources have a least period.
//!
//! Concurrency: none of its own; whoever owns it locks it.
//!
//! Sources: with each part.

mod clock;
mod display;
mod keyboard;
mod pic;
mod pit;
mod power;
mod rtc;
mod state;

use serde::{Deserialize, Serialize};

use crate::apic::{Acceptance, BusMessage};
use crate::ioapic::IoApic;
use crate::pci::Width;
use crate::uart::Uart;
use clock::Clock;
use display::Display;
use keyboard::Keyboard;
use pic::{Pic, PicPort, Side};
use pit::Pit;
use power::Power;
use rtc::Rtc;
pub use state::PcState;

/// The interrupt lines.
pub mod irq {
    /// The 8254.
    pub const TIMER: u8 = 0;
    /// The keyboard controller.
    pub const KEYBOARD: u8 = 1;
    /// The serial port.
    pub const SERIAL: u8 = 4;
    /// The clock.
    pub const CLOCK: u8 = 8;
    /// ACPI's SCI: level-triggered, asserted high.
    pub const ACPI: u8 = 9;
    /// Doorbells of Nagaya's own: a pulse for each time that there is news.
    pub const DOORBELL: u8 = 10;
}

/// The pin of the I/O APIC that the timer is connected to; every other IRQ has the pin of its number.
pub const TIMER_PIN: u8 = 2;

/// The ports, by their first ones.
pub mod port {
    /// The first 8259A; the second is at 0xA0.
    pub const PIC: u16 = 0x20;
    /// The second 8259A.
    pub const PIC_2: u16 = 0xA0;
    /// Edge or level, for both.
    pub const PIC_LEVEL: u16 = 0x4D0;
    /// The timer.
    pub const PIT: u16 = 0x40;
    /// Fast A20 and reset, as of the PS/2.
    pub const SYSTEM_A: u16 = 0x92;
    /// The CRT controller: index, then data.
    pub const DISPLAY: u16 = 0x3D4;
    /// Input status 1 of the display.
    pub const DISPLAY_STATUS: u16 = 0x3DA;
    /// Where a guest tells of its panic.
    pub const PANIC: u16 = 0x505;
    /// Data of the keyboard controller.
    pub const KEYBOARD_DATA: u16 = 0x60;
    /// Gate and output of the timer's third channel, and more.
    pub const SYSTEM: u16 = 0x61;
    /// Commands to the keyboard controller, and its status.
    pub const KEYBOARD: u16 = 0x64;
    /// The clock: index, then data.
    pub const CLOCK: u16 = 0x70;
    /// Progress codes of firmware.
    pub const POST: u16 = 0x80;
    /// The debug console.
    pub const DEBUG_CONSOLE: u16 = 0xE9;
    /// The debug exit.
    pub const DEBUG_EXIT: u16 = 0xF4;
    /// The serial port.
    pub const SERIAL: u16 = 0x3F8;
    /// PM1a status and enable.
    pub const PM_EVENT: u16 = 0x600;
    /// PM1a control.
    pub const PM_CONTROL: u16 = 0x604;
    /// The PM timer.
    pub const PM_TIMER: u16 = 0x608;
    /// The reset register.
    pub const RESET: u16 = 0xCF9;
}

/// What resets when written to [`port::RESET`].
pub const RESET_VALUE: u8 = 0x06;
/// The sleep type of `\_S5`.
pub const SOFT_OFF_TYPE: u8 = power::SOFT_OFF;
/// Where in the clock's RAM the century is, for the FADT.
pub const CENTURY_INDEX: u8 = rtc::CENTURY;
/// Counts of the PM timer a second.
pub const PM_TIMER_HZ: u32 = power::HZ;
/// Counts of the 8254 a second.
pub const PIT_HZ: u32 = pit::HZ;

/// System control port A: reset, and A20, which goes through always.
const SYSTEM_A_RESET: u8 = 1 << 0;
const SYSTEM_A_A20: u8 = 1 << 1;

/// Events of [`port::PANIC`]; reading tells which it takes (QEMU, docs/specs/pvpanic).
const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// What a PC is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcConfig {
    /// Frequency of the TSC.
    pub tsc_khz: u32,
    /// The TSC at the start: less than 0 in a VM that is older than the machine it goes on in.
    pub start_tsc: i64,
    /// Seconds since 1970-01-01 00:00 UTC at the start: what the clock shows.
    pub start_seconds: u64,
    /// Memory below 4 GiB, for who looks into the clock's RAM.
    pub memory_bytes: u64,
    /// Memory above 4 GiB.
    pub memory_above_bytes: u64,
    /// Interrupts of a periodic source do not come more often.
    pub least_period_ticks: u64,
    /// Whether there is a debug exit.
    pub debug_exit: bool,
    /// Whether there is a debug console.
    pub debug_console: bool,
}

/// What a write to a port demands of the VM's owner.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PcEffect {
    /// Nothing.
    #[default]
    None,
    /// The serial port sends a byte.
    Output(u8),
    /// A byte for the debug console.
    DebugOutput(u8),
    /// The VM is to be reset.
    Reset,
    /// The VM switches itself off.
    PowerOff,
    /// The guest's kernel has panicked. What becomes of the VM is its own affair.
    Panicked {
        /// Another kernel takes over now, to dump its memory.
        is_dumping: bool,
    },
    /// The VM ends with this exit code.
    Exit(u32),
}

/// A part that a port belongs to, with the port's number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Pic(Side, PicPort),
    Pit(u16),
    System,
    KeyboardData,
    Keyboard,
    SystemA,
    Display { is_data: bool },
    DisplayStatus,
    Panic,
    Clock { is_data: bool },
    Post,
    DebugConsole,
    DebugExit,
    Serial(u16),
    Power(u16),
    Reset,
}

/// The devices of a PC.
#[derive(Clone, Debug)]
pub struct Pc {
    config: PcConfig,
    pic: Pic,
    ioapic: IoApic,
    pit: Pit,
    rtc: Rtc,
    power: Power,
    uart: Uart,
    keyboard: Keyboard,
    display: Display,
    /// The last progress code.
    post: u8,
}

impl Pc {
    /// A PC after power-on.
    #[must_use]
    pub fn new(config: PcConfig) -> Pc {
        let clock = |hz: u32| Clock::new(hz, config.tsc_khz, config.start_tsc);
        let least = config.least_period_ticks;
        Pc {
            pic: Pic::new(),
            ioapic: IoApic::new(),
            pit: Pit::new(clock(pit::HZ), least),
            rtc: Rtc::new(
                clock(rtc::HZ),
                config.start_seconds,
                [config.memory_bytes, config.memory_above_bytes],
                least,
            ),
            power: Power::new(clock(power::HZ)),
            uart: Uart::new(),
            keyboard: Keyboard::new(),
            display: Display::new(clock(display::HZ)),
            post: 0,
            config,
        }
    }

    /// The PC is reset ([`PcEffect::Reset`]): clock and PM timer go on, and the clock's RAM is kept; the rest is as after power-on.
    /// Bytes that were not taken and messages that were not delivered are lost.
    pub fn reset(&mut self, now: u64) {
        self.advance(now);
        let Pc { rtc, power, .. } = core::mem::replace(self, Pc::new(self.config));
        (self.rtc, self.power) = (rtc, power);
        self.rtc.reset();
        self.power.reset();
    }

    fn part(&self, port: u16) -> Option<Part> {
        let sub = |first: u16| port.wrapping_sub(first);
        Some(match port {
            0x20 => Part::Pic(Side::Master, PicPort::Lower),
            0x21 => Part::Pic(Side::Master, PicPort::Upper),
            0xA0 => Part::Pic(Side::Slave, PicPort::Lower),
            0xA1 => Part::Pic(Side::Slave, PicPort::Upper),
            0x4D0 => Part::Pic(Side::Master, PicPort::Level),
            0x4D1 => Part::Pic(Side::Slave, PicPort::Level),
            0x40..=0x43 => Part::Pit(sub(port::PIT)),
            port::SYSTEM => Part::System,
            port::KEYBOARD_DATA => Part::KeyboardData,
            port::KEYBOARD => Part::Keyboard,
            port::SYSTEM_A => Part::SystemA,
            0x3D4 => Part::Display { is_data: false },
            0x3D5 => Part::Display { is_data: true },
            port::DISPLAY_STATUS => Part::DisplayStatus,
            port::PANIC => Part::Panic,
            0x70 => Part::Clock { is_data: false },
            0x71 => Part::Clock { is_data: true },
            port::POST => Part::Post,
            port::DEBUG_CONSOLE if self.config.debug_console => Part::DebugConsole,
            port::DEBUG_EXIT if self.config.debug_exit => Part::DebugExit,
            0x3F8..=0x3FF => Part::Serial(sub(port::SERIAL)),
            0x600..=0x60B => Part::Power(sub(port::PM_EVENT)),
            port::RESET => Part::Reset,
            _ => return None,
        })
    }

    /// Reads a port; `None` if it is not one of these. All of them are 8 bits wide: a wider access is one to each of its ports, the
    /// first first, as on the bus that these devices once had. Those that are nobody's float.
    pub fn port_read(&mut self, port: u16, width: Width, now: u64) -> Option<u32> {
        self.part(port)?;
        let bytes = 0..width.bytes().min(4) as u16;
        Some(bytes.fold(0, |value, byte| {
            let part = port.checked_add(byte).and_then(|port| self.part(port));
            let read = part.map_or(0xFF, |part| self.read_byte(part, now));
            value | u32::from(read) << (byte * 8)
        }))
    }

    fn read_byte(&mut self, part: Part, now: u64) -> u8 {
        match part {
            Part::Pic(side, port) => {
                self.advance(now);
                self.pic.read(side, port)
            }
            Part::Pit(port) => {
                self.tick(now);
                self.pit.read(port, now)
            }
            Part::System => self.pit.read_system(now),
            Part::KeyboardData => {
                let value = self.keyboard.read();
                // The line falls with each byte that is read.
                self.set_line(irq::KEYBOARD, false);
                self.update_keyboard();
                value
            }
            Part::Keyboard => self.keyboard.status(),
            Part::SystemA => SYSTEM_A_A20,
            Part::Display { is_data } => self.display.read(is_data),
            Part::DisplayStatus => self.display.status(now),
            Part::Panic => PANICKED | CRASH_LOADED,
            Part::Clock { is_data } => {
                let value = self.rtc.read(is_data, now);
                self.update_clock(now);
                value
            }
            Part::Post => self.post,
            // Who looks for it finds it by this.
            Part::DebugConsole => port::DEBUG_CONSOLE as u8,
            Part::DebugExit => 0xFF,
            Part::Serial(port) => {
                let value = self.uart.read(port);
                self.update_serial();
                value
            }
            Part::Power(offset) => self.power.read(offset, now),
            Part::Reset => self.power.read_reset(),
        }
    }

    /// Writes a port; `None` if it is not one of these. Of the effects of a wider access the last is returned.
    pub fn port_write(
        &mut self,
        port: u16,
        width: Width,
        value: u32,
        now: u64,
    ) -> Option<PcEffect> {
        let value = value & width.ones() as u32;
        if self.part(port)? == Part::DebugExit {
            // The only one whose value is wider than a byte.
            return Some(PcEffect::Exit(value));
        }
        let mut effect = PcEffect::None;
        for (byte, written) in (0..).zip(value.to_le_bytes()).take(width.bytes()) {
            let part = port.checked_add(byte).and_then(|port| self.part(port));
            match part.map_or(PcEffect::None, |part| self.write_byte(part, written, now)) {
                PcEffect::None => {}
                other => effect = other,
            }
        }
        Some(effect)
    }

    fn write_byte(&mut self, part: Part, value: u8, now: u64) -> PcEffect {
        match part {
            Part::Pic(side, port) => {
                // What has come before it counts by the old masks.
                self.advance(now);
                self.pic.write(side, port, value);
            }
            Part::Pit(port) => {
                self.tick(now);
                self.pit.write(port, value, now);
            }
            Part::System => self.pit.write_system(value, now),
            Part::KeyboardData | Part::Keyboard => {
                let resets = match part {
                    Part::Keyboard => self.keyboard.command(value),
                    _ => self.keyboard.write(value),
                };
                self.update_keyboard();
                if resets {
                    return PcEffect::Reset;
                }
            }
            Part::SystemA => {
                if value & SYSTEM_A_RESET != 0 {
                    return PcEffect::Reset;
                }
            }
            Part::Display { is_data } => self.display.write(is_data, value),
            Part::DisplayStatus => {}
            Part::Panic => {
                let is_dumping = value & CRASH_LOADED != 0;
                if is_dumping || value & PANICKED != 0 {
                    return PcEffect::Panicked { is_dumping };
                }
            }
            Part::Clock { is_data } => {
                self.rtc.write(is_data, value, now);
                self.update_clock(now);
            }
            Part::Post => self.post = value,
            Part::DebugConsole => return PcEffect::DebugOutput(value),
            Part::DebugExit => {}
            Part::Serial(port) => {
                let sent = self.uart.write(port, value);
                self.update_serial();
                return sent.map_or(PcEffect::None, PcEffect::Output);
            }
            Part::Power(offset) => {
                let is_off = self.power.write(offset, value, now);
                self.update_power(now);
                if is_off {
                    return PcEffect::PowerOff;
                }
            }
            Part::Reset => {
                if self.power.write_reset(value) {
                    return PcEffect::Reset;
                }
            }
        }
        PcEffect::None
    }

    /// Reads the I/O APIC's page.
    pub fn memory_read(&mut self, offset: u16, width: Width) -> u64 {
        self.ioapic.read(offset, width)
    }

    /// Writes the I/O APIC's page.
    pub fn memory_write(&mut self, offset: u16, width: Width, value: u64, now: u64) {
        // An edge at a masked pin is lost: those before now are not for the new mask.
        self.advance(now);
        self.ioapic.write(offset, width, value);
    }

    /// A local APIC has ended a level-triggered interrupt.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }

    /// Lets the time go on.
    pub fn advance(&mut self, now: u64) {
        self.tick(now);
        self.update_clock(now);
        self.update_power(now);
    }

    /// The TSC at which [`Pc::advance`] is to be called, if nothing else happens before. Sources that nobody listens to have none.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let of = |irq: u8, deadline: Option<u64>| deadline.filter(|_| self.is_heard(irq));
        // An alarm is heard by ACPI, too.
        let alarm = self.power.hears_alarm() && self.is_heard(irq::ACPI);
        [
            of(irq::TIMER, self.pit.deadline()),
            self.rtc
                .deadline()
                .filter(|_| alarm || self.is_heard(irq::CLOCK)),
            of(irq::ACPI, self.power.deadline()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether a rise of an interrupt line would be told to anybody.
    fn is_heard(&self, irq: u8) -> bool {
        self.pic.wants(irq) || self.ioapic.listens(pin_of(irq))
    }

    /// Brings the I/O APIC's messages to the local APICs; `send` says of each whether one has taken it. Also called when a local
    /// APIC has changed in what it takes: what nobody took before is sent again ([`IoApic::deliver`]).
    pub fn deliver(&mut self, send: impl FnMut(&BusMessage) -> Acceptance) {
        self.ioapic.deliver(send);
    }

    /// Whether there are messages to be delivered.
    #[inline]
    #[must_use]
    pub fn has_messages(&self) -> bool {
        self.ioapic.has_messages()
    }

    /// The PIC's output, which is connected to LINT0 of the bootstrap processor
    /// ([`LocalApic::accepts_pic`](crate::apic::LocalApic::accepts_pic)).
    #[must_use]
    pub fn is_pic_asserting(&self) -> bool {
        self.pic.is_asserting()
    }

    /// The vCPU takes the PIC's interrupt: its vector. Without one it is the spurious one, IRQ 7's.
    #[must_use]
    pub fn acknowledge_pic(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// Bytes that the serial port has room for.
    #[must_use]
    pub fn input_room(&self) -> usize {
        self.uart.input_room()
    }

    /// A byte comes in at the serial port. Without room it is lost.
    pub fn receive(&mut self, byte: u8) {
        self.uart.receive(byte);
        self.update_serial();
    }

    /// Somebody presses the power button: ACPI tells the guest, if it wants to know.
    pub fn press_power_button(&mut self, now: u64) {
        self.power.press_button();
        self.update_power(now);
    }

    /// Doorbells have come: a pulse on their line, whatever comes before somebody has looked.
    pub fn ring(&mut self) {
        self.set_line(irq::DOORBELL, true);
        self.set_line(irq::DOORBELL, false);
    }

    fn tick(&mut self, now: u64) {
        if self.pit.take_edge(now) {
            // A pulse: the PIC keeps it, and a pin that is set to levels is not held by it.
            self.set_line(irq::TIMER, true);
            self.set_line(irq::TIMER, false);
        }
    }

    fn update_clock(&mut self, now: u64) {
        let is_asserted = self.rtc.line(now);
        self.set_line(irq::CLOCK, is_asserted);
        if self.rtc.take_alarm() {
            self.power.note_alarm();
            self.update_power(now);
        }
    }

    fn update_keyboard(&mut self) {
        let is_asserted = self.keyboard.is_interrupting();
        self.set_line(irq::KEYBOARD, is_asserted);
    }

    fn update_power(&mut self, now: u64) {
        let is_asserted = self.power.line(now);
        self.set_line(irq::ACPI, is_asserted);
    }

    fn update_serial(&mut self) {
        if self.uart.take_fall() {
            self.set_line(irq::SERIAL, false);
        }
        let is_asserted = self.uart.is_interrupting();
        self.set_line(irq::SERIAL, is_asserted);
    }

    fn set_line(&mut self, irq: u8, is_asserted: bool) {
        self.pic.set_line(irq, is_asserted);
        self.ioapic.set_pin(pin_of(irq), is_asserted);
    }
}

const fn pin_of(irq: u8) -> u8 {
    if irq == irq::TIMER { TIMER_PIN } else { irq }
}
