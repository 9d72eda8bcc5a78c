//! The other end of the machine's control port: a Unix socket in the run's directory.
//!
//! Bochs connects to a TCP port of ours as soon as it starts; clients connect to the socket, one at a time, and are passed
//! through. While there is no client what the machine says is thrown away, so that it never waits for one. A client that takes nothing
//! is given up; one that is silent, or floods, makes room for another that waits.
//!
//! Concurrency: one thread for each run, which ends with the emulator's connection or when the bridge is dropped.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Name of the socket in the run's directory.
pub const SOCKET: &str = "control.sock";
/// How long the thread sleeps when nothing moves.
const NAP: Duration = Duration::from_millis(2);

/// A bridge. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Bridge {
    port: u16,
    socket: PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bridge {
    /// Opens both ends in that directory.
    pub(crate) fn open(directory: &Path) -> io::Result<Bridge> {
        let machine = TcpListener::bind(("127.0.0.1", 0))?;
        machine.set_nonblocking(true)?;
        let port = machine.local_addr()?.port();
        let socket = directory.join(SOCKET);
        let clients = UnixListener::bind(&socket)?;
        clients.set_nonblocking(true)?;
        let over = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            // A connection that breaks is the end of the machine or of a client: nothing to report.
            let _ = pass(&machine, &clients, &watched);
        });
        Ok(Bridge {
            port,
            socket,
            over,
            thread: Some(thread),
        })
    }

    /// The TCP port that the emulator is to connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// How long a client may take no bytes that are for it, before it is given up.
const PATIENCE: Duration = Duration::from_secs(2);
/// A client that has said nothing for so long makes room for one that waits.
const SILENCE: Duration = Duration::from_secs(5);
/// So does one that says more than this in a second: no request is as long.
const FLOOD_BYTES: usize = 64 << 10;

/// The client that has the port.
struct Client {
    stream: UnixStream,
    /// When it said something last.
    last: Instant,
    /// A second that began then, and what it said in it.
    second: Instant,
    bytes: usize,
    floods: bool,
}

impl Client {
    fn new(stream: UnixStream) -> Client {
        let now = Instant::now();
        Client {
            stream,
            last: now,
            second: now,
            bytes: 0,
            floods: false,
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Came {
        let came = receive(&mut self.stream, buffer);
        if let Came::Bytes(bytes) = came {
            self.last = Instant::now();
            if self.second.elapsed() > Duration::from_secs(1) {
                self.second = self.last;
                self.bytes = 0;
            }
            self.bytes += bytes;
            self.floods |= self.bytes > FLOOD_BYTES;
        }
        came
    }

    fn makes_room(&self) -> bool {
        self.floods || self.last.elapsed() > SILENCE
    }
}

/// What one read came to.
enum Came {
    Bytes(usize),
    Nothing,
    End,
}

fn receive(stream: &mut impl Read, buffer: &mut [u8]) -> Came {
    match stream.read(buffer) {
        Ok(0) => Came::End,
        Ok(bytes) => Came::Bytes(bytes),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Came::Nothing
        }
        Err(_) => Came::End,
    }
}

/// Sends all, waiting as long as the other side needs and `patience` lasts; false if it is gone, or takes nothing.
fn send(stream: &mut impl Write, mut bytes: &[u8], patience: Duration, over: &AtomicBool) -> bool {
    let mut since = Instant::now();
    while !bytes.is_empty() && !over.load(Ordering::SeqCst) {
        match stream.write(bytes) {
            Ok(0) => return false,
            Ok(sent) => {
                bytes = &bytes[sent..];
                since = Instant::now();
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                if since.elapsed() > patience {
                    return false;
                }
                std::thread::sleep(NAP);
            }
            Err(_) => return false,
        }
    }
    true
}

fn pass(machine: &TcpListener, clients: &UnixListener, over: &AtomicBool) -> io::Result<()> {
    let mut machine: TcpStream = loop {
        match machine.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if over.load(Ordering::SeqCst) {
            return Ok(());
        }
        std::thread::sleep(NAP);
    };
    machine.set_nonblocking(true)?;
    machine.set_nodelay(true)?;
    let mut client: Option<Client> = None;
    let mut next: Option<UnixStream> = None;
    let mut buffer = [0; 4096];
    while !over.load(Ordering::SeqCst) {
        let mut moved = false;
        if next.is_none()
            && let Ok((stream, _)) = clients.accept()
        {
            stream.set_nonblocking(true)?;
            next = Some(stream);
        }
        // Whoever is silent or floods makes room for one that waits.
        if client.as_ref().is_none_or(Client::makes_room)
            && let Some(stream) = next.take()
        {
            client = Some(Client::new(stream));
        }
        match receive(&mut machine, &mut buffer) {
            Came::Bytes(bytes) => {
                moved = true;
                let is_taken = client.as_mut().is_none_or(|client| {
                    send(&mut client.stream, &buffer[..bytes], PATIENCE, over)
                });
                if !is_taken {
                    client = None;
                }
            }
            Came::Nothing => {}
            Came::End => return Ok(()),
        }
        let came = client
            .as_mut()
            .map_or(Came::Nothing, |client| client.receive(&mut buffer));
        match came {
            Came::Bytes(bytes) => {
                moved = true;
                // The machine takes what it can; it is not given up.
                if !send(&mut machine, &buffer[..bytes], Duration::MAX, over) {
                    return Ok(());
                }
            }
            Came::Nothing => {}
            Came::End => client = None,
        }
        if !moved {
            std::thread::sleep(NAP);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(path: &Path) -> UnixStream {
        let stream = UnixStream::connect(path).expect("the socket is there");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("can be set");
        stream
    }

    #[test]
    fn bytes_pass_both_ways_and_clients_take_turns() {
        let directory = tempfile::tempdir().expect("can be made");
        let bridge = Bridge::open(directory.path()).expect("opens");
        let path = directory.path().join(SOCKET);
        let mut machine = TcpStream::connect(("127.0.0.1", bridge.port())).expect("listens");
        machine
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("can be set");
        let mut buffer = [0; 4];
        for round in 0..2 {
            let mut client = connected(&path);
            client.write_all(b"ping").expect("is taken");
            machine.read_exact(&mut buffer).expect("comes");
            assert_eq!(&buffer, b"ping", "round {round}");
            machine.write_all(b"pong").expect("is taken");
            client.read_exact(&mut buffer).expect("comes");
            assert_eq!(&buffer, b"pong", "round {round}");
        }
        drop(bridge);
        assert!(!path.exists(), "the socket goes with the bridge");
    }

    #[test]
    fn one_that_floods_or_stops_shuts_nobody_out() {
        let directory = tempfile::tempdir().expect("can be made");
        let bridge = Bridge::open(directory.path()).expect("opens");
        let path = directory.path().join(SOCKET);
        let mut machine = TcpStream::connect(("127.0.0.1", bridge.port())).expect("listens");
        let mut reader = machine.try_clone().expect("can be cloned");
        // It swallows the flood, and answers whoever says `!`.
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(bytes @ 1..) = reader.read(&mut buffer) {
                if buffer[..bytes].contains(&b'!') {
                    return;
                }
            }
        });
        let mut flood = connected(&path);
        flood
            .set_write_timeout(Some(Duration::from_secs(1)))
            .expect("can be set");
        for _ in 0..64 {
            if flood.write_all(&[7; 4096]).is_err() {
                break;
            }
        }
        // This one stops: it sends nothing and takes nothing.
        let stopped = connected(&path);
        let mut honest = connected(&path);
        honest.write_all(b"!").expect("is taken");
        echo.join().expect("the honest one was heard");
        machine.write_all(b"pong").expect("is taken");
        let mut buffer = [0; 4];
        honest.read_exact(&mut buffer).expect("comes");
        assert_eq!(&buffer, b"pong");
        drop((flood, stopped));
    }

    #[test]
    fn a_machine_without_clients_never_waits() {
        let directory = tempfile::tempdir().expect("can be made");
        let bridge = Bridge::open(directory.path()).expect("opens");
        let mut machine = TcpStream::connect(("127.0.0.1", bridge.port())).expect("listens");
        machine
            .set_write_timeout(Some(Duration::from_secs(20)))
            .expect("can be set");
        machine
            .write_all(&vec![7; 8 << 20])
            .expect("all of it is taken and thrown away");
    }
}
