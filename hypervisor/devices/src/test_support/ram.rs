//! Guest RAM that knows what was done to it.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use std::collections::BTreeMap;

use nagaya_mem::Gpa;

use super::GuestView;
use crate::{CopyError, GuestRam, RamError};

/// RAM of a guest from address 0 to a limit, perhaps with holes, read-only parts, and parts that another vCPU keeps changing.
#[derive(Debug)]
pub struct TestRam {
    bytes: RefCell<Vec<u8>>,
    holes: RefCell<Vec<Range<u64>>>,
    read_only: RefCell<Vec<Range<u64>>>,
    /// Changed after each access to it.
    restless: RefCell<Vec<Range<u64>>>,
    random: Cell<u64>,
    loads: RefCell<BTreeMap<u64, usize>>,
    copied_bytes: Cell<u64>,
    written_bytes: Cell<u64>,
}

impl TestRam {
    /// `bytes` of zeros.
    #[must_use]
    pub fn new(bytes: usize) -> TestRam {
        TestRam {
            bytes: RefCell::new(vec![0; bytes]),
            holes: RefCell::default(),
            read_only: RefCell::default(),
            restless: RefCell::default(),
            random: Cell::new(0x9E37_79B9_7F4A_7C15),
            loads: RefCell::default(),
            copied_bytes: Cell::new(0),
            written_bytes: Cell::new(0),
        }
    }

    /// Makes a part no RAM.
    pub fn make_hole(&self, part: Range<u64>) {
        self.holes.borrow_mut().push(part);
    }

    /// Lets the guest, and so devices, not write to a part.
    pub fn make_read_only(&self, part: Range<u64>) {
        self.read_only.borrow_mut().push(part);
    }

    /// Has a part change after each time a device has read of it, as by a hostile vCPU. The changes follow from `seed`.
    pub fn make_restless(&self, part: Range<u64>, seed: u64) {
        self.random.set(seed | 1);
        self.restless.borrow_mut().push(part);
    }

    /// How often a device read each byte, by address, since the last call.
    pub fn take_loads(&self) -> BTreeMap<u64, usize> {
        self.loads.take()
    }

    /// Bytes that came in by [`GuestRam::copy_to`] since the last call.
    pub fn take_copied_bytes(&self) -> u64 {
        self.copied_bytes.take()
    }

    /// Bytes that came in by [`GuestRam::write`] and [`GuestRam::store_u16`] since the last call.
    pub fn take_written_bytes(&self) -> u64 {
        self.written_bytes.take()
    }

    /// Reads as the guest: nothing is counted, nothing changes. Panics outside RAM.
    #[must_use]
    pub fn peek(&self, from: u64, bytes: usize) -> Vec<u8> {
        let start = from as usize;
        self.bytes.borrow()[start..start + bytes].to_vec()
    }

    /// Writes as the guest. Panics outside RAM.
    pub fn poke(&self, to: u64, bytes: &[u8]) {
        let start = to as usize;
        self.bytes.borrow_mut()[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// A little-endian word as the guest reads it.
    #[must_use]
    pub fn peek_u16(&self, from: u64) -> u16 {
        let bytes = self.peek(from, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    fn range(&self, start: Gpa, bytes: u64, writes: bool) -> Result<Range<usize>, RamError> {
        let error = RamError { start, bytes };
        let end = start.checked_add(bytes).ok_or(error)?.get();
        let meets = |parts: &RefCell<Vec<Range<u64>>>| {
            let parts = parts.borrow();
            parts
                .iter()
                .any(|part| start.get() < part.end && part.start < end)
        };
        let is_ram = end <= self.bytes.borrow().len() as u64 && !meets(&self.holes);
        if !is_ram || (writes && meets(&self.read_only)) {
            return Err(error);
        }
        Ok(start.get() as usize..end as usize)
    }

    /// What another vCPU does after an access to the range.
    fn stir(&self, range: Range<usize>) {
        for address in range {
            let restless = self.restless.borrow();
            if restless.iter().any(|part| part.contains(&(address as u64))) {
                // xorshift64.
                let mut random = self.random.get();
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                self.random.set(random);
                // Small values most of the time: they come through more checks.
                let mask = if random & 0x300 == 0 { 0xFF } else { 0x03 };
                self.bytes.borrow_mut()[address] = random as u8 & mask;
            }
        }
    }

    fn load(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), RamError> {
        let range = self.range(from, buffer.len() as u64, false)?;
        buffer.copy_from_slice(&self.bytes.borrow()[range.clone()]);
        for address in range.clone() {
            *self.loads.borrow_mut().entry(address as u64).or_insert(0) += 1;
        }
        self.stir(range);
        Ok(())
    }

    fn store(&self, to: Gpa, bytes: &[u8]) -> Result<(), RamError> {
        let range = self.range(to, bytes.len() as u64, true)?;
        self.bytes.borrow_mut()[range.clone()].copy_from_slice(bytes);
        self.written_bytes
            .set(self.written_bytes.get() + bytes.len() as u64);
        self.stir(range);
        Ok(())
    }
}

impl GuestView for TestRam {
    fn peek(&self, from: u64, bytes: usize) -> Vec<u8> {
        TestRam::peek(self, from, bytes)
    }

    fn poke(&self, to: u64, bytes: &[u8]) {
        TestRam::poke(self, to, bytes);
    }

    fn peek_u16(&self, from: u64) -> u16 {
        TestRam::peek_u16(self, from)
    }

    fn poke_u16(&self, to: u64, value: u16) {
        TestRam::poke(self, to, &value.to_le_bytes());
    }
}

impl GuestRam for TestRam {
    fn read(&self, from: Gpa, buffer: &mut [u8]) -> Result<(), RamError> {
        self.load(from, buffer)
    }

    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), RamError> {
        self.store(to, bytes)
    }

    fn load_u16(&self, from: Gpa) -> Result<u16, RamError> {
        assert!(from.is_aligned(2), "one access to {from} might be torn");
        let mut bytes = [0; 2];
        self.load(from, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, to: Gpa, value: u16) -> Result<(), RamError> {
        assert!(to.is_aligned(2), "one access to {to} might be torn");
        self.store(to, &value.to_le_bytes())
    }

    fn copy_to(&self, from: Gpa, target: &Self, to: Gpa, bytes: u32) -> Result<(), CopyError> {
        let source = self
            .range(from, u64::from(bytes), false)
            .map_err(CopyError::Source)?;
        let place = target
            .range(to, u64::from(bytes), true)
            .map_err(CopyError::Target)?;
        let between = self.bytes.borrow()[source.clone()].to_vec();
        target.bytes.borrow_mut()[place].copy_from_slice(&between);
        target
            .copied_bytes
            .set(target.copied_bytes.get() + u64::from(bytes));
        self.stir(source);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_read_only_parts_and_the_end_refuse_and_change_nothing() {
        let ram = TestRam::new(100);
        ram.make_hole(10..12);
        ram.make_read_only(20..22);
        let refused = |start: u64, bytes: u64| {
            let start = Gpa::new(start);
            Err(RamError { start, bytes })
        };
        assert_eq!(ram.read(Gpa::new(8), &mut [0; 4]), refused(8, 4));
        assert_eq!(ram.read(Gpa::new(12), &mut [0; 4]), Ok(()));
        assert_eq!(ram.write(Gpa::new(18), &[1; 4]), refused(18, 4));
        assert_eq!(ram.read(Gpa::new(18), &mut [0; 4]), Ok(()));
        assert_eq!(ram.write(Gpa::new(98), &[1; 3]), refused(98, 3));
        assert_eq!(
            ram.read(Gpa::new(u64::MAX), &mut [0; 2]),
            refused(u64::MAX, 2)
        );
        assert_eq!(ram.peek(0, 100), vec![0; 100]);
    }

    #[test]
    fn a_restless_part_changes_after_it_was_read_and_others_do_not() {
        let ram = TestRam::new(64);
        ram.make_restless(0..32, 7);
        let mut first = [0; 64];
        ram.read(Gpa::new(0), &mut first).expect("is RAM");
        assert_eq!(first, [0; 64]);
        assert_ne!(ram.peek(0, 32), [0; 32]);
        assert_eq!(ram.peek(32, 32), [0; 32]);
    }

    #[test]
    fn a_copy_between_guests_says_which_side_refused() {
        let (one, two) = (TestRam::new(16), TestRam::new(8));
        one.poke(0, b"0123456789abcdef");
        one.copy_to(Gpa::new(2), &two, Gpa::new(0), 4)
            .expect("both are RAM");
        assert_eq!(two.peek(0, 8), b"2345\0\0\0\0");
        assert_eq!(two.take_copied_bytes(), 4);
        assert!(matches!(
            one.copy_to(Gpa::new(14), &two, Gpa::new(0), 4),
            Err(CopyError::Source(_))
        ));
        assert!(matches!(
            one.copy_to(Gpa::new(0), &two, Gpa::new(6), 4),
            Err(CopyError::Target(_))
        ));
    }
}
