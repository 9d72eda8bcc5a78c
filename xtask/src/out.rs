//! Everything that xtask prints goes through [`say!`](crate::say) and [`note!`](crate::note).
//!
//! `println!` panics when the reader of a pipe has read enough (`cargo xtask run | head`). Here that is what Ctrl-C is: the
//! machines that run are ended, and nothing further is printed. Whoever stopped reading is owed no message.
//!
//! Concurrency: one flag, set by whoever prints first after the reader has gone.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use nagaya_harness::interrupt;

static READER_IS_GONE: AtomicBool = AtomicBool::new(false);

/// Prints a line to standard output, as `println!` does.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::out::line(std::io::stdout().lock(), format_args!($($argument)*)) };
}

/// Prints a line to standard error, as `eprintln!` does.
#[macro_export]
macro_rules! note {
    ($($argument:tt)*) => { $crate::out::line(std::io::stderr().lock(), format_args!($($argument)*)) };
}

/// Whether whoever read our output has stopped doing so.
#[must_use]
pub fn reader_is_gone() -> bool {
    READER_IS_GONE.load(Ordering::SeqCst)
}

/// What the macros call.
pub fn line(to: impl Write, text: Arguments<'_>) {
    if is_closed(write(to, text)) {
        READER_IS_GONE.store(true, Ordering::SeqCst);
        interrupt::request();
    }
}

fn write(mut to: impl Write, text: Arguments<'_>) -> io::Result<()> {
    to.write_fmt(text)?;
    to.write_all(b"\n")?;
    to.flush()
}

/// A full disk behind the output is no reason to stop what is being done: the exit status still tells how it went.
fn is_closed(written: io::Result<()>) -> bool {
    written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_read_enough_is_told_from_one_that_reads_on() {
        assert!(is_closed(write(Closed, format_args!("x"))));
        let mut text = Vec::new();
        assert!(!is_closed(write(&mut text, format_args!("{} {}", 1, 2))));
        assert_eq!(text, b"1 2\n");
    }
}
