//! `cargo xtask bench paper000`: paper 000's table 3 again. Two Linux VMs of 128 MiB and one CPU each; 8192 ints there and back,
//! every one checked; 10 runs.

use std::collections::BTreeMap;

use anyhow::Result;
use nagaya_harness::Firmware;
use serde_json::{Value, json};

use super::result::{Row, Ticks};
use super::said::{Roundtrip, roundtrips};
use super::{Bench, Outcome, linux};
use crate::{run, scenario};

/// The script's names of the ways, what they are, and the paper's microseconds. Its 4,000 to 5,000 us from kernel to kernel by the
/// network are an estimate, and nothing here does the same.
const WAYS: [(&str, &str, Option<u64>); 3] = [
    ("module", "shared memory, kernel addresses", Some(116)),
    ("user", "shared memory, user addresses", None),
    ("tcp", "TCP between programs, virtio-net", Some(14_978)),
];
/// Runs of each.
const RUNS: usize = 10;

/// Measures.
pub(super) fn measure_all(bench: &Bench<'_>) -> Result<Outcome> {
    let overrides = linux::boot_overrides(&bench.choice, bench.machine);
    let loaded = scenario::parse_text(&scenario(), "bench-paper000.toml", &overrides)?;
    let kind = bench.choice.kind;
    let report = run::boot(bench.imager, &loaded, kind, Firmware::Bios, &mut |_| ())?;
    let first = roundtrips(report.guest_lines("first"));
    let second = roundtrips(report.guest_lines("second"));
    let way = |of: &std::collections::BTreeMap<String, Roundtrip>, name: &str| {
        of.get(name).cloned().unwrap_or_default()
    };
    let rows: Vec<Row> = WAYS
        .iter()
        .filter_map(|&(name, what, paper_us)| {
            row(
                name,
                what,
                paper_us,
                &way(&first, name),
                &way(&second, name),
            )
        })
        .collect();
    print_table(&rows);
    let logs = report.directory.display();
    let mut failures = Vec::new();
    if !report.ok {
        failures.push(format!("{} (logs: {logs})", report.reason));
    }
    for (name, ..) in WAYS {
        let runs = way(&first, name).runs.len();
        if runs != RUNS {
            failures.push(format!(
                "{name}: {runs} runs instead of {RUNS} (logs: {logs})"
            ));
        }
    }
    let mut results = bench.results("paper000", overrides.cpu_model, rows);
    results.more.insert("ints".to_owned(), json!(8192));
    Ok(Outcome { results, failures })
}

/// A way's row, if there was a run.
fn row(
    name: &str,
    what: &str,
    paper_us: Option<u64>,
    first: &Roundtrip,
    second: &Roundtrip,
) -> Option<Row> {
    // Both sides, and the start of the programs, too.
    let exits = (first.exits + second.exits) as f64 / first.runs.len().max(1) as f64;
    let more = [
        ("what", json!(what)),
        ("runs", json!(first.runs)),
        ("paper_us", json!(paper_us)),
    ];
    Some(Row {
        name: name.to_owned(),
        ticks: Ticks::of(&first.runs)?,
        exits: BTreeMap::from([("all".to_owned(), exits)]),
        more: more
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    })
}

fn print_table(rows: &[Row]) {
    say!(
        "\n{:<36}{:>12}{:>12}{:>12}{:>16}{:>12}",
        "8192 ints there and back",
        "mean ticks",
        "min",
        "max",
        "exits, a run",
        "paper, us"
    );
    for row in rows {
        let paper = row.more.get("paper_us").and_then(Value::as_u64);
        say!(
            "{:<36}{:>12}{:>12}{:>12}{:>16}{:>12}",
            row.more.get("what").and_then(Value::as_str).unwrap_or("?"),
            row.ticks.mean,
            row.ticks.min,
            row.ticks.max,
            row.exits.values().sum::<f64>(),
            paper.map_or("-".to_owned(), |number| number.to_string())
        );
    }
    let mean = |name: &str| {
        rows.iter()
            .find(|row| row.name == name)
            .map(|row| row.ticks.mean as f64)
            .filter(|ticks| *ticks > 0.0)
    };
    for shared in ["module", "user"] {
        if let (Some(shared_ticks), Some(tcp)) = (mean(shared), mean("tcp")) {
            say!(
                "tcp / {shared}: {:.1} (the paper: {:.0})",
                tcp / shared_ticks,
                14_978.0 / 116.0
            );
        }
    }
}

/// Each member chooses its own address: kernels put theirs where chance (KASLR) has it.
fn scenario() -> String {
    let vm = |name: &str, cpu: u32, own: &str, more: &str| {
        format!(
            "\n[[vm]]\nname = \"{name}\"\nkind = \"linux\"\nimage = \"debian/vmlinux\"\n\
             initramfs = \"built/initramfs-nagaya\"\nmemory = \"128M\"\ncpu = {cpu}\ngroup = \"pair\"\n\
             cmdline = \"console=ttyS0 quiet cryptomgr.notests nagaya.run=paper000 nagaya.ip={own}/24{more}\"\n[[vm.nic]]\n"
        )
    };
    [
        "[machine]\ncpus = 2\nmemory = \"512M\"\ntimeout = \"3600s\"\n\n[[group]]\nname = \"pair\"\naddress = \"any\"\n",
        &vm("first", 0, "10.0.0.1", " nagaya.peer=10.0.0.2"),
        &vm("second", 1, "10.0.0.2", ""),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Overrides;

    #[test]
    fn its_scenario_is_right() {
        let loaded = scenario::parse_text(&scenario(), "x.toml", &Overrides::default());
        assert!(loaded.is_ok(), "{:#}", loaded.expect_err("wrong"));
    }

    #[test]
    fn a_row_has_the_runs_of_the_first_and_the_exits_of_both() {
        let first = Roundtrip {
            runs: vec![10, 20],
            exits: 3,
        };
        let second = Roundtrip {
            runs: Vec::new(),
            exits: 4,
        };
        let row = row("tcp", "TCP", Some(14_978), &first, &second).expect("there were runs");
        assert_eq!((row.ticks.mean, row.ticks.max), (15, 20));
        assert_eq!(row.exits["all"], 3.5, "of a run");
        assert!(super::row("tcp", "TCP", None, &second, &second).is_none());
    }
}
