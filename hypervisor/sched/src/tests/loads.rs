//! What the modes are for: whole loads on the simulator, compared with each other.

use std::vec::Vec;

use crate::sim::{Behaviour, Load, Policy, Scenario, Simulation, Wait, add_group, groups, machine};
use crate::{GroupId, Mode, Share, VcpuId};

const MS: u64 = 1000;
const SECOND: u64 = 1000 * MS;
const SEEDS: [u64; 2] = [1, 2];

const fn policy(mode: Mode) -> Policy {
    Policy {
        mode,
        directed_yield: false,
    }
}

const fn yielding(mode: Mode) -> Policy {
    Policy {
        mode,
        directed_yield: true,
    }
}

fn run(scenario: Scenario, time: u64) -> Simulation {
    let mut simulation = scenario.build().expect("it is right");
    simulation.run_until(time);
    assert!(simulation.faults().is_empty());
    simulation
}

/// What all groups get done in a second, after 100 ms in which all have started, with each seed, together: rounds and ticks of
/// work.
fn throughput(make: impl Fn(u64) -> Scenario) -> (u64, u64) {
    let mut sum = (0, 0);
    for seed in SEEDS {
        let scenario = make(seed);
        let groups: Vec<GroupId> = scenario.group_ids().collect();
        let mut simulation = run(scenario, 100 * MS);
        let done = |simulation: &Simulation| {
            groups.iter().fold((0, 0), |sum, group| {
                let tally = simulation.group_tally(*group);
                (sum.0 + tally.units, sum.1 + tally.worked)
            })
        };
        let before = done(&simulation);
        simulation.run_for(SECOND);
        assert!(simulation.faults().is_empty());
        let after = done(&simulation);
        sum.0 += after.0 - before.0;
        sum.1 += after.1 - before.1;
    }
    sum
}

/// Four members that spin at barriers, twice on four CPUs.
fn barriers(work: u64, wait: Wait, policy: Policy) -> u64 {
    throughput(|seed| groups(Load::Barrier { work, wait }, policy, 4, 2, seed)).0
}

#[test]
fn at_barriers_relaxed_gets_half_as_much_again_done_as_off() {
    for work in [100, MS] {
        let [off, balance, relaxed] = [Mode::Off, Mode::Balance, Mode::Relaxed]
            .map(|mode| barriers(work, Wait::Spin, policy(mode)));
        let [yields, both] =
            [Mode::Off, Mode::Relaxed].map(|mode| barriers(work, Wait::Spin, yielding(mode)));
        for relaxed in [relaxed, both] {
            assert!(2 * relaxed >= 3 * off, "{work}: {relaxed}, off {off}");
            assert!(
                relaxed >= balance.max(yields),
                "{work}: {relaxed}, balance {balance}, yield {yields}"
            );
        }
    }
}

/// The other half of the machine's load need not be a gang.
#[test]
fn at_barriers_beside_hogs_relaxed_gets_half_as_much_again_done_as_off() {
    for work in [100, MS] {
        let rounds = |policy| {
            throughput(|seed| {
                let wait = Wait::Spin;
                let mut scenario = groups(Load::Barrier { work, wait }, policy, 4, 1, seed);
                scenario.vms(4, None, Behaviour::Hog);
                scenario
            })
            .0
        };
        let [off, balance, relaxed] =
            [Mode::Off, Mode::Balance, Mode::Relaxed].map(|mode| rounds(policy(mode)));
        let yields = rounds(yielding(Mode::Off));
        assert!(2 * relaxed >= 3 * off, "{work}: {relaxed}, off {off}");
        assert!(
            relaxed >= balance.max(yields),
            "{work}: {relaxed}, balance {balance}, yield {yields}"
        );
    }
}

/// With 5 ms between barriers, half a slice, `off` loses little: the aim of one and a half is out of reach for anybody. This
/// pins what is reached.
#[test]
fn at_rare_barriers_relaxed_is_still_ahead() {
    let [off, balance, relaxed] = [Mode::Off, Mode::Balance, Mode::Relaxed]
        .map(|mode| barriers(5 * MS, Wait::Spin, policy(mode)));
    let yields = barriers(5 * MS, Wait::Spin, yielding(Mode::Off));
    assert!(10 * relaxed >= 11 * off, "{relaxed}, off {off}");
    assert!(
        relaxed >= balance.max(yields),
        "{relaxed}, {balance}, {yields}"
    );
}

/// Members that block after 200 µs: the directed yield finds who is to run as well as gangs do. Relaxed with it, which is the
/// default, is the best at 2:1; beside hogs it stays a few percent behind, which this pins.
#[test]
fn at_barriers_that_block_late_relaxed_is_among_the_best() {
    let wait = Wait::SpinThenBlock(200);
    for work in [100, MS] {
        let relaxed = barriers(work, wait, yielding(Mode::Relaxed));
        let best = barriers(work, wait, policy(Mode::Balance)).max(barriers(
            work,
            wait,
            yielding(Mode::Off),
        ));
        assert!(relaxed >= best, "{work}: {relaxed}, best {best}");

        let rounds = |policy| {
            throughput(|seed| {
                let mut scenario = groups(Load::Barrier { work, wait }, policy, 4, 1, seed);
                scenario.vms(4, None, Behaviour::Hog);
                scenario
            })
            .0
        };
        let relaxed = rounds(yielding(Mode::Relaxed));
        let best = rounds(policy(Mode::Balance)).max(rounds(yielding(Mode::Off)));
        assert!(100 * relaxed >= 94 * best, "{work}: {relaxed}, best {best}");
    }
}

/// Where members block at once nobody's time is wasted, and gangs have nothing to win. They must not lose either.
#[test]
fn at_barriers_that_block_relaxed_loses_nothing() {
    for work in [100, MS] {
        let wait = Wait::SpinThenBlock(0);
        let off = barriers(work, wait, policy(Mode::Off));
        let relaxed = barriers(work, wait, policy(Mode::Relaxed));
        assert!(100 * relaxed >= 97 * off, "{work}: {relaxed}, off {off}");
    }
}

#[test]
fn independent_members_lose_nothing_by_relaxed() {
    let work = |mode| throughput(|seed| groups(Load::Independent, policy(mode), 4, 2, seed)).1;
    let (off, relaxed) = (work(Mode::Off), work(Mode::Relaxed));
    assert!(100 * relaxed >= 97 * off, "{relaxed}, off {off}");

    // And beside a group that is not like it.
    let work = |mode| {
        let mut sum = 0;
        for seed in SEEDS {
            let mut scenario = machine(4, seed);
            let group = add_group(&mut scenario, Load::Independent, policy(mode), 3, "a");
            let wait = Wait::Spin;
            let load = Load::Barrier { work: MS, wait };
            add_group(&mut scenario, load, policy(mode), 4, "b");
            sum += run(scenario, SECOND).group_tally(group).worked;
        }
        sum
    };
    let (off, relaxed) = (work(Mode::Off), work(Mode::Relaxed));
    assert!(100 * relaxed >= 97 * off, "{relaxed}, off {off}");
}

/// Members of a strict gang begin within the delay of a kick and a timer, and none runs while another waits.
#[test]
fn members_of_a_strict_gang_begin_at_one_time() {
    for policy in [policy(Mode::Strict), yielding(Mode::Strict)] {
        for seed in SEEDS {
            let load = Load::Barrier {
                work: MS,
                wait: Wait::Spin,
            };
            let mut simulation = groups(load, policy, 4, 2, seed)
                .build()
                .expect("it is right");
            // All have first wanted to run after 50 ms; two slots more.
            simulation.run_until(80 * MS);
            let groups = [GroupId(0), GroupId(1)];
            let begun = groups.map(|group| simulation.start_skews(group).len());
            let before = groups.map(|group| simulation.group_ran(group));
            simulation.run_for(SECOND);
            for ((group, begun), before) in groups.into_iter().zip(begun).zip(before) {
                let skews = &simulation.start_skews(group)[begun..];
                let most = skews.iter().max().expect("it has begun");
                assert!(
                    skews.len() > 10 && *most <= 7,
                    "{} starts, {most}",
                    skews.len()
                );
                // As the scheduler itself counts them, from the first one on, when not all wanted to run yet.
                let scheduler = simulation.machine().scheduler();
                let account = scheduler.group_account(group, simulation.machine().now());
                let account = account.expect("is there");
                assert!(account.starts.count() >= skews.len() as u64);
                assert!(account.starts.most() >= *most && account.starts.percentile(90) <= 7);
                let (ran, hazard) = simulation.group_ran(group);
                assert_eq!((account.ran, account.hazard), (ran, hazard));
                let (ran, hazard) = (ran - before.0, hazard - before.1);
                assert!(100 * hazard <= ran, "{hazard} of {ran}");
            }
        }
    }
}

/// Members of a balanced group that are woken take the CPU where they are at home, not one that would not have them. Fair is
/// a fifth of the machine; separate CPUs and the rate limit take half of it from members that block so often.
#[test]
fn balanced_sleepers_wake_at_home() {
    let wait = Wait::SpinThenBlock(0);
    let load = Load::Barrier { work: 100, wait };
    let mut scenario = groups(load, policy(Mode::Balance), 4, 1, 1);
    scenario.vms(4, None, Behaviour::Hog);
    let simulation = run(scenario, SECOND);
    let (ran, _) = simulation.group_ran(GroupId(0));
    assert!(100 * ran >= 8 * 4 * SECOND, "{ran}");
}

/// Nobody is paid for cheating: not for yields before the scheduler looks, not for boosts, whoever the others are.
#[test]
fn thieves_gain_nothing() {
    let thieves = [
        Behaviour::SliceThief { margin: 10 },
        Behaviour::SliceThief { margin: 500 },
        Behaviour::TickThief {
            tick: 10 * MS,
            margin: 10,
        },
        Behaviour::TickThief {
            tick: MS,
            margin: 10,
        },
        Behaviour::DoorbellThief { run: 200, sleep: 1 },
        Behaviour::DoorbellThief {
            run: 900,
            sleep: 50,
        },
        Behaviour::DoorbellThief {
            run: 5 * MS,
            sleep: 100,
        },
    ];
    for thief in thieves {
        for (cpus, hogs) in [(1, 1), (1, 3), (2, 3)] {
            let mut scenario = Scenario::new(cpus);
            scenario.vms(1, None, thief);
            scenario.vms(hogs, None, Behaviour::Hog);
            let simulation = run(scenario, 2 * SECOND);
            let whole = f64::from(cpus) * simulation.machine().now() as f64;
            let share = simulation.ran(VcpuId(0)) as f64 / whole;
            let fair = 1.0 / f64::from(hogs + 1);
            assert!(
                share <= fair + 0.01,
                "{thief:?} beside {hogs} on {cpus}: {share}, fair is {fair}"
            );
        }
    }
}

/// A load without a barrier, a lock or a group, drawn: the machine is never idle while somebody could run.
#[test]
fn drawn_loads_share_what_they_want() {
    for seed in 0..20 {
        let mut scenario = Scenario::new(2).seed(seed);
        let drawn = Behaviour::Random {
            run: 5 * MS,
            block: 3 * MS,
        };
        for _ in 0..6 {
            scenario.vm(None, Share::default(), &[drawn]);
        }
        scenario.vms(1, None, Behaviour::Hog);
        let simulation = run(scenario, SECOND);
        let busy: u64 = (0..7).map(|id| simulation.ran(VcpuId(id))).sum();
        assert!(100 * busy >= 99 * 2 * SECOND, "seed {seed}: {busy}");
    }
}
