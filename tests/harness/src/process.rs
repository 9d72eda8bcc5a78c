//! An emulator's process: started in a process group of its own, ended by that group's id, never left behind.
//!
//! Three nets keep it from outliving us: [`Emulator`] ends the group when it is dropped; the terminal's Ctrl-C goes to us
//! alone and we end the group; and the kernel kills the emulator when the thread that started it is gone
//! (`PR_SET_PDEATHSIG`, set by util-linux's `setpriv`, which then becomes the emulator).

use crate::run_directory::RunDirectory;
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// util-linux, on every Debian machine.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A running emulator. Belongs to the thread that started it.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    status: Option<ExitStatus>,
}

impl Emulator {
    /// Starts `program` in `directory`, with nothing to read and its output in [`RunDirectory::OUTPUT`].
    ///
    /// # Errors
    /// The program is not there or cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        program: &str,
        arguments: &[A],
        environment: &[(&str, &str)],
        directory: &Path,
    ) -> io::Result<Emulator> {
        let output = File::create(directory.join(RunDirectory::OUTPUT))?;
        let mut command = if Path::new(SETPRIV).exists() {
            let mut command = Command::new(SETPRIV);
            command.args(["--pdeathsig", "KILL", "--", program]);
            command
        } else {
            Command::new(program)
        };
        let child = command
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        Ok(Emulator {
            child,
            status: None,
        })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system's.
    pub fn poll(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Ends it and everything it started, and waits until it is gone.
    pub fn end(&mut self) {
        if self.status.is_some() {
            return;
        }
        // It is not reaped yet (`status` is empty), so its id is still its own and not another process's.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.status = self.child.wait().ok();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn pid_of_grandchild(directory: &Path) -> Pid {
        let path = directory.join(RunDirectory::OUTPUT);
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if let Some(line) = text.lines().next().filter(|_| text.ends_with('\n')) {
                let raw = line.parse().expect("a number");
                return Pid::from_raw(raw).expect("a process id");
            }
            assert!(start.elapsed() < Duration::from_secs(10), "no output");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_alive(pid: Pid) -> bool {
        // A killed process that its new parent has not reaped yet is a zombie: gone, for us.
        std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn dropping_an_emulator_ends_it_and_what_it_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = "sleep 600 & echo $!; wait";
        let emulator = Emulator::start("sh", &["-c", script], &[], directory.path()).expect("sh");
        let grandchild = pid_of_grandchild(directory.path());
        assert!(is_alive(grandchild));
        drop(emulator);
        let start = Instant::now();
        while is_alive(grandchild) {
            assert!(start.elapsed() < Duration::from_secs(10), "it lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_emulator_dies_with_the_thread_that_started_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        let starter = std::thread::spawn(move || {
            let script = "echo $$; exec sleep 600";
            let emulator = Emulator::start("sh", &["-c", script], &[], &path).expect("sh");
            let pid = pid_of_grandchild(&path);
            // Neither dropped nor waited for: what a killed xtask would leave behind.
            std::mem::forget(emulator);
            pid
        });
        let pid = starter.join().expect("the thread ends");
        let start = Instant::now();
        while is_alive(pid) {
            assert!(start.elapsed() < Duration::from_secs(10), "it lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_absent_program_is_an_error_or_a_failed_exit() {
        let directory = tempfile::tempdir().expect("a directory");
        let none: [&str; 0] = [];
        match Emulator::start("no-such-emulator", &none, &[], directory.path()) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
            Ok(mut emulator) => loop {
                if let Some(status) = emulator.poll().expect("wait") {
                    assert!(!status.success());
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            },
        }
    }
}
