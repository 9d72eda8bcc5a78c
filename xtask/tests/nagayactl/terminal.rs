//! `nagayactl` on a terminal: what it shows there, and that it gives the terminal back as it was.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::Machine;
use nagaya_vmm::control::CreateVm;
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// A terminal and the program on it.
struct Terminal {
    master: File,
    /// Kept open, so that the settings outlive the program.
    slave: File,
    child: Child,
    shown: String,
}

impl Terminal {
    /// `None` on a machine without pseudo-terminals, such as a bare chroot without devpts: there is nothing to try it on.
    fn start(machine: &Machine, arguments: &[&str]) -> Option<Terminal> {
        let master = match openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) {
            Ok(master) => master,
            Err(Errno::NODEV | Errno::NOENT) => {
                eprintln!("not tried: this machine has no pseudo-terminals (devpts)");
                return None;
            }
            Err(error) => panic!("a pseudo-terminal: {error}"),
        };
        grantpt(&master).expect("grant");
        unlockpt(&master).expect("unlock");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name.to_str().expect("ASCII"))
            .expect("opens");
        let size = rustix::termios::Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&slave, size).expect("a size");
        rustix::io::ioctl_fionbio(&master, true).expect("does not block");
        let side = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let child = Command::new(env!("CARGO_BIN_EXE_nagayactl"))
            .args(["--connect", machine.socket()])
            .args(arguments)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("nagayactl starts");
        Some(Terminal {
            master: master.into(),
            slave,
            child,
            shown: String::new(),
        })
    }

    fn look(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.master.read(&mut buffer) {
            self.shown += &String::from_utf8_lossy(&buffer[..length]);
        }
    }

    /// Waits until that has been shown.
    fn until(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.shown.contains(text) {
            self.look();
            assert!(
                Instant::now() < deadline,
                "never {text:?}: {:?}",
                self.shown
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("a terminal");
    }

    fn is_raw(&self) -> bool {
        let settings = tcgetattr(&self.slave).expect("a terminal");
        !settings
            .local_modes
            .contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits for the program's end; gives everything that was shown.
    fn end(mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.look();
            if let Some(status) = self.child.try_wait().expect("a child") {
                self.look();
                assert!(status.success(), "{status}: {:?}", self.shown);
                assert!(!self.is_raw(), "the terminal is left raw");
                return std::mem::take(&mut self.shown);
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {:?}",
                self.shown
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It is over already unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ENTER_SCREEN: &str = "\x1b[?1049h";
const LEAVE_SCREEN: &str = "\x1b[?1049l";
const SHOW_CURSOR: &str = "\x1b[?25h";

#[test]
fn top_ends_by_q_and_by_control_c_and_gives_the_terminal_back() {
    let machine = Machine::start();
    machine.create(&CreateVm::new("pi-0", "pi"));
    for key in [b'q', 3] {
        let Some(mut terminal) = Terminal::start(&machine, &["top"]) else {
            return;
        };
        terminal.until("pi-0");
        assert!(terminal.is_raw());
        assert!(
            terminal.shown.contains(ENTER_SCREEN),
            "{:?}",
            terminal.shown
        );
        terminal.press(&[key]);
        let shown = terminal.end();
        let (_, after) = shown.split_once(LEAVE_SCREEN).expect("the screen is left");
        assert!(after.contains(SHOW_CURSOR), "{after:?}");
    }
}

#[test]
fn top_gives_the_terminal_back_when_the_machine_ends() {
    let machine = Machine::start();
    machine.create(&CreateVm::new("pi-0", "pi"));
    let Some(mut terminal) = Terminal::start(&machine, &["top", "-i", "0.1"]) else {
        return;
    };
    terminal.until("pi-0");
    drop(machine);
    let deadline = Instant::now() + Duration::from_secs(20);
    while terminal.child.try_wait().expect("a child").is_none() {
        terminal.look();
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    terminal.until("the machine has ended");
    assert!(!terminal.is_raw());
    let (_, after) = terminal
        .shown
        .split_once(LEAVE_SCREEN)
        .expect("the screen is left");
    assert!(after.contains("error: "), "{after:?}");
}

#[test]
fn a_console_passes_every_key_on_but_the_one_that_detaches() {
    let machine = Machine::start();
    machine.create(&CreateVm::new("pi-0", "pi"));
    let Some(mut terminal) = Terminal::start(&machine, &["console", "pi-0"]) else {
        return;
    };
    terminal.until("Ctrl-] detaches");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !terminal.is_raw() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    machine.with(|backend| backend.say(0, b"login: "));
    terminal.until("login: ");
    // Ctrl-C, Ctrl-D, Ctrl-Z, an arrow and a line feed are the guest's.
    let keys = b"\x03\x04\x1a\x1b[A\r\n";
    terminal.press(keys);
    machine.until("the keys are typed", |backend| {
        backend.typed_so_far(0).len() == keys.len()
    });
    assert_eq!(machine.with(|backend| backend.typed(0)), keys);
    terminal.press(b"\x1d");
    let shown = terminal.end();
    assert!(shown.contains("detached from VM \"pi-0\""), "{shown:?}");
}
