//! What a vCPU was doing: its registers and its last exits, for dumps and reports.

use alloc::vec::Vec;

use nagaya_vmm::control::{LastExit, Registers, Segment, Table};
use nagaya_vmm::exit::ExitSnapshot;
use x86_defs::exit::ExitReason;
use x86_defs::vmcs as field;

use crate::arch::GuestRegisters;

/// Exits that are kept.
const KEPT: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
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

    /// The last one.
    #[inline]
    #[must_use]
    pub fn last(&self) -> ExitSnapshot {
        self.ring
            .get(self.recorded.wrapping_sub(1) % KEPT)
            .map_or_else(ExitSnapshot::default, |recent| recent.exit)
    }

    /// All that are kept, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<LastExit> {
        let (newer, older) = self.ring.split_at(self.recorded % KEPT);
        older
            .iter()
            .chain(newer)
            .skip(KEPT.saturating_sub(self.recorded))
            .map(|recent| LastExit {
                ticks: recent.ticks,
                reason: ExitReason::from_raw(recent.exit.reason).0,
                qualification: recent.exit.qualification,
                rip: recent.rip,
                gpa: recent.exit.guest_physical,
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

impl Snapshot {
    /// Of a vCPU with these registers and exits, whose VMCS `read` reads by encoding (0 for what is not there), and whose CR2 is
    /// that.
    pub fn take(
        general: &GuestRegisters,
        exits: &RecentExits,
        cr2: u64,
        read: impl Fn(u32) -> u64,
    ) -> Snapshot {
        // Selectors, limits, access rights and bases lie 2 apart, in the order ES, CS, SS, DS, FS, GS, LDTR, TR.
        let segment = |index: u32| Segment {
            selector: read(field::GUEST_ES_SELECTOR.encoding() + 2 * index) as u16,
            base: read(field::GUEST_ES_BASE.encoding() + 2 * index),
            limit: read(field::GUEST_ES_LIMIT.encoding() + 2 * index) as u32,
            access: read(field::GUEST_ES_ACCESS_RIGHTS.encoding() + 2 * index) as u32,
        };
        let registers = Registers {
            general: [
                general.rax,
                general.rcx,
                general.rdx,
                general.rbx,
                read(field::GUEST_RSP.encoding()),
                general.rbp,
                general.rsi,
                general.rdi,
                general.r8,
                general.r9,
                general.r10,
                general.r11,
                general.r12,
                general.r13,
                general.r14,
                general.r15,
            ],
            rip: read(field::GUEST_RIP.encoding()),
            rflags: read(field::GUEST_RFLAGS.encoding()),
            cr0: read(field::GUEST_CR0.encoding()),
            cr2,
            cr3: read(field::GUEST_CR3.encoding()),
            cr4: read(field::GUEST_CR4.encoding()),
            efer: read(field::GUEST_IA32_EFER.encoding()),
            segments: core::array::from_fn(|index| segment(index as u32)),
            ldtr: segment(6),
            tr: segment(7),
            gdtr: Table {
                base: read(field::GUEST_GDTR_BASE.encoding()),
                limit: read(field::GUEST_GDTR_LIMIT.encoding()) as u32,
            },
            idtr: Table {
                base: read(field::GUEST_IDTR_BASE.encoding()),
                limit: read(field::GUEST_IDTR_LIMIT.encoding()) as u32,
            },
        };
        Snapshot {
            registers,
            last_exits: exits.all(),
        }
    }
}
