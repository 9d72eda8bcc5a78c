//! A bit for each vector.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    pub(super) fn contains(&self, vector: u8) -> bool {
        self.word(vector >> 5) & 1 << (vector & 31) != 0
    }

    pub(super) fn set(&mut self, vector: u8, to: bool) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 5)) {
            let bit = 1 << (vector & 31);
            *word = if to { *word | bit } else { *word & !bit };
        }
    }

    /// 32 of them; 0 beyond the eighth.
    pub(super) fn word(&self, index: u8) -> u32 {
        self.0.get(usize::from(index)).copied().unwrap_or(0)
    }

    pub(super) fn highest(&self) -> Option<u8> {
        self.0
            .iter()
            .zip(0..8_u8)
            .rev()
            .find(|(word, _)| **word != 0)
            .map(|(word, index)| index * 32 + word.ilog2() as u8)
    }
}
