//! The serial port, as drivers find and use it.

use nagaya_devices::uart::Uart;
use proptest::prelude::*;

fn set(uart: &mut Uart, port: u16, value: u8) {
    assert_eq!(uart.write(port, value), None);
}

/// FIFOs on, interrupts let through.
fn ready(enable: u8) -> Uart {
    let mut uart = Uart::new();
    set(&mut uart, 2, 1);
    set(&mut uart, 4, 0x08);
    set(&mut uart, 1, enable);
    uart
}

#[test]
fn bytes_go_out_and_the_divisor_does_not() {
    let mut uart = Uart::new();
    assert_eq!(uart.write(0, b'x'), Some(b'x'));
    set(&mut uart, 3, 0x83);
    set(&mut uart, 0, 0x34);
    set(&mut uart, 1, 0x12);
    assert_eq!((uart.read(0), uart.read(1)), (0x34, 0x12));
    set(&mut uart, 3, 0x03);
    assert_eq!((uart.read(1), uart.read(3)), (0, 0x03));
    assert_eq!(uart.write(0, b'y'), Some(b'y'));
    assert_eq!(uart.read(5), 0x60, "empty again at once");
}

#[test]
fn it_is_found_by_scratch_loop_back_and_fifo() {
    let mut uart = Uart::new();
    set(&mut uart, 7, 0xA5);
    assert_eq!(uart.read(7), 0xA5);
    // Loop back: each output comes back as an input.
    for (output, input) in [(1, 0x20), (2, 0x10), (4, 0x40), (8, 0x80)] {
        set(&mut uart, 4, 0x10 | output);
        assert_eq!(uart.read(6) & 0xF0, input);
    }
    assert_eq!(uart.write(0, b'l'), None);
    assert_eq!(uart.input_room(), 0, "nothing from outside");
    uart.receive(b'o');
    assert_eq!(
        (uart.read(5) & 1, uart.read(0), uart.read(5) & 1),
        (1, b'l', 0)
    );
    assert_eq!(uart.read(2) & 0xC0, 0);
    set(&mut uart, 2, 1);
    assert_eq!(uart.read(2) & 0xC0, 0xC0);
}

/// What drivers do to tell a 16550A from its relatives: each step's answer is the one of a 16550A.
#[test]
fn it_is_taken_for_a_16550a() {
    let mut uart = Uart::new();
    // The upper half of IER is not there.
    for (written, read) in [
        (0x00, 0x00),
        (0x0F, 0x0F),
        (0x40, 0x00),
        (0xFF, 0x0F),
        (0, 0),
    ] {
        set(&mut uart, 1, written);
        assert_eq!(uart.read(1), read);
    }
    // Loop back with OUT2 and RTS gives DCD and CTS.
    set(&mut uart, 4, 0x1A);
    assert_eq!(uart.read(6) & 0xF0, 0x90);
    set(&mut uart, 4, 0);
    // No enhanced feature register: with LCR at 0xBF, port 2 is what it is else.
    set(&mut uart, 3, 0xBF);
    set(&mut uart, 2, 0);
    set(&mut uart, 3, 0);
    set(&mut uart, 2, 1);
    for line in [0x80, 0xBF, 0xE0, 0x00] {
        set(&mut uart, 3, line);
        assert_eq!(uart.read(2), 0xC1, "LCR {line:#x}");
    }
    // No banks: the loop bit of MCR shows nowhere else.
    set(&mut uart, 4, 0x10);
    set(&mut uart, 3, 0xE0);
    assert_eq!(uart.read(2) & 0x10, 0);
    set(&mut uart, 3, 0);
    set(&mut uart, 4, 0);
    // No FIFO of 64 bytes, with DLAB or without.
    for line in [0x00, 0x80] {
        set(&mut uart, 3, line);
        set(&mut uart, 2, 0x21);
        assert_eq!(uart.read(2) & 0x20, 0);
    }
}

/// The transmitter's interrupt comes again each time that it is allowed: drivers test that, and else poll by a timer.
#[test]
fn the_transmitter_interrupt_comes_with_each_enabling() {
    let mut uart = ready(0);
    for _ in 0..3 {
        set(&mut uart, 1, 2);
        assert_eq!((uart.read(5) & 0x60, uart.read(2)), (0x60, 0xC2));
        set(&mut uart, 1, 0);
        assert_eq!(uart.read(2), 0xC1);
    }
}

#[test]
fn changes_of_the_modems_inputs_are_told_once() {
    let mut uart = ready(8);
    assert_eq!(uart.read(6), 0xB0);
    // DTR, RTS and OUT1 in loop-back: CTS and DSR stay, DCD goes, RI comes, which is no change.
    set(&mut uart, 4, 0x17);
    assert_eq!(uart.read(2), 0xC0, "of the lowest priority");
    assert_eq!((uart.read(6), uart.read(6)), (0x78, 0x70));
    assert_eq!(uart.read(2), 0xC1);
    // RI goes: its trailing edge.
    set(&mut uart, 4, 0x13);
    assert_eq!((uart.read(6), uart.read(6)), (0x34, 0x30));
}

#[test]
fn the_fifo_is_cleared_only_with_its_enable() {
    let mut uart = ready(0);
    uart.receive(b'a');
    set(&mut uart, 2, 3);
    assert_eq!(uart.read(5) & 1, 0);
    uart.receive(b'b');
    set(&mut uart, 2, 1);
    assert_eq!(uart.read(5) & 1, 1, "it was on already");
}

#[test]
fn received_bytes_interrupt_until_they_are_read() {
    let mut uart = ready(1);
    assert!(!uart.is_interrupting());
    for byte in *b"ab" {
        uart.receive(byte);
    }
    assert!(uart.is_interrupting());
    assert_eq!(uart.read(2), 0xC4);
    assert_eq!(uart.read(0), b'a');
    assert!(uart.is_interrupting());
    assert_eq!(uart.read(0), b'b');
    assert!(!uart.is_interrupting());
    assert_eq!(uart.read(2), 0xC1);
}

#[test]
fn an_empty_transmitter_interrupts_until_it_is_told() {
    let mut uart = ready(2);
    assert!(uart.is_interrupting(), "as it is allowed");
    assert_eq!(uart.read(2), 0xC2);
    assert!(!uart.is_interrupting(), "told by reading");
    assert_eq!(uart.write(0, b'x'), Some(b'x'));
    assert!(uart.is_interrupting());
    set(&mut uart, 1, 0);
    assert!(!uart.is_interrupting());
}

/// "Interrupt Identification Register": reset by reading it, if that was the source, or by writing the holding register.
#[test]
fn writing_a_byte_ends_the_transmitters_interrupt_until_it_has_gone() {
    let mut uart = ready(2);
    assert!(uart.is_interrupting() && !uart.take_fall());
    assert_eq!(uart.write(0, b'x'), Some(b'x'));
    assert!(uart.take_fall() && uart.is_interrupting());
    assert!(!uart.take_fall());
    // Told already: the line was down before.
    assert_eq!(uart.read(2), 0xC2);
    assert_eq!(uart.write(0, b'y'), Some(b'y'));
    assert!(!uart.take_fall() && uart.is_interrupting());
    // Of a higher priority: the line stays up.
    let mut uart = ready(3);
    uart.receive(b'r');
    assert_eq!(uart.write(0, b'z'), Some(b'z'));
    assert!(!uart.take_fall() && uart.is_interrupting());
}

/// A driver may read as many bytes as the trigger level without asking whether they are there.
#[test]
fn fewer_bytes_than_the_trigger_level_come_by_the_time_out() {
    let mut uart = ready(1);
    for (control, level) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)] {
        set(&mut uart, 2, control | 2);
        for bytes in 1..=16 {
            uart.receive(b'x');
            let expected = if bytes < level { 0xCC } else { 0xC4 };
            assert_eq!(uart.read(2), expected, "{bytes} of {level}");
        }
    }
    set(&mut uart, 2, 0);
    uart.receive(b'x');
    assert_eq!(uart.read(2), 0x04, "without FIFO there is none");
}

#[test]
fn without_fifo_the_last_byte_destroys_the_one_before() {
    let mut uart = ready(4);
    set(&mut uart, 2, 0);
    uart.receive(b'a');
    uart.receive(b'b');
    assert_eq!((uart.read(5), uart.read(0)), (0x63, b'b'));
}

#[test]
fn too_many_bytes_are_lost_and_noted() {
    let mut uart = ready(4);
    for byte in 0..17 {
        uart.receive(byte);
    }
    assert_eq!((uart.input_room(), uart.read(2)), (0, 0xC6));
    assert_eq!(uart.read(5), 0x63);
    assert_eq!(uart.read(5), 0x61, "told once");
    let all: Vec<u8> = (0..16).map(|_| uart.read(0)).collect();
    assert!(all.into_iter().eq(0..16));
    set(&mut uart, 2, 0);
    assert_eq!(uart.input_room(), 1, "without FIFO");
}

#[test]
fn the_line_comes_through_out2_only() {
    let mut uart = ready(1);
    uart.receive(b'x');
    for (modem, is_up) in [(0x00, false), (0x08, true), (0x18, false), (0x0B, true)] {
        set(&mut uart, 4, modem);
        assert_eq!(uart.is_interrupting(), is_up);
    }
}

proptest! {
    /// Any accesses: what is received stays bounded, and the line is up only for a cause that can be read.
    #[test]
    fn any_accesses_are_without_harm(steps in proptest::collection::vec((0..3_u8, 0..10_u16, any::<u8>()), 0..200)) {
        let mut uart = Uart::new();
        for (step, port, value) in steps {
            match step {
                0 => uart.receive(value),
                1 => {
                    let read = uart.read(port);
                    prop_assert!(port < 8 || read == 0xFF);
                }
                _ => {
                    let sent = uart.write(port, value);
                    prop_assert!(sent.is_none() || (port == 0 && sent == Some(value)));
                }
            }
            prop_assert!(uart.input_room() <= 16);
            if uart.is_interrupting() {
                prop_assert_eq!(uart.clone().read(2) & 1, 0);
            }
        }
    }
}
