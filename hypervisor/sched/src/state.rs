//! What the scheduler keeps of each vCPU, VM, gang and CPU.

use alloc::vec::Vec;

use crate::account::{Account, Starts};
use crate::budget::Budget;
use crate::config::{Affinity, Mode, Share};
use crate::ids::{CpuId, CpuSet, GangId, Ticks, VcpuId, VmId};

/// Consumed time in units that a weight divides: ticks times [`SCALE`], by the weight. 128 bits: at 5 GHz and weight 1 they
/// last longer than any machine.
pub(crate) type Credit = u128;
/// Factor between ticks and consumed time at weight 1.
const SCALE: u128 = 1 << 16;

/// How far a vCPU has got: ticks run, and those by the weight of its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub ticks: Ticks,
    by_weight: Credit,
}

impl Progress {
    pub(crate) const NONE: Progress = Progress {
        ticks: 0,
        by_weight: 0,
    };

    /// It has run so many ticks more.
    pub(crate) fn add(&mut self, ticks: Ticks, weight: u16) {
        self.ticks = self.ticks.saturating_add(ticks);
        self.by_weight = self.by_weight.saturating_add(consumed(ticks, weight));
    }

    /// The lesser of either measure.
    pub(crate) fn least(self, other: Progress) -> Progress {
        Progress {
            ticks: self.ticks.min(other.ticks),
            by_weight: self.by_weight.min(other.by_weight),
        }
    }

    /// The greater of either measure.
    pub(crate) fn most(self, other: Progress) -> Progress {
        Progress {
            ticks: self.ticks.max(other.ticks),
            by_weight: self.by_weight.max(other.by_weight),
        }
    }

    pub(crate) fn plus(self, span: Progress) -> Progress {
        Progress {
            ticks: self.ticks.saturating_add(span.ticks),
            by_weight: self.by_weight.saturating_add(span.by_weight),
        }
    }

    pub(crate) fn less(self, span: Progress) -> Progress {
        Progress {
            ticks: self.ticks.saturating_sub(span.ticks),
            by_weight: self.by_weight.saturating_sub(span.by_weight),
        }
    }

    /// By both measures.
    pub(crate) fn has_reached(self, edge: Progress) -> bool {
        self.ticks >= edge.ticks && self.by_weight >= edge.by_weight
    }

    /// By both measures.
    pub(crate) fn is_beyond(self, edge: Progress) -> bool {
        self.ticks > edge.ticks && self.by_weight > edge.by_weight
    }

    /// How long it has to run at a weight to reach an edge by either measure.
    pub(crate) fn ticks_to(self, edge: Progress, weight: u16) -> [Ticks; 2] {
        let by_weight = edge.by_weight.saturating_sub(self.by_weight);
        [
            edge.ticks.saturating_sub(self.ticks),
            Ticks::try_from(by_weight.div_ceil(consumed(1, weight).max(1))).unwrap_or(Ticks::MAX),
        ]
    }
}

/// Consumed time of `ticks` at a weight.
pub(crate) fn consumed(ticks: Ticks, weight: u16) -> Credit {
    let weight = weight.max(1);
    // Nearly always it fits in one word, and dividing two takes as long as the rest of a short decision.
    match ticks.checked_mul(SCALE as u64) {
        Some(scaled) => Credit::from(scaled / u64::from(weight)),
        None => u128::from(ticks) * SCALE / u128::from(weight),
    }
}

/// Where a gang stands in the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// CPUs that could start a member.
    pub any: CpuSet,
    /// CPUs that do so although they have others to run.
    pub preemptible: CpuSet,
    pub is_strict: bool,
    pub credit: Credit,
    /// When the member that has waited longest, as its weight counts, has waited too long, and where it may run.
    pub patience: (Ticks, CpuSet),
}

#[derive(Debug)]
pub(crate) struct Gang {
    pub share: Share,
    pub mode: Mode,
    /// A spinning member gives way to one that should run.
    pub directed_yield: bool,
    /// Time consumed by all members, by the weight.
    pub credit: Credit,
    pub budget: Budget,
    /// It or one of its VMs may have spent a budget, and has not been let go since.
    pub is_held: bool,
    /// The weights of its members' VMs together: how they share what the gang gets.
    pub weights_within: u64,
    /// vCPUs of all its VMs.
    pub members: Vec<VcpuId>,
    pub vms: u32,
    pub running: u32,
    pub waiting: u32,
    /// Of these, stopped.
    pub co_stopped: u32,
    /// Of those that run, put on CPUs that have not loaded them yet.
    pub arriving: u32,
    /// Its weight as it counts among the active ones; 0 while it is not active.
    pub active_weight: u64,
    /// Members that were started together run until then.
    pub slot_until: Ticks,
    /// Where it stands in the queues, if a member could start.
    pub queued: Option<Places>,
    /// The period in which somebody in it spent a budget.
    pub held_back: Option<u64>,
    pub hazard: Ticks,
    pub hazard_since: Ticks,
    /// Ticks run by members that have left.
    pub ran_by_gone: Ticks,
    pub starts: Starts,
}

impl Gang {
    pub(crate) fn new(share: Share, mode: Mode, credit: Credit) -> Gang {
        Gang {
            share,
            mode,
            directed_yield: true,
            credit,
            budget: Budget::default(),
            is_held: false,
            weights_within: 0,
            members: Vec::new(),
            vms: 0,
            running: 0,
            waiting: 0,
            co_stopped: 0,
            arriving: 0,
            active_weight: 0,
            slot_until: 0,
            queued: None,
            held_back: None,
            hazard: 0,
            hazard_since: 0,
            ran_by_gone: 0,
            starts: Starts::default(),
        }
    }

    /// A part runs while another part wants to and waits.
    pub(crate) fn is_in_hazard(&self) -> bool {
        let (running, waiting) = self.members_there();
        running > 0 && waiting > 0
    }

    /// How many run, and how many want to: those whose CPU has not loaded them yet still wait.
    pub(crate) fn members_there(&self) -> (u32, u32) {
        (
            self.running.saturating_sub(self.arriving),
            self.waiting + self.arriving,
        )
    }

    /// One of its members has gone from one state to another.
    pub(crate) fn note_change(&mut self, before: State, after: State, now: Ticks) {
        self.note_hazard(now);
        self.co_stopped -= u32::from(before == State::CoStopped);
        self.co_stopped += u32::from(after == State::CoStopped);
        match before {
            State::Running(_) => self.running -= 1,
            State::Waiting | State::CoStopped => self.waiting -= 1,
            State::Blocked | State::Paused { .. } => {}
        }
        match after {
            State::Running(_) => self.running += 1,
            State::Waiting | State::CoStopped => self.waiting += 1,
            State::Blocked | State::Paused { .. } => {}
        }
        let (running, waiting) = self.members_there();
        self.starts.note(running, waiting, self.arriving, now);
    }

    /// Counts the hazard up to now.
    pub(crate) fn note_hazard(&mut self, now: Ticks) {
        if self.is_in_hazard() {
            self.hazard += now.saturating_sub(self.hazard_since);
        }
        self.hazard_since = now;
    }
}

#[derive(Debug)]
pub(crate) struct Vm {
    pub gang: GangId,
    pub share: Share,
    /// Time consumed by its vCPUs, by its weight: decides among the VMs of a gang.
    pub credit: Credit,
    pub budget: Budget,
    pub vcpus: u32,
    /// Of vCPUs that have left.
    pub gone: Account,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running(CpuId),
    /// It could run.
    Waiting,
    /// It could run, but is ahead of a member that waits.
    CoStopped,
    Blocked,
    /// Stopped by the operator; `ready` if it could run otherwise.
    Paused {
        ready: bool,
    },
}

impl State {
    /// Index into the times of a vCPU.
    pub(crate) const fn index(self) -> usize {
        match self {
            State::Running(_) => 0,
            State::Waiting => 1,
            State::CoStopped => 2,
            State::Blocked => 3,
            State::Paused { .. } => 4,
        }
    }

    /// Where it runs, if it does.
    pub(crate) const fn cpu(self) -> Option<CpuId> {
        match self {
            State::Running(cpu) => Some(cpu),
            _ => None,
        }
    }

    /// Whether it wants to run.
    pub(crate) const fn is_ready(self) -> bool {
        matches!(self, State::Running(_) | State::Waiting | State::CoStopped)
    }
}

#[derive(Debug)]
pub(crate) struct Vcpu {
    pub vm: VmId,
    pub gang: GangId,
    /// Hard affinity within the machine's CPUs.
    pub hard: CpuSet,
    pub soft: CpuSet,
    /// Where it belongs in balance mode.
    pub home: CpuId,
    pub state: State,
    pub since: Ticks,
    /// Ticks spent in each state.
    pub times: [Ticks; 5],
    /// While it waits: until when its weight explains that.
    pub patient_until: Ticks,
    /// Ticks run, as far as fairness within the VM is concerned.
    pub credit: Ticks,
    /// What it has run, as far as the skew of the gang is concerned.
    pub progress: Progress,
    pub last_cpu: Option<CpuId>,
    /// It gave way: others go first, once.
    pub yielded: bool,
    /// A doorbell woke it: it may go first, for a short time.
    pub boosted: bool,
    pub switches: u64,
    pub migrations: u64,
}

impl Vcpu {
    pub(crate) fn new(
        vm: VmId,
        gang: GangId,
        affinity: Affinity,
        cpus: CpuSet,
        home: CpuId,
        now: Ticks,
    ) -> Vcpu {
        let hard = affinity.hard.intersection(cpus);
        Vcpu {
            vm,
            gang,
            hard,
            soft: affinity.soft.intersection(hard),
            home,
            state: State::Blocked,
            since: now,
            times: [0; 5],
            patient_until: 0,
            credit: 0,
            progress: Progress::NONE,
            last_cpu: None,
            yielded: false,
            boosted: false,
            switches: 0,
            migrations: 0,
        }
    }

    /// Goes to another state, and accounts for the time in the last one, which is returned.
    pub(crate) fn enter(&mut self, state: State, now: Ticks) -> State {
        let before = self.state;
        if let Some(time) = self.times.get_mut(before.index()) {
            *time += now.saturating_sub(self.since);
        }
        // One that was driven off as soon as it had begun has waited all the time.
        let has_run = matches!(before, State::Running(_)) && now > self.since;
        if has_run || before == State::Blocked {
            self.patient_until = 0;
        }
        self.since = now;
        self.state = state;
        before
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    pub current: Option<VcpuId>,
    /// The start of its gang has put `current` here; the CPU has been kicked and has not asked yet.
    pub is_awaited: bool,
    /// It has not loaded `current` yet.
    pub is_loading: bool,
    /// The vCPU that was chosen for it by somebody else.
    pub reserved: Option<VcpuId>,
    /// The vCPU that was given the rest of the slice.
    pub lent: Option<VcpuId>,
    /// The gang for which it was kicked while it was idle.
    pub promised: Option<GangId>,
    /// When the current run began.
    pub started: Ticks,
    /// When its slice ends.
    pub slice_end: Ticks,
    /// When the gang's slot ends in which the current run began: it is compared with others then, even if other members have
    /// begun a new slot.
    pub slot_until: Ticks,
    /// Until when nobody may take the CPU from one that had waited too long.
    pub firm_until: Ticks,
    /// Until when the last decision holds.
    pub until: Ticks,
    /// Until when the current run has been charged.
    pub charged: Ticks,
    /// The least consumed time there was among those that it could run when it chose last. It never goes back: one that was alone
    /// at the bottom and left does not lower it for others.
    pub floor: Credit,
    /// Who ran last, for prefer mode.
    pub last: Option<VcpuId>,
    pub busy: Ticks,
    pub idle: Ticks,
    pub since: Ticks,
    pub switches: u64,
}

impl Cpu {
    /// A vCPU comes to it, to be loaded.
    #[inline]
    pub(crate) fn begin_run(&mut self, id: VcpuId, now: Ticks) {
        self.idle += now.saturating_sub(self.since);
        self.since = now;
        self.charged = now;
        self.current = Some(id);
        self.is_loading = true;
    }

    /// Its vCPU leaves.
    #[inline]
    pub(crate) fn end_run(&mut self, now: Ticks) {
        self.last = self.current.take();
        self.busy += now.saturating_sub(self.since);
        self.since = now;
    }

    /// One that has not asked yet: it does when it is kicked.
    pub(crate) const ASLEEP: Cpu = Cpu {
        current: None,
        is_awaited: false,
        is_loading: false,
        reserved: None,
        lent: None,
        promised: None,
        started: 0,
        slice_end: 0,
        slot_until: 0,
        firm_until: 0,
        until: Ticks::MAX,
        charged: 0,
        floor: 0,
        last: None,
        busy: 0,
        idle: 0,
        since: 0,
        switches: 0,
    };
}
