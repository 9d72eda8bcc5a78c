//! Interrupt messages between APICs, and from devices to them.

use serde::{Deserialize, Serialize};

use super::{LocalApic, Mode, register};
use crate::pci::Message;

/// How an interrupt is triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// Once.
    Edge,
    /// As long as its source says so.
    Level,
}

/// What a message is ("Interrupt Command Register (ICR)", delivery mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// An interrupt for all recipients.
    Fixed {
        /// Its vector.
        vector: u8,
    },
    /// An interrupt for one of the recipients, see [`lowest_priority`].
    LowestPriority {
        /// Its vector.
        vector: u8,
    },
    /// An NMI.
    Nmi,
    /// INIT: the vCPU is reset, with its APIC, and waits for a start-up message; the one that boots begins at its reset vector
    /// instead ("MP Initialization Protocol Algorithm for MP Systems"). Also an APIC that software has disabled takes it.
    Init,
    /// Start-up: a vCPU that waits since INIT begins in real mode with CS = `page` << 8 (base `page` << 12) and IP = 0. To one that
    /// does not wait it means nothing, so the second of the usual two is lost.
    StartUp {
        /// The page to begin at.
        page: u8,
    },
}

impl Delivery {
    /// By the three bits of a delivery mode. `None` for SMI (there is no SMM), ExtINT (an 8259A is connected to LINT0, not
    /// to a pin of the I/O APIC) and reserved ones.
    #[must_use]
    pub const fn from_bits(bits: u32, vector: u8) -> Option<Delivery> {
        match bits & 7 {
            0 => Some(Delivery::Fixed { vector }),
            1 => Some(Delivery::LowestPriority { vector }),
            4 => Some(Delivery::Nmi),
            5 => Some(Delivery::Init),
            6 => Some(Delivery::StartUp { page: vector }),
            _ => None,
        }
    }
}

/// Whom a message is for ("Determining IPI Destination").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recipients {
    /// All.
    All,
    /// All but one.
    AllBut {
        /// Its ID.
        id: u32,
    },
    /// The one with this ID.
    Physical {
        /// The ID.
        id: u32,
    },
    /// All whose logical ID this meets, by their own mode and model.
    Logical {
        /// The message destination address.
        address: u32,
    },
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusMessage {
    /// What it is.
    pub delivery: Delivery,
    /// Whom it is for.
    pub recipients: Recipients,
    /// How it is triggered.
    pub trigger: Trigger,
}

/// Whether a local APIC has taken a message.
///
/// The source of a level-triggered interrupt has to know ([`IoApic::deliver`](crate::ioapic::IoApic::deliver)). One that sends to
/// another APIC learns nothing of it: since the Pentium 4 no error says so ("Error Status Register (ESR)", send accept error).
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// At least one has.
    Accepted,
    /// None: nobody has that address, or who has it is disabled.
    Refused,
}

/// Bits of a message's address that say that it is an interrupt.
const ADDRESS_MASK: u64 = 0xFFFF_FFFF_FFF0_0000;
const ADDRESS: u64 = 0xFEE0_0000;
/// "All" where a destination has 8 bits.
const BROADCAST_8: u32 = 0xFF;

impl BusMessage {
    /// What a device's message means ("Message Signalled Interrupts"). `None` if it is a write to somewhere else, or a kind of
    /// message that there is not.
    #[must_use]
    pub fn from_device(message: Message) -> Option<BusMessage> {
        if message.address & ADDRESS_MASK != ADDRESS {
            return None;
        }
        let address = (message.address >> 12 & 0xFF) as u32;
        let is_logical = message.address & 1 << 2 != 0;
        let recipients = match address {
            BROADCAST_8 => Recipients::All,
            _ if is_logical => Recipients::Logical { address },
            _ => Recipients::Physical { id: address },
        };
        let is_level = message.data & 1 << 15 != 0;
        Some(BusMessage {
            delivery: Delivery::from_bits(message.data >> 8, message.data as u8)?,
            recipients,
            trigger: if is_level {
                Trigger::Level
            } else {
                Trigger::Edge
            },
        })
    }
}

/// What of an APIC decides whether a message is for it: small enough to be published in one word, so that senders on other CPUs
/// need not touch the APIC itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    id: u32,
    /// LDR in xAPIC mode, bits 31 to 24 of the register.
    logical_id: u8,
    mode: Mode,
    is_flat: bool,
    is_enabled: bool,
}

impl Route {
    /// As one word.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::XApic => 1,
            Mode::X2Apic => 2,
        };
        self.id as u64
            | (self.logical_id as u64) << 32
            | mode << 40
            | (self.is_flat as u64) << 42
            | (self.is_enabled as u64) << 43
    }

    /// From what [`Route::to_bits`] made. 0 is an APIC that takes nothing.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Route {
        Route {
            id: bits as u32,
            logical_id: (bits >> 32) as u8,
            mode: match bits >> 40 & 3 {
                1 => Mode::XApic,
                2 => Mode::X2Apic,
                _ => Mode::Disabled,
            },
            is_flat: bits >> 42 & 1 != 0,
            is_enabled: bits >> 43 & 1 != 0,
        }
    }

    /// Whether software has enabled the APIC (SVR): else it takes no interrupt.
    #[must_use]
    pub const fn is_software_enabled(&self) -> bool {
        self.is_enabled
    }

    /// Whether a message is for this APIC. A disabled one gets none.
    #[must_use]
    pub fn is_recipient(&self, recipients: &Recipients) -> bool {
        if self.mode == Mode::Disabled {
            return false;
        }
        match *recipients {
            Recipients::All => true,
            Recipients::AllBut { id } => id != self.id,
            Recipients::Physical { id } => id == self.id,
            Recipients::Logical { address } => self.meets_logical(address),
        }
    }

    /// "Logical Destination Mode", "Logical Destination Mode in x2APIC Mode".
    fn meets_logical(&self, address: u32) -> bool {
        if self.mode == Mode::X2Apic {
            let own = x2apic_logical_id(self.id);
            return own >> 16 == address >> 16 && own & address & 0xFFFF != 0;
        }
        if address > 0xFF {
            return false;
        }
        let own = u32::from(self.logical_id);
        if self.is_flat {
            own & address != 0
        } else {
            let is_cluster = own >> 4 == address >> 4 || address >> 4 == 0xF;
            is_cluster && own & address & 0xF != 0
        }
    }
}

/// LDR in x2APIC mode: cluster and bit by the ID.
const fn x2apic_logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xF)
}

impl LocalApic {
    /// What senders of messages have to know of it, as it is now.
    #[must_use]
    pub fn route(&self) -> Route {
        Route {
            id: self.id(),
            logical_id: (self.logical_id >> 24) as u8,
            mode: self.mode(),
            is_flat: self.destination_format == register::FLAT_MODEL,
            is_enabled: self.is_software_enabled(),
        }
    }

    /// Whether a message is for this APIC. A disabled one gets none.
    #[must_use]
    pub fn is_recipient(&self, recipients: &Recipients) -> bool {
        self.route().is_recipient(recipients)
    }

    /// LDR: what software wrote, or in x2APIC mode cluster and bit by the ID.
    pub(super) fn logical_id(&self) -> u32 {
        match self.mode() {
            Mode::X2Apic => x2apic_logical_id(self.id()),
            _ => self.logical_id,
        }
    }
}

/// Which of the recipients of [`Delivery::LowestPriority`] gets the interrupt: one enabled by software, with the lowest priority;
/// among equals the lowest ID.
#[must_use]
pub fn lowest_priority<'a>(recipients: impl IntoIterator<Item = &'a LocalApic>) -> Option<u32> {
    recipients
        .into_iter()
        .filter(|apic| apic.is_software_enabled())
        .map(|apic| (apic.processor_priority() >> 4, apic.id()))
        .min()
        .map(|(_, id)| id)
}
