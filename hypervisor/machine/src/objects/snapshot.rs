//! What a vCPU was doing: its registers and its last exits, for dumps and reports.

use alloc::vec::Vec;

use nagaya_vmm::control::{LastExit, Registers};
use nagaya_vmm::exit::{ExitSnapshot, vmx as decode};

/// Exits that are kept.
const KEPT: usize = 16;

/// Its size is a power of two, so that its place is a shift.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Recent {
    ticks: u64,
    rip: u64,
    exit: ExitSnapshot,
}

/// The last exits of a vCPU. Written on every exit: fixed size, one store for each word.
#[derive(Clone, Debug, Default)]
pub struct RecentExits {
    ring: [Recent; KEPT],
    /// Exits recorded so far; the next goes to this place, modulo [`KEPT`].
    recorded: usize,
}

impl RecentExits {
    /// Records an exit at a TSC value and a guest RIP.
    #[inline]
    pub fn record(&mut self, ticks: u64, rip: u64, exit: ExitSnapshot) {
        if let Some(slot) = self.ring.get_mut(self.recorded % KEPT) {
            *slot = Recent { ticks, rip, exit };
        }
        self.recorded = self.recorded.wrapping_add(1);
    }

    /// The same of an exit that its reason alone tells.
    #[inline]
    pub fn record_reason(&mut self, ticks: u64, rip: u64, reason: u32) {
        // What else was there before is made out by the reason: `decode::whole`.
        if let Some(slot) = self.ring.get_mut(self.recorded % KEPT) {
            slot.ticks = ticks;
            slot.rip = rip;
            slot.exit.reason = reason;
        }
        self.recorded = self.recorded.wrapping_add(1);
    }

    /// The last one.
    #[inline]
    #[must_use]
    pub fn last(&self) -> ExitSnapshot {
        self.ring
            .get(self.recorded.wrapping_sub(1) % KEPT)
            .map_or_else(ExitSnapshot::default, |recent| decode::whole(recent.exit))
    }

    /// All that are kept, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<LastExit> {
        let (newer, older) = self.ring.split_at(self.recorded % KEPT);
        older
            .iter()
            .chain(newer)
            .skip(KEPT.saturating_sub(self.recorded))
            .map(|recent| {
                let exit = decode::whole(recent.exit);
                LastExit {
                    ticks: recent.ticks,
                    reason: decode::reason(&exit).number,
                    qualification: exit.qualification,
                    rip: recent.rip,
                    gpa: exit.guest_physical,
                }
            })
            .collect()
    }
}

/// A vCPU at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its registers.
    pub registers: Registers,
    /// Its last exits, the oldest first.
    pub last_exits: Vec<LastExit>,
}
