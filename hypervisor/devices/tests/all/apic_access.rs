//! The local APIC's registers, against the manual's tables.

use nagaya_devices::apic::{ApicEffect, GeneralProtection, LocalApic, Mode};
use nagaya_devices::pci::Width;
use proptest::prelude::*;

use crate::apic::{BASE_X2APIC, enabled, new, read, write, x2apic};

/// What a register of x2APIC mode allows: "Local APIC Register Address Map Supported by x2APIC".
#[derive(Clone, Copy, PartialEq)]
enum Access {
    None,
    ReadOnly,
    WriteOnly,
    Both,
}

fn access(msr: u32) -> Access {
    match msr {
        0x802 | 0x803 | 0x80A | 0x80D | 0x810..=0x827 | 0x839 => Access::ReadOnly,
        0x80B | 0x83F => Access::WriteOnly,
        0x808 | 0x80F | 0x828 | 0x830 | 0x832..=0x838 | 0x83E => Access::Both,
        _ => Access::None,
    }
}

#[test]
fn after_reset_the_registers_are_as_in_the_manual() {
    // "Local APIC State After Power-Up or Reset".
    let mut apic = new(5);
    for (offset, expected) in [
        (0x020, 5 << 24),
        (0x030, 0x0005_0014),
        (0x080, 0),
        (0x0A0, 0),
        (0x0D0, 0),
        (0x0E0, 0xFFFF_FFFF),
        (0x0F0, 0xFF),
        (0x280, 0),
        (0x300, 0),
        (0x310, 0),
        (0x320, 0x1_0000),
        (0x330, 0x1_0000),
        (0x340, 0x1_0000),
        (0x350, 0x1_0000),
        (0x360, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 0),
        (0x390, 0),
        (0x3E0, 0),
    ] {
        assert_eq!(read(&mut apic, offset), expected, "{offset:#x}");
    }
    for offset in (0x100..0x280).step_by(16) {
        assert_eq!(read(&mut apic, offset), 0, "{offset:#x}");
    }
}

#[test]
fn init_resets_all_but_id_mode_and_base() {
    let mut apic = x2apic(5);
    let _ = apic.msr_write(0x808, 0x40, 0);
    let _ = apic.accept(0x80, nagaya_devices::apic::Trigger::Edge);
    apic.init();
    assert_eq!((apic.mode(), apic.id()), (Mode::X2Apic, 5));
    assert_eq!(apic.msr_read(0x808, 0), Ok(0));
    assert_eq!(apic.msr_read(0x80F, 0), Ok(0xFF));
    assert_eq!(apic.highest_requested(), None);
}

#[test]
fn registers_keep_the_bits_that_exist() {
    for (offset, expected) in [
        (0x080, 0x0000_00FF),
        (0x0D0, 0xFF00_0000),
        (0x0F0, 0x0000_01FF),
        (0x310, 0xFF00_0000),
        (0x320, 0x0007_00FF),
        (0x330, 0x0001_07FF),
        (0x340, 0x0001_07FF),
        (0x350, 0x0001_A7FF),
        (0x360, 0x0001_A7FF),
        (0x370, 0x0001_00FF),
        (0x380, 0xFFFF_FFFF),
        (0x3E0, 0x0000_000B),
    ] {
        let mut apic = enabled(0);
        let _ = write(&mut apic, offset, u32::MAX);
        assert_eq!(read(&mut apic, offset), expected, "{offset:#x}");
    }
    let mut apic = enabled(0);
    let _ = write(&mut apic, 0xE0, 0);
    assert_eq!(read(&mut apic, 0xE0), 0x0FFF_FFFF);
    let _ = write(&mut apic, 0x300, 0xFFFF_FFFF);
    assert_eq!(read(&mut apic, 0x300), 0x000C_CFFF);
}

#[test]
fn entries_stay_masked_while_it_is_disabled_by_software() {
    let mut apic = enabled(0);
    let _ = write(&mut apic, 0x350, 0x50);
    let _ = write(&mut apic, 0xF0, 0xFF);
    assert_eq!(read(&mut apic, 0x350), 0x1_0050);
    let _ = write(&mut apic, 0x350, 0x51);
    assert_eq!(read(&mut apic, 0x350), 0x1_0051);
    let _ = write(&mut apic, 0xF0, 0x1FF);
    assert_eq!(read(&mut apic, 0x350), 0x1_0051, "software unmasks");
}

#[test]
fn the_modes_change_as_in_the_manuals_figure() {
    const DISABLED: u64 = 0xFEE0_0000;
    const XAPIC: u64 = 0xFEE0_0800;
    const INVALID: u64 = 0xFEE0_0400;
    let reach = |to: u64| {
        let mut apic = new(1);
        if to != INVALID {
            apic.set_base_msr(to).expect("from xAPIC all are allowed");
        }
        apic
    };
    // "Local APIC State Transitions with IA32_APIC_BASE, INIT, and Reset".
    for (from, allowed) in [
        (DISABLED, &[DISABLED, XAPIC][..]),
        (XAPIC, &[XAPIC, DISABLED, BASE_X2APIC]),
        (BASE_X2APIC, &[BASE_X2APIC, DISABLED]),
    ] {
        for to in [DISABLED, XAPIC, BASE_X2APIC, INVALID] {
            let mut apic = reach(from);
            let found = apic.set_base_msr(to);
            assert_eq!(found.is_ok(), allowed.contains(&to), "{from:#x} to {to:#x}");
            let after = if found.is_ok() { to } else { from };
            assert_eq!(apic.base_msr(), after);
        }
    }
}

#[test]
fn the_base_register_refuses_reserved_bits_and_keeps_the_bootstrap_flag() {
    let mut apic = new(0);
    assert_eq!(apic.base_msr(), 0xFEE0_0900);
    for bit in (0..8).chain([9]).chain(46..64) {
        let value = 0xFEE0_0900 | 1 << bit;
        assert_eq!(apic.set_base_msr(value), Err(GeneralProtection), "{bit}");
    }
    assert_eq!(apic.set_base_msr(0x1234_5800), Ok(()));
    assert_eq!(apic.base_msr(), 0x1234_5900);
    assert_eq!(apic.base(), 0x1234_5000);
}

#[test]
fn disabling_resets_and_ends_access() {
    let mut apic = enabled(0);
    let _ = write(&mut apic, 0x80, 0x30);
    apic.set_base_msr(0xFEE0_0000).expect("is allowed");
    assert_eq!(read(&mut apic, 0x80), u32::MAX, "floats");
    assert_eq!(apic.msr_read(0x808, 0), Err(GeneralProtection));
    apic.set_base_msr(0xFEE0_0800).expect("is allowed");
    assert_eq!(read(&mut apic, 0x80), 0);
    assert_eq!(read(&mut apic, 0xF0), 0xFF);
}

#[test]
fn memory_floats_in_x2apic_mode_and_msrs_fault_outside_it() {
    let mut apic = x2apic(0);
    assert_eq!(read(&mut apic, 0x30), u32::MAX);
    let _ = write(&mut apic, 0x80, 0x40);
    assert_eq!(apic.msr_read(0x808, 0), Ok(0));
    for msr in 0x800..=0x8FF {
        assert_eq!(enabled(0).msr_read(msr, 0), Err(GeneralProtection));
        assert_eq!(enabled(0).msr_write(msr, 0, 0), Err(GeneralProtection));
    }
}

#[test]
fn every_msr_of_the_range_reads_and_writes_or_faults_as_the_table_says() {
    for msr in (0x7F0..=0x910).chain([0, 0x1B, u32::MAX]) {
        let expected = access(msr);
        let reads = x2apic(0).msr_read(msr, 0).is_ok();
        assert_eq!(
            reads,
            matches!(expected, Access::ReadOnly | Access::Both),
            "{msr:#x}"
        );
        let writes = x2apic(0).msr_write(msr, 0, 0).is_ok();
        assert_eq!(
            writes,
            matches!(expected, Access::WriteOnly | Access::Both),
            "{msr:#x}"
        );
    }
}

#[test]
fn every_reserved_bit_of_every_msr_faults_and_changes_nothing() {
    for msr in 0x800..=0x8FF {
        let allowed: u64 = match msr {
            0x808 | 0x83F => 0xFF,
            0x80B | 0x828 => 0,
            0x80F => 0x1FF,
            0x830 => 0xFFFF_FFFF_000C_CFFF,
            // With the read-only bits 12 and 14.
            0x832 => 0x0007_50FF,
            0x833 | 0x834 => 0x0001_57FF,
            0x835 | 0x836 => 0x0001_F7FF,
            0x837 => 0x0001_50FF,
            0x838 => 0xFFFF_FFFF,
            0x83E => 0xB,
            _ => continue,
        };
        for bit in 0..64 {
            let mut apic = x2apic(0);
            let before = apic.msr_read(msr, 0);
            let result = apic.msr_write(msr, 1 << bit, 0);
            assert_eq!(
                result.is_ok(),
                allowed & 1 << bit != 0,
                "{msr:#x} bit {bit}"
            );
            if result.is_err() {
                assert_eq!(apic.msr_read(msr, 0), before);
            }
        }
    }
}

#[test]
fn the_ids_of_x2apic_mode_have_32_bits_and_the_logical_one_follows() {
    for (id, logical) in [
        (0, 1),
        (5, 0x20),
        (0x1F, 0x0001_8000),
        (0x12345, 0x1234_0020),
    ] {
        let mut apic = x2apic(id);
        assert_eq!(apic.msr_read(0x802, 0), Ok(id.into()));
        assert_eq!(apic.msr_read(0x80D, 0), Ok(logical));
    }
}

#[test]
fn narrow_reads_give_a_part_and_only_whole_registers_are_written() {
    let mut apic = new(0);
    let part = |apic: &mut LocalApic, offset, width| apic.memory_read(offset, width, 0);
    assert_eq!(part(&mut apic, 0x32, Width::Byte), 5);
    assert_eq!(part(&mut apic, 0x32, Width::Word), 5);
    assert_eq!(part(&mut apic, 0x33, Width::Word), 0, "across the end");
    assert_eq!(part(&mut apic, 0x34, Width::Dword), 0);
    assert_eq!(part(&mut apic, 0x30, Width::Qword), 0);
    for (offset, width) in [
        (0x80, Width::Byte),
        (0x80, Width::Word),
        (0x80, Width::Qword),
        (0x81, Width::Dword),
        (0x84, Width::Dword),
    ] {
        let _ = apic.memory_write(offset, width, 0x40, 0);
        assert_eq!(read(&mut apic, 0x80), 0);
    }
}

#[test]
fn every_offset_takes_every_width_and_init_brings_it_back() {
    for make in [new as fn(u32) -> LocalApic, enabled, x2apic] {
        let mut apic = make(0);
        for offset in (0..0x1010).chain([u16::MAX]) {
            for width in Width::ALL {
                assert!(apic.memory_read(offset, width, 0) <= width.ones());
                for value in [0, u64::MAX, 0x5555_5555_5555_5555] {
                    let _ = apic.memory_write(offset, width, value & width.ones(), 0);
                }
            }
        }
        apic.init();
        let mut fresh = make(0);
        fresh.init();
        for offset in (0..0x400).step_by(16) {
            assert_eq!(read(&mut apic, offset), read(&mut fresh, offset));
        }
    }
}

proptest! {
    /// Any MSRs and any times: no panic, and what is pending is above the processor priority.
    #[test]
    fn any_sequence_of_msrs_is_without_harm(
        steps in proptest::collection::vec((0x800..0x840_u32, any::<u64>(), any::<u64>(), any::<bool>()), 0..100),
    ) {
        let mut apic = x2apic(1);
        for (msr, value, now, narrow) in steps {
            let value = if narrow { value & 0xFF } else { value };
            let _ = apic.msr_read(msr, now);
            match apic.msr_write(msr, value, now) {
                Ok(ApicEffect::Send(_)) => prop_assert_eq!(msr, 0x830),
                Ok(ApicEffect::EndOfInterrupt { .. }) => prop_assert_eq!(msr, 0x80B),
                Ok(ApicEffect::None) | Err(GeneralProtection) => {}
            }
            let _ = apic.set_tsc_deadline(value, now);
            if let Some(vector) = apic.pending() {
                prop_assert!(vector >> 4 > apic.processor_priority() >> 4);
                prop_assert_eq!(apic.acknowledge(), Some(vector));
            }
        }
    }
}
