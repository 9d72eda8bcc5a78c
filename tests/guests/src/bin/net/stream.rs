//! TCP and UDP.

use alloc::vec;

use nagaya_guests::check;
use nagaya_rt::net::{Error, Stack, stack};
use nagaya_rt::time::ticks;
use nagaya_rt::{args, println};

use super::random;

const PORT: u16 = 5001;

/// FNV-1a, 64 bits.
struct Hash(u64);

impl Hash {
    fn new() -> Hash {
        Hash(0xCBF2_9CE4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
    }
}

fn report(what: &str, result: Result<(), Error>) {
    if let Err(error) = &result {
        println!("FAIL {what}: {error}");
    }
    check::holds(what, result.is_ok());
}

fn open() -> Stack {
    match Stack::from_args() {
        Ok(net) => net,
        Err(error) => panic!("no network: {error}"),
    }
}

/// Sends `bytes` bytes and compares the hash with the sink's.
pub(super) fn source() {
    report("transfer", try_source());
}

fn try_source() -> Result<(), Error> {
    let mut net = open();
    let peer = stack::peer()?;
    let total = args::number("bytes", 16 << 20);
    let connection = loop {
        match net.connect(peer, PORT) {
            // The sink may not listen yet.
            Err(Error::Closed) => nagaya_rt::time::spin_ms(5),
            other => break other?,
        }
    };
    let start = ticks();
    net.write(connection, &total.to_le_bytes())?;
    let mut hash = Hash::new();
    let mut block = vec![0; 64 << 10];
    let (mut sent, mut word) = (0, 0);
    while sent < total {
        let count = (total - sent).min(block.len() as u64) as usize;
        for bytes in block.chunks_mut(4) {
            bytes.copy_from_slice(&random(word).to_le_bytes()[..bytes.len()]);
            word += 1;
        }
        hash.add(&block[..count]);
        net.write(connection, &block[..count])?;
        sent += count as u64;
    }
    let mut answer = [0; 8];
    let mut have = 0;
    while have < 8 {
        match net.read(connection, &mut answer[have..])? {
            0 => return Err(Error::Closed),
            count => have += count,
        }
    }
    println!("{total} bytes in {} ticks", ticks() - start);
    check::equal("hash", u64::from_le_bytes(answer), hash.0);
    net.close(connection);
    Ok(())
}

/// Takes what the source sends and tells it the hash.
pub(super) fn sink() {
    report("transfer", try_sink());
}

fn try_sink() -> Result<(), Error> {
    let mut net = open();
    let connection = net.accept(PORT)?;
    let mut length = [0; 8];
    let mut have = 0;
    while have < 8 {
        match net.read(connection, &mut length[have..])? {
            0 => return Err(Error::Closed),
            count => have += count,
        }
    }
    let total = u64::from_le_bytes(length);
    let mut hash = Hash::new();
    let mut came = 0;
    while came < total {
        let count = net.take(connection, |bytes| {
            hash.add(bytes);
            bytes.len()
        })?;
        if count == 0 {
            break;
        }
        came += count as u64;
    }
    check::equal("length", came, total);
    net.write(connection, &hash.0.to_le_bytes())?;
    net.close(connection);
    Ok(())
}

/// A client of the echo server.
pub(super) fn client() {
    report("echo", try_client());
}

fn try_client() -> Result<(), Error> {
    let mut net = open();
    let server = stack::peer()?;
    let connection = loop {
        match net.connect(server, 7) {
            Err(Error::Closed) => nagaya_rt::time::spin_ms(5),
            other => break other?,
        }
    };
    let mut wrong = 0_u32;
    let mut back = vec![0; 9000];
    for bytes in [1, 2, 100, 1460, 1461, 9000] {
        let message: alloc::vec::Vec<u8> = (0..bytes).map(|at| random(at) as u8).collect();
        net.write(connection, &message)?;
        let mut have = 0;
        while have < message.len() {
            match net.read(connection, &mut back[have..message.len()])? {
                0 => return Err(Error::Closed),
                count => have += count,
            }
        }
        wrong += u32::from(back[..message.len()] != message[..]);
    }
    check::equal("all-right", wrong, 0);
    net.close(connection);
    Ok(())
}

/// Sends datagrams to its peer, which does the same, and checks what comes.
pub(super) fn udp() {
    report("datagrams", try_udp());
}

fn try_udp() -> Result<(), Error> {
    const COUNT: u32 = 200;
    let mut net = open();
    let socket = net.udp(PORT)?;
    let to = (stack::peer()?, PORT).into();
    check::holds(
        "too-long-is-refused",
        matches!(net.send_to(socket, to, &[0; 1473]), Err(Error::TooLong)),
    );
    let longest = net.longest_datagram();
    let size = |number: u32| 4 + random(number) as usize % (longest - 3);
    let mut sent = vec![0; longest];
    let mut wrong = 0_u32;
    // The first who is there asks until the other is there, too.
    net.patience_ms = 20;
    let greet = loop {
        net.send_to(socket, to, b"hi")?;
        match net.receive_from(socket, |_, bytes| bytes.len()) {
            Ok(count) => break count,
            Err(Error::TimedOut) => {}
            Err(error) => return Err(error),
        }
    };
    check::equal("greeting", greet, 2);
    net.send_to(socket, to, b"hi")?;
    net.patience_ms = 5_000;
    for number in 0..COUNT {
        let count = size(number);
        sent[..4].copy_from_slice(&number.to_le_bytes());
        for (at, byte) in sent[..count].iter_mut().enumerate().skip(4) {
            *byte = random(number + at as u32) as u8;
        }
        net.send_to(socket, to, &sent[..count])?;
        let right = loop {
            let right = net.receive_from(socket, |_, bytes| {
                (bytes != b"hi").then(|| bytes == &sent[..count])
            })?;
            if let Some(right) = right {
                break right;
            }
        };
        wrong += u32::from(!right);
    }
    check::equal("all-right", wrong, 0);
    Ok(())
}
