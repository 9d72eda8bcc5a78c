//! `gdb`: a GDB server for one VM, on loopback, over the control port.
//!
//! `gdbstub` speaks GDB's remote protocol; `target` turns what it asks into requests to the hypervisor, `registers` lays registers out as
//! GDB wants them, `wire` is the connection with a look for signals. The VM goes on when GDB detaches or goes, and when this program does.

mod registers;
mod target;
mod wire;

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, anyhow, bail};
use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt as _;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use nagaya_harness::interrupt;
use nagaya_vmm::control::Selector;

use super::client::Client;
use super::output::print;
use target::VmTarget;
use wire::Wire;

/// Serves one GDB, until it detaches.
pub(super) fn run(
    client: &mut Client,
    vm: &Selector,
    vcpu: u32,
    port: u16,
    as_json: bool,
) -> Result<()> {
    interrupt::install();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
        format!("cannot listen on 127.0.0.1:{port}: choose another --port, or 0 for any")
    })?;
    let address = listener.local_addr()?;
    let mut target = VmTarget::attach(client, vm, vcpu)?;
    if as_json {
        print(&serde_json::json!({ "listening": address.to_string() }))?;
    } else {
        crate::note!(
            "VM {vm} has stopped; in gdb: target remote {address}  (Ctrl-C here ends it, and lets the VM go on)"
        );
    }
    std::io::stdout().flush()?;
    let end = serve(&listener, &mut target);
    // What gdb has set goes with it, whatever happened.
    let detached = target.detach();
    match end? {
        Some(DisconnectReason::TargetExited(_)) => crate::note!("VM {vm} has ended"),
        _ => detached?,
    }
    Ok(())
}

/// `None` if a signal came first.
fn serve(listener: &TcpListener, target: &mut VmTarget<'_>) -> Result<Option<DisconnectReason>> {
    let Some(wire) = Wire::accept(listener)? else {
        return Ok(None);
    };
    match GdbStub::new(wire).run_blocking::<Events<'_>>(target) {
        Ok(reason) => Ok(Some(reason)),
        Err(_) if interrupt::requested() => Ok(None),
        Err(error) if error.is_target_error() => match error.into_target_error() {
            Some(error) => Err(error),
            None => bail!("the target failed"),
        },
        // gdb went without a word: as if it had detached.
        Err(error) if error.is_connection_error() => Ok(Some(DisconnectReason::Disconnect)),
        Err(error) => Err(anyhow!("gdb: {error}")),
    }
}

struct Events<'a>(std::marker::PhantomData<&'a ()>);

impl<'a> BlockingEventLoop for Events<'a> {
    type Target = VmTarget<'a>;
    type Connection = Wire;
    type StopReason = MultiThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut VmTarget<'a>,
        wire: &mut Wire,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<anyhow::Error, std::io::Error>>
    {
        loop {
            if wire
                .wait_briefly()
                .map_err(WaitForStopReasonError::Connection)?
            {
                let byte = wire.read().map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
            if let Some(stop) = target.stopped().map_err(WaitForStopReasonError::Target)? {
                return Ok(Event::TargetStopped(stop));
            }
        }
    }

    fn on_interrupt(target: &mut VmTarget<'a>) -> Result<Option<Self::StopReason>> {
        target.stop()?;
        Ok(Some(
            target
                .await_stop()?
                .unwrap_or(MultiThreadStopReason::Signal(Signal::SIGINT)),
        ))
    }
}
