//! Doubles of the traits for host tests, stricter than the hardware: what a machine would let pass, they panic at.
//!
//! [`HistoryStore`] keeps every value that every table entry ever had. From that it can say what hardware *might have seen*
//! during any stretch of time ([`HistoryStore::possible_views`]), also hardware that still held an upper-level entry from its
//! paging-structure caches while it read the lower ones afresh. [`TestMemory`] is a piece of host memory with bounds. [`FamilyStore`] knows what is in the
//! pages that VMs share.
//!
//! Concurrency: one thread; the doubles use `RefCell`.

mod family;
mod history;
mod memory;

pub use family::FamilyStore;
pub use history::{HistoryStore, View};
pub use memory::{GuestTables, TestMemory};
