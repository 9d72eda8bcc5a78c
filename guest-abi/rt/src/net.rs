//! The network: raw Ethernet frames on a virtio-net card ([`card`]), and UDP and TCP by `smoltcp` on top ([`stack`]).
//!
//! A guest's address and its peer's are on its command line: `ip=10.0.0.1/24 peer=10.0.0.2`. Waiting is polling, or halting until
//! the card interrupts ([`Waiting`]).

pub mod card;
pub mod offload;
pub mod stack;

pub use card::{Card, Options};
pub use stack::{Stack, TcpId, UdpId};

use core::fmt;

use crate::virtio;

/// How news of the card is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// By looking again and again, without an exit.
    Polled,
    /// By HLT until the card interrupts.
    Interrupt,
}

/// What went wrong on the network.
#[derive(Debug)]
pub enum Error {
    /// There is no card, or it does not work.
    Card(virtio::Error),
    /// The command line lacks an address, or it is not one.
    Address(&'static str),
    /// Nothing came, or nobody took what was to be sent, in the time given.
    TimedOut,
    /// The peer has closed or refused the connection.
    Closed,
    /// A datagram is longer than a packet.
    TooLong,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Card(error) => write!(f, "network card: {error}"),
            Error::Address(key) => write!(
                f,
                "the command line has no valid {key}=, such as {key}=10.0.0.1/24"
            ),
            Error::TimedOut => f.write_str("the network did not answer in time"),
            Error::Closed => f.write_str("the connection is closed"),
            Error::TooLong => f.write_str("a datagram is longer than a packet may be"),
        }
    }
}

impl From<virtio::Error> for Error {
    fn from(error: virtio::Error) -> Error {
        Error::Card(error)
    }
}
