//! A range of addresses with this VM's own RAM behind it, in any state that a test of `map_shared` wants: read-only, with holes, one
//! page twice, scattered in physical memory.
//!
//! Its memory is reached through atomics only, so that the hypervisor may put the group's region behind the same addresses.

use core::sync::atomic::AtomicU64;

use guest_abi::{Errno, PAGE_BYTES};

use crate::{heap, paging};

/// Where the one-to-one mapping of RAM and the pages of the hypervisor ends: ranges lie above.
pub(crate) const ONE_TO_ONE_END: u64 = 4 << 30;

/// A range of own RAM. It stays mapped for ever.
#[derive(Debug)]
pub struct OwnRange {
    va: u64,
    pages: u64,
    gpa: u64,
    /// From one page of the range to the next in physical memory.
    stride: u64,
}

impl OwnRange {
    /// Zeroed RAM at `va`, contiguous and 2 MiB-aligned in physical memory.
    ///
    /// # Errors
    /// `EINVAL` if `va` is not page-aligned and above the first 4 GiB, `ENOMEM` without RAM.
    pub fn map(va: u64, pages: u64) -> Result<OwnRange, Errno> {
        let range = OwnRange::take(va, pages, PAGE_BYTES)?;
        // SAFETY: above 4 GiB nothing of Rust's lies, and the frames are this range's own.
        if unsafe { paging::map(va, range.gpa, pages * PAGE_BYTES) } {
            Ok(range)
        } else {
            Err(Errno::NoMem)
        }
    }

    /// The same with every second page of physical memory only, so that no two are neighbours.
    ///
    /// # Errors
    /// As [`OwnRange::map`].
    pub fn map_scattered(va: u64, pages: u64) -> Result<OwnRange, Errno> {
        let range = OwnRange::take(va, pages, 2 * PAGE_BYTES)?;
        for page in 0..pages {
            range.set(page, Some(page), paging::WRITABLE)?;
        }
        Ok(range)
    }

    fn take(va: u64, pages: u64, stride: u64) -> Result<OwnRange, Errno> {
        if va < ONE_TO_ONE_END || !va.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::Inval);
        }
        let bytes = pages.checked_mul(stride).ok_or(Errno::NoMem)?;
        let gpa = heap::take_frames(bytes, paging::BIG).ok_or(Errno::NoMem)?;
        Ok(OwnRange {
            va,
            pages,
            gpa,
            stride,
        })
    }

    /// Puts `frame` (counted in pages of this range) behind page `page`, or nothing.
    fn set(&self, page: u64, frame: Option<u64>, access: u64) -> Result<(), Errno> {
        if page >= self.pages || frame.is_some_and(|frame| frame >= self.pages) {
            return Err(Errno::Inval);
        }
        let entry = frame.map_or(0, |frame| {
            (self.gpa + frame * self.stride) | paging::PRESENT | access
        });
        // SAFETY: as in `map`.
        if unsafe { paging::set_page(self.va + page * PAGE_BYTES, entry) } {
            Ok(())
        } else {
            Err(Errno::NoMem)
        }
    }

    /// Makes a page read-only in the guest's page tables.
    ///
    /// # Errors
    /// `EINVAL` beyond the range, `ENOMEM` without RAM for tables.
    pub fn make_read_only(&self, page: u64) -> Result<(), Errno> {
        self.set(page, Some(page), 0)
    }

    /// Makes a hole.
    ///
    /// # Errors
    /// As [`OwnRange::make_read_only`].
    pub fn unmap_page(&self, page: u64) -> Result<(), Errno> {
        self.set(page, None, 0)
    }

    /// Shows the RAM of page `of` at `page`, too.
    ///
    /// # Errors
    /// As [`OwnRange::make_read_only`].
    pub fn alias(&self, page: u64, of: u64) -> Result<(), Errno> {
        self.set(page, Some(of), paging::WRITABLE)
    }

    /// Has the page tables show the RAM of another range's page `of` at page `page`, as a kernel does that takes the address for something
    /// else. What stood there before is in RAM still.
    ///
    /// # Errors
    /// As [`OwnRange::make_read_only`].
    pub fn show(&self, page: u64, other: &OwnRange, of: u64) -> Result<(), Errno> {
        if page >= self.pages || of >= other.pages {
            return Err(Errno::Inval);
        }
        let entry = (other.gpa + of * other.stride) | paging::PRESENT | paging::WRITABLE;
        // SAFETY: as in `map`; both ranges are only ever used as atomics.
        if unsafe { paging::set_page(self.va + page * PAGE_BYTES, entry) } {
            Ok(())
        } else {
            Err(Errno::NoMem)
        }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.va
    }

    /// The 64-bit cell at `offset`, a multiple of 8, as the page tables and the EPT show it now. A hole is a page fault.
    ///
    /// # Panics
    /// Beyond the range.
    #[must_use]
    pub fn cell(&self, offset: u64) -> &AtomicU64 {
        self.cell_at(self.va, offset, self.pages * PAGE_BYTES)
    }

    /// The 64-bit cell at `offset` of the physical memory behind the range (including what lies between scattered pages), reached
    /// through the one-to-one mapping.
    ///
    /// # Panics
    /// Beyond the memory.
    #[must_use]
    pub fn physical_cell(&self, offset: u64) -> &AtomicU64 {
        self.cell_at(self.gpa, offset, self.pages * self.stride)
    }

    fn cell_at(&self, base: u64, offset: u64, bytes: u64) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset < bytes,
            "no cell at {offset:#x} of {bytes:#x} bytes"
        );
        // SAFETY: aligned, and inside frames that are this range's own and only ever used as atomics; where the guest's page
        // tables have a hole the access raises a page fault, which ends the VM.
        unsafe {
            AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(
                (base + offset) as usize,
            ))
        }
    }
}
