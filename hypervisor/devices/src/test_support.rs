//! Doubles for host tests: guest RAM with bounds ([`TestRam`]) and the driver's side of a queue ([`DriverQueue`]).
//!
//! They are stricter than hardware: an access that hardware would let pass but that breaks a rule panics.
//!
//! Concurrency: one thread; the doubles use `RefCell`.

mod driver;
pub mod guest;
mod ram;

pub use driver::{Buffer, DriverQueue, GuestView, Layout, Raw, UsedElement};
pub use ram::TestRam;
