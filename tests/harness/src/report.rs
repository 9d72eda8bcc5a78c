//! What a run came to, and the judgement over it. Pure: plain values in, plain values out.

use crate::console::ConsoleLine;
use crate::event::{Event, MalformedEvent, VmEnd};
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::time::Duration;

/// How the emulator came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ended by itself, with this exit status (`None`: by a signal).
    Exited(Option<i32>),
    /// Its time ran out and we ended it.
    TimedOut,
    /// The hypervisor said `end`, but the machine did not power off and we ended it.
    DidNotPowerOff,
    /// The user pressed Ctrl-C.
    Interrupted,
}

/// Everything known of a run that is over.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// Whether all is well: the hypervisor said so in its last event, and nothing contradicts it.
    pub ok: bool,
    /// Why it is not, or what the hypervisor gave as the reason that it is.
    pub reason: String,
    /// How the emulator came to its end.
    pub ending: Ending,
    /// The console, in order.
    pub console: Vec<ConsoleLine>,
    /// The events, in order.
    pub events: Vec<Event>,
    /// Lines of the event stream that are no events.
    pub malformed_events: Vec<MalformedEvent>,
    /// Wall-clock time from the emulator's start to its end.
    pub wall: Duration,
    /// Where the raw logs are.
    pub directory: PathBuf,
    /// Lines of the emulator's own log that tell why the run failed; empty if it did not.
    pub machine_log: Vec<String>,
}

/// The hypervisor's last word.
struct End<'a> {
    ok: bool,
    reason: &'a str,
}

fn find_end(events: &[Event]) -> Option<End<'_>> {
    let last = events.last().filter(|event| event.name == "end")?;
    Some(End {
        ok: last.fields.get("ok").and_then(Value::as_bool) == Some(true),
        reason: last.text("reason").unwrap_or("no reason given"),
    })
}

/// Judges a run: `(ok, reason)`.
///
/// A run without an `end` event has failed, whatever else it did; one with it is as good as the event says, unless the
/// machine then misbehaved.
#[must_use]
pub fn judge(
    ending: Ending,
    timeout: Duration,
    events: &[Event],
    malformed: &[MalformedEvent],
) -> (bool, String) {
    let seconds = timeout.as_secs();
    match (ending, find_end(events)) {
        (Ending::Interrupted, _) => (false, "interrupted".to_owned()),
        (Ending::TimedOut, _) => (
            false,
            format!("time-out: the machine had not ended after {seconds} s"),
        ),
        (Ending::Exited(status), None) => {
            let status = status.map_or("a signal".to_owned(), |status| format!("status {status}"));
            (
                false,
                format!(
                    "crash: the emulator ended by {status} before the hypervisor reported its end"
                ),
            )
        }
        (_, Some(end)) if !end.ok => (false, end.reason.to_owned()),
        (Ending::DidNotPowerOff, _) => (
            false,
            "the hypervisor reported its end, but the machine did not power off".to_owned(),
        ),
        (Ending::Exited(_), Some(end)) => match malformed.first() {
            Some(bad) => (
                false,
                format!(
                    "a line of the event stream is no event ({}): {}",
                    bad.reason, bad.line
                ),
            ),
            None => (true, end.reason.to_owned()),
        },
    }
}

impl RunReport {
    /// The longest time that a CPU kept its guests waiting in root mode, in ticks, as the hypervisor says at its end.
    #[must_use]
    pub fn root_longest(&self) -> Option<u64> {
        self.end()?.number("root_longest")
    }

    /// The last event if it is `end`: what the hypervisor made of the run itself.
    #[must_use]
    pub fn end(&self) -> Option<&Event> {
        self.events.last().filter(|event| event.name == "end")
    }

    /// How the VM of that name ended, if it did.
    #[must_use]
    pub fn vm_end(&self, vm: &str) -> Option<VmEnd> {
        self.vm_ends().find(|end| end.vm == vm)
    }

    /// How the VMs ended, in that order.
    pub fn vm_ends(&self) -> impl Iterator<Item = VmEnd> {
        self.events.iter().filter_map(Event::as_vm_end)
    }

    /// The events of one kind, in order.
    pub fn events_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Event> {
        self.events.iter().filter(move |event| event.name == name)
    }

    /// What the VM of that name printed, line by line.
    pub fn guest_lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.console.iter().filter_map(move |line| match line {
            ConsoleLine::Guest { vm, text } if vm == name => Some(text.as_str()),
            _ => None,
        })
    }

    /// What the hypervisor itself printed, line by line; the further lines of one message (dumps) count as lines, too.
    pub fn hypervisor_lines(&self) -> impl Iterator<Item = &str> {
        self.console.iter().filter_map(|line| match line {
            ConsoleLine::Hypervisor { text, .. } => Some(text.as_str()),
            ConsoleLine::Raw(text) => text.strip_prefix("[           ]"),
            ConsoleLine::Guest { .. } => None,
        })
    }

    /// The `row` objects that guests sent on their event channel, each with the VM's name.
    pub fn rows(&self) -> impl Iterator<Item = (String, Map<String, Value>)> {
        self.events.iter().filter_map(|event| {
            let object = event.as_guest_object()?;
            let row = object.get("row")?.as_object()?.clone();
            Some((event.text("vm")?.to_owned(), row))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn events(lines: &[&str]) -> Vec<Event> {
        lines
            .iter()
            .map(|line| Event::parse(line).expect("well formed"))
            .collect()
    }

    const GOOD_END: &str =
        r#"{"ticks":9,"event":"end","ok":true,"reason":"all guests ended well"}"#;
    const BAD_END: &str =
        r#"{"ticks":9,"event":"end","ok":false,"reason":"vm pong: triple-fault"}"#;

    #[test]
    fn a_run_is_as_good_as_its_last_event_says() {
        let (ok, reason) = judge(Ending::Exited(Some(1)), TIMEOUT, &events(&[GOOD_END]), &[]);
        assert!(ok, "{reason}");
        let (ok, reason) = judge(Ending::Exited(Some(1)), TIMEOUT, &events(&[BAD_END]), &[]);
        assert!(!ok);
        assert_eq!(reason, "vm pong: triple-fault");
    }

    #[test]
    fn a_run_without_an_end_event_failed_by_crash_or_time_out() {
        let start = events(&[r#"{"event":"vm-start","vm":"ping","cpu":0}"#]);
        let (ok, reason) = judge(Ending::Exited(Some(1)), TIMEOUT, &start, &[]);
        assert!(!ok && reason.starts_with("crash"), "{reason}");
        let (ok, reason) = judge(Ending::TimedOut, TIMEOUT, &start, &[]);
        assert!(
            !ok && reason.starts_with("time-out") && reason.contains("60 s"),
            "{reason}"
        );
    }

    #[test]
    fn an_end_that_is_not_the_last_event_is_no_end() {
        let talkative = events(&[GOOD_END, r#"{"event":"vm-start","vm":"ghost"}"#]);
        let (ok, reason) = judge(Ending::Exited(Some(1)), TIMEOUT, &talkative, &[]);
        assert!(!ok && reason.starts_with("crash"), "{reason}");
    }

    #[test]
    fn a_good_end_does_not_excuse_a_machine_that_stays_on_or_a_broken_stream() {
        let good = events(&[GOOD_END]);
        assert!(!judge(Ending::DidNotPowerOff, TIMEOUT, &good, &[]).0);
        assert!(!judge(Ending::Interrupted, TIMEOUT, &good, &[]).0);
        let broken = [MalformedEvent {
            line: "{".to_owned(),
            reason: "EOF".to_owned(),
        }];
        assert!(!judge(Ending::Exited(Some(1)), TIMEOUT, &good, &broken).0);
    }
}
