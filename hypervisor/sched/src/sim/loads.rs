//! The loads that modes are compared with.

use std::format;

use super::behaviour::{Behaviour, Wait};
use super::machine::Delays;
use super::scenario::Scenario;
use crate::{GroupId, Mode, Share, Ticks};

/// A way to schedule groups: what is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The groups' mode.
    pub mode: Mode,
    /// Spinning members give way.
    pub directed_yield: bool,
}

impl Policy {
    /// All modes without directed yield, then all with it.
    pub fn all() -> impl Iterator<Item = Policy> {
        [false, true].into_iter().flat_map(|directed_yield| {
            Mode::ALL.into_iter().map(move |mode| Policy {
                mode,
                directed_yield,
            })
        })
    }
}

/// What the groups do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Each group meets at a barrier of its own after `work` and up to a quarter more.
    Barrier {
        /// Ticks of work between barriers.
        work: Ticks,
        /// How members wait.
        wait: Wait,
    },
    /// Each group has a ticket lock, held a tenth of the time.
    Lock {
        /// Ticks of work without the lock.
        work: Ticks,
        /// How members wait.
        wait: Wait,
    },
    /// Members compute, two of three without end; the others block now and then.
    Independent,
}

/// A machine where switches cost 2 µs, kicks and timers come up to 5 and 2 µs late, and a service VM runs for up to 300 µs and
/// blocks for up to 20 ms. Without that slices that once began at one time on all CPUs would do so for ever: members would
/// run together whatever the mode.
#[must_use]
pub fn machine(cpus: u32, seed: u64) -> Scenario {
    let mut scenario = Scenario::new(cpus)
        .seed(seed)
        .switch_cost(2)
        .delays(Delays { kick: 5, timer: 2 });
    let service = Behaviour::Random {
        run: 300,
        block: 20_000,
    };
    scenario.vms(1, None, service);
    scenario
}

/// On [`machine`], a group of `cpus` VMs with one vCPU for each time that the CPUs are overcommitted, all with the same load and
/// policy.
#[must_use]
pub fn groups(load: Load, policy: Policy, cpus: u32, overcommit: u32, seed: u64) -> Scenario {
    let mut scenario = machine(cpus, seed);
    for index in 0..overcommit {
        add_group(&mut scenario, load, policy, cpus, &format!("group {index}"));
    }
    scenario
}

/// Adds a group with that load.
pub fn add_group(
    scenario: &mut Scenario,
    load: Load,
    policy: Policy,
    members: u32,
    name: &str,
) -> GroupId {
    let group = if policy.directed_yield {
        scenario.group(name, policy.mode, Share::default())
    } else {
        scenario.group_without_yield(name, policy.mode, Share::default())
    };
    let (barrier, lock) = (scenario.barrier(), scenario.lock());
    for member in 0..members {
        let behaviour = match load {
            Load::Barrier { work, wait } => Behaviour::Barrier {
                barrier,
                work,
                jitter: work / 4,
                wait,
            },
            Load::Lock { work, wait } => Behaviour::TicketLock {
                lock,
                work,
                hold: work / 10,
                wait,
            },
            Load::Independent if member % 3 < 2 => Behaviour::Hog,
            Load::Independent => Behaviour::RunBlock {
                run: 3000,
                block: 1000,
            },
        };
        scenario.vms(1, Some(group), behaviour);
        scenario.starts_late(50_000);
    }
    group
}
