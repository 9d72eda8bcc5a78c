//! The group's shared region as a safe, typed view: cells and slices of atomics, never references to plain shared data.
//!
//! All members see the region at one address, so that addresses inside it mean the same to all: a pointer is stored as a
//! number and turned back into a cell by [`View::at`], which checks that it points inside.

use core::ops::Deref;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use guest_abi::{Errno, PAGE_BYTES};

use crate::frames::{self, Frames};
use crate::own::ONE_TO_ONE_END;
use crate::{group, hypercall, is_bare, paging};

/// A type of atomics, for which every pattern of bits is a valid value.
///
/// # Safety
/// It must be made of atomics (and padding) only, so that shared references to it may stand for memory that other VMs write.
pub unsafe trait Shared {}

// SAFETY: an atomic.
unsafe impl Shared for AtomicU8 {}
// SAFETY: an atomic.
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic.
unsafe impl Shared for AtomicU64 {}
// SAFETY: made of atomics only.
unsafe impl Shared for crate::sync::SpinLock {}
// SAFETY: made of atomics only.
unsafe impl Shared for crate::sync::Barrier {}
// SAFETY: made of atomics only.
unsafe impl Shared for crate::sync::RingHeader {}
// SAFETY: made of atomics only.
unsafe impl Shared for crate::sync::QueueHeader {}
// SAFETY: made of atomics only.
unsafe impl Shared for crate::sync::QueueSlot {}

/// The region, mapped. It stays mapped until [`SharedRegion::unmap`]; references into it live as long as a borrow of this.
#[derive(Debug)]
pub struct SharedRegion {
    view: View,
    /// The guest's own RAM behind the addresses; none in a bare loop.
    backing: Option<Frames>,
}

impl SharedRegion {
    /// Maps the group's region at `va`. The guest's page tables get its own RAM there first, aligned so that the hypervisor can
    /// use 2 MiB pages where `va` is a multiple of 2 MiB.
    ///
    /// # Errors
    /// `EPERM` in no group; `EINVAL` below 4 GiB, where RAM is mapped one to one; `ENOMEM` without RAM to put behind the
    /// addresses; else as `map_shared` answers. Nothing stays mapped then.
    pub fn map_at(va: u64) -> Result<SharedRegion, Errno> {
        if is_bare() {
            hypercall::map_shared(va)?;
            return Ok(SharedRegion {
                view: View {
                    va,
                    bytes: guest_abi::DEFAULT_REGION_PAGES * PAGE_BYTES,
                },
                backing: None,
            });
        }
        let pages = group::region_pages();
        if pages == 0 {
            return Err(Errno::Perm);
        }
        let bytes = pages.checked_mul(PAGE_BYTES).ok_or(Errno::Inval)?;
        if va < ONE_TO_ONE_END || !va.is_multiple_of(PAGE_BYTES) || va.checked_add(bytes).is_none()
        {
            return Err(Errno::Inval);
        }
        let backing = frames::allocate(pages, paging::BIG).ok_or(Errno::NoMem)?;
        // SAFETY: nothing of Rust's lies above 4 GiB, and the frames are ours.
        let mapped = unsafe { paging::map(va, backing.gpa(), bytes) };
        let asked = if mapped {
            hypercall::map_shared(va)
        } else {
            Err(Errno::NoMem)
        };
        match asked {
            Ok(()) => Ok(SharedRegion {
                view: View { va, bytes },
                backing: Some(backing),
            }),
            Err(errno) => {
                take_away(va, pages);
                frames::release(backing);
                Err(errno)
            }
        }
    }

    /// Gives the region up. The addresses are not mapped afterwards; the RAM that was behind them is used again.
    ///
    /// # Errors
    /// As `unmap_shared` answers; the addresses then stay as they are for ever.
    pub fn unmap(self) -> Result<(), Errno> {
        hypercall::unmap_shared(self.view.va)?;
        if let Some(backing) = self.backing {
            take_away(self.view.va, backing.pages());
            frames::release(backing);
        }
        Ok(())
    }
}

impl Deref for SharedRegion {
    type Target = View;

    #[inline]
    fn deref(&self) -> &View {
        &self.view
    }
}

/// The region as all who have mapped it see it. Whoever owns a view keeps it mapped for as long.
#[derive(Debug)]
pub struct View {
    va: u64,
    bytes: u64,
}

impl View {
    /// The view of what is mapped at `va`.
    ///
    /// # Safety
    /// `bytes` bytes from `va`, a multiple of the page size, are mapped and can be read and written for as long as the view
    /// exists, and nothing of Rust's lies there.
    #[cfg(feature = "linux")]
    pub(crate) unsafe fn new(va: u64, bytes: u64) -> View {
        View { va, bytes }
    }

    /// Its address, the same in all members.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.va
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn check(&self, offset: u64, bytes: u64, align: u64) -> Option<usize> {
        let end = offset.checked_add(bytes)?;
        (offset.is_multiple_of(align) && end <= self.bytes).then_some((self.va + offset) as usize)
    }

    /// The cell at `offset`, a multiple of its alignment. `None` if it does not lie inside the region.
    #[inline]
    #[must_use]
    pub fn cell<T: Shared>(&self, offset: u64) -> Option<&T> {
        self.slice(offset, 1)?.first()
    }

    /// `count` cells from `offset`, a multiple of their alignment. `None` if they do not lie inside the region.
    #[inline]
    #[must_use]
    pub fn slice<T: Shared>(&self, offset: u64, count: usize) -> Option<&[T]> {
        let bytes = (count as u64).checked_mul(size_of::<T>() as u64)?;
        let address = self.check(offset, bytes, align_of::<T>() as u64)?;
        // SAFETY: aligned and inside the region (checked), which is mapped while `self` lives; `T` is made of atomics, so that
        // other VMs may write meanwhile and every value is valid.
        Some(unsafe {
            core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address), count)
        })
    }

    /// The 64-bit cell at `offset`, a multiple of 8.
    #[inline]
    #[must_use]
    pub fn u64(&self, offset: u64) -> Option<&AtomicU64> {
        self.cell(offset)
    }

    /// `count` 32-bit cells from `offset`, a multiple of 4.
    #[inline]
    #[must_use]
    pub fn u32s(&self, offset: u64, count: usize) -> Option<&[AtomicU32]> {
        self.slice(offset, count)
    }

    /// `count` 64-bit cells from `offset`, a multiple of 8.
    #[inline]
    #[must_use]
    pub fn u64s(&self, offset: u64, count: usize) -> Option<&[AtomicU64]> {
        self.slice(offset, count)
    }

    /// The 64-bit cell at an *address* that was found in the region: a pointer as a peer stored it. `None` if it does not point
    /// inside, or not at a multiple of 8.
    #[inline]
    #[must_use]
    pub fn at(&self, address: u64) -> Option<&AtomicU64> {
        self.u64(address.checked_sub(self.va)?)
    }
}

/// Unmaps the addresses.
fn take_away(va: u64, pages: u64) {
    // SAFETY: the caller has given up all references into the range. If a table is missing some pages stay mapped: then RAM that
    // is used again is seen there by nobody, since only a region's references lead there.
    let _ = unsafe { paging::unmap(va, pages * PAGE_BYTES) };
}
