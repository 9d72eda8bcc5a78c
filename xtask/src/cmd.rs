//! The one way to run an external command. With `-v` each is printed as it could be typed into a shell.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

/// Set once by `main`, before any thread starts.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Says whether commands are printed.
pub(crate) fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// Whether `-v` was given.
pub(crate) fn verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

/// A command that is to be run.
pub(crate) struct Cmd {
    program: OsString,
    arguments: Vec<OsString>,
    /// A value of `None` takes the variable away.
    environment: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
}

impl Cmd {
    /// A command without arguments that inherits environment and folder.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
        }
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().into()),
        );
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().into(), Some(value.as_ref().into())));
        self
    }

    /// Takes an environment variable away.
    pub(crate) fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), None));
        self
    }

    /// Runs it in this folder.
    pub(crate) fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().into());
        self
    }

    /// The command for `std`, after it was printed if `-v` asks for that. For callers that need pipes or process groups.
    pub(crate) fn into_std(self) -> Command {
        if verbose() {
            note!("+ {self}");
        }
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Runs it to its end with our terminal and gives its status.
    pub(crate) fn status(self) -> Result<ExitStatus> {
        let text = self.to_string();
        self.into_std()
            .status()
            .with_context(|| format!("cannot start `{text}`"))
    }

    /// Runs it to its end with our terminal; a status other than 0 is an error.
    pub(crate) fn run(self) -> Result<()> {
        let text = self.to_string();
        let status = self.status()?;
        if !status.success() {
            bail!("`{text}` failed: {status}");
        }
        Ok(())
    }

    /// Runs it to its end and gives what it wrote to its standard output; a status other than 0 is an error that shows its
    /// standard error.
    pub(crate) fn read(self) -> Result<String> {
        let text = self.to_string();
        let output = self
            .into_std()
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{text}`"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{text}` failed: {}\n{}", output.status, said.trim_end());
        }
        String::from_utf8(output.stdout)
            .with_context(|| format!("`{text}` wrote something that is not UTF-8"))
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(directory) = &self.directory {
            write!(f, "cd {} && ", quote(directory.as_os_str()))?;
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => write!(f, "{}={} ", name.to_string_lossy(), quote(value))?,
                None => write!(f, "{}= ", name.to_string_lossy())?,
            }
        }
        write!(f, "{}", quote(&self.program))?;
        self.arguments
            .iter()
            .try_for_each(|argument| write!(f, " {}", quote(argument)))
    }
}

/// The word as a POSIX shell reads it back.
fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_is_what_a_shell_would_run() {
        let command = Cmd::new("echo")
            .arg("two words")
            .arg("it's")
            .arg("")
            .env("A", "b c")
            .directory("/tmp");
        assert_eq!(
            command.to_string(),
            r"cd /tmp && A='b c' echo 'two words' 'it'\''s' ''"
        );
        let said = Cmd::new("sh")
            .args(["-c", &command.to_string()])
            .read()
            .expect("sh runs");
        assert_eq!(said, "two words it's \n");
    }

    #[test]
    fn a_failed_command_is_an_error_that_shows_what_it_said() {
        let error = Cmd::new("sh")
            .args(["-c", "echo oh no >&2; exit 3"])
            .read()
            .expect_err("status 3 is a failure");
        let error = format!("{error:#}");
        assert!(
            error.contains("oh no") && error.contains("exit status: 3"),
            "{error}"
        );
    }
}
