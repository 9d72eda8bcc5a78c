//! A virtio device's PCI function: the transport of `virtio-drivers`, with MSI-X and with kicks that cost one access instead of
//! three.

use core::ptr::NonNull;

use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, PciRoot,
};
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};
use virtio_drivers::{Hal, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::msix::{self, Capability, State, Table};
use super::{ConfigPorts, Error, Kind, Ram};
use crate::apic::Apic;
use crate::interrupts;

/// The capability ID of virtio's structures, and the types of two of them (4.1.4).
const VENDOR: u8 = 0x09;
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
/// Offsets in the common configuration (4.1.4.3).
const QUEUE_SELECT: usize = 0x16;
const QUEUE_VECTOR: usize = 0x1A;
const QUEUE_NOTIFY_OFFSET: usize = 0x1E;
const CONFIG_VECTOR: usize = 0x10;
/// No vector.
const NO_VECTOR: u16 = 0xFFFF;
/// The most queues that are remembered.
const QUEUES: usize = 4;

/// The register that tells a device to look at a queue.
#[derive(Clone, Copy, Debug)]
pub struct Doorbell {
    register: Register,
    queue: u16,
}

/// Where such a register is. A port costs less: the hypervisor need not look at the instruction.
#[derive(Clone, Copy, Debug)]
enum Register {
    Port(u16),
    Memory(NonNull<u16>),
}

// SAFETY: device memory; a write only makes the device look.
unsafe impl Send for Doorbell {}

impl Doorbell {
    /// Kicks the device.
    #[inline]
    pub fn ring(&self) {
        // What was published before is seen by the device that is kicked: it is entered by an exit of this vCPU.
        match self.register {
            Register::Port(port) => super::port::notify(port, self.queue),
            // SAFETY: a notification register (`Function::doorbell`).
            Register::Memory(at) => unsafe { at.as_ptr().write_volatile(self.queue) },
        }
    }
}

/// A virtio device, as a transport for the drivers of `virtio-drivers` and for those of this crate. It is reset when dropped.
#[derive(Debug)]
pub struct Function {
    transport: PciTransport,
    at: DeviceFunction,
    common: NonNull<u8>,
    notify: Notify,
    doorbells: [Option<Doorbell>; QUEUES],
    msix: Option<(Capability, Table)>,
    /// Entry of the MSI-X table for each queue.
    vectors: [u16; QUEUES],
}

// SAFETY: device memory that its owner alone accesses.
unsafe impl Send for Function {}

impl Function {
    pub(super) fn new(at: DeviceFunction) -> core::result::Result<Function, Error> {
        let mut root = PciRoot::new(ConfigPorts);
        let mut access = ConfigPorts;
        let (_, command) = root.get_status_command(at);
        root.set_command(
            at,
            command
                | Command::IO_SPACE
                | Command::MEMORY_SPACE
                | Command::BUS_MASTER
                | Command::INTERRUPT_DISABLE,
        );
        let transport = PciTransport::new::<Ram, _>(&mut root, at).map_err(Error::Pci)?;
        let common = structures(&root, &access, at, COMMON)
            .next()
            .ok_or(Error::Unfit)?;
        let common = bar_address(&mut root, at, (common.bar, common.offset)).ok_or(Error::Unfit)?;
        let notify = Notify::find(&mut root, &access, at).ok_or(Error::Unfit)?;
        let msix = Capability::find(&root, &access, at).and_then(|found| {
            let table = bar_address(&mut root, at, found.table)?.cast();
            let pending = bar_address(&mut root, at, found.pending)?.cast();
            // SAFETY: where the capability says.
            let table = unsafe { Table::new(table.as_ptr(), pending.as_ptr(), found.entries) };
            // Off until somebody wants interrupts.
            found.control(&mut access, at, State::Off);
            Some((found, table))
        });
        Ok(Function {
            transport,
            at,
            common,
            notify,
            doorbells: [None; QUEUES],
            msix,
            vectors: [NO_VECTOR; QUEUES],
        })
    }

    /// Where it is on the bus.
    #[must_use]
    pub fn slot(&self) -> u8 {
        self.at.device
    }

    fn write_common(&mut self, offset: usize, value: u16) {
        // SAFETY: a 16-bit register of the common configuration.
        unsafe {
            self.common
                .byte_add(offset)
                .cast::<u16>()
                .write_volatile(value)
        };
    }

    fn read_common(&self, offset: usize) -> u16 {
        // SAFETY: as above.
        unsafe { self.common.byte_add(offset).cast::<u16>().read_volatile() }
    }

    /// The register by which a queue is kicked; it stays where it is.
    pub fn doorbell(&mut self, queue: u16) -> Doorbell {
        if let Some(Some(known)) = self.doorbells.get(usize::from(queue)) {
            return *known;
        }
        self.write_common(QUEUE_SELECT, queue);
        let place = self.read_common(QUEUE_NOTIFY_OFFSET);
        let bell = Doorbell {
            register: self.notify.register(place),
            queue,
        };
        if let Some(slot) = self.doorbells.get_mut(usize::from(queue)) {
            *slot = Some(bell);
        }
        bell
    }

    /// Takes a vector of this guest, puts it into an entry of the MSI-X table, addressed to the calling vCPU, and switches MSI-X
    /// on. The vector.
    ///
    /// # Errors
    /// [`Error::NoInterrupts`].
    pub fn enable_interrupt(
        &mut self,
        entry: u16,
        handler: fn(),
    ) -> core::result::Result<u8, Error> {
        let apic = Apic::enable().ok_or(Error::NoInterrupts)?;
        let (capability, table) = self.msix.as_mut().ok_or(Error::NoInterrupts)?;
        let id = u8::try_from(apic.id()).map_err(|_| Error::NoInterrupts)?;
        if entry >= table.entries() {
            return Err(Error::NoInterrupts);
        }
        let vector = interrupts::take_vector(handler).ok_or(Error::NoInterrupts)?;
        // On before the entry is let go: while MSI-X is off the table is not looked at.
        capability.control(&mut ConfigPorts, self.at, State::Masked);
        table.set(entry, msix::message(id, vector));
        capability.control(&mut ConfigPorts, self.at, State::On);
        Ok(vector)
    }

    /// Entries of the MSI-X table; 0 without MSI-X.
    #[must_use]
    pub fn msix_entries(&self) -> u16 {
        self.msix.as_ref().map_or(0, |(_, table)| table.entries())
    }

    /// Holds the messages of an MSI-X entry back, or lets them go.
    pub fn mask(&mut self, entry: u16, is_masked: bool) {
        if let Some((_, table)) = &mut self.msix {
            table.mask(entry, is_masked);
        }
    }

    /// Holds all messages back, or lets them go.
    pub fn mask_all(&mut self, is_masked: bool) {
        if let Some((capability, _)) = &self.msix {
            let state = if is_masked { State::Masked } else { State::On };
            capability.control(&mut ConfigPorts, self.at, state);
        }
    }

    /// Whether a message of an entry waits behind a mask.
    #[must_use]
    pub fn is_pending(&self, entry: u16) -> bool {
        self.msix
            .as_ref()
            .is_some_and(|(_, table)| table.is_pending(entry))
    }

    /// Has a queue interrupt by an entry of the MSI-X table; now, if it is set up already, else when it is.
    pub fn route(&mut self, queue: u16, entry: u16) {
        if let Some(slot) = self.vectors.get_mut(usize::from(queue)) {
            *slot = entry;
        }
        self.write_common(QUEUE_SELECT, queue);
        self.write_common(QUEUE_VECTOR, entry);
    }

    /// Has changes of the configuration interrupt by an entry of the MSI-X table.
    pub fn route_config(&mut self, entry: u16) {
        self.write_common(CONFIG_VECTOR, entry);
    }

    /// Whether the device has stopped and waits for a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET)
    }

    /// Resets the device: it has let go of all memory when this returns.
    pub fn reset(&mut self) {
        self.set_status(DeviceStatus::empty());
        while !self.get_status().is_empty() {
            crate::time::pause();
        }
    }
}

impl Transport for Function {
    fn device_type(&self) -> Kind {
        self.transport.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.transport.read_device_features()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.transport.write_driver_features(features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.transport.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.doorbell(queue).ring();
    }

    fn get_status(&self) -> DeviceStatus {
        self.transport.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.transport.set_status(status);
    }

    fn set_guest_page_size(&mut self, bytes: u32) {
        self.transport.set_guest_page_size(bytes);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.transport.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        if let Some(entry) = self.vectors.get(usize::from(queue)).copied() {
            self.write_common(QUEUE_SELECT, queue);
            self.write_common(QUEUE_VECTOR, entry);
        }
        self.transport
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.transport.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.transport.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.transport.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.transport.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.transport.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        self.transport.write_config_space(offset, value)
    }
}

/// Where a structure of the device is: its capability, the BAR, and the offset there.
struct Structure {
    capability: u8,
    bar: u8,
    offset: u32,
}

/// The structures of a type, in the order in which the device prefers them.
fn structures(
    root: &PciRoot<ConfigPorts>,
    access: &ConfigPorts,
    at: DeviceFunction,
    kind: u8,
) -> impl Iterator<Item = Structure> {
    root.capabilities(at)
        .filter(move |found| found.id == VENDOR && (found.private_header >> 8) as u8 == kind)
        .map(move |found| Structure {
            capability: found.offset,
            bar: access.read_word(at, found.offset + 4) as u8,
            offset: access.read_word(at, found.offset + 8),
        })
}

/// Where the notification registers are, and how far apart (4.1.4.4).
#[derive(Clone, Copy, Debug)]
struct Notify {
    start: Register,
    step: u16,
}

impl Notify {
    /// Those among the ports, if there are some and the command line does not say `notify=memory`.
    fn find(
        root: &mut PciRoot<ConfigPorts>,
        access: &ConfigPorts,
        at: DeviceFunction,
    ) -> Option<Notify> {
        let all: alloc::vec::Vec<Structure> = structures(root, access, at, NOTIFY).collect();
        let all: alloc::vec::Vec<Notify> = all
            .into_iter()
            .filter_map(|found| {
                let step = access.read_word(at, found.capability + 16);
                let place = (found.bar, found.offset);
                Some(Notify {
                    start: match bar_port(root, at, place) {
                        Some(port) => Register::Port(port),
                        None => Register::Memory(bar_address(root, at, place)?.cast()),
                    },
                    step: u16::try_from(step).ok()?,
                })
            })
            .collect();
        let by_port = crate::args::get("notify") != Some("memory");
        let is_wanted = |notify: &&Notify| matches!(notify.start, Register::Port(_)) == by_port;
        all.iter().find(is_wanted).or(all.first()).copied()
    }

    fn register(self, place: u16) -> Register {
        match self.start {
            Register::Port(port) => Register::Port(port.wrapping_add(place * self.step)),
            Register::Memory(at) => {
                let offset = usize::from(place) * usize::from(self.step);
                // SAFETY: inside the notification structure, as the device says (4.1.4.4).
                Register::Memory(unsafe { at.byte_add(offset) })
            }
        }
    }
}

/// The port at an offset of an I/O BAR. `None` if it is none, or is not placed.
fn bar_port(
    root: &mut PciRoot<ConfigPorts>,
    at: DeviceFunction,
    (bar, offset): (u8, u32),
) -> Option<u16> {
    match root.bar_info(at, bar).ok()?? {
        // What is above 64 Ki ports says nothing: those bits may be fixed.
        BarInfo::IO { address, size } if address != 0 && offset < size & 0xFFFF => {
            u16::try_from(address.checked_add(offset)?).ok()
        }
        _ => None,
    }
}

fn bar_address(
    root: &mut PciRoot<ConfigPorts>,
    at: DeviceFunction,
    (bar, offset): (u8, u32),
) -> Option<NonNull<u8>> {
    let (start, bytes) = root.bar_info(at, bar).ok()??.memory_address_size()?;
    if start == 0 || u64::from(offset) >= bytes {
        return None;
    }
    let address = start.checked_add(offset.into())?;
    // SAFETY: a device's memory, mapped one to one below 4 GiB.
    Some(unsafe { Ram::mmio_phys_to_virt(address, 0) })
}
