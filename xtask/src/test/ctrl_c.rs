//! Ctrl-C while a machine runs: this program's own `run` is started, interrupted as a terminal does it, and looked after.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nagaya_harness::interrupt;
use rustix::process::{Pid, Signal, kill_process};

use crate::paths;

/// How long the run may take to end after the signal.
const PATIENCE: Duration = Duration::from_secs(20);

/// Interrupts a run once its machine prints, and looks for what is left of it.
///
/// # Errors
/// What was left or went wrong.
pub(crate) fn check() -> Result<(), String> {
    let program = paths::this_program().map_err(|error| format!("{error}"))?;
    let before = run_directories();
    let mut child = Command::new(program)
        .args(["run", "pingpong"])
        .current_dir(paths::root())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("`run` does not start: {error}"))?;
    let pid = Pid::from_child(&child);
    // A thread reads on, so that the child never waits for us.
    let (first, printed) = std::sync::mpsc::channel();
    let output = child.stdout.take();
    std::thread::spawn(move || {
        for line in output
            .into_iter()
            .flat_map(|output| BufReader::new(output).lines())
        {
            if line.is_ok_and(|line| line.contains("at your service")) {
                let _ = first.send(());
            }
        }
    });
    let booted = printed.recv_timeout(Duration::from_secs(300)).is_ok();
    kill_process(pid, Signal::INT).map_err(|error| format!("no signal can be sent: {error}"))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("`run` goes on {PATIENCE:?} after Ctrl-C"));
            }
        }
    };
    if !booted {
        return Err("the machine printed nothing".to_owned());
    }
    if status.code() != Some(i32::from(interrupt::EXIT_STATUS)) {
        return Err(format!(
            "`run` ended with {status}, not with {}",
            interrupt::EXIT_STATUS
        ));
    }
    let new: Vec<PathBuf> = run_directories()
        .into_iter()
        .filter(|directory| !before.contains(directory))
        .collect();
    if new.is_empty() {
        return Err("`run` left no logs".to_owned());
    }
    for directory in &new {
        nothing_is_left(directory)?;
    }
    Ok(())
}

fn run_directories() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(paths::target().join("runs")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("pingpong-"))
        })
        .collect()
}

/// No lock file, and no process that names the directory or works in it.
fn nothing_is_left(directory: &Path) -> Result<(), String> {
    let files = std::fs::read_dir(directory).map_err(|error| format!("{error}"))?;
    for file in files.filter_map(Result::ok) {
        if file
            .path()
            .extension()
            .is_some_and(|extension| extension == "lock")
        {
            return Err(format!("{} was left", file.path().display()));
        }
    }
    let processes = std::fs::read_dir("/proc").map_err(|error| format!("{error}"))?;
    let name = directory.to_string_lossy().into_owned();
    for process in processes.filter_map(Result::ok) {
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let works_there =
            std::fs::read_link(process.path().join("cwd")).is_ok_and(|folder| folder == directory);
        if works_there || String::from_utf8_lossy(&arguments).contains(&name) {
            return Err(format!(
                "process {} was left: {}",
                process.file_name().display(),
                String::from_utf8_lossy(&arguments).replace('\0', " ")
            ));
        }
    }
    Ok(())
}
