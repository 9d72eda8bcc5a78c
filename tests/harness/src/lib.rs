//! Starts the machine (an emulator, or KVM), reads its console while it runs, and reports what happened.
//!
//! The flow of a run: [`choice`] says which machine this host can offer and why; [`MachineConfig`] says what it shall look
//! like; [`mod@run`] makes a directory of its own below `target/runs`, starts the emulator there ([`bochs`], [`qemu`] turn the
//! configuration into a command line; they start nothing), follows both serial ports, and judges the run from the event
//! stream. Everything but [`process`], [`interrupt`] and [`mod@run`] takes plain values and returns plain values.
//!
//! Concurrency: one run belongs to one thread, which must live as long as the run; several runs may go on in several
//! threads, since each has its own directory and its own process group. The only shared state is the flag in [`interrupt`].

#![forbid(unsafe_code)]

pub mod bochs;
mod bridge;
pub mod choice;
pub mod console;
pub mod event;
pub mod interrupt;
pub mod machine;
pub mod paint;
pub mod process;
pub mod qemu;
pub mod report;
pub mod run;
pub mod run_directory;
pub mod tail;

pub use bridge::SOCKET as CONTROL_SOCKET;
pub use choice::{Choice, HostFacts};
pub use console::{ConsoleLine, Level};
pub use event::{Event, VmEnd};
pub use machine::{ConfigError, Firmware, MachineConfig, MachineKind};
pub use paint::Painter;
pub use report::{Ending, RunReport};
pub use run::{RunError, RunRequest, run};
