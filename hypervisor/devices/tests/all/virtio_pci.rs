//! The virtio registers over PCI, as a driver uses and misuses them.

use nagaya_devices::pci::{Effect, PciFunction, Width};
use nagaya_devices::queue::QueueError;
use nagaya_devices::test_support::Layout;
use nagaya_devices::test_support::guest::{self, message_of, register};
use nagaya_devices::virtio::{BAR_BYTES, NO_VECTOR, VirtioPci, feature, layout, status};
use proptest::prelude::*;

use crate::pci::device;

const FOUND: u8 = status::ACKNOWLEDGE | status::DRIVER;
const READY: u8 = FOUND | status::FEATURES_OK;

fn layouts() -> [Layout; 2] {
    [Layout::at(0x1000, 256), Layout::at(0x8000, 64)]
}

fn started() -> VirtioPci {
    let mut function = device();
    guest::start(&mut function, feature::COMMON, &layouts());
    function
}

fn kick(function: &mut VirtioPci, queue: u32) -> Effect {
    let offset = layout::NOTIFY + queue * layout::NOTIFY_STEP;
    guest::write(function, offset, Width::Word, queue.into())
}

#[test]
fn the_capabilities_say_where_the_registers_are() {
    let mut function = device();
    let list = guest::capabilities(&mut function);
    let ids: Vec<u8> = list.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [0x11, 9, 9, 9, 9, 9, 9]);
    let places: Vec<(u32, u32, u32, u32)> = list[1..]
        .iter()
        .map(|(_, at)| {
            let kind = function.config_read(at + 3, Width::Byte);
            let bar = function.config_read(at + 4, Width::Byte);
            let offset = function.config_read(at + 8, Width::Dword);
            (
                kind,
                bar,
                offset,
                function.config_read(at + 12, Width::Dword),
            )
        })
        .collect();
    assert_eq!(
        places,
        [
            (1, 0, layout::COMMON, 64),
            (3, 0, layout::ISR, 1),
            (4, 0, layout::DEVICE, 8),
            // Memory first, for drivers that know nothing else.
            (2, 0, layout::NOTIFY, 8),
            (2, 1, 0, 8),
            (5, 0, 0, 0),
        ]
    );
    // Linux takes the first that it finds.
    function.prefer_ports();
    let place = |function: &mut VirtioPci, at: u8| {
        let bar = function.config_read(at + 4, Width::Byte);
        (bar, function.config_read(at + 8, Width::Dword))
    };
    assert_eq!(place(&mut function, list[4].1), (1, 0));
    assert_eq!(place(&mut function, list[5].1), (0, layout::NOTIFY));
    let msix = list[0].1;
    assert_eq!(function.config_read(msix + 2, Width::Word), 2, "3 vectors");
    assert_eq!(function.config_read(msix + 4, Width::Dword), layout::TABLE);
    assert_eq!(
        function.config_read(msix + 8, Width::Dword),
        layout::PENDING
    );
}

#[test]
fn features_are_agreed_on_only_if_offered_and_with_version_1() {
    let mut function = device();
    let offered = guest::offered(&mut function);
    assert_eq!(offered, feature::COMMON | 1 << 5);
    for (features, is_accepted) in [
        (feature::VERSION_1, true),
        (offered, true),
        (offered & !feature::VERSION_1, false),
        (offered | 1 << 6, false),
        (offered | 1 << 63, false),
        (0, false),
    ] {
        let found = guest::negotiate(&mut function, features);
        let expected = if is_accepted { READY } else { FOUND };
        assert_eq!(found, expected, "{features:#x}");
        assert_eq!(function.features(), if is_accepted { features } else { 0 });
    }
}

#[test]
fn a_feature_comes_only_with_what_it_needs() {
    let mut function = VirtioPci::new(&nagaya_devices::virtio::Profile {
        device: nagaya_devices::virtio::DeviceType::Net,
        class: [2, 0, 0],
        features: feature::VERSION_1 | 0b111,
        needs: &[(0b100, 0b001)],
        queue_sizes: &[8],
        config: &[],
    });
    for (bits, is_accepted) in [(0b100, false), (0b110, false), (0b101, true), (0b010, true)] {
        let found = guest::negotiate(&mut function, feature::VERSION_1 | bits);
        assert_eq!(found & status::FEATURES_OK != 0, is_accepted);
    }
}

#[test]
fn features_do_not_change_after_they_are_agreed_on() {
    let mut function = device();
    assert_eq!(guest::negotiate(&mut function, feature::VERSION_1), READY);
    guest::write_quietly(
        &mut function,
        register::DRIVER_FEATURE_SELECT,
        Width::Dword,
        0,
    );
    guest::write_quietly(
        &mut function,
        register::DRIVER_FEATURE,
        Width::Dword,
        1 << 5,
    );
    assert_eq!(function.features(), feature::VERSION_1);
}

#[test]
fn the_status_goes_only_the_ways_of_the_specification() {
    // (before, written, after): no step is skipped, nothing but a reset takes a bit back.
    let cases = [
        (0, status::ACKNOWLEDGE, status::ACKNOWLEDGE),
        (0, status::FEATURES_OK, 0),
        (0, status::DRIVER_OK, 0),
        (0, status::NEEDS_RESET, 0),
        (FOUND, FOUND | status::DRIVER_OK, FOUND),
        (FOUND, READY, READY),
        (FOUND, READY | status::DRIVER_OK, READY | status::DRIVER_OK),
        (READY, status::DRIVER, READY),
        (READY, READY | status::FAILED, READY | status::FAILED),
        (READY, READY | status::NEEDS_RESET, READY),
    ];
    for (before, written, after) in cases {
        let mut function = device();
        for half in [0, 1] {
            let bits = feature::VERSION_1 >> (half * 32) & 0xFFFF_FFFF;
            guest::write_quietly(
                &mut function,
                register::DRIVER_FEATURE_SELECT,
                Width::Dword,
                half,
            );
            guest::write_quietly(&mut function, register::DRIVER_FEATURE, Width::Dword, bits);
        }
        if before != 0 {
            let _ = guest::set_status(&mut function, before);
        }
        assert_eq!(guest::device_status(&mut function), before);
        let _ = guest::set_status(&mut function, written);
        let found = guest::device_status(&mut function);
        assert_eq!(found, after, "{written:#x} written at {before:#x}");
        assert_eq!(guest::set_status(&mut function, 0), Effect::Reset);
        assert_eq!(guest::device_status(&mut function), 0);
    }
}

#[test]
fn kicks_count_only_for_enabled_queues_of_a_running_device() {
    let mut function = device();
    assert_eq!(kick(&mut function, 0), Effect::None);
    guest::start(&mut function, feature::COMMON, &layouts()[..1]);
    assert_eq!(kick(&mut function, 0), Effect::Kick { queue: 0 });
    assert_eq!(kick(&mut function, 1), Effect::None, "not enabled");
    assert_eq!(kick(&mut function, 2), Effect::None, "does not exist");
    assert_eq!(kick(&mut function, 1023), Effect::None);
    assert!(function.queue(0).is_some() && function.queue(1).is_none());
    // Bus mastering off: it may not use the guest's memory.
    assert_eq!(function.config_write(0x04, Width::Word, 2), Effect::None);
    assert_eq!(kick(&mut function, 0), Effect::None);
    assert_eq!(function.config_write(0x04, Width::Word, 6), Effect::None);
    assert_eq!(kick(&mut function, 0), Effect::Kick { queue: 0 });
    let failed = READY | status::DRIVER_OK | status::FAILED;
    assert_eq!(guest::set_status(&mut function, failed), Effect::None);
    assert_eq!(kick(&mut function, 0), Effect::None);
}

#[test]
fn a_queue_reads_back_as_it_was_set_up_and_then_stays() {
    let mut function = device();
    assert_eq!(guest::negotiate(&mut function, feature::COMMON), READY);
    let at = Layout::at(0x12_3456_0000, 64);
    guest::enable_queue(&mut function, 1, at, 2);
    let read = |function: &mut VirtioPci| {
        [
            (register::QUEUE_SIZE, Width::Word),
            (register::QUEUE_VECTOR, Width::Word),
            (register::QUEUE_ENABLE, Width::Word),
            (register::QUEUE_NOTIFY, Width::Word),
            (register::QUEUE_DESCRIPTORS, Width::Qword),
            (register::QUEUE_DRIVER, Width::Qword),
            (register::QUEUE_DEVICE, Width::Qword),
        ]
        .map(|(offset, width)| guest::read(function, offset, width))
    };
    let config = at.config;
    let expected = [
        64,
        2,
        1,
        1,
        config.descriptors.get(),
        config.driver.get(),
        config.device.get(),
    ];
    assert_eq!(read(&mut function), expected);
    guest::write_quietly(&mut function, register::QUEUE_SIZE, Width::Word, 128);
    guest::write_quietly(&mut function, register::QUEUE_ENABLE, Width::Word, 0);
    guest::write_quietly(&mut function, register::QUEUE_DRIVER, Width::Qword, 0);
    assert_eq!(read(&mut function), expected);
    // A queue that does not exist has size 0 and takes nothing.
    guest::write_quietly(&mut function, register::QUEUE_SELECT, Width::Word, 2);
    guest::write_quietly(&mut function, register::QUEUE_SIZE, Width::Word, 8);
    assert_eq!(
        guest::read(&mut function, register::QUEUE_SIZE, Width::Word),
        0
    );
    // And a reset brings all back.
    assert_eq!(guest::set_status(&mut function, 0), Effect::Reset);
    guest::write_quietly(&mut function, register::QUEUE_SELECT, Width::Word, 1);
    assert_eq!(read(&mut function), [256, NO_VECTOR.into(), 0, 1, 0, 0, 0]);
}

#[test]
fn sizes_that_are_no_power_of_two_or_too_large_and_vectors_that_are_not_there_are_not_taken() {
    let mut function = device();
    for size in [0, 3, 255, 257, 512, 0x8000, 0xFFFF] {
        guest::write_quietly(&mut function, register::QUEUE_SIZE, Width::Word, size);
        assert_eq!(
            guest::read(&mut function, register::QUEUE_SIZE, Width::Word),
            256
        );
    }
    for (vector, taken) in [(2, 2), (3, 0xFFFF), (0xFFFF, 0xFFFF)] {
        for register in [register::QUEUE_VECTOR, register::CONFIG_VECTOR] {
            guest::write_quietly(&mut function, register, Width::Word, vector);
            assert_eq!(guest::read(&mut function, register, Width::Word), taken);
        }
    }
}

#[test]
fn a_queue_that_is_not_aligned_stops_the_device_as_it_starts() {
    let mut function = device();
    guest::enable_msix(&mut function, 3);
    assert_eq!(guest::negotiate(&mut function, feature::COMMON), READY);
    guest::write_quietly(&mut function, register::CONFIG_VECTOR, Width::Word, 2);
    let mut at = Layout::at(0x1000, 64);
    at.config.driver = nagaya_mem::Gpa::new(0x2001);
    guest::enable_queue(&mut function, 1, at, 1);
    let effect = guest::set_status(&mut function, READY | status::DRIVER_OK);
    assert_eq!(effect, Effect::Messages(vec![message_of(2)]));
    let failure = function.failure().expect("has failed");
    assert_eq!(
        (failure.queue, failure.error),
        (1, QueueError::Config(at.config))
    );
    assert!(guest::device_status(&mut function) & status::NEEDS_RESET != 0);
    assert_eq!(kick(&mut function, 1), Effect::None);
    guest::start(&mut function, feature::COMMON, &layouts());
    assert_eq!(function.failure(), None);
}

#[test]
fn a_failed_device_says_so_serves_nothing_and_comes_back_by_a_reset() {
    let mut function = started();
    let error = QueueError::Head { index: 900 };
    assert_eq!(function.stop(1, error).message, Some(message_of(2)));
    let ready = READY | status::DRIVER_OK;
    assert_eq!(
        guest::device_status(&mut function),
        ready | status::NEEDS_RESET
    );
    assert!(function.queue(0).is_none());
    assert_eq!(kick(&mut function, 0), Effect::None);
    assert_eq!(guest::set_status(&mut function, ready), Effect::None);
    assert!(guest::device_status(&mut function) & status::NEEDS_RESET != 0);
    guest::start(&mut function, feature::COMMON, &layouts());
    assert_eq!(kick(&mut function, 0), Effect::Kick { queue: 0 });
}

#[test]
fn a_change_of_the_configuration_changes_the_generation_and_interrupts() {
    let mut function = started();
    let before = guest::read(&mut function, register::GENERATION, Width::Byte);
    assert_eq!(
        function.set_device_config(6, &[9, 9, 9]),
        Some(message_of(2))
    );
    let after = guest::read(&mut function, register::GENERATION, Width::Byte);
    assert_ne!(before, after);
    let whole = guest::read(&mut function, layout::DEVICE, Width::Qword);
    assert_eq!(whole.to_le_bytes(), [1, 2, 3, 4, 5, 6, 9, 9]);
    assert_eq!(
        guest::read(&mut function, layout::DEVICE + 7, Width::Dword),
        9
    );
    let _ = guest::set_status(&mut function, 0);
    assert_eq!(function.set_device_config(0, &[0]), None, "no driver");
}

#[test]
fn without_msix_the_isr_tells_and_is_cleared_by_reading() {
    let mut function = started();
    let at = guest::find_capability(&mut function, 0x11).expect("has MSI-X");
    let _ = function.config_write(at + 2, Width::Word, 0);
    assert_eq!(function.interrupt_queue(0), None);
    assert_eq!(guest::read(&mut function, layout::ISR, Width::Byte), 1);
    assert_eq!(guest::read(&mut function, layout::ISR, Width::Byte), 0);
    let _ = function.stop(0, QueueError::Direction);
    assert_eq!(guest::read(&mut function, layout::ISR, Width::Dword), 2);
}

#[test]
fn masked_messages_wait_and_come_once() {
    let mut function = started();
    assert_eq!(function.interrupt_queue(1), Some(message_of(1)));
    let control = layout::TABLE + 16 + 12;
    guest::write_quietly(&mut function, control, Width::Dword, 1);
    for _ in 0..3 {
        assert_eq!(function.interrupt_queue(1), None);
    }
    assert_eq!(
        guest::read(&mut function, layout::PENDING, Width::Qword),
        0b10
    );
    guest::write_quietly(&mut function, layout::PENDING, Width::Qword, 0);
    assert_eq!(
        guest::read(&mut function, layout::PENDING, Width::Dword),
        0b10,
        "read-only"
    );
    // Changed while it waits: what is sent is what the table says then.
    guest::write_quietly(&mut function, layout::TABLE + 16 + 8, Width::Dword, 0x77);
    let effect = guest::write(&mut function, control, Width::Dword, 0);
    let mut message = message_of(1);
    message.data = 0x77;
    assert_eq!(effect, Effect::Messages(vec![message]));
    assert_eq!(guest::read(&mut function, layout::PENDING, Width::Qword), 0);
    guest::write_quietly(&mut function, control, Width::Dword, 0);
}

#[test]
fn the_mask_of_all_holds_back_all_and_releases_all() {
    let mut function = started();
    let at = guest::find_capability(&mut function, 0x11).expect("has MSI-X");
    assert_eq!(
        function.config_write(at + 2, Width::Word, 0xC000),
        Effect::None
    );
    assert_eq!(function.interrupt_queue(1), None);
    assert_eq!(function.interrupt_queue(0), None);
    assert_eq!(
        guest::read(&mut function, layout::PENDING, Width::Byte),
        0b11
    );
    let effect = function.config_write(at + 2, Width::Word, 0x8000);
    assert_eq!(effect, Effect::Messages(vec![message_of(0), message_of(1)]));
    // Nor is anything sent by a function that is no bus master; it waits.
    let _ = function.config_write(0x04, Width::Word, 2);
    assert_eq!(function.interrupt_queue(0), None);
    let effect = function.config_write(0x04, Width::Word, 6);
    assert_eq!(effect, Effect::Messages(vec![message_of(0)]));
}

#[test]
fn an_entry_of_the_table_takes_whole_words_of_32_and_64_bits_only() {
    let mut function = device();
    let entry = layout::TABLE + 32;
    guest::write_quietly(&mut function, entry, Width::Qword, 0x1234_5678_FEE0_1003);
    assert_eq!(
        guest::read(&mut function, entry, Width::Qword),
        0x1234_5678_FEE0_1000
    );
    guest::write_quietly(&mut function, entry + 8, Width::Qword, 0x1_0000_0055);
    for (offset, width) in [
        (entry, Width::Byte),
        (entry + 2, Width::Word),
        (entry + 2, Width::Dword),
        (entry + 4, Width::Qword),
    ] {
        guest::write_quietly(&mut function, offset, width, 0);
    }
    assert_eq!(
        guest::read(&mut function, entry, Width::Qword),
        0x1234_5678_FEE0_1000
    );
    assert_eq!(
        guest::read(&mut function, entry + 8, Width::Qword),
        0x1_0000_0055
    );
    assert_eq!(
        guest::read(&mut function, entry + 16, Width::Qword),
        0,
        "no entry"
    );
}

#[test]
fn the_window_reaches_every_register_of_the_bar() {
    let mut function = started();
    let at = guest::capabilities(&mut function).last().expect("some").1;
    let point = |function: &mut VirtioPci, bar: u32, offset: u32, length: u32| {
        let _ = function.config_write(at + 4, Width::Byte, bar);
        let _ = function.config_write(at + 8, Width::Dword, offset);
        let _ = function.config_write(at + 12, Width::Dword, length);
    };
    point(&mut function, 0, register::QUEUES, 2);
    assert_eq!(function.config_read(at + 16, Width::Word), 2);
    point(&mut function, 0, layout::NOTIFY + 4, 2);
    let effect = function.config_write(at + 16, Width::Word, 1);
    assert_eq!(effect, Effect::Kick { queue: 1 });
    // Accesses that do not exist do nothing.
    for (bar, offset, length) in [
        (1, layout::NOTIFY, 2),
        (0, layout::NOTIFY + 1, 2),
        (0, layout::NOTIFY, 3),
        (0, layout::NOTIFY, 8),
        (0, layout::NOTIFY, 0),
        (0, BAR_BYTES, 4),
        (0, u32::MAX - 3, 4),
    ] {
        point(&mut function, bar, offset, length);
        assert_eq!(
            function.config_write(at + 16, Width::Dword, 0),
            Effect::None
        );
        let _ = function.config_read(at + 16, Width::Dword);
    }
    point(&mut function, 0, register::STATUS, 1);
    assert_eq!(
        function.config_write(at + 16, Width::Byte, 0),
        Effect::Reset
    );
}

#[test]
fn every_offset_of_the_bar_takes_every_width_in_every_state() {
    for make in [device, started] {
        let mut function = make();
        for offset in (0..BAR_BYTES + 16).chain([u32::MAX - 7, u32::MAX]) {
            for width in Width::ALL {
                let value = function.bar_read(0, offset, width);
                assert!(value <= width.ones(), "{value:#x} at {offset:#x}");
                if u64::from(offset) + width.bytes() as u64 > BAR_BYTES.into() {
                    assert_eq!(value, width.ones(), "floats");
                }
                for value in [0, 1, u64::MAX, 0x5555_5555_5555_5555] {
                    let _ = function.bar_write(0, offset, width, value & width.ones());
                }
                for bar in [2, 5, 255] {
                    assert_eq!(function.bar_read(bar, offset, width), width.ones());
                    assert_eq!(function.bar_write(bar, offset, width, 1), Effect::None);
                }
            }
        }
        guest::start(&mut function, feature::COMMON, &layouts());
        assert_eq!(kick(&mut function, 1), Effect::Kick { queue: 1 });
    }
}

#[test]
fn each_queue_is_kicked_by_its_port_too_and_nothing_else_is_there() {
    const BYTES: u32 = 2 * layout::NOTIFY_STEP;
    for (make, is_started) in [(device as fn() -> VirtioPci, false), (started, true)] {
        let mut function = make();
        for offset in (0..BYTES + 16).chain([u32::MAX - 7, u32::MAX]) {
            for width in Width::ALL {
                let is_inside = u64::from(offset) + width.bytes() as u64 <= BYTES.into();
                let floats = if is_inside { 0 } else { width.ones() };
                assert_eq!(function.bar_read(1, offset, width), floats);
                let queue = offset / layout::NOTIFY_STEP;
                let is_register = offset < BYTES && offset.is_multiple_of(layout::NOTIFY_STEP);
                let expected = if is_register && is_started {
                    Effect::Kick {
                        queue: queue as u16,
                    }
                } else {
                    Effect::None
                };
                for value in [0, queue.into(), width.ones()] {
                    assert_eq!(function.bar_write(1, offset, width, value), expected);
                }
                let notified = (expected != Effect::None).then_some(queue as u16);
                assert_eq!(function.notified(1, offset), notified);
                assert_eq!(function.notified(0, offset), None);
            }
        }
    }
}

#[test]
fn the_window_reaches_the_ports_too() {
    let mut function = started();
    let at = guest::capabilities(&mut function).last().expect("some").1;
    for (bar, offset, expected) in [
        (1, 4, Effect::Kick { queue: 1 }),
        (1, 8, Effect::None),
        (2, 0, Effect::None),
    ] {
        let _ = function.config_write(at + 4, Width::Byte, bar);
        let _ = function.config_write(at + 8, Width::Dword, offset);
        let _ = function.config_write(at + 12, Width::Dword, 2);
        assert_eq!(function.config_write(at + 16, Width::Word, 1), expected);
    }
}

proptest! {
    /// Whatever was written, a reset and the usual way bring the device up.
    #[test]
    fn no_sequence_of_writes_spoils_the_device_for_good(
        writes in proptest::collection::vec(
            (any::<bool>(), 0..BAR_BYTES, 0..4_usize, prop_oneof![0..16_u64, any::<u64>()]),
            0..200,
        ),
    ) {
        let mut function = started();
        for (to_config, offset, width, value) in writes {
            let width = Width::ALL[width];
            if to_config {
                let _ = function.config_write(offset as u8, width, value as u32);
            } else {
                // Most of them where registers are.
                let offset = if value & 1 == 0 { offset % 64 } else { offset };
                let _ = function.bar_write(0, offset, width, value & width.ones());
            }
            prop_assert!(function.interrupt_queue(0).is_none_or(|_| function.config().command().bits() & 4 != 0));
        }
        let _ = guest::set_status(&mut function, 0);
        let at = guest::find_capability(&mut function, 0x11).expect("has MSI-X");
        let _ = function.config_write(at + 2, Width::Word, 0);
        guest::start(&mut function, feature::COMMON, &layouts());
        prop_assert_eq!(kick(&mut function, 1), Effect::Kick { queue: 1 });
        prop_assert_eq!(function.interrupt_queue(1), Some(message_of(1)));
    }
}
