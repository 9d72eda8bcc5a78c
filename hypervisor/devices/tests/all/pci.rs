//! The bus by its ports and memory, as firmware and a guest's PCI code use it.

use nagaya_devices::pci::{Effect, PciBus, PciFunction, Width};
use nagaya_devices::virtio::{BAR_BYTES, DeviceType, Profile, VirtioPci, feature};
use nagaya_mem::Gpa;
use proptest::prelude::*;

const ADDRESS: u16 = 0xCF8;
const DATA: u16 = 0xCFC;
const WINDOW: core::ops::Range<u32> = 0xC000_0000..0xC010_0000;
const PORTS: core::ops::Range<u16> = 0xC000..0xD000;
/// Widths that a port access has.
const PORT_WIDTHS: [Width; 3] = [Width::Byte, Width::Word, Width::Dword];

pub(crate) fn device() -> VirtioPci {
    VirtioPci::new(&Profile {
        device: DeviceType::Net,
        class: [2, 0, 0],
        features: feature::COMMON | 1 << 5,
        needs: &[],
        queue_sizes: &[256, 256],
        config: &[1, 2, 3, 4, 5, 6, 7, 8],
    })
}

fn bus() -> PciBus<VirtioPci> {
    let mut bus = PciBus::new();
    for slot in [1, 5] {
        assert!(bus.insert(slot, device()).is_ok());
    }
    bus
}

fn select(bus: &mut PciBus<VirtioPci>, slot: u8, register: u8) {
    let address = 1 << 31 | u32::from(slot) << 11 | u32::from(register & 0xFC);
    assert_eq!(
        bus.port_write(ADDRESS, Width::Dword, address),
        (0, Effect::None)
    );
}

fn read(bus: &mut PciBus<VirtioPci>, slot: u8, register: u8, width: Width) -> u32 {
    select(bus, slot, register);
    bus.port_read(DATA + u16::from(register & 3), width)
}

fn write(bus: &mut PciBus<VirtioPci>, slot: u8, register: u8, width: Width, value: u32) {
    select(bus, slot, register);
    let port = DATA + u16::from(register & 3);
    let (_, effect) = bus.port_write(port, width, value);
    assert_eq!(effect, Effect::None);
}

#[test]
fn a_scan_finds_the_bridge_and_the_functions_and_ones_elsewhere() {
    let mut bus = bus();
    let found: Vec<(u8, u32)> = (0..32)
        .map(|slot| (slot, read(&mut bus, slot, 0, Width::Dword)))
        .filter(|(_, id)| *id != 0xFFFF_FFFF)
        .collect();
    assert_eq!(
        found,
        [(0, 0x1237_8086), (1, 0x1041_1AF4), (5, 0x1041_1AF4)]
    );
    assert_eq!(read(&mut bus, 0, 0x08, Width::Dword) >> 16, 0x0600);
    assert_eq!(read(&mut bus, 1, 0x08, Width::Dword), 0x0200_0001);
    // Other functions of a slot, other buses, and no enable bit.
    for address in [0x8000_0900_u32, 0x8001_0800, 0x0000_0800] {
        assert_eq!(
            bus.port_write(ADDRESS, Width::Dword, address),
            (0, Effect::None)
        );
        for (port, width, ones) in [
            (DATA, Width::Dword, 0xFFFF_FFFF),
            (DATA + 2, Width::Word, 0xFFFF),
            (DATA + 3, Width::Byte, 0xFF),
        ] {
            assert_eq!(bus.port_read(port, width), ones);
        }
    }
}

#[test]
fn the_address_register_reads_back_and_only_as_a_whole() {
    let mut bus = bus();
    assert_eq!(
        bus.port_write(ADDRESS, Width::Dword, 0xFFFF_FFFF),
        (0, Effect::None)
    );
    assert_eq!(bus.port_read(ADDRESS, Width::Dword), 0x80FF_FFFC);
    assert_eq!(
        bus.port_write(ADDRESS + 1, Width::Byte, 0),
        (0, Effect::None)
    );
    assert_eq!(bus.port_read(ADDRESS, Width::Dword), 0x80FF_FFFC);
    assert_eq!(bus.port_read(ADDRESS, Width::Byte), 0xFF);
}

#[test]
fn slots_outside_the_bus_and_taken_ones_are_refused() {
    let mut bus = bus();
    for slot in [0, 1, 32, 255] {
        assert!(bus.insert(slot, device()).is_err(), "slot {slot}");
    }
    assert!(bus.insert(31, device()).is_ok());
}

#[test]
fn bars_are_sized_placed_and_moved_and_answer_only_with_memory_decoding() {
    let mut bus = bus();
    assert_eq!(bus.find(Gpa::new(WINDOW.start.into())), None);
    assert!(bus.place_bars(WINDOW, PORTS));
    let first = read(&mut bus, 1, 0x10, Width::Dword);
    let second = read(&mut bus, 5, 0x10, Width::Dword);
    assert_eq!((first, second), (WINDOW.start, WINDOW.start + BAR_BYTES));
    // Sizing, as guests do it.
    write(&mut bus, 1, 0x10, Width::Dword, 0xFFFF_FFFF);
    let size = read(&mut bus, 1, 0x10, Width::Dword);
    assert_eq!(!(size & !0xF) + 1, BAR_BYTES);
    assert_eq!(size & 0xF, 0, "32 bits, not prefetchable");
    for register in (0x18..0x28).step_by(4) {
        write(&mut bus, 1, register, Width::Dword, 0xFFFF_FFFF);
        assert_eq!(read(&mut bus, 1, register, Width::Dword), 0, "no BAR");
    }
    // Moving.
    write(&mut bus, 1, 0x10, Width::Dword, 0xD000_0000);
    assert_eq!(bus.find(Gpa::new(first.into())), None);
    let num_queues = Gpa::new(0xD000_0012);
    assert_eq!(bus.memory_read(num_queues, Width::Word), Some(2));
    let end = 0xD000_0000 + u64::from(BAR_BYTES);
    assert!(bus.find(Gpa::new(end - 1)).is_some());
    assert_eq!(bus.find(Gpa::new(end)), None);
    // An access across the end floats.
    assert_eq!(
        bus.memory_read(Gpa::new(end - 2), Width::Dword),
        Some(0xFFFF_FFFF)
    );
    // Decoding off.
    write(&mut bus, 1, 0x04, Width::Word, 0);
    assert_eq!(bus.memory_read(num_queues, Width::Word), None);
    write(&mut bus, 1, 0x04, Width::Word, 2);
    assert_eq!(bus.memory_read(num_queues, Width::Word), Some(2));
    assert_eq!(
        bus.memory_write(Gpa::new(0xE000_0000), Width::Word, 0),
        None
    );
}

#[test]
fn port_bars_are_sized_placed_and_moved_and_answer_only_with_port_decoding() {
    let mut bus = bus();
    assert_eq!(bus.bar_port_read(PORTS.start, Width::Word), None);
    assert!(bus.place_bars(WINDOW, PORTS));
    let first = read(&mut bus, 1, 0x14, Width::Dword);
    let second = read(&mut bus, 5, 0x14, Width::Dword);
    // Two queues, four ports each; the lowest bit says what kind of BAR it is.
    assert_eq!((first, second), (0xC001, 0xC009));
    write(&mut bus, 1, 0x14, Width::Dword, 0xFFFF_FFFF);
    assert_eq!(read(&mut bus, 1, 0x14, Width::Dword), 0xFFF9);
    // Moving.
    write(&mut bus, 1, 0x14, Width::Dword, 0x1238);
    assert_eq!(bus.bar_port_read(0xC000, Width::Word), None);
    assert_eq!(bus.bar_port_read(0x1238, Width::Word), Some(0));
    assert_eq!(bus.bar_port_read(0x123E, Width::Word), Some(0));
    // An access across the end floats; what is behind is nobody's.
    assert_eq!(bus.bar_port_read(0x123E, Width::Dword), Some(u32::MAX));
    assert_eq!(bus.bar_port_read(0x1240, Width::Byte), None);
    // Nothing is started that could be kicked.
    let done = bus.bar_port_write(0x123C);
    assert_eq!(done, Some((1, None)));
    // Each kind has its decoding.
    write(&mut bus, 1, 0x04, Width::Word, 2);
    assert_eq!(bus.bar_port_write(0x123C), None);
    assert!(bus.find(Gpa::new(WINDOW.start.into())).is_some());
    write(&mut bus, 1, 0x04, Width::Word, 1);
    assert!(bus.bar_port_write(0x123C).is_some());
    assert_eq!(bus.find(Gpa::new(WINDOW.start.into())), None);
    // A BAR at 0 is not placed.
    write(&mut bus, 1, 0x14, Width::Dword, 0);
    assert_eq!(bus.bar_port_read(0, Width::Word), None);
}

#[test]
fn bars_without_room_are_left_out() {
    let mut bus = bus();
    assert!(!bus.place_bars(WINDOW.start..WINDOW.start + BAR_BYTES, PORTS));
    assert!(!self::bus().place_bars(WINDOW, 0xC000..0xC008));
    assert_ne!(read(&mut bus, 1, 0x10, Width::Dword), 0);
    assert_eq!(read(&mut bus, 5, 0x10, Width::Dword), 0);
    assert_eq!(bus.find(Gpa::new(0)), None, "a BAR at 0 is not placed");
}

/// What a guest can never change: IDs, class, header type, the list of capabilities and what they say.
fn constants(function: &mut VirtioPci) -> Vec<u32> {
    let mut all: Vec<u32> = [0x00, 0x08, 0x0C, 0x2C, 0x34, 0x3D]
        .iter()
        .map(|offset| function.config_read(*offset, Width::Dword))
        .collect();
    all[5] &= 0x00FF_FFFF;
    for (id, offset) in nagaya_devices::test_support::guest::capabilities(function) {
        all.push(u32::from(id) << 8 | u32::from(offset));
        all.push(function.config_read(offset + 2, Width::Word) & 0x3FFF);
    }
    all
}

#[test]
fn every_offset_of_configuration_space_takes_every_width_and_keeps_what_is_constant() {
    let mut function = device();
    let before = constants(&mut function);
    let mut random = 1_u32;
    for offset in 0..=255_u8 {
        for width in Width::ALL {
            for value in [0, u32::MAX, 0x5555_5555, 0xAAAA_AAAA, random] {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let effect = function.config_write(offset, width, value);
                assert!(
                    matches!(effect, Effect::None | Effect::Reset),
                    "{effect:?} at {offset:#x}"
                );
                let read = function.config_read(offset, width);
                assert!(u64::from(read) <= width.ones());
                assert_eq!(constants(&mut function), before, "{offset:#x} {width:?}");
            }
        }
    }
}

#[test]
fn every_port_register_and_width_is_without_harm_on_every_slot() {
    let mut bus = bus();
    assert!(bus.place_bars(WINDOW, PORTS));
    for slot in [0, 1, 2, 31] {
        for register in (0..=252).step_by(4) {
            for port in ADDRESS..=DATA + 4 {
                for width in PORT_WIDTHS {
                    select(&mut bus, slot, register);
                    let value = bus.port_read(port, width);
                    assert!(u64::from(value) <= width.ones());
                    for value in [0, u32::MAX] {
                        select(&mut bus, slot, register);
                        let _ = bus.port_write(port, width, value);
                    }
                }
            }
        }
    }
    for slot in [1, 5] {
        assert_eq!(read(&mut bus, slot, 0, Width::Dword), 0x1041_1AF4);
    }
}

proptest! {
    /// Reads of any width give the same bytes, wherever they begin.
    #[test]
    fn widths_agree(writes in proptest::collection::vec((any::<u8>(), any::<u32>()), 0..20), offset: u8) {
        let mut function = device();
        for (offset, value) in writes {
            // Not the window's registers: reading its data reads a device register.
            if offset < 0x90 {
                let _ = function.config_write(offset, Width::Dword, value);
            }
        }
        let bytes: Vec<u8> = (0..4)
            .map(|index| offset.checked_add(index).map_or(0xFF, |at| function.config_read(at, Width::Byte) as u8))
            .collect();
        let whole = function.config_read(offset, Width::Dword);
        prop_assert_eq!(whole.to_le_bytes().to_vec(), bytes);
    }
}
