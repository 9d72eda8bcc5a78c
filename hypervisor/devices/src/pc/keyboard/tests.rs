//! The controller as drivers start it.

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// What comes of commands (with the upper byte 1) and data, read as long as the status says that something is there.
fn said(keyboard: &mut Keyboard, written: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in written {
        let [value, is_command] = word.to_le_bytes();
        let resets = match is_command {
            0 => keyboard.write(value),
            _ => keyboard.command(value),
        };
        assert!(!resets, "{word:#x}");
        assert_eq!(keyboard.status() & 2, 0, "never busy");
        while keyboard.status() & STATUS_FULL != 0 {
            bytes.push(keyboard.read());
        }
    }
    bytes
}

#[test]
fn its_commands_are_answered() {
    let mut keyboard = Keyboard::new();
    for (written, expected) in [
        (&[0x1AA][..], &[0x55][..]),
        (&[0x1AB], &[0]),
        (&[0x120], &[0x65]),
        // The command byte; the mouse's interface cannot be switched on.
        (&[0x160, 0x47, 0x120], &[0x67]),
        (&[0x1A8, 0x120], &[0x67]),
        (&[0x1AD, 0x120], &[0x77]),
        (&[0x1AE, 0x120], &[0x67]),
        (&[0x165, 0x12, 0x125], &[0x12]),
        (&[0x1C0], &[0x80]),
        (&[0x1D0], &[3]),
        (&[0x1D1, 0x01, 0x1D0], &[1]),
        (&[0x1D1, 0xDF, 0x1D0], &[3]),
        (&[0x1D2, 0x1C], &[0x1C]),
        (&[0x1D3, 0x5A], &[0x5A]),
        (&[0x1A9], &[1]),
        (&[0x1D4, 0xF2], &[0xFE]),
        (&[0x1FF, 0x1F1, 0x1A7, 0x1B0], &[]),
    ] {
        assert_eq!(said(&mut keyboard, written), expected, "{written:x?}");
    }
}

#[test]
fn its_keyboard_answers_as_one_does() {
    let mut keyboard = Keyboard::new();
    // Untranslated.
    assert_eq!(said(&mut keyboard, &[0x160, 0x25]), []);
    for (written, expected) in [
        (&[0xFF][..], &[0xFA, 0xAA][..]),
        (&[0xF2], &[0xFA, 0xAB, 0x83]),
        (&[0xED, 0x07], &[0xFA, 0xFA]),
        (&[0xF3, 0x20], &[0xFA, 0xFA]),
        (&[0xF0, 0x00], &[0xFA, 0xFA, 2]),
        (&[0xF0, 0x03, 0xF0, 0x00], &[0xFA, 0xFA, 0xFA, 0xFA, 3]),
        (&[0xEE], &[0xEE]),
        (&[0xF5, 0xF4, 0xF6], &[0xFA, 0xFA, 0xFA]),
        (&[0x12], &[0xFE]),
        (&[0xF4, 0xFE], &[0xFA, 0xFA]),
        // A command in place of a parameter.
        (&[0xED, 0xF4, 0x01], &[0xFA, 0xFA, 0xFE]),
    ] {
        assert_eq!(said(&mut keyboard, written), expected, "{written:x?}");
    }
    assert_eq!(
        said(&mut keyboard, &[0x160, 0x65, 0xF2]),
        [0xFA, 0xAB, 0x41]
    );
}

#[test]
fn only_the_keyboards_bytes_interrupt_and_they_wait_while_it_is_off() {
    let mut keyboard = Keyboard::new();
    let _ = keyboard.command(0xAA);
    assert!(!keyboard.is_interrupting() && keyboard.read() == 0x55);
    let _ = keyboard.write(0xF2);
    let _ = keyboard.command(0xAD);
    assert!(!keyboard.is_interrupting());
    assert_eq!(keyboard.status() & STATUS_FULL, 0);
    assert_eq!(keyboard.read(), 0x55, "the last byte again");
    let _ = keyboard.command(0xAE);
    for byte in [0xFA, 0xAB, 0x41] {
        assert!(keyboard.is_interrupting());
        assert_eq!(keyboard.read(), byte);
    }
    assert!(!keyboard.is_interrupting());
    let _ = keyboard.command(0xD3);
    let _ = keyboard.write(1);
    assert!(!keyboard.is_interrupting());
    assert_eq!(keyboard.status() & 0x61, 0x21);
}

#[test]
fn both_ways_to_its_reset_line_reset() {
    for command in 0xF0..=0xFF {
        assert_eq!(Keyboard::new().command(command), command & 1 == 0);
    }
    let mut keyboard = Keyboard::new();
    assert!(!keyboard.command(0xD1) && keyboard.write(0xFE));
}

proptest! {
    #[test]
    fn any_accesses_are_without_harm(steps in prop::collection::vec((0..4_u8, any::<u8>()), 0..300)) {
        let mut keyboard = Keyboard::new();
        for (step, value) in steps {
            match step {
                0 => drop(keyboard.command(value)),
                1 => drop(keyboard.write(value)),
                _ => drop(keyboard.read()),
            }
            prop_assert!(keyboard.queue.len() <= QUEUE_BYTES);
            if keyboard.is_interrupting() {
                prop_assert_eq!(keyboard.status() & (STATUS_FULL | STATUS_AUXILIARY), STATUS_FULL);
            }
        }
    }
}
