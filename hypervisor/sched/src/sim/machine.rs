//! CPUs that do what the scheduler says and nothing else: they ask only when kicked or when a decision runs out.

use std::vec::Vec;

use super::rng::Rng;
use super::trace::{Event, Recorder};
use crate::{Config, CpuId, CpuSet, Kicks, Scheduler, Ticks, VcpuId};

/// How late a machine is, at most; each time a number up to that is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    /// Ticks from the decision to kick a CPU until it asks.
    pub kick: Ticks,
    /// Ticks from the end of a decision until the CPU asks.
    pub timer: Ticks,
}

/// A scheduler and its CPUs.
#[derive(Debug)]
pub struct Machine {
    pub(crate) sched: Scheduler,
    pub(crate) now: Ticks,
    cpus: u32,
    /// When each CPU asks by itself.
    until: Vec<Ticks>,
    /// What each CPU was told to run last, and how often in a row for a tick only.
    storms: Vec<(Option<VcpuId>, u32)>,
    /// When the kick that is on its way to a CPU arrives.
    arrives: Vec<Ticks>,
    /// What each CPU has loaded.
    loaded: Vec<Option<VcpuId>>,
    /// What blocked on each CPU, which has done nothing since.
    resting: Vec<Option<VcpuId>>,
    /// Who is to wake on each CPU, and whether by a doorbell, once the kick has arrived.
    marks: Vec<Option<(VcpuId, bool)>>,
    /// Kicked: they ask now.
    pub(crate) pending: CpuSet,
    /// Decisions taken.
    pub(crate) decisions: u64,
    /// Most steps that one call of the scheduler took.
    most_steps: u64,
    delays: Delays,
    rng: Rng,
    pub(super) recorder: Recorder,
    /// Promises that the scheduler broke.
    pub(crate) faults: Vec<&'static str>,
}

impl Machine {
    /// CPUs 0 to `cpus` - 1, idle, with a tick per microsecond.
    #[must_use]
    pub fn new(cpus: u32) -> Machine {
        Machine::with(cpus, |_| ())
    }

    /// The same, configured otherwise.
    #[must_use]
    pub fn with(cpus: u32, change: impl FnOnce(&mut Config)) -> Machine {
        let cpus = cpus.clamp(1, 64);
        let mut config = Config::new(CpuSet::first(cpus), 1000);
        change(&mut config);
        Machine {
            sched: Scheduler::new(config),
            now: 0,
            cpus,
            until: std::vec![Ticks::MAX; cpus as usize],
            storms: std::vec![(None, 0); cpus as usize],
            arrives: std::vec![Ticks::MAX; cpus as usize],
            loaded: std::vec![None; cpus as usize],
            resting: std::vec![None; cpus as usize],
            marks: std::vec![None; cpus as usize],
            pending: CpuSet::EMPTY,
            decisions: 0,
            most_steps: 0,
            delays: Delays::default(),
            rng: Rng::new(0),
            recorder: Recorder::default(),
            faults: Vec::new(),
        }
    }

    /// From now on it is late.
    pub fn delay(&mut self, delays: Delays, seed: u64) {
        self.delays = delays;
        self.rng = Rng::new(seed);
    }

    /// The CPUs.
    #[must_use]
    pub fn cpus(&self) -> CpuSet {
        CpuSet::first(self.cpus)
    }

    /// Notes a broken promise. In tests that is the end.
    fn fault(&mut self, what: &'static str) {
        #[cfg(test)]
        panic!("{what}");
        #[cfg(not(test))]
        self.faults.push(what);
    }

    /// Tells CPUs to ask.
    pub fn kick(&mut self, kicks: Kicks) {
        self.send(kicks.cpus());
    }

    fn send(&mut self, cpus: CpuSet) {
        if cpus.is_empty() {
            return;
        }
        self.recorder.line(self.now, Event::Kick(cpus));
        if self.delays.kick == 0 {
            self.pending = self.pending.union(cpus);
            return;
        }
        for cpu in cpus.iter() {
            let time = self.now + self.rng.up_to(self.delays.kick);
            if let Some(arrives) = self.arrives.get_mut(cpu.0 as usize) {
                *arrives = time.min(*arrives);
            }
        }
    }

    /// Calls the scheduler, and counts what that costs.
    fn call<R>(&mut self, action: impl FnOnce(&mut Scheduler, Ticks) -> R) -> R {
        let before = self.sched.steps();
        let answer = action(&mut self.sched, self.now);
        self.most_steps = self.most_steps.max(self.sched.steps() - before);
        answer
    }

    /// Lets a CPU ask, and does what it is told: runs this.
    pub fn ask(&mut self, cpu: CpuId) -> Option<VcpuId> {
        self.pending.remove(cpu);
        let mark = self.marks.get_mut(cpu.0 as usize).and_then(Option::take);
        let decision = match mark {
            Some((id, boosted)) => self.call(|sched, now| sched.wake_here(cpu, id, boosted, now)),
            None => self.call(|sched, now| sched.schedule(cpu, now)),
        };
        if decision.run.is_some()
            && let Some(resting) = self.resting.get_mut(cpu.0 as usize)
        {
            *resting = None;
        }
        self.sched.loaded_now(cpu, self.now);
        if let Some(loaded) = self.loaded.get_mut(cpu.0 as usize) {
            *loaded = decision.run;
        }
        if self.sched.current(cpu) != decision.run {
            self.fault("the scheduler forgets what it said");
        }
        if decision.until <= self.now {
            self.fault("a decision is over at once");
        }
        self.look_for_storm(cpu, decision.run, decision.until);
        let late = self.rng.up_to(self.delays.timer);
        if let Some(until) = self.until.get_mut(cpu.0 as usize) {
            *until = decision.until.max(self.now + 1).saturating_add(late);
        }
        if let Some(arrives) = self.arrives.get_mut(cpu.0 as usize)
            && *arrives <= self.now
        {
            *arrives = Ticks::MAX;
        }
        self.decisions += 1;
        self.recorder.line(
            self.now,
            Event::Told {
                cpu,
                run: decision.run,
                until: decision.until,
            },
        );
        self.kick(decision.kicks);
        decision.run
    }

    /// Decisions that let the same vCPU run for a tick, again and again, would take all of its time.
    fn look_for_storm(&mut self, cpu: CpuId, run: Option<VcpuId>, until: Ticks) {
        const MOST_IN_A_ROW: u32 = 8;
        let is_short = run.is_some() && until <= self.now + 1;
        let Some((last, in_a_row)) = self.storms.get_mut(cpu.0 as usize) else {
            return;
        };
        *in_a_row = if is_short && *last == run {
            *in_a_row + 1
        } else {
            0
        };
        *last = run;
        if *in_a_row > MOST_IN_A_ROW {
            self.fault("decisions follow each other at once");
        }
    }

    /// Lets CPUs ask until nobody is kicked any more.
    pub fn calm(&mut self) {
        for _ in 0..1000 {
            let Some(cpu) = self.pending.iter().next() else {
                return;
            };
            self.ask(cpu);
        }
        self.pending = CpuSet::EMPTY;
        self.fault("the CPUs kick each other without end");
    }

    /// Whether a CPU has been told when to ask again: somebody may wait for it.
    #[must_use]
    pub fn has_end(&self, cpu: CpuId) -> bool {
        self.until
            .get(cpu.0 as usize)
            .is_some_and(|until| *until != Ticks::MAX)
    }

    /// When a CPU asks by itself.
    #[cfg(test)]
    pub(crate) fn asks_at(&self, cpu: CpuId) -> Ticks {
        self.until
            .get(cpu.0 as usize)
            .copied()
            .unwrap_or(Ticks::MAX)
    }

    /// Who asks next, and when.
    #[must_use]
    pub fn next(&self) -> Option<(Ticks, CpuId)> {
        if let Some(cpu) = self.pending.iter().next() {
            return Some((self.now, cpu));
        }
        self.cpus()
            .iter()
            .zip(self.until.iter().zip(&self.arrives))
            .map(|(cpu, (until, arrives))| (*until.min(arrives), cpu))
            .min()
    }

    /// Lets time go by, obeying all decisions.
    pub fn run_until(&mut self, end: Ticks) {
        loop {
            self.calm();
            match self.next() {
                Some((time, cpu)) if time <= end => {
                    self.now = self.now.max(time);
                    self.ask(cpu);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// Lets time go by.
    pub fn run_for(&mut self, ticks: Ticks) {
        self.run_until(self.now + ticks);
    }

    /// The vCPU on a CPU waits for an event; the CPU asks.
    pub fn block(&mut self, cpu: CpuId) -> Option<VcpuId> {
        let loaded = self.loaded.get(cpu.0 as usize).copied().flatten();
        if let Some(vcpu) = loaded {
            self.recorder.line(self.now, Event::Block(vcpu));
            let kicks = self.call(|sched, now| sched.block(cpu, vcpu, now));
            self.kick(kicks);
        }
        let run = self.ask(cpu);
        if let Some(loaded) = loaded {
            for resting in self.resting.iter_mut().filter(|one| **one == Some(loaded)) {
                *resting = None;
            }
        }
        if run.is_none()
            && let Some(resting) = self.resting.get_mut(cpu.0 as usize)
        {
            *resting = loaded.or(*resting);
        }
        run
    }

    /// A vCPU can run.
    pub fn wake(&mut self, vcpu: VcpuId) {
        self.rouse(vcpu, false);
    }

    /// A vCPU can run: its doorbell was rung.
    pub fn ring(&mut self, vcpu: VcpuId) {
        self.rouse(vcpu, true);
    }

    fn rouse(&mut self, vcpu: VcpuId, boosted: bool) {
        self.recorder.line(self.now, Event::Wake { vcpu, boosted });
        let rests = self.resting.iter_mut().zip(&mut self.marks).zip(0_u32..);
        for ((resting, mark), cpu) in rests {
            if *resting == Some(vcpu) {
                *mark = Some((vcpu, boosted));
                *resting = None;
                self.send(CpuSet::single(CpuId(cpu)));
                return;
            }
        }
        let kicks = self.call(|sched, now| {
            if boosted {
                sched.wake_boosted(vcpu, now)
            } else {
                sched.wake(vcpu, now)
            }
        });
        self.kick(kicks);
    }

    /// The vCPU on a CPU lets others go first; the CPU asks.
    pub fn give_way(&mut self, cpu: CpuId) -> Option<VcpuId> {
        if let Some(vcpu) = self.sched.current(cpu) {
            self.recorder.line(self.now, Event::Yield(vcpu));
        }
        let kicks = self.call(|sched, now| sched.yield_now(cpu, now));
        self.kick(Kicks(kicks.cpus().without(CpuSet::single(cpu))));
        self.ask(cpu)
    }

    /// The vCPU on a CPU spins, as a pause-loop exit tells: a machine has those only where the scheduler heeds them and
    /// somebody may wait. Whether the CPU asked.
    pub fn spin(&mut self, cpu: CpuId) -> bool {
        let Some(vcpu) = self.sched.current(cpu) else {
            return false;
        };
        if !self.has_end(cpu) || !self.sched.heeds_spinning(vcpu, cpu) {
            return false;
        }
        let kicks = self.call(|sched, now| sched.spinning(cpu, now));
        if kicks.cpus().is_empty() {
            return false;
        }
        self.recorder.line(self.now, Event::Spin(vcpu));
        self.kick(Kicks(kicks.cpus().without(CpuSet::single(cpu))));
        if kicks.cpus().contains(cpu) {
            self.ask(cpu);
        }
        kicks.cpus().contains(cpu)
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Ticks {
        self.now
    }

    /// How many decisions were taken.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    /// Steps of all decisions and events so far: vCPUs and gangs looked at, places in queues looked up or changed.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.sched.steps()
    }

    /// Most steps that one decision or event took.
    #[must_use]
    pub fn most_steps(&self) -> u64 {
        self.most_steps
    }

    /// The scheduler.
    #[must_use]
    pub fn scheduler(&self) -> &Scheduler {
        &self.sched
    }

    /// The scheduler, to add to or change.
    pub fn scheduler_mut(&mut self) -> &mut Scheduler {
        &mut self.sched
    }
}
