//! `console`: what a VM says, and what is typed.
//!
//! What the guest says goes to the terminal as it is, as on any console: its escape sequences are the guest's own.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nagaya_harness::interrupt;
use nagaya_vmm::control::{Answer, MAX_CONSOLE_INPUT_BYTES, Notice, Request, Selector};
use serde_json::json;

use super::client::{Client, unexpected};
use super::output::{SIGNAL_POLL, print, write};
use super::terminal::Raw;

/// Ctrl-], as telnet and `xl console` have it.
const DETACH: u8 = 0x1D;
/// How long to wait before bytes that the guest did not take are offered again.
const RETRY: Duration = Duration::from_millis(50);

/// How it ended.
enum End {
    Detached,
    Closed,
}

/// Attaches, until Ctrl-], a signal, or the VM's end.
pub(super) fn run(client: &mut Client, vm: &Selector, as_json: bool) -> Result<()> {
    let id = match client.ask(&Request::ConsoleAttach(vm.clone()))? {
        Answer::Attached { vm } => vm,
        other => return Err(unexpected(&other)),
    };
    interrupt::install();
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal() && !as_json;
    let end = {
        let _raw = if is_terminal {
            crate::note!("attached to VM {vm}; Ctrl-] detaches");
            Some(Raw::enter()?)
        } else {
            None
        };
        follow(client, id, as_json)?
    };
    match end {
        End::Closed if as_json => print(&json!({ "vm": id, "closed": true })),
        End::Closed => {
            crate::note!("\nVM {vm} has ended");
            Ok(())
        }
        End::Detached => {
            if is_terminal {
                crate::note!("\ndetached from VM {vm}");
            }
            client.order(&Request::ConsoleDetach(Selector::Id(id)))
        }
    }
}

fn follow(client: &mut Client, vm: u32, as_json: bool) -> Result<End> {
    let stdin = io::stdin();
    // False at its end: what it was given has been typed, what the guest says to it is still to be heard.
    let mut is_typing = true;
    let mut buffer = [0; MAX_CONSOLE_INPUT_BYTES];
    while !interrupt::requested() {
        let deadline = Instant::now() + SIGNAL_POLL;
        let keyboard = is_typing.then(|| stdin.as_fd());
        let (has_output, has_input) = client.wait_with(keyboard, deadline)?;
        if has_output {
            let missed = client.take_missed();
            if missed > 0 {
                miss(vm, missed, as_json)?;
            }
            while let Some(notice) = client.notice(Instant::now())? {
                match notice {
                    Notice::ConsoleOutput {
                        vm: from,
                        lost,
                        bytes,
                    } if from == vm => {
                        say(vm, lost, &bytes, as_json)?;
                    }
                    Notice::ConsoleClosed { vm: from } if from == vm => return Ok(End::Closed),
                    _ => {}
                }
            }
        }
        if has_input {
            // Not through the buffer of `Stdin`: what that holds back would not be seen by the next wait.
            let length = rustix::io::read(&stdin, &mut buffer).map_err(io::Error::from)?;
            is_typing = length > 0;
            let (typed, detach) = until_detach(buffer.get(..length).unwrap_or_default());
            type_in(client, vm, typed)?;
            if detach {
                return Ok(End::Detached);
            }
        }
    }
    Ok(End::Detached)
}

/// What stands before Ctrl-], and whether it was there.
fn until_detach(bytes: &[u8]) -> (&[u8], bool) {
    match bytes.iter().position(|&byte| byte == DETACH) {
        Some(at) => (bytes.get(..at).unwrap_or_default(), true),
        None => (bytes, false),
    }
}

/// Types all of it, as fast as the guest takes it.
fn type_in(client: &mut Client, vm: u32, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() && !interrupt::requested() {
        let request = Request::ConsoleInput {
            vm: Selector::Id(vm),
            bytes: bytes.to_vec(),
        };
        let taken = match client.ask(&request)? {
            Answer::Accepted { bytes } => bytes as usize,
            other => return Err(unexpected(&other)),
        };
        match bytes.get(taken..) {
            Some(rest) => bytes = rest,
            None => bail!("the hypervisor took more than it was given"),
        }
        if taken == 0 {
            std::thread::sleep(RETRY);
        }
    }
    Ok(())
}

/// Pieces of output that did not come over the line.
fn miss(vm: u32, pieces: u64, as_json: bool) -> Result<()> {
    if as_json {
        return print(&json!({ "vm": vm, "missed": pieces }));
    }
    write(&format!(
        "\r\n[{pieces} pieces of output were lost on the line]\r\n"
    ))
}

fn say(vm: u32, lost: u64, bytes: &[u8], as_json: bool) -> Result<()> {
    if as_json {
        let text = String::from_utf8_lossy(bytes);
        return print(&json!({ "vm": vm, "lost": lost, "text": text }));
    }
    let mut stdout = io::stdout().lock();
    if lost > 0 {
        write!(stdout, "\r\n[{lost} bytes lost]\r\n")?;
    }
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_the_detach_key_is_still_typed() {
        assert_eq!(until_detach(b"ab\x1dcd"), (&b"ab"[..], true));
        assert_eq!(until_detach(b"ab\x1b["), (&b"ab\x1b["[..], false));
    }
}
