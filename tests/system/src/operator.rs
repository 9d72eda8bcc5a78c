//! An operator at the control port of a machine under test.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Runs `nagayactl` against one machine.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The program, with the arguments that come before the verb.
    pub program: Vec<String>,
    /// The machine's socket.
    pub socket: PathBuf,
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

    /// Sends bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), String> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|error| error.to_string())?;
        stream.write_all(bytes).map_err(|error| error.to_string())
    }
}
