//! The RAM of one guest as devices use it.
//!
//! The guest may write to any byte at any moment. So a value is loaded once into a local and checked there; it is never loaded
//! a second time after the check. No reference into guest memory exists.

use core::sync::atomic::{Ordering, fence};

use nagaya_mem::Gpa;
use serde::{Deserialize, Serialize};

/// An access to guest-physical addresses that was refused: some of them are no RAM, or may not be written, or do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamError {
    /// Start of the range.
    pub start: Gpa,
    /// Bytes of the range.
    pub bytes: u64,
}

/// Which side refused a copy between two guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError {
    /// The side that is read.
    Source(RamError),
    /// The side that is written.
    Target(RamError),
}

/// The RAM of one guest. Implementations translate, check and copy; a range may cross pages.
///
/// An access that is refused has changed nothing.
pub trait GuestRam {
    /// Copies out of guest memory.
    ///
    /// # Errors
    /// [`RamError`].
    fn read(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), RamError>;

    /// Copies into guest memory that the guest may write.
    ///
    /// # Errors
    /// [`RamError`].
    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), RamError>;

    /// Loads a little-endian word by one access, so that it cannot be torn. No later access comes before it (acquire). The
    /// address is even.
    ///
    /// # Errors
    /// [`RamError`].
    fn load_u16(&self, from: Gpa) -> Result<u16, RamError>;

    /// Stores a little-endian word by one access. No earlier access comes after it (release). The address is even.
    ///
    /// # Errors
    /// [`RamError`].
    fn store_u16(&self, to: Gpa, value: u16) -> Result<(), RamError>;

    /// Copies from this guest to another (or the same). Should be one copy, with no buffer between. The ranges may overlap;
    /// then what arrives is not defined.
    ///
    /// # Errors
    /// [`CopyError`]; some of the bytes may have been copied.
    fn copy_to(&self, from: Gpa, target: &Self, to: Gpa, bytes: u32) -> Result<(), CopyError>;

    /// Orders a store before a later load: to look whether the other side went to sleep after telling it the news.
    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// The address `bytes` after `start`, as a [`RamError`] if there is none.
pub(crate) fn offset(start: Gpa, bytes: u64) -> Result<Gpa, RamError> {
    start.checked_add(bytes).ok_or(RamError { start, bytes })
}
