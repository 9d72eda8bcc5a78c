//! Physical memory through the map that the hypervisor has of it: the one module of this crate with unsafe code.
//!
//! Guest memory is copied by volatile accesses, never borrowed: a guest may change it at any moment, and a Rust reference to
//! it would be undefined behaviour. Words of page tables are atomics, since the CPU's page walker reads them meanwhile.

use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

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

    /// Sets bits of a word.
    #[inline]
    pub fn set_bits_u64(&self, address: Hpa, bits: u64) {
        self.word(address).fetch_or(bits, Ordering::AcqRel);
    }

    /// So many words in a row, to be kept by whoever counts something there often. The address must be a multiple of 8.
    #[must_use]
    pub fn words<const COUNT: usize>(&self, address: Hpa) -> &[AtomicU64; COUNT] {
        assert!(address.is_aligned(8), "words at {address}");
        // SAFETY: as in `word`, for each of them: an array has nothing between its elements.
        unsafe { &*self.pointer(address) }
    }

    #[inline]
    fn half_word(&self, address: Hpa) -> &AtomicU16 {
        assert!(address.is_aligned(2), "16-bit access to {address}");
        // SAFETY: as in `word`.
        unsafe { AtomicU16::from_ptr(self.pointer(address)) }
    }

    /// Loads 16 bits by one access (acquire). The address must be even.
    #[inline]
    #[must_use]
    pub fn load_u16(&self, address: Hpa) -> u16 {
        self.half_word(address).load(Ordering::Acquire)
    }

    /// Stores 16 bits by one access (release).
    #[inline]
    pub fn store_u16(&self, address: Hpa, value: u16) {
        self.half_word(address).store(value, Ordering::Release);
    }

    /// Copies within physical memory, with no buffer between. Guests may write to both ranges meanwhile; where they overlap, what
    /// arrives is not defined.
    #[inline]
    pub fn copy(&self, from: Hpa, to: Hpa, bytes: usize) {
        // SAFETY: the caller passes two ranges of that many bytes of mapped memory (contract of `new`).
        unsafe { copy_bytes(self.pointer(from), self.pointer(to), bytes) };
    }

    /// Stores the words of a frame: `first`, and in each further one `step` more. Nothing may lead the page walker to it yet.
    pub fn fill_table(&self, frame: Hpa, first: u64, step: u64) {
        let mut word = frame.align_down(4096);
        let mut value = first;
        for _ in 0..512 / 8 {
            for index in 0..8 {
                self.word(Hpa::new(word.get() + index * 8))
                    .store(value.wrapping_add(index * step), Ordering::Relaxed);
            }
            word = Hpa::new(word.get() + 64);
            value = value.wrapping_add(8 * step);
        }
    }

    /// Fills `pages` frames from `start` with zeros. The frames must be the caller's alone: no guest has them yet, or any more.
    pub fn zero(&self, start: Hpa, pages: u64) {
        let first = self.pointer::<u8>(start.align_down(4096));
        // SAFETY: the range is mapped writable (contract of `new`) and owned by the caller, who was given it by the frame
        // allocator; nothing else reads it while it is zeroed. Whoever links the frame for hardware does so by a releasing
        // exchange, after these stores.
        unsafe { core::ptr::write_bytes(first, 0, pages as usize * 4096) };
    }
}

impl HostMemory for PhysMap {
    #[inline]
    fn read(&self, address: Hpa, buffer: &mut [u8]) {
        // SAFETY: the caller passes as many bytes of mapped memory as the buffer has (contract of `new`); the buffer is ours.
        unsafe { copy_bytes(self.pointer(address), buffer.as_mut_ptr(), buffer.len()) };
    }

    #[inline]
    fn read_words(&self, address: Hpa, words: &mut [u64]) {
        assert!(address.is_aligned(8), "word access to {address}");
        // SAFETY: as in `read`; string moves of 8 bytes from aligned addresses are one access each.
        unsafe {
            copy_bytes(
                self.pointer(address),
                words.as_mut_ptr().cast(),
                size_of_val(words),
            );
        }
    }

    #[inline]
    fn write(&self, address: Hpa, bytes: &[u8]) {
        // SAFETY: as in `read`.
        unsafe { copy_bytes(bytes.as_ptr(), self.pointer(address), bytes.len()) };
    }
}

/// Copies by instructions that the compiler knows nothing about, so that guests that write meanwhile are no data race of Rust's: a
/// torn value is their own affair. String moves, since they are what CPUs do best at any length and alignment.
///
/// # Safety
/// Both ranges are mapped for as long as this takes, the target writable and nobody's but guests' and the caller's.
#[inline]
unsafe fn copy_bytes(source: *const u8, target: *mut u8, bytes: usize) {
    // SAFETY: the caller keeps the contract. The direction flag is clear, as the ABI demands.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _,
            inout("rsi") source => _,
            inout("rdi") target => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// A map of 8 KiB: "physical" addresses 0 to 8191.
    fn with_map(check: impl FnOnce(&PhysMap)) {
        let mut memory = vec![0xEEEE_EEEE_EEEE_EEEE_u64; 1536];
        // Frames are aligned.
        let skip = (memory.as_ptr().addr().wrapping_neg() % 4096) / 8;
        let base = memory[skip..].as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the 8192 bytes from the base on are the vector's, which nobody touches while the map is used.
        check(&unsafe { PhysMap::new(base) });
    }

    #[test]
    fn copies_of_any_alignment_arrive_whole_and_touch_nothing_beside() {
        with_map(|map| {
            for start in 0..9_u64 {
                for length in 0..40_usize {
                    let bytes: Vec<u8> = (0..length)
                        .map(|index| (index as u8) ^ (start as u8) ^ 0x5A)
                        .collect();
                    map.write(Hpa::new(90), &[0xEE; 80]);
                    map.write(Hpa::new(100 + start), &bytes);
                    let mut around = vec![0; length + 2];
                    map.read(Hpa::new(99 + start), &mut around);
                    assert_eq!(around[1..=length], bytes);
                    assert_eq!((around[0], around[length + 1]), (0xEE, 0xEE));
                }
            }
        });
    }

    #[test]
    fn copies_within_memory_arrive_whole_and_touch_nothing_beside() {
        with_map(|map| {
            for length in 0..40_usize {
                let bytes: Vec<u8> = (0..length).map(|index| index as u8 ^ 0x5A).collect();
                map.write(Hpa::new(4093), &bytes);
                map.write(Hpa::new(200), &[0xEE; 80]);
                map.copy(Hpa::new(4093), Hpa::new(203), length);
                let mut around = vec![0; length + 2];
                map.read(Hpa::new(202), &mut around);
                assert_eq!(around[1..=length], bytes);
                assert_eq!((around[0], around[length + 1]), (0xEE, 0xEE));
            }
            map.store_u16(Hpa::new(4094), 0xBEEF);
            assert_eq!(map.load_u16(Hpa::new(4094)), 0xBEEF);
            assert_eq!(map.load_u64(Hpa::new(4088)) >> 48, 0xBEEF);
        });
    }

    #[test]
    fn words_are_exchanged_only_from_the_value_expected() {
        with_map(|map| {
            map.store_u64(Hpa::new(512), 7);
            assert_eq!(map.compare_exchange_u64(Hpa::new(512), 8, 9), Err(7));
            assert_eq!(map.load_u64(Hpa::new(512)), 7);
            assert_eq!(map.compare_exchange_u64(Hpa::new(512), 7, 9), Ok(7));
            assert_eq!(map.load_u64(Hpa::new(512)), 9);
            map.set_bits_u64(Hpa::new(512), 0x60);
            assert_eq!(map.load_u64(Hpa::new(512)), 0x69);
        });
    }

    #[test]
    fn zeroing_fills_its_frames_and_no_others() {
        with_map(|map| {
            map.zero(Hpa::new(0), 1);
            assert!((0..512).all(|word| map.load_u64(Hpa::new(word * 8)) == 0));
            assert_eq!(map.load_u64(Hpa::new(4096)), 0xEEEE_EEEE_EEEE_EEEE);
        });
    }
}
