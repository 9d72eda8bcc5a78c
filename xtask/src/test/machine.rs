//! Tests in the machine: each a scenario, a machine, perhaps an operator, and what must be seen in the report.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use nagaya_harness::{ConsoleLine, RunReport, interrupt};
use nagaya_system_tests::{Operator, SystemTest};

use super::tally::Tally;
use crate::image::Imager;
use crate::scenario::{self, Overrides};
use crate::{bench, build, paths, run};

/// How many emulators run at once.
const EMULATORS: usize = 2;
/// How much longer a run may take with all its rounds.
const FULL_PATIENCE: u32 = 60;
/// Console lines of a failed run that are shown.
const SHOWN_LINES: usize = 60;

pub(super) fn system_tests(tally: &mut Tally, imager: &Imager, tests: &[SystemTest], full: bool) {
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
    if let Some(memory_mib) = test.memory_mib {
        loaded.host.memory_bytes = u64::from(memory_mib) << 20;
    }
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
        symbols: build::symbols(),
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

/// A benchmark's figures are those that the documents show.
pub(super) fn figures(tally: &mut Tally, imager: &Imager, bench: &str) {
    let started = Instant::now();
    let name = format!("machine/bench-{bench}");
    match bench::is_as_written(imager, bench) {
        Ok(None) => tally.one(&name, &Ok(()), started),
        Ok(Some(why)) => say!("skipped {name}: {why}"),
        Err(error) => tally.one(&name, &Err(format!("{error:#}")), started),
    }
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
}
