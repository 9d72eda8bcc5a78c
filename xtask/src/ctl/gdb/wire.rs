//! The connection to GDB: bytes, with a look for signals while it waits.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use gdbstub::conn::{Connection, ConnectionExt};
use nagaya_harness::interrupt;

use super::super::output::SIGNAL_POLL;

/// How long GDB is listened to between two looks at the VM.
const LOOK: Duration = Duration::from_millis(20);

/// A connection to GDB.
pub(super) struct Wire {
    stream: TcpStream,
    peeked: Option<u8>,
}

fn interrupted() -> io::Error {
    io::Error::other("ended by a signal")
}

fn is_nothing_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

impl Wire {
    /// The first connection; `None` if a signal comes before.
    pub(super) fn accept(listener: &TcpListener) -> io::Result<Option<Wire>> {
        listener.set_nonblocking(true)?;
        while !interrupt::requested() {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    return Ok(Some(Wire {
                        stream,
                        peeked: None,
                    }));
                }
                Err(error) if is_nothing_yet(&error) => std::thread::sleep(LOOK),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn read_within(&mut self, limit: Duration) -> io::Result<Option<u8>> {
        if let Some(byte) = self.peeked.take() {
            return Ok(Some(byte));
        }
        self.stream.set_read_timeout(Some(limit))?;
        let mut byte = [0];
        match Read::read(&mut self.stream, &mut byte) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(Some(byte[0])),
            Err(error) if is_nothing_yet(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether GDB says something within a short time.
    pub(super) fn wait_briefly(&mut self) -> io::Result<bool> {
        if interrupt::requested() {
            return Err(interrupted());
        }
        self.peeked = self.read_within(LOOK)?;
        Ok(self.peeked.is_some())
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        Write::write_all(&mut self.stream, &[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(&mut self.stream, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Write::flush(&mut self.stream)
    }
}

impl ConnectionExt for Wire {
    fn read(&mut self) -> io::Result<u8> {
        loop {
            if interrupt::requested() {
                return Err(interrupted());
            }
            if let Some(byte) = self.read_within(SIGNAL_POLL)? {
                return Ok(byte);
            }
        }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        self.peeked = self.read_within(Duration::from_millis(1))?;
        Ok(self.peeked)
    }
}
