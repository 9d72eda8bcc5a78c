//! The devices of a PC together: ports, lines, power, what the owner is told.

use nagaya_devices::apic::{Acceptance, BusMessage, Delivery, Recipients, Trigger};
use nagaya_devices::pc::{Pc, PcConfig, PcEffect, port};
use nagaya_devices::pci::Width;
use proptest::prelude::*;

/// TSC ticks of a second.
const SECOND: u64 = 2_000_000_000;

const CONFIG: PcConfig = PcConfig {
    tsc_khz: 2_000_000,
    start_tsc: 1000,
    start_seconds: 1_795_273_445,
    memory_bytes: 128 << 20,
    memory_above_bytes: 0,
    least_period_ticks: 40_000,
    debug_exit: false,
    debug_console: false,
};

fn pc() -> Pc {
    Pc::new(CONFIG)
}

fn set(pc: &mut Pc, port: u16, value: u8) {
    let effect = pc.port_write(port, Width::Byte, value.into(), 0);
    assert_eq!(effect, Some(PcEffect::None), "{port:#x}");
}

fn read(pc: &mut Pc, port: u16, now: u64) -> u8 {
    pc.port_read(port, Width::Byte, now).expect("is there") as u8
}

/// Both controllers initialised, vectors from 0x20 on, with a mask for each.
fn set_pic(pc: &mut Pc, masks: [u8; 2]) {
    for (first, base, third, mask) in [(0x20, 0x20, 4, masks[0]), (0xA0, 0x28, 2, masks[1])] {
        set(pc, first, 0x11);
        for word in [base, third, 1, mask] {
            set(pc, first + 1, word);
        }
    }
}

/// A pin of the I/O APIC, edge or level, with a vector.
fn set_pin(pc: &mut Pc, pin: u8, entry: u32, now: u64) {
    for (register, value) in [(1, 0), (0, entry)] {
        let index = u64::from(0x10 + pin * 2 + register);
        pc.memory_write(0, Width::Dword, index, now);
        pc.memory_write(0x10, Width::Dword, value.into(), now);
    }
}

/// Messages, all taken.
fn messages(pc: &mut Pc) -> Vec<BusMessage> {
    let mut messages = Vec::new();
    pc.deliver(|message| {
        messages.push(*message);
        Acceptance::Accepted
    });
    messages
}

fn vectors(pc: &mut Pc) -> Vec<u8> {
    let vector = |message: BusMessage| match message.delivery {
        Delivery::Fixed { vector } => vector,
        other => panic!("{other:?}"),
    };
    messages(pc).into_iter().map(vector).collect()
}

const PORTS: [(u16, u16); 19] = [
    (0x20, 0x21),
    (0x40, 0x43),
    (0x60, 0x61),
    (0x64, 0x64),
    (0x70, 0x71),
    (0x80, 0x80),
    (0x92, 0x92),
    (0xA0, 0xA1),
    (0xE9, 0xE9),
    (0xF4, 0xF4),
    (0x3D4, 0x3D5),
    (0x3DA, 0x3DA),
    (0x3F8, 0x3FF),
    (0x4D0, 0x4D1),
    (0x505, 0x505),
    (0x600, 0x603),
    (0x604, 0x607),
    (0x608, 0x60B),
    (0xCF9, 0xCF9),
];

#[test]
fn every_port_at_every_width_is_answered_by_its_first() {
    for has_debug in [false, true] {
        let mut pc = Pc::new(PcConfig {
            debug_exit: has_debug,
            debug_console: has_debug,
            ..CONFIG
        });
        for port in 0..=u16::MAX {
            let is_debug = matches!(port, 0xE9 | 0xF4);
            let expected = PORTS
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&port))
                && (has_debug || !is_debug);
            for width in Width::ALL {
                let read = pc.port_read(port, width, 5);
                assert_eq!(read.is_some(), expected, "{port:#x}");
                assert!(read.is_none_or(|value| u64::from(value) <= width.ones()));
                let written = pc.port_write(port, width, 0x0B0B_0B0B, 6);
                assert_eq!(written.is_some(), expected, "{port:#x}");
            }
        }
    }
}

#[test]
fn a_wide_access_is_one_to_each_port_and_floats_where_nobody_is() {
    let mut pc = pc();
    set_pic(&mut pc, [0xAB, 0]);
    assert_eq!(pc.port_read(0x20, Width::Word, 0), Some(0xAB00));
    assert_eq!(pc.port_read(0x21, Width::Dword, 0), Some(0xFFFF_FFAB));
    assert_eq!(
        pc.port_write(0x3F8, Width::Word, 0x0F41, 0),
        Some(PcEffect::Output(b'A'))
    );
    assert_eq!(read(&mut pc, 0x3F9, 0), 0x0F);
    assert_eq!(pc.port_read(0xFFFF, Width::Dword, 0), None);
}

#[test]
fn power_reset_and_debug_are_told() {
    let mut pc = Pc::new(PcConfig {
        debug_exit: true,
        debug_console: true,
        ..CONFIG
    });
    for (port, width, value, effect) in [
        (0x604, Width::Word, 0x3400, PcEffect::PowerOff),
        (0x604, Width::Word, 0x2000, PcEffect::None),
        (0x605, Width::Byte, 0x34, PcEffect::PowerOff),
        (port::RESET, Width::Byte, 0x06, PcEffect::Reset),
        (port::RESET, Width::Byte, 0x02, PcEffect::None),
        (0x64, Width::Byte, 0xFE, PcEffect::Reset),
        (0x64, Width::Byte, 0xD1, PcEffect::None),
        (0x60, Width::Byte, 0xDF, PcEffect::None),
        (0x64, Width::Byte, 0xD1, PcEffect::None),
        (0x60, Width::Byte, 0xFE, PcEffect::Reset),
        (0x92, Width::Byte, 0x02, PcEffect::None),
        (0x92, Width::Byte, 0x03, PcEffect::Reset),
        (
            0x505,
            Width::Byte,
            0x01,
            PcEffect::Panicked { is_dumping: false },
        ),
        (
            0x505,
            Width::Byte,
            0x02,
            PcEffect::Panicked { is_dumping: true },
        ),
        (0x505, Width::Byte, 0x04, PcEffect::None),
        (0xE9, Width::Byte, 0x58, PcEffect::DebugOutput(b'X')),
        (0xF4, Width::Dword, 0xDEAD_BEEF, PcEffect::Exit(0xDEAD_BEEF)),
        (0xF4, Width::Byte, 0x1FF, PcEffect::Exit(0xFF)),
        (0x80, Width::Byte, 0x42, PcEffect::None),
    ] {
        assert_eq!(
            pc.port_write(port, width, value, 0),
            Some(effect),
            "{port:#x}"
        );
    }
    assert_eq!(
        (read(&mut pc, 0xE9, 0), read(&mut pc, 0x64, 0)),
        (0xE9, 0x14)
    );
    assert_eq!((read(&mut pc, 0x505, 0), read(&mut pc, 0x92, 0)), (3, 2));
    assert_eq!(read(&mut pc, 0x80, 0), 0x42);
}

#[test]
fn the_timer_ticks_at_the_pic_and_at_pin_2() {
    let mut pc = pc();
    set_pic(&mut pc, [0xFE, 0xFF]);
    assert_eq!(pc.next_deadline(), None, "nothing runs");
    // 100 a second.
    set(&mut pc, 0x43, 0x34);
    for byte in 11_932_u16.to_le_bytes() {
        set(&mut pc, 0x40, byte);
    }
    let mut ticks = 0;
    while let Some(at) = pc.next_deadline().filter(|at| *at <= 1000 + 10 * SECOND) {
        pc.advance(at - 1);
        assert!(!pc.is_pic_asserting());
        pc.advance(at);
        assert!(pc.is_pic_asserting());
        assert_eq!(pc.next_deadline(), None, "it is known already");
        assert_eq!(pc.acknowledge_pic(), 0x20);
        set(&mut pc, 0x20, 0x20);
        ticks += 1;
    }
    assert_eq!(ticks, 10 * 1_193_182 / 11_932, "without drift");
    set(&mut pc, 0x21, 0xFF);
    assert_eq!((pc.next_deadline(), pc.has_messages()), (None, false));
    let now = 1000 + 20 * SECOND;
    set_pin(&mut pc, 2, 0x30, now);
    assert_eq!(vectors(&mut pc), [], "what came behind the mask is lost");
    let at = pc.next_deadline().expect("somebody listens");
    assert!(at > now && at < now + SECOND / 50);
    pc.advance(at + SECOND);
    assert_eq!(vectors(&mut pc), [0x30], "a hundred are one");
}

#[test]
fn a_guest_cannot_ask_for_more_interrupts_than_the_least_period_allows() {
    let mut pc = pc();
    set_pic(&mut pc, [0, 0]);
    set_pin(&mut pc, 2, 0x30, 0);
    set_pin(&mut pc, 8, 0x38, 0);
    for (index, value) in [(0x0A, 0x23), (0x0B, 0x42)] {
        set(&mut pc, 0x70, index);
        set(&mut pc, 0x71, value);
    }
    set(&mut pc, 0x43, 0x34);
    for byte in [2, 0] {
        set(&mut pc, 0x40, byte);
    }
    let (mut now, mut steps) = (0, 0_u64);
    while let Some(at) = pc.next_deadline().filter(|at| *at <= SECOND / 10) {
        assert!(at > now, "time goes on");
        now = at;
        pc.advance(now);
        assert_eq!(
            pc.port_write(0x70, Width::Byte, 0x0C, now),
            Some(PcEffect::None)
        );
        let _ = read(&mut pc, 0x71, now);
        let _ = pc.acknowledge_pic();
        set(&mut pc, 0x20, 0x20);
        set(&mut pc, 0xA0, 0x20);
        assert!(messages(&mut pc).len() <= 2);
        steps += 1;
    }
    assert!(
        steps > 1000 && steps <= 2 * (SECOND / 10) / CONFIG.least_period_ticks + 2,
        "{steps}"
    );
}

#[test]
fn sci_is_a_level_until_its_cause_is_cleared() {
    let mut pc = pc();
    set_pin(&mut pc, 9, 0x8039, 0);
    assert_eq!(
        pc.port_write(0x602, Width::Word, 0x0100, 0),
        Some(PcEffect::None)
    );
    assert_eq!(vectors(&mut pc), []);
    pc.press_power_button(0);
    let message = BusMessage {
        delivery: Delivery::Fixed { vector: 0x39 },
        recipients: Recipients::Physical { id: 0 },
        trigger: Trigger::Level,
    };
    assert_eq!(messages(&mut pc), [message]);
    pc.end_of_interrupt(0x39);
    assert_eq!(vectors(&mut pc), [0x39], "again");
    assert_eq!(
        pc.port_write(0x600, Width::Word, 0x0100, 0),
        Some(PcEffect::None)
    );
    pc.end_of_interrupt(0x39);
    assert_eq!(vectors(&mut pc), []);
}

#[test]
fn the_serial_port_interrupts_by_irq_4() {
    let mut pc = pc();
    set_pic(&mut pc, [0xEF, 0xFF]);
    set_pin(&mut pc, 4, 0x34, 0);
    set(&mut pc, 0x3FC, 0x0B);
    set(&mut pc, 0x3F9, 1);
    assert_eq!(pc.input_room(), 1);
    pc.receive(b'x');
    assert!(pc.is_pic_asserting());
    assert_eq!(pc.acknowledge_pic(), 0x24);
    assert_eq!(
        (vectors(&mut pc), read(&mut pc, 0x3F8, 0)),
        (vec![0x34], b'x')
    );
}

/// A driver that knows why it is interrupted and does not read IIR: each byte that it writes brings the next edge.
#[test]
fn each_byte_that_is_written_brings_the_next_edge() {
    let mut pc = pc();
    set_pic(&mut pc, [0xEF, 0xFF]);
    set_pin(&mut pc, 4, 0x34, 0);
    set(&mut pc, 0x3FC, 0x0B);
    set(&mut pc, 0x3F9, 2);
    for byte in *b"0123" {
        assert_eq!(vectors(&mut pc), [0x34]);
        assert_eq!(pc.acknowledge_pic(), 0x24);
        let sent = pc.port_write(0x3F8, Width::Byte, byte.into(), 0);
        assert_eq!(sent, Some(PcEffect::Output(byte)));
        set(&mut pc, 0x20, 0x20);
    }
    set(&mut pc, 0x3F9, 0);
    assert_eq!(vectors(&mut pc), [0x34], "of the last byte");
    assert_eq!(vectors(&mut pc), []);
}

/// A level of the serial port's that no APIC takes while bytes are sent by polling, and one does then.
#[test]
fn a_level_of_the_serial_port_waits_until_an_apic_takes_it() {
    let mut pc = pc();
    set_pin(&mut pc, 4, 0x1_0000, 0);
    set(&mut pc, 0x3FC, 0x0B);
    set_pin(&mut pc, 4, 0x8059, 0);
    set(&mut pc, 0x3F9, 2);
    for byte in *b"no" {
        pc.deliver(|_| Acceptance::Refused);
        assert!(pc.has_messages());
        assert_eq!(read(&mut pc, 0x3FD, 0) & 0x20, 0x20);
        let _ = pc.port_write(0x3F8, Width::Byte, byte.into(), 0);
    }
    pc.deliver(|_| Acceptance::Refused);
    assert_eq!(vectors(&mut pc), [0x59]);
    assert_eq!(vectors(&mut pc), []);
}

#[test]
fn each_of_the_keyboards_bytes_is_an_edge_of_irq_1() {
    let mut pc = pc();
    set_pic(&mut pc, [0xFD, 0xFF]);
    set_pin(&mut pc, 1, 0x31, 0);
    set(&mut pc, 0x60, 0xFF);
    for byte in [0xFA, 0xAA] {
        assert_eq!((vectors(&mut pc), pc.acknowledge_pic()), (vec![0x31], 0x21));
        assert_eq!(read(&mut pc, 0x60, 0), byte);
        set(&mut pc, 0x20, 0x20);
    }
    assert_eq!((vectors(&mut pc), pc.is_pic_asserting()), (vec![], false));
}

/// Kernels look where the cursor is, and wait for the retrace.
#[test]
fn the_cursor_is_on_the_screen_and_the_picture_ends() {
    let mut pc = pc();
    let register = |pc: &mut Pc, index: u8| {
        set(pc, 0x3D4, index);
        read(pc, 0x3D5, 0)
    };
    assert_eq!((register(&mut pc, 14), register(&mut pc, 15)), (0, 0));
    for (index, value) in [(14, 0x07), (15, 0xCF)] {
        set(&mut pc, 0x3D4, index);
        set(&mut pc, 0x3D5, value);
    }
    assert_eq!((register(&mut pc, 14), register(&mut pc, 15)), (0x07, 0xCF));
    assert_eq!(register(&mut pc, 25), 0xFF);
    let retraces = (0..960)
        .filter(|part| read(&mut pc, 0x3DA, 1000 + (part * 2 + 1) * SECOND / 1920) & 8 != 0)
        .count();
    assert_eq!(retraces, 60);
}

/// What wakes a guest that sleeps: all it listens to is SCI.
#[test]
fn the_clocks_alarm_raises_sci_though_nobody_hears_irq_8() {
    let mut pc = pc();
    set_pin(&mut pc, 9, 0x8039, 0);
    let set_clock = |pc: &mut Pc, index: u8, value: u8| {
        set(pc, 0x70, index);
        set(pc, 0x71, value);
    };
    // The clock begins at 5 seconds.
    for (index, value) in [(5, 0xFF), (3, 0xFF), (1, 0x08), (0x0B, 0x22)] {
        set_clock(&mut pc, index, value);
    }
    assert_eq!(pc.next_deadline(), None, "SCI is not asked for");
    assert_eq!(
        pc.port_write(0x602, Width::Word, 1 << 10, 0),
        Some(PcEffect::None)
    );
    let at = pc.next_deadline().expect("an alarm is heard");
    pc.advance(at - 1);
    assert_eq!(vectors(&mut pc), []);
    pc.advance(at);
    assert_eq!((at - 1000) / SECOND, 3);
    assert_eq!(vectors(&mut pc), [0x39]);
    assert_eq!(pc.port_read(0x600, Width::Word, at), Some(1 << 10));
    // One alarm, one event: told, it does not come again with the same one.
    assert_eq!(
        pc.port_write(0x600, Width::Word, 1 << 10, at),
        Some(PcEffect::None)
    );
    pc.end_of_interrupt(0x39);
    pc.advance(at + SECOND / 2);
    assert_eq!(vectors(&mut pc), []);
    // An alarm without its interrupt is none.
    set_clock(&mut pc, 0x0B, 0x02);
    pc.advance(at + 120 * SECOND);
    assert_eq!(pc.port_read(0x600, Width::Word, at + 120 * SECOND), Some(0));
}

#[test]
fn the_clock_shows_the_time_in_tsc_ticks() {
    let mut pc = pc();
    set(&mut pc, 0x70, 0);
    assert_eq!(read(&mut pc, 0x71, 1000), 0x05);
    assert_eq!(read(&mut pc, 0x71, 1000 + 30 * SECOND), 0x35);
    let timer = |pc: &mut Pc, now| pc.port_read(0x608, Width::Dword, now);
    assert_eq!(timer(&mut pc, 1000 + SECOND), Some(3_579_545));
}

#[test]
fn a_reset_leaves_the_time_and_the_ram_of_the_clock() {
    let mut pc = pc();
    set_pic(&mut pc, [0, 0]);
    // The RAM, all interrupts of the clock, the timer's event.
    for (index, value) in [(0x0F, 0x0A), (0x0B, 0x72)] {
        set(&mut pc, 0x70, index);
        set(&mut pc, 0x71, value);
    }
    let now = 1000 + 700 * SECOND;
    assert_eq!(
        pc.port_write(0x602, Width::Word, 1, now),
        Some(PcEffect::None)
    );
    pc.advance(now);
    assert!(pc.is_pic_asserting());
    pc.reset(now);
    assert!(!pc.is_pic_asserting() && !pc.has_messages());
    assert_eq!(pc.next_deadline(), None);
    for (index, value) in [
        (0x0F, 0x0A),
        (0x0B, 0x02),
        (0x0C, 0),
        (0x00, 0x45),
        (0x02, 0x15),
    ] {
        set(&mut pc, 0x70, index);
        assert_eq!(read(&mut pc, 0x71, now), value, "{index:#x}");
    }
    let timer = |pc: &mut Pc| pc.port_read(0x608, Width::Dword, now).expect("is there");
    assert_eq!(u64::from(timer(&mut pc)), 700 * 3_579_545);
    assert_eq!(
        pc.port_read(0x600, Width::Dword, now),
        Some(0),
        "no event is left"
    );
}

proptest! {
    /// Any accesses at any times, with a TSC that may step back a little: widths hold, messages stay few, and time moves deadlines on.
    #[test]
    fn any_accesses_are_without_harm(
        steps in proptest::collection::vec((0..7_u8, 0..19_usize, 0..4_u16, 0..3_usize, any::<u32>(), 0..1_u64 << 34), 0..150),
    ) {
        let mut pc = Pc::new(PcConfig { debug_exit: true, debug_console: true, ..CONFIG });
        let mut now = 0_u64;
        for (step, range, offset, width, value, wait) in steps {
            let (port, width) = (PORTS[range].0 + offset, Width::ALL[width]);
            match step {
                0 => now += wait,
                1 | 2 => drop(pc.port_write(port, width, value, now.saturating_sub(value as u64 & 0xFF))),
                3 => {
                    let read = pc.port_read(port, width, now);
                    prop_assert!(read.is_none_or(|read| u64::from(read) <= width.ones()));
                }
                4 => {
                    pc.memory_write(0, Width::Dword, u64::from(value & 0x3F), now);
                    pc.memory_write(0x10, Width::Dword, u64::from(value >> 8), now);
                }
                5 => drop(pc.acknowledge_pic()),
                _ => pc.end_of_interrupt(value as u8),
            }
            pc.advance(now);
            prop_assert!(pc.next_deadline().is_none_or(|at| at > now));
            prop_assert!(messages(&mut pc).len() <= 64);
        }
    }
}
