//! The I/O APIC, against the 82093AA's description.

use nagaya_devices::apic::{Acceptance, BusMessage, Delivery, Recipients, Trigger};
use nagaya_devices::ioapic::{IoApic, PINS};
use nagaya_devices::pci::Width;
use proptest::prelude::*;

const SELECT: u16 = 0x00;
const WINDOW: u16 = 0x10;
const REMOTE_IRR: u64 = 1 << 14;

fn select(ioapic: &mut IoApic, register: u8) {
    ioapic.write(SELECT, Width::Dword, register.into());
}

fn read(ioapic: &mut IoApic, register: u8) -> u64 {
    select(ioapic, register);
    ioapic.read(WINDOW, Width::Dword)
}

fn write(ioapic: &mut IoApic, register: u8, value: u32) {
    select(ioapic, register);
    ioapic.write(WINDOW, Width::Dword, value.into());
}

/// What is sent to local APICs that answer so.
fn offered(ioapic: &mut IoApic, answer: Acceptance) -> Vec<BusMessage> {
    let had_some = ioapic.has_messages();
    let mut sent = Vec::new();
    ioapic.deliver(|message| {
        sent.push(*message);
        answer
    });
    assert!(had_some || sent.is_empty());
    sent
}

/// What is sent to local APICs that take it.
fn sent(ioapic: &mut IoApic) -> Vec<BusMessage> {
    offered(ioapic, Acceptance::Accepted)
}

/// What follows from a pin's being asserted or not.
fn set_pin(ioapic: &mut IoApic, pin: u8, is_asserted: bool) -> Vec<BusMessage> {
    ioapic.set_pin(pin, is_asserted);
    sent(ioapic)
}

fn message(vector: u8, trigger: Trigger) -> BusMessage {
    BusMessage {
        delivery: Delivery::Fixed { vector },
        recipients: Recipients::Physical { id: 3 },
        trigger,
    }
}

/// Pin 4 with this low half, to APIC 3.
fn with_pin_4(low: u32) -> IoApic {
    let mut ioapic = IoApic::new();
    write(&mut ioapic, 0x19, 3 << 24);
    write(&mut ioapic, 0x18, low);
    assert_eq!(sent(&mut ioapic), []);
    ioapic
}

#[test]
fn the_registers_are_as_after_reset_and_keep_the_bits_that_exist() {
    let mut ioapic = IoApic::new();
    assert_eq!(read(&mut ioapic, 1), 0x0017_0011);
    for register in (0x10..0x40).step_by(2) {
        assert_eq!(read(&mut ioapic, register), 0x1_0000);
        assert_eq!(read(&mut ioapic, register + 1), 0);
        write(&mut ioapic, register, u32::MAX);
        write(&mut ioapic, register + 1, u32::MAX);
        assert_eq!(read(&mut ioapic, register), 0x1_AFFF);
        assert_eq!(read(&mut ioapic, register + 1), 0xFF00_0000);
    }
    write(&mut ioapic, 0, u32::MAX);
    assert_eq!(read(&mut ioapic, 0), 0x0F00_0000);
    for register in (3..0x10).chain(0x40..=0xFF) {
        write(&mut ioapic, register, u32::MAX);
        assert_eq!(read(&mut ioapic, register), 0);
    }
    assert!(!ioapic.has_messages());
}

#[test]
fn an_edge_is_sent_once_whoever_takes_it_and_lost_behind_a_mask() {
    let edge = message(0x51, Trigger::Edge);
    let mut ioapic = with_pin_4(0x51);
    assert_eq!(set_pin(&mut ioapic, 4, true), [edge]);
    assert_eq!(set_pin(&mut ioapic, 4, true), []);
    assert_eq!(set_pin(&mut ioapic, 4, false), []);
    ioapic.set_pin(4, true);
    assert_eq!(offered(&mut ioapic, Acceptance::Refused), [edge]);
    assert_eq!(sent(&mut ioapic), []);
    // It goes as it was when it came.
    ioapic.set_pin(4, false);
    ioapic.set_pin(4, true);
    write(&mut ioapic, 0x18, 0x1_0052);
    assert_eq!(sent(&mut ioapic), [edge]);
    let mut ioapic = with_pin_4(0x1_0051);
    assert_eq!(set_pin(&mut ioapic, 4, true), []);
    write(&mut ioapic, 0x18, 0x51);
    assert_eq!(set_pin(&mut ioapic, 24, true), []);
}

#[test]
fn a_level_is_sent_again_after_its_end_as_long_as_it_lasts() {
    let mut ioapic = with_pin_4(0x8051);
    let level = message(0x51, Trigger::Level);
    assert_eq!(set_pin(&mut ioapic, 4, true), [level]);
    assert_eq!(read(&mut ioapic, 0x18), 0xC051, "remote IRR");
    assert_eq!(set_pin(&mut ioapic, 4, false), []);
    assert_eq!(set_pin(&mut ioapic, 4, true), [], "is being served");
    ioapic.end_of_interrupt(0x52);
    assert_eq!(sent(&mut ioapic), []);
    ioapic.end_of_interrupt(0x51);
    assert_eq!(sent(&mut ioapic), [level]);
    assert_eq!(set_pin(&mut ioapic, 4, false), []);
    ioapic.end_of_interrupt(0x51);
    assert_eq!(sent(&mut ioapic), []);
    assert_eq!(read(&mut ioapic, 0x18), 0x8051);
}

#[test]
fn a_level_waits_behind_a_mask() {
    let level = message(0x51, Trigger::Level);
    let mut ioapic = with_pin_4(0x1_8051);
    assert_eq!(set_pin(&mut ioapic, 4, true), []);
    write(&mut ioapic, 0x18, 0x8051);
    assert_eq!(sent(&mut ioapic), [level]);
    // Software ends one that is stuck by switching to edge.
    write(&mut ioapic, 0x18, 0x1_0051);
    assert_eq!(sent(&mut ioapic), []);
    write(&mut ioapic, 0x18, 0x8051);
    assert_eq!(sent(&mut ioapic), [level]);
}

#[test]
fn a_level_that_nobody_takes_is_not_being_served_and_is_sent_until_somebody_does() {
    let level = message(0x51, Trigger::Level);
    let mut ioapic = with_pin_4(0x8051);
    ioapic.set_pin(4, true);
    for _ in 0..3 {
        assert_eq!(offered(&mut ioapic, Acceptance::Refused), [level]);
        assert_eq!(read(&mut ioapic, 0x18) & REMOTE_IRR, 0);
    }
    // Another destination and vector are tried as they are then.
    write(&mut ioapic, 0x18, 0x8060);
    write(&mut ioapic, 0x19, 0xFF << 24);
    let other = BusMessage {
        recipients: Recipients::All,
        ..message(0x60, Trigger::Level)
    };
    assert_eq!(sent(&mut ioapic), [other]);
    assert_eq!(read(&mut ioapic, 0x18) & REMOTE_IRR, REMOTE_IRR);
    assert_eq!(sent(&mut ioapic), []);
    // Its source gives up before anybody takes it.
    let mut ioapic = with_pin_4(0x8051);
    ioapic.set_pin(4, true);
    assert_eq!(offered(&mut ioapic, Acceptance::Refused), [level]);
    ioapic.set_pin(4, false);
    assert_eq!(sent(&mut ioapic), []);
}

#[test]
fn two_pins_with_one_vector_are_served_each_by_who_took_it() {
    let mut ioapic = with_pin_4(0x8051);
    write(&mut ioapic, 0x1B, 9 << 24);
    write(&mut ioapic, 0x1A, 0x8051);
    ioapic.set_pin(4, true);
    ioapic.set_pin(5, true);
    ioapic.deliver(|message| match message.recipients {
        Recipients::Physical { id: 3 } => Acceptance::Accepted,
        _ => Acceptance::Refused,
    });
    assert_eq!(read(&mut ioapic, 0x18) & REMOTE_IRR, REMOTE_IRR);
    assert_eq!(read(&mut ioapic, 0x1A) & REMOTE_IRR, 0);
}

/// A source that asserts its line for a moment between two deliveries.
#[test]
fn a_pulse_counts_at_a_level_triggered_pin() {
    let level = message(0x51, Trigger::Level);
    let mut ioapic = with_pin_4(0x8051);
    ioapic.set_pin(4, true);
    ioapic.set_pin(4, false);
    assert_eq!(sent(&mut ioapic), [level]);
    ioapic.set_pin(4, true);
    ioapic.set_pin(4, false);
    ioapic.end_of_interrupt(0x51);
    assert_eq!(sent(&mut ioapic), [], "the one that is served is this one");
    ioapic.set_pin(4, true);
    ioapic.set_pin(4, false);
    write(&mut ioapic, 0x18, 0x1_8051);
    write(&mut ioapic, 0x18, 0x8051);
    assert_eq!(sent(&mut ioapic), [], "gone behind the mask");
}

#[test]
fn destinations_and_kinds_are_as_the_entry_says() {
    for (high, low, recipients) in [
        (3, 0x51, Recipients::Physical { id: 3 }),
        (3, 0x851, Recipients::Logical { address: 3 }),
        (0xFF, 0x51, Recipients::All),
    ] {
        let mut ioapic = with_pin_4(low);
        write(&mut ioapic, 0x19, high << 24);
        let sent = set_pin(&mut ioapic, 4, true);
        let found: Vec<_> = sent.iter().map(|message| message.recipients).collect();
        assert_eq!(found, [recipients]);
    }
    for (low, delivery) in [
        (0x151, Some(Delivery::LowestPriority { vector: 0x51 })),
        (0x400, Some(Delivery::Nmi)),
        (0x500, Some(Delivery::Init)),
        (0x251, None),
        (0x751, None),
    ] {
        let sent = set_pin(&mut with_pin_4(low), 4, true);
        let found = sent.first().map(|message| message.delivery);
        assert_eq!(found, delivery);
    }
}

proptest! {
    /// Any accesses and pins: a level pin that is asserted and not masked is being served, or nobody took it the last time.
    #[test]
    fn no_level_is_forgotten(
        steps in proptest::collection::vec((0..4_u8, 0..PINS, any::<u32>(), 0..0x20_u16, any::<bool>()), 0..100),
    ) {
        let mut ioapic = IoApic::new();
        let mut asserted = [false; PINS as usize];
        for (step, pin, value, offset, takes) in steps {
            match step {
                0 => {
                    asserted[usize::from(pin)] = value & 1 != 0;
                    ioapic.set_pin(pin, value & 1 != 0);
                }
                // Fixed delivery, few vectors.
                1 => write(&mut ioapic, 0x10 + pin * 2, value & 0x1_800F),
                2 => ioapic.end_of_interrupt(value as u8 & 0xF),
                _ => {
                    for width in [Width::Byte, Width::Word, Width::Qword] {
                        let _ = ioapic.read(offset, width);
                        let before = ioapic.has_messages();
                        ioapic.write(offset, width, value.into());
                        prop_assert_eq!(ioapic.has_messages(), before);
                    }
                }
            }
            let answer = if takes { Acceptance::Accepted } else { Acceptance::Refused };
            let sent = offered(&mut ioapic, answer);
            for pin in 0..PINS {
                let entry = read(&mut ioapic, 0x10 + pin * 2);
                let (is_level, is_masked) = (entry & 0x8000 != 0, entry & 0x1_0000 != 0);
                let is_served = entry & REMOTE_IRR != 0;
                if is_level && !is_masked && asserted[usize::from(pin)] {
                    let was_sent = sent.iter().any(|message| {
                        message.delivery == Delivery::Fixed { vector: entry as u8 }
                    });
                    prop_assert!(is_served || !takes && was_sent, "pin {} is forgotten", pin);
                }
                prop_assert!(is_level || !is_served);
            }
        }
    }
}
