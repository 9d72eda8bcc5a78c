//! The pair of 8259A, as drivers set it up and by its data sheet.

use proptest::prelude::*;

use super::*;

/// Initialised as kernels do it: vectors 0x20 and 0x28, everything let through.
fn ready(fourth: u8) -> Pic {
    let mut pic = Pic::new();
    for (side, base, third) in [(Side::Master, 0x20, 4), (Side::Slave, 0x28, 2)] {
        pic.write(side, PicPort::Lower, 0x11);
        for word in [base, third, fourth | 1] {
            pic.write(side, PicPort::Upper, word);
        }
        pic.write(side, PicPort::Upper, 0);
    }
    pic
}

fn pulse(pic: &mut Pic, irq: u8) {
    pic.set_line(irq, true);
    pic.set_line(irq, false);
}

fn end(pic: &mut Pic, side: Side) {
    pic.write(side, PicPort::Lower, 0x20);
}

#[test]
fn before_it_is_initialised_it_says_nothing_and_keeps_its_mask() {
    let mut pic = Pic::new();
    for mask in [0xFB, 0x00] {
        pic.write(Side::Master, PicPort::Upper, mask);
        assert_eq!(pic.read(Side::Master, PicPort::Upper), mask);
    }
    pulse(&mut pic, 1);
    assert!(!pic.is_asserting());
    assert!(!pic.wants(1));
}

#[test]
fn single_chips_and_three_words_are_ready_after_what_they_need() {
    let mut pic = Pic::new();
    pic.write(Side::Master, PicPort::Lower, 0x12);
    pulse(&mut pic, 0);
    assert!(!pic.is_asserting());
    pic.write(Side::Master, PicPort::Upper, 0x47);
    pulse(&mut pic, 0);
    assert!(pic.is_asserting());
    assert_eq!(
        pic.acknowledge(),
        0x40,
        "the lowest three bits are the input"
    );
}

#[test]
fn lower_numbers_come_first_and_the_second_chip_between_1_and_3() {
    let mut pic = ready(0);
    for irq in [7, 3, 15, 8, 1, 0] {
        pulse(&mut pic, irq);
    }
    for (vector, sides) in [
        (0x20, &[Side::Master][..]),
        (0x21, &[Side::Master]),
        (0x28, &[Side::Slave, Side::Master]),
        (0x2F, &[Side::Slave, Side::Master]),
        (0x23, &[Side::Master]),
        (0x27, &[Side::Master]),
    ] {
        assert!(pic.is_asserting());
        assert_eq!(pic.acknowledge(), vector);
        for side in sides {
            end(&mut pic, *side);
        }
    }
    assert!(!pic.is_asserting());
    assert_eq!(pic.acknowledge(), 0x27, "spurious");
    assert_eq!(pic.master.in_service, 0, "which is not in service");
}

#[test]
fn what_is_in_service_keeps_its_equals_and_lower_ones_away() {
    let mut pic = ready(0);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x23);
    for irq in [3, 4] {
        pulse(&mut pic, irq);
        assert!(!pic.is_asserting());
    }
    pulse(&mut pic, 10);
    assert_eq!(pic.acknowledge(), 0x2A, "nested");
    pulse(&mut pic, 8);
    assert!(
        !pic.is_asserting(),
        "the master does not hear its slave again"
    );
    end(&mut pic, Side::Master);
    assert_eq!(pic.acknowledge(), 0x28);
}

#[test]
fn specially_nested_a_master_hears_its_slave_again() {
    let mut pic = ready(ICW4_NESTED);
    pulse(&mut pic, 10);
    assert_eq!(pic.acknowledge(), 0x2A);
    pulse(&mut pic, 8);
    assert_eq!(pic.acknowledge(), 0x28);
    pulse(&mut pic, 3);
    assert!(!pic.is_asserting(), "others wait as before");
}

#[test]
fn the_mask_keeps_an_edge_for_later() {
    let mut pic = ready(0);
    pic.write(Side::Master, PicPort::Upper, 0x10);
    pulse(&mut pic, 4);
    assert!(!pic.is_asserting() && !pic.wants(4) && pic.wants(5));
    assert_eq!(pic.read(Side::Master, PicPort::Lower), 0x10, "IRR shows it");
    pic.write(Side::Master, PicPort::Upper, 0);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(Side::Master, PicPort::Upper, 0x04);
    assert!(!pic.wants(8), "the way to the master is masked");
}

#[test]
fn an_interrupt_that_is_masked_at_the_last_moment_is_spurious() {
    let mut pic = ready(0);
    pulse(&mut pic, 4);
    assert!(pic.is_asserting());
    pic.write(Side::Master, PicPort::Upper, 0x10);
    assert_eq!(pic.acknowledge(), 0x27);
    pic.write(Side::Master, PicPort::Lower, 0x0B);
    assert_eq!(
        pic.read(Side::Master, PicPort::Lower),
        0,
        "ISR tells it from IRQ 7"
    );
}

#[test]
fn a_level_is_there_as_long_as_it_is_there() {
    let mut pic = ready(0);
    assert_eq!(pic.read(Side::Slave, PicPort::Level), 0x02, "ACPI's");
    pic.set_line(9, true);
    for _ in 0..2 {
        assert_eq!(pic.acknowledge(), 0x29);
        end(&mut pic, Side::Slave);
        end(&mut pic, Side::Master);
    }
    assert!(pic.is_asserting());
    pic.set_line(9, false);
    assert!(!pic.is_asserting());
    for (side, bits) in [(Side::Master, 0xF8), (Side::Slave, 0xDE)] {
        pic.write(side, PicPort::Level, 0xFF);
        assert_eq!(pic.read(side, PicPort::Level), bits);
    }
    pulse(&mut pic, 4);
    assert!(!pic.is_asserting(), "no edge is kept");
}

#[test]
fn automatic_ends_leave_nothing_in_service_and_may_rotate() {
    let mut pic = ready(ICW4_AUTO_END);
    pic.write(Side::Master, PicPort::Lower, 0x80);
    for irq in [1, 3] {
        pulse(&mut pic, irq);
    }
    assert_eq!(pic.acknowledge(), 0x21);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x23, "1 is the lowest now");
    assert_eq!(pic.acknowledge(), 0x21);
    assert_eq!(pic.master.in_service, 0);
}

#[test]
fn ends_and_rotations_by_command() {
    let mut pic = ready(0);
    for irq in [1, 3, 0] {
        pulse(&mut pic, irq);
    }
    assert_eq!(pic.acknowledge(), 0x20);
    // Rotate on non-specific end.
    pic.write(Side::Master, PicPort::Lower, 0xA0);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x21);
    // Specific end.
    pic.write(Side::Master, PicPort::Lower, 0x61);
    assert_eq!(pic.acknowledge(), 0x23);
    // Rotate on specific end: 3 is the lowest.
    pic.write(Side::Master, PicPort::Lower, 0xE3);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x24);
    end(&mut pic, Side::Master);
    // Set priority: 7 is the lowest again.
    pic.write(Side::Master, PicPort::Lower, 0xC7);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x20);
}

#[test]
fn the_special_mask_lets_others_through_while_a_masked_one_is_served() {
    let mut pic = ready(0);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
    pulse(&mut pic, 4);
    pic.write(Side::Master, PicPort::Upper, 0x02);
    assert!(!pic.is_asserting());
    pic.write(Side::Master, PicPort::Lower, 0x68);
    assert_eq!(pic.acknowledge(), 0x24);
    end(&mut pic, Side::Master);
    assert_eq!(pic.master.in_service, 0x02, "the masked one is passed over");
    pic.write(Side::Master, PicPort::Lower, 0x48);
    pulse(&mut pic, 4);
    assert!(!pic.is_asserting());
}

#[test]
fn a_poll_acknowledges_without_a_vector() {
    let mut pic = ready(0);
    pic.write(Side::Master, PicPort::Lower, 0x0C);
    assert_eq!(pic.read(Side::Master, PicPort::Lower), 0, "nothing");
    pulse(&mut pic, 12);
    for (side, answer) in [(Side::Master, 0x82), (Side::Slave, 0x84)] {
        pic.write(side, PicPort::Lower, 0x0C);
        assert_eq!(pic.read(side, PicPort::Lower), answer);
        pic.write(side, PicPort::Lower, 0x0B);
        assert_eq!(pic.read(side, PicPort::Lower), 1 << (answer & 7));
    }
}

/// The priorities of one chip, told as its data sheet tells them: from the highest, the first request before anything in service.
fn expected(chip: &Chip) -> Option<u8> {
    let order = (1..=8).map(|step| (chip.lowest + step) & 7);
    for input in order {
        let bit = 1 << input;
        let is_masked = chip.mask & bit != 0;
        if chip.in_service & bit != 0 && !(chip.is_specially_masked && is_masked) {
            return None;
        }
        if chip.requests() & bit != 0 && !is_masked {
            return Some(input);
        }
    }
    None
}

proptest! {
    /// Any commands and lines, with both chips initialised: the priorities are the data sheet's, the second chip's output is the
    /// first's input, and no acknowledge names an input that was not asked for.
    #[test]
    fn any_accesses_keep_the_order(steps in proptest::collection::vec((0..10_u8, any::<u8>()), 0..200)) {
        let mut pic = ready(0);
        for (step, value) in steps {
            let side = if value & 0x80 == 0 { Side::Master } else { Side::Slave };
            match step {
                0..=3 => pic.set_line(value & 15, value & 16 != 0),
                4 => pic.write(side, PicPort::Upper, value),
                // OCW2 and OCW3, without the poll.
                5 => pic.write(side, PicPort::Lower, value & 0xE7),
                6 => pic.write(side, PicPort::Lower, value & 0xE3 | 0x08),
                7 => pic.write(side, PicPort::Level, value),
                _ => {
                    let (master, slave) = (expected(&pic.master), expected(&pic.slave));
                    let vector = pic.acknowledge();
                    let named = match (master, slave) {
                        (None, _) => 0x27,
                        (Some(2), Some(input)) => 0x28 + input,
                        (Some(2), None) => 0x2F,
                        (Some(input), _) => 0x20 + input,
                    };
                    prop_assert_eq!(vector, named);
                }
            }
            prop_assert_eq!(pic.master.pending(), expected(&pic.master));
            prop_assert_eq!(pic.slave.pending(), expected(&pic.slave));
            prop_assert_eq!(pic.master.lines >> 2 & 1 != 0, pic.slave.pending().is_some());
        }
    }
}
