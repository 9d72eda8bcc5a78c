//! The other end of the line: a socket in a directory of its own, and behind it a thread with the real server over the mock machine.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nagaya_vmm::control::{CreateVm, MockBackend, Server, VmRow};
use serde_json::Value;

/// A machine with a control port.
pub(crate) struct Machine {
    backend: Arc<Mutex<MockBackend>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

/// What the line does to what it carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Clean,
    Noisy,
    Lossy,
    Silent,
}

/// What a program did.
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) is_success: bool,
}

/// A program that runs.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn finish(mut self) -> Output {
        // A test that hangs says nothing of why.
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.0.try_wait().expect("a child").is_none() {
            if Instant::now() > deadline {
                self.0.kill().expect("a child");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = self.0.wait_with_output().expect("a child");
        Output {
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
            is_success: output.status.success(),
        }
    }
}

/// Starts the program.
fn spawn(arguments: &[&str], input: &[u8]) -> Running {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nagayactl"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nagayactl starts");
    // Dropped at once: its end is the end of the input. A program that reads none may be over already.
    let _ = child.stdin.take().expect("piped").write_all(input);
    Running(child)
}

/// Runs the program to its end.
pub(crate) fn nagayactl(arguments: &[&str], input: &[u8]) -> Output {
    spawn(arguments, input).finish()
}

impl Machine {
    /// A machine that answers.
    pub(crate) fn start() -> Machine {
        Machine::new(Line::Clean)
    }

    /// One whose line says things of its own, before the first answer and after each.
    pub(crate) fn start_with_noise() -> Machine {
        Machine::new(Line::Noisy)
    }

    /// One that never says anything.
    pub(crate) fn silent() -> Machine {
        Machine::new(Line::Silent)
    }

    /// One whose line damages the first request and the second answer of each client.
    pub(crate) fn start_with_losses() -> Machine {
        Machine::new(Line::Lossy)
    }

    fn new(line: Line) -> Machine {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("control.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        let backend = Arc::new(Mutex::new(MockBackend::new()));
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (backend, over) = (backend.clone(), over.clone());
            move || serve(&listener, line, &backend, &over)
        });
        Machine {
            backend,
            over,
            thread: Some(thread),
            socket,
            _directory: directory,
        }
    }

    /// Does something to the machine behind the server's back.
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut MockBackend) -> R) -> R {
        change(&mut self.backend.lock().expect("no test panicked with it"))
    }

    /// Makes a VM behind the server's back.
    pub(crate) fn create(&self, vm: &CreateVm) {
        self.with(|backend| backend.add(vm));
    }

    pub(crate) fn vm(&self, vm: u32) -> VmRow {
        self.with(|backend| backend.vms.get(&vm).cloned())
            .expect("the VM is there")
    }

    /// Waits for the machine to come to a state.
    pub(crate) fn until(&self, what: &str, reached: impl Fn(&MockBackend) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.with(|backend| reached(backend)) {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The path of its control port.
    pub(crate) fn socket(&self) -> &str {
        self.socket.to_str().expect("UTF-8")
    }

    pub(crate) fn spawn(&self, arguments: &[&str], input: &[u8]) -> Running {
        let mut all = vec!["--connect", self.socket()];
        all.extend(arguments);
        spawn(&all, input)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.spawn(arguments, b"").finish()
    }

    /// What it writes, if it succeeds.
    pub(crate) fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.is_success, "{arguments:?}: {}", output.stderr);
        assert_eq!(output.stderr, "", "{arguments:?}");
        output.stdout
    }

    pub(crate) fn fails(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert!(!output.is_success, "{arguments:?}: {}", output.stdout);
        output
    }

    /// What it writes with `--json`.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let text = self.succeeds(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        // The mock panics at what a server must not ask.
        if !std::thread::panicking() {
            assert!(
                matches!(ended, Some(Ok(()))),
                "the server's thread panicked"
            );
        }
    }
}

/// One client at a time, as on a serial line; the server lives on when one goes.
fn serve(listener: &UnixListener, line: Line, backend: &Mutex<MockBackend>, over: &AtomicBool) {
    let noise: &[u8] = match line {
        Line::Noisy => b"\0login: \xFF\0Ng\0",
        Line::Clean | Line::Lossy | Line::Silent => b"",
    };
    let mut server = Server::new();
    let mut client: Option<UnixStream> = None;
    // Of the client there is: pieces that came, answers that went.
    let (mut pieces, mut answers) = (0, 0);
    let mut waiting: Vec<u8> = Vec::new();
    while !over.load(Ordering::SeqCst) {
        if client.is_none()
            && let Ok((mut stream, _)) = listener.accept()
        {
            stream.set_nonblocking(true).expect("a socket");
            let _ = stream.write_all(noise);
            client = Some(stream);
            (pieces, answers) = (0, 0);
        }
        let mut buffer = [0; 1000];
        match client.as_mut().map(|stream| stream.read(&mut buffer)) {
            Some(Ok(0)) => client = None,
            Some(Ok(length)) => {
                if line == Line::Lossy && pieces == 0 {
                    buffer[3] ^= 4;
                }
                pieces += 1;
                waiting.extend(&buffer[..length]);
            }
            Some(Err(error)) if error.kind() != ErrorKind::WouldBlock => client = None,
            Some(Err(_)) | None => std::thread::sleep(Duration::from_millis(1)),
        }
        if line == Line::Silent {
            waiting.clear();
            continue;
        }
        let taken = server.poll(
            &mut *backend.lock().expect("no test panicked with it"),
            &waiting,
        );
        waiting.drain(..taken);
        // A UART's FIFO at a time.
        let mut fifo = server.output().to_vec();
        fifo.truncate(16);
        if fifo.is_empty() {
            continue;
        }
        if line == Line::Lossy
            && answers == 1
            && let Some(byte) = fifo.get_mut(3)
        {
            *byte ^= 4;
        }
        if let Some(stream) = client.as_mut() {
            let _ = stream.write_all(&fifo);
        }
        server.consume_output(fifo.len());
        if server.output().is_empty() {
            answers += 1;
            // Between frames only: inside one it would spoil the answer.
            if let Some(stream) = client.as_mut() {
                let _ = stream.write_all(noise);
            }
        }
    }
}
