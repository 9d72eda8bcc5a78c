//! The event stream (COM2): one JSON object a line, written by the hypervisor for programs.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// TSC ticks, as the hypervisor stamped it; `None` if it did not.
    pub ticks: Option<u64>,
    /// Which kind: `boot-phase`, `vm-start`, `vm-end`, `guest`, `frames`, `end`..
    pub name: String,
    /// Every field, `ticks` and `event` included.
    pub fields: Map<String, Value>,
}

/// How a VM ended, from its `vm-end` event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmEnd {
    /// The VM's name.
    pub vm: String,
    /// `exit`, `triple-fault`, `memory-violation`, `unknown-exit`, `entry-failure`, `halted-forever`, `refused`, `killed`.
    pub cause: String,
    /// The exit code, if it ended by `exit`.
    pub code: Option<i64>,
    /// A sentence for people.
    pub detail: String,
    /// VM exits by kind.
    pub exits: BTreeMap<String, u64>,
}

impl VmEnd {
    /// Whether the VM ended by `exit(0)`.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.cause == "exit" && self.code == Some(0)
    }
}

/// A line of the event stream that is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MalformedEvent {
    /// The line.
    pub line: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Event {
    /// Reads one line (without its end).
    ///
    /// # Errors
    /// The line and what is wrong with it.
    pub fn parse(line: &str) -> Result<Event, MalformedEvent> {
        let malformed = |reason: String| MalformedEvent {
            line: line.to_owned(),
            reason,
        };
        let fields: Map<String, Value> = serde_json::from_str(line.trim_end_matches('\r'))
            .map_err(|error| malformed(error.to_string()))?;
        let name = fields
            .get("event")
            .and_then(Value::as_str)
            .ok_or_else(|| malformed("no string \"event\"".to_owned()))?
            .to_owned();
        Ok(Event {
            ticks: fields.get("ticks").and_then(Value::as_u64),
            name,
            fields,
        })
    }

    /// Reads a line of a stream in which no event has come yet. Firmware may have written to the port before the hypervisor did
    /// (OVMF writes to every serial port there is), and its last line need not have an end: the event may stand behind it. `None`
    /// if the line is all firmware's.
    #[must_use]
    pub fn parse_first(line: &str) -> Option<Event> {
        line.match_indices('{')
            .filter_map(|(at, _)| line.get(at..))
            .find_map(|rest| Event::parse(rest).ok())
    }

    /// A field that is a string.
    #[must_use]
    pub fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field)?.as_str()
    }

    /// A field that is a non-negative integer.
    #[must_use]
    pub fn number(&self, field: &str) -> Option<u64> {
        self.fields.get(field)?.as_u64()
    }

    /// The event as the end of a VM, if it is one.
    #[must_use]
    pub fn as_vm_end(&self) -> Option<VmEnd> {
        if self.name != "vm-end" {
            return None;
        }
        let exits = match self.fields.get("exits") {
            Some(Value::Object(exits)) => exits
                .iter()
                .filter_map(|(kind, count)| Some((kind.clone(), count.as_u64()?)))
                .collect(),
            _ => BTreeMap::new(),
        };
        Some(VmEnd {
            vm: self.text("vm")?.to_owned(),
            cause: self.text("cause")?.to_owned(),
            code: self.fields.get("code").and_then(Value::as_i64),
            detail: self.text("detail").unwrap_or_default().to_owned(),
            exits,
        })
    }

    /// The JSON object a guest sent on its event channel, if this is such an event and its text is one.
    #[must_use]
    pub fn as_guest_object(&self) -> Option<Map<String, Value>> {
        if self.name != "guest" {
            return None;
        }
        serde_json::from_str(self.text("text")?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_name_and_ticks() {
        let event = Event::parse("{\"ticks\":12,\"event\":\"boot-phase\",\"name\":\"vmx\"}\r")
            .expect("well formed");
        assert_eq!(event.ticks, Some(12));
        assert_eq!(event.name, "boot-phase");
        assert_eq!(event.text("name"), Some("vmx"));
        assert_eq!(event.as_vm_end(), None);
    }

    #[test]
    fn the_end_of_a_vm_is_read_in_full() {
        let line = r#"{"event":"vm-end","vm":"ping","cause":"exit","code":-3,"detail":"d","exits":{"hypercall":3}}"#;
        let end = Event::parse(line)
            .expect("well formed")
            .as_vm_end()
            .expect("a vm-end");
        assert_eq!((end.vm.as_str(), end.cause.as_str()), ("ping", "exit"));
        assert_eq!(end.code, Some(-3));
        assert_eq!(end.exits.get("hypercall"), Some(&3));
        assert!(!end.is_success());
    }

    #[test]
    fn only_exit_zero_is_a_success() {
        let end = |cause: &str, code| VmEnd {
            vm: "v".to_owned(),
            cause: cause.to_owned(),
            code,
            detail: String::new(),
            exits: BTreeMap::new(),
        };
        assert!(end("exit", Some(0)).is_success());
        assert!(!end("exit", Some(1)).is_success());
        assert!(!end("exit", None).is_success());
        assert!(!end("triple-fault", Some(0)).is_success());
    }

    #[test]
    fn broken_lines_are_reported_with_the_reason() {
        for line in ["", "{", "[1]", "{\"ticks\":1}", "{\"event\":7}"] {
            let error = Event::parse(line).expect_err("malformed");
            assert_eq!(error.line, line);
            assert!(!error.reason.is_empty());
        }
    }

    #[test]
    fn what_firmware_wrote_before_the_first_event_is_told_from_it() {
        let first = "{\"ticks\":1,\"event\":\"boot\",\"more\":{}}";
        for before in [
            "",
            "\u{1b}[2J\u{1b}[01;01H",
            "BdsDxe: {a} starting Boot0001 ",
        ] {
            let event = Event::parse_first(&format!("{before}{first}"));
            assert_eq!(event, Event::parse(first).ok(), "{before:?}");
        }
        assert_eq!(Event::parse_first("BdsDxe: {loading} \"Boot0001\""), None);
        assert_eq!(Event::parse_first(""), None);
    }

    #[test]
    fn a_guests_text_is_unpacked_only_if_it_is_an_object() {
        let guest = |text: &str| {
            let mut fields = Map::new();
            fields.insert("event".to_owned(), Value::from("guest"));
            fields.insert("vm".to_owned(), Value::from("ping"));
            fields.insert("text".to_owned(), Value::from(text));
            Event::parse(&Value::Object(fields).to_string()).expect("well formed")
        };
        let row = guest("{\"row\":{\"name\":\"cpuid\"}}").as_guest_object();
        assert_eq!(
            row.and_then(|row| Some(row.get("row")?.get("name")?.as_str()?.to_owned())),
            Some("cpuid".to_owned())
        );
        assert_eq!(guest("free text").as_guest_object(), None);
    }
}
