//! The live console: typed lines to text, in colour where that is wanted.

use crate::console::{ConsoleLine, Level};
use anstyle::{AnsiColor, Style};
use std::io::IsTerminal;

/// Colours of VMs, in the order in which they first speak.
const PALETTE: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Yellow,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
];

/// Renders console lines. Keeps which VM has which colour, so that one painter serves one run.
#[derive(Debug)]
pub struct Painter {
    colour: bool,
    vms: Vec<String>,
}

impl Painter {
    /// A painter for standard output: colours on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    #[must_use]
    pub fn for_stdout() -> Painter {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Painter::new(std::io::stdout().is_terminal() && !refused)
    }

    /// A painter with or without colours.
    #[must_use]
    pub fn new(colour: bool) -> Painter {
        Painter {
            colour,
            vms: Vec::new(),
        }
    }

    /// The line as it is to be shown, without a line end.
    pub fn paint(&mut self, line: &ConsoleLine) -> String {
        match line {
            ConsoleLine::Hypervisor {
                seconds,
                level,
                text,
            } => {
                let (name, style) = match level {
                    Level::Error => ("ERROR", AnsiColor::Red.on_default().bold()),
                    Level::Warn => ("WARN", AnsiColor::Yellow.on_default().bold()),
                    Level::Info => ("INFO", Style::new().bold()),
                    Level::Debug => ("DEBUG", Style::new().dimmed()),
                    Level::Trace => ("TRACE", Style::new().dimmed()),
                };
                let time = self.styled(Style::new().dimmed(), &format!("[{seconds:>11.6}]"));
                let name = self.styled(style, &format!("{name:<5}"));
                format!("{time} {name} {}", visible(text))
            }
            ConsoleLine::Guest { vm, text } => {
                let style = self.vm_style(vm);
                format!(
                    "{} {}",
                    self.styled(style, &format!("{vm}|")),
                    visible(text)
                )
            }
            ConsoleLine::Raw(text) => {
                self.styled(Style::new().dimmed(), &visible(&without_escapes(text)))
            }
        }
    }

    fn vm_style(&mut self, vm: &str) -> Style {
        let index = self.vms.iter().position(|known| known == vm);
        let index = index.unwrap_or_else(|| {
            self.vms.push(vm.to_owned());
            self.vms.len() - 1
        });
        let colour = PALETTE.get(index % PALETTE.len());
        colour.map_or(Style::new(), |colour| colour.on_default().bold())
    }

    fn styled(&self, style: Style, text: &str) -> String {
        if self.colour {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

/// Whether a line is nothing but what firmware does to a terminal: it moves the cursor, sets colours, clears the screen.
#[must_use]
pub fn is_blank(line: &ConsoleLine) -> bool {
    matches!(line, ConsoleLine::Raw(text) if without_escapes(text).trim().is_empty())
}

/// The text without control sequences (ECMA-48, "Elements of control sequences": `ESC [`, parameters, a final byte).
fn without_escapes(text: &str) -> String {
    let mut pieces = text.split("\u{1b}[");
    let mut kept = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| ('@'..='~').contains(&c));
        kept.push_str(end.and_then(|end| piece.get(end + 1..)).unwrap_or_default());
    }
    kept
}

/// Control characters made visible: a guest must not move the cursor of the user's terminal or change its title.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_colour_a_line_reads_as_it_was_written() {
        let mut painter = Painter::new(false);
        for line in [
            "[   0.012345] INFO  CPU 1: VMX on",
            "[   1.000000] ERROR bad",
            "ping| hello",
            "SeaBIOS",
        ] {
            assert_eq!(painter.paint(&ConsoleLine::parse(line)), line);
        }
    }

    #[test]
    fn two_vms_have_two_colours_and_each_keeps_its_own() {
        let mut painter = Painter::new(true);
        let mut prefix = |vm: &str| {
            let line = painter.paint(&ConsoleLine::parse(&format!("{vm}| x")));
            line.replace(vm, "")
        };
        let (ping, pong) = (prefix("ping"), prefix("pong"));
        assert_ne!(ping, pong);
        assert_eq!(prefix("ping"), ping);
    }

    #[test]
    fn what_firmware_does_to_a_terminal_is_no_text() {
        let raw = |text: &str| ConsoleLine::Raw(text.to_owned());
        let line = raw("\u{1b}[2J\u{1b}[01;01H\u{1b}[=3hBdsDxe: loading\u{1b}[0m");
        assert_eq!(Painter::new(false).paint(&line), "BdsDxe: loading");
        assert!(!is_blank(&line));
        assert!(is_blank(&raw("\u{1b}[2J\u{1b}[01;01H  ")) && is_blank(&raw("")));
        assert!(
            !is_blank(&ConsoleLine::parse("vm| ")),
            "a guest's empty line is its own"
        );
        assert_eq!(without_escapes("a\u{1b}["), "a");
    }

    #[test]
    fn a_guest_cannot_send_escapes_to_the_terminal() {
        let mut painter = Painter::new(false);
        let line = painter.paint(&ConsoleLine::parse("evil| \u{1b}]0;title\u{7}\u{9b}31m"));
        assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
    }
}
