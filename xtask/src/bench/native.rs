//! The benchmarks of native guests, each a few scenarios of tests/scenarios.

use anyhow::{Result, bail};
use nagaya_harness::{Event, Firmware, RunReport};
use serde_json::Value;

use super::result::{Row, Ticks};
use super::{Bench, Outcome};
use crate::{run, scenario};

/// Benchmarks and the scenarios each one runs.
const BENCHMARKS: [(&str, &[&str]); 6] = [
    ("pingpong", &["bench-pingpong", "bench-floor"]),
    ("exits", &["bench-exits", "bench-doorbells"]),
    (
        "decisions",
        &["bench-yield", "bench-yields", "bench-switch", "bench-rings"],
    ),
    ("net", &["bench-net"]),
    ("boot", &["bench-boot"]),
    (
        "fork",
        &[
            "bench-fork-4",
            "bench-fork-16",
            "bench-fork-64",
            "bench-fork-256",
        ],
    ),
];

/// Measures the one of that name, or all.
pub(super) fn measure_all(bench: &Bench<'_>, wanted: Option<&str>) -> Result<Vec<Outcome>> {
    let chosen: Vec<_> = BENCHMARKS
        .iter()
        .filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name))
        .collect();
    if chosen.is_empty() {
        bail!(
            "there is no benchmark {:?}: want pingpong, exits, decisions, net, boot, fork, sched, linux or paper000",
            wanted.unwrap_or_default()
        );
    }
    chosen
        .into_iter()
        .map(|(name, scenarios)| measure(bench, name, scenarios))
        .collect()
}

fn measure(bench: &Bench<'_>, name: &str, scenarios: &[&str]) -> Result<Outcome> {
    let mut rows = Vec::new();
    let mut model = None;
    for scenario in scenarios {
        let loaded = scenario::load(scenario, &bench.machine.overrides())?;
        let kind = bench.choice.kind;
        let report = run::boot(bench.imager, &loaded, kind, Firmware::Bios, &mut |_| ())?;
        if !report.ok {
            bail!(
                "{scenario}: {} (logs: {})",
                report.reason,
                report.directory.display()
            );
        }
        if name == "boot" {
            rows.extend(boot_rows(&report));
        } else {
            for (_, row) in report.rows() {
                rows.push(Row::read(&Value::Object(row))?);
            }
        }
        model = loaded.host.cpu_model(kind);
    }
    print_table(name, &rows);
    let mut results = bench.results(name, model, rows);
    // All four may have been asked for at once.
    results.conditions.command = format!("cargo xtask bench {name}");
    Ok(Outcome {
        results,
        failures: Vec::new(),
    })
}

/// One row for each boot phase, and one for the way to the first guest instruction: the ticks each took.
fn boot_rows(report: &RunReport) -> Vec<Row> {
    let row = |name: &str, ticks: u64| Row {
        name: name.to_owned(),
        ticks: Ticks::one(ticks),
        ..Row::default()
    };
    let end_of = |event: &Event| event.number("ticks").unwrap_or(0);
    let mut rows = Vec::new();
    let mut before = 0;
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

fn print_table(bench: &str, rows: &[Row]) {
    say!(
        "\n{bench}: ticks\n{:<36}{:>11}{:>11}{:>11}{:>11}{:>11}  exits",
        "name",
        "min",
        "mean",
        "p50",
        "p99",
        "max"
    );
    for row in rows {
        let ticks = &row.ticks;
        say!(
            "{:<36}{:>11}{:>11}{:>11}{:>11}{:>11}  {}",
            row.key(),
            ticks.min,
            ticks.mean,
            ticks.p50,
            ticks.p99,
            ticks.max,
            row.exits_in_words()
        );
    }
    for row in rows.iter().filter(|row| row.name == "shared-polled") {
        let floor = rows
            .iter()
            .find(|other| other.name == "floor-polled" && other.bytes() == row.bytes())
            .map(|floor| floor.ticks.p50 as f64)
            .filter(|floor| *floor > 0.0);
        if let Some(floor) = floor {
            let ratio = row.ticks.p50 as f64 / floor;
            say!("polled / floor, {}: {ratio:.3}", row.key());
        }
    }
}
