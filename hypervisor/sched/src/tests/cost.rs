//! What a decision costs, in steps: a vCPU or gang looked at, or a place in an ordered set looked up or changed, which is a
//! logarithm. Times are for `examples/measure.rs`.

use std::string::String;
use std::vec::Vec;

use crate::sim::{Behaviour, Scenario, Simulation, Wait};
use crate::{Affinity, CpuId, CpuSet, Mode, Share, VcpuId};

const MS: u64 = 1000;
const CPUS: u32 = 4;

/// Everybody wants to run, has no group, and is like everybody else.
fn hogs(count: u32) -> Scenario {
    let mut scenario = Scenario::new(CPUS);
    scenario.vms(count, None, Behaviour::Hog);
    scenario
}

/// Groups of four that meet at barriers.
fn groups(mode: Mode, count: u32) -> Scenario {
    let mut scenario = Scenario::new(CPUS);
    for _ in 0..count / 4 {
        let group = scenario.group("", mode, Share::default());
        let behaviour = Behaviour::Barrier {
            barrier: scenario.barrier(),
            work: 700,
            jitter: 100,
            wait: Wait::SpinThenBlock(300),
        };
        scenario.vms(4, Some(group), behaviour);
    }
    scenario
}

/// Everything that could make somebody look at everybody: caps that are spent, CPUs that nobody likes, pinned ones, yields,
/// strict gangs that cannot start, and those who have waited too long.
fn crowd(count: u32) -> Scenario {
    let mut scenario = Scenario::new(CPUS);
    for index in 0..count / 8 {
        let cap = Share {
            weight: 256,
            cap: 1,
        };
        scenario.vm(None, cap, &[Behaviour::Hog]);
        let heavy = Share {
            weight: 20_000,
            cap: 0,
        };
        scenario.vm(None, heavy, &[Behaviour::SliceThief { margin: 100 }]);
        let ring = Behaviour::DoorbellThief {
            run: 300,
            sleep: 2000,
        };
        scenario.vm(None, Share::default(), &[ring]);
        scenario.vm(None, Share::default(), &[Behaviour::Hog]);
        let strict = scenario.group("", Mode::Strict, Share::default());
        scenario.vms(4, Some(strict), Behaviour::Hog);
        let first = 8 * index;
        let liked = Affinity {
            hard: CpuSet::first(CPUS),
            soft: CpuSet::single(CpuId(0)),
        };
        scenario.affinity(VcpuId(first + 3), liked);
        // Two members that are both at home on the busiest CPU, beside those who would rather be there.
        for member in 4..6 {
            scenario.affinity(VcpuId(first + member), Affinity::pinned(CpuId(0)));
        }
    }
    scenario
}

/// The most that one decision or event cost, and the mean of decisions with what happens between them.
fn cost(scenario: Scenario) -> (u64, u64) {
    let mut simulation: Simulation = scenario.build().expect("it is right");
    simulation.run_until(50 * MS);
    let steps = simulation.machine().steps();
    let decisions = simulation.machine().decisions();
    simulation.run_until(1000 * MS);
    let machine = simulation.machine();
    let decisions = machine.decisions() - decisions;
    assert!(simulation.faults().is_empty() && decisions > 100);
    (machine.most_steps(), (machine.steps() - steps) / decisions)
}

#[test]
fn a_decision_costs_no_more_with_more_vcpus() {
    let mut kinds: Vec<(String, [Scenario; 3])> = Vec::new();
    let counts = [16, 64, 512];
    kinds.push(("hogs".into(), counts.map(hogs)));
    kinds.push(("crowd".into(), counts.map(crowd)));
    for mode in Mode::ALL {
        let scenarios = counts.map(|count| groups(mode, count));
        kinds.push((mode.name().into(), scenarios));
    }
    for (name, [few, some, many]) in kinds {
        let [few, some, many] = [cost(few), cost(some), cost(many)];
        // From 64 to 512 a logarithm grows by half; steps are logarithms themselves and hardly grow at all.
        assert!(
            2 * many.0 <= 3 * some.0,
            "{name}: {few:?} {some:?} {many:?}"
        );
        // Of a crowd, other parts are awake the larger it is.
        let is_uniform = name != "crowd";
        assert!(
            !is_uniform || 4 * many.1 <= 5 * some.1,
            "{name}: {few:?} {some:?} {many:?}"
        );
    }
}

/// The counter counts: a gang costs its members.
#[test]
fn a_gang_costs_its_members() {
    let alone = |members| {
        let mut scenario = Scenario::new(CPUS);
        let group = scenario.group("", Mode::Relaxed, Share::default());
        scenario.vms(members, Some(group), Behaviour::Hog);
        cost(scenario).0
    };
    let (small, large) = (alone(8), alone(64));
    assert!(large > 4 * small && large < 16 * small, "{small} {large}");
}
