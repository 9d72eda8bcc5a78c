//! The terminal, which is given back as it was, however a verb ends: by its end, by an error, or by a panic.

use std::io::{self, Write as _};

use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};

/// Every key comes as it is pressed, unseen, Ctrl-C as well.
pub(super) struct Raw(());

impl Raw {
    pub(super) fn enter() -> io::Result<Raw> {
        enable_raw_mode().map(Raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing left to be done if the terminal has gone.
        let _ = disable_raw_mode();
    }
}

/// A screen of our own, without a cursor, in raw mode.
pub(super) struct Screen {
    _raw: Raw,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Screen> {
        let raw = Raw::enter()?;
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(Screen { _raw: raw })
    }

    /// Shows these lines, cut to the terminal.
    pub(super) fn show(&self, lines: &[String]) -> io::Result<()> {
        let (columns, rows) = crossterm::terminal::size()?;
        let mut text = String::from("\x1b[H");
        for (number, line) in lines.iter().take(usize::from(rows)).enumerate() {
            if number > 0 {
                text.push_str("\r\n");
            }
            text.extend(line.chars().take(usize::from(columns)));
            // Erase the rest of the line.
            text.push_str("\x1b[K");
        }
        // Erase the rest of the screen.
        text.push_str("\x1b[J");
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
    }
}
