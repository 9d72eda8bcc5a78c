//! One run, from the emulator's start to its report.

use crate::bridge::Bridge;
use crate::console::ConsoleLine;
use crate::event::Event;
use crate::machine::{ConfigError, Firmware, MachineConfig, MachineKind};
use crate::process::Emulator;
use crate::report::{Ending, RunReport, judge};
use crate::run_directory::RunDirectory;
use crate::tail::Tail;
use crate::{bochs, interrupt, qemu};
use std::fmt;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the serial ports are looked at.
const POLL: Duration = Duration::from_millis(20);
/// What a machine has to power off after its `end` event: draining a slow UART takes its time.
const POWER_OFF_GRACE: Duration = Duration::from_secs(10);
/// Lines of the emulator's log that a failed run shows.
const SHOWN_LOG_LINES: usize = 12;
/// How much of the emulator's log is looked through, from its end.
const SEARCHED_LOG_BYTES: u64 = 1 << 20;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct RunRequest<'a> {
    /// The scenario's name, for the run's directory.
    pub scenario: &'a str,
    /// The boot image.
    pub image: &'a Path,
    /// Where the directories of runs lie (`target/runs`).
    pub runs: &'a Path,
    /// The image holds no hypervisor but a system that is entered at this linear address. Bochs writes to its output at which tick
    /// that was ([`bochs::told_tick`]); nobody reports an end, so that the report is never `ok`.
    pub bare_entry: Option<u64>,
}

/// Why a run could not take place at all.
#[derive(Debug)]
pub enum RunError {
    /// The machine asked for cannot be.
    Config(ConfigError),
    /// The emulator cannot be started.
    Start {
        /// The emulator.
        program: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// A file of the run cannot be read or written.
    File {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Config(error) => error.fmt(f),
            RunError::Start { program, error } => write!(f, "cannot start {program}: {error}"),
            RunError::File { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for RunError {}

/// How an emulator is started.
struct Launch {
    /// The control port's other end, for as long as the run lasts.
    _bridge: Option<Bridge>,
    program: &'static str,
    arguments: Vec<String>,
    environment: &'static [(&'static str, &'static str)],
}

/// Runs the machine to its end and reports. Every console line goes to `on_line` as soon as it is whole.
///
/// # Errors
/// Only if the run could not take place; a run that fails is a report.
pub fn run(
    config: &MachineConfig,
    request: &RunRequest<'_>,
    on_line: &mut dyn FnMut(&ConsoleLine),
) -> Result<RunReport, RunError> {
    config.check().map_err(RunError::Config)?;
    let directory =
        RunDirectory::create(request.runs, request.scenario, request.image).map_err(|error| {
            RunError::File {
                path: request.runs.to_owned(),
                error,
            }
        })?;
    let launch = prepare(config, &directory, request.bare_entry)?;
    follow(&launch, &directory, config, on_line)
}

fn prepare(
    config: &MachineConfig,
    directory: &RunDirectory,
    bare_entry: Option<u64>,
) -> Result<Launch, RunError> {
    match config.kind {
        MachineKind::Bochs => {
            let bridge = if config.control {
                let opened = Bridge::open(directory.path());
                Some(opened.map_err(|error| RunError::File {
                    path: directory.file(crate::bridge::SOCKET),
                    error,
                })?)
            } else {
                None
            };
            let port = bridge.as_ref().map(Bridge::port);
            let abilities = bochs::Abilities::probe();
            let mut configuration = bochs::configuration(config, abilities, port);
            if bare_entry.is_some() {
                configuration = bochs::lenient(&configuration);
            }
            let mut files = vec![
                (RunDirectory::BOCHSRC, configuration.into_bytes()),
                (
                    RunDirectory::BOCHS_COMMANDS,
                    bochs::commands(bare_entry).into_bytes(),
                ),
            ];
            if config.firmware == Firmware::BiosWithoutAcpi {
                let bios = bochs::bios_without_acpi().map_err(|error| RunError::File {
                    path: bochs::BIOS.iter().collect(),
                    error,
                })?;
                files.push((RunDirectory::BIOS, bios));
            }
            for (name, bytes) in files {
                let path = directory.file(name);
                fs::write(&path, bytes).map_err(|error| RunError::File { path, error })?;
            }
            Ok(Launch {
                _bridge: bridge,
                program: bochs::PROGRAM,
                arguments: bochs::arguments(abilities),
                environment: &bochs::ENVIRONMENT,
            })
        }
        MachineKind::QemuKvm | MachineKind::QemuTcg => Ok(Launch {
            _bridge: None,
            program: qemu::program(),
            arguments: qemu::arguments(config),
            environment: &[],
        }),
    }
}

/// Both serial ports and what came out of them so far.
struct Ports<'a> {
    console_tail: Tail,
    event_tail: Tail,
    report: RunReport,
    on_line: &'a mut dyn FnMut(&ConsoleLine),
}

impl Ports<'_> {
    fn take_console(&mut self, line: ConsoleLine) {
        (self.on_line)(&line);
        self.report.console.push(line);
    }

    fn take_event(&mut self, line: &str) {
        if self.report.events.is_empty() {
            self.report.events.extend(Event::parse_first(line));
            return;
        }
        match Event::parse(line) {
            Ok(event) => self.report.events.push(event),
            Err(malformed) => self.report.malformed_events.push(malformed),
        }
    }

    fn poll(&mut self) -> io::Result<()> {
        for line in self.console_tail.poll()? {
            self.take_console(ConsoleLine::parse(&line));
        }
        for line in self.event_tail.poll()? {
            self.take_event(&line);
        }
        Ok(())
    }

    /// Takes what is left when the emulator is gone. A last line without an end is shown, but it is no event.
    fn finish(&mut self) -> io::Result<()> {
        let console = std::mem::replace(&mut self.console_tail, Tail::new(Path::new("")));
        let (lines, rest) = console.finish()?;
        for line in lines {
            self.take_console(ConsoleLine::parse(&line));
        }
        if let Some(rest) = rest {
            self.take_console(ConsoleLine::Raw(rest));
        }
        for line in self.event_tail.poll()? {
            self.take_event(&line);
        }
        Ok(())
    }
}

fn follow(
    launch: &Launch,
    directory: &RunDirectory,
    config: &MachineConfig,
    on_line: &mut dyn FnMut(&ConsoleLine),
) -> Result<RunReport, RunError> {
    interrupt::install();
    let start = Instant::now();
    let in_directory = |error| RunError::File {
        path: directory.path().to_owned(),
        error,
    };
    let mut emulator = Emulator::start(
        launch.program,
        &launch.arguments,
        launch.environment,
        directory.path(),
    )
    .map_err(|error| RunError::Start {
        program: launch.program,
        error,
    })?;
    let mut ports = Ports {
        console_tail: Tail::new(&directory.file(RunDirectory::CONSOLE)),
        event_tail: Tail::new(&directory.file(RunDirectory::EVENTS)),
        report: RunReport {
            ok: false,
            reason: String::new(),
            ending: Ending::TimedOut,
            console: Vec::new(),
            events: Vec::new(),
            malformed_events: Vec::new(),
            wall: Duration::ZERO,
            directory: directory.path().to_owned(),
            machine_log: Vec::new(),
        },
        on_line,
    };
    let mut end_seen: Option<Instant> = None;
    let ending = loop {
        let status = emulator.poll().map_err(in_directory)?;
        ports.poll().map_err(in_directory)?;
        if let Some(status) = status {
            break Ending::Exited(status.code());
        }
        if interrupt::requested() {
            break Ending::Interrupted;
        }
        if ports.report.end().is_some() {
            let since = end_seen.get_or_insert_with(Instant::now);
            if since.elapsed() > POWER_OFF_GRACE {
                break Ending::DidNotPowerOff;
            }
        } else if start.elapsed() > config.timeout {
            break Ending::TimedOut;
        }
        std::thread::sleep(POLL);
    };
    emulator.end();
    ports.finish().map_err(in_directory)?;
    directory.remove_image();
    let mut report = ports.report;
    (report.ok, report.reason) = judge(
        ending,
        config.timeout,
        &report.events,
        &report.malformed_events,
    );
    report.ending = ending;
    report.wall = start.elapsed();
    if !report.ok {
        report.machine_log = telling_lines(directory);
    }
    Ok(report)
}

/// What the emulator itself said: lines that tell of failed VM entries and panics first, then its last lines.
fn telling_lines(directory: &RunDirectory) -> Vec<String> {
    let log = read_end(&directory.file(RunDirectory::MACHINE_LOG)).unwrap_or_default();
    let mut lines: Vec<String> = log
        .lines()
        .filter(|line| bochs::is_telling(line))
        .map(str::to_owned)
        .collect();
    let surplus = lines.len().saturating_sub(SHOWN_LOG_LINES);
    lines.drain(..surplus);
    if lines.is_empty() {
        let mut all: Vec<&str> = log
            .lines()
            .filter(|line| !bochs::is_chatter(line))
            .collect();
        if all.is_empty() {
            all = log.lines().collect();
        }
        let from = all.len().saturating_sub(SHOWN_LOG_LINES);
        lines.extend(all.iter().skip(from).map(|line| (*line).to_owned()));
    }
    if lines.is_empty() {
        // It may not have come as far as its log: a missing program, a bad option.
        let output = read_end(&directory.file(RunDirectory::OUTPUT)).unwrap_or_default();
        let all: Vec<&str> = output.lines().collect();
        let from = all.len().saturating_sub(SHOWN_LOG_LINES);
        lines.extend(all.iter().skip(from).map(|line| (*line).to_owned()));
    }
    lines
}

fn read_end(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(SEARCHED_LOG_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
