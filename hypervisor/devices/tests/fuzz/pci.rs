//! The bus with a card, a source of entropy and a console: ports and memory accessed anyhow.

use nagaya_devices::console::Console;
use nagaya_devices::entropy::Entropy;
use nagaya_devices::function::Function;
use nagaya_devices::net::{Net, NetConfig, Offloads};
use nagaya_devices::pci::{Effect, PciBus, Width, bus};
use nagaya_devices::state::TscShift;
use nagaya_devices::switch::MacAddress;
use nagaya_devices::virtio::{BAR_BYTES, VirtioFunction};
use nagaya_mem::Gpa;

use crate::{Driven, Input, Seen};

const WINDOW: u32 = 0xE000_0000;
const PORTS: core::ops::Range<u16> = 0xC000..0xD000;

fn bus() -> PciBus<Function> {
    let net = Net::new(NetConfig {
        address: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: Some(1500),
        offloads: Offloads::ChecksumAndSegmentation,
    });
    let mut bus = PciBus::new();
    for (slot, function) in [
        (1, Function::Net(net)),
        (2, Function::Entropy(Entropy::new())),
        (3, Function::Console(Console::new())),
    ] {
        assert!(bus.insert(slot, function).is_ok());
    }
    assert!(bus.place_bars(WINDOW..WINDOW + 0x10_0000, PORTS));
    bus
}

fn width(byte: u8) -> Width {
    Width::ALL[usize::from(byte & 3)]
}

fn kind(effect: &Effect) -> &'static str {
    match effect {
        Effect::None => "none",
        Effect::Reset => "reset",
        Effect::Started => "started",
        Effect::Kick { .. } => "kick",
        Effect::Messages(_) => "messages",
    }
}

struct Machine(PciBus<Function>);

impl Driven for Machine {
    fn new(_: &mut Input<'_>) -> Machine {
        Machine(bus())
    }

    fn step(&mut self, input: &mut Input<'_>, seen: &mut Seen) {
        let bus = &mut self.0;
        let operation = input.byte();
        let width = width(operation >> 4);
        match operation % 5 {
            _ if operation & 0xF == 0xF => {
                let port = PORTS.start + input.byte() as u16 % 0x40;
                let value = bus.bar_port_read(port, width);
                assert!(value.is_none_or(|value| u64::from(value) & !width.ones() == 0));
                let done = bus.bar_port_write(port);
                assert_eq!(done.is_some(), value.is_some());
                seen.note(&done);
                seen.tell(&value);
            }
            // The address register, to a slot that there is.
            0 => {
                let place = u32::from(input.byte() & 3) << 11 | u32::from(input.byte());
                let _ = bus.port_write(0xCF8, Width::Dword, 1 << 31 | place);
            }
            1 => {
                let port = bus::PORTS.start() + u16::from(input.byte() % 10);
                let value = input.number::<4>() as u32;
                let (slot, effect) = bus.port_write(port, width, value);
                assert!(slot < 32);
                seen.note(&(slot, kind(&effect)));
                seen.tell(&effect);
            }
            2 => {
                let port = bus::PORTS.start() + u16::from(input.byte() % 10);
                let value = bus.port_read(port, width);
                assert_eq!(u64::from(value) & !width.ones(), 0);
                seen.tell(&value);
            }
            operation => {
                let at = Gpa::new(u64::from(WINDOW) + input.number::<2>() % 0xD000);
                let found = bus.find(at);
                assert!(found.is_none_or(|place| place.offset < BAR_BYTES));
                if operation == 3 {
                    let value = bus.memory_read(at, width);
                    assert_eq!(value.is_some(), found.is_some());
                    assert_eq!(value.unwrap_or(0) & !width.ones(), 0);
                    seen.tell(&value);
                } else {
                    let done = bus.memory_write(at, width, input.number::<8>());
                    let slot = done.as_ref().map(|(slot, _)| *slot);
                    assert_eq!(slot, found.map(|place| place.slot));
                    seen.tell(&done);
                    seen.note(&done.map(|(_, effect)| kind(&effect)));
                }
            }
        }
        // An interrupt of the card and one of the console, where they are wanted.
        if operation & 0x80 != 0 {
            for slot in [1, 3] {
                let message = match bus.function_mut(slot) {
                    Some(Function::Net(net)) => net.transport_mut().interrupt_queue(0),
                    Some(Function::Console(console)) => console.transport_mut().interrupt_queue(1),
                    _ => None,
                };
                seen.tell(&message);
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.0.save(Function::save)).expect("is written")
    }

    fn restore_from(&mut self, bytes: &[u8]) -> bool {
        let restored = crate::from_bytes(bytes, |state| PciBus::restore(state, Function::restore));
        restored.map(|restored| self.0 = restored).is_some()
    }

    fn save_and_restore(&mut self, _: TscShift) {
        let state = self.0.save(Function::save);
        self.0 = crate::through_bytes(
            &state,
            |state| PciBus::restore(state, Function::restore),
            |bus| bus.save(Function::save),
        );
    }
}

#[test]
fn no_input_breaks_the_bus() {
    crate::run("pci", crate::drive::<Machine>);
}

#[test]
fn a_bus_that_was_saved_and_restored_answers_as_one_that_was_not() {
    crate::run("pci", crate::drive_beside_twin::<Machine>);
}

#[test]
fn no_damaged_state_breaks_a_bus() {
    crate::run("pci", crate::drive_damaged::<Machine>);
}
