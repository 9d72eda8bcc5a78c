//! The ints of a message, written and checked: in cells of the shared region, or as bytes wherever a transport cuts them. Both do the
//! same work for each int, so that a comparison of transports compares the transports.

use core::sync::atomic::{AtomicU32, Ordering};

/// Ints that are handled at a time.
const BLOCK: usize = 8;

/// Writes a message into cells.
pub fn fill_cells(cells: &[AtomicU32], seed: u32) {
    let mut int = seed;
    let blocks = cells.chunks_exact(BLOCK);
    let last = blocks.remainder();
    for block in blocks {
        for (index, cell) in block.iter().enumerate() {
            cell.store(int.wrapping_add(index as u32), Ordering::Relaxed);
        }
        int = int.wrapping_add(BLOCK as u32);
    }
    for (index, cell) in last.iter().enumerate() {
        cell.store(int.wrapping_add(index as u32), Ordering::Relaxed);
    }
}

/// Checks a message in cells: `Err` is the number of the first wrong int.
///
/// # Errors
/// As said.
pub fn check_cells(cells: &[AtomicU32], seed: u32) -> Result<(), usize> {
    let mut int = seed;
    let blocks = cells.chunks_exact(BLOCK);
    let last = blocks.remainder();
    for block in blocks {
        let difference = |(index, cell): (usize, &AtomicU32)| {
            cell.load(Ordering::Relaxed) ^ int.wrapping_add(index as u32)
        };
        let each = block.iter().enumerate();
        if each.clone().map(difference).fold(0, |all, one| all | one) != 0 {
            let first = each.clone().position(|one| difference(one) != 0);
            return Err(int.wrapping_sub(seed) as usize + first.unwrap_or(0));
        }
        int = int.wrapping_add(BLOCK as u32);
    }
    for cell in last {
        if cell.load(Ordering::Relaxed) != int {
            return Err(int.wrapping_sub(seed) as usize);
        }
        int = int.wrapping_add(1);
    }
    Ok(())
}

/// A position in a message whose `n`th int is `seed + n`.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    seed: u32,
    at: usize,
}

impl Stream {
    /// The beginning of a message.
    #[must_use]
    pub fn new(seed: u32) -> Stream {
        Stream { seed, at: 0 }
    }

    /// Bytes written or checked so far.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    fn byte(&self, at: usize) -> u8 {
        self.seed.wrapping_add((at / 4) as u32).to_le_bytes()[at % 4]
    }

    /// Writes the next bytes, as many as there is room.
    pub fn fill(&mut self, room: &mut [u8]) {
        let lead = room.len().min((4 - self.at % 4) % 4);
        let (first, rest) = room.split_at_mut(lead);
        self.bytes(first);
        let mut int = self.seed.wrapping_add((self.at / 4) as u32);
        let (ints, last) = rest.as_chunks_mut::<4>();
        let (blocks, single) = ints.as_chunks_mut::<BLOCK>();
        self.at += (blocks.len() * BLOCK + single.len()) * 4;
        for block in blocks {
            for (index, place) in block.iter_mut().enumerate() {
                *place = int.wrapping_add(index as u32).to_le_bytes();
            }
            int = int.wrapping_add(BLOCK as u32);
        }
        for place in single {
            *place = int.to_le_bytes();
            int = int.wrapping_add(1);
        }
        self.bytes(last);
    }

    fn bytes(&mut self, room: &mut [u8]) {
        for byte in room {
            *byte = self.byte(self.at);
            self.at += 1;
        }
    }

    /// Checks the next bytes: `Err` is the position of the first wrong int.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let lead = bytes.len().min((4 - self.at % 4) % 4);
        let (first, rest) = bytes.split_at(lead);
        self.check_bytes(first)?;
        let mut int = self.seed.wrapping_add((self.at / 4) as u32);
        let (ints, last) = rest.as_chunks::<4>();
        let (blocks, single) = ints.as_chunks::<BLOCK>();
        for block in blocks {
            let difference = |(index, place): (usize, &[u8; 4])| {
                u32::from_le_bytes(*place) ^ int.wrapping_add(index as u32)
            };
            let each = block.iter().enumerate();
            if each.clone().map(difference).fold(0, |all, one| all | one) != 0 {
                let first = each.clone().position(|one| difference(one) != 0);
                return Err(self.at / 4 + first.unwrap_or(0));
            }
            int = int.wrapping_add(BLOCK as u32);
            self.at += BLOCK * 4;
        }
        for place in single {
            if *place != int.to_le_bytes() {
                return Err(self.at / 4);
            }
            int = int.wrapping_add(1);
            self.at += 4;
        }
        self.check_bytes(last)
    }

    fn check_bytes(&mut self, bytes: &[u8]) -> Result<(), usize> {
        for byte in bytes {
            if *byte != self.byte(self.at) {
                return Err(self.at / 4);
            }
            self.at += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn cuts_do_not_show() {
        let mut whole = vec![0; 64];
        Stream::new(0xFFFF_FFFC).fill(&mut whole);
        assert_eq!(whole[..8], [0xFC, 0xFF, 0xFF, 0xFF, 0xFD, 0xFF, 0xFF, 0xFF]);
        assert_eq!(whole[16..20], [0, 0, 0, 0]);
        for step in 1..=9 {
            let mut cut = vec![0; 64];
            let (mut write, mut read) = (Stream::new(0xFFFF_FFFC), Stream::new(0xFFFF_FFFC));
            for chunk in cut.chunks_mut(step) {
                write.fill(chunk);
                assert_eq!(read.check(chunk), Ok(()));
            }
            assert_eq!(cut, whole);
            assert_eq!((write.at(), read.at()), (64, 64));
        }
    }

    #[test]
    fn cells_and_bytes_hold_the_same_ints_and_a_wrong_one_is_found() {
        for count in [0, 1, 7, 8, 9, 20] {
            let cells: Vec<_> = (0..count).map(|_| AtomicU32::new(0)).collect();
            fill_cells(&cells, u32::MAX - 4);
            assert_eq!(check_cells(&cells, u32::MAX - 4), Ok(()));
            let bytes: Vec<u8> = cells
                .iter()
                .flat_map(|cell| cell.load(Ordering::Relaxed).to_le_bytes())
                .collect();
            assert_eq!(Stream::new(u32::MAX - 4).check(&bytes), Ok(()));
            for wrong in 0..count {
                cells[wrong].fetch_xor(0x8000, Ordering::Relaxed);
                assert_eq!(check_cells(&cells, u32::MAX - 4), Err(wrong));
                cells[wrong].fetch_xor(0x8000, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn a_wrong_byte_is_found_wherever_it_is() {
        for wrong in 0..79 {
            let mut bytes = [0; 79];
            Stream::new(7).fill(&mut bytes);
            bytes[wrong] ^= 0x10;
            assert_eq!(Stream::new(7).check(&bytes), Err(wrong / 4));
        }
    }
}
