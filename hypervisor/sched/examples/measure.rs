//! Prints the tables of `docs/SCHEDULING.md`: `cargo run --release -p nagaya-sched --features sim --example measure`. With the
//! word `cost` it prints only what decisions cost.

use std::time::Instant;

use nagaya_sched::sim::{Behaviour, Load, Policy, Scenario, Wait, add_group, groups, machine};
use nagaya_sched::{Error, GroupId, Mode, Share, Ticks};

const SECONDS: u64 = 4;
/// Runs that are added up.
const SEEDS: std::ops::Range<u64> = 1..4;
const END: Ticks = SECONDS * 1_000_000;

fn main() -> Result<(), Error> {
    costs()?;
    if std::env::args().any(|word| word == "cost") {
        return Ok(());
    }
    let waits = [
        ("spin", Wait::Spin),
        ("spin 200 us, block", Wait::SpinThenBlock(200)),
        ("block", Wait::SpinThenBlock(0)),
    ];
    for work in [100, 1000, 5000] {
        for (name, wait) in waits {
            let load = Load::Barrier { work, wait };
            table(&format!("barrier, {work} us, {name}"), |policy, seed| {
                groups(load, policy, 4, 2, seed)
            })?;
            table(
                &format!("barrier, {work} us, {name}; beside 4 hogs"),
                |policy, seed| {
                    let mut scenario = groups(load, policy, 4, 1, seed);
                    scenario.vms(4, None, Behaviour::Hog);
                    scenario
                },
            )?;
        }
    }
    for (name, wait) in waits {
        let load = Load::Lock { work: 200, wait };
        table(&format!("ticket lock, 200 us, {name}"), |policy, seed| {
            groups(load, policy, 4, 2, seed)
        })?;
    }
    table("independent", |policy, seed| {
        groups(Load::Independent, policy, 4, 2, seed)
    })?;
    table(
        "independent, 3 members, beside a group of 4 at barriers",
        |policy, seed| {
            let mut scenario = machine(4, seed);
            add_group(&mut scenario, Load::Independent, policy, 3, "independent");
            let load = Load::Barrier {
                work: 1000,
                wait: Wait::Spin,
            };
            add_group(&mut scenario, load, policy, 4, "barrier");
            scenario
        },
    )
}

/// Steps and time of a decision together with the event before it, by vCPUs that want to run. The time includes the simulator.
fn costs() -> Result<(), Error> {
    println!("## cost of a decision on 4 CPUs");
    println!("vCPUs  load                   steps (mean)  steps (most)  ns (median of 5)");
    for count in [4, 64, 512] {
        cost("alone", count, |scenario| {
            scenario.vms(count, None, Behaviour::Hog)
        })?;
        for mode in [Mode::Off, Mode::Relaxed, Mode::Strict] {
            cost(&format!("groups of 4, {mode}"), count, |scenario| {
                for _ in 0..count / 4 {
                    let group = scenario.group("", mode, Share::default());
                    scenario.vms(4, Some(group), Behaviour::Hog);
                }
            })?;
        }
    }
    println!();
    Ok(())
}

fn cost(name: &str, count: u32, fill: impl Fn(&mut Scenario)) -> Result<(), Error> {
    let (mut times, mut steps) = (Vec::new(), (0, 0));
    for _ in 0..5 {
        let mut scenario = Scenario::new(4);
        fill(&mut scenario);
        // All run: CPUs are asked all the time, whether anything has changed or not.
        let mut simulation = scenario.build()?;
        simulation.run_until(100_000);
        let machine = simulation.machine();
        let before = (machine.steps(), machine.decisions());
        let started = Instant::now();
        simulation.run_for(50_000_000);
        let elapsed = started.elapsed();
        let machine = simulation.machine();
        let decisions = (machine.decisions() - before.1).max(1);
        times.push(elapsed.as_nanos() / u128::from(decisions));
        steps = (
            (machine.steps() - before.0) / decisions,
            machine.most_steps(),
        );
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    println!(
        "{count:<6} {name:<22} {:>12} {:>13} {median:>17}",
        steps.0, steps.1
    );
    Ok(())
}

/// A row per policy: units and work of group 0 in a second, its share of the machine, hazard, start skew, migrations.
fn table(title: &str, make: impl Fn(Policy, u64) -> Scenario) -> Result<(), Error> {
    println!("## {title}");
    println!(
        "policy          units/s  work ms/s  spin ms/s  share %  hazard %  skew us  decisions/s"
    );
    for policy in Policy::all() {
        let mut row = Row::default();
        for seed in SEEDS {
            let mut simulation = make(policy, seed).build()?;
            simulation.run_until(END);
            let group = GroupId(0);
            let tally = simulation.group_tally(group);
            let (ran, hazard) = simulation.group_ran(group);
            let skew = simulation.start_skews(group).iter().max().copied();
            row.units += tally.units;
            row.worked += tally.worked;
            row.spun += tally.spun;
            row.ran += ran;
            row.hazard += hazard;
            row.skew = row.skew.max(skew.unwrap_or_default());
            row.decisions += simulation.machine().decisions();
            for fault in simulation.faults() {
                println!("FAULT: {fault}");
            }
        }
        let seconds = SECONDS * SEEDS.count() as u64;
        println!(
            "{:<8}{:<7} {:>8} {:>10} {:>10} {:>8.1} {:>9.2} {:>8} {:>12}",
            policy.mode,
            if policy.directed_yield { "+yield" } else { "" },
            row.units / seconds,
            row.worked / 1000 / seconds,
            row.spun / 1000 / seconds,
            100.0 * row.ran as f64 / (4 * seconds * 1_000_000) as f64,
            100.0 * row.hazard as f64 / row.ran.max(1) as f64,
            row.skew,
            row.decisions / seconds
        );
    }
    println!();
    Ok(())
}

#[derive(Default)]
struct Row {
    units: u64,
    worked: Ticks,
    spun: Ticks,
    ran: Ticks,
    hazard: Ticks,
    skew: Ticks,
    decisions: u64,
}
