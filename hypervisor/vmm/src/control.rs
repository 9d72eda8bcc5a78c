//! The control port: what an operator's program and the hypervisor say to each other over a serial line.
//!
//! The layers, from the wire up: [`Decoder`] and [`encode`] turn bytes into [`Frame`]s and back (magic, version, length,
//! checksum); [`Request`], [`Answer`] and [`Notice`] are the bodies (`postcard`); [`Server`] is the hypervisor's half as a
//! state machine, bytes in and bytes out, over the trait [`Backend`], which is all that `machine` implements. The other half,
//! the client, is `nagayactl`. docs/CONTROL.md has the wire format for those who write another client.
//!
//! Nothing from the wire is trusted, in either direction: a frame is a frame only if its checksum is right, a body is taken
//! only if it decodes to the last byte, and every name, number and length in it is checked before anything is asked of the
//! backend. Garbage changes nothing but a counter.
//!
//! Concurrency: none; one owner polls the server.

mod backend;
mod check;
mod debug;
mod error;
mod frame;
mod message;
#[cfg(any(test, feature = "test-support"))]
mod mock;
mod rows;
mod server;
mod set;
#[cfg(test)]
mod tests;

pub use backend::{Backend, Completion, ConsoleChunk, Step, Ticket, VmAction};
pub use debug::{
    Breakpoint, CoreRegisters, DebugAnswer, DebugOrder, DebugStatus, MAX_DEBUG_BYTES, Stop,
    StopReason,
};
pub use error::{ControlError, ErrorCode, MAX_ERROR_TEXT_BYTES};
pub use frame::{
    Decoder, Frame, FrameError, Kind, MAGIC, MAX_BODY_BYTES, MAX_FRAME_BYTES, MAX_WIRE_BYTES,
    TooLarge, VERSION, body_of, encode,
};
pub use message::{
    Answer, CreateVm, Event, GroupChange, GroupMode, GroupPlan, Hello, MAX_CAP_PERCENT,
    MAX_CONSOLE_INPUT_BYTES, MAX_CONSOLE_OUTPUT_BYTES, MAX_WEIGHT, Notice, PlatformPlan, Request,
    Selector, VmChange,
};
#[cfg(any(test, feature = "test-support"))]
pub use mock::MockBackend;
pub use rows::{
    DoorbellCounts, ExitCount, FrameCounts, GroupRow, GroupTag, ImageRow, LastExit, MAX_LAST_EXITS,
    Registers, Segment, Table, Ticks, VcpuDump, VmRow, VmState,
};
pub use server::{MAX_ATTACHED, MAX_PENDING, MAX_POLL_BYTES, Server};
pub use set::{CpuSet, ParseCpuSetError};
