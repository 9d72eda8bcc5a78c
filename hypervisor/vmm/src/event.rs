//! JSON objects of the event stream, built field by field. One object is one line.
//!
//! Only what the stream needs: strings, integers, booleans and nested objects of integers. Source: RFC 8259.

use alloc::string::String;
use core::fmt::{self, Write};

/// One event under construction.
#[derive(Debug)]
pub struct Event {
    text: String,
}

impl Event {
    /// Starts an event: `{"ticks":..,"event":".."`.
    #[must_use]
    pub fn new(ticks: u64, event: &str) -> Event {
        let mut text = String::with_capacity(160);
        // Writing to a `String` never fails.
        let _ = write!(text, "{{\"ticks\":{ticks}");
        Event { text }.string("event", event)
    }

    fn key(&mut self, key: &str) {
        self.text.push(',');
        push_string(&mut self.text, key);
        self.text.push(':');
    }

    /// Adds a string.
    #[must_use]
    pub fn string(mut self, key: &str, value: &str) -> Event {
        self.key(key);
        push_string(&mut self.text, value);
        self
    }

    /// Adds what a value displays, as a string.
    #[must_use]
    pub fn display(self, key: &str, value: impl fmt::Display) -> Event {
        self.string(key, &alloc::format!("{value}"))
    }

    /// Adds an integer.
    #[must_use]
    pub fn number(mut self, key: &str, value: impl Into<i128>) -> Event {
        self.key(key);
        let _ = write!(self.text, "{}", value.into());
        self
    }

    /// Adds a boolean.
    #[must_use]
    pub fn flag(mut self, key: &str, value: bool) -> Event {
        self.key(key);
        self.text.push_str(if value { "true" } else { "false" });
        self
    }

    /// Adds an object of integers; those that are 0 are left out.
    #[must_use]
    pub fn counts<'a>(mut self, key: &str, counts: impl Iterator<Item = (&'a str, u64)>) -> Event {
        self.key(key);
        self.text.push('{');
        let mut first = true;
        for (name, count) in counts.filter(|(_, count)| *count != 0) {
            if !first {
                self.text.push(',');
            }
            first = false;
            push_string(&mut self.text, name);
            let _ = write!(self.text, ":{count}");
        }
        self.text.push('}');
        self
    }

    /// The finished object, without line feed.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.text.push('}');
        self.text
    }
}

/// As [`Escaped`], in runs: guests choose the value, and a character at a time would cost them a multiple of what they are charged.
fn push_string(text: &mut String, value: &str) {
    const HEX: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    text.push('"');
    let mut rest = value;
    let is_special = |byte: u8| byte < 0x20 || byte == 0x7F || byte == b'"' || byte == b'\\';
    while let Some(at) = rest.bytes().position(is_special) {
        let (plain, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
        text.push_str(plain);
        // A byte of that kind is a character of its own.
        let byte = from.bytes().next().unwrap_or(b' ');
        match byte {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            control => {
                text.push_str("\\u00");
                text.push(HEX[usize::from(control >> 4)]);
                text.push(HEX[usize::from(control & 15)]);
            }
        }
        rest = from.get(1..).unwrap_or("");
    }
    text.push_str(rest);
    text.push('"');
}

/// Text as it stands between the quotes of a JSON string.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                control if (control as u32) < 0x20 || control as u32 == 0x7F => {
                    write!(f, "\\u{:04x}", control as u32)?;
                }
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_escaping_say_the_same() {
        let all: String = (0..0x180_u32)
            .filter_map(char::from_u32)
            .chain("é\u{FFFD}\u{1F600}".chars())
            .collect();
        let mut text = String::new();
        push_string(&mut text, &all);
        assert_eq!(text, alloc::format!("\"{}\"", Escaped(&all)));
    }

    #[test]
    fn hostile_text_stays_inside_its_string() {
        let event = Event::new(7, "guest")
            .string("text", "a\"},\n\\\u{1}é")
            .finish();
        assert_eq!(
            event,
            "{\"ticks\":7,\"event\":\"guest\",\"text\":\"a\\\"},\\u000a\\\\\\u0001é\"}"
        );
    }

    #[test]
    fn counts_leave_zeros_out() {
        let event = Event::new(0, "x")
            .counts("exits", [("a", 0), ("b", 2), ("c", 3)].into_iter())
            .flag("ok", true)
            .finish();
        assert_eq!(
            event,
            "{\"ticks\":0,\"event\":\"x\",\"exits\":{\"b\":2,\"c\":3},\"ok\":true}"
        );
    }
}
