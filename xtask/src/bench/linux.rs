//! `cargo xtask bench linux`: what Debian's kernel costs as a guest: ticks to its first process against the same kernel without a
//! hypervisor, exits by then and when idle, and iperf3 between two of them.
//!
//! Boots are compared from the kernel's first instruction, decompressor included, to the first process' first: the boot loader,
//! GRUB or ours, is in neither.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nagaya_harness::{
    Choice, ConsoleLine, Firmware, MachineConfig, MachineKind, RunReport, RunRequest, bochs,
};
use serde_json::{Value, json};

use super::result::{Row, Ticks};
use super::said::{Costs, iperf3};
use super::{Bench, Outcome};
use crate::image::Imager;
use crate::linux::bare;
use crate::scenario::Overrides;
use crate::{artefact, paths, run, scenario};

/// The memory of the VM and of the machine that has none.
const MEMORY_MIB: u32 = 192;
const TIMEOUT: Duration = Duration::from_secs(3600);
/// The CPU model if none is asked for, with and without a hypervisor: without one Debian's kernel dies in Bochs' `tigerlake`
/// before its first process, and on `corei7_skylake_x` its clock is wrong.
const BOOT_MODEL: &str = "corei7_haswell_4770";
/// What Bochs is configured to take for a second.
const TICKS_A_SECOND: f64 = 10_000_000.0;

/// One boot, what it is for, and what is read out of it.
struct Measurement {
    name: &'static str,
    what: Boot,
}

enum Boot {
    /// Without a hypervisor.
    Bare,
    /// A VM with this kernel, up to its first process.
    Guest { image: &'static str },
    /// A VM that sleeps.
    Idle { vcpus: u32 },
    /// Two VMs.
    Iperf3,
}

const MEASUREMENTS: [Measurement; 6] = [
    Measurement {
        name: "boot-bare-bzimage",
        what: Boot::Bare,
    },
    Measurement {
        name: "boot-vm-bzimage",
        what: Boot::Guest {
            image: "debian/bzImage",
        },
    },
    Measurement {
        name: "boot-vm-vmlinux",
        what: Boot::Guest {
            image: "debian/vmlinux",
        },
    },
    Measurement {
        name: "idle-one-vcpu",
        what: Boot::Idle { vcpus: 1 },
    },
    Measurement {
        name: "idle-two-vcpus",
        what: Boot::Idle { vcpus: 2 },
    },
    Measurement {
        name: "iperf3",
        what: Boot::Iperf3,
    },
];

/// Measures; `only` are names, or parts of names.
pub(super) fn measure_all(bench: &Bench<'_>, only: Option<&str>) -> Outcome {
    let (imager, choice, machine) = (bench.imager, &bench.choice, bench.machine);
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    let chosen = MEASUREMENTS.iter().filter(|measurement| {
        only.is_none_or(|parts| parts.split(',').any(|part| measurement.name.contains(part)))
    });
    for measurement in chosen {
        let measured = match &measurement.what {
            Boot::Bare => bare_boot(choice, boot_overrides(choice, machine)),
            Boot::Guest { image } => guest(
                imager,
                choice,
                &boot_overrides(choice, machine),
                &boot_scenario(image),
                "first-process",
            ),
            Boot::Idle { vcpus } => guest(
                imager,
                choice,
                &boot_overrides(choice, machine),
                &idle_scenario(*vcpus),
                "sleep",
            ),
            Boot::Iperf3 => throughput(imager, choice, &boot_overrides(choice, machine)),
        };
        match measured {
            Ok(mut row) => {
                row.name = measurement.name.to_owned();
                print_row(&row);
                rows.push(row);
            }
            // One that fails does not take the others with it.
            Err(error) => failures.push(format!("{}: {error:#}", measurement.name)),
        }
    }
    print_ratios(&rows);
    let model = boot_overrides(choice, machine).cpu_model;
    let mut results = bench.results("linux", model, rows);
    results
        .more
        .insert("cmdline".to_owned(), json!(bare::CMDLINE));
    results
        .more
        .insert("memory_mib".to_owned(), json!(MEMORY_MIB));
    Outcome { results, failures }
}

/// With the CPU model on which both sides can boot.
pub(super) fn boot_overrides(choice: &Choice, machine: &run::MachineArgs) -> Overrides {
    let mut overrides = machine.overrides();
    if choice.kind == MachineKind::Bochs {
        overrides
            .cpu_model
            .get_or_insert_with(|| BOOT_MODEL.to_owned());
    }
    overrides
}

/// Boots the disk that has no hypervisor.
fn bare_boot(choice: &Choice, overrides: Overrides) -> Result<Row> {
    if choice.kind != MachineKind::Bochs {
        bail!("only Bochs tells at which tick the kernel begins");
    }
    let config = MachineConfig {
        kind: choice.kind,
        firmware: Firmware::Bios,
        cpus: 1,
        memory_mib: MEMORY_MIB,
        cpu_model: overrides.cpu_model,
        ips: None,
        timeout: overrides.timeout.unwrap_or(TIMEOUT),
        control: false,
    };
    let report = nagaya_harness::run(
        &config,
        &RunRequest {
            scenario: "bench-linux-bare",
            image: &artefact::path("built/bare.img")?,
            runs: &paths::target().join("runs"),
            bare_entry: Some(bare::ENTRY),
        },
        &mut |_| (),
    )?;
    // There is no hypervisor to report an end: what counts is that the line was printed.
    let said = report.console.iter().find_map(|line| match line {
        ConsoleLine::Raw(text) => Costs::read(text),
        _ => None,
    });
    let logs = || format!("logs: {}", report.directory.display());
    let costs = said.with_context(|| format!("the first process said nothing ({})", logs()))?;
    let output =
        std::fs::read_to_string(report.directory.join("emulator.txt")).with_context(logs)?;
    let entered = bochs::told_tick(&output)
        .with_context(|| format!("the kernel was never entered ({})", logs()))?;
    Ok(row(&costs, entered))
}

/// Boots a VM, and takes the line of `costs` about that.
fn guest(
    imager: &Imager,
    choice: &Choice,
    overrides: &Overrides,
    text: &str,
    what: &str,
) -> Result<Row> {
    let report = boot(imager, choice, overrides, text)?;
    let costs = report
        .guest_lines("linux")
        .filter_map(Costs::read)
        .find(|costs| costs.what == what)
        .with_context(|| format!("no costs of {what} (logs: {})", report.directory.display()))?;
    // A moment's ticks count from the machine's start, a sleep's from its own.
    let entered = if what == "first-process" {
        started(&report).context("the hypervisor did not say when the VM began")?
    } else {
        0
    };
    Ok(row(&costs, entered))
}

/// iperf3 from one VM to the other.
fn throughput(imager: &Imager, choice: &Choice, overrides: &Overrides) -> Result<Row> {
    let report = boot(imager, choice, overrides, &iperf3_scenario())?;
    let rates: Vec<(&str, f64)> = report.guest_lines("client").filter_map(iperf3).collect();
    let rate = |wanted: &str| {
        rates
            .iter()
            .find(|(who, _)| *who == wanted)
            .map(|(_, rate)| *rate)
    };
    let received = rate("receiver").with_context(|| {
        format!(
            "iperf3 made no summary (logs: {})",
            report.directory.display()
        )
    })?;
    let bits_a_tick = received * 1e6 / TICKS_A_SECOND;
    let mut row = Row {
        // Of a megabyte.
        ticks: Ticks::one((8e6 / bits_a_tick.max(f64::MIN_POSITIVE)) as u64),
        ..Row::default()
    };
    for (key, value) in [
        ("megabits_a_simulated_second", json!(received)),
        ("sent", json!(rate("sender"))),
        ("bits_a_tick", json!(bits_a_tick)),
    ] {
        row.more.insert(key.to_owned(), value);
    }
    Ok(row)
}

fn boot(imager: &Imager, choice: &Choice, overrides: &Overrides, text: &str) -> Result<RunReport> {
    let loaded = scenario::parse_text(text, "bench-linux.toml", overrides)?;
    let report = run::boot(imager, &loaded, choice.kind, Firmware::Bios, &mut |_| ())?;
    if !report.ok {
        bail!("{} (logs: {})", report.reason, report.directory.display());
    }
    Ok(report)
}

/// The TSC at which the first VM was entered.
fn started(report: &RunReport) -> Option<u64> {
    report.events_named("vm-start").next()?.number("tsc")
}

fn row(costs: &Costs, entered: u64) -> Row {
    let ticks = costs.ticks.saturating_sub(entered);
    let exits = costs.exits.iter();
    let a_second = costs.all_exits() as f64 * TICKS_A_SECOND / ticks.max(1) as f64;
    let more = [
        ("all_exits", json!(costs.all_exits())),
        ("exits_a_simulated_second", json!(a_second)),
    ];
    Row {
        ticks: Ticks::one(ticks),
        exits: exits
            .map(|(reason, count)| (reason.clone(), *count as f64))
            .collect(),
        more: more
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        ..Row::default()
    }
}

fn print_row(row: &Row) {
    let number = |key: &str| row.more.get(key).and_then(Value::as_f64);
    let name = &row.name;
    if let Some(rate) = number("megabits_a_simulated_second") {
        say!(
            "{name}: {rate:.1} Mbit a simulated second, {:.2} bits a tick",
            number("bits_a_tick").unwrap_or(0.0)
        );
    } else {
        say!(
            "{name}: {} ticks, {} exits ({:.1} a simulated second): {}",
            row.ticks.mean,
            number("all_exits").unwrap_or(0.0),
            number("exits_a_simulated_second").unwrap_or(0.0),
            row.exits_in_words()
        );
    }
}

/// VM over bare, for each VM that booted.
fn print_ratios(rows: &[Row]) {
    for (name, ratio) in ratios(rows) {
        say!("{name} / bare: {ratio:.3} (aim: at most 1.15)");
    }
}

fn ratios(rows: &[Row]) -> Vec<(&str, f64)> {
    let Some(bare) = rows
        .iter()
        .find(|row| row.name == "boot-bare-bzimage")
        .map(|row| row.ticks.mean as f64)
        .filter(|ticks| *ticks > 0.0)
    else {
        return Vec::new();
    };
    rows.iter()
        .filter(|row| row.name.starts_with("boot-vm"))
        .map(|row| (row.name.as_str(), row.ticks.mean as f64 / bare))
        .collect()
}

/// A VM like the machine that has none.
fn boot_scenario(image: &str) -> String {
    linux_scenario(1, image, "built/initramfs-costs", bare::CMDLINE)
}

fn idle_scenario(vcpus: u32) -> String {
    let cmdline = "console=ttyS0 quiet cryptomgr.notests nagaya.run=idle";
    linux_scenario(vcpus, "debian/vmlinux", "built/initramfs-costs", cmdline)
}

fn linux_scenario(vcpus: u32, image: &str, initramfs: &str, cmdline: &str) -> String {
    format!(
        "[machine]\ncpus = {vcpus}\nmemory = \"512M\"\ntimeout = \"{}s\"\n\n[[vm]]\nname = \"linux\"\nkind = \"linux\"\n\
         image = \"{image}\"\ninitramfs = \"{initramfs}\"\nmemory = \"{MEMORY_MIB}M\"\nvcpus = {vcpus}\ncmdline = \"{cmdline}\"\n",
        TIMEOUT.as_secs()
    )
}

fn iperf3_scenario() -> String {
    let vm = |name: &str, cpu: u32, more: &str| {
        format!(
            "\n[[vm]]\nname = \"{name}\"\nkind = \"linux\"\nimage = \"debian/vmlinux\"\ninitramfs = \"built/initramfs-iperf3\"\n\
             memory = \"160M\"\ncpu = {cpu}\n\
             cmdline = \"console=ttyS0 quiet cryptomgr.notests nagaya.run=iperf3-{name} {more}\"\n[[vm.nic]]\nsegment = \"lan\"\n"
        )
    };
    [
        &format!(
            "[machine]\ncpus = 2\nmemory = \"640M\"\ntimeout = \"{}s\"\n",
            TIMEOUT.as_secs()
        ),
        &vm("server", 0, "nagaya.ip=10.0.0.1/24 nagaya.once"),
        &vm(
            "client",
            1,
            "nagaya.ip=10.0.0.2/24 nagaya.peer=10.0.0.1 nagaya.seconds=5",
        ),
    ]
    .map(String::as_str)
    .concat()
}

#[cfg(test)]
mod tests {
    use super::super::result::testing;
    use super::*;

    #[test]
    fn every_scenario_is_right() {
        for text in [
            boot_scenario("debian/bzImage"),
            idle_scenario(2),
            iperf3_scenario(),
        ] {
            let loaded = scenario::parse_text(&text, "x.toml", &Overrides::default());
            assert!(loaded.is_ok(), "{text}\n{:#}", loaded.expect_err("wrong"));
        }
    }

    #[test]
    fn ticks_count_from_the_kernels_first_and_exits_by_the_simulated_second() {
        let costs =
            Costs::read("NAGAYA-COSTS first-process ticks=30000000 port=40").expect("costs");
        let row = row(&costs, 10_000_000);
        assert_eq!(row.ticks, Ticks::one(20_000_000));
        assert_eq!(row.more["exits_a_simulated_second"], 20.0);
        assert_eq!(row.exits["port"], 40.0);
    }

    #[test]
    fn a_ratio_needs_the_machine_without_a_hypervisor() {
        let vm = testing::row("boot-vm-bzimage", 230);
        let bare = testing::row("boot-bare-bzimage", 200);
        assert!(ratios(std::slice::from_ref(&vm)).is_empty());
        assert_eq!(ratios(&[bare, vm]), [("boot-vm-bzimage", 1.15)]);
    }
}
