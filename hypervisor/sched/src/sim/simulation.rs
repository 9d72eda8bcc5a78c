//! Running a scenario: vCPUs that work, wait, spin and cheat on a machine that obeys the scheduler.

use std::collections::{BTreeSet, VecDeque};
use std::vec::Vec;

use super::behaviour::{BarrierId, Behaviour, LockId, Wait};
use super::machine::Machine;
use super::rng::Rng;
use super::scenario::Scenario;
use super::trace::{Event, Line, Segment};
use crate::{Config, CpuId, Error, GroupId, Ticks, VcpuId, VmId};

/// What a vCPU is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It works for so many ticks more, then something comes.
    Work(Ticks),
    /// It has the lock, for so many ticks more.
    Hold(Ticks),
    /// It has spun for so long, and spins.
    Spin(Ticks),
    Blocked,
}

/// What a vCPU has got done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rounds, times the lock was held, runs between two sleeps.
    pub units: u64,
    /// Ticks of work.
    pub worked: Ticks,
    /// Ticks of spinning.
    pub spun: Ticks,
}

#[derive(Debug)]
struct Actor {
    behaviour: Behaviour,
    phase: Phase,
    /// Ticks of a switch that are still to be paid.
    overhead: Ticks,
    tally: Tally,
    rng: Rng,
}

#[derive(Debug, Default)]
struct Barrier {
    users: usize,
    waiting: Vec<VcpuId>,
    opened: u64,
}

/// A scenario in motion.
#[derive(Debug)]
pub struct Simulation {
    machine: Machine,
    scenario: Scenario,
    actors: Vec<Actor>,
    barriers: Vec<Barrier>,
    /// Who has each lock, first, and who waits for it.
    locks: Vec<VecDeque<VcpuId>>,
    /// Who is woken when, and whether by a doorbell.
    timers: BTreeSet<(Ticks, VcpuId, bool)>,
    loaded: Vec<Option<VcpuId>>,
    skews: Vec<Skew>,
}

/// How far a group's start has got.
#[derive(Clone, Copy, Debug, Default)]
enum Start {
    #[default]
    Not,
    /// The first member runs since then, others wait.
    Since(Ticks),
    Whole,
}

/// How a group's members start.
#[derive(Clone, Debug, Default)]
struct Skew {
    start: Start,
    /// From the first member's start to the last one's, for each start.
    all: Vec<Ticks>,
}

impl Scenario {
    /// Makes the machine and starts all vCPUs.
    ///
    /// # Errors
    /// Those of the scheduler: a group that was not added, an affinity without CPUs.
    pub fn build(self) -> Result<Simulation, Error> {
        let mut machine = Machine::with(self.cpus, |config| {
            if let Some(wanted) = self.config {
                *config = Config {
                    cpus: config.cpus,
                    ..wanted
                };
            }
        });
        machine.delay(self.delays, self.seed);
        if self.record {
            machine.recorder.lines = Some(Vec::new());
            machine.recorder.segments = Some(Vec::new());
        }
        let sched = &mut machine.sched;
        for (id, group) in (0..).map(GroupId).zip(&self.groups) {
            sched.add_group(id, group.share, group.mode)?;
            sched.set_directed_yield(id, group.directed_yield)?;
        }
        for (id, vm) in (0..).map(VmId).zip(&self.vms) {
            sched.add_vm(id, vm.group, vm.share)?;
        }
        for (id, vcpu) in (0..).map(VcpuId).zip(&self.vcpus) {
            sched.add_vcpu(id, vcpu.vm, vcpu.affinity, 0)?;
        }
        let starts: Vec<Ticks> = self.vcpus.iter().map(|vcpu| vcpu.starts).collect();
        Ok(Simulation::new(self, machine, &starts))
    }
}

impl Simulation {
    pub(super) fn new(scenario: Scenario, machine: Machine, starts: &[Ticks]) -> Simulation {
        let mut barriers = Vec::new();
        barriers.resize_with(scenario.barriers, Barrier::default);
        let mut locks = Vec::new();
        locks.resize_with(scenario.locks, VecDeque::new);
        let actors = scenario
            .vcpus
            .iter()
            .enumerate()
            .map(|(index, vcpu)| {
                if let Behaviour::Barrier { barrier, .. } = vcpu.behaviour
                    && let Some(barrier) = barriers.get_mut(barrier.0)
                {
                    barrier.users += 1;
                }
                // Far apart, so that neighbours do not draw alike.
                let seed = scenario.seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9);
                Actor {
                    behaviour: vcpu.behaviour,
                    phase: Phase::Blocked,
                    overhead: 0,
                    tally: Tally::default(),
                    rng: Rng::new(seed),
                }
            })
            .collect();
        let cpus = machine.cpus().len() as usize;
        let mut simulation = Simulation {
            machine,
            actors,
            barriers,
            locks,
            timers: BTreeSet::new(),
            loaded: std::vec![None; cpus],
            skews: std::vec![Skew::default(); scenario.groups.len()],
            scenario,
        };
        for (id, start) in (0..).map(VcpuId).zip(starts) {
            simulation.begin(id);
            if *start == 0 {
                simulation.machine.wake(id);
            } else {
                simulation.timers.insert((*start, id, false));
            }
        }
        simulation
    }

    fn actor(&mut self, id: VcpuId) -> Option<&mut Actor> {
        self.actors.get_mut(id.0 as usize)
    }

    /// A vCPU begins a round of what it does.
    fn begin(&mut self, id: VcpuId) {
        let now = self.machine.now;
        let slice = self.machine.sched.config().slice;
        let Some(actor) = self.actor(id) else {
            return;
        };
        let ticks = match actor.behaviour {
            Behaviour::Hog => Ticks::MAX,
            Behaviour::RunBlock { run, .. } | Behaviour::DoorbellThief { run, .. } => run,
            Behaviour::Barrier { work, jitter, .. } => work + actor.rng.up_to(jitter),
            Behaviour::TicketLock { work, .. } => work,
            Behaviour::TickThief { tick, margin } => {
                let next = (now + margin + 1).next_multiple_of(tick.max(1));
                (next - margin - now).saturating_sub(actor.overhead)
            }
            Behaviour::SliceThief { margin } => {
                slice.saturating_sub(margin).saturating_sub(actor.overhead)
            }
            Behaviour::Random { run, .. } => actor.rng.up_to(run),
        };
        actor.phase = Phase::Work(ticks.max(1));
    }

    /// Lets time go by.
    pub fn run_for(&mut self, ticks: Ticks) {
        self.run_until(self.machine.now + ticks);
    }

    /// Lets time go by until then.
    pub fn run_until(&mut self, end: Ticks) {
        loop {
            while let Some((time, cpu)) = self.machine.next()
                && time <= self.machine.now
            {
                let run = self.machine.ask(cpu);
                self.obey(cpu, run);
            }
            self.watch_starts();
            let next = [
                self.machine.next().map(|(time, _)| time),
                self.timers.first().map(|(time, ..)| *time),
                self.next_step(),
            ]
            .into_iter()
            .flatten()
            .min()
            .filter(|time| *time <= end);
            self.advance(next.unwrap_or(end));
            if next.is_none() {
                return;
            }
            for cpu in self.machine.cpus().iter() {
                self.step(cpu);
            }
            while let Some((time, id, boosted)) = self.timers.first().copied()
                && time <= self.machine.now
            {
                self.timers.remove(&(time, id, boosted));
                if boosted {
                    self.machine.ring(id);
                } else {
                    self.machine.wake(id);
                }
            }
        }
    }

    /// A CPU does what it was told.
    fn obey(&mut self, cpu: CpuId, run: Option<VcpuId>) {
        let Some(loaded) = self.loaded.get_mut(cpu.0 as usize) else {
            return;
        };
        let changed = *loaded != run;
        *loaded = run;
        if changed && let Some(id) = run {
            let cost = self.scenario.switch_cost;
            let mut restarts = false;
            if let Some(actor) = self.actor(id) {
                actor.overhead = cost;
                // Thieves count from when they got the CPU.
                restarts = matches!(
                    actor.behaviour,
                    Behaviour::SliceThief { .. } | Behaviour::TickThief { .. }
                );
            }
            if restarts {
                self.begin(id);
            }
        }
        self.note(cpu);
    }

    /// Writes down what a CPU does now.
    fn note(&mut self, cpu: CpuId) {
        let id = self.loaded.get(cpu.0 as usize).copied().flatten();
        let spins = id
            .and_then(|id| self.actors.get(id.0 as usize))
            .is_some_and(|actor| matches!(actor.phase, Phase::Spin(_)));
        let now = self.machine.now;
        self.machine.recorder.running(cpu, id, spins, now);
    }

    /// Ticks until a vCPU on a CPU does something else than now.
    fn ticks_left(&self, actor: &Actor) -> Ticks {
        let left = match actor.phase {
            Phase::Work(left) | Phase::Hold(left) => left,
            Phase::Spin(spun) => {
                let window = self.scenario.spin_window;
                let next = window - spun % window;
                match wait(actor.behaviour) {
                    Wait::Spin => next,
                    Wait::SpinThenBlock(limit) => next.min(limit.saturating_sub(spun)),
                }
            }
            Phase::Blocked => Ticks::MAX,
        };
        left.saturating_add(actor.overhead)
    }

    fn next_step(&self) -> Option<Ticks> {
        let left = self
            .loaded
            .iter()
            .filter_map(|id| self.actors.get((*id)?.0 as usize))
            .map(|actor| self.ticks_left(actor))
            .min()?;
        (left != Ticks::MAX).then(|| self.machine.now.saturating_add(left))
    }

    /// Time goes by, and vCPUs on CPUs get on.
    fn advance(&mut self, to: Ticks) {
        let ticks = to.saturating_sub(self.machine.now);
        self.machine.now = self.machine.now.max(to);
        for id in self.loaded.iter().flatten() {
            let Some(actor) = self.actors.get_mut(id.0 as usize) else {
                continue;
            };
            let paid = ticks.min(actor.overhead);
            actor.overhead -= paid;
            let ticks = ticks - paid;
            match &mut actor.phase {
                Phase::Work(left) | Phase::Hold(left) => {
                    *left = left.saturating_sub(ticks);
                    actor.tally.worked += ticks;
                }
                Phase::Spin(spun) => {
                    *spun += ticks;
                    actor.tally.spun += ticks;
                }
                Phase::Blocked => {}
            }
        }
    }

    /// If the vCPU on a CPU has come to the end of what it was at, it does what comes then.
    fn step(&mut self, cpu: CpuId) {
        let Some(id) = self.loaded.get(cpu.0 as usize).copied().flatten() else {
            return;
        };
        let Some(actor) = self.actors.get(id.0 as usize) else {
            return;
        };
        if actor.overhead > 0 {
            return;
        }
        let behaviour = actor.behaviour;
        match actor.phase {
            Phase::Work(0) => self.worked(cpu, id, behaviour),
            Phase::Hold(0) => self.unlock(id, behaviour),
            Phase::Spin(spun) => {
                let blocks = matches!(wait(behaviour), Wait::SpinThenBlock(limit) if spun >= limit);
                if blocks {
                    self.block(cpu, id);
                } else if spun > 0
                    && spun.is_multiple_of(self.scenario.spin_window)
                    && self.machine.spin(cpu)
                {
                    self.resume(cpu);
                }
            }
            _ => {}
        }
        self.note(cpu);
    }

    /// Does what the machine was told while an actor acted.
    fn resume(&mut self, cpu: CpuId) {
        let run = self.machine.sched.current(cpu);
        self.obey(cpu, run);
    }

    /// Work is done.
    fn worked(&mut self, cpu: CpuId, id: VcpuId, behaviour: Behaviour) {
        match behaviour {
            Behaviour::Hog => {}
            Behaviour::RunBlock { block, .. } => self.sleep(cpu, id, block, false),
            Behaviour::DoorbellThief { sleep, .. } => self.sleep(cpu, id, sleep, true),
            Behaviour::TickThief { .. } | Behaviour::SliceThief { .. } => {
                self.begin(id);
                self.give_way(cpu);
            }
            Behaviour::Barrier { barrier, .. } => self.arrive(cpu, id, barrier),
            Behaviour::TicketLock { lock, .. } => self.queue_up(cpu, id, lock),
            Behaviour::Random { block, .. } => {
                let Some(actor) = self.actor(id) else {
                    return;
                };
                let (kind, ticks) = (actor.rng.up_to(3), actor.rng.up_to(block));
                match kind {
                    0 | 1 => self.sleep(cpu, id, ticks, kind == 1),
                    2 => {
                        self.begin(id);
                        self.give_way(cpu);
                    }
                    _ => self.begin(id),
                }
            }
        }
    }

    fn give_way(&mut self, cpu: CpuId) {
        let run = self.machine.give_way(cpu);
        self.obey(cpu, run);
    }

    /// Waits for a timer or a doorbell, then begins again.
    fn sleep(&mut self, cpu: CpuId, id: VcpuId, ticks: Ticks, boosted: bool) {
        let wakes = self.machine.now + ticks.max(1);
        self.count(id);
        self.begin(id);
        self.timers.insert((wakes, id, boosted));
        let run = self.machine.block(cpu);
        self.obey(cpu, run);
    }

    /// Waits for whoever sets its phase.
    fn block(&mut self, cpu: CpuId, id: VcpuId) {
        if let Some(actor) = self.actor(id) {
            actor.phase = Phase::Blocked;
        }
        let run = self.machine.block(cpu);
        self.obey(cpu, run);
    }

    fn count(&mut self, id: VcpuId) {
        if let Some(actor) = self.actor(id) {
            actor.tally.units += 1;
        }
    }

    /// Comes to a barrier; the last one opens it.
    fn arrive(&mut self, cpu: CpuId, id: VcpuId, barrier_id: BarrierId) {
        let Some(barrier) = self.barriers.get_mut(barrier_id.0) else {
            return;
        };
        if barrier.waiting.len() + 1 < barrier.users {
            barrier.waiting.push(id);
            self.wait(cpu, id);
            return;
        }
        barrier.opened += 1;
        let waiting = core::mem::take(&mut barrier.waiting);
        let now = self.machine.now;
        self.machine.recorder.line(now, Event::Open(barrier_id.0));
        for member in waiting.into_iter().chain([id]) {
            self.count(member);
            self.go_on(member);
        }
    }

    /// Spins, or blocks at once.
    fn wait(&mut self, cpu: CpuId, id: VcpuId) {
        let Some(actor) = self.actor(id) else {
            return;
        };
        if wait(actor.behaviour) == Wait::SpinThenBlock(0) {
            self.block(cpu, id);
        } else {
            actor.phase = Phase::Spin(0);
        }
    }

    /// What a vCPU waited for is there: it begins again, woken if it blocked.
    fn go_on(&mut self, id: VcpuId) {
        let blocked = self
            .actor(id)
            .is_some_and(|actor| actor.phase == Phase::Blocked);
        self.begin(id);
        self.wake_if(id, blocked);
    }

    fn wake_if(&mut self, id: VcpuId, blocked: bool) {
        if blocked {
            self.machine.ring(id);
        }
        let cpu = self.loaded.iter().position(|loaded| *loaded == Some(id));
        if let Some(cpu) = cpu {
            self.note(CpuId(cpu as u32));
        }
    }

    /// Draws a ticket for a lock.
    fn queue_up(&mut self, cpu: CpuId, id: VcpuId, lock_id: LockId) {
        let Some(lock) = self.locks.get_mut(lock_id.0) else {
            return;
        };
        lock.push_back(id);
        if lock.len() == 1 {
            self.hold(id, lock_id);
        } else {
            self.wait(cpu, id);
        }
    }

    fn hold(&mut self, id: VcpuId, lock: LockId) {
        let now = self.machine.now;
        let Some(actor) = self.actor(id) else {
            return;
        };
        let Behaviour::TicketLock { hold, .. } = actor.behaviour else {
            return;
        };
        let blocked = actor.phase == Phase::Blocked;
        actor.phase = Phase::Hold(hold.max(1));
        self.machine.recorder.line(now, Event::Locked(lock.0, id));
        self.wake_if(id, blocked);
    }

    /// Gives a lock to the next ticket.
    fn unlock(&mut self, id: VcpuId, behaviour: Behaviour) {
        let Behaviour::TicketLock { lock: lock_id, .. } = behaviour else {
            return;
        };
        self.count(id);
        self.begin(id);
        let next = self.locks.get_mut(lock_id.0).and_then(|lock| {
            lock.pop_front();
            lock.front().copied()
        });
        if let Some(next) = next {
            self.hold(next, lock_id);
        }
    }

    /// Notes how far apart the members of groups start.
    fn watch_starts(&mut self) {
        let now = self.machine.now;
        for (id, skew) in (0..).map(GroupId).zip(&mut self.skews) {
            let Some((running, waiting)) = self.machine.sched.members_of(id) else {
                continue;
            };
            let since = match (running, skew.start) {
                (0, _) => {
                    skew.start = Start::Not;
                    continue;
                }
                (_, Start::Whole) => continue,
                (_, Start::Since(since)) => since,
                (_, Start::Not) => now,
            };
            skew.start = Start::Since(since);
            if waiting == 0 {
                skew.all.push(now - since);
                skew.start = Start::Whole;
            }
        }
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The scenario.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// What a vCPU has got done.
    #[must_use]
    pub fn tally(&self, id: VcpuId) -> Tally {
        self.actors
            .get(id.0 as usize)
            .map_or(Tally::default(), |actor| actor.tally)
    }

    /// What a group's members have got done together.
    #[must_use]
    pub fn group_tally(&self, id: GroupId) -> Tally {
        let mut sum = Tally::default();
        for (vcpu, actor) in self.scenario.vcpus.iter().zip(&self.actors) {
            if vcpu.group == Some(id) {
                sum.units += actor.tally.units;
                sum.worked += actor.tally.worked;
                sum.spun += actor.tally.spun;
            }
        }
        sum
    }

    /// Ticks that a vCPU was on a CPU.
    #[must_use]
    pub fn ran(&self, id: VcpuId) -> Ticks {
        let account = self.machine.sched.account(id, self.machine.now);
        account.map_or(0, |account| account.running)
    }

    /// Ticks that a group's members were on CPUs, and its concurrency hazard.
    #[must_use]
    pub fn group_ran(&self, id: GroupId) -> (Ticks, Ticks) {
        let account = self.machine.sched.group_account(id, self.machine.now);
        account.map_or((0, 0), |account| (account.sum.running, account.hazard))
    }

    /// For each time a group's members started after none had run: ticks from the first member's start until none waited.
    #[must_use]
    pub fn start_skews(&self, id: GroupId) -> &[Ticks] {
        self.skews
            .get(id.0 as usize)
            .map_or(&[], |skew| skew.all.as_slice())
    }

    /// What happened, if the scenario is recorded: its `Display` is the trace's line.
    #[must_use]
    pub fn trace(&self) -> &[Line] {
        self.machine.recorder.lines.as_deref().unwrap_or_default()
    }

    /// Ends the timeline and gives it, if the scenario is recorded.
    pub fn timeline(&mut self) -> &[Segment] {
        self.machine.recorder.close(self.machine.now);
        self.machine
            .recorder
            .segments
            .as_deref()
            .unwrap_or_default()
    }

    /// What the scheduler did that it may not do. Tests end at the first.
    #[must_use]
    pub fn faults(&self) -> &[&'static str] {
        &self.machine.faults
    }
}

fn wait(behaviour: Behaviour) -> Wait {
    match behaviour {
        Behaviour::Barrier { wait, .. } | Behaviour::TicketLock { wait, .. } => wait,
        _ => Wait::Spin,
    }
}
