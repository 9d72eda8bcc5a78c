//! Ctrl-C, SIGTERM and SIGHUP as a flag that every run looks at.
//!
//! Concurrency: one flag for the process, set by the signal thread of the crate `ctrlc`, read by anybody.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static INSTALLED: Once = Once::new();

/// Exit status of a program that was ended by Ctrl-C, as shells report it.
pub const EXIT_STATUS: u8 = 130;

/// Takes over the signals; further calls do nothing. The first signal sets the flag, a second one ends this process at once
/// (the emulators end with it, see [`crate::process`]).
pub fn install() {
    INSTALLED.call_once(|| {
        let handler = || {
            if REQUESTED.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(EXIT_STATUS));
            }
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            eprintln!("warning: Ctrl-C will not be handled: {error}");
        }
    });
}

/// Sets the flag, as the first signal does.
pub fn request() {
    REQUESTED.store(true, Ordering::SeqCst);
}

/// Whether the user wants everything to end.
#[must_use]
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
