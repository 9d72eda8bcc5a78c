//! Host memory with bounds, and a small builder of a guest's page tables.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use crate::{Gpa, GuestMark, GuestRead, HostMemory, Hpa};

/// Host memory from address 0 to a limit; an access beyond it panics.
#[derive(Debug)]
pub struct TestMemory {
    bytes: RefCell<Vec<u8>>,
    writes: Cell<usize>,
}

impl TestMemory {
    /// `bytes` of zeros.
    #[must_use]
    pub fn new(bytes: usize) -> TestMemory {
        TestMemory {
            bytes: RefCell::new(vec![0; bytes]),
            writes: Cell::new(0),
        }
    }

    /// The number of writes so far.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.writes.get()
    }
}

impl HostMemory for TestMemory {
    fn read(&self, address: Hpa, buffer: &mut [u8]) {
        let start = address.get() as usize;
        buffer.copy_from_slice(&self.bytes.borrow()[start..start + buffer.len()]);
    }

    fn read_words(&self, address: Hpa, words: &mut [u64]) {
        for (word, at) in words.iter_mut().zip((address.get()..).step_by(8)) {
            let mut bytes = [0; 8];
            self.read(Hpa::new(at), &mut bytes);
            *word = u64::from_le_bytes(bytes);
        }
    }

    fn write(&self, address: Hpa, bytes: &[u8]) {
        let start = address.get() as usize;
        self.bytes.borrow_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        self.writes.set(self.writes.get() + 1);
    }
}

/// A guest's page tables as words in guest-physical memory. There is RAM for tables only where words were put.
#[derive(Debug, Default)]
pub struct GuestTables {
    words: RefCell<BTreeMap<u64, u64>>,
}

impl GuestTables {
    /// No RAM at all.
    #[must_use]
    pub fn new() -> GuestTables {
        GuestTables::default()
    }

    /// Makes a page of RAM, all zeros, if there is none.
    pub fn page(&mut self, gpa: u64) {
        for index in 0..512 {
            let words = self.words.get_mut();
            words.entry(gpa + index * 8).or_insert(0);
        }
    }

    /// Sets one entry of the table at `table`.
    pub fn set(&mut self, table: u64, index: u64, entry: u64) {
        self.page(table);
        self.words.get_mut().insert(table + index * 8, entry);
    }
}

impl GuestRead for GuestTables {
    fn read_u64(&self, gpa: Gpa) -> Option<u64> {
        assert!(gpa.is_aligned(8), "the walk reads whole entries");
        self.words.borrow().get(&gpa.get()).copied()
    }
}

impl GuestMark for GuestTables {
    fn set_bits(&self, gpa: Gpa, bits: u64) {
        assert!(gpa.is_aligned(8), "whole words are marked");
        if let Some(word) = self.words.borrow_mut().get_mut(&gpa.get()) {
            *word |= bits;
        }
    }
}
