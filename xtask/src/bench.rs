//! `cargo xtask bench`: boots benchmark scenarios, collects their rows, prints tables and JSON.

mod linux;
mod paper000;
mod said;
mod sched;
mod transports;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nagaya_harness::{Firmware, MachineConfig, RunReport, interrupt};
use serde_json::{Map, Value, json};

use crate::cmd::Cmd;
use crate::image::Imager;
use crate::run::{self, MachineArgs};
use crate::{paths, scenario};

/// What `bench` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// pingpong, exits, net, boot, sched, linux or paper000; the first four without it
    name: Option<String>,
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

/// Benchmarks and the scenarios each one runs.
const BENCHMARKS: [(&str, &[&str]); 4] = [
    ("pingpong", &["bench-pingpong", "bench-floor"]),
    ("exits", &["bench-exits", "bench-doorbells"]),
    ("net", &["bench-net"]),
    ("boot", &["bench-boot"]),
];

/// Runs the verb.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    if args.name.as_deref() == Some("sched") {
        return sched_main(args);
    }
    match args.name.as_deref() {
        Some("linux") => return linux::main(args.only.as_deref(), &args.machine, args.json),
        Some("paper000") => return paper000::main(&args.machine, args.json),
        _ => {}
    }
    if args.transports.are_given() {
        if args.name.as_deref() != Some("pingpong") {
            bail!("--transport and --all are for `bench pingpong`");
        }
        return transports::main(&args.transports, &args.machine, args.json);
    }
    let chosen: Vec<_> = BENCHMARKS
        .iter()
        .filter(|(name, _)| args.name.as_deref().is_none_or(|wanted| wanted == *name))
        .collect();
    if chosen.is_empty() {
        bail!(
            "there is no benchmark {:?}: want pingpong, exits, net, boot, sched, linux or paper000",
            args.name.unwrap_or_default()
        );
    }
    let choice = args.machine.choose();
    run::need_emulator(choice.kind)?;
    let imager = Imager::prepare()?;
    interrupt::install();
    say!("machine: {choice}");
    let mut results = Vec::new();
    for (name, scenarios) in chosen {
        let mut rows = Vec::new();
        let mut model = String::new();
        let mut cpus = 0;
        for scenario in *scenarios {
            let loaded = scenario::load(scenario, &args.machine.overrides())?;
            let report = run::boot(&imager, &loaded, choice.kind, Firmware::Bios, &mut |_| ())?;
            if !report.ok {
                bail!(
                    "{scenario}: {} (logs: {})",
                    report.reason,
                    report.directory.display()
                );
            }
            rows.extend(if *name == "boot" {
                boot_rows(&report)
            } else {
                guest_rows(&report)
            });
            cpus = loaded.host.cpus;
            model = MachineConfig {
                kind: choice.kind,
                firmware: Firmware::Bios,
                cpus,
                memory_mib: 0,
                cpu_model: loaded.host.cpu_model(choice.kind),
                ips: None,
                timeout: loaded.host.timeout,
                control: false,
            }
            .cpu_model_name()
            .to_owned();
        }
        print_table(name, &rows);
        results.push(json!({
            "bench": name, "machine": choice.kind.name(), "cpu_model": model, "cpus": cpus, "commit": commit(),
            "rows": rows,
        }));
    }
    // One benchmark is one object, as a reader expects who asked for one.
    let result = match results.as_slice() {
        [one] => one.clone(),
        all => json!(all),
    };
    keep(args.json, &result)?;
    Ok(ExitCode::SUCCESS)
}

/// The modes of the scheduler.
fn sched_main(args: Args) -> Result<ExitCode> {
    let choice = args.machine.choose();
    run::need_emulator(choice.kind)?;
    let imager = Imager::prepare()?;
    interrupt::install();
    say!("machine: {choice}");
    let rows = sched::rows(
        &imager,
        choice.kind,
        sched::Span {
            ms: args.ms,
            slice_ms: args.slice_ms,
            seeds: args.seeds,
        },
        args.only.as_deref(),
    )?;
    sched::print_table(&rows);
    let failed = rows.iter().any(|row| row.get("error").is_some());
    let result = json!({
        "bench": "sched", "machine": choice.kind.name(), "cpus": 4, "commit": commit(), "rows": rows,
    });
    keep(args.json, &result)?;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Writes the results to the file that was asked for.
fn keep(file: Option<PathBuf>, result: &Value) -> Result<()> {
    let file = file.unwrap_or_else(|| paths::target().join("bench.json"));
    std::fs::write(&file, serde_json::to_string_pretty(result)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))?;
    say!("JSON: {}", file.display());
    Ok(())
}

fn guest_rows(report: &RunReport) -> Vec<Value> {
    report.rows().map(|(_, row)| Value::Object(row)).collect()
}

/// One row for each boot phase, and one for the way to the first guest instruction: the ticks each took.
fn boot_rows(report: &RunReport) -> Vec<Value> {
    let mut before = 0;
    let row = |name: &str, ticks: u64| {
        json!({"name": name, "bytes": 0, "rounds": 1, "exits_per_round": {},
               "ticks": {"mean": ticks, "min": ticks, "p50": ticks, "p99": ticks, "max": ticks}})
    };
    let mut rows = Vec::new();
    let end_of = |event: &nagaya_harness::Event| {
        event
            .fields
            .get("ticks")
            .and_then(Value::as_u64)
            .unwrap_or(0)
    };
    for event in report.events_named("boot-phase") {
        let now = end_of(event);
        rows.push(row(
            event.text("name").unwrap_or("?"),
            now.saturating_sub(before),
        ));
        before = now;
    }
    if let Some(event) = report.events_named("vm-start").next() {
        rows.push(row("total-to-first-guest", end_of(event)));
    }
    rows
}

fn print_table(bench: &str, rows: &[Value]) {
    say!(
        "\n{bench}: ticks\n{:<22}{:>9}{:>11}{:>11}{:>11}{:>11}{:>11}  exits per round",
        "name",
        "bytes",
        "min",
        "mean",
        "p50",
        "p99",
        "max"
    );
    for row in rows {
        let ticks = |key: &str| row["ticks"][key].as_u64().unwrap_or(0);
        say!(
            "{:<22}{:>9}{:>11}{:>11}{:>11}{:>11}{:>11}  {}",
            row["name"].as_str().unwrap_or("?"),
            row["bytes"].as_u64().unwrap_or(0),
            ticks("min"),
            ticks("mean"),
            ticks("p50"),
            ticks("p99"),
            ticks("max"),
            exits(row["exits_per_round"].as_object())
        );
    }
    for row in rows.iter().filter(|row| row["name"] == "shared-polled") {
        let floor = rows
            .iter()
            .find(|other| other["name"] == "floor-polled" && other["bytes"] == row["bytes"]);
        if let Some(floor) = floor
            .and_then(|floor| floor["ticks"]["p50"].as_f64())
            .filter(|floor| *floor > 0.0)
        {
            let ratio = row["ticks"]["p50"].as_f64().unwrap_or(0.0) / floor;
            say!("polled / floor at {} bytes: {ratio:.3}", row["bytes"]);
        }
    }
}

fn exits(counts: Option<&Map<String, Value>>) -> String {
    match counts {
        Some(counts) if !counts.is_empty() => counts
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
            .join(", "),
        _ => "none".to_owned(),
    }
}

fn commit() -> String {
    Cmd::new("git")
        .directory(paths::root())
        .args(["rev-parse", "--short", "HEAD"])
        .read()
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
