//! The ints of a message as bytes, written and checked wherever a transport cuts them.

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
        let mut ints = rest.chunks_exact_mut(4);
        for chunk in ints.by_ref() {
            chunk.copy_from_slice(&int.to_le_bytes());
            int = int.wrapping_add(1);
            self.at += 4;
        }
        self.bytes(ints.into_remainder());
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
        let ints = rest.chunks_exact(4);
        let last = ints.remainder();
        for chunk in ints {
            if chunk != int.to_le_bytes() {
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
    fn a_wrong_byte_is_found_wherever_it_is() {
        for wrong in 0..23 {
            let mut bytes = [0; 23];
            Stream::new(7).fill(&mut bytes);
            bytes[wrong] ^= 0x10;
            assert_eq!(Stream::new(7).check(&bytes), Err(wrong / 4));
        }
    }
}
