//! The control port: COM3, an interrupt when something comes in, and CPU 0, which serves it between other things.
//!
//! The protocol is `nagaya_vmm::control`'s; this module moves bytes and carries requests out (`backend`). One service takes a
//! bounded number of bytes. While nobody speaks nothing of this runs; whoever floods the port takes time from the guests on CPU 0, a
//! bounded piece a millisecond, and from nobody else.
//!
//! Concurrency: only CPU 0 serves.

mod backend;
mod debug;
mod refusal;
mod rows;

use alloc::vec::Vec;

use nagaya_vmm::config::MachineConfig;
use nagaya_vmm::control::{MAX_POLL_BYTES, Server};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::IER;
use uart_16550::{BaudRate, Config, Uart16550};

use self::backend::Machine;
use crate::host::cpu::percpu::PerCpu;
use crate::host::cpu::{ioapic, time};
use crate::lifecycle;
use crate::run::service;

const COM3: u16 = 0x3E8;
/// COM1 and COM3 share it; COM1's interrupts are off.
const LINE: u8 = 4;
/// Bytes that a 16550's receive FIFO holds (its data sheet).
const FIFO_BYTES: usize = 16;

struct Port {
    uart: Uart16550<PioBackend>,
    /// Bytes that have come and that the server has not taken.
    input: Vec<u8>,
    server: Server,
    machine: Machine,
}

static PORT: Mutex<Option<Port>> = Mutex::new(None);

/// Opens the port, if the scenario wants it. Called once, on the boot CPU.
pub fn init(config: &MachineConfig) {
    if !config.control {
        return;
    }
    // SAFETY: the standard port range of the third serial port of PCs; nothing else in the hypervisor touches it.
    let port = unsafe { Uart16550::new_port(COM3) };
    let opened = port.ok().and_then(|mut uart| {
        let is_there = uart.check_present()
            && uart
                .init(Config {
                    baud_rate: BaudRate::Baud115200,
                    ..Config::DEFAULT
                })
                .is_ok();
        is_there.then_some(uart)
    });
    let Some(mut uart) = opened else {
        log::warn!("there is no third serial port: no control port");
        return;
    };
    let cpu = PerCpu::current();
    if let Ok(apic_id) = u8::try_from(cpu.apic_id) {
        ioapic::route_isa_as_nmi(LINE, apic_id);
    }
    uart.enable_interrupts(IER::DATA_READY);
    // What came before, from a client in a hurry or from firmware, keeps the interrupt's line up, and the I/O APIC waits for an edge: it
    // is taken out at once, as input like any other. More than the FIFO holds cannot have waited.
    let mut waiting = [0; FIFO_BYTES];
    let came = uart.receive_bytes(&mut waiting);
    let mut input = Vec::with_capacity(MAX_POLL_BYTES);
    input.extend(waiting.iter().take(came));
    *PORT.lock() = Some(Port {
        uart,
        input,
        server: Server::new(),
        machine: Machine::new(config.deterministic),
    });
    lifecycle::set_lingers(config.linger);
    // At once: for what came before the interrupt was on.
    service::open(serve);
    log::info!("the control port is open");
}

/// Serves the port once: bounded input, bounded output. On CPU 0, with no lock held.
fn serve() {
    let mut port = PORT.lock();
    service::begin();
    let Some(port) = &mut *port else {
        service::set_due(u64::MAX);
        return;
    };
    let mut buffer = [0; 64];
    let room = MAX_POLL_BYTES
        .saturating_sub(port.input.len())
        .min(buffer.len());
    let came = port
        .uart
        .receive_bytes(buffer.get_mut(..room).unwrap_or(&mut []));
    port.input.extend(buffer.iter().take(came));
    let taken = port.server.poll(&mut port.machine, &port.input);
    port.input.drain(..taken.min(port.input.len()));
    let sent = port.uart.send_bytes(port.server.output());
    port.server.consume_output(sent);
    let soon = came != 0 || !port.input.is_empty() || !port.server.output().is_empty();
    let now = time::ticks();
    service::set_due(if soon {
        now + time::khz()
    } else if port.server.is_busy() {
        now + 10 * time::khz()
    } else {
        u64::MAX
    });
}
