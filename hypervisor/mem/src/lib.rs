//! Memory of the machine and of guests: addresses, frame owners, EPT, guest page walks, guest memory access.
//!
//! Everything is pure over two small traits ([`FrameStore`], [`HostMemory`]) but the module [`phys`], which implements them
//! over the real physical memory and is the one place outside `machine` with unsafe code.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "test-support"))]
extern crate std;

pub mod addr;
pub mod ept;
pub mod frames;
pub mod guest;
pub mod holders;
#[allow(
    unsafe_code,
    reason = "volatile and atomic access to physical memory through its map: audited on its own"
)]
pub mod phys;
#[cfg(feature = "test-support")]
pub mod test_support;
pub mod translate;
pub mod walk;

pub use addr::{Gpa, Gva, Hpa, PageSize};
pub use ept::share;
pub use ept::{
    Ept, EptError, EptFeatures, Flush, FrameStore, MemoryType, Overlay, Permissions, Run,
    Translation,
};
pub use frames::{Counts, FrameError, FrameTable, OutOfFrames, Owner};
pub use guest::{GuestMemory, GuestMemoryError, HostMemory};
pub use holders::{Holders, TooManyHolders};
pub use phys::PhysMap;
pub use translate::{Access, AccessFault, access, access_and_mark, translate};
pub use walk::{GuestMark, GuestRead, PagingState, Walk, WalkFault, walk, walk_block};
