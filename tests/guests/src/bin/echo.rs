//! A TCP echo server on port 7: gives each of its clients back what it sends. Command line: `ip=`, `clients=` (1).
#![cfg_attr(target_os = "none", no_std, no_main)]

use nagaya_rt::net::{Error, Stack};

nagaya_rt::entry!(main);

fn main() -> Result<(), Error> {
    let mut net = Stack::from_args()?;
    let mut buffer = [0; 2048];
    for _ in 0..nagaya_rt::args::number("clients", 1) {
        let client = net.accept(7)?;
        loop {
            let bytes = net.read(client, &mut buffer)?;
            if bytes == 0 {
                break;
            }
            net.write(client, &buffer[..bytes])?;
        }
        net.close(client);
    }
    Ok(())
}
