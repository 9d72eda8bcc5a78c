//! A bit for each vector.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    pub(super) fn contains(&self, vector: u8) -> bool {
        let word = self.0.get(usize::from(vector >> 6));
        word.is_some_and(|word| word & 1 << (vector & 63) != 0)
    }

    pub(super) fn set(&mut self, vector: u8, to: bool) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            let bit = 1 << (vector & 63);
            *word = if to { *word | bit } else { *word & !bit };
        }
    }

    /// 32 of them; 0 beyond the eighth.
    pub(super) fn word(&self, index: u8) -> u32 {
        let pair = self.0.get(usize::from(index / 2)).copied().unwrap_or(0);
        (pair >> (index % 2 * 32)) as u32
    }

    /// Sets 32 of them; nothing beyond the eighth.
    pub(super) fn set_word(&mut self, index: u8, bits: u32) {
        if let Some(pair) = self.0.get_mut(usize::from(index / 2)) {
            let shift = index % 2 * 32;
            *pair = *pair & !(0xFFFF_FFFF << shift) | u64::from(bits) << shift;
        }
    }

    /// All of them, 64 in each word.
    pub(super) fn words(&self) -> [u64; 4] {
        self.0
    }

    #[inline]
    pub(super) fn highest(&self) -> Option<u8> {
        self.0
            .iter()
            .zip(0..4_u8)
            .rev()
            .find(|(word, _)| **word != 0)
            .map(|(word, index)| index * 64 + word.ilog2() as u8)
    }
}
