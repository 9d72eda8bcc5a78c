//! The connection: where the control port is, and bytes over it with a time limit.
//!
//! A socket and a serial line are both a file descriptor that does not block, so that one wait by `poll(2)` serves all, alone
//! or together with the keyboard.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::termios::{self, ControlModes, OptionalActions};

use crate::paths;

/// Name of the socket in the directory of a run.
const SOCKET: &str = "control.sock";

/// An open connection.
pub(super) struct Link {
    fd: OwnedFd,
    name: String,
}

impl Link {
    /// Opens the port that `--connect` names, or finds one.
    pub(super) fn open(wanted: Option<&str>, baud: u32, timeout: Duration) -> Result<Link> {
        match wanted {
            None => newest_run(&paths::target().join("runs")),
            Some(port) => named(port, baud, timeout),
        }
    }

    pub(super) fn from_fd(fd: OwnedFd, name: String) -> io::Result<Link> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Link { fd, name })
    }

    /// What it is connected to, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reads what is there, and waits for it until `deadline`; `None` if nothing came.
    pub(super) fn read(&self, buffer: &mut [u8], deadline: Instant) -> Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(0) => bail!("{} was closed: the machine has ended", self.name),
                Ok(bytes) => return Ok(Some(bytes)),
                Err(rustix::io::Errno::AGAIN) => {
                    if !wait(&[(self.fd.as_fd(), PollFlags::IN)], deadline)?[0] {
                        return Ok(None);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(io::Error::from(error)).with_context(|| self.name.clone());
                }
            }
        }
    }

    /// Writes all of it, until `deadline`.
    pub(super) fn write(&self, mut bytes: &[u8], deadline: Instant) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::AGAIN) => {
                    if !wait(&[(self.fd.as_fd(), PollFlags::OUT)], deadline)?[0] {
                        bail!("{} takes no bytes: is the machine running?", self.name);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::PIPE) => {
                    bail!("{} was closed: the machine has ended", self.name)
                }
                Err(error) => {
                    return Err(io::Error::from(error)).with_context(|| self.name.clone());
                }
            }
        }
        Ok(())
    }

    /// Waits until there is something to read here or on the other descriptor, until `deadline`; says which.
    pub(super) fn wait_with(
        &self,
        other: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<(bool, bool)> {
        let mut waited = vec![(self.fd.as_fd(), PollFlags::IN)];
        waited.extend(other.map(|other| (other, PollFlags::IN)));
        let ready = wait(&waited, deadline)?;
        Ok((ready[0], ready.get(1).copied().unwrap_or(false)))
    }
}

/// Waits for any of the descriptors; a hang-up counts as ready, so that the read or write behind it says what it is. Ends
/// early, with nothing, when a signal comes.
fn wait(wanted: &[(BorrowedFd<'_>, PollFlags)], deadline: Instant) -> Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = wanted
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).context("the time limit is too long")?;
    match poll(&mut fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(io::Error::from(error)).context("cannot wait"),
    }
    Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

fn named(port: &str, baud: u32, timeout: Duration) -> Result<Link> {
    if let Some(address) = port.strip_prefix("tcp:") {
        return tcp(port, address, timeout);
    }
    let path = Path::new(port);
    let kind = fs::metadata(path)
        .with_context(|| {
            format!(
                "{port}: give a socket's path, tcp:HOST:PORT, or a serial line such as /dev/ttyS0"
            )
        })?
        .file_type();
    if kind.is_socket() {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {port}: is its machine still running?"))?;
        return Ok(Link::from_fd(stream.into(), port.into())?);
    }
    if kind.is_char_device() {
        return serial(path, baud);
    }
    bail!("{port} is neither a socket nor a serial line")
}

fn tcp(port: &str, address: &str, timeout: Duration) -> Result<Link> {
    let addresses = address
        .to_socket_addrs()
        .with_context(|| format!("{port}: write tcp:HOST:PORT, such as tcp:localhost:4555"))?;
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(Link::from_fd(stream.into(), port.into())?);
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) => Err(error)
            .with_context(|| format!("cannot connect to {port}: does anything listen there?")),
        None => bail!("{port}: no such host"),
    }
}

/// A serial line: 8 data bits, no parity, 1 stop bit, no flow control, nothing interpreted.
fn serial(path: &Path, baud: u32) -> Result<Link> {
    let name = path.display().to_string();
    let line: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .with_context(|| format!("cannot open {name}: may this user use it, and is it free?"))?;
    let mut settings = termios::tcgetattr(&line)
        .map_err(io::Error::from)
        .with_context(|| format!("{name} is no serial line"))?;
    settings.make_raw();
    settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD | ControlModes::CS8;
    settings.control_modes -= ControlModes::CRTSCTS | ControlModes::CSTOPB | ControlModes::PARENB;
    settings
        .set_speed(baud)
        .map_err(io::Error::from)
        .with_context(|| format!("{name} has no speed of {baud}"))?;
    termios::tcsetattr(&line, OptionalActions::Now, &settings)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot set up {name}"))?;
    Ok(Link::from_fd(line.into(), name)?)
}

/// The newest socket below `runs` that somebody listens at.
fn newest_run(runs: &Path) -> Result<Link> {
    for path in sockets(runs) {
        // What a run that is over has left refuses.
        if let Ok(stream) = UnixStream::connect(&path) {
            return Ok(Link::from_fd(stream.into(), path.display().to_string())?);
        }
    }
    bail!(
        "no running machine has a control port: start one by `cargo xtask run SCENARIO` (one that is \
         `deterministic` opens the port only with `control = true` under [machine]), or name a port by --connect"
    )
}

/// The sockets below `runs`, the newest first.
fn sockets(runs: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(SystemTime, PathBuf)> = fs::read_dir(runs)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path().join(SOCKET);
            Some((fs::metadata(&path).ok()?.modified().ok()?, path))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_newest_run_that_still_listens_is_found() {
        let runs = tempfile::tempdir().expect("a directory");
        let mut listeners = vec![];
        for name in ["old", "new", "over"] {
            let directory = runs.path().join(name);
            fs::create_dir(&directory).expect("create");
            listeners.push(UnixListener::bind(directory.join(SOCKET)).expect("bind"));
            // Times of files are as coarse as the kernel's tick.
            std::thread::sleep(Duration::from_millis(20));
        }
        listeners.pop();
        let link = newest_run(runs.path()).expect("a run");
        assert!(link.name().ends_with("new/control.sock"), "{}", link.name());
        drop(listeners);
        let error = newest_run(runs.path()).err().expect("none listens");
        assert!(error.to_string().contains("cargo xtask run"), "{error}");
    }

    #[test]
    fn a_port_that_cannot_be_says_what_would_be_right() {
        let second = Duration::from_secs(1);
        for (port, expected) in [
            ("/nowhere/at/all", "tcp:HOST:PORT"),
            ("/dev/null", "no serial line"),
            ("/tmp", "neither a socket nor a serial line"),
            ("tcp:localhost", "tcp:HOST:PORT"),
            ("tcp:127.0.0.1:1", "does anything listen there?"),
        ] {
            let error = named(port, 115_200, second).err().expect("refused");
            assert!(format!("{error:#}").contains(expected), "{port}: {error:#}");
        }
    }

    #[test]
    fn a_serial_line_carries_every_byte_as_it_is() {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let pty = match rustix::pty::openpt(flags) {
            Ok(pty) => pty,
            // A bare chroot without devpts has none: there is nothing to try it on.
            Err(rustix::io::Errno::NODEV | rustix::io::Errno::NOENT) => {
                crate::note!("not tried: this machine has no pseudo-terminals (devpts)");
                return;
            }
            Err(error) => panic!("a pseudo-terminal: {error}"),
        };
        rustix::pty::unlockpt(&pty).expect("unlock");
        let name = rustix::pty::ptsname(&pty, Vec::new()).expect("its name");
        let link = named(
            name.to_str().expect("ASCII"),
            115_200,
            Duration::from_secs(1),
        )
        .expect("opens");
        let all: Vec<u8> = (0..=255).collect();
        let soon = || Instant::now() + Duration::from_secs(5);
        link.write(&all, soon()).expect("write");
        let mut heard = vec![0; 256];
        let mut length = 0;
        while length < 256 {
            length += rustix::io::read(&pty, &mut heard[length..]).expect("read");
        }
        assert_eq!(heard, all);
        rustix::io::write(&pty, &all).expect("write");
        let mut length = 0;
        while length < 256 {
            length += link
                .read(&mut heard[length..], soon())
                .expect("read")
                .expect("bytes");
        }
        assert_eq!(heard, all);
    }

    #[test]
    fn a_wait_ends_when_it_shall() {
        let (here, _there) = UnixStream::pair().expect("a pair");
        let link = Link::from_fd(here.into(), "pair".into()).expect("a link");
        let start = Instant::now();
        let read = link
            .read(&mut [0; 8], start + Duration::from_millis(50))
            .expect("no error");
        assert_eq!(read, None);
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
}
