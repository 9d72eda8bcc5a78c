//! `nagayactl`, and `cargo xtask ctl`: the operator's end of the control port (docs/CONTROL.md).
//!
//! `args` is what can be asked on the command line; `link` finds the port and moves bytes with a time limit; `client`
//! makes requests of them; `verbs`, `top` and `console` are what the verbs do; `table`, `show` and `json` turn answers into
//! text, as pure functions. `snapshot` looks into a file.
//!
//! Concurrency: one thread; whatever waits does so in `poll(2)` with a limit.

mod args;
mod client;
mod console;
mod gdb;
mod json;
mod link;
mod output;
mod show;
mod snapshot;
mod table;
mod terminal;
mod top;
mod verbs;

use std::io::Write as _;
use std::process::ExitCode;

use crate::note;
use nagaya_vmm::control::ControlError;

pub use args::Args;

/// What a refusal ends with.
const REFUSED: u8 = 1;

/// Does what the arguments say. Errors go to standard error as text; with `--json` to standard output as
/// `{"error":{"code":..,"text":..}}`.
#[must_use]
pub fn main(args: &Args) -> ExitCode {
    let error = match verbs::run(args) {
        Ok(code) => return code,
        Err(error) => error,
    };
    // `nagayactl ps | head -1`: whoever has read enough is owed no message.
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    if args.json {
        let code = match error.downcast_ref::<ControlError>() {
            Some(refused) => refused.code.word(),
            None => "client",
        };
        let text = format!("{error:#}");
        let object = serde_json::json!({ "error": { "code": code, "text": text } });
        // The exit status still says it.
        let _ = writeln!(std::io::stdout(), "{object}");
    } else {
        note!("error: {}", show::clean(&format!("{error:#}")));
    }
    ExitCode::from(REFUSED)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
