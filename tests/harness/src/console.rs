//! The text console (COM1) as typed lines.
//!
//! The hypervisor writes whole lines: its own as `[   0.012345] INFO  message` (seconds since its entry), a guest's as
//! `NAME| text`. Anything else (firmware, loader) is kept as it is: nothing is lost.

/// Level of a hypervisor line, in falling order of gravity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// The course of things.
    Info,
    /// For developers.
    Debug,
    /// For developers, in floods.
    Trace,
}

impl Level {
    /// The level by the name the hypervisor prints.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Level> {
        Some(match name {
            "ERROR" => Level::Error,
            "WARN" => Level::Warn,
            "INFO" => Level::Info,
            "DEBUG" => Level::Debug,
            "TRACE" => Level::Trace,
            _ => return None,
        })
    }
}

/// One line of the console.
#[derive(Clone, Debug, PartialEq)]
pub enum ConsoleLine {
    /// The hypervisor's own.
    Hypervisor {
        /// Seconds since the hypervisor's entry.
        seconds: f64,
        /// Its level.
        level: Level,
        /// The message.
        text: String,
    },
    /// A guest's.
    Guest {
        /// The VM's name.
        vm: String,
        /// What it printed.
        text: String,
    },
    /// Neither: firmware, boot loader, or the beginning of a line that the machine did not live to end.
    Raw(String),
}

/// Longest VM name on the console.
const MAX_NAME: usize = 31;

impl ConsoleLine {
    /// Reads one line (without its end).
    #[must_use]
    pub fn parse(line: &str) -> ConsoleLine {
        let line = line.trim_end_matches('\r');
        parse_hypervisor(line)
            .or_else(|| parse_guest(line))
            .unwrap_or_else(|| ConsoleLine::Raw(line.to_owned()))
    }

    /// The text that the hypervisor or guest wrote, without prefix.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            ConsoleLine::Hypervisor { text, .. }
            | ConsoleLine::Guest { text, .. }
            | ConsoleLine::Raw(text) => text,
        }
    }
}

fn parse_hypervisor(line: &str) -> Option<ConsoleLine> {
    let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
    let seconds: f64 = time.trim().parse().ok()?;
    let (level, text) = rest.strip_prefix(' ')?.split_at_checked(5)?;
    Some(ConsoleLine::Hypervisor {
        seconds,
        level: Level::from_name(level.trim_end())?,
        text: text.strip_prefix(' ').unwrap_or(text).to_owned(),
    })
}

fn parse_guest(line: &str) -> Option<ConsoleLine> {
    let (vm, text) = line.split_once('|')?;
    let named = !vm.is_empty()
        && vm.len() <= MAX_NAME
        && vm
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    // An empty line of a guest may have lost its blank to a trimming logger.
    let text = if text.is_empty() {
        text
    } else {
        text.strip_prefix(' ')?
    };
    named.then(|| ConsoleLine::Guest {
        vm: vm.to_owned(),
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypervisor_lines_carry_time_level_and_text() {
        assert_eq!(
            ConsoleLine::parse("[   0.012345] INFO  CPU 1: VMX on\r"),
            ConsoleLine::Hypervisor {
                seconds: 0.012345,
                level: Level::Info,
                text: "CPU 1: VMX on".to_owned(),
            }
        );
        assert_eq!(
            ConsoleLine::parse("[1234.5] ERROR x"),
            ConsoleLine::Hypervisor {
                seconds: 1234.5,
                level: Level::Error,
                text: "x".to_owned(),
            }
        );
    }

    #[test]
    fn guest_lines_carry_the_name_and_keep_the_text_as_it_is() {
        let guest = |vm: &str, text: &str| ConsoleLine::Guest {
            vm: vm.to_owned(),
            text: text.to_owned(),
        };
        assert_eq!(ConsoleLine::parse("ping| hello"), guest("ping", "hello"));
        assert_eq!(
            ConsoleLine::parse("a-b_2|   two | bars"),
            guest("a-b_2", "  two | bars")
        );
        assert_eq!(ConsoleLine::parse("ping| "), guest("ping", ""));
        assert_eq!(ConsoleLine::parse("ping|"), guest("ping", ""));
    }

    #[test]
    fn a_guest_cannot_pass_for_the_hypervisor() {
        let line = ConsoleLine::parse("evil| [   0.1] ERROR I am the hypervisor");
        assert!(
            matches!(&line, ConsoleLine::Guest { vm, .. } if vm == "evil"),
            "{line:?}"
        );
    }

    #[test]
    fn what_is_neither_is_kept_as_it_is() {
        for line in [
            "",
            "BdsDxe: loading Boot0001",
            "[x] INFO  no time",
            "[ 1.0] LOUD  no such level",
            "two words| text",
            "|",
            "a|b",
            "[ 1.0] é",
        ] {
            assert_eq!(ConsoleLine::parse(line), ConsoleLine::Raw(line.to_owned()));
        }
    }
}
