//! Groups on the machine: the region's frames, the group page, the members' doorbells.
//!
//! Concurrency: a group's state is behind one lock, taken by joins, leaves, maps and deaths. Ringing takes no lock that others hold for long: it goes
//! through the members' [`Endpoint`]s, which only joins change.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use guest_abi::group::split_life;
use guest_abi::{Errno, MAX_MEMBERS, PAGE_BYTES};
use nagaya_mem::{Hpa, Owner, PageSize};
use nagaya_sched::{GroupAccount, VcpuId};
use nagaya_vmm::config::GroupConfig;
use nagaya_vmm::control::DoorbellCounts;
use nagaya_vmm::doorbell::Mailbox;
use nagaya_vmm::group::{Group as State, PageWriter};
use spin::{Mutex, RwLock};

use crate::host::cpu::time;
use crate::host::event;
use crate::host::memory::{self, OwnedFrames, Whose};
use crate::objects::handle::Handle;
use crate::objects::numbers::GroupNumber;
use crate::objects::scheduling;

/// How a VM is reached by doorbells, whether it is in a group or not.
#[derive(Debug)]
pub struct Endpoint {
    /// Pending events.
    pub mailbox: Mailbox,
    /// Which life of a member this is; 0 before it has joined.
    incarnation: AtomicU64,
    /// The interrupt vector the VM wants for doorbells, 0 for none.
    pub vector: AtomicU8,
    /// A HLT of vCPU 0 takes the events that are pending when it ends.
    pub halt_takes_events: AtomicBool,
    /// An interrupt with that vector is to be injected into vCPU 0.
    pub interrupt: AtomicBool,
    /// Doorbells that the VM rang.
    pub sent: AtomicU64,
    /// Of these, delivered.
    pub delivered: AtomicU64,
    /// Of these, refused because they came too fast.
    pub throttled: AtomicU64,
    /// The VM has an interrupt line for doorbells, whether or not it wants a vector.
    has_line: bool,
    /// The vCPUs. Interrupts go to the first; whichever waits is woken.
    vcpus: Vec<Arc<Handle>>,
}

impl Endpoint {
    /// The endpoint of a VM with these vCPUs, at least one.
    #[must_use]
    pub fn new(vcpus: Vec<Arc<Handle>>, doorbells_per_second: u32, has_line: bool) -> Endpoint {
        let interval = time::khz().saturating_mul(1000) / u64::from(doorbells_per_second.max(1));
        Endpoint {
            mailbox: Mailbox::new(interval),
            incarnation: AtomicU64::new(0),
            vector: AtomicU8::new(0),
            halt_takes_events: AtomicBool::new(false),
            interrupt: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            has_line,
            vcpus,
        }
    }

    /// Takes over how another one wants its doorbells; none of those that have come to it.
    pub fn set_like(&self, other: &Endpoint) {
        self.vector
            .store(other.vector.load(Ordering::SeqCst), Ordering::SeqCst);
        let takes_events = other.halt_takes_events.load(Ordering::SeqCst);
        self.halt_takes_events.store(takes_events, Ordering::SeqCst);
        self.mailbox.set_masked(other.mailbox.is_masked());
    }

    /// Doorbells so far.
    #[must_use]
    pub fn counts(&self) -> DoorbellCounts {
        DoorbellCounts {
            sent: self.sent.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            throttled: self.throttled.load(Ordering::Relaxed),
        }
    }

    /// After an event arrived: makes the VM notice it. A vCPU that runs and wants no interrupt is left alone; it will look.
    fn notify(&self) {
        let wants_interrupt = self.has_line || self.vector.load(Ordering::SeqCst) != 0;
        if wants_interrupt {
            self.interrupt.store(true, Ordering::SeqCst);
        }
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            if vcpu.try_wake_by_doorbell() {
                scheduling::wake_boosted(vcpu);
            } else if wants_interrupt && index == 0 {
                Endpoint::interrupt(vcpu);
            }
        }
    }

    /// Makes vCPU 0 take an interrupt for what came before it asked for interrupts.
    pub fn interrupt_now(&self) {
        self.interrupt.store(true, Ordering::SeqCst);
        if let Some(first) = self.vcpus.first() {
            if first.try_wake() {
                scheduling::wake(first);
            } else {
                Endpoint::interrupt(first);
            }
        }
    }

    /// Makes a vCPU look for interrupts. If it is on no CPU, it looks when it is loaded.
    fn interrupt(vcpu: &Handle) {
        if let Some(cpu) = vcpu.cpu() {
            cpu.kick();
        }
    }

    /// The name that vCPU 0 has to the scheduler.
    fn first(&self) -> Option<VcpuId> {
        self.vcpus.first().map(|vcpu| vcpu.id)
    }
}

/// One group.
#[derive(Debug)]
pub struct Group {
    /// Its number, the owner of its frames.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// First frame of the region: contiguous, aligned to 2 MiB.
    pub region: Hpa,
    /// The group page.
    pub page: Hpa,
    /// What it was made from; share and mode as they are now.
    pub config: Mutex<GroupConfig>,
    /// Doorbells a second that a member may ring at another.
    pub doorbells_per_second: u32,
    /// Members, address, generation.
    state: Mutex<State>,
    /// How each member is reached; written by joins only, so that ringing never waits for long.
    endpoints: [RwLock<Option<Arc<Endpoint>>>; MAX_MEMBERS],
    frames: OwnedFrames,
    /// Given back last.
    #[expect(dead_code, reason = "held for its Drop")]
    number: GroupNumber,
}

/// Stores into a group page through the physical map.
pub struct Writer {
    page: Hpa,
}

impl PageWriter for Writer {
    fn store_u32(&mut self, offset: usize, value: u32) {
        // A 32-bit field is half of an aligned word whose other half nobody changes meanwhile (one writer, under the lock).
        let at = Hpa::new(self.page.get() + (offset as u64 & !7));
        let shift = (offset % 8) * 8;
        let word = memory::phys().load_u64(at);
        // SAFETY: the group page is a frame of the group's, which the writer is lent by; the offset is inside it.
        unsafe { memory::writer(Whose::Group) }.store_u64(
            at,
            (word & !(0xFFFF_FFFF << shift)) | u64::from(value) << shift,
        );
    }

    fn store_u64(&mut self, offset: usize, value: u64) {
        // SAFETY: as above.
        unsafe { memory::writer(Whose::Group) }
            .store_u64(Hpa::new(self.page.get() + offset as u64), value);
    }
}

/// The highest generation that any group that is gone had: those made later go on from it.
static GENERATION: AtomicU64 = AtomicU64::new(0);

impl Drop for Group {
    fn drop(&mut self) {
        GENERATION.fetch_max(self.state.lock().generation(), Ordering::SeqCst);
        if let Some(account) = scheduling::group_ended(self.id) {
            self.report(&account);
        }
        // Only now its number may be given to another: `number` is dropped.
    }
}

impl Group {
    /// Makes a group and reserves its region, zeroed. It is there for as long as somebody holds it. `enter` tells the scheduler of its
    /// number, of which it hears again when the group ends.
    ///
    /// # Errors
    /// What there is not enough of, or what `enter` answers.
    pub fn create(
        config: &GroupConfig,
        enter: impl FnOnce(u16) -> Result<(), String>,
    ) -> Result<Group, String> {
        let number = GroupNumber::take().ok_or("there is no free number for a group")?;
        let id = number.get();
        let mut frames = OwnedFrames::new(Owner::Group(id));
        // Aligned to 2 MiB, so that every 512 pages of it can be one EPT page.
        let region = frames.take(config.pages, PageSize::Size2M.bytes());
        let (Some(region), Some(page)) = (region, frames.take(1, PAGE_BYTES)) else {
            return Err(format!(
                "there are no {} contiguous pages for its region",
                config.pages
            ));
        };
        enter(id)?;
        let state = State::new(u32::from(id), &config.name, config.address, config.pages)
            .from_generation(GENERATION.load(Ordering::SeqCst));
        state.write_header(&mut Writer { page });
        Ok(Group {
            id,
            name: config.name.clone(),
            region,
            page,
            config: Mutex::new(config.clone()),
            doorbells_per_second: config.doorbells_per_second,
            state: Mutex::new(state),
            endpoints: [const { RwLock::new(None) }; MAX_MEMBERS],
            frames,
            number,
        })
    }

    /// How it was scheduled, at its end.
    fn report(&self, account: &GroupAccount) {
        event::send(
            event::new("group-end")
                .string("group", &self.name)
                .number("ran", account.ran)
                .number("hazard", account.hazard)
                .number("starts", account.starts.count())
                .number("skew_p99", account.starts.percentile(99))
                .number("skew_max", account.starts.most()),
        );
    }

    /// Frames the group holds.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames.pages()
    }

    /// Runs `action` on the state with the page's writer, under the lock.
    pub fn update<R>(&self, action: impl FnOnce(&mut State, &mut Writer) -> R) -> R {
        let mut state = self.state.lock();
        action(&mut state, &mut Writer { page: self.page })
    }

    /// Takes a VM in: its index and its incarnation. `place` is the index that it had before its reset. Others are told.
    #[must_use]
    pub fn join(
        &self,
        vm_id: u32,
        vcpus: u32,
        name: &str,
        endpoint: &Arc<Endpoint>,
        place: Option<usize>,
    ) -> Option<(usize, u64)> {
        let joined = self.update(|state, page| {
            let index = state.join(page, vm_id, vcpus, name, place)?;
            Some((index, state.incarnation(index)))
        })?;
        endpoint.incarnation.store(joined.1, Ordering::SeqCst);
        *self.endpoints.get(joined.0)?.write() = Some(Arc::clone(endpoint));
        self.tell_others(joined.0);
        Some(joined)
    }

    /// A member's place is free again: it does not come back.
    pub fn give_up(&self, index: usize) {
        self.update(|state, _| state.give_up(index));
    }

    /// Notes the end of a member and tells the others.
    pub fn ended(&self, index: usize, exit_code: Option<i64>) {
        if let Some(endpoint) = self
            .endpoints
            .get(index)
            .and_then(|slot| slot.read().clone())
        {
            endpoint.mailbox.close();
        }
        self.update(|state, page| state.ended(page, index, exit_code));
        self.tell_others(index);
    }

    fn tell_others(&self, index: usize) {
        for (other, slot) in self.endpoints.iter().enumerate() {
            if other != index
                && let Some(endpoint) = &*slot.read()
            {
                endpoint.mailbox.notify_group_changed();
                endpoint.notify();
            }
        }
    }

    /// Rings a member.
    ///
    /// # Errors
    /// As the `doorbell` hypercall answers.
    pub fn ring(&self, sender: usize, member: u64, now: u64) -> Result<(), Errno> {
        self.reach(member, |endpoint| {
            endpoint.mailbox.ring(sender, now)?;
            endpoint.notify();
            Ok(())
        })
        .ok_or(Errno::NoPeer)?
    }

    /// The name that vCPU 0 of a live member has to the scheduler.
    #[must_use]
    pub fn vcpu_of(&self, member: u64) -> Option<VcpuId> {
        self.reach(member, |endpoint| {
            if endpoint.mailbox.is_closed() {
                return None;
            }
            endpoint.first()
        })?
    }

    /// Calls `action` for the life that a hypercall's argument names ([`guest_abi::group::life`]); `None` if there is no such member, or it
    /// leads another life.
    fn reach<R>(&self, member: u64, action: impl FnOnce(&Endpoint) -> R) -> Option<R> {
        let (index, incarnation) = split_life(member);
        let slot = self.endpoints.get(usize::try_from(index).ok()?)?.read();
        let endpoint = slot.as_deref()?;
        let is_meant = |incarnation| endpoint.incarnation.load(Ordering::SeqCst) == incarnation;
        incarnation.is_none_or(is_meant).then(|| action(endpoint))
    }

    /// Whether the member `index` has mapped the region.
    #[must_use]
    pub fn has_mapped(&self, index: usize) -> bool {
        self.state.lock().has_mapped(index)
    }

    /// Whether any other member could still ring `index`.
    #[must_use]
    pub fn has_live_peer(&self, index: usize) -> bool {
        let state = self.state.lock();
        (0..MAX_MEMBERS).any(|member| member != index && state.state(member).is_alive())
    }
}
