//! An operator at the control port of a machine under test.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Runs `nagayactl` against one machine.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The program, with the arguments that come before the verb.
    pub program: Vec<String>,
    /// The machine's socket.
    pub socket: PathBuf,
    /// The guests' programs with their symbols.
    pub symbols: PathBuf,
    /// Take all the time there is: what CI does a few times is done a thousand times.
    pub full: bool,
}

impl Operator {
    /// What the command printed.
    ///
    /// # Errors
    /// What it complained of.
    pub(crate) fn text(&self, arguments: &[&str]) -> Result<String, String> {
        let (program, first) = self.program.split_first().ok_or("no program")?;
        let output = Command::new(program)
            .args(first)
            .arg("--connect")
            .arg(&self.socket)
            .args(["--timeout", "60"])
            .args(arguments)
            .output()
            .map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ))
        }
    }

    /// Does something that must work.
    pub(crate) fn must(&self, arguments: &[&str]) -> Result<(), String> {
        self.text(arguments)
            .map(drop)
            .map_err(|error| format!("{arguments:?}: {error}"))
    }

    /// Does something that must be refused, in words that contain these.
    pub(crate) fn refused(&self, arguments: &[&str], words: &str) -> Result<(), String> {
        match self.text(arguments) {
            Ok(_) => Err(format!("{arguments:?} is not refused")),
            Err(error) if error.contains(words) => Ok(()),
            Err(error) => Err(format!(
                "{arguments:?} is refused without {words:?}: {error}"
            )),
        }
    }

    /// Ends the machine if it still listens: after a script that failed nobody else would before the time is out.
    pub fn end_machine(&self) {
        let _ = self.text(&["shutdown"]);
    }

    /// The answer as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let text = self.text(&all)?;
        serde_json::from_str(&text).map_err(|error| format!("{arguments:?}: {error} in {text}"))
    }

    /// The row of a VM in `ps`.
    pub(crate) fn vm(&self, name: &str) -> Result<Value, String> {
        let rows = self.json(&["ps", "-a"])?;
        rows.as_array()
            .into_iter()
            .flatten()
            // One that has ended may have had the same name.
            .rfind(|row| row["name"] == name)
            .cloned()
            .ok_or_else(|| format!("ps does not list {name}: {rows}"))
    }

    /// Waits until the machine listens, which it does when it has read its boot archive: with a Linux kernel in it that takes
    /// longer than an answer ever does.
    pub(crate) fn await_machine(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.text(&["info"]) {
                Ok(_) => return Ok(()),
                Err(error) if error.contains("no answer") && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until a VM is in a state.
    pub(crate) fn await_state(&self, name: &str, state: &str) -> Result<Value, String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let row = self.vm(name)?;
            if row["state"] == state {
                return Ok(row);
            }
            if Instant::now() > deadline {
                return Err(format!("{name} is not {state} after a minute: {row}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Talks with a VM by its console: waits for each first part, then types the second.
    pub(crate) fn converse(&self, vm: &str, steps: &[(&str, &str)]) -> Result<(), String> {
        let (program, first) = self.program.split_first().ok_or("no program")?;
        let mut console = Command::new(program)
            .args(first)
            .arg("--connect")
            .arg(&self.socket)
            .args(["--timeout", "60", "console", vm])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let (stdin, stdout) = (console.stdin.take(), console.stdout.take());
        let said = stdin
            .zip(stdout)
            .ok_or("no pipes".to_owned())
            .and_then(|(stdin, stdout)| talk(stdin, stdout, steps));
        let _ = console.kill();
        let _ = console.wait();
        said
    }

    /// Sends bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), String> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|error| error.to_string())?;
        stream.write_all(bytes).map_err(|error| error.to_string())
    }
}

/// How long a VM may take to say what is waited for: it may have to boot first. When the machine has ended nobody waits.
const PATIENCE: Duration = Duration::from_secs(600);

fn talk(
    mut stdin: ChildStdin,
    mut stdout: ChildStdout,
    steps: &[(&str, &str)],
) -> Result<(), String> {
    let (sender, receiver) = mpsc::channel();
    // It ends with the console.
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut bytes) {
            let heard = bytes.get(..length).unwrap_or_default().to_vec();
            if sender.send(heard).is_err() {
                return;
            }
        }
    });
    let (mut said, mut seen) = (String::new(), 0);
    for (awaited, typed) in steps {
        let deadline = Instant::now() + PATIENCE;
        while !said.get(seen..).unwrap_or_default().contains(awaited) {
            let left = deadline.saturating_duration_since(Instant::now());
            let heard = receiver
                .recv_timeout(left)
                .map_err(|_| format!("no {awaited:?} came on the console, but: {said}"))?;
            said.push_str(&String::from_utf8_lossy(&heard));
        }
        seen = said.len();
        stdin
            .write_all(typed.as_bytes())
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}
