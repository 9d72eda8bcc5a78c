//! The scheduler's state, who is in it, and the transitions between the states of a vCPU. Choosing is in [`crate::pick`].

use alloc::collections::BTreeSet;

use crate::account::Account;
use crate::budget::Budget;
use crate::config::{Affinity, Config, Error, Mode, Share};
use crate::ids::{CpuId, CpuSet, GangId, GroupId, Kicks, Ticks, VcpuId, VmId};
use crate::queue::Queue;
use crate::state::{Cpu, Credit, Gang, State, Vcpu, Vm};
use crate::table::Table;
use crate::work::Work;

/// Most CPUs.
pub(crate) const MAX_CPUS: usize = 64;

/// Slices that one may wait beyond twice what its weight explains. Then it goes first, once: a member that is pinned to a busy
/// CPU would wait for ever if its group consumed more than its share on other CPUs, which nobody else wanted.
const PATIENCE_SLICES: u64 = 8;

/// What a CPU is to do.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The vCPU to run; `None` to idle.
    pub run: Option<VcpuId>,
    /// The CPU is to ask again at this time, unless it is kicked before. `Ticks::MAX`: only when kicked.
    pub until: Ticks,
    /// The vCPU that ran before, if it is another one and still there.
    pub previous: Option<VcpuId>,
    /// CPUs that are to ask as well: members of a gang start there, or there is work for an idle one.
    pub kicks: Kicks,
}

/// The scheduler of one machine.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    /// The latest time it was told: time never goes back, whatever the CPUs' counters say.
    pub(crate) now: Ticks,
    pub(crate) gangs: Table<GangId, Gang>,
    pub(crate) vms: Table<VmId, Vm>,
    pub(crate) vcpus: Table<VcpuId, Vcpu>,
    pub(crate) cpus: [Cpu; MAX_CPUS],
    /// Gangs with a member to start, by consumed time, as the CPUs see them on which it may preempt others; but for strict ones.
    pub(crate) queue: Queue<Credit>,
    /// Those of them that more CPUs may run than they may preempt others on, as all these see them.
    pub(crate) spare: Queue<Credit>,
    /// Strict ones, as all CPUs see them that may run a member.
    pub(crate) strict: Queue<Credit>,
    /// All gangs with a member to start, by the time at which one will have waited longer than its weight explains, as the CPUs
    /// see them that may run that one.
    pub(crate) patience: Queue<Ticks>,
    /// CPUs with nothing to run that nobody has found something for yet.
    pub(crate) idle: CpuSet,
    /// CPUs that will not ask for long.
    pub(crate) away: CpuSet,
    /// vCPUs that a doorbell or a yield has boosted.
    pub(crate) boosted: u32,
    /// Gangs of modes that compare what they have consumed with everybody: while there are none, a decision charges those alone
    /// whom it looks at.
    pub(crate) compared_with_all: u32,
    /// Weights of all gangs with a member that wants to run.
    pub(crate) active_weight: u64,
    /// Gangs in which somebody has spent a budget, by the period.
    pub(crate) held_back: BTreeSet<(u64, GangId)>,
    /// A strict gang that is to start then; others make room.
    pub(crate) pending: Option<(Ticks, GangId)>,
    /// The least consumed time there was when somebody was last active.
    pub(crate) floor: Credit,
    pub(crate) work: Work,
    /// Shortcuts that were taken; `None` if none is to be: the same decisions by the long way are the tests' model.
    #[cfg(test)]
    pub(crate) shortcuts: Option<u64>,
}

impl Scheduler {
    /// A scheduler without vCPUs, at time 0.
    #[must_use]
    pub fn new(config: Config) -> Scheduler {
        Scheduler {
            config,
            now: 0,
            gangs: Table::new(),
            vms: Table::new(),
            vcpus: Table::new(),
            cpus: [Cpu::ASLEEP; MAX_CPUS],
            queue: Queue::default(),
            strict: Queue::default(),
            spare: Queue::default(),
            patience: Queue::default(),
            away: CpuSet::EMPTY,
            boosted: 0,
            idle: config.cpus,
            compared_with_all: 0,
            active_weight: 0,
            held_back: BTreeSet::new(),
            pending: None,
            floor: 0,
            work: Work::default(),
            #[cfg(test)]
            shortcuts: Some(0),
        }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Adds a group without VMs.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub fn add_group(&mut self, id: GroupId, share: Share, mode: Mode) -> Result<(), Error> {
        let floor = self.active_floor();
        let id = GangId::Group(id);
        if self.gangs.contains_key(&id) {
            return Err(Error::Exists);
        }
        self.compared_with_all += u32::from(mode.compares_with_all());
        self.gangs.insert(id, Gang::new(share, mode, floor));
        Ok(())
    }

    /// Removes a group that has no VMs left.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::NotEmpty`].
    pub fn remove_group(&mut self, id: GroupId) -> Result<(), Error> {
        let id = GangId::Group(id);
        match self.gangs.get(&id) {
            None => Err(Error::Unknown),
            Some(gang) if gang.vms != 0 => Err(Error::NotEmpty),
            Some(gang) => {
                self.compared_with_all -= u32::from(gang.mode.compares_with_all());
                self.let_go(id);
                self.gangs.remove(&id);
                Ok(())
            }
        }
    }

    /// Adds a VM without vCPUs, to a group or as a gang of its own.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Unknown`] for the group.
    pub fn add_vm(&mut self, id: VmId, group: Option<GroupId>, share: Share) -> Result<(), Error> {
        if self.vms.contains_key(&id) {
            return Err(Error::Exists);
        }
        let gang_id = group.map_or(GangId::Vm(id), GangId::Group);
        if group.is_none() {
            let floor = self.active_floor();
            self.gangs
                .insert(gang_id, Gang::new(share, Mode::Off, floor));
        }
        let gang = self.gangs.get_mut(&gang_id).ok_or(Error::Unknown)?;
        gang.vms += 1;
        self.vms.insert(
            id,
            Vm {
                gang: gang_id,
                // Alone in its gang it has what the gang has: the cap is kept once.
                share: if group.is_some() {
                    share
                } else {
                    Share::default()
                },
                credit: 0,
                budget: Budget::default(),
                vcpus: 0,
                gone: Account::default(),
            },
        );
        Ok(())
    }

    /// Removes a VM that has no vCPUs left.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::NotEmpty`].
    pub fn remove_vm(&mut self, id: VmId) -> Result<(), Error> {
        let vm = self.vms.get(&id).ok_or(Error::Unknown)?;
        if vm.vcpus != 0 {
            return Err(Error::NotEmpty);
        }
        let gang_id = vm.gang;
        self.vms.remove(&id);
        if let Some(gang) = self.gangs.get_mut(&gang_id) {
            gang.vms -= 1;
        }
        if gang_id == GangId::Vm(id) {
            self.let_go(gang_id);
            self.gangs.remove(&gang_id);
        }
        Ok(())
    }

    /// Adds a vCPU, blocked: its first wake lets it run.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Unknown`] for the VM; [`Error::NoCpu`].
    pub fn add_vcpu(
        &mut self,
        id: VcpuId,
        vm_id: VmId,
        affinity: Affinity,
        now: Ticks,
    ) -> Result<(), Error> {
        let now = self.advance(now);
        if self.vcpus.contains_key(&id) {
            return Err(Error::Exists);
        }
        let gang_id = self.vms.get(&vm_id).ok_or(Error::Unknown)?.gang;
        let hard = affinity.hard.intersection(self.config.cpus);
        let home = self.home(gang_id, hard).ok_or(Error::NoCpu)?;
        let vcpu = Vcpu::new(vm_id, gang_id, affinity, self.config.cpus, home, now);
        self.vcpus.insert(id, vcpu);
        let mut weight = 0;
        if let Some(vm) = self.vms.get_mut(&vm_id) {
            vm.vcpus += 1;
            weight = u64::from(vm.share.weight.max(1));
        }
        if let Some(gang) = self.gangs.get_mut(&gang_id) {
            gang.weights_within += weight;
            gang.members.push(id);
        }
        Ok(())
    }

    /// The CPU of `hard` that is home to the fewest members of a gang.
    pub(crate) fn home(&self, gang: GangId, hard: CpuSet) -> Option<CpuId> {
        let members = self
            .gangs
            .get(&gang)
            .map_or(&[][..], |gang| gang.members.as_slice());
        hard.iter().min_by_key(|cpu| {
            members
                .iter()
                .filter(|member| self.vcpus.get(member).is_some_and(|vcpu| vcpu.home == *cpu))
                .count()
        })
    }

    /// Removes a vCPU, whatever it does. If it runs its CPU is among the kicks, and is idle until it asks again.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn remove_vcpu(&mut self, id: VcpuId, now: Ticks) -> Result<Kicks, Error> {
        let now = self.advance(now);
        let vcpu = self.vcpus.get(&id).ok_or(Error::Unknown)?;
        let (gang_id, vm_id, state) = (vcpu.gang, vcpu.vm, vcpu.state);
        let mut kicks = Kicks::NONE;
        if let State::Running(cpu) = state {
            self.vacate(cpu, now);
            kicks.add(cpu);
        }
        self.set_state(id, State::Blocked, now);
        self.set_boosted(id, false);
        let account = self.account(id, now).unwrap_or_default();
        let gone = self.vcpus.remove(&id);
        for cpu in &mut self.cpus {
            if cpu.reserved == Some(id) {
                cpu.reserved = None;
            }
            if cpu.last == Some(id) {
                cpu.last = None;
            }
            if cpu.lent == Some(id) {
                cpu.lent = None;
            }
        }
        let mut weight = 0;
        if let Some(vm) = self.vms.get_mut(&vm_id) {
            vm.vcpus -= 1;
            vm.gone.add(account);
            weight = u64::from(vm.share.weight.max(1));
        }
        if let Some(gang) = self.gangs.get_mut(&gang_id) {
            gang.weights_within -= weight;
            gang.members.retain(|member| *member != id);
            gang.ran_by_gone += gone.map_or(0, |vcpu| vcpu.times[State::Running(CpuId(0)).index()]);
        }
        self.rebalance(gang_id, now, &mut kicks);
        Ok(kicks)
    }

    pub(crate) fn set_boosted(&mut self, id: VcpuId, boosted: bool) {
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            self.boosted -= u32::from(vcpu.boosted);
            self.boosted += u32::from(boosted);
            vcpu.boosted = boosted;
        }
    }

    /// The vCPU that `cpu` has loaded waits for an event. The CPU is idle until it asks, unless somebody else has been put there
    /// meanwhile. A vCPU that is to run elsewhere by now does not block: it will there.
    pub fn block(&mut self, cpu: CpuId, id: VcpuId, now: Ticks) -> Kicks {
        let now = self.advance(now);
        let mut kicks = Kicks::NONE;
        let Some(vcpu) = self.vcpus.get(&id) else {
            return kicks;
        };
        let gang = vcpu.gang;
        match vcpu.state {
            State::Running(running) if running == cpu => self.vacate(cpu, now),
            State::Waiting | State::CoStopped => {}
            State::Running(_) | State::Blocked | State::Paused { .. } => return kicks,
        }
        self.set_state(id, State::Blocked, now);
        self.rebalance(gang, now, &mut kicks);
        kicks
    }

    /// A CPU does something else for long and will not ask, or is back: until then nobody new is put there.
    pub fn set_away(&mut self, cpu: CpuId, is_away: bool, now: Ticks) -> Kicks {
        let now = self.advance(now);
        let mut kicks = Kicks::NONE;
        if !is_away {
            self.away.remove(cpu);
            return kicks;
        }
        self.away.insert(cpu);
        self.idle.remove(cpu);
        let Some(slot) = self.cpus.get_mut(cpu.0 as usize) else {
            return kicks;
        };
        // Whoever was promised the CPU finds another.
        let reserved = slot
            .reserved
            .take()
            .and_then(|id| Some(self.vcpus.get(&id)?.gang));
        for gang in [reserved, slot.promised.take()].into_iter().flatten() {
            self.rebalance(gang, now, &mut kicks);
        }
        kicks
    }

    /// The operator stops a vCPU. Its CPU, if it has one, is among the kicks and idle until it asks.
    pub fn pause(&mut self, id: VcpuId, now: Ticks) -> Kicks {
        let now = self.advance(now);
        let mut kicks = Kicks::NONE;
        let Some(vcpu) = self.vcpus.get(&id) else {
            return kicks;
        };
        let gang = vcpu.gang;
        let ready = match vcpu.state {
            State::Paused { .. } => return kicks,
            State::Blocked => false,
            State::Running(cpu) => {
                self.vacate(cpu, now);
                kicks.add(cpu);
                true
            }
            State::Waiting | State::CoStopped => true,
        };
        self.set_state(id, State::Paused { ready }, now);
        self.rebalance(gang, now, &mut kicks);
        kicks
    }

    /// The operator lets it go on.
    pub fn resume(&mut self, id: VcpuId, now: Ticks) -> Kicks {
        let now = self.advance(now);
        let ready = match self.vcpus.get(&id).map(|vcpu| vcpu.state) {
            Some(State::Paused { ready }) => ready,
            _ => return Kicks::NONE,
        };
        self.set_state(id, State::Blocked, now);
        if ready {
            self.wake(id, now)
        } else {
            Kicks::NONE
        }
    }

    /// What `cpu` runs, as far as the scheduler knows.
    #[must_use]
    pub fn current(&self, cpu: CpuId) -> Option<VcpuId> {
        self.cpus.get(cpu.0 as usize)?.current
    }

    /// A CPU has loaded what it was told to run. To be called before it runs that, for the accounts of gang starts and hazard.
    pub fn loaded_now(&mut self, cpu_id: CpuId, now: Ticks) {
        let now = self.advance(now);
        self.arrive(cpu_id, now);
    }

    fn arrive(&mut self, cpu_id: CpuId, now: Ticks) {
        if let Some(gang) = self.end_loading(cpu_id, now) {
            let (running, waiting) = gang.members_there();
            gang.starts.note(running, waiting, gang.arriving, now);
        }
    }

    /// What a CPU was told to run is not on its way any more. Its gang, if it was.
    fn end_loading(&mut self, cpu_id: CpuId, now: Ticks) -> Option<&mut Gang> {
        let cpu = self.cpus.get_mut(cpu_id.0 as usize)?;
        if !core::mem::take(&mut cpu.is_loading) {
            return None;
        }
        let gang = self.vcpus.get(&cpu.current?)?.gang;
        let gang = self.gangs.get_mut(&gang)?;
        gang.note_hazard(now);
        gang.arriving -= 1;
        Some(gang)
    }

    /// What a CPU will have taken note of when it has asked.
    pub(crate) fn take_note(&mut self, cpu_id: CpuId) {
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize) {
            cpu.is_awaited = false;
        }
    }

    /// What has been counted so far.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn steps(&self) -> u64 {
        let queues = [&self.queue, &self.spare, &self.strict];
        queues
            .into_iter()
            .map(|queue| queue.work.steps())
            .sum::<u64>()
            + self.patience.work.steps()
            + self.work.steps()
    }

    /// Takes note of the time.
    pub(crate) fn advance(&mut self, now: Ticks) -> Ticks {
        self.now = self.now.max(now);
        self.now
    }

    /// Changes a vCPU's state and every count that goes with it.
    pub(crate) fn set_state(&mut self, id: VcpuId, state: State, now: Ticks) {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return;
        };
        let Some(gang) = self.gangs.get_mut(&vcpu.gang) else {
            vcpu.enter(state, now);
            return;
        };
        let weight = self.vms.get(&vcpu.vm).map_or(1, |vm| vm.share.weight);
        let slice = self.config.slice;
        change_state(
            vcpu,
            gang,
            &mut self.active_weight,
            weight,
            slice,
            state,
            now,
        );
    }

    /// A weight has changed: nobody waits longer than the new one explains.
    pub(crate) fn renew_patience(&mut self, gang_id: GangId) {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        for member in &gang.members {
            if let Some(vcpu) = self.vcpus.get_mut(member)
                && vcpu.patient_until != 0
            {
                let weight = self.vms.get(&vcpu.vm).map_or(1, |vm| vm.share.weight);
                let patience = patience(gang, weight, self.active_weight, self.config.slice);
                let end = self.now.saturating_add(patience);
                vcpu.patient_until = vcpu.patient_until.min(end);
            }
        }
    }

    /// Takes the vCPU off a CPU, charged. Its state is for the caller to set.
    pub(crate) fn vacate(&mut self, cpu_id: CpuId, now: Ticks) {
        // One that never got there has not started.
        let _ = self.end_loading(cpu_id, now);
        self.take_note(cpu_id);
        self.charge(cpu_id, now);
        if let Some(cpu) = self.cpus.get_mut(cpu_id.0 as usize)
            && cpu.current.is_some()
        {
            cpu.end_run(now);
            if !self.away.contains(cpu_id) {
                self.idle.insert(cpu_id);
            }
        }
    }
}

/// Changes the state of a member of a gang, whose VM has that weight, and every count that goes with it.
#[inline]
pub(crate) fn change_state(
    vcpu: &mut Vcpu,
    gang: &mut Gang,
    active_weight: &mut u64,
    weight: u16,
    slice: Ticks,
    state: State,
    now: Ticks,
) {
    let before = vcpu.enter(state, now);
    gang.note_change(before, state, now);
    let is_active = gang.running + gang.waiting != 0;
    if is_active && gang.active_weight == 0 {
        gang.active_weight = u64::from(gang.share.weight.max(1));
        *active_weight += gang.active_weight;
    } else if !is_active {
        *active_weight -= gang.active_weight;
        gang.active_weight = 0;
    }
    if state == State::Waiting && vcpu.patient_until == 0 {
        let patience = patience(gang, weight, *active_weight, slice);
        vcpu.patient_until = now.saturating_add(patience);
    }
}

/// How long the weights of a gang, and of a VM in it, explain that a member waits.
fn patience(gang: &Gang, weight: u16, active_weight: u64, slice: Ticks) -> Ticks {
    let turns = active_weight / u64::from(gang.share.weight.max(1)) + 1;
    let slices = turns
        .saturating_mul(gang.weights_within.div_ceil(u64::from(weight.max(1))))
        .saturating_mul(2)
        .saturating_add(PATIENCE_SLICES);
    slice.saturating_mul(slices)
}
