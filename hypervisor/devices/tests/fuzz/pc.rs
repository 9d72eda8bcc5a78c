//! The devices of a PC: ports at any width, the I/O APIC, time.

use nagaya_devices::apic::Acceptance;
use nagaya_devices::pc::{Pc, PcConfig};
use nagaya_devices::pci::Width;
use nagaya_devices::state::TscShift;

use crate::{Driven, Input, Seen};

/// A port of each part; the byte that chooses one adds up to 3.
const FIRST: [u16; 16] = [
    0x20, 0xA0, 0x4D0, 0x40, 0x60, 0x64, 0x70, 0x80, 0xE9, 0xF4, 0x3F8, 0x3FC, 0x600, 0x604, 0x608,
    0xCF9,
];
/// Interrupts of all sources together in a stretch of time that the least period allows, and some that accesses made.
const LEAST_PERIOD: u64 = 1000;
/// The TSC at which it is made.
const START: i64 = 1 << 40;

struct Machine {
    pc: Pc,
    now: u64,
}

impl Driven for Machine {
    fn new(_: &mut Input<'_>) -> Machine {
        Machine {
            pc: Pc::new(PcConfig {
                tsc_khz: 1_000,
                start_tsc: START,
                start_seconds: 951_782_400,
                memory_bytes: 64 << 20,
                memory_above_bytes: 0,
                least_period_ticks: LEAST_PERIOD,
                debug_exit: true,
                debug_console: true,
            }),
            now: START.unsigned_abs(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>, seen: &mut Seen) {
        let Machine { pc, now } = self;
        let choice = input.byte();
        let place = input.byte();
        let port = FIRST[usize::from(place >> 4)] + u16::from(place & 3);
        let width = Width::ALL[usize::from(place >> 2 & 3)];
        match choice % 8 {
            0 | 1 => {
                let value = input.number::<1>() as u32 * 0x0101_0101;
                seen.note(&pc.port_write(port, width, value, *now));
            }
            2 => {
                let read = pc.port_read(port, width, *now);
                assert!(read.is_none_or(|read| u64::from(read) <= width.ones()));
                seen.tell(&read);
            }
            3 => {
                pc.memory_write(0, Width::Dword, u64::from(place & 0x3F), *now);
                pc.memory_write(0x10, Width::Dword, input.number::<4>(), *now);
            }
            4 => seen.note(&(pc.is_pic_asserting(), pc.acknowledge_pic() & 7)),
            5 => {
                pc.receive(place);
                pc.press_power_button(*now);
                pc.end_of_interrupt(place);
            }
            6 => *now = now.saturating_add(input.number::<3>() << (place & 31)),
            _ => follow_deadlines(pc, now),
        }
        pc.advance(*now);
        assert!(pc.next_deadline().is_none_or(|at| at > *now));
        let messages = deliver(pc, choice & 0x80 == 0);
        assert!(messages <= 64);
        seen.note(&messages);
        let deadline = pc.next_deadline();
        seen.tell(&(
            pc.is_pic_asserting(),
            deadline.map(|at| at.wrapping_sub(*now)),
        ));
    }

    fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.pc.save()).expect("is written")
    }

    fn restore_from(&mut self, bytes: &[u8]) -> bool {
        let restored = crate::from_bytes(bytes, Pc::restore);
        restored.map(|restored| self.pc = restored).is_some()
    }

    fn save_and_restore(&mut self, by: TscShift) {
        let mut state = self.pc.save();
        state.shift(by);
        self.now = by.moved(self.now);
        self.pc = crate::through_bytes(&state, Pc::restore, Pc::save);
    }
}

/// Has the messages delivered to local APICs that take them or not; how many there were.
fn deliver(pc: &mut Pc, take: bool) -> usize {
    let mut count = 0;
    pc.deliver(|_| {
        count += 1;
        if take {
            Acceptance::Accepted
        } else {
            Acceptance::Refused
        }
    });
    count
}

/// The time of some deadlines: each is after the last, and two sources with a least period do not come more often than that.
fn follow_deadlines(pc: &mut Pc, now: &mut u64) {
    let start = *now;
    let mut count = 0;
    while let Some(at) = pc
        .next_deadline()
        .filter(|at| *at < start + 10 * LEAST_PERIOD)
    {
        assert!(at > *now);
        *now = at;
        pc.advance(at);
        deliver(pc, true);
        count += 1;
        assert!(count <= 30, "{count} deadlines in ten periods");
    }
}

#[test]
fn no_input_breaks_a_pc() {
    crate::run("pc", crate::drive::<Machine>);
}

#[test]
fn a_pc_that_was_saved_and_restored_answers_as_one_that_was_not() {
    crate::run("pc", crate::drive_beside_twin::<Machine>);
}

#[test]
fn no_damaged_state_breaks_a_pc() {
    crate::run("pc", crate::drive_damaged::<Machine>);
}
