//! The way of frames from a card to others: bursts, what becomes of each frame, and interrupts for the receivers.
//!
//! Concurrency: see `devices`. The sender's burst lock is held throughout; its bus's, the network's and a receiver's by turns.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use nagaya_devices::net::{BurstLimit, Delivery, Next, TxFrame};
use nagaya_devices::queue::QueueError;
use nagaya_devices::switch::{DropReason, PortId, Ports, Verdict};

use super::super::Devices;
use super::super::ram::RamSnapshotGuard;
use super::{Burst, NETWORK, Nic, entry, slot_of};
use crate::host::cpu::time;

/// What one burst does at most.
const LIMIT: BurstLimit = BurstLimit {
    frames: 64,
    bytes: 256 << 10,
};
/// How long a frame waits for its receiver's buffers ...
const PATIENCE_MS: u64 = 5;
/// ... and how many frames must get through in a row until somebody waits for it again: one that always had one buffer would hold
/// its senders up at each frame.
const REGAINED_BY: u32 = 32;
/// Who got frames of a burst.
#[derive(Default)]
struct Receivers {
    all: Ports,
    /// Those who got more after their interrupt.
    late: Ports,
}

/// What became of a frame.
enum Fate {
    /// It has been delivered or dropped, and counted.
    Over,
    /// Its receiver has no buffers for it.
    Stalled,
    /// The sender's buffers are no RAM.
    Broken(QueueError),
}

/// Sends a burst of what a card's driver has put into its queue.
pub(in super::super) fn transmit(devices: &Arc<Devices>, nic: &Nic, slot: u8) {
    let mut burst = nic.burst.lock();
    // Under the lock, which whoever releases it takes.
    if nic.is_released.load(Ordering::SeqCst) {
        return;
    }
    let burst = &mut *burst;
    let ram = devices.ram.view_for_long();
    let ram = &*ram;
    let mut receivers = Receivers::default();
    let mut is_stalled = false;
    // The rest is left for later, without knowing whether there is any.
    let mut has_more = false;
    let begun_at = time::ticks();
    // Beside the results: it is large, and would be moved along with each of them.
    let mut broken = None;
    let mut next = devices.with_net(slot, |net| {
        let begun = net.begin_burst(ram, LIMIT);
        let found = begun.and_then(|()| net.next_frame(ram, &mut burst.frame));
        found.map_err(|stopped| broken = Some(stopped)).ok()
    });
    loop {
        match next {
            Some(Some(Next::Frame)) => {}
            Some(Some(Next::Empty | Next::Limit) | None) => break,
            None => return,
        }
        match forward(devices, nic, slot, burst, ram, &mut receivers) {
            Fate::Over => {
                burst.stalled_at = None;
                let is_late = time::ticks().saturating_sub(begun_at) >= super::super::turn();
                next = devices.with_net(slot, |net| {
                    let done = net.finish_frame(ram, &burst.frame);
                    let found = done.and_then(|()| {
                        if is_late {
                            return Ok(Next::Limit);
                        }
                        net.next_frame(ram, &mut burst.frame)
                    });
                    found.map_err(|stopped| broken = Some(stopped)).ok()
                });
                if is_late && matches!(next, Some(Some(_))) {
                    has_more = true;
                    break;
                }
            }
            Fate::Stalled => {
                devices.with_net(slot, |net| net.put_back(&burst.frame));
                is_stalled = true;
                break;
            }
            Fate::Broken(error) => {
                broken = devices.with_net(slot, |net| net.stop_sender(error));
                break;
            }
        }
    }
    for receiver in receivers.late.iter() {
        end_delivery(receiver);
    }
    let stopped = match broken {
        Some(stopped) => stopped,
        None => match devices.with_net(slot, |net| net.end_burst(ram)) {
            Some(Ok(end)) => {
                if let Some(message) = end.message {
                    devices.interrupt(message);
                }
                if end.more || is_stalled || has_more {
                    devices.defer(slot);
                }
                return;
            }
            Some(Err(stopped)) => stopped,
            None => return,
        },
    };
    devices.stopped(slot, stopped);
}

/// Brings the frame of a burst to where it is to go.
fn forward(
    devices: &Devices,
    nic: &Nic,
    slot: u8,
    burst: &mut Burst,
    ram: &RamSnapshotGuard,
    receivers: &mut Receivers,
) -> Fate {
    let now = time::ticks();
    let header = *burst.frame.header();
    let verdict = NETWORK.lock().switch.plan(nic.port, &header, now);
    let Verdict::Forward(ports) = verdict else {
        return Fate::Over;
    };
    let mut is_first = true;
    for port in ports.iter() {
        if !is_first {
            devices.with_net(slot, |net| net.charge(header.bytes));
        }
        is_first = false;
        // With several receivers nobody waits for one of them.
        let may_wait = ports == Ports::one(port)
            && !burst.given_up.contains(port)
            && burst
                .stalled_at
                .is_none_or(|since| now.saturating_sub(since) < time::khz() * PATIENCE_MS);
        // The first frame does not wait for the others of its burst.
        let and_then = if receivers.all.contains(port) {
            Then::More
        } else {
            Then::Interrupt
        };
        match deliver(port, nic.port, ram, &burst.frame, may_wait, and_then) {
            Given::Done => {
                if and_then == Then::More {
                    receivers.late = receivers.late.with(port);
                }
                receivers.all = receivers.all.with(port);
                if burst.given_up.contains(port) {
                    burst.regained += 1;
                    if burst.regained >= REGAINED_BY {
                        burst.given_up = burst.given_up.without(port);
                    }
                }
                NETWORK.lock().switch.count_sent(port, header.bytes);
            }
            Given::Waits => {
                burst.stalled_at.get_or_insert(now);
                NETWORK.lock().switch.take_back(nic.port, &header);
                return Fate::Stalled;
            }
            Given::Dropped(reason) => {
                if reason == DropReason::NoBuffers {
                    burst.given_up = burst.given_up.with(port);
                    burst.regained = 0;
                }
                NETWORK.lock().switch.count_drop(port, reason);
            }
            Given::Broken(error) => {
                NETWORK
                    .lock()
                    .switch
                    .count_drop(port, DropReason::BrokenSender);
                return Fate::Broken(error);
            }
        }
    }
    Fate::Over
}

/// What became of a frame at one receiver.
enum Given {
    Done,
    /// There are no buffers; the receiver knows who waits.
    Waits,
    Dropped(DropReason),
    Broken(QueueError),
}

/// What follows on a frame that was delivered.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// The receiver is interrupted if it wants to be.
    Interrupt,
    /// Others may follow; [`end_delivery`] comes after the last.
    More,
}

fn deliver(
    port: PortId,
    sender: PortId,
    ram: &RamSnapshotGuard,
    frame: &TxFrame,
    may_wait: bool,
    and_then: Then,
) -> Given {
    let entry = entry(port).read();
    let Some((devices, index)) = &*entry else {
        return Given::Dropped(DropReason::NotReady);
    };
    let Some(nic) = devices.nics.get(*index) else {
        return Given::Dropped(DropReason::NotReady);
    };
    let slot = slot_of(*index);
    let own = devices.ram.view();
    let (mut due, mut broken) = (None, None);
    let delivery = devices.with_net(slot, |net| {
        let delivery = net.deliver(&*own, ram, frame);
        if delivery == Delivery::Done && and_then == Then::Interrupt {
            match net.end_delivery(&*own) {
                Ok(message) => due = message,
                Err(stopped) => broken = Some(stopped),
            }
        } else if may_wait && delivery == Delivery::Dropped(DropReason::NoBuffers) {
            // Under the bus's lock, which a kick for new buffers takes before it looks here.
            nic.waiting.fetch_or(1 << sender.number(), Ordering::SeqCst);
        }
        delivery
    });
    match delivery {
        Some(Delivery::Done) => {
            if let Some(message) = due {
                devices.interrupt(message);
            } else if let Some(stopped) = broken {
                devices.stopped(slot, stopped);
            }
            Given::Done
        }
        Some(Delivery::Dropped(DropReason::NoBuffers)) if may_wait => Given::Waits,
        Some(Delivery::Dropped(reason)) => Given::Dropped(reason),
        Some(Delivery::SenderBroken(error)) => Given::Broken(error),
        Some(Delivery::Stopped(stopped)) => {
            devices.stopped(slot, stopped);
            Given::Dropped(DropReason::BrokenReceiver)
        }
        None => Given::Dropped(DropReason::NotReady),
    }
}

/// Ends a run of deliveries at a receiver: it is interrupted if it wants to be.
fn end_delivery(port: PortId) {
    let entry = entry(port).read();
    let Some((devices, index)) = &*entry else {
        return;
    };
    let slot = slot_of(*index);
    let ram = devices.ram.view();
    match devices.with_net(slot, |net| net.end_delivery(&*ram)) {
        Some(Ok(Some(message))) => devices.interrupt(message),
        Some(Err(stopped)) => devices.stopped(slot, stopped),
        Some(Ok(None)) | None => {}
    }
}
