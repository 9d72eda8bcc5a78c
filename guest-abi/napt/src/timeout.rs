//! What a session is in, and how long it lasts when nothing is heard of it.
//!
//! TCP is followed as far as time-outs need it (RFC 7857, section 2): no sequence numbers.

use crate::Protocol;
use crate::packet::flag;

/// Whence a packet comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the VM.
    Out,
    /// To it.
    In,
}

impl Direction {
    const fn bit(self) -> u8 {
        match self {
            Direction::Out => 1,
            Direction::In => 2,
        }
    }
}

/// State of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// TCP: a SYN has been seen from these sides, not from both.
    Opening(u8),
    /// TCP: open; FIN has been seen from these sides, not from both.
    Open(u8),
    /// TCP: both sides have closed it.
    Closed,
    /// TCP: one side has reset it. Data that follow show that the other did not believe it.
    Reset,
    /// UDP.
    Datagrams,
    /// ICMP echo.
    Echo,
}

/// Whether such a packet begins a connection.
pub(crate) const fn opens(flags: u8) -> bool {
    flags & (flag::SYN | flag::RST | flag::FIN) == flag::SYN
}

const BOTH: u8 = 3;

impl State {
    /// The state after one more packet.
    pub(crate) fn after(
        before: Option<State>,
        protocol: Protocol,
        direction: Direction,
        flags: u8,
    ) -> State {
        match protocol {
            Protocol::Udp => return State::Datagrams,
            Protocol::Echo => return State::Echo,
            Protocol::Tcp => {}
        }
        let side = direction.bit();
        if flags & flag::RST != 0 {
            return State::Reset;
        }
        let is_syn = opens(flags);
        match before {
            None | Some(State::Closed | State::Reset) if is_syn => State::Opening(side),
            None => State::Opening(0),
            Some(State::Opening(sides)) => {
                let sides = if is_syn { sides | side } else { sides };
                if sides == BOTH {
                    State::Open(0)
                } else {
                    State::Opening(sides)
                }
            }
            Some(State::Open(sides)) if flags & flag::FIN != 0 => match sides | side {
                BOTH => State::Closed,
                sides => State::Open(sides),
            },
            Some(State::Reset) if direction == Direction::Out => State::Open(0),
            Some(state) => state,
        }
    }

    /// Whether a packet of that direction begins the time-out anew. What comes from outside does not keep a session of UDP alive that
    /// its VM has forgotten (RFC 4787 REQ-6), nor does anything keep a connection that is over.
    pub(crate) const fn is_refreshed_by(self, direction: Direction) -> bool {
        match self {
            State::Open(_) => true,
            State::Datagrams | State::Echo => matches!(direction, Direction::Out),
            State::Opening(_) | State::Closed | State::Reset => false,
        }
    }

    /// Which goes first if room is needed: the least.
    pub(crate) const fn worth(self) -> u8 {
        match self {
            State::Closed | State::Reset => 0,
            State::Opening(_) | State::Echo => 1,
            State::Datagrams => 2,
            State::Open(_) => 3,
        }
    }
}

/// When sessions end, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP that is open: at least 2 h 4 min (RFC 5382 REQ-5).
    pub open_ms: u64,
    /// TCP that is being opened or has been closed: 4 min (RFC 5382 REQ-5, RFC 7857 section 2).
    pub transitory_ms: u64,
    /// UDP: at least 2 min, 5 are recommended (RFC 4787 REQ-5).
    pub datagrams_ms: u64,
    /// ICMP echo: at least 60 s (RFC 5508 REQ-2).
    pub echo_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        const MINUTE: u64 = 60_000;
        Timeouts {
            open_ms: 124 * MINUTE,
            transitory_ms: 4 * MINUTE,
            datagrams_ms: 5 * MINUTE,
            echo_ms: MINUTE,
        }
    }
}

impl Timeouts {
    pub(crate) const fn of(&self, state: State) -> u64 {
        match state {
            State::Open(_) => self.open_ms,
            State::Opening(_) | State::Closed | State::Reset => self.transitory_ms,
            State::Datagrams => self.datagrams_ms,
            State::Echo => self.echo_ms,
        }
    }
}
