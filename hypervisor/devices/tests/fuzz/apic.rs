//! A local APIC: registers in either mode, messages, time.

use nagaya_devices::apic::{ApicConfig, LocalApic, Trigger};
use nagaya_devices::pci::Width;

use crate::{Input, Seen};

fn target(input: &mut Input<'_>, seen: &mut Seen) {
    let mut apic = LocalApic::new(ApicConfig {
        id: 1,
        is_bootstrap: true,
        physical_bits: 39,
        ticks_per_count: 2,
        least_period_ticks: 1000,
    });
    let mut now = 0_u64;
    while !input.is_empty() {
        match input.byte() % 9 {
            0 => {
                let value = apic.memory_read(input.number::<2>() as u16 & 0xFFF, Width::Dword, now);
                assert!(value <= u64::from(u32::MAX));
            }
            1 => {
                let offset = u16::from(input.byte()) << 4;
                let value = input.number::<4>();
                seen.note(&apic.memory_write(offset, Width::Dword, value, now));
            }
            2 => seen.note(&apic.msr_read(0x800 + u32::from(input.byte()), now).is_ok()),
            3 => {
                let msr = 0x800 + u32::from(input.byte());
                seen.note(&apic.msr_write(msr, input.number::<4>(), now));
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
                if let Some(vector) = vector {
                    assert_eq!(apic.highest_in_service(), Some(vector));
                }
            }
            7 => seen.note(&apic.set_tsc_deadline(now.saturating_add(input.number::<2>()), now)),
            _ => {
                now = now.saturating_add(input.number::<3>());
                seen.note(&apic.advance(now));
                assert!(apic.timer_deadline().is_none_or(|deadline| deadline > now));
            }
        }
        if let Some(vector) = apic.pending() {
            assert!(vector >> 4 > apic.processor_priority() >> 4);
            assert_eq!(apic.highest_requested(), Some(vector));
        }
    }
}

#[test]
fn no_input_breaks_an_apic() {
    crate::run("apic", target);
}
