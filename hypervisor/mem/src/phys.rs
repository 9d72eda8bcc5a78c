//! Physical memory through the map that the hypervisor has of it: the one module of this crate with unsafe code.
//!
//! Guest memory is copied by volatile accesses, never borrowed: a guest may change it at any moment, and a Rust reference to
//! it would be undefined behaviour. Words of page tables are atomics, since the CPU's page walker reads them meanwhile.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{HostMemory, Hpa};

/// All physical memory, mapped writable at one offset.
#[derive(Clone, Copy, Debug)]
pub struct PhysMap {
    offset: u64,
}

impl PhysMap {
    /// Physical memory at `offset`.
    ///
    /// # Safety
    /// For as long as the value or a copy of it is used: every physical address that is passed to its methods must be mapped,
    /// writable, at `offset` plus that address, and must not be memory that Rust owns otherwise (statics, heap, stacks).
    /// Callers of the safe methods take addresses from the frame allocator or from page tables made of it.
    #[must_use]
    pub const unsafe fn new(offset: u64) -> PhysMap {
        PhysMap { offset }
    }

    #[inline]
    fn pointer<T>(&self, address: Hpa) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.offset.wrapping_add(address.get()) as usize)
    }

    #[inline]
    fn word(&self, address: Hpa) -> &AtomicU64 {
        assert!(address.is_aligned(8), "word access to {address}");
        // SAFETY: the address is aligned (checked) and mapped for good (contract of `new`); an atomic may be shared with the
        // page walker and with other CPUs.
        unsafe { AtomicU64::from_ptr(self.pointer(address)) }
    }

    /// Loads a word. The address must be a multiple of 8.
    #[inline]
    #[must_use]
    pub fn load_u64(&self, address: Hpa) -> u64 {
        self.word(address).load(Ordering::Acquire)
    }

    /// Stores a word.
    #[inline]
    pub fn store_u64(&self, address: Hpa, value: u64) {
        self.word(address).store(value, Ordering::Release);
    }

    /// Stores `new` if the word is `current`.
    ///
    /// # Errors
    /// The word as it is, if it is not `current`.
    #[inline]
    pub fn compare_exchange_u64(&self, address: Hpa, current: u64, new: u64) -> Result<u64, u64> {
        self.word(address)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Fills `pages` frames from `start` with zeros.
    pub fn zero(&self, start: Hpa, pages: u64) {
        let first = self.pointer::<u8>(start.align_down(4096));
        // SAFETY: the range is mapped writable (contract of `new`) and owned by the caller, who was given it by the frame
        // allocator; nothing else reads it while it is zeroed.
        unsafe { core::ptr::write_bytes(first, 0, pages as usize * 4096) };
    }
}

impl HostMemory for PhysMap {
    fn read(&self, address: Hpa, buffer: &mut [u8]) {
        let from = self.pointer::<u8>(address);
        let mut done = 0;
        // Words where both sides allow it, bytes else.
        while done < buffer.len() {
            let left = buffer.len() - done;
            // SAFETY: `done < buffer.len()`, and the caller passes a range of mapped memory (contract of `new`). The access is
            // volatile since a guest may write there; a torn value is its own affair.
            unsafe {
                let source = from.add(done);
                if left >= 8 && source.addr() % 8 == 0 {
                    let word = source.cast::<u64>().read_volatile();
                    buffer[done..done + 8].copy_from_slice(&word.to_ne_bytes());
                    done += 8;
                } else {
                    buffer[done] = source.read_volatile();
                    done += 1;
                }
            }
        }
    }

    fn write(&self, address: Hpa, bytes: &[u8]) {
        let to = self.pointer::<u8>(address);
        let mut done = 0;
        while done < bytes.len() {
            let left = bytes.len() - done;
            // SAFETY: as in `read`.
            unsafe {
                let target = to.add(done);
                if left >= 8
                    && target.addr() % 8 == 0
                    && let Some(word) = bytes[done..].first_chunk::<8>()
                {
                    target
                        .cast::<u64>()
                        .write_volatile(u64::from_ne_bytes(*word));
                    done += 8;
                } else {
                    target.write_volatile(bytes[done]);
                    done += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn copies_of_any_alignment_arrive_whole() {
        let mut memory = vec![0_u64; 1024];
        let base = memory.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: "physical" addresses 0 to 8191 are the vector's bytes, which nobody touches while the map is used.
        let map = unsafe { PhysMap::new(base) };
        for start in 0..9_u64 {
            for length in 0..40_usize {
                let bytes: Vec<u8> = (0..length)
                    .map(|index| (index as u8) ^ (start as u8) ^ 0x5A)
                    .collect();
                map.write(Hpa::new(100 + start), &bytes);
                let mut back = vec![0; length];
                map.read(Hpa::new(100 + start), &mut back);
                assert_eq!(back, bytes);
            }
        }
        map.store_u64(Hpa::new(512), 7);
        assert_eq!(map.compare_exchange_u64(Hpa::new(512), 8, 9), Err(7));
        assert_eq!(map.compare_exchange_u64(Hpa::new(512), 7, 9), Ok(7));
        assert_eq!(map.load_u64(Hpa::new(512)), 9);
    }
}
