//! `cargo xtask test`: every level of tests, one line each; the last line reads `N passed, N failed`.
//!
//! Levels: checks (format, clippy, documentation, tidy), tests on the host, tests in the machine. The loader's stages, which
//! take minutes to build the first time, are built by a thread beside the checks and host tests.

mod ctrl_c;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};
use nagaya_harness::{ConsoleLine, RunReport, interrupt};
use nagaya_system_tests::{Operator, SystemTest};

use crate::cmd::Cmd;
use crate::image::Imager;
use crate::scenario::{self, Overrides};
use crate::setup::{self, Need};
use crate::{bench, linux, paths, run, tidy};

/// What `test` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs only tests whose name contains this, on every level
    filter: Option<String>,
    /// Gives long tests all their rounds: hours, not minutes
    #[arg(long)]
    full: bool,
}

/// How many emulators run at once.
const EMULATORS: usize = 2;
/// How much longer a run may take with all its rounds.
const FULL_PATIENCE: u32 = 60;
/// Console lines of a failed run that are shown.
const SHOWN_LINES: usize = 60;

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    fn one(&mut self, name: &str, outcome: &Result<(), String>, started: Instant) {
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                say!("ok      {name} ({seconds:.1} s)");
            }
            Err(why) => {
                self.failed += 1;
                say!("FAILED  {name} ({seconds:.1} s)\n{why}");
            }
        }
    }
}

/// Runs the verb.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let wanted = |name: &str| {
        args.filter
            .as_deref()
            .is_none_or(|filter| name.contains(filter))
    };
    let systems: Vec<SystemTest> = nagaya_system_tests::all()
        .into_iter()
        .filter(|test| args.full || !test.only_full)
        .filter(|test| wanted(&format!("machine/{}", test.name)))
        .collect();
    let ctrl_c = wanted("machine/ctrl-c");
    let benches: Vec<&str> = bench::SHORT
        .into_iter()
        .filter(|bench| wanted(&format!("machine/bench-{bench}")))
        .collect();
    let needs_images = ctrl_c || !systems.is_empty() || !benches.is_empty();
    if needs_images {
        setup::need(&[Need::Bochs, Need::Qemu])?;
    }
    let mut tally = Tally::default();
    let imager = std::thread::scope(|scope| {
        let building = scope.spawn(|| needs_images.then(Imager::prepare));
        checks(&mut tally, &wanted);
        host_tests(&mut tally, args.filter.as_deref());
        building
            .join()
            .map_err(|_| anyhow!("the thread that builds the images panicked"))
    })?;
    match imager {
        Some(Ok(imager)) => {
            system_tests(&mut tally, &imager, &systems, args.full);
            for bench in benches {
                if !interrupt::requested() {
                    figures(&mut tally, &imager, bench);
                }
            }
            if ctrl_c && !interrupt::requested() {
                let started = Instant::now();
                tally.one("machine/ctrl-c", &ctrl_c::check(), started);
            }
        }
        Some(Err(error)) => {
            tally.one("build", &Err(format!("{error:#}")), Instant::now());
        }
        None => {}
    }
    say!("{} passed, {} failed", tally.passed, tally.failed);
    // A filter that fits nothing is a mistake, not a success.
    let good = tally.failed == 0 && tally.passed > 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A benchmark's figures are those that the documents show.
fn figures(tally: &mut Tally, imager: &Imager, bench: &str) {
    let started = Instant::now();
    let name = format!("machine/bench-{bench}");
    match bench::is_as_written(imager, bench) {
        Ok(None) => tally.one(&name, &Ok(()), started),
        Ok(Some(why)) => say!("skipped {name}: {why}"),
        Err(error) => tally.one(&name, &Err(format!("{error:#}")), started),
    }
}

fn checks(tally: &mut Tally, wanted: &dyn Fn(&str) -> bool) {
    let cargo = |arguments: &[&str]| Cmd::new("cargo").directory(paths::root()).args(arguments);
    let steps = [
        ("check/format", cargo(&["fmt", "--all", "--check"])),
        (
            "check/clippy",
            cargo(&[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        ),
        (
            "check/documentation",
            cargo(&["doc", "--quiet", "--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        ),
    ];
    for (name, command) in steps {
        if wanted(name) {
            let started = Instant::now();
            let outcome = command.run().map_err(|error| format!("{error:#}"));
            tally.one(name, &outcome, started);
        }
    }
    if wanted("check/tidy") {
        let started = Instant::now();
        let outcome = match tidy::main(&tidy::Args::default()) {
            Ok(code) if code == ExitCode::SUCCESS => Ok(()),
            Ok(_) => Err("see the findings above".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        };
        tally.one("check/tidy", &outcome, started);
    }
    module_check(tally, wanted, "check/kmod", linux::check_module);
    module_check(tally, wanted, "check/kmod-promises", linux::try_module);
}

/// A check of the Linux module, which is left out where Debian's packages for it cannot be had.
fn module_check(
    tally: &mut Tally,
    wanted: &dyn Fn(&str) -> bool,
    name: &str,
    check: fn() -> Option<Result<(), String>>,
) {
    if wanted(name) {
        let started = Instant::now();
        match check() {
            Some(outcome) => tally.one(name, &outcome, started),
            None => say!("skipped {name}"),
        }
    }
}

/// Runs the host's tests: those of the workspace, then the model checks by loom, which need a build of their own.
fn host_tests(tally: &mut Tally, filter: Option<&str>) {
    // Without it some tests say that they were skipped.
    if let Err(error) = setup::need(&[Need::Tests]) {
        note!("{error:#}");
    }
    let cargo = || Cmd::new("cargo").directory(paths::root());
    let workspace = cargo()
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(filter);
    count_libtest(tally, "host", workspace);
    for (package, part) in [
        ("nagaya-rt", ["--test", "loom"].as_slice()),
        ("nagaya-vmm", ["--lib", "doorbell"].as_slice()),
    ] {
        let name = format!("loom/{package}");
        if filter.is_none_or(|filter| name.contains(filter)) {
            let command = cargo()
                .args(["test", "--release", "-p", package])
                .args(part)
                .env("RUSTFLAGS", "--cfg loom")
                .env("CARGO_TARGET_DIR", paths::target().join("loom"));
            count_libtest(tally, &name, command);
        }
    }
}

/// Runs a `cargo test` and counts what libtest reports.
fn count_libtest(tally: &mut Tally, level: &str, command: Cmd) {
    let started = Instant::now();
    let output = command
        .into_std()
        .stderr(std::process::Stdio::piped())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return tally.one(level, &Err(format!("cargo test: {error}")), started),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut failed = 0;
    for (name, good) in text.lines().filter_map(libtest_line) {
        if good {
            tally.passed += 1;
            say!("ok      {level}/{name}");
        } else {
            failed += 1;
            tally.failed += 1;
            say!("FAILED  {level}/{name}");
        }
    }
    if !output.status.success() {
        say!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
        if failed == 0 {
            let why = "cargo test failed before or after its tests".to_owned();
            tally.one(level, &Err(why), started);
        }
    }
}

/// The name and outcome in a line `test NAME ... ok`, if it is one.
fn libtest_line(line: &str) -> Option<(&str, bool)> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    match outcome {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        _ => None,
    }
}

fn system_tests(tally: &mut Tally, imager: &Imager, tests: &[SystemTest], full: bool) {
    interrupt::install();
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(tally);
    std::thread::scope(|scope| {
        for _ in 0..EMULATORS {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if interrupt::requested() {
                        return;
                    }
                    let started = Instant::now();
                    let outcome = system_test(imager, test, full);
                    if let Ok(mut tally) = tally.lock() {
                        tally.one(&format!("machine/{}", test.name), &outcome, started);
                    }
                }
            });
        }
    });
}

fn system_test(imager: &Imager, test: &SystemTest, full: bool) -> Result<(), String> {
    let text = test
        .full
        .as_ref()
        .filter(|_| full)
        .unwrap_or(&test.scenario);
    let name = format!("system test {}", test.name.replace('/', ": "));
    let mut loaded = scenario::parse_text(text, &name, &Overrides::default())
        .map_err(|error| format!("{error:#}"))?;
    loaded.name = test.name.replace('/', "-");
    loaded.host.timeout = if full {
        test.timeout * FULL_PATIENCE
    } else {
        test.timeout
    };
    let imager = imager.damaging(test.damage);
    let mut reports = Vec::new();
    let mut said = Ok(());
    for _ in 0..test.runs.max(1) {
        let boot = || run::boot(&imager, &loaded, test.kind, test.firmware, &mut |_| ());
        let report = match test.script {
            None => boot(),
            Some(script) => {
                let over = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let operator = scope.spawn(|| operate(script, &loaded.name, full, &over));
                    let report = boot();
                    over.store(true, Ordering::SeqCst);
                    said = operator
                        .join()
                        .unwrap_or_else(|_| Err("the operator panicked".to_owned()));
                    report
                })
            }
        };
        reports.push(report.map_err(|error| format!("{error:#}"))?);
    }
    said.and_then(|()| (test.expect)(&reports))
        .map_err(|why| format!("{why}\n{}", transcripts(&reports)))
}

/// Waits for the machine's control port and does what the script says.
fn operate(
    script: fn(&Operator) -> Result<(), String>,
    name: &str,
    full: bool,
    over: &AtomicBool,
) -> Result<(), String> {
    let program = paths::this_program().map_err(|error| error.to_string())?;
    let prefix = format!("{name}-{}-", std::process::id());
    let socket = loop {
        let found = std::fs::read_dir(paths::target().join("runs"))
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path().join(nagaya_harness::CONTROL_SOCKET))
            .find(|socket| socket.exists());
        if let Some(socket) = found {
            break socket;
        }
        if over.load(Ordering::SeqCst) {
            return Err("the machine had no control port".to_owned());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let operator = Operator {
        program: vec![program.to_string_lossy().into_owned(), "ctl".to_owned()],
        socket,
        full,
    };
    script(&operator).inspect_err(|_| operator.end_machine())
}

/// The ends of the consoles, for a failed test.
fn transcripts(reports: &[RunReport]) -> String {
    let mut text = String::new();
    for report in reports {
        text.push_str(&format!(
            "  run: {} (logs: {})\n",
            report.reason,
            report.directory.display()
        ));
        let skipped = report.console.len().saturating_sub(SHOWN_LINES);
        for line in report.console.iter().skip(skipped) {
            text.push_str(&format!("    {}\n", plain(line)));
        }
        for line in &report.machine_log {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

fn plain(line: &ConsoleLine) -> String {
    nagaya_harness::Painter::new(false).paint(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_tests_scenario_is_right() {
        for test in nagaya_system_tests::all() {
            for text in [Some(&test.scenario), test.full.as_ref()]
                .into_iter()
                .flatten()
            {
                let loaded = scenario::parse_text(text, &test.name, &Overrides::default());
                assert!(loaded.is_ok(), "{:#}", loaded.expect_err("wrong"));
            }
        }
    }

    #[test]
    fn libtest_lines_are_told_from_others() {
        assert_eq!(libtest_line("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(libtest_line("test a ... FAILED"), Some(("a", false)));
        assert_eq!(libtest_line("test a ... ignored"), None);
        assert_eq!(libtest_line("test result: ok. 3 passed"), None);
    }
}
