//! The simulator itself: it repeats, it adds up, and its pictures are well formed.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use crate::sim::{Behaviour, Delays, Panel, Scenario, Simulation, Wait, ascii, svg};
use crate::{Affinity, CpuId, Mode, Share, VcpuId};

const MS: u64 = 1000;
/// Longest way of a kick, in ticks.
const KICK: u64 = 5;

/// A bit of everything.
fn zoo(seed: u64) -> Simulation {
    let mut scenario = Scenario::new(3)
        .seed(seed)
        .switch_cost(3)
        .delays(Delays {
            kick: KICK,
            timer: 3,
        })
        .recorded();
    let barrier = scenario.barrier();
    let lock = scenario.lock();
    let tame = scenario.group("a <b> & \"c\"", Mode::Relaxed, Share::default());
    let strict = scenario.group("strict", Mode::Strict, Share::default());
    for wait in [Wait::Spin, Wait::SpinThenBlock(100), Wait::SpinThenBlock(0)] {
        let behaviour = Behaviour::Barrier {
            barrier,
            work: 500,
            jitter: 100,
            wait,
        };
        scenario.vms(1, Some(tame), behaviour);
        let behaviour = Behaviour::TicketLock {
            lock,
            work: 300,
            hold: 50,
            wait,
        };
        scenario.vms(1, Some(strict), behaviour);
    }
    for behaviour in [
        Behaviour::Hog,
        Behaviour::RunBlock {
            run: 700,
            block: 900,
        },
        Behaviour::TickThief {
            tick: 1000,
            margin: 10,
        },
        Behaviour::SliceThief { margin: 10 },
        Behaviour::DoorbellThief {
            run: 200,
            sleep: 50,
        },
        Behaviour::Random {
            run: 3000,
            block: 2000,
        },
    ] {
        scenario.vms(1, None, behaviour);
    }
    scenario.build().expect("it is right")
}

fn text(simulation: &Simulation) -> String {
    simulation
        .trace()
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let [mut first, mut again, mut other] = [7, 7, 8].map(zoo);
    for simulation in [&mut first, &mut again, &mut other] {
        simulation.run_for(300 * MS);
        assert!(simulation.faults().is_empty());
    }
    assert_eq!(text(&first), text(&again));
    assert_ne!(text(&first), text(&other));
    assert!(text(&first).lines().count() > 1000);
}

/// What was worked, spun and paid for switches is what the scheduler charged, but for what a kick takes: a gang's start charges
/// members from the decision on, and those that they drive off up to then. Nobody of the zoo is left out.
#[test]
fn work_adds_up_to_the_time_charged() {
    let mut simulation = zoo(1);
    simulation.run_for(1000 * MS);
    let (mut ran, mut switches) = (0, 0);
    for id in (0..12).map(VcpuId) {
        let tally = simulation.tally(id);
        let account = simulation
            .machine()
            .scheduler()
            .account(id, simulation.machine().now())
            .expect("is there");
        let done = tally.worked + tally.spun;
        assert!(done > 0, "{id:?} does nothing");
        let late = KICK * account.switches;
        assert!(
            done <= account.running + late && account.running <= done + 3 * account.switches + late,
            "{id:?}: {tally:?} {account:?}"
        );
        switches += account.switches;
        ran += account.running;
    }
    let pieces: u64 = simulation
        .timeline()
        .iter()
        .map(|segment| segment.to - segment.from)
        .sum();
    // On a CPU that was idle nobody ran until the kick had arrived.
    assert!(pieces <= ran && ran - pieces <= KICK * switches);
}

#[test]
fn a_trace_and_a_timeline_say_what_happened() {
    let mut scenario = Scenario::new(2).recorded();
    let block = Behaviour::RunBlock {
        run: 4 * MS,
        block: 4 * MS,
    };
    scenario.vms(1, None, Behaviour::Hog);
    scenario.vms(1, None, block);
    for id in 0..2 {
        scenario.affinity(VcpuId(id), Affinity::pinned(CpuId(id)));
    }
    scenario.starts(VcpuId(1), 2 * MS);
    let mut simulation = scenario.build().expect("it is right");
    simulation.run_until(16 * MS);
    let expected = "\
cpu0  AAAAAAAAAAAAAAAA
cpu1  ..BBBB....BBBB..
";
    assert_eq!(ascii(&mut simulation, 0, 16 * MS, MS), expected);
    let lines: Vec<String> = simulation.trace().iter().map(ToString::to_string).collect();
    let expected = [
        "         0 v0 wakes",
        "         0 kick cpu0",
        "         0 cpu0 runs v0",
        "      2000 v1 wakes",
        "      2000 kick cpu1",
        "      2000 cpu1 runs v1",
        "      6000 v1 blocks",
        "      6000 cpu1 idles",
    ];
    assert_eq!(lines[..8], expected);
}

/// Tags are closed in order, no bare `&` or `<` is left, and each CPU has its row.
#[test]
fn a_picture_is_well_formed() {
    let mut simulation = zoo(3);
    simulation.run_for(100 * MS);
    let panel = Panel::new("one & <two>\u{1}", &mut simulation);
    let picture = svg(&[panel.clone(), panel], 10 * MS, 90 * MS, 1000);
    let mut open = Vec::new();
    let mut rest = picture.as_str();
    while let Some(start) = rest.find('<') {
        assert!(!rest[..start].contains('>'));
        for entity in rest[..start].split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;", "quot;", "apos;"];
            assert!(known.iter().any(|known| entity.starts_with(known)));
        }
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().expect("a name"));
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(!picture.contains('\u{1}'));
    for word in [
        "CPU 0",
        "CPU 2",
        ">ms<",
        ">50<",
        "a &lt;b&gt; &amp; &quot;c&quot;",
    ] {
        assert_eq!(picture.matches(word).count(), 2, "{word}");
    }
}

#[test]
fn a_load_that_cannot_be_is_refused() {
    let mut scenario = Scenario::new(1);
    scenario.vms(1, Some(crate::GroupId(3)), Behaviour::Hog);
    assert!(scenario.build().is_err());
}
