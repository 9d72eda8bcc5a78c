//! Long steps say that they go on, and how long they took.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;

/// How long a step may be silent.
const SILENCE: Duration = Duration::from_secs(15);

/// Runs a command that takes long the first time. What it writes to its standard error is shown line by line, but for lines
/// that `is_noise`; when it has nothing to say for a while, one line says that `what` goes on. A command that has nothing
/// to do is silent.
pub(crate) fn run(what: &str, command: Cmd, is_noise: fn(&str) -> bool) -> Result<()> {
    let text = command.to_string();
    let started = Instant::now();
    let mut child = command
        .into_std()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{text}`"))?;
    let stderr = child
        .stderr
        .take()
        .context("a child without standard error")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(stderr)
            .split(b'\n')
            .map_while(std::io::Result::ok)
        {
            // Nobody listens any more only if the other thread is gone, and then nothing is to be told.
            let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
        }
    });
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) if is_noise(&line) => {}
            Ok(line) => note!("{line}"),
            Err(RecvTimeoutError::Timeout) => {
                note!("    ... {what}: {} s so far", started.elapsed().as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = reader.join();
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for `{text}`"))?;
    if !status.success() {
        // The command is long, and what it said stands right above; `-v` has shown it.
        bail!("{what} failed: {status}");
    }
    let _ = std::io::stderr().flush();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_an_error_that_names_the_step() {
        let command = Cmd::new("sh").args(["-c", "exit 7"]);
        let error = run("sleeping badly", command, |_| false).expect_err("7 is a failure");
        let error = error.to_string();
        assert!(
            error.contains("sleeping badly") && error.contains("exit status: 7"),
            "{error}"
        );
    }
}
