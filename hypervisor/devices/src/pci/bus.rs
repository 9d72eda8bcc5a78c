//! The bus: finds the function that an access to a port or to memory is for.
//!
//! Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 (configuration mechanism #1).

use alloc::vec::Vec;
use core::ops::Range;

use nagaya_mem::Gpa;
use serde::{Deserialize, Serialize};

use super::{ConfigSpace, Effect, Identity, PciFunction, Width};
use crate::state::{StateError, check};

/// The ports of the bus: the address register and the data behind it.
pub const PORTS: core::ops::RangeInclusive<u16> = ADDRESS..=DATA + 3;

const ADDRESS: u16 = 0xCF8;
const DATA: u16 = 0xCFC;
/// Address register: accesses to the data become configuration accesses.
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that exist: the others and the lowest two are 0.
const ADDRESS_BITS: u32 = ENABLE | 0x00FF_FFFC;
/// Device numbers of a bus.
const SLOTS: u8 = 32;

/// The host bridge: the one that systems without PCI Express are known by (Intel 82441FX).
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x8086,
    device: 0x1237,
    revision: 2,
    class: [6, 0, 0],
    subsystem_vendor: 0,
    subsystem: 0,
};

/// Where an address is: a BAR of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Device number of the function.
    pub slot: u8,
    /// Index of the BAR.
    pub bar: u8,
    /// Bytes from its start.
    pub offset: u32,
}

/// A stretch of memory, or of ports, that a BAR answers for.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: u64,
    bytes: u64,
    slot: u8,
    bar: u8,
    /// Index of the function in the bus's list.
    index: usize,
}

/// Bus 0 with its host bridge in slot 0 and functions of one type in others.
#[derive(Debug)]
pub struct PciBus<F> {
    address: u32,
    bridge: ConfigSpace,
    functions: Vec<(u8, F)>,
    windows: Vec<Window>,
    port_windows: Vec<Window>,
}

impl<F: PciFunction> Default for PciBus<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: PciFunction> PciBus<F> {
    /// A bus with nothing but its host bridge.
    #[must_use]
    pub fn new() -> PciBus<F> {
        PciBus {
            address: 0,
            bridge: ConfigSpace::new(HOST_BRIDGE),
            functions: Vec::new(),
            windows: Vec::new(),
            port_windows: Vec::new(),
        }
    }

    /// Puts a function into a slot from 1 to 31.
    ///
    /// # Errors
    /// The function, if there is no such slot or it is taken.
    pub fn insert(&mut self, slot: u8, function: F) -> Result<(), F> {
        let is_free = (1..SLOTS).contains(&slot) && self.function(slot).is_none();
        if !is_free {
            return Err(function);
        }
        self.functions.push((slot, function));
        self.find_windows();
        Ok(())
    }

    /// Places all BARs in a stretch of memory or of ports, each aligned to its size, and switches their decoding on: there is no
    /// firmware to do it. What has no room is not placed; `false` then.
    pub fn place_bars(&mut self, memory: Range<u32>, ports: Range<u16>) -> bool {
        let ports = u32::from(ports.start)..u32::from(ports.end);
        let mut free = [Some(memory.start), Some(ports.start)];
        let mut all = true;
        for (_, function) in &mut self.functions {
            let config = function.config_mut();
            for bar in 0..6 {
                let bytes = config.bar_bytes(bar);
                if bytes == 0 {
                    continue;
                }
                let [of_memory, of_ports] = &mut free;
                let (within, free) = if config.is_port_bar(bar) {
                    (&ports, of_ports)
                } else {
                    (&memory, of_memory)
                };
                let start = free.and_then(|free| free.checked_next_multiple_of(bytes));
                let end = start.and_then(|start| start.checked_add(bytes));
                match (start, end) {
                    (Some(start), Some(end)) if start > 0 && end <= within.end => {
                        config.place_bar(bar, start);
                        *free = Some(end);
                    }
                    _ => all = false,
                }
            }
        }
        self.find_windows();
        all
    }

    /// The function in a slot.
    #[must_use]
    pub fn function(&self, slot: u8) -> Option<&F> {
        let found = self.functions.iter().find(|(at, _)| *at == slot);
        found.map(|(_, function)| function)
    }

    /// The function in a slot, to be changed. Whoever moves a BAR by it uses [`PciBus::moved`] then.
    #[inline]
    #[must_use]
    pub fn function_mut(&mut self, slot: u8) -> Option<&mut F> {
        // Mostly they are in the slots from 1 on, one behind the other.
        let expected = usize::from(slot).wrapping_sub(1);
        let is_there = |(at, _): &(u8, F)| *at == slot;
        let index = if self.functions.get(expected).is_some_and(is_there) {
            expected
        } else {
            self.functions.iter().position(is_there)?
        };
        let (_, function) = self.functions.get_mut(index)?;
        Some(function)
    }

    /// All functions with their slots.
    pub fn functions_mut(&mut self) -> impl Iterator<Item = (u8, &mut F)> {
        self.functions
            .iter_mut()
            .map(|(slot, function)| (*slot, function))
    }

    /// Looks anew where BARs are.
    pub fn moved(&mut self) {
        self.find_windows();
    }

    fn find_windows(&mut self) {
        self.windows.clear();
        self.port_windows.clear();
        for (index, (slot, function)) in self.functions.iter().enumerate() {
            let config = function.config();
            for (bar, start, bytes) in config.bars() {
                let windows = if config.is_port_bar(bar) {
                    &mut self.port_windows
                } else {
                    &mut self.windows
                };
                windows.push(Window {
                    start: u64::from(start),
                    bytes: u64::from(bytes),
                    slot: *slot,
                    bar,
                    index,
                });
            }
        }
    }

    /// The BAR that an access of memory is for. Where BARs lie upon each other, the first answers.
    #[must_use]
    pub fn find(&self, address: Gpa) -> Option<Place> {
        let (window, offset) = find(&self.windows, address.get())?;
        Some(Place {
            slot: window.slot,
            bar: window.bar,
            offset,
        })
    }

    /// Whether a BAR answers anywhere in a range of memory.
    #[must_use]
    pub fn has_memory_in(&self, range: Range<u64>) -> bool {
        self.windows
            .iter()
            .any(|window| window.start < range.end && range.start < window.start + window.bytes)
    }

    fn read(&mut self, (window, offset): (Window, u32), width: Width) -> Option<u64> {
        let (_, function) = self.functions.get_mut(window.index)?;
        Some(function.bar_read(window.bar, offset, width) & width.ones())
    }

    /// Reads memory; `None` if no BAR is there.
    pub fn memory_read(&mut self, address: Gpa, width: Width) -> Option<u64> {
        self.read(find(&self.windows, address.get())?, width)
    }

    /// Writes memory; `None` if no BAR is there. The effect is of the function in the slot.
    #[inline]
    pub fn memory_write(&mut self, address: Gpa, width: Width, value: u64) -> Option<(u8, Effect)> {
        let (window, offset) = find(&self.windows, address.get())?;
        let (slot, function) = self.functions.get_mut(window.index)?;
        let effect = function.bar_write(window.bar, offset, width, value & width.ones());
        Some((*slot, effect))
    }

    /// Reads a port of an I/O BAR; `None` if there is none.
    pub fn bar_port_read(&mut self, port: u16, width: Width) -> Option<u32> {
        let value = self.read(find(&self.port_windows, port.into())?, width)?;
        Some(value as u32)
    }

    /// Writes a port of an I/O BAR; `None` if there is none. The slot, and the queue that is notified by it: no write of a port
    /// means anything else, whatever the value.
    #[inline]
    pub fn bar_port_write(&mut self, port: u16) -> Option<(u8, Option<u16>)> {
        let (window, offset) = find(&self.port_windows, port.into())?;
        let (slot, function) = self.functions.get_mut(window.index)?;
        Some((*slot, function.notified(window.bar, offset)))
    }

    /// The slot and register that the address register names, if it is on this bus and function 0, for a data port.
    fn target(&self, port: u16) -> Option<(u8, u8)> {
        let byte = port.checked_sub(DATA).filter(|byte| *byte < 4)?;
        let [register, device_function, bus, enable] = self.address.to_le_bytes();
        let is_here = enable & 0x80 != 0 && bus == 0 && device_function & 7 == 0;
        is_here.then_some((device_function >> 3, register | byte as u8))
    }

    /// Reads a port of [`PORTS`]. Where nobody answers, and at any other port, all bits are ones.
    pub fn port_read(&mut self, port: u16, width: Width) -> u32 {
        let ones = width.ones() as u32;
        if port == ADDRESS && width == Width::Dword {
            return self.address;
        }
        if !fits(port, width) {
            return ones;
        }
        match self.target(port) {
            Some((0, register)) => self.bridge.read(register, width),
            Some((slot, register)) => match self.function_mut(slot) {
                Some(function) => function.config_read(register, width) & ones,
                None => ones,
            },
            None => ones,
        }
    }

    /// Writes a port of [`PORTS`]. The effect is of the function in the slot, 0 for the bridge or nobody.
    pub fn port_write(&mut self, port: u16, width: Width, value: u32) -> (u8, Effect) {
        if port == ADDRESS && width == Width::Dword {
            self.address = value & ADDRESS_BITS;
            return (0, Effect::None);
        }
        if !fits(port, width) {
            return (0, Effect::None);
        }
        match self.target(port) {
            Some((0, register)) => {
                self.bridge.write(register, width, value);
                (0, Effect::None)
            }
            Some((slot, register)) => {
                let Some(function) = self.function_mut(slot) else {
                    return (0, Effect::None);
                };
                let effect = function.config_write(register, width, value);
                // It may have moved a BAR.
                self.find_windows();
                (slot, effect)
            }
            None => (0, Effect::None),
        }
    }
}

/// The window that an address or port is in, and how far. Where windows lie upon each other, the first answers.
#[inline]
fn find(windows: &[Window], address: u64) -> Option<(Window, u32)> {
    windows.iter().find_map(|window| {
        let offset = address.wrapping_sub(window.start);
        (offset < window.bytes).then_some((*window, offset as u32))
    })
}

/// Whether an access stays within the data ports: a configuration access does not leave its 32-bit register.
fn fits(port: u16, width: Width) -> bool {
    let end = usize::from(port) + width.bytes();
    PORTS.contains(&port) && end <= usize::from(DATA) + 4
}

/// The bus as a value, with states `S` of its functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusState<S> {
    address: u32,
    bridge: Vec<u8>,
    /// The functions with their slots.
    pub functions: Vec<(u8, S)>,
}

impl<F: PciFunction> PciBus<F> {
    /// What it is; `save` is asked for each function.
    #[must_use]
    pub fn save<S>(&self, save: impl Fn(&F) -> S) -> BusState<S> {
        let PciBus {
            address,
            bridge,
            functions,
            // They follow from the functions' BARs.
            windows: _,
            port_windows: _,
        } = self;
        BusState {
            address: *address,
            bridge: bridge.save(),
            functions: functions
                .iter()
                .map(|(slot, function)| (*slot, save(function)))
                .collect(),
        }
    }

    /// A bus that goes on from there; `restore` makes each function.
    ///
    /// # Errors
    /// [`StateError`]: no bus of ours gets there.
    pub fn restore<S>(
        state: &BusState<S>,
        restore: impl Fn(&S) -> Result<F, StateError>,
    ) -> Result<PciBus<F>, StateError> {
        let BusState {
            address,
            bridge,
            functions,
        } = state;
        check(
            address & !ADDRESS_BITS == 0,
            "address",
            *address,
            "without reserved bits",
        )?;
        let bridge = ConfigSpace::new(HOST_BRIDGE).restore(bridge);
        let mut bus = PciBus {
            address: *address,
            bridge: bridge.map_err(|error| error.within("bridge"))?,
            functions: Vec::new(),
            windows: Vec::new(),
            port_windows: Vec::new(),
        };
        for (slot, function) in functions {
            let function = restore(function);
            let function =
                function.map_err(|error| error.within(format_args!("functions[slot {slot}]")))?;
            let is_free = bus.insert(*slot, function).is_ok();
            check(is_free, "functions.slot", *slot, "1 to 31, each once")?;
        }
        Ok(bus)
    }
}
