//! What a port counts.

/// Why a frame went nowhere, or not to one of its receivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// It came in by a port that does not exist.
    NoPort,
    /// Shorter than a header or longer than allowed.
    Length,
    /// Its source is a group, or not the port's own.
    Source,
    /// Too much came in by the port.
    Rate,
    /// It is for the neighbour only, and that is the switch.
    LinkLocal,
    /// Its receiver is where it came from.
    SamePort,
    /// There is no other port on the segment.
    NobodyElse,
    /// The receiver has no buffers for it.
    NoBuffers,
    /// The receiver has no driver, or its device waits for a reset.
    NotReady,
    /// What the sender says of checksum or segmentation is wrong.
    Header,
    /// The receiver's buffers are in too many pieces.
    Scattered,
    /// The receiver did not agree to an offload that the frame needs.
    Offload,
    /// The receiver's queue is broken.
    BrokenReceiver,
    /// The sender's memory went away while the frame was copied.
    BrokenSender,
}

impl DropReason {
    /// All of them.
    pub const ALL: [DropReason; 14] = [
        DropReason::NoPort,
        DropReason::Length,
        DropReason::Source,
        DropReason::Rate,
        DropReason::LinkLocal,
        DropReason::SamePort,
        DropReason::NobodyElse,
        DropReason::NoBuffers,
        DropReason::NotReady,
        DropReason::Header,
        DropReason::Scattered,
        DropReason::Offload,
        DropReason::BrokenReceiver,
        DropReason::BrokenSender,
    ];

    /// A short name for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::NoPort => "no-port",
            DropReason::Length => "length",
            DropReason::Source => "source",
            DropReason::Rate => "rate",
            DropReason::LinkLocal => "link-local",
            DropReason::SamePort => "same-port",
            DropReason::NobodyElse => "nobody-else",
            DropReason::NoBuffers => "no-buffers",
            DropReason::NotReady => "not-ready",
            DropReason::Header => "header",
            DropReason::Scattered => "scattered",
            DropReason::Offload => "offload",
            DropReason::BrokenReceiver => "broken-receiver",
            DropReason::BrokenSender => "broken-sender",
        }
    }
}

/// Counters of a port, seen from the switch: what the guest sends is received here. They turn over at 2^64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came in and were forwarded to at least one port.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that went out.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Frames dropped for a reason: as they came in, or as they should have gone out.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    pub(super) fn count_received(&mut self, bytes: u32) {
        self.received_frames = self.received_frames.wrapping_add(1);
        self.received_bytes = self.received_bytes.wrapping_add(bytes.into());
    }

    pub(super) fn uncount_received(&mut self, bytes: u32) {
        self.received_frames = self.received_frames.wrapping_sub(1);
        self.received_bytes = self.received_bytes.wrapping_sub(bytes.into());
    }

    pub(super) fn count_sent(&mut self, bytes: u32) {
        self.sent_frames = self.sent_frames.wrapping_add(1);
        self.sent_bytes = self.sent_bytes.wrapping_add(bytes.into());
    }

    pub(super) fn count_drop(&mut self, reason: DropReason) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count = count.wrapping_add(1);
        }
    }
}
