//! The PCI bus as a guest finds it, instructions on device memory, and disks, and what a frame costs. Command line: `case=`.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use nagaya_guests::check;
use nagaya_guests::stats::Samples;
use nagaya_rt::abi::{ExitKind, boot};
use nagaya_rt::net::card::BROADCAST;
use nagaya_rt::net::offload::Header;
use nagaya_rt::net::{Card, Options, Waiting};
use nagaya_rt::probe::{self, memory};
use nagaya_rt::{args, group, hypercall, println, time, virtio};

nagaya_rt::entry!(main);

fn main() {
    match args::get("case").unwrap_or("") {
        "bus" => bus(),
        "disk" => disk(),
        "ask" => ask(),
        "answer" => answer(),
        other => panic!("case={other} on the command line is none of this guest's"),
    }
    check::finish();
}

const ADDRESS: u16 = 0xCF8;
const DATA: u16 = 0xCFC;

fn select(slot: u32, register: u32) {
    probe::port_write_u32(ADDRESS, 1 << 31 | slot << 11 | register);
}

fn config(slot: u32, register: u32) -> u32 {
    select(slot, register);
    probe::port_read_u32(DATA)
}

fn set_config(slot: u32, register: u32, value: u32) {
    select(slot, register);
    probe::port_write_u32(DATA, value);
}

fn bus() {
    check::equal("host-bridge", config(0, 0), 0x1237_8086);
    let kinds: [u32; 5] = core::array::from_fn(|slot| config(slot as u32 + 1, 0) >> 16);
    // Cards in their order, then entropy, then the console, then nothing.
    check::equal("slots", kinds, [0x1041, 0x1041, 0x1044, 0x1043, 0xFFFF]);
    select(1, 0);
    check::equal("vendor-by-word", probe::port_read_u16(DATA), 0x1AF4);
    check::equal("device-by-word", probe::port_read_u16(DATA + 2), 0x1041);
    check::equal("byte", probe::port_read_u8(DATA + 3), 0x10);
    check::equal(
        "second-bus",
        {
            probe::port_write_u32(ADDRESS, 1 << 31 | 1 << 16 | 1 << 11);
            probe::port_read_u32(DATA)
        },
        u32::MAX,
    );

    // The BAR: placed in the window, memory decoded, its size by writing ones.
    let bar = config(1, 0x10);
    let window = boot::PCI_WINDOW_GPA..boot::PCI_WINDOW_END_GPA;
    check::holds("bar-in-window", window.contains(&u64::from(bar)));
    check::equal("bars-differ", config(2, 0x10), bar + 0x4000);
    check::equal("memory-decoded", config(1, 4) & 2, 2);
    set_config(1, 0x10, u32::MAX);
    check::equal("bar-size", !(config(1, 0x10) & !0xF), 0x3FFF);
    set_config(1, 0x10, bar);

    // Common configuration: 256 entries, 2 queues, and the device's features.
    let at = u64::from(bar);
    memory::store_and_or(at, 0, 1);
    check::equal("select-by-or", memory::read_u32(at), 1);
    let (after, found) = memory::changes(at);
    check::equal("changes-found", found, 1);
    check::equal("changes", after, [5, 6, 14, 12, -12_i32 as u32, 11, 10, 12]);
    check::equal("strings-to", memory::write_strings(at, 7, 1), [7, 1]);
    check::holds("version-1", memory::has_bits(at + 4, 1));
    check::holds("no-other-bits", !memory::has_bits(at + 4, 1 << 31));
    let mac = memory::loads(at + 0x200);
    println!("address {:#x}", mac.mov_64 & 0xFFFF_FFFF_FFFF);
    let word = mac.mov_64;
    check::equal("mov-8", mac.mov_8, !0xFF | word & 0xFF);
    check::equal("mov-16", mac.mov_16, !0xFFFF | word & 0xFFFF);
    check::equal("mov-32", mac.mov_32, word & 0xFFFF_FFFF);
    check::equal("movzx", mac.movzx_8, word & 0xFF);
    check::equal("movsx", mac.movsx_8_to_64, i64::from(word as i8) as u64);
    check::equal(
        "movsx-32",
        mac.movsx_16_to_32,
        i32::from(word as i16) as u32 as u64,
    );
    check::equal("movsxd", mac.movsxd, i64::from(word as i32) as u64);

    let mut bytes = [0; 8];
    memory::read_string(at + 0x200, &mut bytes);
    check::equal("string-from", u64::from_le_bytes(bytes), word);
    port_strings();

    // The BAR of ports, one register of four for each queue.
    let ports = config(1, 0x14);
    let port = (ports & !3) as u16;
    check::equal("ports-by-flag", ports & 3, 1);
    check::holds("ports-in-window", boot::PCI_PORTS.contains(&port));
    check::equal("ports-decoded", config(1, 4) & 1, 1);
    set_config(1, 0x14, u32::MAX);
    check::equal("ports-size", config(1, 0x14), 0xFFF9);
    set_config(1, 0x14, 0x1230);
    check::equal("ports-moved", probe::port_read_u16(0x1232), 0);
    check::equal("ports-left", probe::port_read_u16(port), u16::MAX);
    // Nobody is ready to be kicked, however often.
    probe::port_write_string(0x1234, &[1; 100]);
    let command = config(1, 4);
    set_config(1, 4, command & !1);
    check::equal("ports-not-decoded", probe::port_read_u16(0x1232), u16::MAX);
    set_config(1, 4, command);
    check::equal("ports-again", probe::port_read_u16(0x1232), 0);

    // Moved, it answers at its new place only; what nobody answers for floats.
    set_config(1, 0x10, 0xEFFF_0000);
    check::equal("moved", memory::read_u32(0xEFFF_0000), 1);
    check::equal("left", memory::read_u32(at), u32::MAX);
    set_config(1, 4, 0);
    check::equal("not-decoded", memory::read_u32(0xEFFF_0000), u32::MAX);
    check::equal("floats", memory::loads(0xFED0_0000).mov_64, u64::MAX);
    memory::store_and_or(0xFEC0_0000, 1, 2);
    check::equal("apic-page", memory::read_u32(0xFEE0_0030) & 0xFF, 0x14);
}

/// More elements than one exit carries out, and ones that lie in two pages.
fn port_strings() {
    const PAGE: usize = 4096;
    let address = 1 << 31 | 1 << 11;
    let mut addresses = [1 << 31; 100];
    addresses[99] = address;
    select(3, 0);
    probe::port_write_string(ADDRESS, &addresses);
    check::equal("outs", probe::port_read_u32(ADDRESS), address);
    let mut memory = alloc::vec![0_u8; 3 * PAGE];
    let start = memory.as_ptr().addr();
    let edge = start.next_multiple_of(PAGE) - start;
    let (before, after) = (edge + PAGE - 130, edge + PAGE + 270);
    probe::port_read_string(DATA, &mut memory[before..after]);
    let id = 0x1041_1AF4_u32.to_le_bytes();
    let is_right = |part: &[u8]| part.chunks(4).all(|element| *element == id);
    check::holds("ins", is_right(&memory[before..after]));
    let others = memory[..before].iter().chain(&memory[after..]);
    check::holds(
        "ins-nothing-else",
        others.into_iter().all(|byte| *byte == 0),
    );
}

const SECTOR: usize = 512;
/// Sectors of one request that is longer than what is done of it at a time.
const MANY: usize = 1024;

/// A disk in RAM, and one that is an image (this repository's licence) and cannot be written. Run anew after a reset it finds what
/// it wrote before.
fn disk() {
    let (mut disk, mut image) = match (virtio::disk(0), virtio::disk(1)) {
        (Ok(disk), Ok(image)) => (disk, image),
        (Err(error), _) | (_, Err(error)) => panic!("no disk: {error}"),
    };
    check::equal("sectors", disk.capacity(), 4096);
    check::holds("writable", !disk.readonly());
    let mut name = [0; 20];
    check::equal("name-bytes", disk.device_id(&mut name).ok(), Some(5));
    check::holds("name", name.starts_with(b"disk0\0"));
    check::equal("image-name", image.device_id(&mut name).ok(), Some(5));
    check::holds("image-read-only", image.readonly());

    // How often it has run before is in the last sector.
    let mut sector = [0; SECTOR];
    check::holds("last-sector", disk.read_blocks(4095, &mut sector).is_ok());
    let before = sector[0];
    println!("this disk has seen {before} runs");
    let pattern = |run: u8, at: usize| (at / SECTOR) as u8 ^ (at % 251) as u8 ^ run;
    let mut many = alloc::vec![0xAA; MANY * SECTOR];
    check::holds("read", disk.read_blocks(7, &mut many).is_ok());
    let expected = |at: usize| if before == 0 { 0 } else { pattern(before, at) };
    let is_as_left = many
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte == expected(at));
    check::holds("as-it-was-left", is_as_left);
    for (at, byte) in many.iter_mut().enumerate() {
        *byte = pattern(before + 1, at);
    }
    check::holds("write", disk.write_blocks(7, &many).is_ok());
    check::holds("flush", disk.flush().is_ok());
    let mut again = alloc::vec![0; MANY * SECTOR];
    check::holds("read-again", disk.read_blocks(7, &mut again).is_ok());
    check::holds("what-was-written", again == many);
    check::holds("neighbour", disk.read_blocks(6, &mut sector).is_ok());
    check::equal("neighbour-is-empty", sector, [0; SECTOR]);
    check::holds(
        "beyond-the-end",
        disk.read_blocks(4096, &mut sector).is_err(),
    );
    check::holds("across-the-end", disk.write_blocks(4000, &many).is_err());
    sector.fill(0);
    sector[0] = before + 1;
    check::holds("write-last", disk.write_blocks(4095, &sector).is_ok());

    let sectors = args::number("image-bytes", 0).div_ceil(SECTOR as u64);
    check::equal("image-sectors", image.capacity(), sectors);
    check::holds("image-read", image.read_blocks(0, &mut sector).is_ok());
    let text = args::get("image-starts").unwrap_or("?").as_bytes();
    check::holds(
        "image-contents",
        sector.windows(text.len()).any(|part| part == text),
    );
    check::holds("image-write", image.write_blocks(0, &sector).is_err());
    let last = sectors as usize - 1;
    check::holds("image-last", image.read_blocks(last, &mut sector).is_ok());
    check::equal("image-padding", sector[SECTOR - 1], 0);
    if args::args().has("waits") {
        println!("waiting for a reset");
        nagaya_rt::console::flush();
        loop {
            let _ = hypercall::wait(u64::MAX);
        }
    }
}

fn card() -> Card {
    let waiting = if args::args().has("polled") {
        Waiting::Polled
    } else {
        Waiting::Interrupt
    };
    match Card::open(0, &Options::raw(waiting)) {
        Ok(card) => card,
        Err(error) => panic!("no card: {error}"),
    }
}

const KIND: [u8; 2] = [0x88, 0xB5];

fn send(card: &mut Card, number: u64, bytes: usize) {
    let own = card.address();
    let Some(mut out) = card.transmitter.buffer() else {
        panic!("no send buffer");
    };
    let frame = out.frame();
    frame[..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&own);
    frame[12..14].copy_from_slice(&KIND);
    frame[14..22].copy_from_slice(&number.to_le_bytes());
    out.send(bytes, Header::default());
    card.transmitter.flush();
}

/// The number in the next frame, `None` if none comes.
fn receive(card: &mut Card, patience_ms: u64) -> Option<u64> {
    if !card.wait_or(time::Deadline::after_ms(patience_ms)) {
        return None;
    }
    let frame = card.receiver.take()?;
    let bytes = frame.whole()?;
    Some(u64::from_le_bytes(*bytes.get(14..22)?.first_chunk()?))
}

fn ask() {
    let rounds = args::number("rounds", 200);
    let bytes = args::number("bytes", 64) as usize;
    let mut card = card();
    // Until the other one listens.
    while receive(&mut card, 20) != Some(u64::MAX) {
        send(&mut card, u64::MAX, bytes);
    }
    while receive(&mut card, 20).is_some() {}
    let before = group::exits();
    let mut times = Samples::with_capacity(rounds as usize);
    let mut wrong = 0;
    for round in 0..rounds {
        let start = time::ticks();
        send(&mut card, round, bytes);
        wrong += u64::from(receive(&mut card, 1000) != Some(round));
        times.push(time::ticks() - start);
    }
    check::equal("wrong-answers", wrong, 0);
    let after = group::exits();
    for kind in ExitKind::ALL {
        let count = after[kind as usize] - before[kind as usize];
        if count > 0 {
            println!("{}: {count} exits in {rounds} rounds", kind.name());
        }
    }
    println!("round trip: {:?}", times.summary());
    send(&mut card, u64::MAX - 1, bytes);
}

fn answer() {
    let bytes = args::number("bytes", 64) as usize;
    let mut card = card();
    let mut answered = 0;
    while let Some(number) = receive(&mut card, 5000) {
        if number == u64::MAX - 1 {
            break;
        }
        send(&mut card, number, bytes);
        answered += 1;
    }
    check::holds("answered", answered > 0);
}
