//! What verbs write to standard output, and how often those that wait look for signals.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

/// How long a wait lasts before a signal is looked for.
pub(super) const SIGNAL_POLL: Duration = Duration::from_millis(200);

/// Writes text to standard output.
pub(super) fn write(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Writes one line of JSON to standard output.
pub(super) fn print(value: &Value) -> Result<()> {
    write(&format!("{value}\n"))
}
