//! The group's shared region as a safe, typed view: cells and slices of atomics, never references to plain shared data.
//!
//! All members see the region at one address, so that addresses inside it mean the same to all: a pointer is stored as a
//! number and turned back into a cell by [`SharedRegion::at`], which checks that it points inside.

use core::sync::atomic::{AtomicU32, AtomicU64};

use guest_abi::{Errno, PAGE_BYTES};

use crate::{group, heap, hypercall, is_bare, paging};

/// The region, mapped. It stays mapped until [`SharedRegion::unmap`]; references into it live as long as a borrow of this.
#[derive(Debug)]
pub struct SharedRegion {
    va: u64,
    bytes: u64,
}

impl SharedRegion {
    /// Maps the group's region at `va`. The guest's page tables get its own RAM there first, aligned so that the hypervisor can
    /// use 2 MiB pages where `va` is a multiple of 2 MiB.
    ///
    /// # Errors
    /// `EPERM` in no group; `ENOMEM` without RAM to put behind the addresses; else as `map_shared` answers.
    pub fn map_at(va: u64) -> Result<SharedRegion, Errno> {
        let pages = group::region_pages();
        if pages == 0 && !is_bare() {
            return Err(Errno::Perm);
        }
        let pages = if is_bare() {
            guest_abi::DEFAULT_REGION_PAGES
        } else {
            pages
        };
        let bytes = pages * PAGE_BYTES;
        if !is_bare() {
            let backing = heap::take_frames(bytes, paging::BIG).ok_or(Errno::NoMem)?;
            // SAFETY: the addresses are the guest's choice for the region: nothing of Rust's lies there.
            if !unsafe { paging::map(va, backing, bytes) } {
                return Err(Errno::NoMem);
            }
        }
        hypercall::map_shared(va)?;
        Ok(SharedRegion { va, bytes })
    }

    /// A region that was mapped by hand with `map_shared`.
    ///
    /// # Safety
    /// `bytes` bytes from `va` must be mapped, writable, and used as atomics only.
    #[must_use]
    pub unsafe fn from_raw(va: u64, bytes: u64) -> SharedRegion {
        SharedRegion { va, bytes }
    }

    /// Gives the region up; the guest's own frames come back to those addresses.
    ///
    /// # Errors
    /// As `unmap_shared` answers.
    pub fn unmap(self) -> Result<(), Errno> {
        hypercall::unmap_shared(self.va)
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
        (offset % align == 0 && end <= self.bytes).then_some((self.va + offset) as usize)
    }

    /// The 64-bit cell at `offset`, a multiple of 8.
    #[inline]
    #[must_use]
    pub fn u64(&self, offset: u64) -> Option<&AtomicU64> {
        let address = self.check(offset, 8, 8)?;
        // SAFETY: inside the region (checked), which is mapped while `self` lives and is only ever used as atomics.
        Some(unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(address)) })
    }

    /// `count` 32-bit cells from `offset`, a multiple of 4.
    #[inline]
    #[must_use]
    pub fn u32s(&self, offset: u64, count: usize) -> Option<&[AtomicU32]> {
        let address = self.check(offset, (count as u64).checked_mul(4)?, 4)?;
        // SAFETY: as above; `AtomicU32` has the layout of u32.
        Some(unsafe {
            core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address), count)
        })
    }

    /// `count` 64-bit cells from `offset`, a multiple of 8.
    #[inline]
    #[must_use]
    pub fn u64s(&self, offset: u64, count: usize) -> Option<&[AtomicU64]> {
        let address = self.check(offset, (count as u64).checked_mul(8)?, 8)?;
        // SAFETY: as above.
        Some(unsafe {
            core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address), count)
        })
    }

    /// The 64-bit cell at an *address* that was found in the region: a pointer as a peer stored it. `None` if it does not point
    /// inside, or not at a multiple of 8.
    #[inline]
    #[must_use]
    pub fn at(&self, address: u64) -> Option<&AtomicU64> {
        self.u64(address.checked_sub(self.va)?)
    }
}
