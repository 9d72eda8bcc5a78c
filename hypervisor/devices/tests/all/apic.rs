//! The local APIC: priorities, messages, the timer.

use nagaya_devices::apic::{
    ApicConfig, ApicEffect, BusMessage, Delivery, LocalApic, LocalSource, Recipients, Route,
    Signal, Trigger, lowest_priority,
};
use nagaya_devices::pci::{Message, Width};
use proptest::prelude::*;

pub(crate) const BASE_X2APIC: u64 = 0xFEE0_0C00;

/// TSC ticks of a count of the timer.
const COUNT: u64 = 10;

pub(crate) fn new(id: u32) -> LocalApic {
    LocalApic::new(ApicConfig {
        id,
        is_bootstrap: id == 0,
        physical_bits: 46,
        ticks_per_count: COUNT as u32,
        least_period_ticks: 100,
    })
}

pub(crate) fn write(apic: &mut LocalApic, offset: u16, value: u32) -> ApicEffect {
    apic.memory_write(offset, Width::Dword, value.into(), 0)
}

pub(crate) fn read(apic: &mut LocalApic, offset: u16) -> u32 {
    apic.memory_read(offset, Width::Dword, 0) as u32
}

fn set(apic: &mut LocalApic, offset: u16, value: u32) {
    assert_eq!(write(apic, offset, value), ApicEffect::None);
}

/// Enabled by software, in xAPIC mode.
pub(crate) fn enabled(id: u32) -> LocalApic {
    let mut apic = new(id);
    set(&mut apic, 0xF0, 0x1FF);
    apic
}

pub(crate) fn x2apic(id: u32) -> LocalApic {
    let mut apic = enabled(id);
    apic.set_base_msr(BASE_X2APIC).expect("is allowed");
    apic
}

#[test]
fn a_route_in_one_word_finds_the_same_recipients_as_the_apic() {
    let mut apics = [new(0), enabled(3), x2apic(0x35), new(7)];
    set(&mut apics[1], 0xD0, 0x0200_0000);
    set(&mut apics[0], 0xE0, 0x0FFF_FFFF);
    set(&mut apics[0], 0xD0, 0x1200_0000);
    apics[3].set_base_msr(0xFEE0_0000).expect("is allowed");
    for apic in &apics {
        let route = Route::from_bits(apic.route().to_bits());
        assert_eq!(route, apic.route());
        assert_eq!(route.is_software_enabled(), apic.is_software_enabled());
        for address in (0..=0x100).chain([0x3_0020, u32::MAX]) {
            for recipients in [
                Recipients::All,
                Recipients::AllBut { id: address },
                Recipients::Physical { id: address },
                Recipients::Logical { address },
            ] {
                assert_eq!(
                    route.is_recipient(&recipients),
                    apic.is_recipient(&recipients)
                );
            }
        }
    }
    let nobody = Route::from_bits(0);
    assert!(!nobody.is_recipient(&Recipients::All));
}

fn end_of_interrupt(apic: &mut LocalApic) -> ApicEffect {
    write(apic, 0xB0, 0)
}

fn ended(vector: u8) -> ApicEffect {
    ApicEffect::EndOfInterrupt {
        vector,
        trigger: Trigger::Edge,
    }
}

#[test]
fn the_highest_class_comes_first_and_is_not_interrupted_by_its_own_class() {
    let mut apic = enabled(0);
    for vector in [0x31, 0x52, 0x35] {
        assert_eq!(apic.accept(vector, Trigger::Edge), Signal::Interrupt);
    }
    assert_eq!(
        apic.accept(0x31, Trigger::Edge),
        Signal::None,
        "waits already"
    );
    assert_eq!(apic.acknowledge(), Some(0x52));
    assert_eq!(apic.pending(), None);
    let _ = apic.accept(0x5F, Trigger::Edge);
    assert_eq!(apic.pending(), None, "the same class");
    let _ = apic.accept(0x60, Trigger::Edge);
    assert_eq!(apic.acknowledge(), Some(0x60), "nested");
    assert_eq!(end_of_interrupt(&mut apic), ended(0x60));
    assert_eq!(apic.pending(), None);
    assert_eq!(end_of_interrupt(&mut apic), ended(0x52));
    for vector in [0x5F, 0x35, 0x31] {
        assert_eq!(apic.acknowledge(), Some(vector));
        assert_eq!(end_of_interrupt(&mut apic), ended(vector));
    }
    assert_eq!(
        end_of_interrupt(&mut apic),
        ApicEffect::None,
        "nothing is served"
    );
}

#[test]
fn priorities_are_as_in_the_manuals_table() {
    // TPR, vector in service, PPR: "Task and Processor Priorities".
    for (task, served, expected) in [
        (0x00, None, 0x00),
        (0x2B, None, 0x2B),
        (0x2B, Some(0x3C), 0x30),
        (0x4B, Some(0x3C), 0x4B),
        (0x3B, Some(0x3C), 0x3B),
        (0xF0, Some(0xE0), 0xF0),
    ] {
        let mut apic = enabled(0);
        if let Some(vector) = served {
            let _ = apic.accept(vector, Trigger::Edge);
            assert_eq!(apic.acknowledge(), Some(vector));
        }
        set(&mut apic, 0x80, task);
        assert_eq!(u32::from(apic.processor_priority()), expected);
        assert_eq!(read(&mut apic, 0xA0), expected);
    }
}

#[test]
fn a_raised_task_priority_holds_back_its_class_and_below() {
    let mut apic = enabled(0);
    let _ = apic.accept(0x55, Trigger::Edge);
    for (cr8, pending) in [(4, true), (5, false), (15, false), (0, true)] {
        apic.set_cr8(cr8);
        assert_eq!(apic.cr8(), cr8);
        assert_eq!(read(&mut apic, 0x80), u32::from(cr8) << 4);
        assert_eq!(apic.pending().is_some(), pending, "CR8 = {cr8}");
    }
    set(&mut apic, 0x80, 0x5F);
    assert_eq!((apic.cr8(), apic.pending()), (5, None));
}

#[test]
fn an_interrupt_that_was_not_injected_can_be_taken_back() {
    let mut apic = enabled(0);
    let _ = apic.accept(0x40, Trigger::Edge);
    assert_eq!(apic.acknowledge(), Some(0x40));
    apic.undo_acknowledge(0x40);
    assert_eq!(
        (apic.pending(), apic.highest_in_service()),
        (Some(0x40), None)
    );
    apic.undo_acknowledge(0x41);
    assert_eq!(apic.highest_requested(), Some(0x40));
}

#[test]
fn the_end_of_a_level_triggered_interrupt_says_so() {
    let mut apic = enabled(0);
    let _ = apic.accept(0x40, Trigger::Level);
    assert_eq!(read(&mut apic, 0x1A0), 1, "TMR");
    assert_eq!(apic.acknowledge(), Some(0x40));
    let trigger = Trigger::Level;
    let vector = 0x40;
    assert_eq!(
        end_of_interrupt(&mut apic),
        ApicEffect::EndOfInterrupt { vector, trigger }
    );
    let _ = apic.accept(0x40, Trigger::Edge);
    assert_eq!(read(&mut apic, 0x1A0), 0);
}

#[test]
fn illegal_vectors_are_noted_and_make_the_error_interrupt() {
    let mut apic = enabled(0);
    set(&mut apic, 0x370, 0xFE);
    assert_eq!(apic.accept(15, Trigger::Edge), Signal::None);
    assert_eq!(read(&mut apic, 0x280), 0, "not before a write");
    assert_eq!(apic.acknowledge(), Some(0xFE));
    set(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 1 << 6, "received illegal vector");
    set(&mut apic, 0x300, 0x0000_000F);
    set(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 1 << 5, "send illegal vector");
    set(&mut apic, 0x40, 0);
    set(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 1 << 7, "illegal register");
    set(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 0);
    // Its own vector is wrong.
    set(&mut apic, 0x370, 0x0F);
    set(&mut apic, 0x40, 0);
    set(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 1 << 7 | 1 << 6);
}

#[test]
fn disabled_by_software_it_takes_no_vectors_but_nmi_init_and_start_up() {
    let mut apic = new(1);
    let message = |delivery| BusMessage {
        delivery,
        recipients: Recipients::All,
        trigger: Trigger::Edge,
    };
    let vector = 0x40;
    assert_eq!(
        apic.deliver(&message(Delivery::Fixed { vector })),
        Signal::None
    );
    assert_eq!(apic.deliver(&message(Delivery::Nmi)), Signal::Nmi);
    assert_eq!(apic.deliver(&message(Delivery::Init)), Signal::Init);
    let page = 0x9F;
    let start = Delivery::StartUp { page };
    assert_eq!(apic.deliver(&message(start)), Signal::StartUp { page });
    apic.set_base_msr(0xFEE0_0000).expect("is allowed");
    assert_eq!(apic.deliver(&message(Delivery::Nmi)), Signal::None);
    assert!(!apic.is_recipient(&Recipients::All));
}

#[test]
fn the_command_register_sends_what_it_says() {
    let fixed = Delivery::Fixed { vector: 0x45 };
    let send = |delivery, recipients| {
        ApicEffect::Send(BusMessage {
            delivery,
            recipients,
            trigger: Trigger::Edge,
        })
    };
    let physical = |id| Recipients::Physical { id };
    // Low half, destination, effect of APIC 3.
    for (low, to, expected) in [
        (0x0_4045, 0x05, send(fixed, physical(5))),
        (0x0_4045, 0xFF, send(fixed, Recipients::All)),
        (
            0x0_4845,
            0x0C,
            send(fixed, Recipients::Logical { address: 0x0C }),
        ),
        (0x0_4845, 0xFF, send(fixed, Recipients::All)),
        (0x8_4045, 0x05, send(fixed, Recipients::All)),
        (0xC_4045, 0x05, send(fixed, Recipients::AllBut { id: 3 })),
        (
            0x0_4145,
            5,
            send(Delivery::LowestPriority { vector: 0x45 }, physical(5)),
        ),
        (0x0_4400, 5, send(Delivery::Nmi, physical(5))),
        (
            0xC_4500,
            0,
            send(Delivery::Init, Recipients::AllBut { id: 3 }),
        ),
        (0x0_C500, 5, send(Delivery::Init, physical(5))),
        (
            0x0_4699,
            5,
            send(Delivery::StartUp { page: 0x99 }, physical(5)),
        ),
        // INIT level de-assert, SMI, reserved, ExtINT.
        (0x8_8500, 0, ApicEffect::None),
        (0x0_4200, 5, ApicEffect::None),
        (0x0_4345, 5, ApicEffect::None),
        (0x0_4745, 5, ApicEffect::None),
        // Vectors that are none.
        (0x0_400F, 5, ApicEffect::None),
        (0x4_400F, 5, ApicEffect::None),
        // An NMI to itself is not allowed.
        (0x4_4400, 5, ApicEffect::None),
    ] {
        let mut apic = enabled(3);
        set(&mut apic, 0x310, to << 24);
        assert_eq!(
            write(&mut apic, 0x300, low),
            expected,
            "{low:#x} to {to:#x}"
        );
        assert_eq!(read(&mut apic, 0x300), low, "it reads back, idle");
        let mut apic = x2apic(3);
        let to = if to == 0xFF { u32::MAX } else { to };
        let value = u64::from(to) << 32 | u64::from(low);
        assert_eq!(apic.msr_write(0x830, value, 0), Ok(expected), "{low:#x}");
        assert_eq!(apic.msr_read(0x830, 0), Ok(value));
    }
}

#[test]
fn an_interrupt_to_itself_is_requested_at_once() {
    let mut apic = enabled(3);
    set(&mut apic, 0x300, 0x4_4045);
    assert_eq!(apic.acknowledge(), Some(0x45));
    let mut apic = x2apic(3);
    assert_eq!(apic.msr_write(0x83F, 0x46, 0), Ok(ApicEffect::None));
    assert_eq!(apic.acknowledge(), Some(0x46));
}

#[test]
fn eight_bits_of_ones_are_no_broadcast_in_x2apic_mode() {
    let mut apic = x2apic(3);
    let effect = apic.msr_write(0x830, 0xFF << 32 | 0x4045, 0);
    let Ok(ApicEffect::Send(message)) = effect else {
        panic!("{effect:?}");
    };
    assert_eq!(message.recipients, Recipients::Physical { id: 0xFF });
}

#[test]
fn logical_addresses_meet_as_mode_and_model_say() {
    let flat = |id: u32, logical: u32| {
        let mut apic = enabled(id);
        set(&mut apic, 0xD0, logical << 24);
        apic
    };
    let cluster = |id: u32, logical: u32| {
        let mut apic = flat(id, logical);
        set(&mut apic, 0xE0, 0x0FFF_FFFF);
        apic
    };
    for (apic, address, meets) in [
        (flat(1, 0b0010), 0b0110, true),
        (flat(1, 0b0010), 0b0100, false),
        (flat(1, 0), 0xFF, false),
        (cluster(1, 0x21), 0x23, true),
        (cluster(1, 0x21), 0x22, false),
        (cluster(1, 0x21), 0x31, false),
        (cluster(1, 0x21), 0xF1, true),
        (flat(1, 0b10), 0x102, false),
        // Cluster 1, bit 3.
        (x2apic(0x13), 0x0001_0008, true),
        (x2apic(0x13), 0x0001_FFFF, true),
        (x2apic(0x13), 0x0001_0007, false),
        (x2apic(0x13), 0x0000_0008, false),
    ] {
        let recipients = Recipients::Logical { address };
        assert_eq!(apic.is_recipient(&recipients), meets, "{address:#x}");
    }
}

#[test]
fn physical_addresses_and_shorthands_meet_by_id() {
    let apic = enabled(3);
    for (recipients, meets) in [
        (Recipients::All, true),
        (Recipients::AllBut { id: 3 }, false),
        (Recipients::AllBut { id: 4 }, true),
        (Recipients::Physical { id: 3 }, true),
        (Recipients::Physical { id: 4 }, false),
    ] {
        assert_eq!(apic.is_recipient(&recipients), meets);
    }
}

#[test]
fn messages_of_devices_mean_what_the_manual_says() {
    let decode = |address, data| BusMessage::from_device(Message { address, data });
    let fixed = |recipients, trigger| {
        Some(BusMessage {
            delivery: Delivery::Fixed { vector: 0x61 },
            recipients,
            trigger,
        })
    };
    let one = Recipients::Physical { id: 0x12 };
    let address = 0x12;
    assert_eq!(decode(0xFEE1_2000, 0x4061), fixed(one, Trigger::Edge));
    assert_eq!(decode(0xFEE1_2000, 0xC061), fixed(one, Trigger::Level));
    assert_eq!(
        decode(0xFEE1_2004, 0x61),
        fixed(Recipients::Logical { address }, Trigger::Edge)
    );
    assert_eq!(
        decode(0xFEEF_F000, 0x61),
        fixed(Recipients::All, Trigger::Edge)
    );
    let lowest = decode(0xFEE1_200C, 0x0161).expect("is one");
    assert_eq!(lowest.delivery, Delivery::LowestPriority { vector: 0x61 });
    assert_eq!(
        decode(0xFEE1_2000, 0x0400).map(|m| m.delivery),
        Some(Delivery::Nmi)
    );
    for (address, data) in [
        (0xFED1_2000, 0x61),
        (0x1_FEE1_2000, 0x61),
        (0, 0x61),
        (0xFEE1_2000, 0x0261),
        (0xFEE1_2000, 0x0361),
    ] {
        assert_eq!(decode(address, data), None, "{address:#x} {data:#x}");
    }
}

#[test]
fn the_lowest_priority_of_those_enabled_wins_and_then_the_lowest_id() {
    let mut busy = enabled(0);
    busy.set_cr8(3);
    let all = [busy, new(1), enabled(2), enabled(3)];
    assert_eq!(lowest_priority(&all), Some(2));
    assert_eq!(lowest_priority(&all[..2]), Some(0));
    assert_eq!(lowest_priority(&all[1..2]), None);
}

#[test]
fn interrupts_of_the_core_go_by_their_entries() {
    let mut apic = enabled(0);
    assert_eq!(apic.raise_local(LocalSource::Lint1), Signal::None, "masked");
    set(&mut apic, 0x360, 0x400);
    assert_eq!(apic.raise_local(LocalSource::Lint1), Signal::Nmi);
    set(&mut apic, 0x350, 0x700);
    assert_eq!(
        apic.raise_local(LocalSource::Lint0),
        Signal::None,
        "no 8259"
    );
    set(&mut apic, 0x350, 0x8050);
    assert_eq!(apic.raise_local(LocalSource::Lint0), Signal::Interrupt);
    assert_eq!(read(&mut apic, 0x1A0), 1 << 16, "level");
    set(&mut apic, 0x340, 0x400);
    assert_eq!(apic.raise_local(LocalSource::Performance), Signal::Nmi);
    assert_eq!(read(&mut apic, 0x340), 0x1_0400, "masks itself");
    set(&mut apic, 0x330, 0x51);
    assert_eq!(apic.raise_local(LocalSource::Thermal), Signal::Interrupt);
    assert_eq!(apic.acknowledge(), Some(0x51));
}

fn timer(entry: u32, divide: u32) -> LocalApic {
    let mut apic = enabled(0);
    set(&mut apic, 0x320, entry);
    set(&mut apic, 0x3E0, divide);
    apic
}

fn start(apic: &mut LocalApic, counts: u32, now: u64) {
    let effect = apic.memory_write(0x380, Width::Dword, counts.into(), now);
    assert_eq!(effect, ApicEffect::None);
}

fn count(apic: &mut LocalApic, now: u64) -> u64 {
    apic.memory_read(0x390, Width::Dword, now)
}

#[test]
fn a_one_shot_timer_counts_down_and_comes_once() {
    let mut apic = timer(0x40, 0b1011);
    start(&mut apic, 100, 1000);
    assert_eq!(apic.timer_deadline(), Some(2000));
    assert_eq!((count(&mut apic, 1000), count(&mut apic, 1500)), (100, 50));
    assert_eq!(apic.advance(1999), Signal::None);
    assert_eq!(apic.advance(2000), Signal::Interrupt);
    assert_eq!(apic.acknowledge(), Some(0x40));
    assert_eq!((apic.timer_deadline(), count(&mut apic, 3000)), (None, 0));
    assert_eq!(apic.advance(9999), Signal::None);
    start(&mut apic, 100, 10_000);
    start(&mut apic, 0, 10_500);
    assert_eq!((apic.timer_deadline(), count(&mut apic, 10_500)), (None, 0));
}

#[test]
fn the_divisors_are_as_in_the_manual() {
    // "Divide Configuration Register".
    for (bits, divisor) in [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ] {
        let mut apic = timer(0x40, bits);
        start(&mut apic, 7, 0);
        assert_eq!(apic.timer_deadline(), Some(7 * COUNT * divisor));
        assert_eq!(read(&mut apic, 0x3E0), bits);
    }
}

#[test]
fn a_new_divisor_keeps_the_count() {
    let mut apic = timer(0x40, 0b1011);
    start(&mut apic, 100, 0);
    let _ = apic.memory_write(0x3E0, Width::Dword, 0, 400);
    assert_eq!(count(&mut apic, 400), 60);
    assert_eq!(apic.timer_deadline(), Some(400 + 60 * 2 * COUNT));
}

#[test]
fn a_periodic_timer_keeps_its_beat_and_merges_what_was_missed() {
    let mut apic = timer(0x2_0040, 0b1011);
    start(&mut apic, 100, 0);
    for beat in 1..4 {
        assert_eq!(apic.timer_deadline(), Some(beat * 1000));
        assert_eq!(apic.advance(beat * 1000 + 7), Signal::Interrupt);
        assert_eq!(apic.acknowledge(), Some(0x40));
        assert_eq!(end_of_interrupt(&mut apic), ended(0x40));
    }
    assert_eq!(apic.advance(7500), Signal::Interrupt);
    assert_eq!(apic.timer_deadline(), Some(8000));
    assert_eq!(count(&mut apic, 7600), 40);
}

#[test]
fn a_period_is_not_shorter_than_allowed() {
    let mut apic = timer(0x2_0040, 0b1011);
    start(&mut apic, 1, 0);
    assert_eq!(apic.timer_deadline(), Some(100));
    assert_eq!(apic.advance(u64::MAX), Signal::Interrupt);
    let deadline = apic.timer_deadline().expect("goes on");
    assert!(deadline > u64::MAX - 100);
}

#[test]
fn a_deadline_comes_when_the_tsc_reaches_it_and_is_then_zero() {
    let mut apic = timer(0x4_0040, 0b1011);
    assert_eq!(apic.set_tsc_deadline(5000, 0), Signal::None);
    assert_eq!(
        (apic.tsc_deadline(0), apic.timer_deadline()),
        (5000, Some(5000))
    );
    assert_eq!(count(&mut apic, 0), 0);
    start(&mut apic, 7, 0);
    assert_eq!(apic.timer_deadline(), Some(5000), "the count does nothing");
    assert_eq!(apic.advance(5000), Signal::Interrupt);
    assert_eq!((apic.tsc_deadline(5000), apic.timer_deadline()), (0, None));
    assert_eq!(apic.set_tsc_deadline(6000, 5000), Signal::None);
    assert_eq!(apic.set_tsc_deadline(0, 5000), Signal::None);
    assert_eq!(apic.timer_deadline(), None, "0 stops it");
    assert_eq!(apic.acknowledge(), Some(0x40));
    assert_eq!(end_of_interrupt(&mut apic), ended(0x40));
    assert_eq!(
        apic.set_tsc_deadline(100, 6000),
        Signal::Interrupt,
        "one in the past comes at once"
    );
    assert_eq!(apic.advance(6000), Signal::None, "once");
    // A new one does not undo the old one that was due.
    assert_eq!(apic.acknowledge(), Some(0x40));
    assert_eq!(end_of_interrupt(&mut apic), ended(0x40));
    assert_eq!(apic.set_tsc_deadline(7000, 6500), Signal::None);
    assert_eq!(apic.set_tsc_deadline(9000, 8000), Signal::Interrupt);
    assert_eq!(apic.timer_deadline(), Some(9000));
}

#[test]
fn the_deadline_register_is_zero_in_other_modes_and_a_change_to_or_from_it_stops_the_timer() {
    let modes = [0x40, 0x2_0040, 0x4_0040];
    for from in modes {
        for to in modes {
            let mut apic = timer(from, 0b1011);
            let _ = apic.set_tsc_deadline(5000, 0);
            start(&mut apic, 500, 0);
            assert_eq!(apic.timer_deadline(), Some(5000));
            assert_eq!(
                apic.tsc_deadline(0),
                if from == 0x4_0040 { 5000 } else { 0 }
            );
            set(&mut apic, 0x320, to);
            let goes_on = from == to || (from != 0x4_0040 && to != 0x4_0040);
            assert_eq!(apic.timer_deadline().is_some(), goes_on);
            // What was armed before does not come back with its mode.
            set(&mut apic, 0x320, from);
            assert_eq!(apic.timer_deadline().is_some(), goes_on);
            assert_eq!(read(&mut apic, 0x380) != 0, goes_on && from != 0x4_0040);
        }
    }
}

#[test]
fn between_one_shot_and_periodic_the_count_goes_on() {
    const ONCE: u32 = 0x40;
    const PERIODIC: u32 = 0x2_0040;
    let mut apic = timer(ONCE, 0b1011);
    start(&mut apic, 100, 0);
    let switch = |apic: &mut LocalApic, entry: u32, now| {
        let _ = apic.memory_write(0x320, Width::Dword, entry.into(), now);
    };
    switch(&mut apic, PERIODIC, 700);
    assert_eq!((count(&mut apic, 700), read(&mut apic, 0x380)), (30, 100));
    assert_eq!(apic.advance(1000), Signal::Interrupt);
    assert_eq!(
        (count(&mut apic, 1000), apic.timer_deadline()),
        (100, Some(2000))
    );
    switch(&mut apic, ONCE, 1600);
    assert_eq!(count(&mut apic, 1600), 40);
    let _ = apic.advance(2000);
    assert_eq!((count(&mut apic, 2500), apic.timer_deadline()), (0, None));
    switch(&mut apic, PERIODIC, 2600);
    assert_eq!(
        (count(&mut apic, 2600), apic.timer_deadline()),
        (0, None),
        "it stands"
    );
    // A reserved mode is none.
    start(&mut apic, 100, 3000);
    switch(&mut apic, 0x6_0040, 3100);
    assert_eq!((count(&mut apic, 3100), apic.timer_deadline()), (0, None));
}

#[test]
fn a_masked_timer_runs_without_a_sound() {
    for (entry, after) in [(0x1_0040, 0), (0x3_0040, 50)] {
        let mut apic = timer(entry, 0b1011);
        start(&mut apic, 100, 0);
        assert_eq!(apic.timer_deadline(), None);
        assert_eq!(apic.advance(1500), Signal::None);
        assert_eq!((apic.pending(), count(&mut apic, 1500)), (None, after));
    }
    let mut apic = timer(0x5_0040, 0);
    let _ = apic.set_tsc_deadline(10, 0);
    assert_eq!(apic.tsc_deadline(11), 0);
}

/// The APIC's interrupts as sets, by the manual's words.
#[derive(Default)]
struct Model {
    requested: std::collections::BTreeSet<u8>,
    in_service: std::collections::BTreeSet<u8>,
    task_priority: u8,
}

impl Model {
    fn pending(&self) -> Option<u8> {
        let class = |vector: u8| vector / 16;
        let served = self.in_service.last().map_or(0, |vector| class(*vector));
        let threshold = served.max(class(self.task_priority));
        self.requested
            .last()
            .copied()
            .filter(|vector| class(*vector) > threshold)
    }
}

proptest! {
    /// Any sequence of requests, acknowledgements, EOIs and task priorities gives what the model gives, and the registers show it.
    #[test]
    fn interrupts_come_as_the_model_says(steps in proptest::collection::vec((0..5_u8, any::<u8>()), 0..200)) {
        let mut apic = x2apic(0);
        let mut model = Model::default();
        for (step, value) in steps {
            match step {
                0 | 1 => {
                    let is_new = value >= 16 && model.requested.insert(value);
                    let signal = apic.accept(value, Trigger::Edge);
                    prop_assert_eq!(signal, if is_new { Signal::Interrupt } else { Signal::None });
                }
                2 => {
                    let expected = model.pending();
                    if let Some(vector) = expected {
                        model.requested.remove(&vector);
                        model.in_service.insert(vector);
                    }
                    prop_assert_eq!(apic.acknowledge(), expected);
                }
                3 => {
                    let expected = model.in_service.pop_last().map_or(ApicEffect::None, ended);
                    prop_assert_eq!(apic.msr_write(0x80B, 0, 0), Ok(expected));
                }
                _ => {
                    model.task_priority = value;
                    prop_assert_eq!(apic.msr_write(0x808, value.into(), 0), Ok(ApicEffect::None));
                }
            }
            prop_assert_eq!(apic.pending(), model.pending());
            let bits = |first: u32, apic: &mut LocalApic| {
                let words: Vec<u64> = (0..8)
                    .map(|index| apic.msr_read(first + index, 0).expect("is there"))
                    .collect();
                (0..=255_u8)
                    .filter(|vector| words[usize::from(vector / 32)] >> (vector % 32) & 1 != 0)
                    .collect::<Vec<u8>>()
            };
            prop_assert!(bits(0x820, &mut apic).into_iter().eq(model.requested.iter().copied()));
            prop_assert!(bits(0x810, &mut apic).into_iter().eq(model.in_service.iter().copied()));
        }
    }

    /// The count never grows, reaches 0 at the deadline and not before, at any divisor.
    #[test]
    fn the_count_falls_to_zero_at_the_deadline(counts in 1..u32::MAX, divide in 0..16_u32, start_at in 0..1_u64 << 40) {
        let mut apic = timer(0x40, divide);
        start(&mut apic, counts, start_at);
        let deadline = apic.timer_deadline().expect("runs");
        let mut last = u64::from(counts);
        for part in 0..=10 {
            let now = start_at + (deadline - start_at) / 10 * part;
            let found = count(&mut apic, now);
            prop_assert!(found <= last);
            last = found;
        }
        let mut apic = timer(0x40, divide);
        start(&mut apic, counts, start_at);
        prop_assert!(count(&mut apic, deadline - 1) > 0);
        prop_assert_eq!(count(&mut apic, deadline), 0);
        prop_assert_eq!(apic.pending(), Some(0x40));
    }
}

#[test]
fn the_8259a_comes_through_lint0_as_external_and_past_an_apic_that_is_off() {
    let mut apic = enabled(0);
    assert!(!apic.accepts_pic(), "masked after reset");
    for (entry, accepts) in [
        (0x0_0700, true),
        (0x0_8700, true),
        (0x1_0700, false),
        (0x0_0030, false),
        (0x0_0400, false),
    ] {
        set(&mut apic, 0x350, entry);
        assert_eq!(apic.accepts_pic(), accepts, "{entry:#x}");
    }
    set(&mut apic, 0x350, 0x700);
    set(&mut apic, 0xF0, 0xFF);
    assert!(!apic.accepts_pic(), "disabled by software: masked");
    apic.set_base_msr(0xFEE0_0100).expect("is allowed");
    assert!(apic.accepts_pic(), "no APIC between");
}

#[test]
fn firmware_leaves_a_virtual_wire_that_init_cuts() {
    let mut apic = new(0);
    apic.set_virtual_wire();
    assert!(apic.accepts_pic() && apic.is_software_enabled());
    assert_eq!(apic.raise_local(LocalSource::Lint1), Signal::Nmi);
    assert_eq!(apic.raise_local(LocalSource::Lint0), Signal::None);
    apic.init();
    assert!(!apic.accepts_pic() && !apic.is_software_enabled());
}
