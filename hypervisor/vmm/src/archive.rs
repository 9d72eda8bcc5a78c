//! Members of the boot archive that are stored compressed: the BIOS loader brings at most about 24 MiB, and a kernel with its
//! initial file system is more than that.
//!
//! The member `images/NAME.lz4` stands for the image NAME: its length in bytes as a little-endian u64, then one LZ4 block of
//! it. `xtask` writes them and the hypervisor reads them, both by this module. The block has no checksum: the archive as a
//! whole is as trustworthy as the disk it comes from, and what is damaged in an image, its loader finds or the guest does.
//! Source: LZ4 Block Format Description.

use alloc::vec::Vec;
use core::fmt;

/// What the name of a compressed member ends in.
pub const PACKED_SUFFIX: &str = ".lz4";
/// Images longer than this are stored compressed.
pub const PACK_ABOVE_BYTES: usize = 1 << 20;

/// Bytes of the length in front of the block.
const HEAD_BYTES: usize = 8;
/// No byte of a block stands for more than this many of the image: a run's length grows by 255 for each.
const MAX_EXPANSION: u64 = 255;

/// Why a compressed member cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackError {
    /// It is shorter than its head.
    NoHead {
        /// Bytes of it.
        packed_bytes: usize,
    },
    /// It claims a length that no block of its size has.
    Length {
        /// What it claims, in bytes.
        claimed_bytes: u64,
        /// Bytes of the block.
        block_bytes: usize,
    },
    /// The output has another length than the image.
    WrongOutput {
        /// Length of the output in bytes.
        output_bytes: usize,
        /// What the member claims, in bytes.
        claimed_bytes: u64,
    },
    /// The block is damaged.
    BadBlock,
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnpackError::NoHead { packed_bytes } => write!(
                f,
                "the compressed image has {packed_bytes} bytes, fewer than its head"
            ),
            UnpackError::Length {
                claimed_bytes,
                block_bytes,
            } => write!(
                f,
                "the compressed image claims {claimed_bytes} bytes, which its block of {block_bytes} cannot hold"
            ),
            UnpackError::WrongOutput {
                output_bytes,
                claimed_bytes,
            } => write!(
                f,
                "the compressed image has {claimed_bytes} bytes, but there is room for {output_bytes}"
            ),
            UnpackError::BadBlock => f.write_str("the compressed image is damaged"),
        }
    }
}

impl core::error::Error for UnpackError {}

/// The member that stands for `image`.
#[must_use]
pub fn pack(image: &[u8]) -> Vec<u8> {
    let mut packed = Vec::from((image.len() as u64).to_le_bytes());
    packed.extend(lz4_flex::block::compress(image));
    packed
}

/// The head's length and the block.
fn split(packed: &[u8]) -> Result<(u64, &[u8]), UnpackError> {
    let (head, block) = packed
        .split_first_chunk::<HEAD_BYTES>()
        .ok_or(UnpackError::NoHead {
            packed_bytes: packed.len(),
        })?;
    Ok((u64::from_le_bytes(*head), block))
}

/// Length in bytes of the image that a member stands for: what the output of [`unpack`] must have. It is bounded by 255 times
/// the member's own length, but not by anything else.
///
/// # Errors
/// [`UnpackError`] if the head is missing, or claims what cannot be.
pub fn unpacked_len(packed: &[u8]) -> Result<usize, UnpackError> {
    let (claimed_bytes, block) = split(packed)?;
    let bad = UnpackError::Length {
        claimed_bytes,
        block_bytes: block.len(),
    };
    if claimed_bytes > (block.len() as u64).saturating_mul(MAX_EXPANSION) {
        return Err(bad);
    }
    usize::try_from(claimed_bytes).map_err(|_| bad)
}

/// Writes the image to `output`, which must have its length, [`unpacked_len`].
///
/// # Errors
/// [`UnpackError`]; what is in `output` is then unspecified.
pub fn unpack(packed: &[u8], output: &mut [u8]) -> Result<(), UnpackError> {
    let length = unpacked_len(packed)?;
    let (claimed_bytes, block) = split(packed)?;
    if output.len() != length {
        return Err(UnpackError::WrongOutput {
            output_bytes: output.len(),
            claimed_bytes,
        });
    }
    match lz4_flex::block::decompress_into(block, output) {
        Ok(written) if written == length => Ok(()),
        _ => Err(UnpackError::BadBlock),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn unpacked(packed: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let mut output = vec![0xAA; unpacked_len(packed)?];
        unpack(packed, &mut output)?;
        Ok(output)
    }

    #[test]
    fn a_block_made_by_hand_is_read() {
        // The token: 1 literal, and a match of 4 + 3 bytes one byte back; then the end: 5 literals.
        let mut packed = vec![13, 0, 0, 0, 0, 0, 0, 0];
        packed.extend([0x13, b'a', 1, 0, 0x50, b'b', b'c', b'd', b'e', b'f']);
        assert_eq!(unpacked(&packed).expect("is right"), b"aaaaaaaabcdef");
    }

    #[test]
    fn zeros_take_next_to_nothing_and_nothing_takes_little() {
        let packed = pack(&vec![0; 1 << 20]);
        assert!(packed.len() < 5000, "{}", packed.len());
        assert_eq!(unpacked(&packed).expect("is right"), vec![0; 1 << 20]);
        assert_eq!(unpacked(&pack(&[])).expect("is right"), []);
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_anybody_takes_memory_for_it() {
        let mut packed = pack(b"hello");
        packed[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let refused = unpacked_len(&packed).expect_err("is refused");
        assert!(matches!(
            refused,
            UnpackError::Length {
                claimed_bytes: u64::MAX,
                ..
            }
        ));
        assert_eq!(
            unpacked_len(&[0; 7]),
            Err(UnpackError::NoHead { packed_bytes: 7 })
        );
    }

    #[test]
    fn the_output_has_the_images_length_and_no_other() {
        let packed = pack(b"hello");
        for bytes in [0, 4, 6] {
            let refused = unpack(&packed, &mut vec![0; bytes]);
            assert!(matches!(refused, Err(UnpackError::WrongOutput { .. })));
        }
        // A block that is right, but longer or shorter than its head says.
        for claimed in [4_u64, 6] {
            let mut packed = packed.clone();
            packed[..8].copy_from_slice(&claimed.to_le_bytes());
            assert_eq!(unpacked(&packed), Err(UnpackError::BadBlock));
        }
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_back(image in prop::collection::vec(0..4_u8, 0..5000)) {
            prop_assert_eq!(unpacked(&pack(&image)), Ok(image));
        }

        #[test]
        fn damaged_members_are_read_or_refused(
            image in prop::collection::vec(0..4_u8, 0..500), at in any::<usize>(), value in any::<u8>(), cut in 0..20_usize,
        ) {
            let mut packed = pack(&image);
            let at = at % packed.len();
            packed[at] = value;
            packed.truncate(packed.len() - cut.min(packed.len()));
            let _ = unpacked(&packed);
        }

        #[test]
        fn any_bytes_are_read_or_refused(packed in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = unpacked(&packed);
        }
    }
}
