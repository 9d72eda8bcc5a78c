//! The I/O APIC, against the 82093AA's description.

use nagaya_devices::apic::{BusMessage, Delivery, Recipients, Trigger};
use nagaya_devices::ioapic::{IoApic, PINS};
use nagaya_devices::pci::Width;
use proptest::prelude::*;

const SELECT: u16 = 0x00;
const WINDOW: u16 = 0x10;

fn select(ioapic: &mut IoApic, register: u8) {
    assert_eq!(ioapic.write(SELECT, Width::Dword, register.into()), None);
}

fn read(ioapic: &mut IoApic, register: u8) -> u64 {
    select(ioapic, register);
    ioapic.read(WINDOW, Width::Dword)
}

fn write(ioapic: &mut IoApic, register: u8, value: u32) -> Option<BusMessage> {
    select(ioapic, register);
    ioapic.write(WINDOW, Width::Dword, value.into())
}

fn message(vector: u8, trigger: Trigger) -> Option<BusMessage> {
    Some(BusMessage {
        delivery: Delivery::Fixed { vector },
        recipients: Recipients::Physical { id: 3 },
        trigger,
    })
}

/// Pin 4 with this low half, to APIC 3.
fn with_pin_4(low: u32) -> IoApic {
    let mut ioapic = IoApic::new();
    assert_eq!(write(&mut ioapic, 0x19, 3 << 24), None);
    assert_eq!(write(&mut ioapic, 0x18, low), None);
    ioapic
}

#[test]
fn the_registers_are_as_after_reset_and_keep_the_bits_that_exist() {
    let mut ioapic = IoApic::new();
    assert_eq!(read(&mut ioapic, 1), 0x0017_0011);
    for register in (0x10..0x40).step_by(2) {
        assert_eq!(read(&mut ioapic, register), 0x1_0000);
        assert_eq!(read(&mut ioapic, register + 1), 0);
        assert_eq!(write(&mut ioapic, register, u32::MAX), None);
        assert_eq!(write(&mut ioapic, register + 1, u32::MAX), None);
        assert_eq!(read(&mut ioapic, register), 0x1_AFFF);
        assert_eq!(read(&mut ioapic, register + 1), 0xFF00_0000);
    }
    assert_eq!(write(&mut ioapic, 0, u32::MAX), None);
    assert_eq!(read(&mut ioapic, 0), 0x0F00_0000);
    for register in (3..0x10).chain(0x40..=0xFF) {
        assert_eq!(write(&mut ioapic, register, u32::MAX), None);
        assert_eq!(read(&mut ioapic, register), 0);
    }
}

#[test]
fn an_edge_is_sent_once_and_lost_behind_a_mask() {
    let mut ioapic = with_pin_4(0x51);
    assert_eq!(ioapic.set_pin(4, true), message(0x51, Trigger::Edge));
    assert_eq!(ioapic.set_pin(4, true), None);
    assert_eq!(ioapic.set_pin(4, false), None);
    assert_eq!(ioapic.set_pin(4, true), message(0x51, Trigger::Edge));
    let mut ioapic = with_pin_4(0x1_0051);
    assert_eq!(ioapic.set_pin(4, true), None);
    assert_eq!(write(&mut ioapic, 0x18, 0x51), None);
    assert_eq!(ioapic.set_pin(24, true), None);
}

#[test]
fn a_level_is_sent_again_after_its_end_as_long_as_it_lasts() {
    let mut ioapic = with_pin_4(0x8051);
    let sent = message(0x51, Trigger::Level);
    assert_eq!(ioapic.set_pin(4, true), sent);
    assert_eq!(read(&mut ioapic, 0x18), 0xC051, "remote IRR");
    assert_eq!(ioapic.set_pin(4, false), None);
    assert_eq!(ioapic.set_pin(4, true), None, "is being served");
    assert_eq!(ioapic.end_of_interrupt(0x52), []);
    assert_eq!(ioapic.end_of_interrupt(0x51), [sent.expect("some")]);
    assert_eq!(ioapic.set_pin(4, false), None);
    assert_eq!(ioapic.end_of_interrupt(0x51), []);
    assert_eq!(read(&mut ioapic, 0x18), 0x8051);
}

#[test]
fn a_level_waits_behind_a_mask() {
    let mut ioapic = with_pin_4(0x1_8051);
    assert_eq!(ioapic.set_pin(4, true), None);
    let sent = write(&mut ioapic, 0x18, 0x8051);
    assert_eq!(sent, message(0x51, Trigger::Level));
    // Software ends one that is stuck by switching to edge.
    assert_eq!(write(&mut ioapic, 0x18, 0x1_0051), None);
    let sent = write(&mut ioapic, 0x18, 0x8051);
    assert_eq!(sent, message(0x51, Trigger::Level));
    ioapic.refused(0x51);
    assert_eq!(ioapic.set_pin(4, true), message(0x51, Trigger::Level));
}

#[test]
fn destinations_and_kinds_are_as_the_entry_says() {
    for (high, low, recipients) in [
        (3, 0x51, Recipients::Physical { id: 3 }),
        (3, 0x851, Recipients::Logical { address: 3 }),
        (0xFF, 0x51, Recipients::All),
    ] {
        let mut ioapic = with_pin_4(low);
        assert_eq!(write(&mut ioapic, 0x19, high << 24), None);
        let sent = ioapic.set_pin(4, true).expect("is sent");
        assert_eq!(sent.recipients, recipients);
    }
    for (low, delivery) in [
        (0x151, Some(Delivery::LowestPriority { vector: 0x51 })),
        (0x400, Some(Delivery::Nmi)),
        (0x500, Some(Delivery::Init)),
        (0x251, None),
        (0x751, None),
    ] {
        let sent = with_pin_4(low).set_pin(4, true);
        assert_eq!(sent.map(|message| message.delivery), delivery);
    }
}

proptest! {
    /// Any accesses and pins: a level pin that is asserted and not masked is being served, always.
    #[test]
    fn no_level_is_forgotten(
        steps in proptest::collection::vec((0..4_u8, 0..PINS, any::<u32>(), 0..0x20_u16), 0..100),
    ) {
        let mut ioapic = IoApic::new();
        let mut asserted = [false; PINS as usize];
        for (step, pin, value, offset) in steps {
            match step {
                0 => {
                    asserted[usize::from(pin)] = value & 1 != 0;
                    let _ = ioapic.set_pin(pin, value & 1 != 0);
                }
                1 => {
                    // Fixed delivery, few vectors.
                    let _ = write(&mut ioapic, 0x10 + pin * 2, value & 0x1_800F);
                }
                2 => {
                    let _ = ioapic.end_of_interrupt(value as u8 & 0xF);
                }
                _ => {
                    for width in [Width::Byte, Width::Word, Width::Qword] {
                        let _ = ioapic.read(offset, width);
                        prop_assert_eq!(ioapic.write(offset, width, value.into()), None);
                    }
                }
            }
            for pin in 0..PINS {
                let entry = read(&mut ioapic, 0x10 + pin * 2);
                let (is_level, is_masked) = (entry & 0x8000 != 0, entry & 0x1_0000 != 0);
                if is_level && !is_masked && asserted[usize::from(pin)] {
                    prop_assert!(entry & 0x4000 != 0, "pin {} is forgotten", pin);
                }
                prop_assert!(is_level || entry & 0x4000 == 0);
            }
        }
    }
}
