//! Draws what CPUs did under `off` and under `relaxed`, one below the other:
//! `cargo run --release -p nagaya-sched --features sim --example timeline -- --load barrier --overcommit 2 -o timeline.svg`.
//! Without `-o` it prints rows of letters instead, and with `--trace` what happened line by line.

use std::process::ExitCode;

use nagaya_sched::Mode;
use nagaya_sched::sim::{Load, Panel, Policy, Simulation, Tally, Wait, ascii, groups, svg};

const CPUS: u32 = 4;
const FROM: u64 = 200_000;
const TO: u64 = 300_000;

struct Options {
    load: Load,
    overcommit: u32,
    seed: u64,
    modes: Vec<Mode>,
    trace: bool,
    output: Option<String>,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "timeline: {error}\nusage: timeline [--load barrier|lock|independent] [--overcommit N] [--seed N] \
                 [--modes off,relaxed] [--trace] [-o FILE.svg]"
            );
            ExitCode::FAILURE
        }
    }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        load: load("barrier")?,
        overcommit: 2,
        seed: 1,
        modes: vec![Mode::Off, Mode::Relaxed],
        trace: false,
        output: None,
    };
    while let Some(word) = words.next() {
        if word == "--trace" {
            options.trace = true;
            continue;
        }
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let number = || value.parse().map_err(|error| format!("{value}: {error}"));
        match word.as_str() {
            "--load" => options.load = load(&value)?,
            "--overcommit" => options.overcommit = number()?,
            "--seed" => options.seed = u64::from(number()?),
            "--modes" => {
                let modes: Result<Vec<Mode>, _> = value.split(',').map(str::parse).collect();
                options.modes = modes.map_err(|error| error.to_string())?;
            }
            "-o" => options.output = Some(value),
            _ => return Err(format!("{word} is no option")),
        }
    }
    Ok(options)
}

fn load(name: &str) -> Result<Load, String> {
    let wait = Wait::Spin;
    match name {
        "barrier" => Ok(Load::Barrier { work: 1000, wait }),
        "lock" => Ok(Load::Lock { work: 200, wait }),
        "independent" => Ok(Load::Independent),
        _ => Err(format!("there is no load {name}")),
    }
}

fn run(options: &Options) -> Result<(), String> {
    let mut panels = Vec::new();
    for mode in &options.modes {
        let policy = Policy {
            mode: *mode,
            directed_yield: false,
        };
        let scenario = groups(options.load, policy, CPUS, options.overcommit, options.seed);
        let mut simulation = scenario
            .recorded()
            .build()
            .map_err(|error| error.to_string())?;
        simulation.run_until(TO);
        let title = format!("{mode}: {}", rounds(&simulation));
        if options.output.is_none() {
            println!("{title}; a column is a millisecond");
            print!("{}", ascii(&mut simulation, FROM, TO, 1000));
        }
        if options.trace {
            for line in simulation.trace() {
                println!("{line}");
            }
        }
        panels.push(Panel::new(&title, &mut simulation));
    }
    match &options.output {
        None => Ok(()),
        Some(path) => std::fs::write(path, svg(&panels, FROM, TO, 1000))
            .map_err(|error| format!("{path}: {error}")),
    }
}

/// What the groups got done in all.
fn rounds(simulation: &Simulation) -> String {
    let mut sum = Tally::default();
    for group in simulation.scenario().group_ids() {
        let tally = simulation.group_tally(group);
        sum.units += tally.units;
        sum.worked += tally.worked;
        sum.spun += tally.spun;
    }
    format!(
        "{} rounds in {} ms of all members, {} ms of work, {} ms of spinning (pale)",
        sum.units,
        TO / 1000,
        sum.worked / 1000,
        sum.spun / 1000
    )
}
