//! What a VM is besides its vCPUs and devices: its configuration and identity, its time, its place in a group.

use alloc::vec::Vec;

use guest_abi::MAX_MEMBERS;
use nagaya_devices::state::{StateError, TscShift, check};
use nagaya_mem::Gva;
use serde::{Deserialize, Serialize};

use crate::config::{GroupConfig, VmConfig};
use crate::control::DoorbellCounts;
use crate::doorbell::{Mailbox, MailboxState};
use crate::restarts::Restarts;

/// A VM as its operator knows it, and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// Its number when it was saved. It gets another where that is taken.
    pub number: u16,
    /// What it was made of: name, share, affinities, devices.
    pub config: VmConfig,
    /// Its resets.
    pub restarts: Restarts,
    /// When it was saved.
    pub time: TimeState,
}

/// What the times of a snapshot are times of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeState {
    /// The machine's TSC when it was saved: all times of the snapshot are by it.
    pub saved_at: u64,
    /// How fast it ran. On a machine with another TSC the guest's clocks would go wrong.
    pub tsc_khz: u32,
    /// Where the guest's KVM clock is 0, by the same TSC.
    pub clock_start: i64,
    /// Seconds since 1970 when it was saved.
    pub seconds: u64,
}

/// How doorbells reach a VM, and its place in a group if it is in one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    /// What is pending, the mask, and what each sender has paid for.
    pub mailbox: MailboxState,
    /// The interrupt vector that it wants for doorbells, 0 for none.
    pub vector: u8,
    /// A HLT of vCPU 0 takes what is pending when it ends.
    pub halt_takes_events: bool,
    /// An interrupt with that vector is to be injected.
    pub is_interrupt_due: bool,
    /// Rings of its own.
    pub counts: DoorbellCounts,
    /// Its place in its group.
    pub member: Option<MemberState>,
}

/// A place in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    /// The group.
    pub group: GroupConfig,
    /// Its index.
    pub index: u32,
    /// Which life of a member it is.
    pub incarnation: u64,
    /// Where it has mapped the region.
    pub region: Option<RegionState>,
}

/// A mapped region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionState {
    /// Its guest-virtual address.
    pub va: u64,
    /// Pieces of guest-physical memory that it stands in for: first address, first page of the region, pages.
    pub runs: Vec<(u64, u64, u64)>,
}

impl VmState {
    /// Moves its times.
    pub(super) fn shift(&mut self, by: TscShift) {
        let TimeState {
            saved_at,
            tsc_khz: _,
            clock_start,
            seconds: _,
        } = &mut self.time;
        *saved_at = by.moved(*saved_at);
        *clock_start = by.moved_signed(*clock_start);
    }

    /// Whether it can be; the configuration is checked where a VM is made of it ([`crate::config::check_vm`]).
    pub(super) fn check(&self) -> Result<(), StateError> {
        let khz = self.time.tsc_khz;
        check(khz > 0, "time.tsc_khz", khz, "more than 0")
    }
}

impl EndpointState {
    /// Moves its times.
    pub(super) fn shift(&mut self, by: TscShift) {
        self.mailbox.shift(by);
    }

    /// Whether it can be.
    pub(super) fn check(&self) -> Result<(), StateError> {
        Mailbox::restore(&self.mailbox).map_err(|error| error.within("mailbox"))?;
        match &self.member {
            Some(member) => member.check().map_err(|error| error.within("member")),
            None => Ok(()),
        }
    }
}

impl MemberState {
    fn check(&self) -> Result<(), StateError> {
        let MemberState {
            group,
            index,
            incarnation: _,
            region,
        } = self;
        check(
            (*index as usize) < MAX_MEMBERS,
            "index",
            *index,
            "the index of a member",
        )?;
        let Some(RegionState { va, runs }) = region else {
            return Ok(());
        };
        check(
            Gva::new(*va).is_canonical() && va & 0xFFF == 0,
            "region.va",
            *va,
            "the canonical address of a page",
        )?;
        for (run, (gpa, first, pages)) in runs.iter().enumerate() {
            let is_page = gpa & 0xFFF == 0;
            check(is_page, "gpa", *gpa, "the address of a page")
                .and_then(|()| {
                    let end = first.checked_add(*pages);
                    let is_inside = end.is_some_and(|end| end <= group.pages);
                    check(is_inside, "pages", *pages, "within the region")
                })
                .map_err(|error| error.within(format_args!("region.runs[{run}]")))?;
        }
        Ok(())
    }
}
