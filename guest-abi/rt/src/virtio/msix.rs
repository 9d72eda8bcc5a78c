//! MSI-X: which message a device sends for which of its vectors.
//!
//! Source: PCI Local Bus Specification 3.0, 6.8.2 "MSI-X Capability and Table Structure"; Intel SDM Vol. 3, "Message Signalled
//! Interrupts".

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};

/// The capability's ID.
const ID: u8 = 0x11;
/// Bits of Message Control, in the upper half of the capability's first register.
const ENABLE: u32 = 1 << 31;
const MASK_ALL: u32 = 1 << 30;

/// Bytes of an entry of the table, and the offset of its control.
const ENTRY: usize = 16;
const CONTROL: usize = 12;
const MASKED: u32 = 1;

/// The capability as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its place in configuration space.
    pub at: u8,
    /// Entries of the table.
    pub entries: u16,
    /// BAR and offset of the table.
    pub table: (u8, u32),
    /// BAR and offset of the pending bits.
    pub pending: (u8, u32),
}

impl Capability {
    /// Finds it. `None` if the function has none.
    #[must_use]
    pub fn find<C: ConfigurationAccess>(
        root: &PciRoot<C>,
        access: &C,
        function: DeviceFunction,
    ) -> Option<Capability> {
        let found = root.capabilities(function).find(|found| found.id == ID)?;
        let place = |register| {
            let word = access.read_word(function, found.offset + register);
            ((word & 7) as u8, word & !7)
        };
        Some(Capability {
            at: found.offset,
            entries: (found.private_header & 0x7FF) + 1,
            table: place(4),
            pending: place(8),
        })
    }

    /// Switches MSI-X on or off, with the whole function masked or not.
    pub fn control<C: ConfigurationAccess>(
        &self,
        access: &mut C,
        function: DeviceFunction,
        state: State,
    ) {
        let word = access.read_word(function, self.at) & !(ENABLE | MASK_ALL);
        let bits = match state {
            State::Off => 0,
            State::On => ENABLE,
            State::Masked => ENABLE | MASK_ALL,
        };
        access.write_word(function, self.at, word | bits);
    }
}

/// What MSI-X does as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Off,
    /// Messages are sent but for masked entries.
    On,
    /// Messages wait.
    Masked,
}

/// The message that brings `vector` to the local APIC with the ID `apic`: address and data. Fixed, edge-triggered, physical.
#[must_use]
pub const fn message(apic: u8, vector: u8) -> (u64, u32) {
    (0xFEE0_0000 | (apic as u64) << 12, vector as u32)
}

/// The table of a device, in its memory.
#[derive(Debug)]
pub(crate) struct Table {
    start: *mut u32,
    pending: *const u64,
    entries: u16,
}

// SAFETY: device memory that its owner alone accesses.
unsafe impl Send for Table {}

impl Table {
    /// # Safety
    /// `start` and `pending` must be where the device has the table and the pending bits of that many entries.
    pub(crate) unsafe fn new(start: *mut u32, pending: *const u64, entries: u16) -> Table {
        Table {
            start,
            pending,
            entries,
        }
    }

    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    fn register(&self, entry: u16, offset: usize) -> Option<*mut u32> {
        // SAFETY: inside the table (`new`), since the entry is.
        (entry < self.entries)
            .then(|| unsafe { self.start.byte_add(usize::from(entry) * ENTRY + offset) })
    }

    fn write(&mut self, entry: u16, offset: usize, value: u32) {
        if let Some(register) = self.register(entry, offset) {
            // SAFETY: a register of the table; what it does is send interrupts, all of which have handlers.
            unsafe { register.write_volatile(value) };
        }
    }

    /// Sets an entry's message, and lets it be sent.
    pub(crate) fn set(&mut self, entry: u16, (address, data): (u64, u32)) {
        self.mask(entry, true);
        self.write(entry, 0, address as u32);
        self.write(entry, 4, (address >> 32) as u32);
        self.write(entry, 8, data);
        self.mask(entry, false);
    }

    /// Holds an entry's message back or lets it go.
    pub(crate) fn mask(&mut self, entry: u16, is_masked: bool) {
        self.write(entry, CONTROL, if is_masked { MASKED } else { 0 });
    }

    /// Whether an entry's message waits behind its mask.
    pub(crate) fn is_pending(&self, entry: u16) -> bool {
        if entry >= self.entries {
            return false;
        }
        // SAFETY: inside the pending bits (`new`).
        let word = unsafe { self.pending.add(usize::from(entry / 64)).read_volatile() };
        word & 1 << (entry % 64) != 0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::vec::Vec;

    use nagaya_devices::net::{Net, NetConfig, Offloads};
    use nagaya_devices::pci::{PciBus, PciFunction, Width};
    use nagaya_devices::switch::MacAddress;

    use super::*;
    use crate::virtio::port;

    /// The ports of a bus with one card in slot 3.
    #[derive(Clone)]
    struct Bus(Rc<RefCell<PciBus<Net>>>);

    impl Bus {
        fn new() -> Bus {
            let mut bus = PciBus::new();
            let card = Net::new(NetConfig {
                address: MacAddress([2, 0, 0, 0, 0, 1]),
                mtu: None,
                offloads: Offloads::None,
            });
            assert!(bus.insert(3, card).is_ok());
            assert!(bus.place_bars(0xE000_0000..0xE010_0000, 0xC000..0xD000));
            Bus(Rc::new(RefCell::new(bus)))
        }
    }

    impl ConfigurationAccess for Bus {
        fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
            let mut bus = self.0.borrow_mut();
            let _ = bus.port_write(0xCF8, Width::Dword, port::address(function, register));
            bus.port_read(0xCFC, Width::Dword)
        }

        fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
            let mut bus = self.0.borrow_mut();
            let _ = bus.port_write(0xCF8, Width::Dword, port::address(function, register));
            let _ = bus.port_write(0xCFC, Width::Dword, value);
        }

        unsafe fn unsafe_clone(&self) -> Bus {
            self.clone()
        }
    }

    #[test]
    fn the_capability_is_found_and_switches_messages_on_and_off() {
        let mut bus = Bus::new();
        let root = PciRoot::new(bus.clone());
        let found: Vec<_> = root.enumerate_bus(0).collect();
        // The bridge and the card.
        assert_eq!(found.len(), 2);
        let (at, _) = found[1];
        assert_eq!(at.device, 3);
        assert_eq!(Capability::find(&root, &bus, found[0].0), None);
        let capability = Capability::find(&root, &bus, at).expect("a card has it");
        // One for each queue and one for the configuration.
        assert_eq!(capability.entries, 3);
        assert_eq!(
            (capability.table, capability.pending),
            ((0, 0x2000), (0, 0x3000))
        );
        for (state, bits) in [
            (State::On, 0x8000),
            (State::Masked, 0xC000),
            (State::Off, 0),
        ] {
            capability.control(&mut bus, at, state);
            let word = bus.read_word(at, capability.at) >> 16;
            // The size of the table is not written over.
            assert_eq!(word, bits | 2, "{state:?}");
        }
        let mut inner = bus.0.borrow_mut();
        assert!(
            inner
                .function_mut(3)
                .is_some_and(|card| card.config_mut().bar_bytes(0) == 0x4000)
        );
    }

    #[test]
    fn a_message_is_for_one_apic_and_one_vector() {
        assert_eq!(message(0, 0x41), (0xFEE0_0000, 0x41));
        assert_eq!(message(3, 0xEF), (0xFEE0_3000, 0xEF));
    }
}
