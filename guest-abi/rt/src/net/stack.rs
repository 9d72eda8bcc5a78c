//! UDP and TCP over IPv4, by `smoltcp`, on a card. Functions that wait let the stack work meanwhile and give up after
//! [`Stack::patience_ms`].
//!
//! Concurrency: one owner (`&mut`).

mod port;

use alloc::vec;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint, Ipv4Address, Ipv4Cidr};

use self::port::Port;
use super::{Card, Error, Options, Waiting};
use crate::time::{self, Deadline};
use crate::{args, hypercall, interrupts};

/// Bytes of a TCP connection's buffers, each way: two large segments and more.
pub const TCP_BYTES: usize = 256 << 10;
/// Datagrams that a UDP socket keeps, and their bytes.
const UDP_PACKETS: usize = 256;
const UDP_BYTES: usize = 512 << 10;
/// Bytes of the headers of IPv4 and UDP.
const UDP_HEADERS: usize = 28;
/// The first port that is given to connections that choose none.
const FIRST_PORT: u16 = 49_152;

/// A UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpId(SocketHandle);

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpId(SocketHandle);

/// Where a datagram came from or goes.
pub type Peer = IpEndpoint;

/// The stack of one card.
pub struct Stack {
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// How long a function waits at most, in milliseconds.
    pub patience_ms: u64,
    /// The TSC at which the hypervisor ends a HLT; 0 if it does not.
    alarm: u64,
    next_port: u16,
}

fn now() -> Instant {
    Instant::from_micros((time::ticks_to_ns(time::ticks()) / 1000) as i64)
}

fn parse_cidr(text: &str) -> Option<Ipv4Cidr> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "24"));
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    Some(Ipv4Cidr::new(address.parse().ok()?, prefix))
}

/// The peer's address on the command line: `peer=10.0.0.2`.
///
/// # Errors
/// [`Error::Address`].
pub fn peer() -> Result<Ipv4Address, Error> {
    let peer = args::get("peer").and_then(|text| text.parse().ok());
    peer.ok_or(Error::Address("peer"))
}

impl Stack {
    /// The stack of the first card with the address on the command line (`ip=10.0.0.1/24`), waiting by interrupts, or by polling
    /// if `polled` stands there, too.
    ///
    /// # Errors
    /// [`Error::Card`], [`Error::Address`].
    pub fn from_args() -> Result<Stack, Error> {
        let waiting = if args::args().has("polled") {
            Waiting::Polled
        } else {
            Waiting::Interrupt
        };
        let address = args::get("ip")
            .and_then(parse_cidr)
            .ok_or(Error::Address("ip"))?;
        let card = Card::open(0, &Options::stack(waiting))?;
        Ok(Stack::new(card, address))
    }

    /// A stack on a card.
    #[must_use]
    pub fn new(card: Card, address: Ipv4Cidr) -> Stack {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(card.address())));
        config.random_seed = time::ticks() ^ u64::from(card.address()[5]) << 56;
        let mut port = Port::new(card);
        let mut interface = Interface::new(config, &mut port, now());
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for more than one.
            let _ = addresses.push(IpCidr::Ipv4(address));
        });
        Stack {
            port,
            interface,
            sockets: SocketSet::new(vec![]),
            patience_ms: 10_000,
            alarm: 0,
            next_port: FIRST_PORT,
        }
    }

    /// The card.
    #[must_use]
    pub fn card(&mut self) -> &mut Card {
        &mut self.port.card
    }

    /// Lets the stack work: takes what came, sends what is due. Whether a socket may have changed.
    pub fn work(&mut self) -> bool {
        let result = self
            .interface
            .poll(now(), &mut self.port, &mut self.sockets);
        self.port.card.transmitter.flush();
        result == PollResult::SocketStateChanged
    }

    /// Works until `ready` has a result, for as long as patience lasts.
    ///
    /// # Errors
    /// [`Error::TimedOut`], or what `ready` says.
    pub fn wait_for<T>(
        &mut self,
        mut ready: impl FnMut(&mut SocketSet<'static>) -> Option<Result<T, Error>>,
    ) -> Result<T, Error> {
        let deadline = Deadline::after_ms(self.patience_ms);
        loop {
            self.work();
            if let Some(result) = ready(&mut self.sockets) {
                // What `ready` has taken or given may be worth telling the peer, at once.
                self.work();
                return result;
            }
            if deadline.has_passed() {
                return Err(Error::TimedOut);
            }
            self.rest(deadline);
        }
    }

    /// Waits for a frame, for the time the stack has something to do by itself, or for the deadline.
    fn rest(&mut self, deadline: Deadline) {
        let due = self
            .interface
            .poll_delay(now(), &self.sockets)
            .map(|delay| Deadline::after(time::micros_to_ticks(delay.total_micros())));
        let until = due.map_or(deadline.tsc(), |due| due.tsc().min(deadline.tsc()));
        let receiver = &mut self.port.card.receiver;
        if self.port.waiting == Waiting::Polled {
            while !receiver.has_frame() && time::ticks() < until {
                time::pause();
            }
            return;
        }
        // The alarm is left as it is when it comes early enough: setting it costs an exit, and waking too early little more.
        let alarm = &mut self.alarm;
        interrupts::wait_until(|| {
            let now = time::ticks();
            if receiver.want_interrupt() || now >= until {
                return true;
            }
            if (*alarm <= now || *alarm > until) && hypercall::set_deadline(until).is_ok() {
                *alarm = until;
            }
            false
        });
        receiver.want_no_interrupt();
    }

    /// A UDP socket on a port.
    ///
    /// # Errors
    /// [`Error::Closed`] for port 0.
    pub fn udp(&mut self, port: u16) -> Result<UdpId, Error> {
        let buffer = || {
            let packets = vec![udp::PacketMetadata::EMPTY; UDP_PACKETS];
            udp::PacketBuffer::new(packets, vec![0; UDP_BYTES])
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).map_err(|_| Error::Closed)?;
        Ok(UdpId(self.sockets.add(socket)))
    }

    /// The longest datagram that fits into a packet.
    #[must_use]
    pub fn longest_datagram(&self) -> usize {
        usize::from(self.port.card.mtu()) - UDP_HEADERS
    }

    /// Puts a datagram of `bytes` bytes into the socket, which `fill` writes in place, without letting the stack work. `false` if
    /// there is no room now.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Closed`] for an address nothing can be sent to.
    pub fn queue_datagram(
        &mut self,
        id: UdpId,
        to: Peer,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<bool, Error> {
        if bytes > self.longest_datagram() {
            return Err(Error::TooLong);
        }
        match self
            .sockets
            .get_mut::<udp::Socket<'_>>(id.0)
            .send(bytes, to)
        {
            Ok(room) => {
                fill(room);
                Ok(true)
            }
            Err(udp::SendError::BufferFull) => Ok(false),
            Err(udp::SendError::Unaddressable) => Err(Error::Closed),
        }
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// [`Error`].
    pub fn send_to(&mut self, id: UdpId, to: Peer, bytes: &[u8]) -> Result<(), Error> {
        while !self.queue_datagram(id, to, bytes.len(), |room| room.copy_from_slice(bytes))? {
            self.work();
        }
        self.work();
        Ok(())
    }

    /// Waits for a datagram and gives it to `taker`.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn receive_from<R>(
        &mut self,
        id: UdpId,
        taker: impl FnOnce(Peer, &[u8]) -> R,
    ) -> Result<R, Error> {
        let mut taker = Some(taker);
        // Datagrams that are here already are taken without asking the card.
        let mut take = |sockets: &mut SocketSet<'static>| {
            let (bytes, from) = sockets.get_mut::<udp::Socket<'_>>(id.0).recv().ok()?;
            Some(Ok(taker.take()?(from.endpoint, bytes)))
        };
        if let Some(result) = take(&mut self.sockets) {
            return result;
        }
        self.wait_for(take)
    }

    fn tcp_socket(&mut self) -> TcpId {
        let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        // A message is sent when it is written.
        socket.set_nagle_enabled(false);
        TcpId(self.sockets.add(socket))
    }

    /// Waits for a connection to a port. Others that come before it has been taken are refused.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Closed`] for port 0.
    pub fn accept(&mut self, port: u16) -> Result<TcpId, Error> {
        let id = self.tcp_socket();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(id.0);
        let listens = socket.listen(port).is_ok();
        let result = if listens {
            self.wait_for(|sockets| {
                let socket = sockets.get::<tcp::Socket<'_>>(id.0);
                (socket.may_send() || socket.may_recv()).then_some(Ok(()))
            })
        } else {
            Err(Error::Closed)
        };
        self.keep_if(id, result)
    }

    /// Connects to a port of an address.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Closed`].
    pub fn connect(&mut self, to: Ipv4Address, port: u16) -> Result<TcpId, Error> {
        let id = self.tcp_socket();
        let own = self.next_port;
        self.next_port = own.checked_add(1).unwrap_or(FIRST_PORT);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(id.0);
        let begun = socket
            .connect(self.interface.context(), (to, port), own)
            .is_ok();
        let result = if begun {
            self.wait_for(|sockets| {
                let socket = sockets.get::<tcp::Socket<'_>>(id.0);
                if socket.may_send() {
                    return Some(Ok(()));
                }
                (!socket.is_open()).then_some(Err(Error::Closed))
            })
        } else {
            Err(Error::Closed)
        };
        self.keep_if(id, result)
    }

    fn keep_if(&mut self, id: TcpId, result: Result<(), Error>) -> Result<TcpId, Error> {
        if result.is_err() {
            self.sockets.remove(id.0);
        }
        result.map(|()| id)
    }

    /// Waits for bytes and gives as many as are in one piece to `taker`, which says how many it took. 0 if the peer has closed and
    /// all has been taken.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Closed`] if the connection broke.
    pub fn take(
        &mut self,
        id: TcpId,
        mut taker: impl FnMut(&[u8]) -> usize,
    ) -> Result<usize, Error> {
        self.wait_for(|sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(id.0);
            match socket.recv(|bytes| {
                let taken = if bytes.is_empty() { 0 } else { taker(bytes) };
                (taken.min(bytes.len()), taken)
            }) {
                Ok(0) => None,
                Ok(taken) => Some(Ok(taken)),
                Err(tcp::RecvError::Finished) => Some(Ok(0)),
                Err(tcp::RecvError::InvalidState) => Some(Err(Error::Closed)),
            }
        })
    }

    /// Waits for bytes and copies as many as fit. 0 if the peer has closed.
    ///
    /// # Errors
    /// As [`Stack::take`].
    pub fn read(&mut self, id: TcpId, buffer: &mut [u8]) -> Result<usize, Error> {
        self.take(id, |bytes| {
            let count = bytes.len().min(buffer.len());
            buffer[..count].copy_from_slice(&bytes[..count]);
            count
        })
    }

    /// Writes all bytes, waiting for room.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Closed`].
    pub fn write(&mut self, id: TcpId, bytes: &[u8]) -> Result<(), Error> {
        let mut left = bytes;
        while !left.is_empty() {
            let sent = self.put(id, left.len(), |room| {
                let count = room.len().min(left.len());
                room[..count].copy_from_slice(&left[..count]);
                count
            })?;
            left = left.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits for room to send and has `filler` write into it, which says how many bytes it wrote, at most `most` of interest.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Closed`].
    pub fn put(
        &mut self,
        id: TcpId,
        most: usize,
        mut filler: impl FnMut(&mut [u8]) -> usize,
    ) -> Result<usize, Error> {
        let mut put = |sockets: &mut SocketSet<'static>| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(id.0);
            if !socket.may_send() {
                return Some(Err(Error::Closed));
            }
            let sent = socket.send(|room| {
                let count = room.len().min(most);
                let filled = filler(&mut room[..count]).min(count);
                (filled, filled)
            });
            sent.ok().filter(|sent| *sent > 0).map(Ok)
        };
        // What fits is put before the stack works, so that a message goes with one kick.
        if let Some(result) = put(&mut self.sockets) {
            self.work();
            return result;
        }
        self.wait_for(put)
    }

    /// Waits until the peer has acknowledged all that has been written. Whoever does something else for long than to call the stack
    /// has to: what the peer had no room for is sent when the stack works again, not before.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Closed`].
    pub fn drain(&mut self, id: TcpId) -> Result<(), Error> {
        self.wait_for(|sockets| {
            let socket = sockets.get::<tcp::Socket<'_>>(id.0);
            if !socket.may_send() {
                return Some(Err(Error::Closed));
            }
            (socket.send_queue() == 0).then_some(Ok(()))
        })
    }

    /// Closes the connection after what has been written, waits until the peer has acknowledged that or is gone, and forgets the
    /// socket. A peer that has closed before need not acknowledge our end, too: it may have forgotten its socket.
    pub fn close(&mut self, id: TcpId) {
        self.sockets.get_mut::<tcp::Socket<'_>>(id.0).close();
        // A peer that does not answer keeps nobody: then the socket is forgotten all the same.
        let _ = self.wait_for(|sockets| {
            let socket = sockets.get::<tcp::Socket<'_>>(id.0);
            let is_done = match socket.state() {
                tcp::State::Closed | tcp::State::TimeWait | tcp::State::FinWait2 => true,
                tcp::State::LastAck => socket.send_queue() == 0,
                _ => false,
            };
            is_done.then_some(Ok(()))
        });
        self.sockets.remove(id.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_come_with_a_prefix() {
        let cidr = |address: [u8; 4], prefix| {
            let [a, b, c, d] = address;
            Some(Ipv4Cidr::new(Ipv4Address::new(a, b, c, d), prefix))
        };
        assert_eq!(parse_cidr("10.0.0.1/16"), cidr([10, 0, 0, 1], 16));
        assert_eq!(parse_cidr("10.0.0.1"), cidr([10, 0, 0, 1], 24));
        assert_eq!(parse_cidr("10.0.0.1/33"), None);
        assert_eq!(parse_cidr("10.0.0"), None);
    }
}
