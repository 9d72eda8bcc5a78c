//! `cargo xtask bench paper000`: paper 000's table 3 again. Two Linux VMs of 128 MiB and one CPU each; 8192 ints there and back,
//! every one checked; 10 runs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use nagaya_harness::{Firmware, interrupt};
use serde_json::{Value, json};

use super::said::{Roundtrip, roundtrips};
use super::{commit, keep, linux};
use crate::image::Imager;
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

/// Runs the verb.
pub(super) fn main(machine: &run::MachineArgs, file: Option<PathBuf>) -> Result<ExitCode> {
    let choice = machine.choose();
    run::need_emulator(choice.kind)?;
    let imager = Imager::prepare()?;
    interrupt::install();
    say!("machine: {choice}");
    let loaded = scenario::parse_text(
        &scenario(),
        "bench-paper000.toml",
        &linux::boot_overrides(&choice, machine),
    )?;
    let report = run::boot(&imager, &loaded, choice.kind, Firmware::Bios, &mut |_| ())?;
    let first = roundtrips(report.guest_lines("first"));
    let second = roundtrips(report.guest_lines("second"));
    let way = |of: &std::collections::BTreeMap<String, Roundtrip>, name: &str| {
        of.get(name).cloned().unwrap_or_default()
    };
    let rows: Vec<Value> = WAYS
        .iter()
        .map(|(name, what, paper_us)| {
            row(
                name,
                what,
                *paper_us,
                &way(&first, name),
                &way(&second, name),
            )
        })
        .collect();
    print_table(&rows);
    let result = json!({
        "bench": "paper000", "machine": choice.kind.name(), "cpus": 2, "commit": commit(), "ints": 8192, "rows": rows,
    });
    keep(file, &result)?;
    let complete = WAYS
        .iter()
        .all(|(name, ..)| way(&first, name).runs.len() == RUNS);
    if !report.ok || !complete {
        bail!(
            "{} (logs: {})",
            if report.ok {
                "not all runs were made"
            } else {
                &report.reason
            },
            report.directory.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn row(
    name: &str,
    what: &str,
    paper_us: Option<u64>,
    first: &Roundtrip,
    second: &Roundtrip,
) -> Value {
    json!({
        "name": name, "what": what, "runs": first.runs, "mean_ticks": first.mean(),
        "min_ticks": first.runs.iter().min(), "max_ticks": first.runs.iter().max(),
        // Both sides, and the start of the programs, too.
        "exits": first.exits + second.exits, "paper_us": paper_us,
    })
}

fn print_table(rows: &[Value]) {
    say!(
        "\n{:<36}{:>12}{:>12}{:>12}{:>16}{:>12}",
        "8192 ints there and back",
        "mean ticks",
        "min",
        "max",
        "exits, all runs",
        "paper, us"
    );
    let show = |value: &Value| {
        value
            .as_u64()
            .map_or("-".to_owned(), |number| number.to_string())
    };
    for row in rows {
        say!(
            "{:<36}{:>12}{:>12}{:>12}{:>16}{:>12}",
            row["what"].as_str().unwrap_or("?"),
            show(&row["mean_ticks"]),
            show(&row["min_ticks"]),
            show(&row["max_ticks"]),
            show(&row["exits"]),
            show(&row["paper_us"])
        );
    }
    let mean = |name: &str| {
        rows.iter()
            .find(|row| row["name"] == name)
            .and_then(|row| row["mean_ticks"].as_f64())
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
        let row = row("tcp", "TCP", Some(14_978), &first, &second);
        assert_eq!(
            (
                row["mean_ticks"].as_u64(),
                row["exits"].as_u64(),
                row["max_ticks"].as_u64()
            ),
            (Some(15), Some(7), Some(20))
        );
    }
}
