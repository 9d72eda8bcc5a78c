//! A local APIC: registers in either mode, messages, time.

use nagaya_devices::apic::{ApicConfig, LocalApic, Trigger};
use nagaya_devices::pci::Width;
use nagaya_devices::state::TscShift;

use crate::{Driven, Input, Seen};

struct Machine {
    apic: LocalApic,
    now: u64,
}

impl Driven for Machine {
    fn new(_: &mut Input<'_>) -> Machine {
        Machine {
            apic: LocalApic::new(ApicConfig {
                id: 1,
                is_bootstrap: true,
                physical_bits: 39,
                ticks_per_count: 2,
                least_period_ticks: 1000,
            }),
            now: 1 << 40,
        }
    }

    fn step(&mut self, input: &mut Input<'_>, seen: &mut Seen) {
        let Machine { apic, now } = self;
        match input.byte() % 9 {
            0 => {
                let offset = input.number::<2>() as u16 & 0xFFF;
                let value = apic.memory_read(offset, Width::Dword, *now);
                assert!(value <= u64::from(u32::MAX));
                seen.tell(&value);
            }
            1 => {
                let offset = u16::from(input.byte()) << 4;
                let value = input.number::<4>();
                seen.note(&apic.memory_write(offset, Width::Dword, value, *now));
            }
            2 => {
                let read = apic.msr_read(0x800 + u32::from(input.byte()), *now);
                seen.note(&read.is_ok());
                seen.tell(&read);
            }
            3 => {
                let msr = 0x800 + u32::from(input.byte());
                seen.note(&apic.msr_write(msr, input.number::<4>(), *now));
            }
            4 => {
                let mode = u64::from(input.byte() & 3) << 10;
                let moved = apic.set_base_msr(0xFEE0_0000 | 1 << 8 | mode);
                seen.note(&(moved, apic.mode()));
            }
            5 => seen.note(&apic.accept(input.byte(), Trigger::Edge)),
            6 => {
                let expected = apic.pending();
                let vector = apic.acknowledge();
                assert_eq!(vector, expected);
                seen.tell(&vector);
                if let Some(vector) = vector {
                    assert_eq!(apic.highest_in_service(), Some(vector));
                }
            }
            7 => seen.note(&apic.set_tsc_deadline(now.saturating_add(input.number::<2>()), *now)),
            _ => {
                *now = now.saturating_add(input.number::<3>());
                seen.note(&apic.advance(*now));
                assert!(apic.timer_deadline().is_none_or(|deadline| deadline > *now));
            }
        }
        if let Some(vector) = apic.pending() {
            assert!(vector >> 4 > apic.processor_priority() >> 4);
            assert_eq!(apic.highest_requested(), Some(vector));
        }
        let deadline = apic.timer_deadline();
        seen.tell(&(apic.pending(), deadline.map(|at| at.wrapping_sub(*now))));
    }

    fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.apic.save()).expect("is written")
    }

    fn restore_from(&mut self, bytes: &[u8]) -> bool {
        let restored = crate::from_bytes(bytes, LocalApic::restore);
        restored.map(|restored| self.apic = restored).is_some()
    }

    fn save_and_restore(&mut self, by: TscShift) {
        let mut state = self.apic.save();
        state.shift(by);
        self.now = by.moved(self.now);
        self.apic = crate::through_bytes(&state, LocalApic::restore, LocalApic::save);
    }
}

#[test]
fn no_input_breaks_an_apic() {
    crate::run("apic", crate::drive::<Machine>);
}

#[test]
fn an_apic_that_was_saved_and_restored_answers_as_one_that_was_not() {
    crate::run("apic", crate::drive_beside_twin::<Machine>);
}

#[test]
fn no_damaged_state_breaks_an_apic() {
    crate::run("apic", crate::drive_damaged::<Machine>);
}
