//! The devices of a VM: its PCI bus with everything on it, and who is told of what follows from an access.
//!
//! The devices themselves are plain data (`nagaya-devices`); here they get their locks, the guest's RAM and the way to its vCPUs.
//!
//! Concurrency: one lock for each VM's bus, with the functions on it; never are two of them held at once. A sender's burst holds
//! its card's `burst` lock, then by turns its own bus's, the network's and a receiver's bus's (`net`). RAM is read-locked for as
//! long as a device works with it; who changes what is RAM, or ends the VM, waits for them ([`ram::Ram`]).
//! Locks in their order: `burst`, RAM views, bus (then a disk's) or network or deferred work (leaves). Nothing else is locked under them but
//! what waking a vCPU takes.

pub mod board;
pub mod console;
pub mod deferred;
pub mod disk;
pub mod net;
pub mod ram;
mod random;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use guest_abi::{PAGE_BYTES, boot};
use nagaya_devices::apic::BusMessage;
use nagaya_devices::console::{self as virtio_console, Console};
use nagaya_devices::entropy::Entropy;
use nagaya_devices::function::Function;
use nagaya_devices::net::{Net, RECEIVE, TRANSMIT};
use nagaya_devices::pci::{Effect, Message, PciBus, Width};
use nagaya_devices::virtio::Stopped;
use nagaya_mem::Gpa;
use nagaya_vmm::config::{GuestKind, VmConfig};
use spin::Mutex;

use crate::host::cpu::time;
use crate::objects::handle::Handle;
use crate::objects::{interrupts, scheduling};
use board::Board;
use console::GuestConsole;
use disk::Disk;
use random::Random;

/// The only queue of a device that takes requests: disk, random numbers.
const REQUESTS: u16 = 0;

/// Complaints about a VM's drivers that are logged: a guest must not flood the log by breaking its devices.
const MAX_COMPLAINTS: u32 = 8;
/// Bytes that a console or a source of entropy moves at a time ...
const CHUNK_BYTES: usize = 256;
/// ... and how often, before the rest is left for later.
const MAX_CHUNKS: usize = 16;
/// How long a device works at a time, as a part of a millisecond, and in ticks at least: what it does can be made to cost far more
/// than its bytes say.
const TURNS_PER_MS: u64 = 5;
const LEAST_TURN_TICKS: u64 = 500_000;
/// Work in others' time is charged when it has added up to this part of a turn.
const CHARGES_PER_TURN: u64 = 10;

/// A VM's devices.
#[derive(Debug)]
pub struct Devices {
    /// Number of the VM.
    id: u16,
    /// Its name.
    name: String,
    /// The vCPUs, for interrupts.
    vcpus: Vec<Arc<Handle>>,
    /// Its RAM.
    pub ram: ram::Ram,
    bus: Mutex<PciBus<Function>>,
    /// Its cards: the first is in slot 1.
    nics: Vec<net::Nic>,
    rng_slot: Option<u8>,
    console_slot: Option<u8>,
    /// Its disks with their slots.
    disks: Vec<(u8, Arc<Disk>)>,
    /// What a PC has besides; only some kinds of guests see one.
    board: Option<Arc<Board>>,
    console: Arc<GuestConsole>,
    random: Random,
    /// Slots for which deferred work is noted on some CPU.
    deferred: AtomicU32,
    /// Ticks that others have worked for the VM and that it has not been charged for.
    uncharged_ticks: AtomicU64,
    complaints: AtomicU32,
    is_detached: AtomicBool,
}

/// The devices as their VM holds them: with it they leave the network and let go of its RAM.
#[derive(Debug)]
pub struct Attached(Arc<Devices>);

impl Deref for Attached {
    type Target = Arc<Devices>;

    fn deref(&self) -> &Arc<Devices> {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.detach();
    }
}

/// Devices that outlive a reset of their VM: disks with what is on them, the board with its clock.
#[derive(Clone, Debug, Default)]
pub struct ResetPersistentDevices {
    disks: Vec<Arc<Disk>>,
    board: Option<Arc<Board>>,
}

/// What a step of a device's work came to.
struct Step {
    /// An interrupt for the driver.
    message: Option<Message>,
    /// There is more to do.
    more: bool,
}

/// How long a device works at a time.
struct StepLimit {
    /// Most steps.
    steps: usize,
    /// TSC value at which the turn is over.
    end: u64,
}

/// What devices are made for.
pub struct Owner<'a> {
    /// Number of the VM.
    pub id: u16,
    /// Name of its group.
    pub group: Option<&'a str>,
    /// Its vCPUs.
    pub vcpus: &'a [Arc<Handle>],
    /// Its RAM.
    pub ram: ram::Ram,
    /// Where what it says goes.
    pub console: &'a Arc<GuestConsole>,
    /// The devices that it had before its reset, if this is one.
    pub kept: &'a ResetPersistentDevices,
    /// Runs are to repeat exactly.
    pub deterministic: bool,
}

/// Ticks that a device works at a time.
fn turn() -> u64 {
    (time::khz() / TURNS_PER_MS).max(LEAST_TURN_TICKS)
}

/// When a turn that begins now is over, whatever is left.
fn end_of_turn() -> u64 {
    time::ticks().saturating_add(turn())
}

impl Devices {
    /// Makes the devices that a VM is configured to have and plugs its cards in.
    ///
    /// # Errors
    /// The message names the device.
    pub fn attach(config: &VmConfig, owner: Owner<'_>) -> Result<Attached, String> {
        let mut bus = PciBus::new();
        let mut slot = 0;
        let mut insert = |function: Function| {
            slot += 1;
            match bus.insert(slot, function) {
                Ok(()) => Ok(slot),
                Err(_) => Err(format!("its bus has no slot {slot}")),
            }
        };
        for (index, nic) in config.nics.iter().enumerate() {
            insert(Function::Net(Net::new(net::card(owner.id, index, nic))))?;
        }
        let rng_slot = config
            .rng
            .then(|| insert(Function::Entropy(Entropy::new())))
            .transpose()?;
        let console_slot = config
            .virtio_console
            .then(|| insert(Function::Console(Console::new())))
            .transpose()?;
        let disks = Disk::all(owner.id, config, &owner.kept.disks)?
            .into_iter()
            .enumerate()
            .map(|(index, disk)| Ok((insert(disk.device(index))?, disk)))
            .collect::<Result<Vec<_>, String>>()?;
        let window = boot::PCI_WINDOW_GPA as u32..boot::PCI_WINDOW_END_GPA as u32;
        if !bus.place_bars(window, boot::PCI_PORTS) {
            return Err(String::from("its devices do not fit their window"));
        }
        if config.kind == GuestKind::Linux {
            bus.functions_mut()
                .for_each(|(_, function)| function.prefer_ports());
        }
        let mut nics = Vec::new();
        for (index, nic) in config.nics.iter().enumerate() {
            match net::Nic::reserve(owner.id, index, nic, owner.group) {
                Ok(reserved) => nics.push(reserved),
                Err(reason) => {
                    nics.iter().for_each(net::Nic::release);
                    return Err(format!("its network card {index} cannot be: {reason}"));
                }
            }
        }
        let devices = Arc::new(Devices {
            id: owner.id,
            name: config.name.clone(),
            vcpus: owner.vcpus.to_vec(),
            ram: owner.ram,
            bus: Mutex::new(bus),
            nics,
            rng_slot,
            console_slot,
            disks,
            board: Board::of(config, owner.kept.board.as_ref()),
            console: Arc::clone(owner.console),
            random: Random::new(owner.id, owner.deterministic),
            deferred: AtomicU32::new(0),
            uncharged_ticks: AtomicU64::new(0),
            complaints: AtomicU32::new(0),
            is_detached: AtomicBool::new(false),
        });
        for (index, nic) in devices.nics.iter().enumerate() {
            nic.plug_in(&devices, index);
        }
        Ok(Attached(devices))
    }

    /// Unplugs everything. Afterwards no CPU touches the VM's RAM for a device. May be called again.
    pub fn detach(&self) {
        self.is_detached.store(true, Ordering::SeqCst);
        for nic in &self.nics {
            nic.release();
        }
        self.ram.take_away();
    }

    /// Whether something else than a doorbell may wake the VM: a frame, the operator's input, work that was left for later.
    #[must_use]
    pub fn can_interrupt(&self) -> bool {
        !self.nics.is_empty()
            || self.console_slot.is_some()
            || self.rng_slot.is_some()
            || !self.disks.is_empty()
            || self.board.is_some()
    }

    /// Reads memory where no RAM is; `None` if no device is there.
    pub fn memory_read(&self, gpa: u64, width: Width) -> Option<u64> {
        self.board_memory_read(gpa, width)
            .or_else(|| self.bus.lock().memory_read(Gpa::new(gpa), width))
    }

    /// Writes memory where no RAM is, with what follows. `false` if no device is there.
    pub fn memory_write(self: &Arc<Self>, gpa: u64, width: Width, value: u64) -> bool {
        if self.board_memory_write(gpa, width, value) {
            return true;
        }
        let done = self.bus.lock().memory_write(Gpa::new(gpa), width, value);
        let Some((slot, effect)) = done else {
            return false;
        };
        self.apply_effect(slot, effect);
        true
    }

    /// Whether a device has registers in a page of memory where no RAM is.
    pub fn has_registers_in(&self, page: u64) -> bool {
        self.has_board_registers_in(page) || self.bus.lock().has_memory_in(page..page + PAGE_BYTES)
    }

    /// Tells the log of something that the VM does with its devices; only the first few times.
    pub fn complain(&self, complaint: fmt::Arguments<'_>) {
        if self.complaints.fetch_add(1, Ordering::Relaxed) < MAX_COMPLAINTS {
            log::warn!("VM {}: {complaint}", self.name);
        }
    }

    /// Reads one of the bus's ports.
    pub fn port_read(&self, port: u16, width: Width) -> u32 {
        self.bus.lock().port_read(port, width)
    }

    /// Writes one of the bus's ports, with what follows.
    pub fn port_write(self: &Arc<Self>, port: u16, width: Width, value: u32) {
        let (slot, effect) = self.bus.lock().port_write(port, width, value);
        self.apply_effect(slot, effect);
    }

    /// Reads a port where a device may have been placed; `None` if none is there.
    pub fn bar_port_read(&self, port: u16, width: Width) -> Option<u32> {
        self.bus.lock().bar_port_read(port, width)
    }

    /// Writes a port where a device may have been placed, with what follows. `false` if none is there.
    #[inline]
    pub fn bar_port_write(self: &Arc<Self>, port: u16) -> bool {
        let done = self.bus.lock().bar_port_write(port);
        if let Some((slot, Some(queue))) = done {
            self.serve(slot, queue);
        }
        done.is_some()
    }

    fn apply_effect(self: &Arc<Self>, slot: u8, effect: Effect) {
        match effect {
            Effect::None | Effect::Reset | Effect::Started => {}
            Effect::Kick { queue } => self.serve(slot, queue),
            Effect::Messages(messages) => messages
                .into_iter()
                .for_each(|message| self.interrupt(message)),
        }
    }

    /// Brings a device's message to the vCPUs.
    fn interrupt(&self, message: Message) {
        if let Some(message) = BusMessage::from_device(message) {
            // A write on the bus: nobody answers it.
            let _ = interrupts::send(&self.vcpus, &message);
        }
    }

    /// A device has stopped for what its driver did.
    fn stopped(&self, slot: u8, stopped: Stopped) {
        self.complain(format_args!(
            "the device in slot {slot} waits for a reset: queue {}: {:?}",
            stopped.failure.queue, stopped.failure.error
        ));
        if let Some(message) = stopped.message {
            self.interrupt(message);
        }
    }

    /// Serves a queue that was kicked.
    fn serve(self: &Arc<Self>, slot: u8, queue: u16) {
        let index = usize::from(slot).wrapping_sub(1);
        let disk = self.disks.iter().find(|(own, _)| *own == slot);
        match (self.nics.get(index), disk, queue) {
            (Some(nic), _, TRANSMIT) => net::forward::transmit(self, nic, slot),
            (Some(nic), _, RECEIVE) => nic.has_room(),
            (None, Some((_, disk)), REQUESTS) => self.serve_disk(slot, disk),
            (None, None, REQUESTS) if Some(slot) == self.rng_slot => self.serve_rng(slot),
            (None, None, virtio_console::TRANSMIT) if Some(slot) == self.console_slot => {
                self.serve_console(slot);
            }
            // Room for input, of which the sender is told when it asks.
            (None, None, virtio_console::RECEIVE) if Some(slot) == self.console_slot => {}
            // A queue that a device has got and nobody here serves is not to be taken for another.
            _ => self.unserved(slot, queue),
        }
    }

    /// A queue was kicked that nobody serves.
    #[cold]
    fn unserved(&self, slot: u8, queue: u16) {
        if self.complaints.fetch_add(1, Ordering::Relaxed) < MAX_COMPLAINTS {
            log::error!(
                "VM {}: nobody serves queue {queue} of the device in slot {slot}",
                self.name
            );
        }
    }

    /// Does work for this VM in whoever's time it is: the VM pays for it.
    fn charge_to_vm(&self, work: impl FnOnce()) {
        let start = time::ticks();
        work();
        let spent = time::ticks().saturating_sub(start);
        // A charge is a decision of the scheduler's, which costs more than a short piece of work: those are added up.
        if self.uncharged_ticks.fetch_add(spent, Ordering::Relaxed) + spent
            >= turn() / CHARGES_PER_TURN
        {
            scheduling::charge(self.id, self.uncharged_ticks.swap(0, Ordering::Relaxed));
        }
    }

    /// Does what was left for later at a slot.
    fn serve_deferred(self: &Arc<Self>, slot: u8) {
        self.deferred.fetch_and(!(1 << slot), Ordering::SeqCst);
        if self.is_detached.load(Ordering::SeqCst) {
            return;
        }
        // What is left over is always output, or the only queue of a device.
        let has_output = self.nics.get(usize::from(slot).wrapping_sub(1)).is_some()
            || Some(slot) == self.console_slot;
        let queue = if has_output { TRANSMIT } else { REQUESTS };
        self.charge_to_vm(|| self.serve(slot, queue));
    }

    /// Leaves the rest of a slot's work for later, on this CPU.
    fn defer(self: &Arc<Self>, slot: u8) {
        let bit = 1 << slot;
        if self.deferred.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            deferred::add(Arc::clone(self), slot);
        }
    }

    /// Does a device's work step by step until nothing is left, its driver has broken it, or the turn is over: then the rest is
    /// left for later. `step` answers `None` if the device is not there.
    fn serve_by_steps(
        self: &Arc<Self>,
        slot: u8,
        limit: StepLimit,
        mut step: impl FnMut() -> Option<Result<Step, Stopped>>,
    ) {
        for _ in 0..limit.steps {
            match step() {
                None => return,
                Some(Err(stopped)) => return self.stopped(slot, stopped),
                Some(Ok(done)) => {
                    if let Some(message) = done.message {
                        self.interrupt(message);
                    }
                    if !done.more {
                        return;
                    }
                }
            }
            if time::ticks() >= limit.end {
                break;
            }
        }
        self.defer(slot);
    }

    fn serve_rng(self: &Arc<Self>, slot: u8) {
        let ram = self.ram.view_for_long();
        // So few bytes that no clock is needed.
        let limit = StepLimit {
            steps: MAX_CHUNKS,
            end: u64::MAX,
        };
        self.serve_by_steps(slot, limit, || {
            let mut bytes = [0; CHUNK_BYTES];
            self.random.fill(&mut bytes);
            let served = match self.bus.lock().function_mut(slot)? {
                Function::Entropy(entropy) => entropy.serve(&*ram, &bytes),
                _ => return None,
            };
            Some(served.map(|served| Step {
                message: served.message,
                more: served.more,
            }))
        });
    }

    fn serve_console(self: &Arc<Self>, slot: u8) {
        let limit = StepLimit {
            steps: MAX_CHUNKS,
            end: end_of_turn(),
        };
        self.serve_by_steps(slot, limit, || {
            let mut bytes = [0; CHUNK_BYTES];
            let moved = {
                let ram = self.ram.view_for_long();
                match self.bus.lock().function_mut(slot)? {
                    Function::Console(console) => console.take_output(&*ram, &mut bytes),
                    _ => return None,
                }
            };
            Some(moved.map(|moved| {
                // Nothing is held while it is sent: a serial line is slow.
                self.console
                    .text(bytes.get(..moved.bytes).unwrap_or_default());
                Step {
                    message: moved.message,
                    more: moved.more,
                }
            }))
        });
    }

    /// The board, if there is one.
    #[inline]
    #[must_use]
    pub fn board(&self) -> Option<&Board> {
        self.board.as_deref()
    }

    /// What the VM has again after a reset.
    #[must_use]
    pub fn kept(&self) -> ResetPersistentDevices {
        ResetPersistentDevices {
            disks: self
                .disks
                .iter()
                .map(|(_, disk)| Arc::clone(disk))
                .collect(),
            board: self.board.clone(),
        }
    }

    /// Gives the guest console input; how many bytes it had room for. `None` if it has neither a virtio console nor a serial
    /// port.
    pub fn console_input(&self, bytes: &[u8]) -> Option<usize> {
        let Some(slot) = self.console_slot else {
            return self.serial_input(bytes);
        };
        let ram = self.ram.view();
        let moved = match self.bus.lock().function_mut(slot) {
            Some(Function::Console(console)) => console.give_input(&*ram, bytes),
            _ => return None,
        };
        match moved {
            Ok(moved) => {
                if let Some(message) = moved.message {
                    self.interrupt(message);
                }
                Some(moved.bytes)
            }
            Err(stopped) => {
                self.stopped(slot, stopped);
                Some(0)
            }
        }
    }
}
