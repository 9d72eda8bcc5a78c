//! `cargo xtask bench sched`: loads under every mode of the scheduler, with one to four groups for the CPUs of one.
//!
//! The scenarios are made here: their guest is `worker`, all VMs of a run measure the same span of simulated time, and throughput
//! is what they did in it. A run whose VMs did not begin together, because a boundary of [`ALIGN_TICKS`] fell into their boot, is
//! repeated with another one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use nagaya_harness::{Firmware, MachineKind, RunReport};
use serde_json::{Value, json};

use super::result::{Row, Ticks};
use super::{Args, Bench, Outcome};
use crate::image::Imager;
use crate::run;
use crate::scenario::{self, Overrides};

/// As in the guest.
const ALIGN_TICKS: u64 = 8 << 20;
const CPUS: usize = 4;

/// How a group is scheduled: the name in the table, the scenario's mode, whether spinning is looked for.
const MODES: [(&str, &str, bool); 6] = [
    ("off", "off", false),
    ("prefer", "prefer", false),
    ("balance", "balance", false),
    ("yield", "off", true),
    ("relaxed", "relaxed", false),
    ("strict", "strict", false),
];

/// A VM of a run.
struct Vm {
    name: String,
    group: Option<String>,
    cmdline: String,
    more: String,
}

/// A group of a run.
struct Group {
    name: String,
    mode: &'static str,
    directed_yield: bool,
    weight: u64,
}

impl Group {
    fn new(name: &str, mode: &'static str, directed_yield: bool) -> Group {
        Group {
            name: name.to_owned(),
            mode,
            directed_yield,
            weight: 256,
        }
    }
}

/// One run.
struct Job {
    load: &'static str,
    mode: String,
    overcommit: usize,
    cpus: usize,
    /// Shifts when each VM begins.
    seed: u64,
    groups: Vec<Group>,
    vms: Vec<Vm>,
    /// Makes rows of what the VMs did.
    count: fn(&Job, &BTreeMap<String, Done>) -> Vec<Value>,
}

/// What a VM did.
#[derive(Clone, Copy)]
struct Done {
    steps: u64,
    ticks: u64,
    khz: u64,
    begin: u64,
    stolen: u64,
    spins: u64,
    /// Latency in ticks, of those that measure one.
    p50: u64,
    p99: u64,
}

/// Measures, and prints against mode `off`.
pub(super) fn measure_all(bench: &Bench<'_>, args: &Args) -> Result<Outcome> {
    let span = Span {
        ms: args.ms,
        slice_ms: args.slice_ms,
        seeds: args.seeds,
    };
    let (rows, failures) = rows(bench.imager, bench.choice.kind, span, args.only.as_deref())?;
    print_table(&rows);
    let rows = rows.iter().map(schema).collect::<Result<_>>()?;
    Ok(Outcome {
        results: bench.results("sched", None, rows),
        failures,
    })
}

/// A row as all benchmarks have it: its name tells load, mode and overcommitment, its ticks are those of a step.
fn schema(row: &Value) -> Result<Row> {
    let mut more = row.as_object().context("a row is no object")?.clone();
    let load = more.remove("name");
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("?").to_owned();
    let mut name = format!("{}/{}", text(load.as_ref()), text(more.get("mode")));
    for (key, before, after) in [
        ("overcommit", " ", ":1"),
        ("samples", ", ", " samples"),
        ("seed", ", seed ", ""),
    ] {
        if let Some(number) = more.get(key).and_then(Value::as_u64) {
            name.push_str(&format!("{before}{number}{after}"));
        }
    }
    let ticks = more.remove("ticks_per_step");
    Ok(Row {
        name,
        ticks: Ticks::one(ticks.and_then(|ticks| ticks.as_u64()).unwrap_or(0)),
        more,
        ..Row::default()
    })
}

/// How long and how often.
#[derive(Clone, Copy)]
struct Span {
    /// Of a run, in simulated milliseconds.
    ms: u64,
    /// Of a slice. The machine executes 10,000 instructions in a millisecond where a real CPU executes millions: a slice of 10 ms
    /// would be no longer than a few dozen decisions.
    slice_ms: u64,
    /// How often paper 004's load is run.
    seeds: u64,
}

/// Runs all; the second are those that failed.
fn rows(
    imager: &Imager,
    kind: MachineKind,
    span: Span,
    only: Option<&str>,
) -> Result<(Vec<Value>, Vec<String>)> {
    let jobs: Vec<Job> = jobs(span.ms, span.seeds)
        .into_iter()
        .filter(|job| only.is_none_or(|only| format!("{}/{}", job.load, job.mode).contains(only)))
        .collect();
    let results = Mutex::new(BTreeMap::new());
    let turn = AtomicUsize::new(0);
    // Emulated time does not depend on how busy the host is: two at once.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = turn.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { break };
                    let rows = measure(imager, kind, job, span.slice_ms);
                    if let Ok(rows) = &rows {
                        rows.iter().for_each(print_row);
                    }
                    if let Ok(mut results) = results.lock() {
                        results.insert(index, rows);
                    }
                }
            });
        }
    });
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for result in results
        .into_inner()
        .map_err(|_| anyhow!("a run panicked"))?
        .into_values()
    {
        match result {
            Ok(more) => rows.extend(more),
            // One that fails does not take the others with it.
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    Ok((rows, failures))
}

fn measure(imager: &Imager, kind: MachineKind, job: &Job, slice_ms: u64) -> Result<Vec<Value>> {
    let what = format!("{}/{} {}:1", job.load, job.mode, job.overcommit);
    for phase in [0, ALIGN_TICKS / 2] {
        let text = job.scenario(phase, slice_ms);
        let loaded = scenario::parse_text(&text, "bench-sched.toml", &Overrides::default())?;
        let report = run::boot(imager, &loaded, kind, Firmware::Bios, &mut |_| ())?;
        if !report.ok {
            bail!(
                "{what}: {} (logs: {})",
                report.reason,
                report.directory.display()
            );
        }
        let done = done(&report).with_context(|| what.clone())?;
        if let Some(vm) = job.vms.iter().find(|vm| !done.contains_key(&vm.name)) {
            bail!("{what}: VM {} sent no row", vm.name);
        }
        let mut begins = done.values().map(|done| done.begin);
        let first = begins.next();
        if begins.all(|begin| Some(begin) == first) {
            let mut rows = (job.count)(job, &done);
            for row in &mut rows {
                add_groups(row, &report);
                row["slice_ms"] = json!(slice_ms);
            }
            return Ok(rows);
        }
    }
    bail!("{what}: the VMs did not begin together")
}

/// Concurrency hazard as a share of the time that the groups ran, and the co-start skew of the worst, in ticks.
fn add_groups(row: &mut Value, report: &RunReport) {
    let ends = report
        .events
        .iter()
        .filter(|event| event.name == "group-end");
    let (mut ran, mut hazard, mut skew) = (0, 0, 0);
    for end in ends {
        ran += end.number("ran").unwrap_or(0);
        hazard += end.number("hazard").unwrap_or(0);
        skew = skew.max(end.number("skew_p99").unwrap_or(0));
    }
    if ran != 0 {
        row["hazard"] = json!(hazard as f64 / ran as f64);
        row["skew_p99"] = json!(skew);
    }
}

fn done(report: &RunReport) -> Result<BTreeMap<String, Done>> {
    report
        .rows()
        .map(|(vm, row)| {
            let number = |key: &str| {
                row.get(key)
                    .and_then(Value::as_u64)
                    .with_context(|| format!("{vm}: a row without {key}"))
            };
            let done = Done {
                steps: number("steps")?,
                ticks: number("ticks")?,
                khz: number("khz")?,
                begin: number("begin")?,
                stolen: number("stolen")?,
                spins: number("spins")?,
                p50: number("p50").unwrap_or(0),
                p99: number("p99").unwrap_or(0),
            };
            Ok((vm, done))
        })
        .collect()
}

impl Job {
    fn scenario(&self, phase: u64, slice_ms: u64) -> String {
        let mut text = format!(
            "[machine]\ncpus = {}\nmemory = \"{}M\"\ntimeout = \"600s\"\nslice = \"{}ms\"\nrate_limit = \"{}ms\"\n",
            self.cpus,
            // Room for the hypervisor, and for each VM with its pages.
            512 + self.vms.len() * 9,
            slice_ms,
            slice_ms / 10
        );
        for group in &self.groups {
            let _ = write!(
                text,
                "\n[[group]]\nname = \"{}\"\npages = 16\nmode = \"{}\"\ndirected_yield = {}\nweight = {}\n",
                group.name, group.mode, group.directed_yield, group.weight
            );
        }
        for (index, vm) in (0_u64..).zip(&self.vms) {
            // VMs are not made at the same moment, and without this their slices would be in step by accident.
            let late = (index * 17 + self.seed * 29) % slice_ms * 1000;
            let _ = write!(
                text,
                "\n[[vm]]\nname = \"{}\"\nimage = \"worker\"\nmemory = \"8M\"\ncmdline = \"{} phase={phase} delay_us={late}\"\n{}",
                vm.name, vm.cmdline, vm.more
            );
            if let Some(group) = &vm.group {
                let _ = writeln!(text, "group = \"{group}\"");
            }
        }
        text
    }
}

fn jobs(ms: u64, seeds: u64) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (load, work, overcommits) in [
        ("barrier", 400, &[1, 2, 3, 4][..]),
        ("lock", 400, &[1, 2, 4][..]),
        ("independent", 400, &[2][..]),
    ] {
        for overcommit in overcommits {
            for (name, mode, directed) in MODES {
                jobs.push(groups_of_four(
                    load,
                    work,
                    *overcommit,
                    name,
                    mode,
                    directed,
                    ms,
                ));
            }
        }
    }
    for (load, maps) in [("pi-10", 10), ("pi-100", 100)] {
        for samples in [50, 200, 800] {
            for (name, mode, directed) in MODES {
                if matches!(name, "off" | "prefer" | "relaxed") {
                    for seed in 1..=seeds {
                        let mut job = pi(load, maps, samples, name, mode, directed, ms);
                        job.seed = seed;
                        jobs.push(job);
                    }
                }
            }
        }
    }
    for vms in [1, 4, 64] {
        jobs.push(switches(vms));
    }
    for (name, mode, directed) in MODES {
        jobs.push(latency(name, mode, directed, ms));
    }
    for weight in [256, 512, 2560] {
        jobs.push(weights(weight, ms));
    }
    for weight in [512, 2560] {
        jobs.push(group_weights(weight, ms));
    }
    for caps in [[25, 35, 45], [55, 65, 75], [85, 95, 100]] {
        jobs.push(capped(&caps, ms));
    }
    jobs
}

/// Groups of four, all alike, as many as the overcommitment says.
fn groups_of_four(
    load: &'static str,
    work: u64,
    overcommit: usize,
    name: &str,
    mode: &'static str,
    directed: bool,
    ms: u64,
) -> Job {
    let guest = if load == "independent" { "hog" } else { load };
    let mut job = Job {
        load,
        mode: name.to_owned(),
        overcommit,
        cpus: CPUS,
        seed: 0,
        groups: Vec::new(),
        vms: Vec::new(),
        count: |job, done| {
            let members = if job.load == "barrier" {
                CPUS as u64
            } else {
                1
            };
            vec![row(job, done.values(), members, &job.mode)]
        },
    };
    for group in 0..overcommit {
        let group = format!("g{group}");
        for member in 0..CPUS {
            job.vms.push(Vm {
                name: format!("{group}m{member}"),
                group: Some(group.clone()),
                cmdline: format!("load={guest} ms={ms} work={work} members={CPUS}"),
                more: String::new(),
            });
        }
        job.groups.push(Group::new(&group, mode, directed));
    }
    job
}

/// Paper 004's job: a master and two workers on as many CPUs, beside three VMs that only compute.
fn pi(
    load: &'static str,
    maps: u64,
    samples: u64,
    name: &str,
    mode: &'static str,
    directed: bool,
    ms: u64,
) -> Job {
    let mut vms = Vec::new();
    for member in 0..3 {
        vms.push(Vm {
            name: format!("pi{member}"),
            group: Some("pi".to_owned()),
            cmdline: format!("load=pi ms={ms} work={samples} maps={maps} members=3"),
            more: String::new(),
        });
        vms.push(Vm {
            name: format!("hog{member}"),
            group: None,
            cmdline: format!("load=hog ms={ms}"),
            more: String::new(),
        });
    }
    Job {
        load,
        mode: format!("{name}/{samples}"),
        overcommit: 2,
        cpus: 3,
        seed: 0,
        groups: vec![Group::new("pi", mode, directed)],
        vms,
        count: |job, done| {
            let master = done.get("pi0").into_iter();
            let (mode, samples) = job.mode.split_once('/').unwrap_or((&job.mode, "0"));
            let mut row = row(job, master, 1, mode);
            row["samples"] = json!(samples.parse::<u64>().unwrap_or(0));
            row["seed"] = json!(job.seed);
            row["hog_steps"] = json!(
                done.iter()
                    .filter(|(vm, _)| vm.starts_with("hog"))
                    .map(|(_, done)| done.steps)
                    .sum::<u64>()
            );
            vec![row]
        },
    }
}

/// A doorbell to a member that has halted, while hogs keep both CPUs busy.
fn latency(name: &str, mode: &'static str, directed: bool, ms: u64) -> Job {
    let mut vms = Vec::new();
    for cpu in 0..2 {
        for (kind, group) in [("bell", Some("g".to_owned())), ("hog", None)] {
            vms.push(Vm {
                name: format!("{kind}{cpu}"),
                group,
                cmdline: format!("load={kind} ms={ms}"),
                more: format!("cpu = {cpu}\n"),
            });
        }
    }
    Job {
        load: "latency",
        mode: name.to_owned(),
        overcommit: 2,
        cpus: 2,
        seed: 0,
        groups: vec![Group::new("g", mode, directed)],
        vms,
        count: |job, done| {
            let ringer = done.get("bell0").into_iter();
            let mut row = row(job, ringer.clone(), 1, &job.mode);
            for ringer in ringer {
                row["ticks_p50"] = json!(ringer.p50);
                row["ticks_p99"] = json!(ringer.p99);
            }
            vec![row]
        },
    }
}

/// So many VMs on one CPU, each of which yields all the time: what a switch takes, decision included. One alone: a decision.
fn switches(vms: usize) -> Job {
    Job {
        load: "switch",
        mode: "off".to_owned(),
        overcommit: vms,
        cpus: 1,
        seed: 0,
        groups: Vec::new(),
        vms: (0..vms)
            .map(|vm| Vm {
                name: format!("v{vm}"),
                group: None,
                // Many take long to make.
                cmdline: format!("load=switch ms=400 align={}", 1_u64 << 27),
                more: String::new(),
            })
            .collect(),
        count: |job, done| {
            let mut row = row(job, done.values(), 1, &job.mode);
            let steps: u64 = done.values().map(|done| done.steps).sum();
            let ticks = done.values().map(|done| done.ticks).max().unwrap_or(0);
            row["ticks_per_switch"] = json!(ticks / steps.max(1));
            vec![row]
        },
    }
}

/// Two VMs on one CPU, the second of that weight.
fn weights(weight: u64, ms: u64) -> Job {
    let vm = |name: &str, weight: u64| Vm {
        name: name.to_owned(),
        group: None,
        cmdline: format!("load=hog ms={}", ms * 2),
        more: format!("weight = {weight}\n"),
    };
    Job {
        load: "fairness",
        mode: format!("1:{}", weight / 256),
        overcommit: 2,
        cpus: 1,
        seed: 0,
        groups: Vec::new(),
        vms: vec![vm("a", 256), vm("b", weight)],
        count: |job, done| {
            let steps = |vm: &str| done.get(vm).map_or(0, |done| done.steps) as f64;
            vec![share_row(job, done, steps("a"), steps("b"))]
        },
    }
}

/// Two groups on two CPUs, of two members and of four, the second of that weight.
fn group_weights(weight: u64, ms: u64) -> Job {
    let mut groups = vec![
        Group::new("a", "relaxed", false),
        Group::new("b", "relaxed", false),
    ];
    let mut vms = Vec::new();
    for (group, members) in groups.iter_mut().zip([2, 4]) {
        if group.name == "b" {
            group.weight = weight;
        }
        for member in 0..members {
            vms.push(Vm {
                name: format!("{}{member}", group.name),
                group: Some(group.name.clone()),
                cmdline: format!("load=hog ms={}", ms * 2),
                more: String::new(),
            });
        }
    }
    Job {
        load: "fair-groups",
        mode: format!("1:{}", weight / 256),
        overcommit: 3,
        cpus: 2,
        seed: 0,
        groups,
        vms,
        count: |job, done| {
            let steps = |group: &str| {
                let of = |(vm, _): &(&String, &Done)| vm.starts_with(group);
                done.iter()
                    .filter(of)
                    .map(|(_, done)| done.steps)
                    .sum::<u64>() as f64
            };
            vec![share_row(job, done, steps("a"), steps("b"))]
        },
    }
}

/// How far the second one's share is from what the weights, which the mode names, promise.
fn share_row(job: &Job, done: &BTreeMap<String, Done>, first: f64, second: f64) -> Value {
    let mut row = row(job, done.values(), 1, &job.mode);
    let wanted: f64 = job.mode.trim_start_matches("1:").parse().unwrap_or(1.0);
    let share = second / (first + second);
    row["share"] = json!(share);
    row["share_error"] = json!((share - wanted / (wanted + 1.0)).abs());
    row
}

/// VMs with a CPU each and these caps, beside one without.
fn capped(caps: &[u32], ms: u64) -> Job {
    let vm = |cpu: usize, cap: u32| Vm {
        name: if cap == 0 {
            "free".to_owned()
        } else {
            format!("cap{cap}")
        },
        group: None,
        cmdline: format!("load=hog ms={}", ms * 2),
        more: format!("cpu = {cpu}\ncap = {cap}\n"),
    };
    Job {
        load: "cap",
        mode: "cap".to_owned(),
        overcommit: 1,
        cpus: CPUS,
        seed: 0,
        groups: Vec::new(),
        vms: caps
            .iter()
            .copied()
            .chain([0])
            .enumerate()
            .map(|(cpu, cap)| vm(cpu, cap))
            .collect(),
        count: |job, done| {
            let free = done.get("free").map_or(1, |done| done.steps) as f64;
            done.iter()
                .filter_map(|(vm, done)| {
                    let cap: f64 = vm.strip_prefix("cap")?.parse().ok()?;
                    let mut row = row(job, [done].into_iter(), 1, &format!("{cap}%"));
                    let share = done.steps as f64 / free;
                    row["share"] = json!(share);
                    row["share_error"] = json!((share - cap / 100.0).abs());
                    Some(row)
                })
                .collect()
        },
    }
}

/// Steps of all, divided by how many take part in each, in a second of simulated time.
fn row<'a>(job: &Job, done: impl Iterator<Item = &'a Done>, members: u64, mode: &str) -> Value {
    let (mut steps, mut ticks, mut khz, mut stolen, mut spins) = (0, 1, 1, 0, 0);
    for done in done {
        steps += done.steps;
        stolen += done.stolen;
        spins += done.spins;
        (ticks, khz) = (done.ticks.max(1), done.khz);
    }
    let throughput = steps as f64 / members as f64 * (khz as f64 * 1000.0) / ticks as f64;
    json!({
        "name": job.load, "mode": mode, "overcommit": job.overcommit, "throughput": (throughput * 10.0).round() / 10.0, "ticks": ticks,
        "ticks_per_step": (ticks * members).checked_div(steps).unwrap_or(0), "steps": steps, "stolen": stolen, "pause_exits": spins,
    })
}

fn print_row(row: &Value) {
    say!(
        "{:<12}{:<9}{:>3}:1 {:>12.1} a second{}{}",
        row["name"].as_str().unwrap_or("?"),
        row["mode"].as_str().unwrap_or("?"),
        row["overcommit"].as_u64().unwrap_or(0),
        row["throughput"].as_f64().unwrap_or(0.0),
        row["samples"]
            .as_u64()
            .map_or(String::new(), |samples| format!("  {samples} samples")),
        row["ticks_per_switch"]
            .as_u64()
            .map_or(String::new(), |ticks| format!("  {ticks} ticks a switch"))
            + &row["ticks_p50"]
                .as_u64()
                .map_or(String::new(), |p50| format!(
                    "  woken after {p50} ticks, p99 {}",
                    row["ticks_p99"].as_u64().unwrap_or(0)
                ))
            + &row["hazard"]
                .as_f64()
                .map_or(String::new(), |hazard| format!(
                    "  hazard {:.2} %, co-start skew p99 {} ticks",
                    hazard * 100.0,
                    row["skew_p99"].as_u64().unwrap_or(0)
                ))
            + &row["share_error"]
                .as_f64()
                .map_or(String::new(), |error| format!(
                    "  share {:.4}, off by {error:.4}",
                    row["share"].as_f64().unwrap_or(0.0)
                )),
    );
}

/// Prints, for each load and overcommitment, every mode against `off`.
fn print_table(rows: &[Value]) {
    let key = |row: &Value| {
        let samples = row["samples"]
            .as_u64()
            .map_or(String::new(), |samples| format!(" ({samples} samples)"));
        (
            format!("{}{samples}", row["name"].as_str().unwrap_or("?")),
            row["overcommit"].as_u64().unwrap_or(0),
        )
    };
    say!(
        "\nsched: against mode off\n{:<24}{:>4}{}",
        "load",
        "",
        MODES.map(|(name, ..)| format!("{name:>10}")).concat()
    );
    let mut seen = Vec::new();
    for row in rows.iter().filter(|row| row["mode"] == "off") {
        if seen.contains(&key(row)) {
            continue;
        }
        seen.push(key(row));
        // Over all seeds.
        let sum = |name: &str| {
            rows.iter()
                .filter(|other| key(other) == key(row) && other["mode"] == name)
                .filter_map(|other| other["throughput"].as_f64())
                .reduce(|sum, value| sum + value)
        };
        let off = sum("off").unwrap_or(0.0).max(1.0);
        let cells = MODES.map(|(name, ..)| {
            sum(name).map_or(format!("{:>10}", "-"), |value| {
                format!("{:>10.2}", value / off)
            })
        });
        say!("{:<24}{:>2}:1{}", key(row).0, key(row).1, cells.concat());
    }
}
