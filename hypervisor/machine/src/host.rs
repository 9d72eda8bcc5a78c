//! The lowest layer: this machine's CPUs and memory, its console, and the way it stops. It knows no VM.

pub mod console;
pub mod cpu;
pub mod event;
pub mod memory;
pub mod paging;
pub mod physical_map;
pub mod scarcity;
pub mod stop;
