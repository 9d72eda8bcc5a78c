//! vCPUs between the scheduler and the CPUs.
//!
//! The scheduler (`nagaya-sched`) decides over plain numbers. Here its decisions meet the vCPUs themselves, and are checked:
//! a [`Vcpu`] has one owner, either this module or the CPU it is loaded on, so that whatever the scheduler says no vCPU is
//! ever on two CPUs. A CPU that is to run a vCPU which another one is still putting down waits for it; since each CPU puts
//! its own down before it waits, that wait ends.
//!
//! Concurrency: one fair lock over scheduler and places, held for one decision. It is taken when a vCPU blocks, its slice ends, or
//! it gives way while somebody waits for its CPU. Two things do without: giving way where nobody waits ([`is_wanted`]: one word for
//! all CPUs, written whenever the lock is given back), and waking one with which its CPU sleeps ([`resting`]). Other exits that resume
//! the guest do without as well.

pub mod resting;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_sched::{
    Affinity, Config, CpuId, CpuSet, Decision, Error, GroupId, Kicks, Mode, Scheduler, Share,
    Table, VcpuId, VmId,
};
use nagaya_vmm::config::MachineConfig;
use spin::Once;
use spin::mutex::{TicketMutex, TicketMutexGuard};

use crate::host::cpu::percpu::{self, PerCpu};
use crate::host::cpu::time;
use crate::objects::handle::Handle;
use crate::objects::vcpu::Vcpu;

/// Where a vCPU is.
enum Place {
    /// Here, in the state in which it was put down.
    Parked(Box<Vcpu>),
    /// Loaded on that CPU.
    LoadedOn(u32),
}

struct Dispatcher {
    scheduler: Scheduler,
    places: Table<VcpuId, Place>,
    /// What was stored in [`WANTED`] last.
    wanted: CpuSet,
}

/// CPUs take turns in the order in which they came: none is kept out by others that come again and again.
static DISPATCHER: Once<TicketMutex<Dispatcher>> = Once::new();

/// A bit for each CPU for which somebody waits that it could start, as of when the lock was given back last.
static WANTED: AtomicU64 = AtomicU64::new(0);

/// The lock, held. What others may know without it is published when it is given back.
struct Locked(TicketMutexGuard<'static, Dispatcher>);

impl Deref for Locked {
    type Target = Dispatcher;

    fn deref(&self) -> &Dispatcher {
        &self.0
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Dispatcher {
        &mut self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let wanted = self.0.scheduler.wanted_cpus();
        if wanted != self.0.wanted {
            self.0.wanted = wanted;
            WANTED.store(wanted.bits(), Ordering::SeqCst);
        }
    }
}

/// What a CPU is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run the vCPU that is loaded.
    Same {
        /// Until that TSC value.
        until: u64,
        /// What it could have run so far and was not let, in ticks.
        stolen: u64,
        /// Whether it is to exit when it spins ([`spinning`]).
        watch: bool,
    },
    /// Load another one: [`load_vcpu`] it.
    Other(VcpuId),
    /// Run none.
    Idle {
        /// Until that TSC value, or a kick.
        until: u64,
    },
}

/// A vCPU that was taken to be run.
pub struct Taken {
    /// The vCPU.
    pub vcpu: Box<Vcpu>,
    /// Until that TSC value.
    pub until: u64,
    /// As in [`Next::Same`].
    pub stolen: u64,
    /// As in [`Next::Same`].
    pub watch: bool,
}

/// Makes the scheduler for the CPUs that are online. Called once, before the first VM.
pub fn init(machine: &MachineConfig) {
    let mut cpus = CpuSet::EMPTY;
    for cpu in percpu::all().filter(|cpu| cpu.online.load(Ordering::SeqCst)) {
        cpus.insert(CpuId(cpu.index));
    }
    let khz = time::khz();
    let ticks = |micros: u32| u64::from(micros) * khz / 1000;
    let mut config = Config::new(cpus, khz);
    config = config.with_slice(ticks(machine.slice_us));
    config.rate_limit = ticks(machine.rate_limit_us);
    DISPATCHER.call_once(|| {
        TicketMutex::new(Dispatcher {
            scheduler: Scheduler::new(config),
            places: Table::new(),
            wanted: CpuSet::EMPTY,
        })
    });
}

fn lock() -> Locked {
    match DISPATCHER.get() {
        Some(dispatcher) => Locked(dispatcher.lock()),
        None => panic!("a vCPU is dispatched before dispatch::init"),
    }
}

/// Tells CPUs to ask for their next vCPU. Called without the lock: an IPI takes its time.
fn send(kicks: Kicks) {
    let me = PerCpu::current();
    for id in kicks.cpus().iter() {
        if let Some(cpu) = percpu::get(id.0) {
            cpu.resched.store(true, Ordering::SeqCst);
            if cpu.index == me.index {
                cpu.kicked.store(true, Ordering::SeqCst);
            } else {
                cpu.kick_to_reschedule();
            }
        }
    }
}

/// Runs `action` on the scheduler, under the lock, and kicks whom it names.
pub fn change<R>(action: impl FnOnce(&mut Scheduler, u64) -> (R, Kicks)) -> R {
    let (result, kicks) = action(&mut lock().scheduler, time::ticks());
    send(kicks);
    result
}

/// Whether there is a scheduler yet.
#[must_use]
pub fn is_ready() -> bool {
    DISPATCHER.get().is_some()
}

/// Makes a group known.
///
/// # Errors
/// As the scheduler says.
pub fn add_group(id: u16, share: Share, mode: Mode, directed_yield: bool) -> Result<(), Error> {
    let mut dispatcher = lock();
    let id = GroupId(u32::from(id));
    dispatcher.scheduler.add_group(id, share, mode)?;
    dispatcher.scheduler.set_directed_yield(id, directed_yield)
}

/// Forgets a group whose last member has gone.
pub fn remove_group(id: u16) {
    let removed = lock().scheduler.remove_group(GroupId(u32::from(id)));
    if let Err(error) = removed {
        log::error!("group {id} cannot leave the scheduler: {error:?}");
    }
}

/// Makes a VM known.
///
/// # Errors
/// As the scheduler says.
pub fn add_vm(id: u16, group: Option<u16>, share: Share) -> Result<(), Error> {
    let group = group.map(|group| GroupId(u32::from(group)));
    lock().scheduler.add_vm(VmId(u32::from(id)), group, share)
}

/// Forgets a VM whose last vCPU has gone.
pub fn remove_vm(id: u16) {
    let removed = lock().scheduler.remove_vm(VmId(u32::from(id)));
    if let Err(error) = removed {
        log::error!("VM {id} cannot leave the scheduler: {error:?}");
    }
}

/// Takes a vCPU in and lets it run.
///
/// # Errors
/// As the scheduler says; the vCPU comes back.
pub fn admit(vcpu: Box<Vcpu>, affinity: Affinity) -> Result<(), (Error, Box<Vcpu>)> {
    let id = vcpu.handle.id;
    let vm = VmId(u32::from(vcpu.vm.id));
    let now = time::ticks();
    let mut dispatcher = lock();
    // Whoever ends the VM marks it and then takes this lock to retire its vCPUs: either the mark is seen here, or the vCPU there.
    if vcpu.vm.is_ending() {
        return Err((Error::Unknown, vcpu));
    }
    if let Err(error) = dispatcher.scheduler.add_vcpu(id, vm, affinity, now) {
        return Err((error, vcpu));
    }
    // Here, too: whoever pauses or resumes the VM marks it and then takes this lock.
    let paused = vcpu.vm.identity.paused.load(Ordering::SeqCst);
    dispatcher.places.insert(id, Place::Parked(vcpu));
    let paused = if paused {
        dispatcher.scheduler.pause(id, now)
    } else {
        Kicks::NONE
    };
    let kicks = dispatcher.scheduler.wake(id, now).and(paused);
    drop(dispatcher);
    send(kicks);
    Ok(())
}

/// What `cpu` is to run now. `loaded` is the vCPU that it has loaded, whether that may run or not.
pub fn next(cpu: &PerCpu, loaded: Option<VcpuId>) -> Next {
    decide(&mut lock(), cpu, loaded)
}

fn decide(dispatcher: &mut Dispatcher, cpu: &PerCpu, loaded: Option<VcpuId>) -> Next {
    cpu.resched.store(false, Ordering::SeqCst);
    let now = time::ticks();
    let decision = dispatcher.scheduler.schedule(CpuId(cpu.index), now);
    carry_out(dispatcher, cpu, loaded, decision, now)
}

fn carry_out(
    dispatcher: &mut Dispatcher,
    cpu: &PerCpu,
    loaded: Option<VcpuId>,
    decision: Decision,
    now: u64,
) -> Next {
    let next = match decision.run {
        None => Next::Idle {
            until: decision.until,
        },
        Some(id) if Some(id) == loaded => {
            dispatcher.scheduler.loaded_now(CpuId(cpu.index), now);
            Next::Same {
                until: decision.until,
                stolen: stolen(&dispatcher.scheduler, id, now),
                watch: watch(&dispatcher.scheduler, id, cpu, decision.until),
            }
        }
        Some(id) => Next::Other(id),
    };
    cpu.until.store(decision.until, Ordering::Relaxed);
    // IPIs under the lock: few, and only when a gang starts or stops.
    send(decision.kicks);
    next
}

fn stolen(scheduler: &Scheduler, id: VcpuId, now: u64) -> u64 {
    scheduler
        .account(id, now)
        .map_or(0, |account| account.runnable + account.co_stopped)
}

/// Spinning matters only if somebody waits, which is when the decision has an end, and if the group wants to know.
fn watch(scheduler: &Scheduler, id: VcpuId, cpu: &PerCpu, until: u64) -> bool {
    until != u64::MAX && scheduler.heeds_spinning(id, CpuId(cpu.index))
}

/// Takes the vCPU that [`next`] named, once the CPU that had it has put it down. `None` if meanwhile this CPU is to run
/// something else: ask again.
pub fn load_vcpu(cpu: &PerCpu, id: VcpuId) -> Option<Taken> {
    let mut asked = false;
    loop {
        let mut dispatcher = lock();
        if dispatcher.scheduler.current(CpuId(cpu.index)) != Some(id) {
            return None;
        }
        let place = dispatcher.places.get_mut(&id)?;
        match core::mem::replace(place, Place::LoadedOn(cpu.index)) {
            Place::Parked(vcpu) => {
                let now = time::ticks();
                dispatcher.scheduler.loaded_now(CpuId(cpu.index), now);
                let until = cpu.until.load(Ordering::Relaxed);
                return Some(Taken {
                    vcpu,
                    until,
                    stolen: stolen(&dispatcher.scheduler, id, now),
                    watch: watch(&dispatcher.scheduler, id, cpu, until),
                });
            }
            Place::LoadedOn(other) => {
                *place = Place::LoadedOn(other);
                drop(dispatcher);
                if !asked {
                    asked = true;
                    // It may sleep with the vCPU still loaded.
                    ask_to_release(other);
                }
                if crate::host::stop::is_stopping() {
                    crate::host::stop::halt_stopped();
                }
                core::hint::spin_loop();
            }
        }
    }
}

/// Puts a vCPU down that this CPU had loaded. It comes back to the caller if it has been retired meanwhile.
pub fn park_vcpu(vcpu: Box<Vcpu>) -> Option<Box<Vcpu>> {
    let id = vcpu.handle.id;
    let mut dispatcher = lock();
    match dispatcher.places.get_mut(&id) {
        Some(place) if !vcpu.vm.is_ending() => {
            *place = Place::Parked(vcpu);
            None
        }
        _ => {
            // Here or in `remove_vcpu`, whoever comes first: the VM leaves the scheduler after its vCPUs.
            take_out(dispatcher, id);
            Some(vcpu)
        }
    }
}

/// Takes a vCPU out that this CPU had loaded and that waits for its start from now on. `Err` if its VM ends: it is retired, as by
/// [`park_vcpu`].
pub fn detach_for_init(vcpu: Box<Vcpu>) -> Result<Box<Vcpu>, Box<Vcpu>> {
    let dispatcher = lock();
    // Whoever ends the VM marks it and then takes this lock to retire its vCPUs.
    let is_ending = vcpu.vm.is_ending();
    take_out(dispatcher, vcpu.handle.id);
    if is_ending { Err(vcpu) } else { Ok(vcpu) }
}

/// Forgets a vCPU that its CPU has put down, and kicks whom that concerns once the lock is free.
fn take_out(mut dispatcher: Locked, id: VcpuId) {
    dispatcher.places.remove(&id);
    let kicks = dispatcher.scheduler.remove_vcpu(id, time::ticks());
    drop(dispatcher);
    if let Ok(kicks) = kicks {
        send(kicks);
    }
}

/// Blocks the vCPU that is loaded on `cpu` and has lain down, and says what the CPU is to do now. `None` if somebody has
/// roused it meanwhile: it is not blocked.
pub fn block(cpu: &PerCpu, handle: &Handle) -> Option<Next> {
    let mut dispatcher = lock();
    // Who rouses it takes the mark away first and then waits for this lock: seen here, or the wake comes after the block.
    if !handle.is_asleep() {
        return None;
    }
    let id = CpuId(cpu.index);
    let kicks = dispatcher.scheduler.block(id, handle.id, time::ticks());
    let next = decide(&mut dispatcher, cpu, Some(handle.id));
    drop(dispatcher);
    send(kicks);
    Some(next)
}

/// Lets a vCPU run that blocked. Called by the one who roused its handle.
pub fn wake(handle: &Handle) {
    wake_with(handle, false);
}

/// As [`wake`], for a doorbell: the vCPU may go first for once, at its own expense.
pub fn wake_boosted(handle: &Handle) {
    wake_with(handle, true);
}

fn wake_with(handle: &Handle, is_boosted: bool) {
    if !resting::try_mark(handle, is_boosted) {
        wake_by_scheduler(handle.id, resting::Mark { is_boosted });
    }
}

/// Lets a vCPU run that does not rest on a CPU, or not any more: its CPU has taken the mark and leaves it.
pub fn wake_by_scheduler(id: VcpuId, mark: resting::Mark) {
    change(|scheduler, now| {
        let kicks = if mark.is_boosted {
            scheduler.wake_boosted(id, now)
        } else {
            scheduler.wake(id, now)
        };
        ((), kicks)
    });
}

/// The vCPU that is loaded on `cpu` and rested there has been woken by a mark: what the CPU is to do.
pub fn wake_here(cpu: &PerCpu, id: VcpuId, mark: resting::Mark) -> Next {
    let mut dispatcher = lock();
    cpu.resched.store(false, Ordering::SeqCst);
    let now = time::ticks();
    let decision = dispatcher
        .scheduler
        .wake_here(CpuId(cpu.index), id, mark.is_boosted, now);
    carry_out(&mut dispatcher, cpu, Some(id), decision, now)
}

/// Charges a VM for work that the executing CPU has just done for it, whoever is loaded here.
pub fn charge(vm: u16, ticks: u64) {
    if !is_ready() {
        return;
    }
    let cpu = CpuId(PerCpu::current().index);
    let vm = VmId(u32::from(vm));
    change(|scheduler, now| ((), scheduler.charge_for(vm, cpu, ticks, now)));
}

/// Does something that takes `cpu`, the executing one, away from its run loop for long: nobody new is put there.
pub fn away<R>(cpu: &PerCpu, action: impl FnOnce() -> R) -> R {
    if !is_ready() {
        return action();
    }
    let id = CpuId(cpu.index);
    change(|scheduler, now| ((), scheduler.set_away(id, true, now)));
    let result = action();
    change(|scheduler, now| ((), scheduler.set_away(id, false, now)));
    // Somebody may have looked for a CPU meanwhile.
    cpu.resched.store(true, Ordering::SeqCst);
    cpu.kicked.store(true, Ordering::SeqCst);
    result
}

/// Whether somebody waits that `cpu` could start, or that it is to start: else what runs there may go on.
#[inline]
#[must_use]
pub fn is_wanted(cpu: &PerCpu) -> bool {
    // Who comes to wait after this look comes after what asks: it kicks the CPU if it is to have it.
    WANTED.load(Ordering::SeqCst) >> cpu.index & 1 != 0 || cpu.resched.load(Ordering::SeqCst)
}

/// Whether anybody waits that some CPU could start.
#[inline]
#[must_use]
pub fn does_anybody_wait() -> bool {
    WANTED.load(Ordering::SeqCst) != 0
}

/// The vCPU on `cpu` gives way: to `target`, or to whom the scheduler likes.
pub fn yield_to(cpu: &PerCpu, target: Option<VcpuId>) {
    let cpu = CpuId(cpu.index);
    change(|scheduler, now| {
        let kicks = match target {
            Some(target) => scheduler.yield_to(cpu, target, now),
            None => scheduler.yield_now(cpu, now),
        };
        ((), kicks)
    });
}

/// The vCPU on `cpu` spins on PAUSE: it is kicked if it is to give way.
pub fn spinning(cpu: &PerCpu) {
    let cpu = CpuId(cpu.index);
    change(|scheduler, now| ((), scheduler.spinning(cpu, now)));
}

/// Takes a vCPU of a VM that ends out of the scheduler. It comes back if it is on no CPU; else its CPU, which is kicked out
/// of the guest, hands it in by [`park_vcpu`].
#[must_use]
pub fn remove_vcpu(id: VcpuId) -> Option<Box<Vcpu>> {
    let mut dispatcher = lock();
    let kicks = dispatcher.scheduler.remove_vcpu(id, time::ticks());
    let place = dispatcher.places.remove(&id);
    let (vcpu, on) = match place {
        Some(Place::Parked(vcpu)) => (Some(vcpu), None),
        Some(Place::LoadedOn(cpu)) => {
            dispatcher.places.insert(id, Place::LoadedOn(cpu));
            (None, Some(cpu))
        }
        None => (None, None),
    };
    drop(dispatcher);
    if let Ok(kicks) = kicks {
        send(kicks);
    }
    if let Some(cpu) = on.and_then(percpu::get) {
        // Urgent: a guest with interrupts off must not be able to outlive its VM.
        cpu.kick_urgently();
    }
    vcpu
}

/// Stops vCPUs from running, or lets them run again.
pub fn pause(ids: &[VcpuId], paused: bool) {
    for id in ids {
        change(|scheduler, now| {
            let kicks = if paused {
                scheduler.pause(*id, now)
            } else {
                scheduler.resume(*id, now)
            };
            ((), kicks)
        });
    }
}

/// Runs `action` on a vCPU if it is on no CPU; else says on which it is. `None` if it is nowhere.
pub fn inspect<R>(id: VcpuId, action: impl FnOnce(&Vcpu) -> R) -> Option<Result<R, u32>> {
    match lock().places.get(&id)? {
        Place::Parked(vcpu) => Some(Ok(action(vcpu))),
        Place::LoadedOn(cpu) => Some(Err(*cpu)),
    }
}

/// Asks a CPU that may sleep with a vCPU loaded to put it down.
pub fn ask_to_release(cpu: u32) {
    if let Some(cpu) = percpu::get(cpu) {
        cpu.release.store(true, Ordering::SeqCst);
        cpu.kick();
    }
}

/// Takes a vCPU that is paused and on no CPU, for `cpu`, the executing one, to look at; [`park_vcpu`] gives it back. `None` if it is on a CPU,
/// or nowhere.
#[must_use]
pub fn take_parked(cpu: &PerCpu, id: VcpuId) -> Option<Box<Vcpu>> {
    let mut dispatcher = lock();
    let place = dispatcher.places.get_mut(&id)?;
    match core::mem::replace(place, Place::LoadedOn(cpu.index)) {
        Place::Parked(vcpu) => Some(vcpu),
        Place::LoadedOn(other) => {
            *place = Place::LoadedOn(other);
            None
        }
    }
}

/// As [`inspect`], to change it.
pub fn change_at_rest<R>(
    id: VcpuId,
    action: impl FnOnce(&mut Vcpu) -> R,
) -> Option<Result<R, u32>> {
    match lock().places.get_mut(&id)? {
        Place::Parked(vcpu) => Some(Ok(action(vcpu))),
        Place::LoadedOn(cpu) => Some(Err(*cpu)),
    }
}

/// The CPUs on which one of these vCPUs is loaded.
#[must_use]
pub fn loaded_on(ids: &[VcpuId]) -> Vec<u32> {
    let dispatcher = lock();
    ids.iter()
        .filter_map(|id| match dispatcher.places.get(id) {
            Some(Place::LoadedOn(cpu)) => Some(*cpu),
            _ => None,
        })
        .collect()
}

/// Runs `action` on the scheduler with the time, for accounts and for settings that kick nobody.
pub fn with_scheduler<R>(action: impl FnOnce(&mut Scheduler, u64) -> R) -> R {
    action(&mut lock().scheduler, time::ticks())
}
