//! `cargo xtask bench`: runs what is measured, prints tables and JSON of one schema ([`result`]), and compares with what
//! the documents show, or renews that.
//!
//! `docs/bench/NAME.json` is what a benchmark last came to; the tables of docs/BENCHMARKS.md are made from it ([`tables`]). Ticks
//! repeat exactly, so `--check` fails as soon as a figure is another than the one that is written ([`guard`]).

mod guard;
mod linux;
mod native;
mod paper000;
mod result;
mod said;
mod sched;
pub(crate) mod tables;
mod transports;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nagaya_harness::choice::{self, Wish};
use nagaya_harness::{Choice, HostFacts, interrupt};
use serde_json::{Value, json};

pub(crate) use self::result::Results;
use self::result::{Conditions, Row};
use crate::cmd::Cmd;
use crate::image::Imager;
use crate::run::{self, MachineArgs};
use crate::{build, paths};

/// What `bench` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// pingpong, exits, decisions, net, boot, fork, sched, linux or paper000; the first six without it
    name: Option<String>,
    /// Fails if a figure is more than 3 % better or worse than in docs/bench, or exits another number of times
    #[arg(long, conflicts_with = "update")]
    check: bool,
    /// Renews docs/bench and the tables of docs/BENCHMARKS.md
    #[arg(long)]
    update: bool,
    /// sched: simulated milliseconds of each run
    #[arg(long, default_value_t = 1500)]
    ms: u64,
    /// sched: simulated milliseconds of a slice; 10,000 instructions each
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(10..=1000))]
    slice_ms: u64,
    /// sched: how often paper 004's load is run, each time with other beginnings
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// sched: only runs with this in their LOAD/MODE; linux: only what has one of these, separated by commas, in its name
    #[arg(long)]
    only: Option<String>,
    /// Writes the results to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    transports: transports::TransportArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// What measuring needs.
struct Bench<'a> {
    imager: &'a Imager,
    choice: Choice,
    machine: &'a MachineArgs,
    /// What was typed, but for what is done with the results.
    command: String,
}

/// What one benchmark came to. One part that fails does not take the others with it.
struct Outcome {
    results: Results,
    failures: Vec<String>,
}

impl Bench<'_> {
    /// Results under a head that says how they were measured; `cpu_model` is the one asked for.
    fn results(&self, bench: &str, cpu_model: Option<String>, rows: Vec<Row>) -> Results {
        let default = self.choice.kind.default_cpu_model();
        Results {
            bench: bench.to_owned(),
            conditions: Conditions {
                machine: self.choice.machine(),
                cpu_model: cpu_model.unwrap_or_else(|| default.to_owned()),
                compiler: self.imager.compiler(),
                commit: commit(),
                command: self.command.clone(),
            },
            rows,
            ..Results::default()
        }
    }
}

/// Runs the verb.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    if let Some(done) = transports::redraw(&args.transports)? {
        return Ok(done);
    }
    let name = args.name.as_deref();
    if args.transports.are_given() && name != Some("pingpong") {
        bail!("--transport and --all are for `bench pingpong`");
    }
    if args.update && build::has_other_profile() {
        bail!(
            "the profile `bare` is changed by the environment (CARGO_PROFILE_BARE_..): figures of it are nobody's"
        );
    }
    let choice = args.machine.choose();
    run::need_emulator(choice.kind)?;
    let imager = Imager::prepare()?;
    interrupt::install();
    say!("machine: {choice}");
    let bench = Bench {
        imager: &imager,
        choice,
        machine: &args.machine,
        command: command(std::env::args().skip(1)),
    };
    let outcomes = match name {
        Some("sched") => vec![sched::measure_all(&bench, &args)?],
        Some("linux") => vec![linux::measure_all(&bench, args.only.as_deref())],
        Some("paper000") => vec![paper000::measure_all(&bench)?],
        Some("pingpong") if args.transports.are_given() => {
            vec![transports::measure_all(&bench, &args.transports)?]
        }
        name => native::measure_all(&bench, name)?,
    };
    let mut failures = Vec::new();
    for outcome in &outcomes {
        let bench = &outcome.results.bench;
        failures.extend(outcome.failures.iter().map(|why| format!("{bench}: {why}")));
        if args.check {
            let complaints = check(&outcome.results)?;
            say!("{bench}: {} figures are not as written", complaints.len());
            failures.extend(complaints.iter().map(|why| format!("{bench}: {why}")));
        }
    }
    let values: Vec<Value> = outcomes
        .iter()
        .map(|outcome| outcome.results.value())
        .collect();
    // One benchmark is one object, as a reader expects who asked for one.
    let value = match values.as_slice() {
        [one] => one.clone(),
        all => json!(all),
    };
    keep(args.json, &value)?;
    if args.update && failures.is_empty() {
        for outcome in &outcomes {
            write_results(&outcome.results)?;
        }
        renew_tables()?;
    }
    for failure in &failures {
        note!("error: {failure}");
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The benchmarks that take a minute at most: every test run compares their figures.
pub(crate) const SHORT: [&str; 2] = ["exits", "boot"];

/// Whether a short benchmark comes to what is written. `Ok(Some)` says why that cannot be told here.
///
/// # Errors
/// It cannot be run, or its figures are others.
pub(crate) fn is_as_written(imager: &Imager, name: &str) -> Result<Option<String>> {
    if build::has_other_profile() {
        return Ok(Some(
            "the profile `bare` is changed by the environment".to_owned(),
        ));
    }
    let machine = MachineArgs::default();
    let bench = Bench {
        imager,
        choice: choice::choose(&HostFacts::probe(), Wish::Bochs),
        machine: &machine,
        command: String::new(),
    };
    for outcome in native::measure_all(&bench, Some(name))? {
        let written = read_results(name)?;
        let conditions = &outcome.results.conditions;
        if let Some(why) = conditions.differ_from(&written.conditions) {
            return Ok(Some(why));
        }
        let complaints = guard::compare(&written, &outcome.results);
        if !complaints.is_empty() {
            bail!(
                "{}\nIf that is meant: `cargo xtask bench {name} --update`",
                complaints.join("\n")
            );
        }
    }
    Ok(None)
}

fn check(found: &Results) -> Result<Vec<String>> {
    let written = read_results(&found.bench)?;
    if let Some(why) = found.conditions.differ_from(&written.conditions) {
        bail!("{}: cannot be compared: {why}", found.bench);
    }
    Ok(guard::compare(&written, found))
}

/// Where a benchmark's results are kept, from the root.
fn results_file(bench: &str) -> PathBuf {
    Path::new("docs/bench").join(format!("{bench}.json"))
}

/// What a benchmark last came to.
fn read_results(bench: &str) -> Result<Results> {
    let file = paths::root().join(results_file(bench));
    let text = fs::read_to_string(&file).with_context(|| {
        format!(
            "cannot read {}; `cargo xtask bench {bench} --update` makes it",
            file.display()
        )
    })?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    Results::read(&value).with_context(|| format!("{} has another schema", file.display()))
}

fn write_results(results: &Results) -> Result<()> {
    let file = paths::root().join(results_file(&results.bench));
    write(&file, &results.value())?;
    say!("written: {}", file.display());
    Ok(())
}

/// The document with tables, from the root.
pub(crate) const DOCUMENT: &str = "docs/BENCHMARKS.md";

/// The document as the results in docs/bench have its tables.
pub(crate) fn document(text: &str) -> Result<String> {
    tables::renew(text, read_results)
}

/// Renews the tables of the document.
pub(crate) fn renew_tables() -> Result<()> {
    let file = paths::root().join(DOCUMENT);
    let failed = || format!("cannot renew {}", file.display());
    let text = fs::read_to_string(&file).with_context(failed)?;
    fs::write(&file, document(&text)?).with_context(failed)
}

/// Writes the results to the file that was asked for.
fn keep(file: Option<PathBuf>, result: &Value) -> Result<()> {
    let file = file.unwrap_or_else(|| paths::target().join("bench.json"));
    write(&file, result)?;
    say!("JSON: {}", file.display());
    Ok(())
}

fn write(file: &Path, value: &Value) -> Result<()> {
    fs::write(file, serde_json::to_string_pretty(value)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))
}

/// The command that measures the same again.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let mut words = vec!["cargo xtask".to_owned()];
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--check" | "--update" | "-v" | "--verbose" => {}
            "--json" => {
                arguments.next();
            }
            _ => words.push(argument),
        }
    }
    words.join(" ")
}

fn commit() -> String {
    Cmd::new("git")
        .directory(paths::root())
        .args(["rev-parse", "--short", "HEAD"])
        .read()
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_is_written_measures_and_nothing_else() {
        let words = [
            "bench", "exits", "--update", "--json", "x.json", "--cpus", "1",
        ];
        let told = command(words.map(str::to_owned).into_iter());
        assert_eq!(told, "cargo xtask bench exits --cpus 1");
    }

    #[test]
    fn every_result_in_the_tree_has_the_schema() {
        let folder = fs::read_dir(paths::root().join("docs/bench")).expect("is there");
        for entry in folder {
            let path = entry.expect("is one").path();
            let name = path.file_stem().expect("has a name").to_string_lossy();
            let results = read_results(&name).unwrap_or_else(|error| panic!("{error:#}"));
            assert_eq!(results.bench, name);
        }
    }
}
