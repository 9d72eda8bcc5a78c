//! The network between VMs: ports of one switch for all segments. The way of a frame from a card to others is `forward`'s.
//!
//! A kick takes frames out of the sender's queue, asks the switch where each goes, and copies it from the sender's buffers into
//! the receivers', then interrupts these. How much of it one kick does has a bound; the rest follows a moment later.
//! A frame whose only receiver has no buffers stays in the sender's queue until it has some, but not for long:
//! TCP and whoever sends in bursts lose nothing to a receiver that is about to run, and nobody is held up by one that is stuck.
//!
//! Concurrency: see `devices`. A receiver's entry in `PORTS` is read-locked while a frame is given to it.

pub(super) mod forward;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nagaya_devices::function::Function;
use nagaya_devices::net::{Net, NetConfig, NetStats, Offloads, TxFrame};
use nagaya_devices::switch::{
    Counters, DropReason, MAX_PORTS, MacAddress, PortConfig, PortId, Ports, Rate, SourceCheck,
    Switch, SwitchConfig,
};
use nagaya_vmm::config::{Mac, NicConfig};
use nagaya_vmm::event::Event;
use spin::{Lazy, Mutex, RwLock};

use super::Devices;
use crate::host::cpu::time;
use crate::host::event;

/// The longest frame: a TCP segment of 64 KiB with its Ethernet header and a VLAN tag.
const MAX_FRAME_BYTES: u32 = 65_535 + 14 + 4;
/// Addresses that the switch learns at each port: all 64 ports together take some 200 KiB.
const MAX_ADDRESSES: usize = 64;
/// How long the switch remembers an address.
const AGE_SECONDS: u64 = 300;
/// A card with a rate may send what it may in a hundredth of a second at once, and always one frame.
const BURSTS_PER_SECOND: u64 = 100;

/// The switch and what its ports and segments are called by.
struct Network {
    switch: Switch,
    ports: Ports,
    /// Number of each segment, and how many cards are on it.
    segments: BTreeMap<String, (u16, usize)>,
}

static NETWORK: Lazy<Mutex<Network>> = Lazy::new(|| {
    Mutex::new(Network {
        switch: Switch::new(SwitchConfig {
            max_addresses_per_port: MAX_ADDRESSES,
            age_ticks: time::khz().saturating_mul(1000 * AGE_SECONDS),
            max_frame_bytes: MAX_FRAME_BYTES,
        }),
        ports: Ports::default(),
        segments: BTreeMap::new(),
    })
});

/// Who is at a port: the devices of a VM, and which of its cards.
type Entry = Option<(Arc<Devices>, usize)>;

static PORTS: [RwLock<Entry>; MAX_PORTS as usize] = [const { RwLock::new(None) }; _];

/// A card's place in the network.
#[derive(Debug)]
pub struct Nic {
    port: PortId,
    segment: String,
    address: Mac,
    burst: Mutex<Burst>,
    /// Ports whose frames wait for this card's receive buffers.
    waiting: AtomicU64,
    /// It has no port any more.
    is_released: AtomicBool,
}

/// What a sender keeps from burst to burst.
#[derive(Debug)]
struct Burst {
    /// Storage for the frame that is under way.
    frame: TxFrame,
    /// Since when its next frame has been waiting for a receiver.
    stalled_at: Option<u64>,
    /// Receivers that nobody waits for.
    given_up: Ports,
    /// Frames that have got through to these in a row.
    regained: u32,
}

fn address_of(vm_id: u16, index: usize, config: &NicConfig) -> Mac {
    config
        .mac
        .unwrap_or_else(|| Mac::of(vm_id, u8::try_from(index).unwrap_or(u8::MAX)))
}

/// What the card of a VM is like.
pub(super) fn card(vm_id: u16, index: usize, config: &NicConfig) -> NetConfig {
    NetConfig {
        address: MacAddress(address_of(vm_id, index, config).0),
        mtu: config.mtu,
        offloads: if config.offloads {
            Offloads::ChecksumAndSegmentation
        } else {
            Offloads::None
        },
    }
}

fn rate(bits_per_second: u64) -> Rate {
    let bytes = bits_per_second / 8;
    Rate {
        bytes,
        per_ticks: time::khz().saturating_mul(1000),
        burst_bytes: (bytes / BURSTS_PER_SECOND).max(MAX_FRAME_BYTES.into()),
    }
}

impl Network {
    fn free_port(&self) -> Option<PortId> {
        (0..MAX_PORTS)
            .filter_map(PortId::new)
            .find(|port| !self.ports.contains(*port))
    }

    /// The number of a segment, which is new if there is no card on it.
    fn segment(&self, name: &str) -> Option<u16> {
        if let Some((number, _)) = self.segments.get(name) {
            return Some(*number);
        }
        (0..=u16::MAX).find(|number| self.segments.values().all(|(taken, _)| taken != number))
    }
}

impl Nic {
    /// Takes a port of the switch for a card. Frames to it are dropped until it is plugged in.
    pub(super) fn reserve(
        vm_id: u16,
        index: usize,
        config: &NicConfig,
        group: Option<&str>,
    ) -> Result<Nic, String> {
        let name = config
            .segment(group)
            .ok_or("it names no segment, and the VM is in no group")?;
        let address = address_of(vm_id, index, config);
        let mut network = NETWORK.lock();
        let port = network
            .free_port()
            .ok_or_else(|| format!("all {MAX_PORTS} ports of the switch are taken"))?;
        let segment = network
            .segment(name)
            .ok_or("there are no more numbers for segments")?;
        let config = PortConfig {
            segment,
            address: MacAddress(address.0),
            source_check: if config.check_source {
                SourceCheck::OwnOnly
            } else {
                SourceCheck::Any
            },
            rate: config.rate.map(rate),
        };
        network
            .switch
            .add_port(port, config, time::ticks())
            .map_err(|error| format!("{address} on segment {name:?}: {error:?}"))?;
        network.ports = network.ports.iter().chain([port]).collect();
        let cards = network.segments.entry(name.into()).or_insert((segment, 0));
        cards.1 += 1;
        Ok(Nic {
            port,
            segment: name.into(),
            address,
            burst: Mutex::new(Burst {
                frame: TxFrame::new(),
                stalled_at: None,
                given_up: Ports::default(),
                regained: 0,
            }),
            waiting: AtomicU64::new(0),
            is_released: AtomicBool::new(false),
        })
    }

    fn entry(&self) -> &'static RwLock<Entry> {
        entry(self.port)
    }

    pub(super) fn plug_in(&self, devices: &Arc<Devices>, index: usize) {
        *self.entry().write() = Some((Arc::clone(devices), index));
    }

    /// Gives the port back. Nothing is done by the second call.
    pub(super) fn release(&self) {
        // By the second call somebody else may have the port.
        if self.is_released.swap(true, Ordering::SeqCst) {
            return;
        }
        // A burst that is under way ends first: its frames must not come from whoever has the port next.
        drop(self.burst.lock());
        {
            let mut network = NETWORK.lock();
            let _ = network.switch.remove_port(self.port);
            if let Some((_, cards)) = network.segments.get_mut(&self.segment) {
                *cards -= 1;
            }
            network.segments.retain(|_, (_, cards)| *cards > 0);
        }
        let entry = self.entry().write().take();
        drop(entry);
        // Only now may another card have the port: its entry is empty.
        let mut network = NETWORK.lock();
        network.ports = network.ports.without(self.port);
    }

    /// The card has receive buffers again: senders that wait for them go on.
    pub(super) fn has_room(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let waiting = self.waiting.swap(0, Ordering::SeqCst);
        for sender in (0..MAX_PORTS).filter_map(PortId::new) {
            if waiting & 1 << sender.number() == 0 {
                continue;
            }
            let devices = entry(sender).read().clone();
            if let Some((devices, index)) = devices
                && let Some(nic) = devices.nics.get(index)
            {
                devices.charge_to_vm(|| forward::transmit(&devices, nic, slot_of(index)));
            }
        }
    }
}

fn entry(port: PortId) -> &'static RwLock<Entry> {
    // A port's number is below their number.
    #[allow(clippy::indexing_slicing, reason = "PortId is below MAX_PORTS")]
    &PORTS[usize::from(port.number())]
}

fn slot_of(index: usize) -> u8 {
    index as u8 + 1
}

impl Devices {
    fn with_net<R>(&self, slot: u8, action: impl FnOnce(&mut Net) -> R) -> Option<R> {
        match self.bus.lock().function_mut(slot) {
            Some(Function::Net(net)) => Some(action(net)),
            _ => None,
        }
    }
}

impl Devices {
    /// Adds an event with what each card did. To be sent later: that takes long, and others wait for the VM's end.
    pub fn report(&self, events: &mut Vec<Event>) {
        for (index, nic) in self.nics.iter().enumerate() {
            let stats = self.with_net(slot_of(index), |net| net.stats());
            let counters = NETWORK.lock().switch.counters(nic.port).cloned();
            let (Some(stats), Some(counters)) = (stats, counters) else {
                continue;
            };
            let line = event::new("nic")
                .string("vm", &self.name)
                .number("index", index as u64)
                .display("mac", nic.address)
                .string("segment", &nic.segment);
            events.push(
                line.counts("card", card_counts(&stats).into_iter())
                    .counts("port", port_counts(&counters).into_iter())
                    .counts(
                        "drops",
                        DropReason::ALL
                            .iter()
                            .map(|reason| (reason.name(), counters.drops(*reason))),
                    ),
            );
        }
    }
}

fn card_counts(stats: &NetStats) -> [(&'static str, u64); 9] {
    [
        ("sent-frames", stats.sent_frames),
        ("sent-bytes", stats.sent_bytes),
        ("bad-headers", stats.bad_headers),
        ("received-frames", stats.received_frames),
        ("received-bytes", stats.received_bytes),
        ("copies", stats.copies),
        ("checksums", stats.checksums),
        ("bursts", stats.bursts),
        ("interrupts", stats.interrupts),
    ]
}

fn port_counts(counters: &Counters) -> [(&'static str, u64); 4] {
    [
        ("in-frames", counters.received_frames),
        ("in-bytes", counters.received_bytes),
        ("out-frames", counters.sent_frames),
        ("out-bytes", counters.sent_bytes),
    ]
}
