//! Rings that break the rules, for tests of the device: none of them lets it write where it must not.

use super::buffers::Transmitter;

/// What is wrong with a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakage {
    /// The index says that there are more chains than entries.
    Index,
    /// A chain begins at a descriptor that the ring does not have.
    Head,
    /// A buffer is where no RAM is.
    Address,
    /// A chain never ends.
    Loop,
    /// A buffer that the device should read is one to be written.
    Direction,
}

impl Breakage {
    /// Every kind.
    pub const ALL: [Breakage; 5] = [
        Breakage::Index,
        Breakage::Head,
        Breakage::Address,
        Breakage::Loop,
        Breakage::Direction,
    ];
}

impl Transmitter {
    /// Breaks the ring and kicks. The card is of no use until it is set up anew.
    pub fn break_ring(&mut self, how: Breakage) {
        let (ring, bell) = self.parts();
        match how {
            Breakage::Index => ring.offer_raw(0, ring.size() + 1, None),
            Breakage::Head => ring.offer_raw(ring.size(), 1, None),
            // Above all RAM: only what the device refuses is named.
            Breakage::Address => ring.offer_raw(0, 1, Some((0xFFFF_0000_0000, 64, 0))),
            Breakage::Loop => ring.offer_raw(0, 1, Some((0, 64, 1))),
            Breakage::Direction => ring.offer_raw(0, 1, Some((0xFFFF_0000_0000, 64, 2))),
        }
        bell.ring();
    }
}
