//! Messages over one TCP connection.

use nagaya_guests::stream::Stream;
use nagaya_rt::net::{Error, Stack, TcpId, stack};
use nagaya_rt::sync::PeerDied;

use crate::PING;
use crate::measure::{Message, Transport};
use crate::shared::Side;

const PORT: u16 = 7778;

pub(crate) struct Tcp {
    stack: Stack,
    connection: TcpId,
}

impl Tcp {
    pub(crate) fn open(side: &Side<'_>, mut stack: Stack) -> Result<Tcp, PeerDied> {
        side.meet()?;
        let connected = if side.role == PING {
            connect(&mut stack)
        } else {
            stack.accept(PORT)
        };
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => panic!("no connection: {error}"),
        };
        side.meet()?;
        Ok(Tcp { stack, connection })
    }
}

fn connect(stack: &mut Stack) -> Result<TcpId, Error> {
    let peer = stack::peer()?;
    loop {
        match stack.connect(peer, PORT) {
            // The peer does not listen yet.
            Err(Error::Closed) => nagaya_rt::time::spin_ms(1),
            other => return other,
        }
    }
}

impl Transport for Tcp {
    fn send(&mut self, message: &Message, before_notice: impl FnOnce()) -> Result<(), PeerDied> {
        let mut stream = Stream::new(message.seed);
        let total = message.bytes as usize;
        before_notice();
        while stream.at() < total {
            let put = self
                .stack
                .put(self.connection, total - stream.at(), |room| {
                    stream.fill(room);
                    room.len()
                });
            if let Err(error) = put {
                panic!("turn {}: {error}", message.turn);
            }
        }
        // The peer had room for the whole of a small message. While this side waits for its turn, nobody would send the rest.
        if total >= stack::TCP_BYTES
            && let Err(error) = self.stack.drain(self.connection)
        {
            panic!("turn {}: {error}", message.turn);
        }
        Ok(())
    }

    fn receive(&mut self, message: &Message, on_notice: impl FnOnce()) -> Result<(), PeerDied> {
        let mut stream = Stream::new(message.seed);
        let total = message.bytes as usize;
        let mut on_notice = Some(on_notice);
        while stream.at() < total {
            let took = self.stack.take(self.connection, |bytes| {
                if let Some(tell) = on_notice.take() {
                    tell();
                }
                let count = bytes.len().min(total - stream.at());
                if let Err(int) = stream.check(&bytes[..count]) {
                    panic!("int {int} of turn {} is wrong", message.turn);
                }
                count
            });
            match took {
                Ok(0) => panic!("turn {}: the peer has closed", message.turn),
                Ok(_) => {}
                Err(error) => panic!("turn {}: {error}", message.turn),
            }
        }
        Ok(())
    }

    fn copied(&mut self) -> [u64; 2] {
        let arrived = self.stack.card().receiver.arrived();
        [arrived.buffers, arrived.bytes]
    }
}
